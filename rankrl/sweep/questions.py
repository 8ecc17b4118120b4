"""Prompts and golds of a run's evaluation items, which its records do not repeat."""

from __future__ import annotations

import sys
from pathlib import Path

from rankrl.data.items import revision
from rankrl.data.loading import load_items
from rankrl.recipe.load import build
from rankrl.recipe.scale import Scale
from rankrl.report.resolved import data_revision, newer, resolved_sections, section


def questions(run: Path) -> dict[str, tuple[str, str]]:
    """Item id -> (prompt, gold) of the items that a run was evaluated on.

    {}, with a note on stderr, if they are not here, or others are.
    """
    try:
        sections = resolved_sections(run / "run.yaml")
        if unreadable := newer(sections):
            raise ValueError(unreadable)
        items = load_items(build(Scale, section("scale", sections["scale"]).tree).data)[1]
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = (
            "run.yaml is missing or damaged"
            if isinstance(error, KeyError | TypeError)
            else " ".join(str(error).split())
        )
        print(f"note: without prompts and golds: {why}", file=sys.stderr)
        return {}
    was, now = data_revision(sections).get("evaluation"), revision(items)
    if was != now:
        print(
            f"note: without prompts and golds: the run's items are of revision {was!r}, those here of {now!r}",
            file=sys.stderr,
        )
        return {}
    return {item.item_id: (item.prompt, item.answer) for item in items}
