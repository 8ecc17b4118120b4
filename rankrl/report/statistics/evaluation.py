"""How much of the spread of gains is due to the evaluation items, and how much to the seeds.

The data are the samples in evals.parquet. Items and seeds are crossed: every run answers the same
items, so an easy draw of items raises all gains alike and does not show in the spread over seeds.
Axes: R runs, I items, W resamples.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rankrl.report.eval_rows import Shares, shares
from rankrl.report.read import SweepRecords
from rankrl.report.resolved import resolved_sections, section
from rankrl.report.statistics.cells import CELL, Result, by_key
from rankrl.report.statistics.intervals import t_interval
from rankrl.report.visible import visible

RESAMPLES = 400
UNREADABLE = (OSError, ValueError, KeyError, TypeError, NotImplementedError, MemoryError)
"""Errors of reading a parquet file; pyarrow's own ones are subclasses of these."""


@dataclass(frozen=True)
class Answers:
    """Share of correct samples by item, at the last step of each run and at the base.

    `samples` and `base_samples` are the samples per item behind these shares.
    """

    results: list[Result]
    """The R runs whose samples could be read."""
    items: list[str]
    sources: np.ndarray
    final_RI: np.ndarray
    base_I: np.ndarray
    samples: int
    base_samples: int


def read_answers(directory: Path, results: list[Result]) -> tuple[Answers | None, list[dict[str, str]]]:
    """Reads the samples of the finished runs. Returns (answers, problems).

    Problems, [{run, problem}], name the runs whose samples are missing, damaged, contradict their
    result, or are of other items than those of most runs. If no run has samples, answers are None;
    if all lack them for one reason, one problem with run "" stands for all.
    """
    found, wrong = _read_all(directory, [result for result in results if result["status"] == "finished"])
    usual = Counter(shares.items_key for _, shares in found).most_common(1)
    kept = [(result, shares) for result, shares in found if shares.items_key == usual[0][0]]
    wrong |= {
        result["run_id"]: "evaluated on other items, or with other numbers of samples, than most runs"
        for result, shares in found
        if shares.items_key != usual[0][0]
    }
    if not kept and len(set(wrong.values())) == 1:
        return None, [{"run": "", "problem": _problem(next(iter(wrong.values())), "of no run: ")}]
    problems = [{"run": run, "problem": _problem(why)} for run, why in sorted(wrong.items())]
    if not kept:
        return None, problems
    first = kept[0][1]
    finals_RI = np.array([shares.final_I for _, shares in kept])
    names, sizes = list(first.items), (first.samples, first.base_samples)
    return Answers([result for result, _ in kept], names, first.sources, finals_RI, first.base_I, *sizes), problems


def _problem(why: str, of: str = "") -> str:
    return f"{of}evals.parquet: {why}; its gain counts all the same"


def _read_all(directory: Path, results: list[Result]) -> tuple[list[tuple[Result, Shares]], dict[str, str]]:
    """The samples of each run that has them; run id -> reason for the others."""
    found, wrong = [], {}
    for result in results:
        try:
            found.append((result, shares(directory / result["run_id"] / "evals.parquet", result)))
        except FileNotFoundError:
            wrong[result["run_id"]] = "missing"
        except UNREADABLE as error:
            said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            wrong[result["run_id"]] = " ".join(visible(said).split())[:120]
    return found, wrong


def evaluation(answers: Answers) -> dict[str, Any]:
    """Sources of the spread of gains; every sd is in fractions of correct answers.

    item_sd: sd over items of the gain of an item, averaged over runs.
    item_error = item_sd / sqrt(items): standard error of the mean gain under another draw of
    items, common to all runs.
    eval_noise_sd: sd of one run's final score due to its few samples per item.
    base_error: the same for the base score, common to all runs.
    seed_sd: sd between the seeds of a cell, without the evaluation noise.
    A value that the data do not determine is None: one sample per item shows no evaluation noise.
    """
    item_gain_I = (answers.final_RI - answers.base_I).mean(0)
    items = len(answers.items)
    item_sd = float(item_gain_I.std(ddof=1)) if items > 1 else None
    noise = _sampling_sd(answers.final_RI, answers.samples)
    return {
        "runs": len(answers.results),
        "items": items,
        "samples_per_item": answers.samples,
        "item_sd": item_sd,
        "item_error": None if item_sd is None else item_sd / items**0.5,
        "eval_noise_sd": noise,
        "seed_sd": _seed_sd(answers, noise),
        "base_error": _sampling_sd(answers.base_I[None], answers.base_samples),
    }


