"""The report page: one self-contained HTML file, which needs no network.

Its script only sorts, filters and saves tables, draws curves, and shows words and figures.
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

from rankrl.report.ledger import Entry
from rankrl.report.page.answer import answer
from rankrl.report.page.data import curve_scripts
from rankrl.report.page.glossary import explained, glossary
from rankrl.report.page.sections import Section
from rankrl.report.read import SweepRecords
from rankrl.report.visible import visible

if TYPE_CHECKING:
    from rankrl.report.figures.draw import Figure

FIRST_FIGURE = "rank_bands"
"""The figure on the first screen; where it is not drawn, the first one is."""
FOLDED_FIGURES = ("distributions", "budget", "footprint", "noise_by_step", "knobs_by_rank")
GOING_ON = ("running", "queued")
RELOAD_S = 60


@cache
def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text()


def page(
    sweep: SweepRecords,
    summary: dict[str, Any],
    figures: list[Figure],
    entries: list[Entry],
    sections: list[Section],
) -> str:
    """The whole HTML file.

    All text from run directories is escaped; besides, the policy allows no script but page.js.
    """
    first = min(figures, key=lambda figure: figure.name != FIRST_FIGURE, default=None)
    parts = [
        answer(summary, _figure(first) if first else "", _going_on(entries)),
        _figures([figure for figure in figures if figure is not first]),
        *(section.html() for section in sections),
    ]
    main = explained("".join(parts)) + glossary() + _files(sweep)
    contents = "".join(f"<li><a href=#{name}>{title}</a>" for name, title in _headings(main))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_policy()}">
<title>{escape(sweep.name)} - rankrl</title><style>{_asset("page.css")}</style></head><body>
<a class="skip" href="#main">Skip to the answer</a>
<header><p class="kicker">rankrl report</p><h1>{escape(sweep.name)}</h1></header>
<nav aria-label="Contents"><ul>{contents}</ul></nav>
<main id="main">
{main}
</main>
<footer><p>Self-contained: this file loads nothing. The same numbers: <a href="summary.json">summary.json</a>,
<a href="runs.csv">runs.csv</a>, <a href="tables/">tables/</a>.</p></footer>
<dialog aria-label="Figure, enlarged"><form method="dialog"><button>Close</button></form>
<div class="pan" tabindex="0" role="region" aria-label="Drawing"></div></dialog>
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


def _headings(main: str) -> list[tuple[str, str]]:
    """(id, title) of the sections with a heading."""
    return re.findall(r'<section id="([\w-]+)" aria-labelledby="[\w-]+"><h2[^>]*>(.*?)</h2>', main)


def _going_on(entries: list[Entry]) -> str:
    """A paragraph that makes the page reload itself while runs are going on; "" if none is."""
    live = sum(entry.state in GOING_ON for entry in entries)
    if not live:
        return ""
    return (
        f'<p class="live" data-reload-s="{RELOAD_S}">{live:,} of {len(entries):,} runs are going on. Until they have '
        f"ended this page reloads itself every {RELOAD_S} s, except while something in it is in use; it shows what the "
        "last <code>rankrl report</code> has written.</p>"
    )


def _figures(figures: list[Figure]) -> str:
    """Section of figures; those that say less about the ranks are folded."""
    shown = "".join(_figure(figure) for figure in figures if figure.name not in FOLDED_FIGURES)
    folded = [_figure(figure) for figure in figures if figure.name in FOLDED_FIGURES]
    more = f"<details><summary>More figures ({len(folded)})</summary>{_columns(''.join(folded))}</details>"
    return Section("figures", "Figures", (_columns(shown), more if folded else "")).html()


def _columns(figures: str) -> str:
    return f'<div class="figures">{figures}</div>' if figures else ""


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


def _files(sweep: SweepRecords) -> str:
    first = sweep.results[0]["run_id"]
    said = (
        '<p>Tables: <a href="runs.csv">runs.csv</a>, <a href="summary.json">summary.json</a>, and all tables of this '
        'page as CSV, with every digit, and as Markdown in <a href="tables/">tables/</a>. '
        'Figures: <a href="figures/">figures/</a>, '
        "each as SVG and PNG. Each run's directory holds run.yaml, metrics.jsonl, evals.parquet, rollouts.jsonl, "
        "result.json, adapter/ and tb/, and error.txt if it failed or diverged, "
        f'such as <a href="../{quote(first)}/">{escape(visible(first))}/</a>.</p>'
    )
    return Section("files", "Files", (said,)).html()
