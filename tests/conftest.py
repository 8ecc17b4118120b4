"""Shared by all tests: runs from recipes, the training stack on a CPU, and a browser."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, browser
from xdist.scheduler import LoadFileScheduling

from rankrl.recipe.load import load_experiment
from rankrl.recipe.plan import Run, plan

ROOT = Path(__file__).resolve().parents[1]
AT_START = dict(os.environ)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    """Gives each file, and each folder below this one, to one of the processes, since its tests
    share services and other costly fixtures."""

    class ByServices(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            folder = file.rpartition("/")[0]
            return file if folder == "tests" else folder

    return ByServices(config, log)


@contextmanager
def shell() -> Iterator[pytest.MonkeyPatch]:
    """Restores, for a block, the environment variables that the tests were started with.

    Training in this process sets variables for libraries (threads, progress bars, Ray on loopback).
    A user's shell does not have them, but programs started from here would inherit them.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name not in AT_START and not name.startswith("PYTEST")]:
            patch.delenv(name)
        for name, value in AT_START.items():
            patch.setenv(name, value)
        yield patch


@pytest.fixture
def stack():
    """Makes OpenRLHF importable in this process, on a CPU as in training."""
    import torch

    if not torch.cuda.is_available():
        from rankrl.ppo import cpu

        cpu.install()


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser that the tests of a file share."""
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def runs_of(recipe: str, *overrides: str) -> list[Run]:
    """The planned runs of a shipped recipe."""
    return plan(load_experiment(ROOT / "recipes" / f"{recipe}.yaml", overrides))


def rankrl(*words: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Runs the command `rankrl` as a user does, from the root of the clone."""
    return subprocess.run(
        [sys.executable, "-m", "rankrl", *words], cwd=ROOT, capture_output=True, text=True, timeout=timeout_s
    )
