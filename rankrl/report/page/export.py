"""The page's tables as files: CSV with every digit, and Markdown with what the page shows."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from rankrl.recipe.whole_file import whole_file
from rankrl.report.page.sections import Section
from rankrl.report.page.table import Row, Table, texts
from rankrl.report.visible import csv_cell


def write_tables(sections: list[Section], to: Path) -> list[Path]:
    """Writes each table of `sections` into `to`; removes files of tables that there are no more."""
    to.mkdir(exist_ok=True)
    tables = list(chain.from_iterable(section.tables for section in sections))
    written = [_write(to / f"{table.name}.csv", csv(table)) for table in tables]
    written += [_write(to / f"{table.name}.md", markdown(table)) for table in tables]
    for old in {*to.glob("*.csv"), *to.glob("*.md")} - {*written}:
        old.unlink()
    return written


def _write(path: Path, text: str) -> Path:
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


def csv(table: Table) -> str:
    """All values of the rows, also those without a column in the page; an interval as two."""
    return pd.DataFrame([flat(row) for row in table.rows]).to_csv(index=False)


def flat(row: Row) -> dict[str, Any]:
    """{"ci95": [0, 1], "max": {"2": 3}} -> {"ci95_low": 0, "ci95_high": 1, "max_2": 3}."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, list) and len(value) == 2:
            found |= {f"{key}_low": value[0], f"{key}_high": value[1]}
        elif isinstance(value, dict):
            found |= {f"{key}_{name}": part for name, part in value.items()}
        else:
            found[key] = csv_cell(value) if isinstance(value, str) else value
    return found


def markdown(table: Table) -> str:
    """Caption and table as the page shows them."""
    columns = table.shown
    marks = ["---:" if column.numeric else "---" for column in columns.values()]
    lines = [[column.title for column in columns.values()], marks, *(texts(row, columns) for row in table.rows)]
    cells = ["| " + " | ".join(map(_plain, line)) + " |" for line in lines]
    return "\n".join([_plain(table.caption), "", *cells, ""])


def _plain(text: str) -> str:
    """A text that cannot end its cell or become an element."""
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())
