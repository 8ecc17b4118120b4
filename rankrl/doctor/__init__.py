"""Checks whether this machine can run a scale, and says what to do if not.

Loads no weights, starts no Ray, downloads nothing.
"""

from __future__ import annotations

from math import lcm
from pathlib import Path

from rankrl.recipe.advantage_section import Advantage
from rankrl.recipe.load import Experiment
from rankrl.recipe.plan import Run, largest_rank, plan
from rankrl.recipe.scale import Scale
from rankrl.recipe.schema import Recipe

PPO = Advantage()


def usual_run(scale: Scale, advantage: Advantage = PPO) -> Run:
    """A typical run for estimates: the reference rank, about 16 prompts x 8 samples, 100 steps.

    Raises ValueError as `plan` does.
    """
    workers = lcm(scale.placement.policy_workers, scale.placement.value_workers)
    prompts = min(-(-16 // workers), max(1, scale.data.train_items // workers))  # of each worker
    rank = min(32, largest_rank(scale))
    recipe = Recipe(ranks=(rank,), batch_sizes=(workers * prompts,), seeds=(0,), steps=100, advantage=advantage)
    return plan(Experiment("doctor", {"": recipe}, scale))[0]


def _build_data(scale: Scale) -> str:
    """The command or settings that give a scale its data."""
    if scale.data.mixture is None:
        return "correct the rows or settings (docs/data.md), or scale.data.train=FILE scale.data.evaluation=FILE"
    return f"rankrl data {scale.name} --to {Path(scale.data.train).parent}"


def doctor(scale: Scale, advantage: Advantage, runs: Path) -> int:
    """Prints a line for each check as it is done, then the estimates.

    Returns the exit code: 1 if a check fails, else 0.
    """
    from rankrl.doctor import assets, machine
    from rankrl.doctor.check import Check, one_line, say
    from rankrl.recipe.estimate import estimates, legend, likely_parallel_runs, table

    scale = scale if advantage.critic else scale.without_critic
    correct = "correct the scale, or scale.KEY=VALUE"
    fine = [
        say("packages", machine.INSTALL, machine.packages),
        say("accelerator", machine.INSTALL, machine.accelerator, scale),
        say("precision", machine.INSTALL, machine.precision, scale),
        say("attention", machine.INSTALL, machine.attention, scale),
        say("weights", "fetch the model anew", assets.weights, scale.model),
        say("model", correct, assets.model, scale.model),
        say("data", _build_data(scale), assets.data, scale),
        say("shm", "mount /dev/shm", machine.shared_memory),
        say("network", "free the port, or start the loopback interface", machine.network, scale),
        say("Ray", "unset it", machine.ray_environment),
        say("Slurm", "ask whoever runs the cluster", machine.slurm, scale),
    ]
    try:
        run = usual_run(scale, advantage)
    except ValueError as error:
        print(Check("FAIL", "plan", one_line(error), correct))
        return 1
    fine += [
        say("DeepSpeed", "correct the file, or scale.deepspeed=ds_configs/zero3.json", assets.deepspeed, run),
        say("memory", correct, machine.memory, run),
        say("disk", "--runs DIR elsewhere", machine.disk, run, runs),
    ]
    packed = likely_parallel_runs([run])
    shape = (
        f"rank {run.rank}, {run.prompts} prompts x {run.recipe.samples_per_prompt} samples, {run.recipe.steps} steps"
    )
    print(f"\na run of {shape}, {packed} at once:")
    print(table(estimates([run] * packed, packed)))
    print(legend(run))
    return int(not all(fine))
