"""Run directories -> the report: summary.json, runs.csv, tables, figures and the page."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from rankrl.recipe.whole_file import whole_file
from rankrl.report.axis_values import axis_title, shown_value, spread_axes
from rankrl.report.ledger import Entry, ledger
from rankrl.report.page.export import flat, write_tables
from rankrl.report.page.html import page
from rankrl.report.page.sections import Section, sections
from rankrl.report.read import SweepRecords, read_sweeps
from rankrl.report.statistics.limits import DEFAULT, Limits
from rankrl.report.summary import sweep_summary
from rankrl.report.tensorboard import aggregate
from rankrl.report.visible import visible

MOST_PROBLEMS = 8


def build(directory: Path, limits: Limits = DEFAULT, tables_only: bool = False) -> list[dict[str, Any]]:
    """Writes the report of every sweep at or below `directory`; returns their summaries.

    Each summary also has `sweep` (its name) and `page` (the path of the page). `tables_only` leaves
    out figures, page ("") and TensorBoard. Sweeps that have no report are named on stderr. Raises
    ValueError if there is nothing to report.
    """
    return build_all(directory, limits, tables_only)[0]


def build_all(
    directory: Path, limits: Limits = DEFAULT, tables_only: bool = False
) -> tuple[list[dict[str, Any]], list[str]]:
    """What `build` returns, and the names of the sweeps that are refused or not written."""
    sweeps, refused = read_sweeps(directory)
    reports = []
    for sweep in sweeps:
        try:
            reports.append(_build(shown(sweep), limits, tables_only))
        except OSError as error:
            if len(sweeps) == 1:
                raise
            refused.append(sweep.name)
            print(visible(f"rankrl: {sweep.name}: no whole report: {error}"), file=sys.stderr)
    return reports, refused


def _build(sweep: SweepRecords, limits: Limits, tables_only: bool) -> dict[str, Any]:
    to = sweep.directory / "report"
    to.mkdir(exist_ok=True)
    statistics = sweep_summary(sweep, limits)
    with whole_file(to / "summary.json") as part:
        part.write_text(json.dumps(statistics, indent=1, allow_nan=False) + "\n")
    rows = [flat(spread_axes(row)) for row in sweep.results]
    with whole_file(to / "runs.csv") as part:
        pd.DataFrame(rows).to_csv(part, index=False)
    entries = ledger(sweep.directory)
    parts = sections(sweep, statistics, entries)
    write_tables(parts, to / "tables")
    drawn = "" if tables_only else _draw(sweep, statistics, entries, parts, to)
    return statistics | {"sweep": sweep.name, "page": drawn}


def shown(sweep: SweepRecords) -> SweepRecords:
    """The sweep with all text that a reader sees made visible. Run ids are also names of files."""
    return replace(
        sweep,
        name=visible(sweep.name),
        results=[row | {"arm": visible(row["arm"]), "error": visible(row["error"])} for row in sweep.results],
        problems=[{key: visible(text) for key, text in row.items()} for row in sweep.problems],
    )


def _draw(
    sweep: SweepRecords, statistics: dict[str, Any], entries: list[Entry], tables: list[Section], to: Path
) -> str:
    """Writes figures, page and TensorBoard's margin charts. Returns the path of the page."""
    from rankrl.report.figures.draw import draw  # here: tables do not wait for matplotlib

    drawings = draw(sweep, statistics, to / "figures")
    with whole_file(to / "index.html") as part:
        part.write_text(page(sweep, statistics, drawings, entries, tables))
    aggregate(sweep)
    return str(to / "index.html")


def print_table(report: dict[str, Any]) -> None:
    """Prints the ranks of a report, its arms against the reference arm, the answer and problems."""
    families = [
        {
            "arm": row["arm"],
            "rank": row["rank"],
            "runs": row["n_seeds"],
            "seeds": row["n_blocks"],
            "mean gain": _signed(row["mean_gain"]),
            "95 % interval": _interval(row["pooled_ci95"]),
            "sd": "-" if row["sd_gain"] is None else f"{row['sd_gain']:.4f}",
            "best": _signed(row["best_gain"]),
            "negative": f"{row['negative_runs']}/{row['n_seeds']}",
            "risk below": f"{row['design_risk_ci95'][1]:.2f}",
            "gain per M tokens": "-" if row["token_efficiency"] is None else f"{row['token_efficiency']:.3g}",
        }
        for row in report["ranks"]
    ]
    print_rows(f"{report['sweep']}: gain over the base by rank", families)
    arms = [
        {
            "arm": row["arm"],
            "rank": row["rank"],
            "batch": row["batch_size"],
            "pairs": row["n_pairs"],
            "mean": f"{row['mean_difference']:+.4f}",
            "95 % interval": _interval(row["difference_ci95"]),
            "higher": f"{row['higher']}/{row['n_pairs']}",
            "parameters": f"{row['params_ratio']:.2%}",
            "tokens": "-" if row["tokens_ratio"] is None else f"{row['tokens_ratio']:.2%}",
        }
        for row in report["comparisons"]
    ]
    if report["axes"]:
        _print_axes(report)
    elif arms:
        print_rows(f"gain minus that of arm {report['comparisons'][0]['against']}, same seed", arms)
    print("\n".join(report["answer"]))
    for row in report["problems"][:MOST_PROBLEMS]:
        print(f"{row['run'] or 'all runs'}: {row['problem']}")
    if len(report["problems"]) > MOST_PROBLEMS:
        print(f"... and {len(report['problems']) - MOST_PROBLEMS} more such lines in the page")
    if report["page"]:
        print(f"page: {visible(report['page'])}")


def _print_axes(report: dict[str, Any]) -> None:
    """Prints gain and risk by value of each axis, and the best point of each rank."""
    by_value = [
        {
            "axis": axis_title(row["axis"]),
            "rank": row["rank"],
            "value": shown_value(row["value"]),
            "runs": row["n_seeds"],
            "mean gain": _signed(row["mean_gain"]),
            "95 % interval": _interval(row["pooled_ci95"]),
            "negative": f"{row['negative_runs']}/{row['n_seeds']}",
        }
        for row in report["axis_values"]
    ]
    print_rows("gain by value of an axis, over all else", by_value)
    best = [
        {
            "arm": row["arm"],
            "rank": row["rank"],
            **{axis_title(key): shown_value(value) for key, value in (row["axes"] or {}).items()},
            "mean gain": _signed(row["mean_gain"]),
            "for all points at once": _interval(row["family_ci95"]),
            "on held-out seeds": "not known" if row["heldout_gain"] is None else _signed(row["heldout_gain"]),
        }
        for row in report["best_points"]
        if row["best"]
    ]
    if best:
        print_rows("point of the highest mean gain, by rank", best)


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"


def _interval(ends: list[float] | None) -> str:
    return "[{:+.3f}, {:+.3f}]".format(*ends) if ends else "-"


def print_rows(title: str, rows: list[dict[str, Any]]) -> None:
    """Prints a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None)
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "arm" else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(str, row.values()))
    width = None if sys.stdout.isatty() else 140
    Console(width=width, highlight=False, markup=False, emoji=False).print(table)  # names are no markup
