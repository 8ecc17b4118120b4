"""The replay buffer: the rollout of one step as minibatches.

It is upstream's buffer with rows of one large batch as items, instead of single samples.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.replay_buffer import NaiveReplayBuffer
from torch.nn.functional import pad


class ReplayBuffer(NaiveReplayBuffer):
    """Upstream's buffer, except that an item is a row number.

    Upstream takes batches apart into samples, cuts their padding, and pads and stacks them again.
    """

    def __init__(self, micro_batch: int):
        super().__init__(micro_batch)
        self.parts: list[Experience] = []

    def append(self, experience: Experience) -> None:
        self.parts.append(experience.to_device(torch.device("cpu")))
        self.items.extend(range(len(self.items), len(self.items) + len(experience.sequences)))

    def clear(self) -> None:
        super().clear()
        self.parts.clear()

    def collate_fn(self, rows: list[int]) -> Experience:
        """The minibatch of the given rows, as wide as its longest sequence."""
        if len(self.parts) > 1:
            self.parts = [joined(self.parts)]
        return chosen(self.parts[0], rows)


def joined(parts: list[Experience]) -> Experience:
    """One batch with all rows of `parts`, padded on the right to the longest."""

    def join(values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            return {key: join([value[key] for value in values]) for key in values[0]}
        if isinstance(values[0], list):
            return [row for value in values for row in value]
        if values[0] is None:
            return None
        width = max(value.shape[-1] for value in values)
        return torch.cat([pad(v, (0, width - v.shape[-1])) if v.dim() > 1 else v for v in values])

    return Experience(**{f.name: join([getattr(part, f.name) for part in parts]) for f in fields(Experience)})


def chosen(batch: Experience, rows: list[int]) -> Experience:
    """The given rows of a batch, without the columns in which all of them are padding."""
    padding = batch.attention_mask.shape[1] - int(batch.attention_mask[rows].sum(1).max())

    def choose(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: choose(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [value[row] for row in rows] if value else []
        if value is None:
            return None
        return value[rows, : value.shape[1] - padding] if value.dim() > 1 else value[rows]

    return Experience(**{f.name: choose(getattr(batch, f.name)) for f in fields(Experience)})
