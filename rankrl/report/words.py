"""The report in sentences, the answer first.

No sentence claims more than its interval: "above" is written only where it is a supported claim
(report/statistics/claims.py), and a risk is never called "zero".
"""

from __future__ import annotations

from typing import Any

from rankrl.report.axis_values import axis_title, shown_value
from rankrl.report.statistics.claims import of_kind
from rankrl.report.statistics.family import Row
from rankrl.report.statistics.power import named

MOST_NAMED = 3
FAR_TOKENS = 0.1
"""Share by which the training tokens of two arms may differ without a word."""
MOST_RANKS = 12
"""Most sentences on ranks, and on open claims.

A sweep with more has sentences only on the reference arm, and on arms with a rank that is not shown
to be below another one."""


def words(summary: dict[str, Any]) -> list[str]:
    """The report as sentences of plain text, the answer first."""
    says = [
        *summary["answer"],
        *_confirmed(summary),
        *_arms(summary),
        *_averages(summary),
        *_best_points(summary),
        *_ranks(summary),
        *_upside(summary),
        *_evaluation(summary),
    ]
    return says + _open(summary) + _problems(summary)


def gain(row: Row) -> str:
    """Gain and risk of a row in words, with pooled intervals clustered by seed.

    Such as `+0.212 [+0.180, +0.244], 0 of 6 runs negative, risk below 0.46 (95 %)`. Where runs
    share seeds, the risk has two bounds: by their likeness, and as if the runs of a seed were one.
    """
    n, bad = row["n_seeds"], row["negative_runs"]
    units = f" on {row['n_blocks']} seeds" if row["n_blocks"] < n else ""
    risk = f"{bad} of {n} runs negative{units}, risk {_risk(row['design_risk_ci95'], bad)}"
    if units:
        risk += f", or {_risk(row['blocked_risk_ci95'], bad)} if the runs of a seed are as one"
    return f"{_mean_of(row)}{_diverged(row)}, {risk} (95 %)"


def _risk(ends: list[float], bad: int) -> str:
    low, high = ends
    upper = f"{max(high, 0.01):.2f}"  # never below 0.00
    return f"below {upper}" if bad == 0 else f"{low:.2f} to {upper}"


def _mean_of(row: Row) -> str:
    if row["mean_gain"] is None:
        return "no run ended with a score"
    lost = row["n_seeds"] - row["ended_runs"]
    over = f" over the {row['ended_runs']} of {row['n_seeds']} runs that ended with a score" if lost else ""
    return f"{row['mean_gain']:+.3f} {interval(row['pooled_ci95'])}{over}"


def _diverged(row: Row) -> str:
    """The share of runs that diverged, with its interval; "" if none did."""
    if not row["diverged_runs"]:
        return ""
    low, high = row["diverged_ci95"]
    return f", {row['diverged_runs']} of {row['n_seeds']} diverged ({low:.2f} to {high:.2f})"


def interval(ends: list[float] | None) -> str:
    return "[{:+.3f}, {:+.3f}]".format(*ends) if ends else "(no interval: too few seeds, or all alike)"


def answer(summary: dict[str, Any]) -> list[str]:
    """What may be relied on, what is worth research, what is shown to be below, and what is open.

    Each sentence stands on supported claims (report/statistics/claims.py): no arm or rank is
    called best, lowest or below because its runs are noisy.
    """
    rows = {(row["arm"], row["rank"]): row for row in summary["ranks"]}
    if len(rows) == 1:
        said = [f"{_capital(named(row))}: {gain(row)}." for row in rows.values()]
    else:
        said = [_dependable(summary, rows), *_gaining(summary), _below(summary), *_unknown(summary)]
    return [said[0] + _missing(summary), *said[1:], *_divergence(summary), *_worst_case(summary)]


def _missing(summary: dict[str, Any]) -> str:
    """Runs of which nothing is known, for the end of the first sentence."""
    failed, unfinished = summary["n_failed"], summary["n_unfinished"]
    plural = "has" if unfinished == 1 else "have"
    told = [f"{failed} failed"] * (failed > 0) + [f"{unfinished} {plural} no result"] * (unfinished > 0)
    n = summary["n_runs"] + failed + unfinished
    said = f" Of {n} runs {' and '.join(told)}: they are missing in all that follows." if told else ""
    short = summary["n_short_cells"]
    cells = "1 cell has" if short == 1 else f"{short} cells have"
    return said + (
        f" {cells} less than two thirds of the seeds of others, and no part in comparisons." if short else ""
    )


