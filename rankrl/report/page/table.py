"""Tables of the page: the first rows as HTML, further ones as JSON that page.js shows on demand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import quote

from rankrl.report.page.columns import Column
from rankrl.report.visible import visible

Row = dict[str, Any]
VISIBLE_ROWS = 100
"""Rows in the HTML, and rows that a click adds. page.js has the same number."""
OPEN_ROWS = 12
"""Tables with more rows are folded."""
LONG = 32
"""Texts of more characters are wrapped. page.js has the same number."""
NONE = "–"  # noqa: RUF001


def texts(row: Row, columns: dict[str, Column]) -> list[str]:
    """The cells of a row as text; a missing value is a dash."""
    return [NONE if row.get(key) in (None, "") else visible(column.text(row[key])) for key, column in columns.items()]


@dataclass(frozen=True)
class Table:
    """A table of the report: in the page as HTML, in report/tables/ as CSV and Markdown."""

    name: str
    """Its files' stem; its element's id is `name`-table."""
    rows: list[Row]
    columns: dict[str, Column]
    caption: str
    plots: tuple[str, str] | None = None
    """Keys of a mean and its interval, which are drawn in a column after the interval."""
    link: str = ""
    """The column whose cells link to run directories."""
    folded: bool = False
    """Shown on a click even if it is short."""

    def html(self) -> str:
        """The table with its caption and links to its files; folded if long, "" without rows."""
        if not self.rows:
            return ""
        shown = self.shown
        head, *body = self._lines(shown)
        lines = "".join(f"<tr>{''.join(cells)}</tr>" for cells in body)
        caption, name = escape(self.caption), escape(self.name)
        files = f'<a href="tables/{name}.csv">CSV</a> <a href="tables/{name}.md">Markdown</a>'
        rest = _rest(f"{self.name}-table", [texts(row, shown) for row in self.rows[VISIBLE_ROWS:]])
        whole = (
            f'<div class="table" id="{name}-table"><div class="scroll" tabindex="0" role="region" aria-label="{caption}">'
            f'<table><caption><span class="said">{caption}</span> <span class="files">{files}</span></caption>'
            f"<thead><tr>{''.join(head)}</tr></thead><tbody>{lines}</tbody></table></div>{rest}</div>"
        )
        folded = f"<details><summary>{caption}: {_count(len(self.rows))}</summary>{whole}</details>"
        return folded if self.folded or len(self.rows) > OPEN_ROWS else whole

    @property
    def shown(self) -> dict[str, Column]:
        """The columns for which at least one row has a value."""
        keys = {key for row in self.rows for key, value in row.items() if value not in (None, "")}
        return {key: column for key, column in self.columns.items() if key in keys}

    def _lines(self, shown: dict[str, Column]) -> list[list[str]]:
        """Head and rows as lists of HTML cells, with the drawn column where there is one."""
        plots = self.plots
        lines = [[_head(key, column, key == self.link) for key, column in shown.items()]]
        lines += [_cells(row, shown, self.link) for row in self.rows[:VISIBLE_ROWS]]
        if not plots or len(self.rows) > VISIBLE_ROWS or not any(key in shown for key in plots):
            return lines
        at = 1 + max(list(shown).index(key) for key in plots if key in shown)
        drawn = ['<th scope="col" class="plot">drawn</th>', *forest(self.rows, *plots)]
        return [[*cells[:at], plot, *cells[at:]] for cells, plot in zip(lines, drawn, strict=True)]


def _count(n: int) -> str:
    return "1 row" if n == 1 else f"{n:,} rows"


def _rest(name: str, rows: list[list[str]]) -> str:
    if not rows:
        return ""
    return f'<p class="rest">The first {VISIBLE_ROWS} of {VISIBLE_ROWS + len(rows):,} rows.</p>{data(f"{name}-rows", rows)}'


def _class(column: Column) -> str:
    return ' class="n"' if column.numeric else ""


def _head(key: str, column: Column, link: bool) -> str:
    kind = " data-link" if link else ""
    return f'<th scope="col" data-key="{escape(key)}"{kind}{_class(column)}>{escape(column.title)}</th>'


def _cells(row: Row, columns: dict[str, Column], link: str) -> list[str]:
    cells = zip(texts(row, columns), columns.items(), strict=True)
    return [
        _cell(text, column, _linked(row[key], text) if key == link else escape(text)) for text, (key, column) in cells
    ]


def _cell(text: str, column: Column, html: str) -> str:
    long = len(text) > LONG and not column.numeric
    if long and column.folded:
        return f'<td class="long"><details><summary>names</summary>{html}</details></td>'
    return f'<td class="long"><div>{html}</div></td>' if long else f"<td{_class(column)}>{html}</td>"


def _linked(run: str, text: str) -> str:
    return f'<a href="../{quote(run, safe="")}/">{escape(text)}</a>'


def data(name: str, content: Any) -> str:
    """Script element with JSON for page.js; < is escaped, so no text in it can end the element."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'


def forest(rows: list[Row], mean: str, ends: str) -> list[str]:
    """One table cell per row that draws its mean and interval, all on one axis that has zero."""
    values = [v for row in rows for v in [row[mean], *(row.get(ends) or [])] if v is not None] + [0.0]
    low, high = min(values), max(values)
    scale = 140 / ((high - low) or 1)
    return ["<td></td>" if row[mean] is None else _forest_row(row[mean], row.get(ends), low, scale) for row in rows]


def _forest_row(mean: float, ends: list[float] | None, low: float, scale: float) -> str:
    x = [f"{5 + scale * (value - low):.1f}" for value in (0.0, mean, *(ends or [mean, mean]))]
    return (
        '<td class="plot"><svg viewBox="0 0 150 16" width="150" height="16" aria-hidden="true">'
        f'<path class="zero" d="M{x[0]} 0V16"/>'
        f'<path class="span" d="M{x[2]} 8H{x[3]}"/><circle cx="{x[1]}" cy="8" r="3.5"/></svg></td>'
    )