def shared_error(sweep: SweepRecords, evaluated: dict[str, Any] | None) -> float:
    """The base score's error from its few samples, where claims on gains must count it.

    With eval_seeds=per_seed, the sampling noise of final scores is independent between seeds and
    stands in their spread; that of the base, which is measured once, is the part that is left. With
    shared seeds, gains hold for these requests, base and all.
    """
    runs = [sweep.directory / result["run_id"] / "run.yaml" for result in sweep.counted[:1]]
    recipes = [section("recipe", resolved_sections(path).get("recipe", "{}")).tree for path in runs]
    apart = [recipe for recipe in recipes if isinstance(recipe, dict) and recipe.get("eval_seeds") == "per_seed"]
    return (evaluated or {}).get("base_error") or 0.0 if apart else 0.0


def _sampling_sd(shares_RI: np.ndarray, samples: int) -> float | None:
    """sd of a run's score on these same items: sqrt(mean p (1 - p) / (samples - 1) / items).

    The variance is unbiased. None with fewer than two samples per item.
    """
    if samples < 2:
        return None
    return float(np.sqrt((shares_RI * (1 - shares_RI)).mean() / (samples - 1) / shares_RI.shape[1]))


def _seed_sd(answers: Answers, noise: float | None) -> float | None:
    scores = dict(zip((r["run_id"] for r in answers.results), answers.final_RI.mean(1), strict=True))
    cells = [[scores[r["run_id"]] for r in runs] for runs in by_key(answers.results, CELL).values()]
    freedom = sum(len(cell) - 1 for cell in cells)
    if noise is None or not freedom:
        return None
    variance = sum(float(np.var(cell)) * len(cell) for cell in cells) / freedom
    return max(0.0, variance - noise**2) ** 0.5


def negative_on_other_items(answers: Answers) -> list[tuple[Result, float]]:
    """Each run with the probability that its gain is negative on another draw of as many items.

    Estimated by a bootstrap over items with a fixed seed.
    """
    items = len(answers.items)
    weights_WI = np.random.default_rng(0).multinomial(items, np.full(items, 1 / items), size=RESAMPLES) / items
    gains_RW = (answers.final_RI - answers.base_I) @ weights_WI.T
    return list(zip(answers.results, (gains_RW < 0).mean(1).tolist(), strict=True))


def add_item_risk(
    rows: list[dict[str, Any]], keys: tuple[str, ...], chances: list[tuple[Result, float]]
) -> list[dict[str, Any]]:
    """Adds p_negative_items to the rows (statistics by `keys`) and returns them.

    It is the mean over a row's runs of the probabilities in `chances`; None without samples.
    """
    found: dict[tuple, list[float]] = {}
    for result, chance in chances:
        found.setdefault(tuple(result[key] for key in keys), []).append(chance)
    for row in rows:
        of_row = found.get(tuple(row[key] for key in keys))
        row["p_negative_items"] = sum(of_row) / len(of_row) if of_row else None
    return rows


def by_source(answers: Answers) -> list[dict[str, Any]]:
    """Mean gain of each arm and rank by source of the items, over its seeds, with its interval."""
    place = {id(result): i for i, result in enumerate(answers.results)}
    rows = []
    for (arm, rank), runs in by_key(answers.results, ("arm", "rank")).items():
        for source in np.unique(answers.sources):
            at = answers.sources == source
            gains_R = (answers.final_RI[:, at] - answers.base_I[at]).mean(1)
            blocks = [
                float(np.mean([gains_R[place[id(r)]] for r in seed])) for seed in by_key(runs, ("seed",)).values()
            ]
            rows.append(
                {
                    "arm": arm,
                    "rank": rank,
                    "source": str(source),
                    "items": int(at.sum()),
                    "n_runs": len(runs),
                    "base_score": float(answers.base_I[at].mean()),
                    "mean_gain": float(np.mean(blocks)),
                    "gain_ci95": t_interval(blocks),
                }
            )
    return rows