def _divergence(summary: dict[str, Any]) -> list[str]:
    """How many runs diverged, which is an outcome, and where."""
    rows = [row for row in summary["ranks"] if row["diverged_runs"]]
    if not rows:
        return []
    each = [f"{row['diverged_runs']} of {row['n_seeds']} of {named(row)}" for row in rows]
    return [f"Diverged, which counts as negative: {listed(each)}. Means are of the runs that ended with a score."]


def _worst_case(summary: dict[str, Any]) -> list[str]:
    """What failed runs could change at most."""
    found = summary["worst_case"]
    if not found:
        return []
    return [
        f"Had each failed run ended with a score of 0, {found['kept']} of the {found['supported']} claims that are "
        "supported now would still be."
    ]


def _subjects(summary: dict[str, Any], kind: str) -> set[tuple[str, int]]:
    """(arm, rank) of the supported claims of a kind."""
    return {(row["subject"]["arm"], row["subject"]["rank"]) for row in of_kind(summary["claims"], kind)}


def _dependable(summary: dict[str, Any], rows: dict[tuple[str, int], Row]) -> str:
    """The smallest one that is shown to gain and not to lose more than the margin against any."""
    margin = summary["limits"]["margin"]
    if not summary["dependable"]:
        return (
            f"No rank is shown to be both above the base and within {margin} of every other one: which one to rely on "
            "is open."
        )
    chosen, *more = summary["dependable"]
    also = f" So {'is' if len(more) == 1 else 'are'} {listed([named(one) for one in more])}." if more else ""
    size = rows[chosen["arm"], chosen["rank"]]["trainable_params"]
    smaller = [subject for subject, row in rows.items() if row["trainable_params"] < size]
    not_shown = f" Of no smaller one (rank {_span(smaller)}) is this shown." if smaller else ""
    return (
        f"To rely on: {named(chosen)}, {gain(rows[chosen['arm'], chosen['rank']])}; it is above the base and less than "
        f"{margin} below every other one (95 % each, for all at once).{also}{not_shown}"
    )


def _span(subjects: list[tuple[str, int]]) -> str:
    """The ranks of subjects: `1`, `1 and 2` or `1 to 8`."""
    ranks = sorted({rank for _, rank in subjects})
    if len(ranks) > 2:
        return f"{ranks[0]} to {ranks[-1]}"
    return " and ".join(map(str, ranks))


def _below(summary: dict[str, Any]) -> str:
    """What is shown to be below another one, each with the highest such; at most three."""
    widest: dict[tuple[str, int], Row] = {}
    for row in of_kind(summary["claims"], "below"):
        subject = row["subject"]["arm"], row["subject"]["rank"]
        if subject not in widest or row["estimate"] < widest[subject]["estimate"]:
            widest[subject] = row
    if not widest:
        return "None is shown to be below another one."
    said = [f"{named(row['subject'])} below {named(row['than'])} by {-row['estimate']:.3f}" for row in widest.values()]
    return f"Shown, for all pairs at once (95 %): {listed(said)}.{_among(summary)}"


def _among(summary: dict[str, Any]) -> str:
    """Where the best one is, if few are left: all others are shown to be below another one."""
    members = [named(row) for row in summary["best_set"]["members"]]
    unknown = summary["n_unfinished"] or summary["n_short_cells"] or summary["n_lost_ranks"]
    if not members or len(members) > MOST_NAMED or unknown:
        return ""
    return f" So the best is {'' if len(members) == 1 else 'one of '}{listed(members)}."


def _gaining(summary: dict[str, Any]) -> list[str]:
    """The research candidate: the lowest rank that is shown to gain over the base."""
    above = _subjects(summary, "above")
    if not above:
        return ["No rank is shown to gain over the base (95 % for all at once)."]
    arm, rank = min(above, key=lambda subject: (subject[1], subject[0]))
    name = named({"arm": arm, "rank": rank})
    return [
        f"To work on: {name}, the lowest that is shown to gain over the base ({len(above)} of {len(summary['ranks'])} are)."
    ]


