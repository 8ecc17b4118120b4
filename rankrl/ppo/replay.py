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
    """

    def __init__(self) -> None:
        super().__init__(sample_batch_size=1)

    def append(self, experience: Experience) -> None:
        self.items.append(experience.to_device(torch.device("cpu")))

    def collate_fn(self, items: list[Experience]) -> Experience:
        """The one micro-batch of `items`, as it is."""
        return items[0]
