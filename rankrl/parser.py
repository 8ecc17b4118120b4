"""The command line's words and options; rankrl/cli.py has what each command does."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from os.path import expanduser


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; the name of the chosen one is in `command`."""
    top = argparse.ArgumentParser(prog="rankrl", description="Tiny LoRA adapters, reliable in reasoning RL.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, says: str, recipe: bool = True, runs: bool = False) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=says, description=says)
        if recipe:
            sub.add_argument(
                "recipe",
                metavar="RECIPE",
                type=expanduser,
                help="recipe file, or name of a shipped one such as low_rank",
            )
        if runs:
            sub.add_argument(
                "--runs",
                metavar="DIR",
                type=expanduser,
                default="runs",
                help="where run directories live (default: runs)",
            )
        return sub

    plans = command("plan", "list every run with its derived hyperparameters")
    plans.add_argument("--json", action="store_true", help="print JSON")
    command("explain", "for each rank: knob, value, formula, reference point, source, evidence", runs=True)
    says = "KL of the first step, gradient norm, captured energy and signal-to-noise by rank, without training"
    measure = command("measure", says, runs=True)
    measure.add_argument("--json", action="store_true", help="print JSON")
    adapter = command("adapter", "where the rank goes and what the adapter weighs, without training")
    adapter.add_argument("--rank", type=int, required=True, metavar="R", help="the dial")
    adapter.add_argument(
        "--importance", metavar="FILE", type=expanduser, help="importance.json, for greedy and proportional"
    )
    adapter.add_argument("--all", action="store_true", help="print every module")
    adapter.add_argument("--to", metavar="DIR", type=expanduser, help="write allocation.json and draw the map there")
    command("sweep", "run everything here, resume what broke, report", runs=True)
    one = command("run", "one run of a recipe", runs=True)
    one.add_argument("run_id", metavar="RUN_ID", help="for instance r1-b16-s0; several, with commas, share services")
    command("tasks", "deal the runs that are left out to Slurm tasks (for slurm/sweep.sh)", runs=True)
    attempt = command("outcome", "what an attempt of a task came to (for slurm/sweep.sh)", recipe=False)
    for name, says in (
        ("root", "a sweep's directory"),
        ("run_ids", "with commas"),
        ("begun", "file touched at its start"),
    ):
        attempt.add_argument(name, metavar=name.upper(), help=says)
    _finding_out(command)
    _reading(command)
    after = command("next", "which cells should get the next seeds, and whether to stop", recipe=False)
    after.add_argument("dir", metavar="DIR", type=expanduser, help="runs directory, or the directory of one sweep")
    after.add_argument("--budget", type=int, required=True, metavar="N", help="runs to give out")
    after.add_argument("--json", action="store_true", help="print JSON")
    exported = command("export", "copy a run's adapter for PEFT and vLLM, with a model card", recipe=False)
    exported.add_argument("run_dir", metavar="RUN_DIR", type=expanduser, help="directory of a finished or diverged run")
    exported.add_argument("--to", metavar="DIR", type=expanduser, required=True, help="new directory")
    exported.add_argument("--average", action="store_true", help="its average of adapters, not the last one")
    _setting_up(command)
    for name in ("plan", "explain", "measure", "adapter", "sweep", "run", "tasks"):
        commands.choices[name].add_argument(
            "overrides", nargs="*", metavar="key=value", help="overrides of the recipe, and scale=NAME"
        )
    return top


def _finding_out(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the commands that say where runs stand and what a model scores."""
    status = command("status", "where every run stands", recipe=False)
    status.add_argument("dir", metavar="DIR", type=expanduser, help="runs directory, or the directory of one sweep")
    status.add_argument("--json", action="store_true", help="print JSON")
    says = "pass@1 and pass@k of a base, a model, an adapter or a finished run, with intervals over items"
    evaluation = command("eval", says, recipe=False, runs=True)
    says = (
        "base (the scale's), a model's directory or hub id, an adapter's directory, or the directory of a finished run"
    )
    evaluation.add_argument("model", metavar="MODEL|RUN_DIR", type=expanduser, help=says)
    evaluation.add_argument(
        "overrides", nargs="*", metavar="SCALE", help="scale name or file (default: nano), and scale.KEY=VALUE"
    )
    evaluation.add_argument("--json", action="store_true", help="print JSON")


def _setting_up(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the commands that prepare a directory, data, a machine or a scale."""
    began = command("init", "copy the shipped recipes, slurm/ and ds_configs/ to start from", recipe=False)
    began.add_argument("dir", metavar="DIR", type=expanduser, help="directory that has none of them yet")
    built = command("data", "build the training and evaluation mixture of a scale", recipe=False)
    built.add_argument("overrides", nargs="+", metavar="SCALE", help="scale name or file, and scale.KEY=VALUE")
    built.add_argument("--to", metavar="DIR", type=expanduser, required=True, help="new directory")
    checked = command("doctor", "check this machine for a scale, and say what to do", recipe=False, runs=True)
    what = "scale name or file (default: nano), scale.KEY=VALUE, and advantage.method=METHOD"
    checked.add_argument("overrides", nargs="*", metavar="SCALE", help=what)
    _scale(command)


def _scale(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command that writes a scale."""
    scale = command("scale", "write a scale file for any causal language model, from its config.json", recipe=False)
    scale.add_argument("model", metavar="MODEL", type=expanduser, help="directory, or hub id in the hub's cache")
    scale.add_argument("--to", metavar="FILE", type=expanduser, required=True, help="new YAML file")
    scale.add_argument("--train", default="gsm_symbolic", help="file or generated task (default: gsm_symbolic)")
    scale.add_argument("--evaluation", help="file, if --train is one")
    scale.add_argument("--gpus", type=int, metavar="N", help="GPUs of the node, 0 for its CPU (default: nvidia-smi's)")
    scale.add_argument("--gpu-memory", type=float, default=80, metavar="GB", help="of each, with --gpus (default 80)")


def _reading(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the commands that read what runs have left."""
    report = command("report", "statistics, figures and page from run directories", recipe=False)
    report.add_argument("dir", metavar="DIR", type=expanduser, help="runs directory, or the directory of one sweep")
    report.add_argument("--margin", type=float, default=0.01, metavar="GAIN", help="loss that is none (default 0.01)")
    report.add_argument("--reference", type=int, default=32, metavar="RANK", help="rank to compare with (default 32)")
    report.add_argument("--risk", type=float, default=0.1, metavar="SHARE", help="reliable is below (default 0.1)")
    report.add_argument(
        "--against", metavar="DIR2", type=expanduser, help="only compare with another sweep, run by run"
    )
    report.add_argument("--tables-only", action="store_true", help="tables, claims and words, no figures and no page")
    says = "KL per step of finished runs, for trust_region.target=reference"
    curve = command("curve", says, recipe=False)
    curve.add_argument("dir", metavar="DIR", type=expanduser, help="directory of one sweep")
    curve.add_argument("--cell", metavar="CELL", help="for instance r32-b16 (default: the only one of rank 32)")
    curve.add_argument("--to", metavar="FILE", type=expanduser, help="write it there, as JSON")
    read = command("samples", "read responses, and which items a run gained and lost", recipe=False)
    read.add_argument("run_dir", metavar="RUN_DIR", type=expanduser, help="directory of a run, finished or not")
    read.add_argument("--step", type=int, metavar="N", help="of this step (default: the last; 0 is the base)")
    read.add_argument("--verdict", metavar="WORD", help="only correct, wrong, unparsable or timeout")
    read.add_argument("--source", metavar="NAME", help="only items of this source")
    read.add_argument("--training", action="store_true", help="samples of training, not of an evaluation")
    read.add_argument("--gained", action="store_true", help="items solved at the end and not at step 0, both texts")
    read.add_argument("--lost", action="store_true", help="items solved at step 0 and not at the end, both texts")
    read.add_argument("--limit", type=int, default=20, metavar="N", help="show at most N (default: 20)")
