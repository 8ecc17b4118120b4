"""The page's sections of tables, each with a note on how its numbers come about."""

from __future__ import annotations

from html import escape
from typing import Any

from rankrl.report import page_columns as columns
from rankrl.report.page_columns import Column
from rankrl.report.page_table import Row, table

NOTES = {
    "ranks": (
        "Scores and gains are fractions of correct answers on held-out items: 0.0154 is 1.54 points. Every run counts: "
        "one that failed or diverged is negative, and, where no score was measured, has lost the whole base score. "
        "Intervals are Student t, risks Clopper-Pearson, both 95 %. Runs of one seed at several batch sizes are not "
        "independent: with seeds as blocks, each seed counts once, and that interval is the one to judge by. IQM: mean of "
        "the middle half, interval by bootstrap, which is too narrow at six seeds. Upside index: best minus mean, in sd; "
        "chance alone puts it into the interval beside it. Expected best: unbiased, of as many runs as every row has."
    ),
    "cells": (
        "One row for each rank and batch size: its runs differ by their seed alone. Marginal efficiency: gain per million "
        "tokens more than the cheapest batch size of the same rank. All gains share one base score, so its error is "
        "common to them."
    ),
    "batches": (
        "Pooled over ranks. Batch size is confounded with data coverage: more prompts a step are more epochs in as many "
        "steps."
    ),
    "arms": "Pooled over ranks and batch sizes.",
    "comparisons": (
        "Differences are between runs of one seed, which share prompts, sampling and rows of A. The 95 % interval is "
        "Student t for the row by itself: of many rows, some miss the truth. The family interval (Bonferroni) and Holm's "
        "p hold for all rows together, and the verdict follows them. Correlation: of the two arms' gains over seeds; "
        "pairing helps by as much."
    ),
    "arm_comparisons": "The same differences, pooled over ranks and batch sizes with the seed as block.",
    "against_reference": (
        "Differences to the reference rank at the same batch size and seed, with the seed as block. Family interval and "
        "Holm's p hold for all rows together; the verdict follows them. Not inferior: one-sided t test, 5 %, that the "
        "gain is not lower by more than the margin. Seeds needed: for the open claim of the row, at 80 % power."
    ),
    "pareto": (
        "A cell is on the front if no other has at least its gain for at most its tokens. Risk-averse: the lower end of "
        "the interval instead of the mean, and no higher risk. Share: of bootstrap resamples of the seeds in which the "
        "cell is on the front."
    ),
    "budget": (
        "Measured: mean seconds of the runs of that rank. Linear: a constant plus a part per parameter, fitted to them. "
        "The budget is what the dearest rank's runs cost; the half width is that of the interval of the mean with the "
        "runs bought."
    ),
    "footprint": "Adapter as stored, optimizer as two fp32 moments per parameter. Of the base: trainable by base parameters.",
    "evaluation": (
        "Items and seeds are crossed. Item error is common to all runs, as is the error of the base score; evaluation "
        "noise is of one run's final score, from finitely many samples; seed sd is what is left between the seeds of a "
        "cell."
    ),
    "sources": "Gain by source of the evaluation items.",
    "power": "Seeds more in each cell of the claim, at 80 % power, if the estimates of mean and sd were true.",
    "runs": (
        "Scores on the evaluation items before and after training. Curves are thinned and drawn to 1/255 of their range; "
        "the numbers stay in each run's metrics.jsonl."
    ),
}
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
    """A landmark with its heading; "" if there is no table in it."""
    content = "".join(tables)
    if not content:
        return ""
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    heading = f'<h2 id="{name}-title">{escape(title)}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-title">{heading}{content}{note}</section>'


def statistics(summary: dict[str, Any], key: str, title: str, caption: str) -> str:
    """Cells or a family: every statistic, and mean and interval drawn."""
    rows = summary.get(key) or []
    ends = "blocked_ci95" if any(row.get("blocked_ci95") for row in rows) else "gain_ci95"
    shown = table(f"{key}-table", rows, _statistics_columns(rows), caption, plots=("mean_gain", ends))
    return section(key, title, shown, note=NOTES[key])


