"""Runs of one bench, trained into directories of their own, and what they left."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from rankrl.recipe.plan import Run


@contextmanager
def bench_of(runs: Sequence[Run], directory: Path, gpus: int) -> Iterator:
    """A bench on `gpus` pretended GPUs that has room for all of the runs at once."""
    from rankrl.sweep.local import prepare_process

    prepare_process(gpus)
    from rankrl.sweep.bench import Bench

    with Bench(runs, directory, len(runs)) as bench:
        yield bench


def bench_and_alone(runs: Sequence[Run], gpus: int) -> tuple[Callable, Callable]:
    """Two fixtures of a test file: a bench for its runs, and these, trained one by one."""

    @pytest.fixture(scope="module")
    def bench(tmp_path_factory) -> Iterator:
        with bench_of(runs, tmp_path_factory.mktemp("runs"), gpus) as bench:
            yield bench

    return bench, trained_alone(runs)


def trained_alone(runs: Sequence[Run]) -> Callable:
    """A fixture: the directory in which the runs were trained one by one."""

    @pytest.fixture(scope="module")
    def alone(bench) -> Path:
        return train(bench, runs, f"alone-{runs[0].sweep}", 1)

    return alone


def train(bench, runs: Sequence[Run], name: str, parallel_runs: int) -> Path:
    """Trains the runs in a directory of their own and returns it."""
    from rankrl.sweep.packing import train_all

    directory, bench.directory = bench.directory, bench.directory / name
    try:
        assert len(list(train_all(runs, bench, parallel_runs))) == len(runs)
        return bench.directory
    finally:
        bench.directory = directory


def stop_after_a_step(bench, runs: Sequence[Run], name: str) -> Path:
    """The directory of runs that were asked to stop after their first step."""
    for run in runs:
        directory = bench.directory / name / run.sweep / run.run_id
        directory.mkdir(parents=True)
        (directory / "STOP").touch()
    stopped = train(bench, runs, name, len(runs))
    for run in runs:
        assert not (stopped / run.sweep / run.run_id / "result.json").exists() and len(lines(stopped, run)) == 1
    return stopped


def lines(root: Path, run: Run) -> list[dict]:
    """The metrics of every step except times."""
    found = map(json.loads, (root / run.sweep / run.run_id / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if not key.endswith("_s")} for line in found]


def check_same(left: Path, right: Path, runs: Sequence[Run]) -> None:
    """The same numbers in every step, and the same evaluations and answers to the last byte."""
    import pandas as pd

    for run in runs:
        assert len(lines(left, run)) == run.recipe.steps and lines(left, run) == lines(right, run)
        rows = [pd.read_parquet(root / run.sweep / run.run_id / "evals.parquet") for root in (left, right)]
        pd.testing.assert_frame_equal(*rows)
        texts = [(root / run.sweep / run.run_id / "rollouts.jsonl").read_bytes() for root in (left, right)]
        assert texts[0] == texts[1]
