"""Items (questions with exact answers), the order in which a run sees them, and sampling seeds."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Item:
    """One question. The model continues `prompt`; `answer` is the exact gold answer."""

    item_id: str
    source: str
    prompt: str
    answer: str


def revision(items: list[Item]) -> str:
    """A short hash of the items' content and order, for a run's record."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(f"{item.item_id}\0{item.prompt}\0{item.answer}\0".encode())
    return digest.hexdigest()[:12]


def step_indices(seed: int, step: int, batch_size: int, items: int) -> list[int]:
    """The indices [batch_size] of the items of PPO step `step` (from 0), out of `items`.

    They come from a stream of epochs, each a permutation drawn from (seed, epoch). There is no
    state: the step alone gives the position. All batch sizes of a seed read the same stream.
    """
    first, last = step * batch_size, (step + 1) * batch_size
    epochs = range(first // items, (last - 1) // items + 1)
    stream = np.concatenate([np.random.default_rng([seed, epoch]).permutation(items) for epoch in epochs])
    start = first - epochs[0] * items
    return stream[start : start + batch_size].tolist()


def request_seed(*parts: int | str) -> int:
    """A sampling seed of 31 bits from, for instance, (run seed, step, item, sample)."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "big") >> 1