def _unknown(summary: dict[str, Any]) -> list[str]:
    """The open claims on the lowest rank, or the first one, with what they cost; at most two."""
    lowest = [row for row in summary["power"] if row["lowest"]] or summary["power"]
    return [f"Not known yet: whether {row['claim']}; that takes {_seeds(row['seeds_more'])}." for row in lowest[:2]]


def _confirmed(summary: dict[str, Any]) -> list[str]:
    says = [f"On fresh seeds, which chose nothing, {named(row)}: {gain(row)}." for row in summary["confirmation"]]
    looked = "All other intervals are also of seeds that were given out stage by stage, and are not corrected for the looking."
    return [*says, looked] if says else []


def _ranks(summary: dict[str, Any]) -> list[str]:
    against = {(row["arm"], row["rank"]): row for row in summary["against_reference"]}
    rows = summary["ranks"] if len(summary["ranks"]) > 1 else []
    if len(rows) > MOST_RANKS:
        shown = {member["arm"] for member in summary["best_set"]["members"]}
        shown |= {row["against"] for row in summary["arm_comparisons"]}
        rows = [row for row in rows if row["arm"] in shown][:MOST_RANKS]
    able, said = _subjects(summary, "noninferior"), []
    for row in rows:
        subject = row["arm"], row["rank"]
        said.append(f"{_capital(named(row))}: {gain(row)}{_against(against.get(subject), subject in able)}.")
    return said


def _against(row: Row | None, able: bool) -> str:
    """What the claims on a rank and the reference rank support, as the end of a sentence.

    `able`: the rank is shown to be non-inferior to every other one.
    """
    if row is None:
        return ""
    reference, ends = f"rank {row['reference_rank']}", interval(row["family_ci95"])
    if row["verdict"] == "inconclusive" and not row["complete"]:
        return f"; not compared with {reference}: of one of the two, runs diverged"
    if row["verdict"] != "inconclusive":
        side = "above" if row["verdict"] == "higher" else "below"
        return f"; {side} {reference} by {abs(row['mean_difference']):.3f} (difference {ends}, for all pairs at once)"
    if row["noninferior"] or able:
        return f"; less than {row['margin']} below {reference} (95 %, for all ranks at once)"
    return f"; not distinguishable from {reference} (difference {ends})"


def _best_points(summary: dict[str, Any]) -> list[str]:
    """The point of the axes with the highest mean, by rank, and what it may be expected to gain."""
    return [_best_point(row) for row in summary["best_points"] if row["best"]][:MOST_RANKS]


def _best_point(row: Row) -> str:
    at = listed([f"{axis_title(key)} {shown_value(value)}" for key, value in row["axes"].items()], len(row["axes"]))
    left_out = f" ({row['n_left_out']} with diverged runs or few seeds left out)" if row["n_left_out"] else ""
    said = (
        f"{_capital(named(row))}: of {row['n_points']} points{left_out}, {at} has the highest mean gain, {row['mean_gain']:+.3f} "
        f"{interval(row['family_ci95'])} (95 %, for all points of all ranks at once)"
    )
    if row["heldout_gain"] is None:
        return f"{said}; what a point that is so chosen gains on other seeds is not known."
    alike = f"{row['n_seeds_alike']} of {row['n_seeds_choosing']}"
    return f"{said}; chosen without each seed in turn, {row['heldout_gain']:+.3f} on these, in {alike} cases the same point."


def _arms(summary: dict[str, Any]) -> list[str]:
    rows = summary["arm_comparisons"]
    apart = [row for row in rows if row["verdict"] != "inconclusive"]
    if summary["axes"] and len(rows) > MOST_RANKS:  # points may be many
        more = f"Of {len(rows)} pairs of points that differ on one axis, a difference is shown of {len(apart)}."
        return [*_arm_pairs(apart[:MOST_RANKS], summary["comparisons"]), more]
    return _arm_pairs(rows, summary["comparisons"])


def _arm_pairs(rows: list[Row], cells: list[Row]) -> list[str]:
    """A sentence for each pair of arms; `cells` are their comparisons by rank and batch size."""
    says = []
    for row in rows:
        if row["verdict"] == "inconclusive" and not row["complete"]:
            says.append(f"{_capital(named(row))} is not compared with arm {row['against']}: of one, runs diverged.")
            continue
        verdict = {"higher": "higher than", "lower": "lower than", "inconclusive": "not distinguishable from"}
        said = f"{verdict[row['verdict']]} arm {row['against']}: difference {row['mean_difference']:+.3f}"
        seeds = f"{row['n_pairs']} pairs on {row['n_blocks']} seeds"
        told = f"{said} {interval(row['family_ci95'])} (all pairs at once; {seeds})"
        says.append(f"{_capital(named(row))} is {told}{_tokens(row, cells)}.")
    return says


