"""Reads the responses that a run keeps, and finds the items that it gained and lost.

Texts are a model's, and files may be damaged or come from anywhere: nothing here trusts them. What
is wrong is a ValueError of one line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankrl.recipe.require import require
from rankrl.recipe.run_id import parse_run_id
from rankrl.report.eval_rows import MOST_ROWS
from rankrl.report.model_text import shortened
from rankrl.report.read import json_lines
from rankrl.report.statistics.evaluation import UNREADABLE
from rankrl.report.visible import visible

if TYPE_CHECKING:
    import pandas as pd

SOLVED = 0.5
"""Share of an item's samples from which on it counts as solved."""
TYPES = {"step": int, "item_id": str, "source": str, "sample": int, "correct": bool, "verdict": str}
"""Columns of evals.parquet that are needed here, beside `response`."""
TRAINING = {"step": int, "sample": int, "reward": float, "advantage": float} | dict.fromkeys(
    ("item_id", "source", "prompt", "gold", "response", "verdict"), str
)
"""Keys of a line of rollouts.jsonl."""


@dataclass(frozen=True)
class Side:
    """The samples of an item at one step, with a text and its verdict if one is kept."""

    correct: int
    samples: int
    verdict: str | None = None
    text: str | None = None

    @property
    def share(self) -> float:
        """Share of correct samples."""
        return self.correct / self.samples


@dataclass(frozen=True)
class Moved:
    """An item that the base solves and the trained adapter does not, or the reverse."""

    item_id: str
    source: str
    before: Side
    after: Side


@dataclass(frozen=True)
class Movement:
    """Items gained and lost against the base, first those whose share changed most."""

    step: int
    """The last evaluated step, which is compared with step 0."""
    items: int
    gained: list[Moved]
    """At most as many as were asked for, out of `n_gained`."""
    lost: list[Moved]
    n_gained: int
    n_lost: int


def evaluated_steps(run: Path) -> list[int]:
    """The steps with rows in a run's evals.parquet, in order."""
    return sorted({int(step) for step in _columns(run, ["step"])["step"].unique()})


def read_evaluations(run: Path, steps: Sequence[int]) -> pd.DataFrame:
    """The rows of a run's evals.parquet at some steps, with the columns of TYPES and `response`.

    `response` is None where no text is kept. Only these columns are read.
    """
    return _columns(run, [*TYPES], steps)


def _columns(run: Path, names: list[str], steps: Sequence[int] | None = None) -> pd.DataFrame:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = _file(run, "evals.parquet")
    try:
        schema, rows = pq.read_schema(path), pq.read_metadata(path).num_rows
        if rows > MOST_ROWS:
            raise ValueError(f"more than {MOST_ROWS} rows")
        texts = [name for name in ("response",) if steps is not None and name in schema.names]
        wanted = None if steps is None else [("step", "in", list(steps))]
        table = pq.read_table(path, columns=names + texts, filters=wanted, partitioning=None)
        frame = table.to_pandas().astype({name: TYPES[name] for name in names})
    except (*UNREADABLE, ArithmeticError, pa.ArrowException) as error:
        said = visible(" ".join(str(error).split())[:120])
        raise ValueError(
            f"RUN_DIR: {path} is damaged ({said}); allowed: the evals.parquet of a run (restore it from a copy; the other "
            "files of the run do not need it)"
        ) from error
    kept = [text if isinstance(text, str) else None for text in frame["response"]] if texts else [None] * len(frame)
    return frame.assign(response=pd.Series(kept, index=frame.index, dtype=object))


def _file(run: Path, name: str) -> Path:
    """A file of a run directory. Raises ValueError, with the likely reason, if it is not there."""
    if (run / name).is_file():
        return run / name
    runs = sorted(path.name for path in run.iterdir() if parse_run_id(path.name)) if run.is_dir() else []
    why = f"it holds runs, for instance {runs[0]}" if runs else "no file of that name is in it"
    why = why if run.is_dir() else "it is no directory" if run.exists() else "it does not exist"
    raise ValueError(f"RUN_DIR: got {str(run)!r}, allowed: the directory of a run, with {name} ({why})")


