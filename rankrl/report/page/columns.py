"""The columns of the page's tables: their titles, and how their values are formatted.

Values become text here and nowhere else: page.js sorts and filters by the text that a reader sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rankrl.report.axis_values import axis_title, shown_value
from rankrl.report.visible import visible


@dataclass(frozen=True)
class Column:
    """A table's column. Where a row lacks its key it shows a dash; where all do, it is left out."""

    title: str
    text: Callable[[Any], str]
    numeric: bool = True
    folded: bool = False
    """Long texts are shown on a click."""


def signed(value: float) -> str:
    """A gain or a difference as a signed fraction, such as +0.0855."""
    return f"{value:+.4f}".replace("-", "\N{MINUS SIGN}")


def fixed(value: float) -> str:
    return f"{value:.4f}".replace("-", "\N{MINUS SIGN}")


def two(value: float) -> str:
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def number(value: float) -> str:
    """Integers, and values from 1000 on, with separators; others to four significant digits."""
    text = f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return text.replace("-", "\N{MINUS SIGN}")


def interval(ends: list[float]) -> str:
    return f"[{signed(ends[0])}, {signed(ends[1])}]"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def percents(ends: list[float]) -> str:
    return f"[{100 * ends[0]:.1f}, {100 * ends[1]:.1f}] %"


def millions(value: float) -> str:
    return f"{value / 1e6:,.3f}" if value < 1e7 else f"{value / 1e6:,.1f}"


