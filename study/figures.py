"""`make study-figures`: the study's figures and docs/study/verdicts.md, from study/*.parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import part_a
from runs import STUDY, runs

from rankrl.report.figures.canvas import look, save

DOCS = STUDY.parent / "docs" / "study"
PARTS = {"a": part_a}
HEADER = """# What the study's records say
Written by `make study-figures` from `study/*.parquet`. Differences are means over paired seeds with
95 % t intervals, each for itself: of many such intervals one in twenty misses.
"""


def table_of(rows: list[dict[str, Any]]) -> str:
    """Verdict rows as a Markdown table."""
    lines = [f"| {row['hypothesis']} | {row['what']} | {row['n']} | {_estimate(row)} |" for row in rows]
    return "\n".join(["| | estimate of | seeds | mean and interval |", "| --- | --- | --- | --- |", *lines])


def _estimate(row: dict[str, Any]) -> str:
    return f"{row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"


def main() -> None:
    text = HEADER
    for part, module in PARTS.items():
        if not Path(STUDY / f"{part}.parquet").is_file():
            continue
        table = runs(part)
        with look():
            for draw in module.FIGURES:
                save(draw(table), DOCS, draw.__name__).with_suffix(".png").unlink()
        counts = table.groupby("status").size()
        text += f"\n## Part {part.upper()}\n{len(table)} runs: {', '.join(f'{n} {s}' for s, n in counts.items())}.\n\n"
        text += f"{table_of(module.verdicts(table))}\n"
    (DOCS / "verdicts.md").write_text(text)


if __name__ == "__main__":
    main()
