"""Shared by all tests: recipes as files, runs from recipes, and the training stack on a CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rankrl.recipe.load import load_experiment
from rankrl.recipe.plan import Run, plan

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def stack():
    """OpenRLHF importable in this process, on a CPU as in training."""
    import torch

    if not torch.cuda.is_available():
        from rankrl.ppo import cpu

        cpu.install()


def runs_of(recipe: str, *overrides: str) -> list[Run]:
    """The plan of a shipped recipe."""
    return plan(load_experiment(ROOT / "recipes" / f"{recipe}.yaml", overrides))


def rankrl(*words: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """The command as a user types it, from the root of the clone."""
    return subprocess.run(
        [sys.executable, "-m", "rankrl", *words], cwd=ROOT, capture_output=True, text=True, timeout=timeout_s
    )
