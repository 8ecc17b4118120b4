"""`make study-figures`: the study's figures and docs/study/verdicts.md, from study/*.parquet."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import part_a
import part_b
import part_c
import part_d
import part_e
import part_smollm2
from runs import STUDY, Row, overall, runs

from rankrl.report.figures.canvas import look, save

PARTS = {"a": part_a, "b": part_b, "c": part_c, "d": part_d, "e": part_e, "smollm2": part_smollm2}
NAMES = {"smollm2": "SmolLM2"}
HEADER = """# What the study's records say
Written by `make study-figures` from `study/*.parquet`. Means over paired seeds with t intervals.
The intervals of one hypothesis hold together at 95 %, each with the level that Bonferroni asks for,
where a part does not say otherwise. "Open": neither shown nor refuted by the words of
[plan.md](plan.md).
"""
POOLED = "Differences between arms have a variance that is drawn towards that of the others, as in the report."
NOTES = {
    "a": "Rates that were chosen as the best were chosen on the same seeds. Rows beside H4 hold singly.",
    "b": f"{POOLED} Seeds were given out by what had been seen, so the intervals are exploratory.",
    "c": "The rows of H7 are a report's claims: one-sided, each at 95 % for both ranks of its testbed, not for the four "
    "rows at once (all four: at most .115 below the base). Rows beside them are two-sided and single.",
    "d": f"{POOLED} Three families: H8's arms and the mean of the choice; other arms; the choice by arm. Rows "
    '"singly" are plain means over seeds, each at 95 % by itself. Arms that train as another one are counted once.',
    "e": POOLED,
}
"""What is to be known of a part's intervals."""


def table_of(rows: list[Row]) -> str:
    """Verdict rows as a Markdown table."""
    head = ["| | estimate of | seeds | mean and interval | verdict |", "| --- | --- | --- | --- | --- |"]
    lines = (f"| {row.hypothesis} | {row.what} | {row.found.n} | {interval(row)} | {row.verdict} |" for row in rows)
    return "\n".join([*head, *lines])


def words_of(rows: list[Row]) -> str:
    """The verdict on each hypothesis in a line; one that is refuted in a case is refuted."""
    words: dict[str, list[str]] = {}
    for row in rows:
        if row.verdict:
            words.setdefault(row.hypothesis.split(",")[0], []).append(row.verdict)
    return ", ".join(f"**{hypothesis} {overall(found)}**" for hypothesis, found in sorted(words.items()))


def interval(row: Row) -> str:
    """Mean and interval, one end of it if it has one; a dash where no mean is known."""
    mean, low, high = row.found[1:]
    if np.isfinite(low) and np.isfinite(high):
        return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
    one_sided = f", at least {low:+.3f}" if np.isfinite(low) else ""
    return f"{mean:+.3f}{one_sided}" if np.isfinite(mean) else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=Path, default=STUDY, help="directory of a.parquet and its like")
    parser.add_argument("--to", type=Path, default=STUDY.parent / "docs" / "study", help="directory of what is written")
    args = parser.parse_args()
    parts = {
        part: runs(args.records / f"{part}.parquet") for part in PARTS if (args.records / f"{part}.parquet").is_file()
    }
    if not parts:
        raise SystemExit(f"--records: got {args.records}, allowed: a directory with {', '.join(PARTS)}.parquet")
    text = HEADER
    for part, table in parts.items():
        with look():
            for draw in PARTS[part].FIGURES:
                save(draw(table), args.to, draw.__name__).with_suffix(".png").unlink()
        counts = ", ".join(f"{n} {status}" for status, n in table.groupby("status").size().items())
        text += f"\n## {NAMES.get(part, f'Part {part.upper()}')}\n{len(table)} runs: {counts}.\n\n"
        rows = PARTS[part].verdicts(table)
        text += f"{NOTES.get(part, '')}\n\n{words_of(rows)}\n\n{table_of(rows)}\n"
    (args.to / "verdicts.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