def _statistics_columns(rows: list[Row]) -> dict[str, Column]:
    """Without what says nothing more: blocks where each run is its own, failures where there are none."""
    same = {
        "n_blocks": "n_seeds", "blocked_ci95": "gain_ci95", "blocked_risk_ci95": "risk_ci95",
    }  # fmt: skip
    idle = {key for key, plain in same.items() if all(row.get(key) == row.get(plain) for row in rows)}
    idle |= {key for key in ("failed_runs", "diverged_runs") if not any(row.get(key) for row in rows)}
    return {key: column for key, column in columns.STATISTICS.items() if key not in idle}


def simple(summary: dict[str, Any], key: str, title: str, shape: dict[str, Column], caption: str) -> str:
    """A list of the summary as it is."""
    rows = summary.get(key) or []
    return section(key, title, table(f"{key}-table", rows, shape, caption), note=NOTES[key])


def comparisons(summary: dict[str, Any]) -> str:
    """The arms against the reference arm, pooled and by cell."""
    rows, pooled = summary.get("comparisons") or [], summary.get("arm_comparisons") or []
    if not rows:
        return ""
    against = rows[0]["against"]
    shown = [
        table(
            f"{name}-table", part, columns.COMPARISONS, f"{caption}, against arm {against}",
            plots=("mean_difference", "difference_ci95"),
        ) + f'<p class="note">{escape(NOTES[name])}</p>'
        for name, part, caption in (
            ("arm_comparisons", pooled, "One row per arm"), ("comparisons", rows, "One row per arm, rank and batch size"),
        ) if part
    ]  # fmt: skip
    return section("comparisons", "Arms compared", *shown)


def against_reference(summary: dict[str, Any]) -> str:
    """Ranks against the reference rank, and which may be the best."""
    rows = summary.get("against_reference") or []
    caption = f"One row per rank, against rank {rows[0]['reference_rank']}" if rows else ""
    ends = "family_ci95" if any(row.get("family_ci95") for row in rows) else "difference_ci95"
    shown = table("against-table", rows, columns.AGAINST_REFERENCE, caption, plots=("mean_difference", ends))
    return section("against", "Against the reference rank", shown, note=NOTES["against_reference"])


def pareto(summary: dict[str, Any]) -> str:
    points = summary.get("pareto_points") or [
        row | {"mean_tokens": row["token_budget"]} for row in summary.get("pareto") or []
    ]
    shown = table("pareto-table", points, columns.PARETO, "Cells by tokens and gain")
    return section("pareto", "Pareto front", shown, note=NOTES["pareto"])


def footprint(summary: dict[str, Any]) -> str:
    here = table("footprint-table", summary.get("footprint") or [], columns.FOOTPRINT, "This sweep's adapters")
    scales = table(
        "scales-table", summary.get("footprint_scales") or [], columns.FOOTPRINT, "Adapters at the shipped scales"
    )
    return section("footprint", "Footprint", here, scales, note=NOTES["footprint"])


def evaluation(summary: dict[str, Any]) -> str:
    """Where the noise comes from, and gains by source."""
    found = summary.get("evaluation")
    noise = table("noise-table", [found], EVALUATION, "Noise of items, samples and seeds") if found else ""
    sources = table("sources-table", summary.get("sources") or [], columns.SOURCES, "Gain by source of the items")
    return section("evaluation", "Evaluation", noise, sources, note=NOTES["evaluation"])


def tables(summary: dict[str, Any]) -> list[str]:
    """All sections of statistics, in reading order; those without rows are empty."""
    return [
        statistics(summary, "ranks", "Ranks", "One row per rank, over batch sizes and seeds"),
        against_reference(summary),
        comparisons(summary),
        statistics(summary, "arms", "Arms", "One row per arm, over ranks, batch sizes and seeds")
        if _many_arms(summary)
        else "",
        statistics(summary, "batches", "Batch sizes", "One row per batch size, over ranks and seeds"),
        statistics(summary, "cells", "Cells", "One row per cell (rank x batch size)"),
        pareto(summary),
        simple(summary, "budget", "What a budget buys", columns.BUDGET, "Runs that one budget buys at each rank"),
        footprint(summary),
        evaluation(summary),
        simple(summary, "power", "Open claims", columns.POWER, "Seeds that would settle what is open"),
    ]


def _many_arms(summary: dict[str, Any]) -> bool:
    return len(summary.get("arms") or []) > 1
