"""Run directories -> summary.json, runs.csv, figures and the page."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from rankrl.report import figures
from rankrl.report.compare import comparisons
from rankrl.report.ledger import ledger
from rankrl.report.page import page
from rankrl.report.read import SweepRecords, find_sweeps, mean_ranks
from rankrl.report.stats import summary


def build(directory: Path) -> list[dict[str, Any]]:
    """Writes the report of every sweep at or below `directory`; returns their summaries, with `sweep` and `page` added.

    Raises ValueError if there is nothing to report.
    """
    reports = []
    for sweep in find_sweeps(directory):
        to = sweep.directory / "report"
        to.mkdir(exist_ok=True)
        statistics = summary(sweep.results) | {"comparisons": comparisons(sweep.results)}
        (to / "summary.json").write_text(json.dumps(statistics, indent=1) + "\n")
        pd.DataFrame(sweep.results).to_csv(to / "runs.csv", index=False)
        drawings = draw(sweep, statistics, to / "figures")
        (to / "index.html").write_text(page(sweep, statistics, drawings, ledger(sweep.directory)))
        reports.append(statistics | {"sweep": sweep.name, "page": str(to / "index.html")})
    return reports


def draw(sweep: SweepRecords, statistics: dict[str, Any], to: Path) -> list[tuple[Path, str]]:
    """The figures that these records have something for, each with its caption."""
    drawings = [
        (
            figures.gain_by_rank(sweep.results, statistics["ranks"], to),
            "Gain over the base against rank: every run a dot, mean and 95 % t interval.",
        ),
        (
            figures.learning_curves(sweep.directory, sweep.results, to),
            "Training accuracy over PPO steps by rank: every run a thin line, the mean a thick one.",
        ),
    ]
    if statistics["comparisons"]:
        against = statistics["comparisons"][0]["against"]
        caption = f"Gain by arm minus the gain of arm {against} with the same seed: every pair a dot, mean and 95 % t interval."
        drawings.insert(0, (figures.difference_by_arm(statistics["comparisons"], to), caption))
    maps = mean_ranks(sweep)
    if maps:
        caption = "Mean rank of each module where ranks are mixed, by arm and the rank whose parameters are spent."
        drawings.append((figures.rank_maps(maps, to), caption))
    return drawings


def print_comparisons(report: dict[str, Any]) -> None:
    """The arms against the reference arm, on the terminal."""
    from rich.console import Console
    from rich.table import Table

    if not report["comparisons"]:
        return
    against = report["comparisons"][0]["against"]
    table = Table(title=f"gain minus that of arm {against}, same seed", title_justify="left", box=None)
    for column in ("arm", "rank", "batch", "pairs", "mean", "95 % interval", "higher", "parameters"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for row in report["comparisons"]:
        interval = "[{:+.3f}, {:+.3f}]".format(*row["difference_ci95"]) if row["difference_ci95"] else "-"
        table.add_row(
            row["arm"],
            str(row["rank"]),
            str(row["batch_size"]),
            str(row["n_pairs"]),
            f"{row['mean_difference']:+.4f}",
            interval,
            f"{row['higher']}/{row['n_pairs']}",
            f"{row['params_ratio']:.2%}",
        )
    Console(width=None if sys.stdout.isatty() else 140, highlight=False).print(table)


def print_table(report: dict[str, Any]) -> None:
    """The rank families as a table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{report['sweep']}: gain over the base by rank", title_justify="left", box=None)
    for column in (
        "arm",
        "rank",
        "seeds",
        "mean gain",
        "95 % interval",
        "sd",
        "best",
        "negative",
        "risk below",
        "gain per M tokens",
    ):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for row in report["ranks"]:
        interval = "[{:+.3f}, {:+.3f}]".format(*row["gain_ci95"]) if row["gain_ci95"] else "-"
        table.add_row(
            row["arm"],
            str(row["rank"]),
            str(row["n_seeds"]),
            f"{row['mean_gain']:+.4f}",
            interval,
            "-" if row["sd_gain"] is None else f"{row['sd_gain']:.4f}",
            f"{row['best_gain']:+.4f}",
            f"{row['negative_runs']}/{row['n_seeds']}",
            f"{row['risk_ci95'][1]:.2f}",
            f"{row['token_efficiency']:.3f}" if row["token_efficiency"] is not None else "-",
        )
    Console(width=None if sys.stdout.isatty() else 140, highlight=False).print(table)
    print_comparisons(report)
    print(f"page: {report['page']}")
