"""The report page: one self-contained HTML file, which needs no network.

Its script only sorts and filters tables, and draws curves.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from rankrl.report.ledger import Entry, counts, rows
from rankrl.report.page import sections, settings
from rankrl.report.page.columns import LEDGER, PROBLEMS, RANK, RUNS, Column, interval, number, percents, signed
from rankrl.report.page.data import curve_scripts
from rankrl.report.page.sections import NOTES, section
from rankrl.report.page.table import table
from rankrl.report.read import SweepRecords
from rankrl.report.visible import visible

if TYPE_CHECKING:
    from rankrl.report.figures.draw import Figure

BOARD = "http://localhost:6006"
FIRST_WORDS = 7
"""Sentences of the answer that are always shown; further ones unfold on a click."""


@cache
def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text()


def page(sweep: SweepRecords, summary: dict[str, Any], figures: list[Figure], entries: list[Entry]) -> str:
    """The whole HTML file.

    All text from run directories is escaped; besides, the policy allows no script but page.js.
    """
    problems = [row | {"run": row["run"] or "(the whole sweep)"} for row in summary["problems"]]
    parts = [
        section("figures", "Figures", _figures(figures)),
        *sections.tables(summary),
        _runs(sweep),
        section(
            "problems", "Problems", table("problems-table", problems, PROBLEMS, "What could not be counted, and why")
        ),
        _ledger(entries),
        _settings(sweep),
        _files(sweep),
    ]
    contents = "".join(f"<li><a href=#{name}>{title}</a>" for part in parts for name, title in _heading(part))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_policy()}">
<title>{escape(sweep.name)} - rankrl</title><style>{_asset("page.css")}</style></head><body>
<a class="skip" href="#main">Skip to the answer</a>
<header><p class="kicker">rankrl report</p><h1>{escape(sweep.name)}</h1></header>
<nav aria-label="Contents"><ul>{contents}</ul></nav>
<main id="main">
{_answer(summary)}
{"".join(parts)}
</main>
<footer><p>Self-contained: this file loads nothing. The same numbers: <a href="summary.json">summary.json</a>,
<a href="runs.csv">runs.csv</a>.</p></footer>
<dialog aria-label="Figure, enlarged"><form method="dialog"><button>Close</button></form></dialog>
{curve_scripts(sweep.directory, [result["run_id"] for result in sweep.results])}
<script>{_asset("page.js")}</script>
</body></html>
"""


