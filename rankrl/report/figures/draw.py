"""All figures of a sweep, each with its title, caption and alternative text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

from rankrl.report.figures import bands, costs, families, grid, modules, steps
from rankrl.report.figures.canvas import MAX_DOTS, Canvas, look, save
from rankrl.report.read import SweepRecords, curve, mean_ranks
from rankrl.report.resolved import resolved_sections, section

Row = dict[str, Any]
Drawing = tuple[str, Canvas | None, str, str, str]
"""(name, canvas, title, caption, alt); the canvas is None where the records have nothing to show.

alt: the content in words, for readers who cannot see the figure."""
BLOCKED = "95 % t interval with the seed as block (runs of one seed in several cells count as one)"


@dataclass(frozen=True)
class Figure:
    """A figure on disk: `path` is its SVG; a PNG of the same name lies beside it."""

    name: str
    path: Path
    title: str
    caption: str
    alt: str


def draw(sweep: SweepRecords, summary: dict[str, Any], to: Path) -> list[Figure]:
    """Draws into `to` each figure that the records have data for; returns them in reading order."""
    sweep = replace(sweep, results=_legible(sweep.counted))
    sweep, summary, note = few_arms(sweep, _legible(summary))
    with look():
        return [
            Figure(name, save(canvas, to, name), title, caption + note, alt)
            for name, canvas, title, caption, alt in _drawings(sweep, summary)
            if canvas is not None
        ]


def _legible(tree: Any) -> Any:
    """`tree` with a hair space before names of arms that begin with _: legends leave those out."""
    if isinstance(tree, dict):
        named = {key: f"\u200a{tree[key]}" for key in ("arm", "against") if str(tree.get(key, "")).startswith("_")}
        return {key: _legible(value) for key, value in tree.items()} | named
    return [_legible(value) for value in tree] if isinstance(tree, list) else tree


def _drawings(sweep: SweepRecords, summary: dict[str, Any]) -> Iterator[Drawing]:
    yield from _arms(summary)
    yield from _families(sweep.results, summary)
    yield from _cells(sweep.results, summary)
    yield from _costs(summary)
    yield from _steps(sweep)
    maps = mean_ranks(sweep)
    yield (
        "allocation",
        modules.rank_maps(maps) if maps else None,
        "Where the rank goes",
        "Mean rank of each module where ranks are mixed, by arm and the rank whose parameters are spent.",
        f"Grid of layers by modules with the LoRA rank in each cell, for {', '.join(maps)}.",
    )


def _arms(summary: dict[str, Any]) -> Iterator[Drawing]:
    rows = summary.get("comparisons", [])
    against = rows[0]["against"] if rows else ""
    yield (
        "difference_by_arm",
        families.difference_by_arm(rows),
        f"Each arm against {against}",
        f"Gain minus the gain of arm {against} with the same seed: every pair a dot, the mean with its own 95 % interval (thick) "
        "and with the one that allows for all rows at once (thin).",
        f"Difference in gain to arm {against}. " + listed(rows, "mean_difference"),
    )


def _families(results: list[Row], summary: dict[str, Any]) -> Iterator[Drawing]:
    ranks, batches = summary["ranks"], summary["batches"]
    best = {(row["arm"], row["rank"]) for row in (summary.get("best_set") or {}).get("members", [])}
    dots = f"every run a dot{thinning(len(results))}"
    yield (
        "rank_bands",
        bands.rank_bands(ranks, best),
        "Signal and reliability by rank",
        f"Mean gain, {BLOCKED}, and the share of runs without a loss (1 - negative-gain risk) with its exact interval. "
        "Ringed: not shown to be below another one.",
        f"Mean gain by rank. {listed(ranks, 'mean_gain')} Share of runs with negative gain. {listed(ranks, 'negative_gain_risk')}",
    )
    yield (
        "gain_by_rank",
        families.gain_by_rank(results, ranks),
        "Gain by rank",
        f"Gain over the base against rank, all batch sizes together: {dots}; mean, {BLOCKED}.",
        f"Mean gain by rank. {listed(ranks, 'mean_gain')}",
    )
    yield (
        "batch_families",
        families.batch_families(results, batches),
        "Gain and tokens by batch size",
        f"Left, gain by batch size, all ranks together: {dots}, mean, {BLOCKED}. Right, the training tokens (prompt and "
        "generated) of a run. A larger batch sees more prompts and more tokens in as many steps: the two are not told apart.",
        f"Mean gain by batch size. {listed(batches, 'mean_gain')} Tokens per run. {listed(batches, 'mean_tokens')}",
    )
    yield (
        "mean_and_best",
        families.mean_and_best(summary["cells"], ranks),
        "Mean against best run",
        "The gap between the mean and the best run. The best of n exceeds the mean by luck alone: the grey bar is where it falls "
        "in 95 % of normal samples of that size and spread.",
        f"Best gain by rank. {listed(ranks, 'best_gain')} Mean gain. {listed(ranks, 'mean_gain')}",
    )
    yield (
        "efficiency_by_rank",
        families.efficiency_by_rank(results, ranks),
        "Token efficiency by rank",
        f"Gain per million training tokens against rank: {dots}; the mean gain over the mean tokens, and the mean gain's "
        f"{BLOCKED} over the same tokens.",
        f"Gain per million tokens by rank. {listed(ranks, 'token_efficiency')}",
    )


def _cells(results: list[Row], summary: dict[str, Any]) -> Iterator[Drawing]:
    table, points = summary["cells"], summary.get("pareto_points", [])
    front = [row for row in points if row["on_front"]]
    yield (
        "pareto",
        grid.pareto(points, table),
        "Gain against tokens: the Pareto front",
        "A cell is a dot; the line is the best mean gain at each token cost. Right, the same for the lower end of the cell's 95 % "
        "interval, for who would rather not gamble. The front is chosen from the data that it shows: see the table for how often "
        "a cell belongs to it under resampled seeds.",
        f"Cells on the front of mean gain. {listed(front, 'mean_gain')}",
    )
    yield (
        "heat_maps",
        grid.heat_maps(table),
        "Gain and risk over rank and batch size",
        "Mean gain of each cell, and its runs with a negative gain (failed and diverged runs count as such) out of all.",
        f"Mean gain by cell. {listed(table, 'mean_gain')} Share of runs with negative gain. {listed(table, 'negative_gain_risk')}",
    )
    yield (
        "distributions",
        grid.distributions(results),
        "Distribution over seeds",
        f"Gain of every run by rank and batch size{thinning(len(results))}: line, the median; bar, the middle half. A failed run "
        "without a score counts as the loss of the whole base score.",
        f"Gains by cell. Means: {listed(table, 'mean_gain')}",
    )


def _costs(summary: dict[str, Any]) -> Iterator[Drawing]:
    budget = [row for row in summary.get("budget", []) if row.get("model") == "measured"]
    yield (
        "budget",
        costs.budget(budget),
        "What a fixed budget buys",
        f"Seed-runs at each rank within one budget, and how narrow they make the interval of the mean gain. Cost: "
        f"{budget[0]['cost_model'] if budget else ''}".rstrip(". ")
        + ".",
        f"Seed-runs by rank. {listed(budget, 'seed_runs')}",
    )
    yield (
        "footprint",
        costs.footprint(summary["footprint"]),
        "Footprint by rank",
        "Trainable parameters of the policy's adapter and their share of the base; bytes of a checkpoint and of Adam's two "
        "moments. Both axes are logarithmic.",
        f"Trainable parameters by rank. {listed(summary['footprint'], 'trainable_params')}",
    )


def _steps(sweep: SweepRecords) -> Iterator[Drawing]:
    curves = {
        run["run_id"]: steps.drawn(curve(sweep.directory / run["run_id"], steps=run["steps"])) for run in sweep.results
    }
    many = f" (at most {steps.MOST_LINES} in a panel and colour)" if len(curves) > steps.MOST_LINES else ""
    yield (
        "learning_curves",
        steps.learning_curves(curves, sweep.results),
        "Learning curves",
        f"Training accuracy over PPO steps: every run a thin line{many}, the mean of the runs that reached a step a thick one.",
        "Training accuracy over PPO steps, a panel for each rank or arm.",
    )
    yield (
        "kl_and_gain",
        steps.kl_and_gain(curves, sweep.results),
        "KL to the base against gain",
        f"Mean KL to the base over the last tenth of a run's steps, against the run's gain{thinning(len(curves))}.",
        "Gain against KL to the base at the end of training, every run a dot coloured by rank.",
    )
    yield (
        "knobs_by_rank",
        steps.knobs_by_rank(knobs_of(sweep)),
        "Hyperparameters by rank",
        "What the rules made of the rank, as written in run.yaml; `rankrl explain` gives formulas and sources.",
        "Hyperparameters against LoRA rank, a panel each.",
    )


def thinning(n: int) -> str:
    """Note in a caption that not all of `n` runs are drawn; empty if all are."""
    return f" (about {MAX_DOTS:,} of {n:,}, evenly thinned)" if n > MAX_DOTS else ""


def listed(rows: list[Row], key: str, most: int = 12) -> str:
    """Values of `key` in words, at most `most` of them: `rank 1: 0.002; rank 2: 0.076.`"""
    named = [f"{_name(row)}: {row[key]:.4g}" for row in rows if row.get(key) is not None]
    more = [f"and {len(named) - most} more"] if len(named) > most else []
    return "; ".join([*named[:most], *more]) + "."


def _name(row: Row) -> str:
    words = {"arm": "{}", "rank": "rank {}", "batch_size": "batch {}"}
    return " ".join(text.format(row[key]) for key, text in words.items() if row.get(key, "") != "")


MOST_ARMS = 12


def few_arms(sweep: SweepRecords, summary: dict[str, Any]) -> tuple[SweepRecords, dict[str, Any], str]:
    """Records and summary of at most MOST_ARMS arms, and a note on that for captions.

    Kept are the reference arm, then the arms of highest and lowest mean gain in turn. The tables
    of the page keep all arms. The note is empty where no arm is left out.
    """
    arms = {row["arm"]: row["mean_gain"] for row in summary.get("arms", [])}
    if len(arms) <= MOST_ARMS:
        return sweep, summary, ""
    against = sorted({row["against"] for row in summary.get("comparisons", [])})
    ordered = sorted(arms, key=lambda arm: (arms[arm], arm))
    ends = [arm for pair in zip(reversed(ordered), ordered, strict=True) for arm in pair]
    kept = set(list(dict.fromkeys([*against, *ends]))[:MOST_ARMS])
    rows = {
        key: [row for row in value if not isinstance(row, dict) or row.get("arm") in {None, *kept}]
        for key, value in summary.items()
        if isinstance(value, list)  # lists of rows or of sentences
    }
    results = [result for result in sweep.results if result["arm"] in kept]
    note = f" Shown: {MOST_ARMS} of {len(arms)} arms, the highest and lowest mean gains; the tables have all."
    return replace(sweep, results=results), summary | rows, note


def knobs_of(sweep: SweepRecords) -> dict[tuple[str, int], dict[str, float]]:
    """(arm, rank) -> knob -> value, from the first readable run: rules depend on nothing else."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    for run in sweep.results:
        at = run["arm"], run["rank"]
        if at not in found and (knobs := _derived(sweep.directory / run["run_id"] / "run.yaml")):
            found[at] = knobs
    return found


def _derived(path: Path) -> dict[str, float]:
    """Knob -> value from section `derived` of a run.yaml; empty if it is damaged."""
    try:
        knobs = section("derived", resolved_sections(path).get("derived", "{}")).tree
        values = {name: float(knob["value"]) for name, knob in knobs.items()}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return {}
    return {name: value for name, value in values.items() if isfinite(value)}
