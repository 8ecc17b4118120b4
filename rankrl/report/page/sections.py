"""The page's sections of tables, each with a note on how its numbers are computed."""

from __future__ import annotations

from html import escape
from typing import Any

from rankrl.report.page import columns
from rankrl.report.page.columns import Column
from rankrl.report.page.table import Row, table
from rankrl.report.statistics.power import named

NOTES = {
    "ranks": (
        "Scores and gains are fractions of correct answers on held-out items: 0.0154 is 1.54 points. Every run "
        "that ended counts: one that diverged is negative, and, where no score was measured, has lost the whole base "
        "score. Intervals are Student t, risks Clopper-Pearson, both 95 %. Runs of one seed at several batch sizes "
        "are not independent: with seeds as blocks, each seed counts once: in the first interval of a row, the one to judge by. "
        "IQM: mean of the middle half, interval by bootstrap, which is too narrow at six seeds. Upside index: best "
        "minus mean, in sd; chance alone puts it into the interval beside it. Expected best: unbiased, of as many "
        "runs as every row has."
    ),
    "cells": (
        "One row for each rank and batch size: its runs differ by their seed alone. Marginal efficiency: gain per "
        "million tokens more than the cheapest batch size of the same rank. All gains share one base score, so its "
        "error is common to them."
    ),
    "batches": (
        "Pooled over ranks. Batch size is confounded with data coverage: more prompts a step are more epochs in as "
        "many steps."
    ),
    "arms": "Pooled over ranks and batch sizes.",
    "comparisons": (
        "Differences are between runs of one seed, which share prompts, sampling and rows of A; the seed is the "
        "block. The 95 % interval is Student t for the row by itself: of many rows, some miss the truth. The family "
        "intervals (Bonferroni) hold for all rows at once, and the verdict follows them; Holm's p tells the same with "
        "a little more power. Correlation: of the two arms' gains over seeds; pairing helps by as much."
    ),
    "arm_comparisons": "The same differences, pooled over ranks and batch sizes with the seed as block.",
    "against_reference": (
        "Differences to the reference rank at the same batch size and seed, with the seed as block. The family "
        "intervals (Bonferroni) hold for all rows at once, and the verdict follows them. Not inferior: the mean is "
        "above the reference's less the margin; one-sided t test at 2.5 %, Holm's correction. Seeds needed: in all, "
        "to show a difference of the margin with 80 % power."
    ),
    "pareto_points": (
        "A cell is on the front if its gain is above that of every cell that costs as many tokens or fewer. "
        "Risk-averse: the lower end of the interval takes the place of the mean. Bootstrap: share of resamples of the "
        "seeds in which the cell is on the front."
    ),
    "budget": (
        "The budget is what the dearest rank's runs cost. Half width: of the 95 % interval of the mean with the runs "
        "bought."
    ),
    "footprint": "Adapter as stored, optimizer as two fp32 moments per parameter. Of the base: trainable by base parameters.",
    "evaluation": (
        "Items and seeds are crossed. Item error is common to all runs, as is the error of the base score; evaluation "
        "noise is of one run's final score, from finitely many samples; seed sd is what is left between the seeds of "
        "a cell."
    ),
    "sources": "Gain by source of the evaluation items.",
    "power": (
        "A difference of the margin with 80 % power, from the sd that was seen; a risk below the limit if no further "
        "run is negative."
    ),
    "runs": (
        "Scores on the evaluation items before and after training. Curves are thinned and drawn to 1/255 of their "
        "range; the numbers stay in each run's metrics.jsonl."
    ),
}
MEAN = ("mean_gain", "blocked_ci95")
MOST_NAMED = 9
EVALUATION = {
    "runs": Column("runs", columns.number),
    "items": Column("items", columns.number),
    "samples_per_item": Column("samples an item", columns.number),
    "item_sd": Column("sd over items", columns.number),
    "item_error": Column("item error", columns.number),
    "eval_noise_sd": Column("evaluation noise, sd", columns.number),
    "seed_sd": Column("seed sd", columns.number),
    "base_error": Column("base error", columns.number),
}


def section(name: str, title: str, *tables: str, note: str = "") -> str:
    """A <section> element with heading, tables and note; "" if all tables are empty."""
    content = "".join(tables)
    if not content:
        return ""
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    heading = f'<h2 id="{name}-title">{escape(title)}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-title">{heading}{content}{note}</section>'


def statistics(summary: dict[str, Any], key: str, title: str, caption: str) -> str:
    """Section of the cells or a family: a table of all statistics, with mean and interval drawn."""
    rows = summary[key]
    shown = table(f"{key}-table", rows, _statistics_columns(rows), caption, plots=MEAN)
    return section(key, title, shown, note=NOTES[key])


