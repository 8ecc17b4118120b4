"""The page: one self-contained HTML file, without network or scripts."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import Any

from rankrl.report.ledger import Entry, counts, rows
from rankrl.report.read import SweepRecords

CSS = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}
figure{margin:1rem 0;background:#fff;padding:.5rem;border-radius:.5rem}
figure svg{max-width:100%;height:auto;display:block}
figcaption{color:#444;font-size:.9rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #8884;white-space:nowrap}
th:first-child,td:first-child{text-align:left}
"""
CELL_COLUMNS = {
    "arm": "arm",
    "rank": "rank",
    "batch_size": "batch",
    "n_seeds": "seeds",
    "mean_gain": "mean gain",
    "gain_ci95": "95 % interval",
    "sd_gain": "sd",
    "best_gain": "best",
    "mean_best_gap": "best - mean",
    "negative_runs": "negative",
    "risk_ci95": "risk, 95 %",
    "mean_final_score": "final score",
    "mean_tokens": "tokens",
    "token_efficiency": "gain per M tokens",
}
COMPARISON_COLUMNS = {
    "arm": "arm",
    "rank": "rank",
    "batch_size": "batch",
    "n_pairs": "pairs",
    "mean_difference": "mean difference",
    "difference_ci95": "95 % interval",
    "higher": "higher",
    "pairing": "correlation",
    "params_ratio": "parameters, ratio",
    "unpaired_seeds": "seeds without partner",
}
RUN_COLUMNS = {
    "run_id": "run",
    "status": "status",
    "base_score": "base",
    "final_score": "final",
    "gain": "gain",
    "tokens_total": "tokens",
    "steps": "steps",
    "wall_s": "seconds",
    "error": "error",
}


LEDGER_COLUMNS = {
    "run_id": "run",
    "state": "state",
    "step": "step",
    "steps": "of",
    "attempts": "attempts",
    "note": "where, or why",
}


def _text(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, list):
        return "[" + ", ".join(f"{v:.3f}" for v in value) + "]"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else escape(str(value))


def table(rows: list[dict[str, Any]], columns: dict[str, str], caption: str) -> str:
    used = {key: title for key, title in columns.items() if any(row.get(key) not in (None, "") for row in rows)}
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in used.values())
    body = "".join("<tr>" + "".join(f"<td>{_text(row.get(key))}</td>" for key in used) + "</tr>" for row in rows)
    rows_html = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table><caption>{escape(caption)}</caption>{rows_html}</table></div>'


def _figure(path: Path, alt: str) -> str:
    svg = path.read_text()
    svg = svg[svg.index("<svg") :]
    prefix = path.stem  # ids are unique within a drawing only
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\1{prefix}-", svg)
    return f'<figure role="img" aria-label="{escape(alt)}">{svg}<figcaption>{escape(alt)}</figcaption></figure>'


def _sentence(row: dict[str, Any]) -> str:
    interval = " [{:+.3f}, {:+.3f}]".format(*row["gain_ci95"]) if row["gain_ci95"] else ""
    arm = f"{escape(row['arm'])}, " if row["arm"] else ""
    return (
        f"<li>{arm}rank {row['rank']}: mean gain {row['mean_gain']:+.3f}{interval}, "
        f"{row['negative_runs']} of {row['n_seeds']} runs negative (risk below {row['risk_ci95'][1]:.2f}).</li>"
    )


def _ledger(entries: list[Entry]) -> str:
    """Where the sweep stands, and the runs that have not finished."""
    if not entries:
        return ""
    stand = ", ".join(f"{number} {state}" for state, number in counts(entries).items())
    open_runs = rows(entry for entry in entries if entry.state != "finished")
    shown = table(open_runs, LEDGER_COLUMNS, "Runs that have not finished") if open_runs else ""
    return f"<h2>Ledger</h2><p>{len(entries)} runs planned: {stand}.</p>{shown}"


def _comparisons(rows: list[dict[str, Any]]) -> str:
    """The arms against the reference arm, if there are arms."""
    if not rows:
        return ""
    shown = table(rows, COMPARISON_COLUMNS, f"One row per arm, rank and batch size, against arm {rows[0]['against']}")
    return f"""<h2>Arms</h2>{shown}
<p>Differences are between runs of one seed, which share prompts, sampling and rows of A; the interval is Student t, 95 %, for each
row by itself: of many rows, some miss the truth. Correlation is that of the two arms' gains over seeds.</p>"""


def page(
    sweep: SweepRecords, statistics: dict[str, Any], drawings: list[tuple[Path, str]], entries: list[Entry]
) -> str:
    missing = "".join(
        f"<p>Not counted: {len(names)} {what} ({escape(', '.join(names))}).</p>"
        for what, names in (("unfinished runs", sweep.unfinished), ("unreadable results", sweep.unreadable))
        if names
    )
    cells = table(statistics["cells"], CELL_COLUMNS, "One row per cell (rank x batch size)")
    runs = table(sweep.results, RUN_COLUMNS, "One row per run")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(sweep.name)} - rankrl</title><style>{CSS}</style></head><body><main>
<h1>{escape(sweep.name)}: {len(sweep.results)} runs</h1>
<ul>{"".join(_sentence(row) for row in statistics["ranks"])}</ul>{missing}
<h2>Figures</h2>{"".join(_figure(path, text) for path, text in drawings)}
{_comparisons(statistics["comparisons"])}
<h2>Cells</h2>{cells}
<p>Scores and gains are fractions of correct answers on held-out items. Gain intervals are Student t, risk intervals
Clopper-Pearson, both 95 %. A failed or diverged run counts as negative. All gains share one base score, so its error is
common to them.</p>
<h2>Runs</h2>{runs}
{_ledger(entries)}
</main></body></html>
"""
