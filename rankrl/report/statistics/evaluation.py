"""How much of the spread of gains is due to the evaluation items, and how much to the seeds.

The data are the samples in evals.parquet. Items and seeds are crossed: every run answers the same
items, so an easy draw of items raises all gains alike and does not show in the spread over seeds.
Axes: R runs, I items, W resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rankrl.report.statistics.cells import CELL, Result, by_key
from rankrl.report.statistics.intervals import t_interval

RESAMPLES = 400
MOST_ROWS = 5_000_000
COLUMNS = ["step", "item_id", "source", "correct"]


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

    Problems, [{run, problem}], name the runs whose samples are missing, damaged, or of other items
    than those of the first run. If no run has samples, answers are None, and one problem with run
    "" stands for all.
    """
    problems, kept, finals = [], [], []
    first: tuple[np.ndarray, ...] | None = None
    for result in (r for r in results if r["status"] == "finished"):
        try:
            shares = _shares(directory / result["run_id"] / "evals.parquet", result["steps"])
            if first is not None and not np.array_equal(shares[0], first[0]):
                raise ValueError("evaluated on other items than the first run")
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            NotImplementedError,
        ) as error:  # pyarrow's own errors are subclasses of these
            said = " ".join(str(error).split())[:120]
            problems.append(
                {"run": result["run_id"], "problem": f"evals.parquet: {said}; its gain counts all the same"}
            )
            continue
        first = first or shares
        kept.append(result)
        finals.append(shares[2])
    if first is None:  # one line stands for all runs
        return None, [{"run": "", "problem": f"of no run: {row['problem']}"} for row in problems[:1]]
    names, sources, _, base, samples, base_samples = first
    return Answers(kept, list(names), sources, np.array(finals), base, int(samples), int(base_samples)), problems


def _shares(path: Path, steps: int) -> tuple[Any, ...]:
    """Shares of correct samples by item in one evals.parquet.

    Returns (sorted item ids, their sources, shares at step `steps`, shares at step 0, and the
    fewest samples of an item at step `steps` and at step 0). Raises ValueError for unusable data.
    """
    import pyarrow.parquet as pq

    if not path.exists():
        raise ValueError("missing")
    with pq.ParquetFile(path) as file:
        if file.metadata.num_rows > MOST_ROWS:
            raise ValueError(f"more than {MOST_ROWS} rows")
        table = file.read(columns=COLUMNS)
    step, correct = table["step"].to_numpy(), table["correct"].to_numpy().astype(float)
    coded = table["item_id"].combine_chunks().dictionary_encode()
    names, code = np.array(coded.dictionary.to_pylist(), dtype=str), coded.indices.to_numpy()
    if not len(names) or not set(np.unique(correct)) <= {0.0, 1.0}:
        raise ValueError("no samples, or correct is neither true nor false")
    order = np.argsort(names)
    counts = {at: np.bincount(code[step == at], minlength=len(names))[order] for at in (0, steps)}
    sums = {at: np.bincount(code[step == at], correct[step == at], len(names))[order] for at in (0, steps)}
    if min(counts[0].min(), counts[steps].min()) == 0:
        raise ValueError(f"an item lacks samples at step 0 or {steps}")
    sources = np.array(table["source"].to_pylist(), dtype=str)[np.unique(code, return_index=True)[1]][order]
    shares = {at: sums[at] / counts[at] for at in (0, steps)}
    return names[order], sources, shares[steps], shares[0], counts[steps].min(), counts[0].min()


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
    """Mean gain of each arm and rank by source of the items, with an interval clustered by seed."""
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
                    "mean_gain": float(np.mean([gains_R[place[id(r)]] for r in runs])),
                    "gain_ci95": t_interval(blocks),
                }
            )
    return rows
