"""The section `data.mixture` of a scale, from which `rankrl data` builds its data.

It says which sources are used, how much of each, and what counts as a copy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from typing import Optional

from rankrl.recipe.require import require


@dataclass(frozen=True)
class Origin:
    """Where a source is read from, if not from the hub at its newest commit."""

    path: Optional[str] = None
    """Local copy: a snapshot of the hub repository, or a JSONL, JSON, Parquet or CSV file, or a
    directory of such files."""
    revision: str = "main"
    """Branch, tag or commit on the hub. The commit that it resolves to is written into the card."""
    rows: Optional[int] = None
    """Most rows to read, in the order of the files; null reads all."""


@dataclass(frozen=True)
class Mixture:
    """Sources by name (see docs/data.md).

    An evaluation source is never trained on, unless it is also named under `train`. Then only the
    items that are drawn for evaluation, and near-copies of them, are kept out of training.
    """

    train: dict[str, float] = field(default_factory=dict)
    """Source -> weight in training. If a source has too few items, the others share the rest by
    their weights."""
    evaluation: dict[str, int] = field(default_factory=dict)
    """Source -> number of items for evaluation; the numbers sum to `eval_items`."""
    origin: dict[str, Origin] = field(default_factory=dict)
    """Source -> where it is read from."""
    seed: int = 0
    """Seed by which items are drawn."""
    near: float = 0.7
    """Two prompts with the same numbers and the same answer are near-copies if they have at least
    this share of their shingles in common (Jaccard)."""
    leak: float = 0.8
    """A training prompt that holds at least this share of the shingles of an evaluation prompt is a
    copy of it."""

    @property
    def sources(self) -> list[str]:
        """Names of the sources in order of precedence.

        Of two copies, the one from the earlier source stays.
        """
        held_out = [name for name in self.evaluation if name not in self.train]
        return held_out + list(self.train)

    def __post_init__(self) -> None:
        require(len(self.train) > 0, "data.mixture.train", {}, "source: weight, at least one")
        require(len(self.evaluation) > 0, "data.mixture.evaluation", {}, "source: items, at least one")
        for name, weight in self.train.items():
            require(isfinite(weight) and weight > 0, f"data.mixture.train.{name}", weight, "a weight above 0")
        for name, items in self.evaluation.items():
            require(items >= 1, f"data.mixture.evaluation.{name}", items, "an integer of at least 1")
        for name, origin in self.origin.items():
            known = name in self.train or name in self.evaluation
            require(known, f"data.mixture.origin.{name}", "a source that is not used", ", ".join(self.sources))
            rows = origin.rows
            require(rows is None or rows >= 1, f"data.mixture.origin.{name}.rows", rows, "an integer of at least 1")
        require(self.seed >= 0, "data.mixture.seed", self.seed, "an integer of at least 0")
        for key in ("near", "leak"):
            share = getattr(self, key)
            require(0.5 <= share <= 1, f"data.mixture.{key}", share, "0.5 to 1")