def _tokens(pair: Row, cells: list[Row]) -> str:
    """How many times the reference's training tokens an arm took, where that is far from 1."""
    same = [row for row in cells if all(row[key] == pair[key] for key in ("arm", "against", "along"))]
    ratios = sorted(row["tokens_ratio"] for row in same if row["tokens_ratio"] is not None)
    if all(round(abs(ratio - 1), 6) <= FAR_TOKENS for ratio in ratios):
        return ""
    times = f"{ratios[0]:.2f}" if len(ratios) == 1 else f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
    return f"; it took {times} times the training tokens of arm {pair['against']}"


def _averages(summary: dict[str, Any]) -> list[str]:
    """What averaging the last adapters did to score and risk, for each arm that has it."""
    says = []
    for row in summary["averages"]:
        found = f"{row['mean_difference']:+.3f} {interval(row['difference_ci95'])}"
        runs = row["n_runs"] + row["diverged_runs"]
        risks = f"{row['average_negative_runs']} of {runs} are below the base, {row['negative_runs']} of the last ones"
        shown = "fewer, which is shown" if row["lowers_risk"] else "that averaging lowers the risk is not shown"
        says.append(
            f"{_capital(named(row))}: averaged adapters score {found} against the last ones ({row['n_runs']} runs on "
            f"{row['n_seeds']} seeds); "
            f"{risks}: {shown}."
        )
    return says


def _upside(summary: dict[str, Any]) -> list[str]:
    """How many cells have a best run further above the mean than in 97.5 % of normal samples.

    As many as chance gives are no finding.
    """
    cells = [row for row in summary["cells"] if row["upside_index"] and row["upside_null95"]]
    high = [row for row in cells if row["upside_index"] > row["upside_null95"][1]]
    if not cells:
        return []
    chance = 0.025 * len(cells)
    which = f" ({listed([named(row) for row in high])})" if high else ""
    return [
        f"Best runs: in {len(high)} of {len(cells)} cells{which} the best lies further above the mean than in 97.5 % of normal "
        f"samples; chance alone gives {chance:.1f}. A gap between best and mean is no latent upside by itself."
    ]


def _evaluation(summary: dict[str, Any]) -> list[str]:
    found = summary["evaluation"]
    if not found or found["item_error"] is None:
        return []
    noise = ""
    if found["seed_sd"] is not None:
        seeds = f"sd {found['seed_sd']:.4f} beyond it" if found["seed_sd"] else "no more than it explains"
        noise = f" The evaluation noise of a run is sd {found['eval_noise_sd']:.4f}; seeds differ by {seeds}."
    return [
        f"All gains share {found['items']} items and one base score: on other items the mean gain would move by "
        f"{found['item_error']:.4f} (standard error), which no interval above contains.{noise}"
    ]


def _open(summary: dict[str, Any]) -> list[str]:
    return [f"Open: {row['claim']}: {_seeds(row['seeds_more'])}." for row in summary["power"][:MOST_RANKS]]


def _problems(summary: dict[str, Any]) -> list[str]:
    bad = sorted({row["run"] for row in summary["problems"] if row["run"]})
    planned = f" of {summary['n_planned']} planned" if summary["n_planned"] else ""
    named_runs = f"; something is to be said of {len(bad)} ({listed(bad)})" if bad else ""
    return [f"{summary['n_runs']} runs{planned} are counted{named_runs}."]


def _seeds(more: int) -> str:
    return "1 more seed" if more == 1 else f"{more} more seeds"


def listed(names: list[str], most: int = MOST_NAMED) -> str:
    """Names as one text, at most `most` of them."""
    shown = names if len(names) <= most else [*names[: most - 1], f"{len(names) - most + 1} others"]
    comma = "; " if any("," in name for name in shown) else ", "
    return shown[0] if len(shown) == 1 else f"{comma.join(shown[:-1])} and {shown[-1]}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