def _statistics_columns(rows: list[Row]) -> dict[str, Column]:
    """The columns of statistics without those that add nothing.

    Left out are values that equal another column's, as where each run has a seed of its own, and
    counts of failed or diverged runs where there are none.
    """
    same = {"n_blocks": "n_seeds", "gain_ci95": "blocked_ci95", "risk_ci95": "blocked_risk_ci95"}
    idle = {key for key, other in same.items() if all(row[key] == row[other] for row in rows)}
    idle |= {key for key in ("failed_runs", "diverged_runs") if not any(row[key] for row in rows)}
    return {key: column for key, column in columns.STATISTICS.items() if key not in idle}


def simple(summary: dict[str, Any], key: str, title: str, shape: dict[str, Column], caption: str) -> str:
    """Section with one list of the summary as a table, unchanged."""
    return section(key, title, table(f"{key}-table", summary[key], shape, caption), note=NOTES[key])


def comparisons(summary: dict[str, Any]) -> str:
    """Section on the arms against the reference arm, pooled and by cell; "" with a single arm."""
    rows = summary["comparisons"]
    if not rows:
        return ""
    against, plots = f"against arm {rows[0]['against']}", ("mean_difference", "family_ci95")
    return section(
        "comparisons",
        "Arms compared",
        table("pooled-table", summary["arm_comparisons"], columns.COMPARISONS, f"One row per arm, {against}", plots),
        table("comparisons-table", rows, columns.COMPARISONS, f"One row per cell, {against}", plots),
        note=NOTES["comparisons"],
    )


def against_reference(summary: dict[str, Any]) -> str:
    """Section on the ranks against the reference rank, and on which ranks are below another one."""
    rows = summary["against_reference"]
    caption = f"One row per rank, against rank {rows[0]['reference_rank']}" if rows else ""
    shape = columns.AGAINST_REFERENCE
    if len({row["reference_rank"] for row in rows}) == 1:  # the caption names it
        shape = {key: column for key, column in shape.items() if key != "reference_rank"}
    shown = table("against-table", rows, shape, caption, ("mean_difference", "family_ci95"))
    best = _best(summary["best_set"]) if shown else ""
    return section("against", "Against the reference rank", shown, best, note=NOTES["against_reference"])


def _best(found: dict[str, Any]) -> str:
    """Paragraph on what is shown to be below another one, by name; folded if over MOST_NAMED."""
    excluded, every = found["excluded"], len(found["members"]) + len(found["excluded"])
    if not excluded:
        return "<p>None is shown to be below another one.</p>" if every else ""
    said = f"Shown to be below another one, at {100 * found['level']:.0f} % for all pairs at once: {len(excluded)} of {every}"
    names = escape("; ".join(named(row) for row in excluded))
    long = len(excluded) > MOST_NAMED
    return f"<details><summary>{said}</summary><p>{names}.</p></details>" if long else f"<p>{said}: {names}.</p>"


def budget(summary: dict[str, Any]) -> str:
    """Section on what a budget buys, with the cost models in words."""
    rows = summary["budget"]
    shown = table("budget-table", rows, columns.BUDGET, "Runs that one budget buys at each rank")
    models = {row["model"]: row["cost_model"] for row in rows}
    said = " ".join(f"{name.capitalize()}: {words}." for name, words in sorted(models.items()))
    return section("budget", "What a budget buys", shown, note=f"{NOTES['budget']} {said}" if rows else "")


def footprint(summary: dict[str, Any]) -> str:
    here = table("footprint-table", summary["footprint"], columns.FOOTPRINT, "This sweep's adapters")
    scales = table("scales-table", summary["footprint_scales"], columns.FOOTPRINT, "Adapters at the shipped scales")
    return section("footprint", "Footprint", here, scales, note=NOTES["footprint"])


def evaluation(summary: dict[str, Any]) -> str:
    """Section on the sources of noise, and on gains by source of the items."""
    found = summary["evaluation"]
    noise = table("noise-table", [found] if found else [], EVALUATION, "Noise of items, samples and seeds")
    sources = table(
        "sources-table", summary["sources"], columns.SOURCES, "Gain by source of the items", ("mean_gain", "gain_ci95")
    )
    return section("evaluation", "Evaluation", noise, sources, note=NOTES["evaluation"])


def tables(summary: dict[str, Any]) -> list[str]:
    """All sections of statistics as HTML, in reading order; "" for each one without rows."""
    arms = statistics(summary, "arms", "Arms", "One row per arm, over ranks, batch sizes and seeds")
    return [
        statistics(summary, "ranks", "Ranks", "One row per rank, over batch sizes and seeds"),
        against_reference(summary),
        comparisons(summary),
        arms if len(summary["arms"]) > 1 else "",
        statistics(summary, "batches", "Batch sizes", "One row per batch size, over ranks and seeds"),
        statistics(summary, "cells", "Cells", "One row per cell (rank x batch size)"),
        simple(summary, "pareto_points", "Pareto front", columns.PARETO, "Cells by tokens and gain"),
        budget(summary),
        footprint(summary),
        evaluation(summary),
        simple(summary, "power", "Open claims", columns.POWER, "Seeds that would settle what is open"),
    ]
