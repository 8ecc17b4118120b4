"""Two sweeps side by side: `rankrl report DIR --against DIR2`.

Runs of one cell and seed are paired, since they share prompts, sampling and rows of A. Their
differences are treated as gains are (report/statistics/blocks.py): clustered by seed, variances
drawn towards each other, and one family of claims, half of whose error is for all cells together.
"""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from rankrl.recipe.require import require
from rankrl.recipe.whole_file import whole_file
from rankrl.report.build import print_rows, shown
from rankrl.report.read import SweepRecords, read_sweeps
from rankrl.report.resolved import compared_sections, difference, kind, usual_kind, versions_note
from rankrl.report.statistics.blocks import Blocks, Subject, blocks
from rankrl.report.statistics.cells import Result, with_gain
from rankrl.report.statistics.claims import Claim, claim
from rankrl.report.statistics.family import Row, verdict
from rankrl.report.statistics.intervals import bonferroni, bounded, seeds_for_difference
from rankrl.report.statistics.limits import DEFAULT, Limits
from rankrl.report.statistics.power import named
from rankrl.report.visible import visible
from rankrl.report.words import interval, listed

PAIR = ("arm", "rank", "batch_size", "seed")


def against(directory: Path, other: Path, limits: Limits = DEFAULT) -> dict[str, Any]:
    """Compares the sweep in `directory` with that in `other`; writes report/against.json.

    Returns its content: {sweeps, differ, n_pairs, unpaired, rows, claims, answer}. A difference is
    that of `directory` minus `other`. Raises ValueError unless each has one sweep, and the two have
    runs of one cell and seed with a score.
    """
    ours, theirs = _sweep(directory, "DIR"), _sweep(other, "--against")
    found = compare(ours, theirs, limits)
    to = ours.directory / "report"
    to.mkdir(exist_ok=True)
    with whole_file(to / "against.json") as part:
        part.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    return found


def _sweep(directory: Path, option: str) -> SweepRecords:
    sweeps, _ = read_sweeps(directory)
    require(
        len(sweeps) == 1,
        option,
        str(directory),
        "the directory of one sweep",
        f"it has {', '.join(visible(sweep.name) for sweep in sweeps)}: name one of them",
    )
    return sweeps[0]


def compare(ours: SweepRecords, theirs: SweepRecords, limits: Limits = DEFAULT) -> dict[str, Any]:
    """What `against` writes."""
    names = _names(ours, theirs)
    ours, theirs = shown(ours), shown(theirs)
    pairs, lost = _pairs(ours, theirs, names)
    ranks, whole = blocks(pairs, ("arm", "rank")), blocks(pairs, ())
    able = [g for g, n in enumerate(ranks.seeds_G) if n]
    rows = [_row(ranks, g, len(able), lost, limits) for g in able]
    rows.append({"arm": None, "rank": None} | _row(whole, 0, 1, lost, limits))
    content = {
        "sweeps": names,
        "differ": _differ(ours, theirs),
        "n_pairs": len(pairs),
        "unpaired": [len(sweep.counted) - len(pairs) for sweep in (ours, theirs)],
        "failed": [len(sweep.failed) for sweep in (ours, theirs)],
        "n_short_cells": ranks.short,
        "diverged": [sum(run["status"] == "diverged" for run in sweep.counted) for sweep in (ours, theirs)],
        "rows": rows,
        "claims": [found for row in rows for found in _claims(row, names, len(rows), limits.margin)],
    }
    return content | {"answer": _answer(content, limits.margin)}


def _names(ours: SweepRecords, theirs: SweepRecords) -> list[str]:
    """Names of the two sweeps; their directories where the names are equal."""
    if ours.name != theirs.name:
        return [visible(ours.name), visible(theirs.name)]
    found = [visible(str(sweep.directory)) for sweep in (ours, theirs)]
    require(
        found[0] != found[1], "--against", found[1], "another sweep than DIR", "a sweep does not differ from itself"
    )
    return found