def chance(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def maxima(by_k: dict[str, float]) -> str:
    return ", ".join(f"{signed(value)} of {k}" for k, value in by_k.items())


def yes(value: bool) -> str:
    return "yes" if value else "no"


def known(text: Callable[[Any], str]) -> Callable[[Any], str]:
    """`text`, and NOT_KNOWN as it is."""
    return lambda value: value if value == NOT_KNOWN else text(value)


def of_axes(values: dict[str, list[Any]]) -> dict[str, Column]:
    """A column for each axis; `values`: dotted key -> values."""
    return {
        f"axes.{visible(key)}": Column(axis_title(key), _axis_text, all(type(v) in (int, float) for v in known_values))
        for key, known_values in values.items()
    }


def _axis_text(value: Any) -> str:
    return value if isinstance(value, str) else shown_value(value)


NOT_KNOWN = "not known"
ARM, RANK, BATCH = Column("arm", str, False), Column("rank", number), Column("batch", number)
GAIN, CI = Column("mean gain", signed), Column("95 % interval", interval)
STATISTICS = {
    "arm": ARM,
    "rank": RANK,
    "batch_size": BATCH,
    "mean_gain": GAIN,
    "negative_gain_risk": Column("risk", percent),
    "pooled_ci95": CI,
    "design_risk_ci95": Column("risk, 95 %", percents),
    "n_seeds": Column("runs", number),
    "n_blocks": Column("seeds", number),
    "negative_runs": Column("negative", number),
    "failed_runs": Column("failed", number),
    "diverged_runs": Column("diverged", number),
    "diverged_ci95": Column("diverged, 95 %", percents),
    "ended_runs": Column("with a score", number),
    "blocked_risk_ci95": Column("risk if a seed's runs are one", percents),
    "risk_ci95": Column("risk if runs were independent", percents),
    "design_effect": Column("design effect", two),
    "blocked_ci95": Column("interval of its own seeds", interval),
    "gain_ci95": Column("interval if runs were independent", interval),
    "sd_gain": Column("sd", fixed),
    "iqm": Column("IQM", signed),
    "iqm_ci95": Column("IQM, bootstrap", interval),
    "best_gain": Column("best", signed),
    "mean_best_gap": Column("best minus mean", signed),
    "expected_max": Column("expected best", maxima),
    "upside_index": Column("upside index", two),
    "upside_null95": Column("upside by chance", lambda ends: f"[{two(ends[0])}, {two(ends[1])}]"),
    "p_negative_items": Column("negative on other items", percent),
    "mean_final_score": Column("final score", fixed),
    "mean_tokens": Column("tokens, M", millions),
    "token_efficiency": Column("gain per M tokens", number),
    "marginal_efficiency": Column("gain per M more tokens", number),
}
AXIS_VALUES = {
    "axis": Column("axis", str, False),
    "value": Column("value", str, False),
    **{key: column for key, column in STATISTICS.items() if key not in ("arm", "batch_size")},
}
BEST_POINTS = {
    "arm": ARM,
    "rank": RANK,
    "mean_gain": GAIN,
    "family_ci95": Column("95 % for all points at once", known(interval)),
    "heldout_gain": Column("gain on held-out seeds", known(signed)),
    "alike": Column("chosen without a seed", str, False),
    "negative_gain_risk": Column("risk", percent),
    "design_risk_ci95": Column("risk, 95 %", percents),
    "n_seeds": Column("runs", number),
    "n_blocks": Column("seeds", number),
    "n_points": Column("points", number),
    "n_left_out": Column("not to be chosen", number),
}
TESTS = {
    "p": Column("p", chance),
    "p_holm": Column("p, Holm", chance),
    "verdict": Column("verdict", str, False),
}
DIFFERENCE = {
    "n_pairs": Column("pairs", number),
    "n_blocks": Column("seeds", number),
    "mean_difference": Column("mean difference", signed),
    "difference_ci95": CI,
    "family_ci95": Column("family interval", interval),
}
COMPARISONS = {
    "arm": ARM,
    "against": Column("against", str, False),
    "along": Column("differs in", axis_title, False),
    "rank": RANK,
    "batch_size": BATCH,
    **DIFFERENCE,
    **TESTS,
    "higher": Column("pairs higher", number),
    "pairing": Column("correlation", two),
    "params_ratio": Column("parameters, ratio", number),
    "tokens_ratio": Column("tokens, ratio", number),
    "unpaired_seeds": Column("seeds without partner", number),
}
AGAINST_REFERENCE = {
    "arm": ARM,
    "rank": RANK,
    "reference_rank": Column("reference rank", number),
    **DIFFERENCE,
    **TESTS,
    "margin": Column("margin", number),
    "p_noninferior": Column("p, not inferior", chance),
    "noninferior": Column("not inferior", yes, False),
    "seeds_needed": Column("seeds needed", number),
}
PARETO = {
    "arm": ARM,
    "rank": RANK,
    "batch_size": BATCH,
    "mean_gain": GAIN,
    "risk": Column("risk", percent),
    "lower_gain": Column("lower end, 95 %", signed),
    "mean_tokens": Column("tokens, M", millions),
    "on_front": Column("on front", yes, False),
    "front_share": Column("on front, bootstrap", percent),
    "on_front_risk_averse": Column("on risk-averse front", yes, False),
    "front_share_risk_averse": Column("risk-averse, bootstrap", percent),
}
BUDGET = {
    "arm": ARM,
    "rank": RANK,
    "model": Column("cost model", str, False),
    "budget_s": Column("budget, s", number),
    "cost_per_run": Column("cost of a run, s", number),
    "seed_runs": Column("runs bought", number),
    "ci_halfwidth": Column("half width of interval", fixed),
}
FOOTPRINT = {
    "scale": Column("scale", str, False),
    "rank": RANK,
    "trainable_params": Column("parameters", number),
    "fraction_of_base": Column("of the base", lambda share: f"{100 * share:.4g} %"),
    "checkpoint_bytes": Column("adapter, MB", lambda size: f"{size / 1e6:,.2f}"),
    "optimizer_bytes": Column("optimizer, MB", lambda size: f"{size / 1e6:,.2f}"),
}
SOURCES = {
    "arm": ARM,
    "rank": RANK,
    "source": Column("source", str, False),
    "items": Column("items", number),
    "n_runs": Column("runs", number),
    "base_score": Column("base score", fixed),
    "mean_gain": GAIN,
    "gain_ci95": CI,
}
AVERAGES = {
    "arm": ARM,
    "rank": RANK,
    "n_runs": Column("runs", number),
    "mean_gain": Column("gain of the last", signed),
    "average_mean_gain": Column("of the average", signed),
    "mean_difference": Column("difference", signed),
    "difference_ci95": CI,
    "negative_runs": Column("negative: last", number),
    "average_negative_runs": Column("average", number),
    "lowers_risk": Column("lower risk shown", yes, False),
}
POWER = {"claim": Column("open claim", str, False), "seeds_more": Column("more seeds", number)}
PROBLEMS = {
    "problem": Column("problem", str, False),
    "n_runs": Column("runs", number),
    "runs": Column("which", str, False, folded=True),
}
RUNS = {
    "run_id": Column("run", str, False),
    "arm": ARM,
    "rank": RANK,
    "batch_size": BATCH,
    "seed": Column("seed", number),
    "status": Column("status", str, False),
    "base_score": Column("base", fixed),
    "final_score": Column("final", fixed),
    "gain": Column("gain", signed),
    "tokens_total": Column("tokens, M", millions),
    "steps": Column("steps", number),
    "wall_s": Column("wall, s", lambda seconds: f"{seconds:,.0f}"),
    "error": Column("error", str, False),
}
LEDGER = {
    "run_id": Column("run", str, False),
    "state": Column("state", str, False),
    "step": Column("step", number),
    "steps": Column("of", number),
    "attempts": Column("attempts", number),
    "note": Column("where, or why", str, False),
}
