"""The page's sections of tables, each with a note on how its numbers are computed."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

from rankrl.report.axis_values import axis_title, shown_value, spread_axes
from rankrl.report.ledger import Entry, counts
from rankrl.report.ledger import rows as entry_rows
from rankrl.report.page import columns
from rankrl.report.page.columns import Column
from rankrl.report.page.moved import MOVED, NOTE, moved
from rankrl.report.page.problems import grouped
from rankrl.report.page.settings import derived, split
from rankrl.report.page.settings import settings as settings_by_rank
from rankrl.report.page.table import Row, Table
from rankrl.report.read import SweepRecords
from rankrl.report.statistics.power import named
from rankrl.report.visible import visible

Summary = dict[str, Any]
BOARD = "http://localhost:6006"

NOTES = {
    "ranks": (
        "Scores and gains are fractions of correct answers on held-out items: 0.0154 is 1.54 points. A run that "
        "diverged is negative, and, where no score was measured, has no gain: means are those of the runs with a score. "
        "The first interval is clustered by seed, with variances drawn towards those of the other rows: the one to judge "
        "by. Risks are Clopper-Pearson: the first by how alike the runs of a seed are (the design effect), the next as if "
        "they were one. All are 95 %. IQM: mean of the middle half, interval by bootstrap, which is too narrow at six seeds. "
        "Upside index: best minus mean, in sd; chance alone puts it into the interval beside it. Expected best: unbiased, of "
        "2, 3 and 6 runs."
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
        "block. The 95 % interval is Student t for the row by itself, with variances drawn towards those of the others: "
        "of many rows, some miss the truth. The family intervals hold at once for all rows of cells (Bonferroni), and those "
        "of whole arms for all claims; the verdict follows them. Correlation: of the two arms' gains over seeds; pairing "
        "helps by as much."
    ),
    "axes": (
        "By value: over the other axes, arms and batch sizes, every cell alike. The best point of a rank is the one of the "
        "highest mean, which by the choice is too high; points of which a run diverged cannot be chosen. Its interval holds "
        "for all points of all ranks at once, so that no choice breaks it. Held-out seeds: each seed is left out in turn, the "
        "others choose, and the gain is that on the seed left out; not known with fewer than three seeds. Claims compare a "
        "point with those that differ on one axis alone and have its first value there."
    ),
    "arm_comparisons": "The same differences, pooled over ranks and batch sizes with the seed as block.",
    "against_reference": (
        "Differences to the reference rank at the same batch size and seed, with the seed as block. The family "
        "intervals are those of the claims: they hold for all pairs of the report at once, and the verdict follows them. "
        "Not inferior: the family interval lies above a loss of the margin. Seeds needed: in all, to show a difference of "
        "the margin with 80 % power."
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
    "averages": (
        "Averaged adapters against the last ones of the same runs, same items and sampling seeds; all arms and ranks at once."
    ),
    "power": (
        "A difference of the margin with 80 % power, by the interval of the claim; a risk below the limit if no further "
        "run is negative."
    ),
    "runs": (
        "Scores on the evaluation items before and after training. Curves are thinned and drawn to 1/255 of their "
        "range; the numbers stay in each run's metrics.jsonl."
    ),
    "settings": (
        "Of the first run of each rank; every run.yaml holds its own, with rule, formula and source of each derived "
        "value."
    ),
}
MEAN = ("mean_gain", "pooled_ci95")
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


@dataclass(frozen=True)
class Section:
    """A part of the page: a heading over tables, and paragraphs as HTML, with a note."""

    name: str
    title: str
    parts: tuple[Table | str, ...]
    note: str = ""

    @property
    def tables(self) -> list[Table]:
        return [part for part in self.parts if isinstance(part, Table) and part.rows]

    def html(self) -> str:
        """A <section> element; "" if nothing is in it."""
        content = "".join(part if isinstance(part, str) else part.html() for part in self.parts)
        if not content:
            return ""
        note = f'<p class="note">{escape(self.note)}</p>' if self.note else ""
        heading = f'<h2 id="{self.name}-title">{escape(self.title)}</h2>'
        return f'<section id="{self.name}" aria-labelledby="{self.name}-title">{heading}{content}{note}</section>'


def statistics(summary: Summary, key: str, title: str, caption: str) -> Section:
    """Section of the cells or a family: a table of all statistics, with mean and interval drawn."""
    rows = [spread_axes(row) for row in summary[key]]
    shape = with_axes(_useful(rows, columns.STATISTICS), values_of(summary))
    return Section(key, title, (Table(key, rows, shape, caption, plots=MEAN),), NOTES[key])


def values_of(summary: Summary) -> dict[str, list[Any]]:
    """Dotted key of each axis -> its values."""
    return {row["key"]: row["values"] for row in summary.get("axes", [])}


def with_axes(shape: dict[str, Column], values: dict[str, list[Any]]) -> dict[str, Column]:
    """The columns of a table, with those of the axes after that of the arm."""
    at = list(shape).index("arm") + 1
    items = list(shape.items())
    return {**dict(items[:at]), **columns.of_axes(values), **dict(items[at:])}


def _useful(rows: list[Row], shape: dict[str, Column]) -> dict[str, Column]:
    """The columns of statistics without those that add nothing.

    Left out are values that equal another column's, as where each run has a seed of its own, and
    counts of failed or diverged runs where there are none.
    """
    same = {"n_blocks": "n_seeds", "ended_runs": "n_seeds", "gain_ci95": "blocked_ci95", "blocked_ci95": "pooled_ci95"}
    same |= dict.fromkeys(("risk_ci95", "blocked_risk_ci95"), "design_risk_ci95")
    idle = {key for key, other in same.items() if all(row.get(key) == row.get(other) for row in rows)}
    idle |= {key for key in ("failed_runs", "diverged_runs") if not any(row.get(key) for row in rows)}
    idle |= {"diverged_ci95"} if "diverged_runs" in idle else set()
    idle |= {"design_effect"} if all(row.get("design_effect") == 1 for row in rows) else set()
    return {key: column for key, column in shape.items() if key not in idle}


def axes(summary: Summary) -> Section:
    """Section on the axes: the best point of each rank, and gain and risk by value."""
    rows = [
        row | {"value": shown_value(row["value"]), "axis": axis_title(row["axis"])} for row in summary["axis_values"]
    ]
    best = [spread_axes(_best_point(row)) for row in summary["best_points"] if row["best"]]
    shape = with_axes(columns.BEST_POINTS, values_of(summary))
    chosen = Table("best", best, shape, "The point of the highest mean gain, by rank")
    by_value = Table("values", rows, _useful(rows, columns.AXIS_VALUES), "One row per value of an axis and rank", MEAN)
    return Section("axes", "Axes", (chosen, by_value), NOTES["axes"] if rows else "")


def _best_point(row: Row) -> Row:
    """A row of best_points with words where something is not known."""
    alike = f"{row['n_seeds_alike']} of {row['n_seeds_choosing']}"
    unknown = {key: columns.NOT_KNOWN for key in ("family_ci95", "heldout_gain") if row[key] is None}
    return row | unknown | {"alike": columns.NOT_KNOWN if row["heldout_gain"] is None else alike}


def simple(summary: Summary, key: str, title: str, shape: dict[str, Column], caption: str) -> Section:
    """Section with one list of the summary as a table, unchanged."""
    return Section(key, title, (Table(key, summary[key], shape, caption),), NOTES[key])


def comparisons(summary: Summary) -> Section:
    """Section on the arms against the reference arm, pooled and by cell; empty with one arm."""
    rows = summary["comparisons"]
    one, plots = len({row["against"] for row in rows}) == 1, ("mean_difference", "family_ci95")
    against = f", against arm {rows[0]['against']}" if one else " and arm that it is compared with"
    shape = {key: column for key, column in columns.COMPARISONS.items() if not one or key not in ("against", "along")}
    pooled = Table("pooled", summary["arm_comparisons"], shape, f"One row per arm{against}", plots)
    by_cell = Table("comparisons", rows, shape, f"One row per cell{against}", plots)
    return Section("comparisons", "Arms compared", (pooled, by_cell), NOTES["comparisons"])


def against_reference(summary: Summary) -> Section:
    """Section on the ranks against the reference rank, and on which ranks are below another one."""
    rows = summary["against_reference"]
    caption = f"One row per rank, against rank {rows[0]['reference_rank']}" if rows else ""
    shape = columns.AGAINST_REFERENCE
    if len({row["reference_rank"] for row in rows}) == 1:  # the caption names it
        shape = {key: column for key, column in shape.items() if key != "reference_rank"}
    shown = Table("against", rows, shape, caption, ("mean_difference", "family_ci95"), folded=True)
    best = _best(summary["best_set"]) if rows else ""
    return Section("against", "Against the reference rank", (shown, best), NOTES["against_reference"])


def _best(found: dict[str, Any]) -> str:
    """Paragraph on what is shown to be below another one, by name; folded if over MOST_NAMED."""
    excluded, every = found["excluded"], len(found["members"]) + len(found["excluded"])
    if not excluded:
        return "<p>None is shown to be below another one.</p>" if every else ""
    said = f"Shown to be below another one, at {100 * found['level']:.0f} % for all pairs at once: {len(excluded)} of {every}"
    names = escape("; ".join(named(row) for row in excluded))
    long = len(excluded) > MOST_NAMED
    return f"<details><summary>{said}</summary><p>{names}.</p></details>" if long else f"<p>{said}: {names}.</p>"


def budget(summary: Summary) -> Section:
    """Section on what a budget buys, with the cost models in words."""
    rows = summary["budget"]
    shown = Table("budget", rows, columns.BUDGET, "Runs that one budget buys at each rank")
    models = {row["model"]: row["cost_model"] for row in rows}
    said = " ".join(f"{name.capitalize()}: {words}." for name, words in sorted(models.items()))
    return Section("budget", "What a budget buys", (shown,), f"{NOTES['budget']} {said}")


def footprint(summary: Summary) -> Section:
    here = Table("footprint", summary["footprint"], columns.FOOTPRINT, "This sweep's adapters", folded=True)
    scales = Table("scales", summary["footprint_scales"], columns.FOOTPRINT, "Adapters at the shipped scales")
    return Section("footprint", "Footprint", (here, scales), NOTES["footprint"])


def evaluation(summary: Summary) -> Section:
    """Section on the sources of noise, and on gains by source of the items."""
    found, plots = summary["evaluation"], ("mean_gain", "gain_ci95")
    noise = Table("noise", [found] if found else [], EVALUATION, "Noise of items, samples and seeds")
    sources = Table("sources", summary["sources"], columns.SOURCES, "Gain by source of the items", plots)
    return Section("evaluation", "Evaluation", (noise, sources), NOTES["evaluation"])


def problems(summary: Summary) -> Section:
    """Section on what could not be counted and why, each problem once with its runs."""
    rows = grouped(summary["problems"])
    shown = Table("problems", rows, columns.PROBLEMS, "What could not be counted, and why")
    return Section("problems", "Problems", (shown,))


def items(sweep: SweepRecords) -> Section:
    """Section on what a few runs solve that their base does not, and the reverse."""
    shown = Table("items", moved(sweep), MOVED, "Items gained and lost against the base", link="run_id", folded=True)
    return Section("items", "Items gained and lost", (shown,), NOTE)


def runs(sweep: SweepRecords) -> Section:
    board = (
        f"<p>Curves of all runs in TensorBoard: <code>tensorboard --logdir {escape(visible(str(sweep.directory)))}</code>, "
        f'then <a href="{BOARD}">{BOARD.removeprefix("http://")}</a>.</p>'
        '<noscript><p>Sorting, filtering and curves need JavaScript. All runs: <a href="runs.csv">runs.csv</a>.</p></noscript>'
    )
    rows = [spread_axes(row) for row in sweep.results]
    shown = Table("runs", rows, with_axes(columns.RUNS, sweep.axes), "One row per run", link="run_id")
    return Section("runs", "Runs", (board, shown), NOTES["runs"])


def ledger(entries: list[Entry]) -> Section:
    """Section on the state of the sweep: counts by state, and the runs that have not finished."""
    stand = ", ".join(f"{number} {state}" for state, number in counts(entries).items())
    said = f"<p>{len(entries):,} runs planned: {escape(stand)}.</p>" if entries else ""
    unfinished = entry_rows(entry for entry in entries if entry.state != "finished")
    shown = Table("ledger", unfinished, columns.LEDGER, "Runs that have not finished")
    return Section("ledger", "Ledger", (said, shown))


def settings(sweep: SweepRecords) -> Section:
    """Section of settings: derived from each rank, different by arm, and shared by all."""
    found = settings_by_rank(sweep.directory, sweep.results)
    rows, (differ, same) = derived(found), split(found)
    knobs = {key: Column(key, columns.number) for row in rows for key in row if key not in ("arm", "rank")}
    arms = {arm: Column(arm or "value", str, False) for row in differ for arm in row if arm != "setting"}
    name, place = {"setting": Column("setting", str, False)}, {"arm": columns.ARM, "rank": columns.RANK}
    return Section(
        "settings",
        "Settings",
        (
            Table("knobs", rows, place | knobs, "Derived from the rank", folded=True),
            Table("differ", differ, name | arms, "Settings that differ by arm"),
            Table("same", same, name | {"value": Column("value", str, False)}, "Shared by all arms"),
        ),
        NOTES["settings"],
    )


def sections(sweep: SweepRecords, summary: Summary, entries: list[Entry]) -> list[Section]:
    """All sections of tables in reading order; one without rows is empty."""
    arms = statistics(summary, "arms", "Arms", "One row per arm, over ranks, batch sizes and seeds")
    return [
        statistics(summary, "ranks", "Ranks", "One row per rank, over batch sizes and seeds"),
        axes(summary),
        against_reference(summary),
        comparisons(summary),
        *([arms] if len(summary["arms"]) > 1 else []),
        statistics(summary, "batches", "Batch sizes", "One row per batch size, over ranks and seeds"),
        statistics(summary, "cells", "Cells", "One row per cell (rank x batch size)"),
        simple(summary, "pareto_points", "Pareto front", columns.PARETO, "Cells by tokens and gain"),
        budget(summary),
        footprint(summary),
        evaluation(summary),
        simple(summary, "averages", "Averaged adapters", columns.AVERAGES, "One row per arm and rank"),
        simple(summary, "power", "Open claims", columns.POWER, "Seeds that would settle what is open"),
        items(sweep),
        runs(sweep),
        problems(summary),
        ledger(entries),
        settings(sweep),
    ]
