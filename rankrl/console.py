"""How the commands print values, rows and lines."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rankrl.recipe.knobs import Knob
from rankrl.recipe.plan import Run
from rankrl.report.visible import visible

if TYPE_CHECKING:
    from rich.console import Console

MEASURED = "measured before the run"
"""What stands for a value that is not known yet."""


def terminal() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def warn(said: list[str]) -> None:
    for line in said:
        print(line, file=sys.stderr)


def print_rows(rows: list[dict]) -> None:
    """Prints rows as aligned columns. Without rich, which takes 12 s for 10,000 rows."""
    cells = [
        [f"{v:.4g}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else visible(v) for v in row.values()]
        for row in rows
    ]
    shown = [i for i, name in enumerate(rows[0]) if name != "arm" or any(row["arm"] for row in rows)]
    header = list(rows[0])
    widths = {i: max(len(header[i]), *(len(row[i]) for row in cells)) for i in shown}
    for row in [header, *cells]:
        print("  ".join(row[i].ljust(widths[i]) if i == 0 else row[i].rjust(widths[i]) for i in shown))


def value_text(knob: Knob, measured: bool) -> str:
    """A hyperparameter's value, with its interval if it was measured."""
    if knob.pending:
        return MEASURED
    within = f" {interval_text(knob.ci95)}" if knob.ci95 else ""
    return f"{knob.value:.4g}" + (f"{within}, {MEASURED}" if measured else "")


def interval_text(ci95: Sequence[float] | None) -> str:
    return f"[{ci95[0]:.3g}, {ci95[1]:.3g}]" if ci95 else "-"


def as_text(row: dict[str, Any]) -> dict[str, Any]:
    """A row of `rankrl measure`, each interval as text."""
    return {name: interval_text(value) if name.endswith("_ci95") else value for name, value in row.items()}


def batch_line(run: Run) -> str:
    """What a batch size of the run's recipe means: prompts, samples, and optimizer steps."""
    recipe, prompts = run.recipe, run.recipe.minibatch_prompts
    rule = "updates fixed" if prompts is None else f"minibatch fixed, {prompts} prompts"
    shown = f"batch size {run.batch_size}: {run.prompts} prompts x {recipe.samples_per_prompt} samples"
    return f"{shown}, {run.updates} optimizer steps per rollout ({rule})"


def optimizer_line(run: Run) -> str:
    """The optimizer of a run, what it trains, and where the evidence of the rules does not hold."""
    trained = "A and B" if run.recipe.trained == "both" else "B alone"
    apart = run.recipe.optimizer.method != "adamw" or run.recipe.trained != "both"
    note = "; the evidence of the rules is of adamw, A and B trained" if apart else ""
    return f"{run.recipe.optimizer}; trained: {trained}{note}"
