"""The replay buffer: the rollout of one step as the micro-batches that it was made in."""

from __future__ import annotations

import torch
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.replay_buffer import NaiveReplayBuffer


class ReplayBuffer(NaiveReplayBuffer):
    """Upstream's buffer, except that an item is a micro-batch instead of a sample.

    The log-probabilities and values before the update come from the same micro-batches. So the
    ratio of the first optimizer step is 1 to the last bit: what rounding makes of the company that
    a sample keeps is the same on both sides. Upstream deals samples anew.

    Upstream's loader shuffles the micro-batches. With `in_order` they come as they were appended,
    whichever is asked for: those of tokens have different numbers of samples, and only those that
    were made for an optimizer step have as many together as it is to have.
    """

    def __init__(self, in_order: bool = False) -> None:
        super().__init__(sample_batch_size=1)
        self.in_order, self.given = in_order, 0

    def append(self, experience: Experience) -> None:
        self.items.append(experience.to_device(torch.device("cpu")))

    def __getitem__(self, index: int) -> Experience:
        if not self.in_order:
            return self.items[index]
        self.given += 1
        return self.items[(self.given - 1) % len(self.items)]

    def clear(self) -> None:
        super().clear()
        self.given = 0

    def collate_fn(self, items: list[Experience]) -> Experience:
        """The one micro-batch of `items`, as it is."""
        return items[0]
