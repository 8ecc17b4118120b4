"""The items that runs gained and lost against the base, as rows of a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rankrl.report.page.columns import ARM, RANK, Column
from rankrl.report.page.table import Row
from rankrl.report.read import SweepRecords
from rankrl.report.samples import Moved, movement
from rankrl.report.statistics.cells import by_key

MOST_RUNS = 6
MOST_ITEMS = 3
"""Items each way of a run. `rankrl samples` shows all."""
LONGEST = 300
MOVED = {
    "run_id": Column("run", str, False),
    "arm": ARM,
    "rank": RANK,
    "way": Column("the run", str, False),
    "item_id": Column("item", str, False),
    "source": Column("source", str, False),
    "before": Column("correct at the base", str),
    "after": Column("correct at the end", str),
    "text_before": Column("answer of the base", str, False),
    "text_after": Column("answer at the end", str, False),
}
NOTE = (
    "An item is gained if at least half of its samples are correct at the end and fewer were at the base; lost is the reverse. "
    f"Of the first finished run of each arm and rank (at most {MOST_RUNS}), the {MOST_ITEMS} items each way that changed most. "
    "With few samples an item may cross one half by chance. rankrl samples RUN_DIR shows all, and the prompts."
)


def moved(sweep: SweepRecords) -> list[Row]:
    """Rows of the items that a few runs gained and lost; [] where no run keeps samples."""
    finished = [run for run in sweep.counted if run["status"] == "finished"]
    firsts = [runs[0] for runs in by_key(finished, ("arm", "rank")).values()]
    spread = firsts[:: max(1, -(-len(firsts) // MOST_RUNS))]
    return [row for run in spread for row in _of_run(sweep.directory / run["run_id"], run)]


def _of_run(directory: Path, run: dict[str, Any]) -> list[Row]:
    try:
        found = movement(directory, MOST_ITEMS, LONGEST)
    except ValueError:  # a missing or damaged evals.parquet stands in the problems
        return []
    same = {key: run[key] for key in ("run_id", "arm", "rank")}
    ways = [("gained", one) for one in found.gained] + [("lost", one) for one in found.lost]
    return [same | {"way": way, **_row(one)} for way, one in ways]


def _row(one: Moved) -> Row:
    return {
        "item_id": one.item_id,
        "source": one.source,
        "before": f"{one.before.correct} of {one.before.samples}",
        "after": f"{one.after.correct} of {one.after.samples}",
        "text_before": one.before.text or "",
        "text_after": one.after.text or "",
    }
