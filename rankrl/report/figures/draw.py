"""All figures of a sweep, each with its title, caption and alternative text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf, isfinite
from pathlib import Path
from typing import Any

from rankrl.report.axis_values import axis_title, shown_value
from rankrl.report.curves import Curve
from rankrl.report.figures import bands, costs, efficiency, families, grid, modules, overlays, pareto, steps
from rankrl.report.figures.canvas import (
    FEW_ARMS,
    MAX_DOTS,
    MOST_PANELS,
    MOST_RANKS,
    Canvas,
    heading,
    look,
    save,
    thinned,
)
from rankrl.report.figures.series import scored
from rankrl.report.held_out import held_out
from rankrl.report.read import SweepRecords, curve, mean_ranks
from rankrl.report.resolved import resolved_sections, section

Row = dict[str, Any]
Drawing = tuple[str, Canvas | None, str, str, str]
"""(name, canvas, title, caption, alt); the canvas is None where the records have nothing to show.

alt: the content in words, for readers who cannot see the figure."""
Curves = dict[str, Curve]
CUT = " An arrowhead marks an interval that goes on beyond the axis."
LOST = "runs without a score"
MEDIAN = "the median of a rank's runs that reached a step, and where there are several a band of their middle half"
BLOCKED = "95 % interval with the seed as block, variances drawn towards those of the other rows"


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
    sweep, summary = replace(sweep, results=_legible(sweep.results)), _legible(summary)
    with look():
        return [
            Figure(name, save(canvas, to, name), title, caption, alt)
            for name, canvas, title, caption, alt in drawings(sweep, summary)
            if canvas is not None
        ]


def _legible(tree: Any) -> Any:
    """`tree` with a hair space before names of arms that begin with _: legends leave those out."""
    if isinstance(tree, dict):
        named = {key: f"\u200a{tree[key]}" for key in ("arm", "against") if str(tree.get(key, "")).startswith("_")}
        return {key: _legible(value) for key, value in tree.items()} | named
    return [_legible(value) for value in tree] if isinstance(tree, list) else tree


def drawings(sweep: SweepRecords, summary: dict[str, Any]) -> Iterator[Drawing]:
    """The figures, each with its title and the name of the sweep in it."""
    curves = {
        run["run_id"]: steps.drawn(curve(sweep.directory / run["run_id"], steps=run["steps"])) for run in sweep.results
    }
    for part, most in SECTIONS:
        few, shown, note = few_arms(sweep, summary, most)
        for name, canvas, title, caption, alt in part(few, shown, curves):
            if canvas is not None:
                heading(canvas, title, sweep.name)
            yield name, canvas, title, caption + note, alt


def _arms(sweep: SweepRecords, summary: dict[str, Any], curves: Curves) -> Iterator[Drawing]:
    rows = summary.get("comparisons", [])
    names = sorted({row["against"] for row in rows})
    against = f"arm {names[0]}" if len(names) == 1 else "the first value of an axis"
    cells = {(row["rank"], row["batch_size"]) for row in rows}
    yield (
        "difference_by_arm",
        families.difference_by_arm(rows),
        f"Each arm against {against.removeprefix('arm ')}",
        f"Gain minus the gain of {against} with the same seed: every pair a dot, the mean with its own 95 % interval (thick) "
        f"and with the one that allows for all rows at once (thin).{left_out(len(cells), MOST_PANELS, 'cells')}",
        f"Difference in gain to {against}. " + listed(rows, "mean_difference"),
    )


def _families(sweep: SweepRecords, summary: dict[str, Any], curves: Curves) -> Iterator[Drawing]:
    results, ranks, batches = sweep.results, summary["ranks"], summary["batches"]
    best = {(row["arm"], row["rank"]) for row in (summary.get("best_set") or {}).get("members", [])}
    dots = f"every run with a score a dot{thinning(len(results))}{lost(results)}"
    yield (
        "rank_bands",
        bands.rank_bands(ranks, best),
        "Signal and reliability by rank",
        f"Mean gain, {BLOCKED}, and the share of runs without a loss (1 - negative-gain risk) with its exact interval. "
        f"Ringed: not shown to be below another one.{CUT}{_by_arm(ranks)}",
        f"Mean gain by rank. {listed(ranks, 'mean_gain')} Share of runs with negative gain. {listed(ranks, 'negative_gain_risk')}",
    )
    yield (
        "gain_by_rank",
        families.gain_by_rank(results, ranks),
        "Gain by rank",
        f"Gain over the base against rank, all batch sizes together: {dots}; mean, {BLOCKED}.{CUT}",
        f"Mean gain by rank. {listed(ranks, 'mean_gain')}{_lost_alt(results)}",
    )
    yield (
        "batch_families",
        families.batch_families(results, batches),
        "Gain and tokens by batch size",
        f"Left, gain by batch size, all ranks together: {dots}, mean, {BLOCKED}.{CUT} Right, the training tokens (prompt and "
        "generated) of a run. A larger batch sees more prompts and more tokens in as many steps: the two are not told apart.",
        f"Mean gain by batch size. {listed(batches, 'mean_gain')} Tokens per run. {listed(batches, 'mean_tokens')}",
    )
    yield (
        "mean_and_best",
        families.mean_and_best(results, summary["cells"], ranks),
        "Mean against best run",
        f"The gap between the mean and the best run; {dots}. The best of n exceeds the mean by luck alone: the grey bar is where "
        "it falls in 95 % of normal samples with the n, mean and sd of these runs (none below three runs). "
        f"{_unequal(summary['cells'])}The best run costs the tokens of all n, and is chosen and scored on the same items.",
        f"Best gain by rank. {listed(ranks, 'best_gain')} Mean gain. {listed(ranks, 'mean_gain')}",
    )
    yield (
        "efficiency_by_rank",
        efficiency.efficiency_by_rank(results),
        "Token efficiency by rank",
        f"Gain per million training tokens. Small dots: each seed's gain over its tokens{lost(results)}. Large: summed gain over "
        f"summed tokens of all seeds, with the 95 % t interval of that ratio, the seed as block.{CUT}",
        f"Gain per million tokens by rank. {efficiency.in_words(results)}",
    )


def _cells(sweep: SweepRecords, summary: dict[str, Any], curves: Curves) -> Iterator[Drawing]:
    table, points = summary["cells"], summary.get("pareto_points", [])
    front = [row for row in points if row["on_front"]]
    yield (
        "pareto",
        pareto.pareto(points, table),
        "Gain against tokens: the Pareto front",
        "A cell is a dot; the line is the best mean gain at each token cost, its cells named where there is room. Right, the same "
        "for the lower end of the cell's 95 % interval, for who would rather not gamble. The front is chosen from the data that "
        "it shows: see the table for how often a cell belongs to it under resampled seeds.",
        f"Cells on the front of mean gain. {listed(front, 'mean_gain')}",
    )
    ranks, runs = {run["rank"] for run in sweep.results}, sum(map(scored, sweep.results))
    yield (
        "distributions",
        grid.distributions(sweep.results),
        "Distribution over seeds",
        f"Gain of every run with a score, by rank and batch size{thinning(runs)}: line, the median; bar, the middle half"
        f"{lost(sweep.results)}.{left_out(len(ranks), grid.MOST_COLUMNS, 'ranks')}",
        f"Gains by cell. Means: {listed(table, 'mean_gain')}{_lost_alt(sweep.results)}",
    )


def _maps(sweep: SweepRecords, summary: dict[str, Any], curves: Curves) -> Iterator[Drawing]:
    table = summary["cells"]
    ranks, sizes = ({row[key] for row in table} for key in ("rank", "batch_size"))
    yield (
        "heat_maps",
        grid.heat_maps(table),
        "Gain and risk over rank and batch size",
        "Left, the mean gain of each cell: white is no gain, blue above the base, red below it, up to the same size. Right, its "
        "runs with a negative gain out of all, coloured from no run to all of them; a diverged run counts as negative, a failed "
        f"one is missing.{left_out(len(ranks), grid.MOST_COLUMNS, 'ranks')}"
        f"{left_out(len(sizes), grid.MOST_COLUMNS, 'batch sizes')}",
        f"Mean gain by cell. {listed(table, 'mean_gain')} Share of runs with negative gain. {listed(table, 'negative_gain_risk')}",
    )


def _axis_maps(sweep: SweepRecords, summary: dict[str, Any], curves: Curves) -> Iterator[Drawing]:
    rows, axes = summary.get("axis_values", []), summary.get("axes", [])
    few = left_out(len({row["rank"] for row in rows}), grid.MOST_COLUMNS, "ranks")
    yield (
        "axis_maps",
        grid.axis_maps(rows, axes),
        "Gain and risk over rank and axis",
        "Left, the mean gain of each value of an axis, over all other axes, arms and batch sizes, every cell alike. Right, its "
        f"runs with a negative gain, diverged ones included.{few}{left_out(len(axes), grid.MOST_MAPS, 'axes')}",
        f"Mean gain by value. {listed(rows, 'mean_gain')} Share of runs with negative gain. {listed(rows, 'negative_gain_risk')}",
    )


def _costs(sweep: SweepRecords, summary: dict[str, Any], curves: Curves) -> Iterator[Drawing]:
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


def _footprint(sweep: SweepRecords, summary: dict[str, Any], curves: Curves) -> Iterator[Drawing]:
    yield (
        "footprint",
        costs.footprint(summary["footprint"]),
        "Footprint by rank",
        "Trainable parameters of the policy's adapter and their share of the base; bytes of a checkpoint and of Adam's two "
        "moments. Both axes are logarithmic.",
        f"Trainable parameters by rank. {listed(summary['footprint'], 'trainable_params')}",
    )


def _steps(sweep: SweepRecords, summary: dict[str, Any], curves: Curves) -> Iterator[Drawing]:
    counted, ranks = sweep.counted, {run["rank"] for run in sweep.counted}
    held = {run["run_id"]: held_out(sweep.directory / run["run_id"]) for run in counted}
    few = left_out(len(ranks), MOST_RANKS, "ranks")
    yield (
        "held_out_by_step",
        overlays.held_out_by_step(held, counted),
        "Held-out score by PPO step",
        f"Evaluations in between (`eval_every`), from the base at step 0 on: {MEDIAN}.{few}",
        f"Held-out score over PPO steps by rank, at the last one: {overlays.last_values(held, counted, 'held_out')}",
    )
    many = f" (at most {steps.MOST_LINES} in a panel and colour)" if len(counted) > steps.MOST_LINES else ""
    yield (
        "learning_curves",
        steps.learning_curves({run["run_id"]: curves[run["run_id"]] for run in counted}, counted),
        "Learning curves",
        f"Training accuracy over PPO steps: every run a thin line{many}, the mean of the runs that reached a step a thick one."
        f"{left_out(len(ranks), steps.most_ranks(counted), 'ranks')}",
        "Training accuracy over PPO steps, a panel for each rank or arm.",
    )
    yield (
        "kl_and_gain",
        steps.kl_and_gain(curves, sweep.results),
        "KL to the base against gain",
        f"Mean KL to the base over the last tenth of a run's steps, against the run's gain{thinning(len(curves))}"
        f"{lost(sweep.results)}.",
        "Gain against KL to the base at the end of training, every run a dot coloured by rank.",
    )


def _policy(sweep: SweepRecords, summary: dict[str, Any], curves: Curves) -> Iterator[Drawing]:
    ranks, arms = ({run[key] for run in sweep.counted} for key in ("rank", "arm"))
    few = " Of several arms the first panels are drawn; the details of a run have all curves." if len(arms) > 1 else ""
    yield (
        "policy_by_step",
        overlays.policy_by_step(curves, sweep.counted),
        "KL, entropy and clipping by PPO step",
        f"KL to the base, entropy, and the share of tokens whose ratio was clipped, all batch sizes together: {MEDIAN}."
        f"{left_out(len(ranks), MOST_RANKS, 'ranks')}",
        f"KL to the base over PPO steps by rank, at the last one: {overlays.last_values(curves, sweep.counted, 'kl_ref')}",
    )
    yield (
        "noise_by_step",
        overlays.noise_by_step(curves, sweep.counted),
        "Learning or noise",
        "Gradient cosine: of the gradients on two halves of the samples, about 0 where the gradient is noise. "
        "Effective sample: of the importance ratios, 1 while the policy is the one that sampled. Advantage sd: before it "
        f"is normalised. All batch sizes together: {MEDIAN}.{few}{left_out(len(ranks), MOST_RANKS, 'ranks')}",
        "Gradient cosine over PPO steps by rank, at the last one: "
        f"{overlays.last_values(curves, sweep.counted, 'grad_cosine')}",
    )


def _settings(sweep: SweepRecords, summary: dict[str, Any], curves: Curves) -> Iterator[Drawing]:
    yield (
        "knobs_by_rank",
        steps.knobs_by_rank(knobs_of(sweep)),
        "Hyperparameters by rank",
        "What the rules made of the rank, as written in run.yaml; `rankrl explain` gives formulas and sources.",
        "Hyperparameters against LoRA rank, a panel each.",
    )
    maps = mean_ranks(sweep)
    shown = thinned(list(maps), MOST_PANELS)
    yield (
        "allocation",
        modules.rank_maps({name: maps[name] for name in shown}) if maps else None,
        "Where the rank goes",
        "Mean rank of each module where ranks are mixed, by arm and the rank whose parameters are spent."
        f"{left_out(len(maps), MOST_PANELS, 'maps')}",
        f"Grid of layers by modules with the LoRA rank in each cell, for {', '.join(shown)}.",
    )


def lost(results: list[Row]) -> str:
    """Note in a caption on the runs without a score; empty if all have one."""
    return f" ({LOST} are marked at the lower edge)" if not all(map(scored, results)) else ""


def _lost_alt(results: list[Row]) -> str:
    n = sum(not scored(run) for run in results)
    return f" Without a score: {n} of {len(results)} runs." if n else ""


def _by_arm(families: list[Row]) -> str:
    """Note on ranks that are left out where each arm has a row of them."""
    several = len({row["arm"] for row in families}) > FEW_ARMS
    return left_out(len({row["rank"] for row in families}), MOST_RANKS, "ranks") if several else ""


def _unequal(rows: list[Row]) -> str:
    """Warning for a caption where cells have different numbers of runs."""
    counts = {row["n_seeds"] for row in rows}
    warning = f"Cells have {min(counts)} to {max(counts)} runs: compare a best run with its own bar only. "
    return warning if len(counts) > 1 else ""


def left_out(n: int, most: int, what: str) -> str:
    """Note in a caption that a figure shows fewer than all `n`; empty if it shows all."""
    return f" Shown: {most} of {n} {what}, evenly chosen; the tables have all." if n > most else ""


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
    of_axis = [f"{axis_title(row['axis'])} {shown_value(row['value'])}"] if "axis" in row else []
    return " ".join([*of_axis, *(text.format(row[key]) for key, text in words.items() if row.get(key, "") != "")])


MOST_ARMS = 12


def few_arms(
    sweep: SweepRecords, summary: dict[str, Any], most: int = MOST_ARMS
) -> tuple[SweepRecords, dict[str, Any], str]:
    """Records and summary of at most `most` arms, and a note on that for captions.

    Kept are the reference arm, then the arms of highest and lowest mean gain in turn. The tables
    of the page keep all arms. The note is empty where no arm is left out.
    """
    arms = {row["arm"]: -inf if row["mean_gain"] is None else row["mean_gain"] for row in summary.get("arms", [])}
    if len(arms) <= most:
        return sweep, summary, ""
    against = sorted({row["against"] for row in summary.get("comparisons", [])})
    ordered = sorted(arms, key=lambda arm: (arms[arm], arm))
    ends = [arm for pair in zip(reversed(ordered), ordered, strict=True) for arm in pair]
    kept = set(list(dict.fromkeys([*against, *ends]))[:most])
    rows = {
        key: [row for row in value if not isinstance(row, dict) or row.get("arm") in {None, *kept}]
        for key, value in summary.items()
        if isinstance(value, list)  # lists of rows or of sentences
    }
    results = [result for result in sweep.results if result["arm"] in kept]
    note = f" Shown: {most} of {len(arms)} arms, the highest and lowest mean gains; the tables have all."
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
        return {name: value for name, knob in knobs.items() if isfinite(value := float(knob["value"]))}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return {}


SECTIONS = (
    (_arms, MOST_ARMS),
    (_families, MOST_ARMS),
    (_cells, MOST_ARMS),
    (_maps, grid.MOST_MAPS),
    (_axis_maps, 10**9),
    (_costs, 6),
    (_footprint, 10**9),
    (_steps, MOST_ARMS),
    (_policy, overlays.MOST_ARMS),
    (_settings, MOST_ARMS),
)
"""Functions that yield drawings, in reading order, and the most arms that theirs have room for."""
