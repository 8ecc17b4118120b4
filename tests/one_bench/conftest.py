"""One bench for all tests of this folder, since each start of services takes most of a minute."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conftest import runs_of

PARALLEL_RUNS = 8


@pytest.fixture(scope="package")
def bench(tmp_path_factory) -> Iterator:
    """Services for adapters of rank 1 to 32, as a sweep starts them."""
    from rankrl.sweep.local import prepare_process

    prepare_process(3)
    from rankrl.sweep.bench import Bench

    with Bench(runs_of("demo"), tmp_path_factory.mktemp("runs"), PARALLEL_RUNS) as bench:
        bench.base_samples()  # here, so that their cache is in the bench's own directory whoever asks first
        yield bench


@pytest.fixture
def attach(bench):
    """Attaches a run to the services: attach("ranks=[1]") -> trainer. All are detached after it."""
    from rankrl.ppo.loop import RunTrainer

    attached = []

    def attach(*overrides, trainer_class=RunTrainer):
        run = runs_of("demo", "seeds=[0]", *overrides)[0]
        trainer = trainer_class(run, bench.services, bench.prompter, bench.train_items, bench.eval_items)
        assert trainer.attach() == run.trainable_params
        attached.append(trainer)
        return trainer

    yield attach
    for trainer in attached:
        trainer.detach()
