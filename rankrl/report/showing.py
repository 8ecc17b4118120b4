"""What `rankrl samples` prints: responses as a terminal can show them, whatever is in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.text import Text

from rankrl.recipe.require import require
from rankrl.report.samples import Moved, evaluated_steps, listed, moved_items, read_evaluations, read_training
from rankrl.report.visible import visible

VERDICTS = ("correct", "wrong", "unparsable", "timeout")
WHOLE = 10**9
"""More characters than a text has."""
KEPT = (
    "keep_responses: first keeps those of step 0 and the last one, all keeps every one, none none; runs and cached bases of "
    "an earlier rankrl have none"
)
Questions = dict[str, tuple[str, str]]
"""Item id -> (prompt, gold)."""


@dataclass(frozen=True)
class Asked:
    """What is to be shown of a run."""

    step: int | None = None
    """None: the last one."""
    verdict: str | None = None
    source: str | None = None
    training: bool = False
    """Training samples, not those of an evaluation."""
    moved: str | None = None
    """`gained` or `lost`: items instead of samples."""
    limit: int = 20
    """Largest number of samples or items."""

    def check(self) -> None:
        """Raises ValueError, one line, for what cannot be shown of any run."""
        verdict, step = self.verdict, self.step
        require(verdict is None or verdict in VERDICTS, "--verdict", verdict, ", ".join(VERDICTS))
        require(step is None or step >= 0, "--step", step, "a PPO step: 0 is the base")
        require(self.limit >= 1, "--limit", self.limit, "at least 1")
        given = {"--step": step, "--verdict": verdict, "--training": self.training or None}
        for option, value in given.items():
            both = "it compares all samples of step 0 with those of the last evaluation"
            require(not self.moved or value is None, option, value, f"nothing with --{self.moved}", both)


def shown(run: Path, asked: Asked, questions: Callable[[], Questions]) -> Iterator[Text]:
    """Blocks of text, one for each sample or item, and a last line that says how many there are.

    `questions` is called where prompts are not recorded with the samples. Raises ValueError, one
    line, if there is nothing to show.
    """
    if asked.moved:
        yield from _items(run, asked, questions)
        return
    samples, note = _training(run, asked.step) if asked.training else (_evaluated(run, asked.step), "")
    fitting = _fitting(samples, asked)
    known = {} if asked.training or not fitting else questions()
    for sample in fitting[: asked.limit]:
        yield _sample(sample, known)
    if note:
        yield Text(f"note: {visible(note)}", "yellow")
    what = f"{asked.verdict} sample" if asked.verdict else "sample"
    yield _count(len(fitting), asked, what, "", f"step {samples[0]['step']} has {len(samples)} with a text")


def _count(found: int, asked: Asked, what: str, done: str, of: str) -> Text:
    """The last line: how many are shown, of how many."""
    number = f"{found}" if found <= asked.limit else f"{asked.limit} of {found}"
    more = f"; --limit {found} shows all" if found > asked.limit else ""
    source = f" of {asked.source}" if asked.source else ""
    return Text(visible(f"{number} {what}{'s' * (found != 1)}{source}{done} ({of}{more})"), "bold")


def _evaluated(run: Path, step: int | None) -> list[dict[str, Any]]:
    """The evaluation samples of a step that have a text."""
    steps = evaluated_steps(run)
    require(bool(steps), "RUN_DIR", str(run), "a run that was evaluated", "its evals.parquet has no rows")
    at = steps[-1] if step is None else step
    seen = f"an evaluated one: {listed(steps)}"
    require(at in steps, "--step", step, seen, "--training shows training samples of other steps")
    rows = read_evaluations(run, [at])
    kept = rows[rows["response"].notna()]
    require(len(kept) > 0, "RUN_DIR", str(run), f"a run that kept responses of step {at}", KEPT)
    return kept.to_dict("records")


def _training(run: Path, step: int | None) -> tuple[list[dict[str, Any]], str]:
    """The training samples of a step, and a note on damaged lines or ""."""
    samples, note = read_training(run)
    by_step = {at: list(group) for at, group in groupby(samples, key=lambda sample: sample["step"])}
    require(bool(by_step), "RUN_DIR", str(run), "a run with training samples", note or "it has made no step yet")
    at = max(by_step) if step is None else step
    require(at in by_step, "--step", step, f"a step with training samples: {listed(sorted(by_step))}")
    return by_step[at], note


def _fitting(samples: list[dict[str, Any]], asked: Asked) -> list[dict[str, Any]]:
    _check_source({sample["source"] for sample in samples}, asked)
    wanted = {"verdict": asked.verdict, "source": asked.source}
    return [sample for sample in samples if all(word in (None, sample[key]) for key, word in wanted.items())]


def _check_source(sources: set[str], asked: Asked) -> None:
    require(asked.source is None or asked.source in sources, "--source", asked.source, listed(sorted(sources)))


def _sample(sample: dict[str, Any], questions: Questions) -> Text:
    prompt, gold = questions.get(sample["item_id"], (sample.get("prompt"), sample.get("gold")))
    words = [sample["item_id"], sample["source"], f"step {sample['step']}", f"sample {sample['sample']}"]
    if "reward" in sample:
        words += [f"reward {sample['reward']:.3f}", f"advantage {sample['advantage']:+.3f}"]
    parts = [("prompt", prompt), ("gold", gold), ("response", sample["response"])]
    return _block(words, sample["verdict"], parts)


def _items(run: Path, asked: Asked, questions: Callable[[], Questions]) -> Iterator[Text]:
    """Blocks of items that were gained or lost, and a last line that counts them."""
    rows = read_evaluations(run, [0, *evaluated_steps(run)[-1:]])
    _check_source(set(rows["source"]), asked)
    moves = moved_items(rows if asked.source is None else rows[rows["source"] == asked.source], asked.limit, WHOLE)
    gained = asked.moved == "gained"
    items, found = (moves.gained, moves.n_gained) if gained else (moves.lost, moves.n_lost)
    known = questions() if items else {}
    for item in items:
        yield _item(item, moves.step, known)
    if any(item.before.text is None or item.after.text is None for item in items):
        yield Text(f"note: of step 0 or {moves.step} no response was kept; {KEPT}", "yellow")
    solved, other = (moves.step, 0) if gained else (0, moves.step)
    rule = f"at least half of the samples correct at step {solved}, fewer at step {other}"
    yield _count(found, asked, "item", f" {asked.moved}", f"of {moves.items}: {rule}")


def _item(item: Moved, last: int, questions: Questions) -> Text:
    prompt, gold = questions.get(item.item_id, (None, None))
    sides = {0: item.before, last: item.after}
    words = [item.item_id, item.source, *(f"step {at}: {side.correct}/{side.samples}" for at, side in sides.items())]
    texts = [(f"step {at}, {side.verdict}", side.text) for at, side in sides.items()]
    return _block(words, "", [("prompt", prompt), ("gold", gold), *texts])


def _block(words: list[str], verdict: str, parts: list[tuple[str, str | None]]) -> Text:
    """A head line, then a labelled text for each part that is known, with an empty line after."""
    block = Text.assemble((visible("  ".join(words)), "bold"))
    if verdict:
        block.append(f"  {visible(verdict)}", "bold green" if verdict == "correct" else "bold red")
    known = [(visible(label), visible(text, "\n\t")) for label, text in parts if text is not None]
    indent = max((len(label) for label, _ in known), default=0) + 2
    for label, text in known:
        block.append(f"\n{label:<{indent}}", "cyan").append(text.rstrip("\n").replace("\n", "\n" + " " * indent))
    return block.append("\n")