def movement(run: Path, most: int = 20, longest: int = 2000) -> Movement:
    """The items that a run gained and lost, read from its evals.parquet."""
    steps = evaluated_steps(run)
    return moved_items(read_evaluations(run, [0, *steps[-1:]]), most, longest)


def moved_items(rows: pd.DataFrame, most: int = 20, longest: int = 2000) -> Movement:
    """The items that are solved at the last step and not at step 0, and the reverse.

    An item is solved if at least SOLVED of its samples are correct. `rows` are those of
    `read_evaluations`; `most` bounds the items each way, `longest` the characters of a text. Raises
    ValueError if there is nothing to compare.
    """
    steps = sorted(set(rows["step"]))
    two = len(steps) > 1 and steps[0] == 0
    require(two, "RUN_DIR", f"evaluations at {listed(steps)}", "a run evaluated at step 0 and later", "it goes on")
    last = int(steps[-1])
    shares = rows.groupby(["item_id", "step"])["correct"].mean().unstack()[[0, last]].dropna()
    solved, change = shares >= SOLVED, shares[last] - shares[0]
    gained, lost = change[solved[last] & ~solved[0]], change[solved[0] & ~solved[last]]
    ups, downs = (_moved_most(rows, moved, last, most, longest) for moved in (gained, lost))
    return Movement(last, len(shares), ups, downs, len(gained), len(lost))


def _moved_most(rows: pd.DataFrame, change: pd.Series, last: int, most: int, longest: int) -> list[Moved]:
    """The `most` items whose share of correct samples changed most; `change` is by item."""
    chosen = sorted(change.index, key=lambda item: (-abs(change[item]), item))[:most]
    by_item = dict(iter(rows[rows["item_id"].isin(chosen)].groupby("item_id")))
    return [_moved(by_item[item], last, bool(change[item] > 0), longest) for item in chosen]


def _moved(rows: pd.DataFrame, last: int, gained: bool, longest: int) -> Moved:
    """One item; `rows` are its samples. Its texts show the change, where such samples are kept."""
    before, after = (_side(rows[rows["step"] == at], (at == last) == gained, longest) for at in (0, last))
    first = rows.iloc[0]
    return Moved(first["item_id"], first["source"], before, after)


def _side(rows: pd.DataFrame, correct: bool, longest: int) -> Side:
    """An item at one step, with the text of a sample that is `correct` or not, else of any."""
    counts = int(rows["correct"].sum()), len(rows)
    kept = rows[rows["response"].notna()]
    fitting = kept[kept["correct"] == correct]
    for row in (fitting if len(fitting) else kept).itertuples():
        return Side(*counts, row.verdict, shortened(row.response, longest))
    return Side(*counts)


def read_training(run: Path) -> tuple[list[dict[str, Any]], str]:
    """(training samples in rollouts.jsonl, a note on lines that are damaged or "").

    A sample has the keys of TRAINING. What follows a damaged line is not read.
    """
    path = _file(run, "rollouts.jsonl")
    samples: list[dict[str, Any]] = []
    for line in json_lines(path):
        try:
            samples.append({key: kind(line[key]) for key, kind in TRAINING.items()})
        except (KeyError, TypeError, ValueError, OverflowError):
            break
    lines = path.read_bytes().count(b"\n")
    return samples, f"{path}: line {len(samples) + 1} of {lines} is damaged" if len(samples) < lines else ""


def listed(values: Sequence[Any], most: int = 12) -> str:
    """Values in words, with those in the middle left out where they are many."""
    shown = list(values) if len(values) <= most else [*values[: most - 1], "...", values[-1]]
    return ", ".join(map(str, shown)) or "none"
