"""Tables of the page: the first rows as HTML, further ones as JSON that page.js shows on demand."""

from __future__ import annotations

import json
from html import escape
from typing import Any
from urllib.parse import quote

from rankrl.report.page.columns import Column
from rankrl.report.visible import visible

Row = dict[str, Any]
VISIBLE_ROWS = 100
"""Rows in the HTML, and rows that a click adds. page.js has the same number."""
NONE = "–"  # noqa: RUF001


def used(rows: list[Row], columns: dict[str, Column]) -> dict[str, Column]:
    """The columns for which at least one row has a value."""
    return {key: column for key, column in columns.items() if any(row.get(key) not in (None, "") for row in rows)}


def texts(row: Row, columns: dict[str, Column]) -> list[str]:
    """The cells of a row as text; a missing value is a dash."""
    return [NONE if row.get(key) in (None, "") else visible(column.text(row[key])) for key, column in columns.items()]


def table(
    name: str,
    rows: list[Row],
    columns: dict[str, Column],
    caption: str,
    plots: tuple[str, str] | None = None,
    link: str = "",
) -> str:
    """A table with its caption as HTML; "" without rows.

    `name`: the element's id. `plots`: keys of a mean and its interval, which are drawn in a column
    after the mean. `link`: the column whose cells link to run directories.
    """
    if not rows:
        return ""
    shown = used(rows, columns)
    drawn = forest(rows, *plots) if plots and len(rows) <= VISIBLE_ROWS else []
    after = list(shown).index(plots[0]) + 1 if plots and drawn else 0
    head = [_head(key, column, key == link) for key, column in shown.items()]
    body = [_cells(row, shown, link) for row in rows[:VISIBLE_ROWS]]
    for cells, plot in zip([head, *body], ['<th scope="col" class="plot">drawn</th>', *drawn], strict=bool(drawn)):
        if drawn:
            cells.insert(after, plot)
    html = "".join(f"<tr>{''.join(cells)}</tr>" for cells in body)
    return (
        f'<div class="table" id="{name}"><div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f"<table><caption>{escape(caption)}</caption><thead><tr>{''.join(head)}</tr></thead><tbody>{html}</tbody></table></div>"
        f"{_rest(name, [texts(row, shown) for row in rows[VISIBLE_ROWS:]])}</div>"
    )


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
        f"<td{_class(column)}>{_linked(row[key], text) if key == link else escape(text)}</td>"
        for text, (key, column) in cells
    ]


def _linked(run: str, text: str) -> str:
    return f'<a href="../{quote(run, safe="")}/">{escape(text)}</a>'


def data(name: str, content: Any) -> str:
    """Script element with JSON for page.js; < is escaped, so no text in it can end the element."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'


def forest(rows: list[Row], mean: str, ends: str) -> list[str]:
    """One table cell per row that draws its mean and interval, all on one axis that has zero."""
    values = [v for row in rows for v in [row[mean], *(row.get(ends) or [])]] + [0.0]
    low, high = min(values), max(values)
    scale = 140 / ((high - low) or 1)
    return [_forest_row(row[mean], row.get(ends), low, scale) for row in rows]


def _forest_row(mean: float, ends: list[float] | None, low: float, scale: float) -> str:
    x = [f"{5 + scale * (value - low):.1f}" for value in (0.0, mean, *(ends or [mean, mean]))]
    return (
        '<td class="plot"><svg viewBox="0 0 150 16" width="150" height="16" aria-hidden="true">'
        f'<path class="zero" d="M{x[0]} 0V16"/>'
        f'<path class="span" d="M{x[2]} 8H{x[3]}"/><circle cx="{x[1]}" cy="8" r="3.5"/></svg></td>'
    )