def _policy() -> str:
    """Content-Security-Policy: allows page.js (by its hash), inline styles and embedded images.

    The drawings need styles and images. Everything else is refused.
    """
    digest = base64.b64encode(hashlib.sha256(_asset("page.js").encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
    )


def _heading(part: str) -> list[tuple[str, str]]:
    return re.findall(r'<section id="([\w-]+)".*?<h2[^>]*>(.*?)</h2>', part[:400])


def _answer(summary: dict[str, Any]) -> str:
    """The answer as HTML: sentences, a warning if the records have problems, key numbers."""
    words = [escape(text).replace(" %", "&nbsp;%") for text in summary["words"]]
    more = _list(words[1:FIRST_WORDS])
    if words[FIRST_WORDS:]:
        more += f"<details><summary>More findings ({len(words) - FIRST_WORDS})</summary>{_list(words[FIRST_WORDS:])}</details>"
    problems = len(summary["problems"])
    warning = (
        f'<p class="warning"><a href="#problems">{problems} problem{"s" * (problems > 1)}</a> with the records.</p>'
        if problems
        else ""
    )
    strip = "".join(
        f"<div><dt>{name}</dt><dd>{value}<small>{about}</small></dd></div>"
        for name, value, about in key_numbers(summary)
    )
    return (
        f'<section class="answer" aria-label="The answer"><p class="lede">{words[0]}</p>{more}{warning}'
        f'<dl class="strip">{strip}</dl></section>'
    )


def _list(lines: list[str]) -> str:
    return f"<ul>{''.join(f'<li>{line}' for line in lines)}</ul>" if lines else ""


def key_numbers(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, about) of the few numbers to see first, as HTML."""
    ranks, footprint = summary["ranks"], summary["footprint"]
    compared = {row["against"] for row in summary["comparisons"]}  # the reference arm, if there are arms
    low = min(ranks, key=lambda row: (row["rank"], row["arm"] not in compared))
    high = max(ranks, key=lambda row: row["mean_gain"])
    planned = summary["n_planned"]
    shown = [("Runs counted", number(summary["n_runs"]), f"of {planned:,} planned" if planned else "no plan on record")]
    for row, what in ((low, "mean gain"), (high, "highest mean")):
        shown.append((f"{_place(row)}, {what}", signed(row["mean_gain"]), _ends(row)))
    ends = low["blocked_risk_ci95"]
    shown.append(
        (f"{_place(low)}, negative runs", f"{low['negative_runs']} of {low['n_seeds']}", f"risk {percents(ends)}")
    )
    if footprint:
        small = min(footprint, key=lambda row: row["rank"])
        about = f"{small['trainable_params']:,} parameters"
        shown.append((f"Rank {small['rank']}, of the base", f"{100 * small['fraction_of_base']:.3g} %", about))
    return shown


def _place(row: dict[str, Any]) -> str:
    return (f"{escape(row['arm'])}, rank" if row["arm"] else "Rank") + f" {row['rank']}"


def _ends(row: dict[str, Any]) -> str:
    ends = row["blocked_ci95"]
    return f"95 % {interval(ends)}" if ends else "one run: no interval"


def _figures(figures: list[Figure]) -> str:
    return "".join(_figure(figure) for figure in figures)


def _figure(figure: Figure) -> str:
    """A figure with its SVG inline, so that it follows light and dark mode, and its file links."""
    svg = figure.path.read_text()
    svg = svg[svg.index("<svg") :]
    label, stem = escape(figure.alt), quote(figure.path.stem)
    files = "".join(f' <a href="figures/{stem}.{kind}">{kind.upper()}</a>' for kind in ("svg", "png"))
    return (
        f'<figure id="figure-{escape(figure.name)}"><div class="drawing" role="img" aria-label="{label}">{svg}</div>'
        f"<figcaption><strong>{escape(figure.title)}</strong> {escape(figure.caption)}"
        f'<span class="files">{files}</span></figcaption></figure>'
    )


def _runs(sweep: SweepRecords) -> str:
    board = (
        f"<p>Curves of all runs in TensorBoard: <code>tensorboard --logdir {escape(visible(str(sweep.directory)))}</code>, "
        f'then <a href="{BOARD}">{BOARD.removeprefix("http://")}</a>.</p>'
        '<noscript><p>Sorting, filtering and curves need JavaScript. All runs: <a href="runs.csv">runs.csv</a>.</p></noscript>'
    )
    shown = table("runs-table", sweep.results, RUNS, "One row per run", link="run_id")
    return section("runs", "Runs", board, shown, note=NOTES["runs"])


def _ledger(entries: list[Entry]) -> str:
    """Section on the state of the sweep: counts by state, and the runs that have not finished."""
    if not entries:
        return ""
    stand = ", ".join(f"{number} {state}" for state, number in counts(entries).items())
    open_runs = rows(entry for entry in entries if entry.state != "finished")
    shown = table("ledger-table", open_runs, LEDGER, "Runs that have not finished")
    return section("ledger", "Ledger", f"<p>{len(entries):,} runs planned: {escape(stand)}.</p>", shown)


def _settings(sweep: SweepRecords) -> str:
    """Section of settings: derived from each rank, different by arm, and (folded) shared by all."""
    found = settings.settings(sweep.directory, sweep.results)
    if not found:
        return ""
    rows, (differ, same) = settings.derived(found), settings.split(found)
    knobs = {key: Column(key, number) for row in rows for key in row if key not in ("arm", "rank")}
    arms = {arm: Column(arm or "value", str, False) for row in differ for arm in row if arm != "setting"}
    name = {"setting": Column("setting", str, False)}
    everything = table("same-table", same, name | {"value": Column("value", str, False)}, "Shared by all arms")
    return section(
        "settings",
        "Settings",
        table("knobs-table", rows, {"arm": Column("arm", str, False), "rank": RANK} | knobs, "Derived from the rank"),
        table("differ-table", differ, name | arms, "Settings that differ by arm"),
        f"<details><summary>All {len(same)} shared settings</summary>{everything}</details>",
        note="Of the first run of each rank; every run.yaml holds its own, with rule, formula and source of each derived value.",
    )


def _files(sweep: SweepRecords) -> str:
    first = sweep.results[0]["run_id"]
    return section(
        "files",
        "Files",
        '<p>Tables: <a href="runs.csv">runs.csv</a>, <a href="summary.json">summary.json</a>. '
        'Figures: <a href="figures/">figures/</a>, '
        "each as SVG and PNG. Each run's directory holds run.yaml, metrics.jsonl, evals.parquet, result.json, adapter/ and tb/, "
        f'such as <a href="../{quote(first)}/">{escape(visible(first))}/</a>.</p>',
    )