def _pairs(ours: SweepRecords, theirs: SweepRecords, names: list[str]) -> tuple[list[Result], list[set[Subject]]]:
    """(runs of the first sweep that have a partner, subjects of each sweep of which runs diverged).

    The difference of the two is the gain of a run. Where each sweep has one arm, its name does not
    matter.
    """
    sides = [with_gain(sweep.counted) for sweep in (ours, theirs)]
    arms = [sorted({visible(run["arm"]) for run in side}) for side in sides]
    alone = all(len(found) == 1 for found in arms)
    keyed = [{tuple("" if alone and k == "arm" else run[k] for k in PAIR): run for run in side} for side in sides]
    common = sorted(keyed[0].keys() & keyed[1].keys())
    require(
        bool(common),
        "--against",
        names[1],
        f"a sweep with a run of the arm, rank, batch size and seed of one of {names[0]}",
        f"{names[0]} has the arms {arms[0]}, {names[1]} {arms[1]}",
    )
    pairs = [keyed[0][key] | {"gain": keyed[0][key]["gain"] - keyed[1][key]["gain"]} for key in common]
    named = {arms[1][0]: arms[0][0]} if alone else {}
    gone = [[run for run in sweep.counted if run["status"] == "diverged"] for sweep in (ours, theirs)]
    return pairs, [{(named.get(run["arm"], run["arm"]), run["rank"]) for run in side} for side in gone]


def _row(table: Blocks, g: int, family: int, lost: list[set[Subject]], limits: Limits) -> Row:
    """The mean difference of a subject, with an interval that holds for half of the family's error.

    `lost`: subjects of each sweep with a run that diverged without a score. Nothing is claimed in
    favour of the others of its runs.
    """
    mean, error, freedom = float(table.mean_G[g]), float(table.mean_error_G[0][g]), float(table.mean_error_G[1][g])
    known = isfinite(error)
    single, wide = (_interval(mean, error, freedom, m) if known else None for m in (1, 2 * family))
    found, n = verdict(wide), int(table.seeds_G[g])
    survivors = [bool(side) if not table.subjects[g] else table.subjects[g] in side for side in lost]
    refused = survivors[0] if found == "higher" else survivors[1] if found == "lower" else False
    needed = (
        seeds_for_difference(error * n**0.5, limits.margin, bonferroni(2 * family), freedom / (n - 1), freedom)
        if known
        else None
    )
    return {
        **dict(zip(("arm", "rank"), table.subjects[g], strict=False)),
        "n_pairs": int(np.isfinite(table.gain_GBS[g]).sum()),
        "n_blocks": n,
        "mean_difference": mean,
        "standard_error": error if known else None,
        "difference_ci95": single,
        "family_ci95": wide,
        "verdict": "inconclusive" if refused else found,
        "survivors": survivors,
        "seeds_needed": needed,
    }


def _interval(mean: float, error: float, freedom: float, family: int) -> list[float]:
    half = bonferroni(family)(freedom) * error
    return bounded(mean - half, mean + half)


def _claims(row: Row, names: list[str], family: int, margin: float) -> list[Claim]:
    """That the lower sweep is below the other, and the first within the margin of the second."""
    ends, mean = row["family_ci95"] or [-1.0, 1.0], row["mean_difference"]
    first, second = ((row["arm"], row["rank"], name) for name in names)
    shown = row["verdict"] != "inconclusive"
    if mean <= 0:
        below = claim("below", first, second, mean, ends, family, shown)
    else:
        below = claim("below", second, first, -mean, [-ends[1], -ends[0]], family, shown)
    return [
        below,
        claim("noninferior", first, second, mean, ends, family, ends[0] > -margin and not row["survivors"][0]),
        claim("equivalent", first, second, mean, ends, family, _within(row, margin)),
    ]


def _within(row: Row, margin: float) -> bool:
    """Whether the two are shown to differ by less than the margin, neither as survivors alone."""
    ends = row["family_ci95"]
    return bool(ends) and -margin < ends[0] and ends[1] < margin and not any(row["survivors"])


def _differ(ours: SweepRecords, theirs: SweepRecords) -> list[str]:
    """What the two sweeps do not share: the first differing setting, and versions."""
    sections = [[compared_sections(s.directory / run["run_id"])[0] for run in s.counted] for s in (ours, theirs)]
    kinds = [
        usual_kind([kind(one, run | {"arm": ""}) for one, run in zip(found, sweep.counted, strict=True)])
        for found, sweep in zip(sections, (ours, theirs), strict=True)
    ]
    said = difference(kinds[0] | {"sweep": ""}, kinds[1] | {"sweep": ""})
    told = versions_note([*sections[0], *sections[1]])
    return [visible(text) for text in (said, told) if text]


def _answer(content: dict[str, Any], margin: float) -> list[str]:
    """The comparison in sentences, each of a supported claim or of the lack of one."""
    ours, theirs = content["sweeps"]
    whole = next((row for row in content["rows"] if row["rank"] is None), None)
    cells = [row for row in content["rows"] if row["rank"] is not None]
    apart = [row for row in cells if row["verdict"] != "inconclusive"]
    said = [_sentence(f"Over {content['n_pairs']} pairs of runs of one cell and seed, {ours}", whole, theirs, margin)]
    if apart:
        told = [f"{named(row)} by {row['mean_difference']:+.3f} {interval(row['family_ci95'])}" for row in apart]
        said.append(f"{ours} minus {theirs}, shown for all pairs at once (95 %): {listed(told)}.")
    if len(apart) < len(cells):
        said.append(f"Of {len(cells) - len(apart)} of {len(cells)} ranks no difference is shown.")
    lost = [f"{name}: {n}" for name, n in zip(content["sweeps"], content["unpaired"], strict=True) if n]
    said += [f"Left out, since the other sweep has no such run with a score: {', '.join(lost)}."] if lost else []
    failed = [f"{name}: {n}" for name, n in zip(content["sweeps"], content["failed"], strict=True) if n]
    said += [f"Failed, and missing here: {', '.join(failed)}."] if failed else []
    if content["n_short_cells"]:
        said.append("Cells with less than two thirds of the pairs of others take no part.")
    gone = [f"{name}: {n}" for name, n in zip(content["sweeps"], content["diverged"], strict=True) if n]
    said += [f"Diverged, and without a partner here: {', '.join(gone)}."] if gone else []
    return said + [f"The sweeps differ: {text}." for text in content["differ"]]


def _sentence(start: str, row: Row | None, theirs: str, margin: float) -> str:
    """What is shown of the two sweeps as a whole."""
    if row is None or row["family_ci95"] is None:
        return f"{start} and {theirs} cannot be told apart: one seed, or nothing varies."
    low, high = row["family_ci95"]
    said = {"higher": "is above", "lower": "is below", "inconclusive": "is not distinguishable from"}[row["verdict"]]
    if row["verdict"] == "inconclusive" and _within(row, margin):
        said = f"differs by less than {margin} from"
    elif row["verdict"] == "inconclusive" and not low <= 0 <= high:
        return f"{start} and {theirs} are not compared: runs diverged, and the others are survivors."
    more = row["seeds_needed"] and max(1, row["seeds_needed"] - row["n_blocks"])
    cost = f"; a difference of {margin} would take {more} more seeds" if said.startswith("is not") and more else ""
    return f"{start} {said} {theirs}: difference {row['mean_difference']:+.3f} {interval(row['family_ci95'])}{cost}."


def print_against(found: dict[str, Any]) -> None:
    """Prints the differences by rank, and the answer."""
    rows = [
        {
            "arm": "" if row["arm"] is None else row["arm"],
            "rank": "all" if row["rank"] is None else row["rank"],
            "pairs": row["n_pairs"],
            "seeds": row["n_blocks"],
            "difference": f"{row['mean_difference']:+.4f}",
            "95 % interval": interval(row["difference_ci95"]),
            "for all pairs at once": interval(row["family_ci95"]),
            "verdict": row["verdict"],
        }
        for row in found["rows"]
    ]
    print_rows(f"{found['sweeps'][0]} minus {found['sweeps'][1]}: gain of runs of one cell and seed", rows)
    print("\n".join(found["answer"]))
