"""Finds exact copies, near-copies and copies of evaluation items.

Everything is checked exactly; nothing is sampled. Near-copies are found by prefix filtering
(Bayardo, Ma, Srikant 2007): the shingles of all sets are sorted in one order, rarest first. Two
sets with a Jaccard index of t or more then share a shingle among the first n - ceil(t n) + 1 of
each. So an index of these prefixes proposes every near-copy, and the Jaccard index of each proposed
pair is computed from the whole sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count as counting

import numpy as np

from rankrl.data.spool import Columns, Shingles
from rankrl.data.text import mixed

CHUNK_ROWS = 20_000
BUCKET_BITS = 22
"""Shingles are counted by this many bits of their hash.

Any order of shingles gives the right result; one with the rare ones first is fast.
"""
SHORTEST_QUOTED = 10
"""Fewest shingles that an evaluation prompt needs to be recognised inside a longer text."""
EPS = 1e-9


def exact(rows: Columns, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(stands_for, contradicted), two values for each row.

    `stands_for` is the row that is kept among those with the same prompt: that of the earliest
    source, then of the smallest `order`. `contradicted` is true for a kept row if a row of the same
    prompt and source has another answer.
    """
    at = np.lexsort((order, rows.source, rows.prompt))
    prompt, source, answer = rows.prompt[at], rows.source[at], rows.answer[at]
    new = np.ones(len(at), dtype=bool)
    new[1:] = prompt[1:] != prompt[:-1]
    same_source = new.copy()
    same_source[1:] |= source[1:] != source[:-1]
    stands_for = np.empty(len(at), dtype=np.int64)
    stands_for[at] = at[np.flatnonzero(new)][np.cumsum(new) - 1]
    starts = np.flatnonzero(same_source)
    differ = np.minimum.reduceat(answer, starts) != np.maximum.reduceat(answer, starts)
    contradicted = np.zeros(len(at), dtype=bool)
    contradicted[at[starts[differ]]] = True
    return stands_for, contradicted & (stands_for == np.arange(len(at)))


def chunks(rows: np.ndarray, size: int = CHUNK_ROWS) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def frequencies(sets: Shingles, rows: np.ndarray) -> np.ndarray:
    """The number of shingles of `rows` in each bucket, [2**BUCKET_BITS]."""
    total = np.zeros(1 << BUCKET_BITS, dtype=np.int32)
    for some in chunks(rows):
        total += np.bincount(_bucket(sets.of(some)[0]), minlength=len(total)).astype(np.int32)
    return total


def _bucket(shingles: np.ndarray) -> np.ndarray:
    return (shingles >> np.uint64(64 - BUCKET_BITS)).astype(np.int64)


def prefixes(sets: Shingles, rows: np.ndarray, often: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """(prefixes of all rows, flat; for each shingle the index in `rows` of its row).

    The prefix of a row is its rarest n - ceil(share n) + 1 shingles.
    """
    flat, owner = sets.of(rows)
    by_rarity = np.lexsort((flat, often[_bucket(flat)], owner))  # owner stays as it is: sorted
    n = sets.count[rows]
    place = np.arange(len(flat)) - np.repeat(np.cumsum(n) - n, n)
    kept = place < (n - np.ceil(share * n - EPS).astype(np.int64) + 1)[owner]
    return flat[by_rarity][kept], owner[kept]


def common(sets: Shingles, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The number of shingles that the rows a[i] and b[i] have in common, for each i."""
    found = []
    for some_a, some_b in zip(chunks(a), chunks(b), strict=True):
        parts = sets.of(some_a), sets.of(some_b)
        flat, owner = (np.concatenate(pair) for pair in zip(*parts, strict=True))
        order = np.lexsort((flat, owner))
        flat, owner = flat[order], owner[order]
        twice = (flat[1:] == flat[:-1]) & (owner[1:] == owner[:-1])
        found.append(np.bincount(owner[1:][twice], minlength=len(some_a)))
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def near(
    rows: Columns, sets: Shingles, kept: np.ndarray, precedence: np.ndarray, often: np.ndarray, share: float
) -> np.ndarray:
    """The rows of `kept` to drop, because they are near-copies of a row that stays.

    Near-copies have the same numbers, the same answer, and a Jaccard index of `share` or more. Of
    two, the one that comes first in `precedence` stays. A near-copy of a dropped row is not dropped
    for that.
    """
    proposed = _proposed(rows, sets, kept, often, share)
    pairs = [some[_alike(sets, some[:, 0], some[:, 1], share)] for some in proposed]
    found = np.unique(np.concatenate([*pairs, np.zeros((0, 2), dtype=np.int64)]), axis=0)
    first = np.where((precedence[found[:, 0]] < precedence[found[:, 1]])[:, None], found, found[:, ::-1])
    by_later = np.lexsort((precedence[first[:, 0]], precedence[first[:, 1]]))
    gone: set[int] = set()
    for earlier, later in first[by_later].tolist():
        if earlier not in gone:
            gone.add(later)
    return np.array(sorted(gone), dtype=np.int64)


def _alike(sets: Shingles, a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    both = common(sets, a, b)
    return both >= share * (sets.count[a] + sets.count[b] - both) - EPS


def _proposed(rows: Columns, sets: Shingles, kept: np.ndarray, often: np.ndarray, share: float) -> Iterator[np.ndarray]:
    """Batches of pairs of rows [pairs, 2] that share a prefix shingle, their numbers and answer."""
    if not len(kept):
        return
    group = mixed(rows.numbers ^ mixed(rows.answer))
    keys, owners = [], []
    for some in chunks(kept):
        flat, owner = prefixes(sets, some, often, share)
        keys.append(mixed(flat ^ group[some][owner]))
        owners.append(some[owner].astype(np.int32))
    key, row = np.concatenate(keys), np.concatenate(owners)
    del keys, owners
    order = np.argsort(key)
    key, row = key[order], row[order]
    del order
    at = np.flatnonzero(key[1:] == key[:-1])
    for ahead in counting(1):  # pairs `ahead` positions apart under one key, until no key has so many rows
        at = at[at + ahead < len(key)]
        at = at[key[at] == key[at + ahead]]
        if not len(at):
            return
        a, b = row[at].astype(np.int64), row[at + ahead].astype(np.int64)
        sizes = np.sort(np.stack([sets.count[a], sets.count[b]]), axis=0)
        fits = (sizes[0] >= share * sizes[1] - EPS) & (a != b)
        yield np.unique(np.sort(np.stack([a[fits], b[fits]], axis=1), axis=1), axis=0)


def leaks(
    sets: Shingles, kept: np.ndarray, held_out: np.ndarray, often: np.ndarray, near: float, leak: float
) -> np.ndarray:
    """The rows of `kept` that copy a row of `held_out`.

    They have a Jaccard index of `near` or more with it, or quote a share `leak` or more of its
    shingles. Numbers and answers may differ: an evaluation item with other numbers must not be
    trained on either.
    """
    flat, owner = prefixes(sets, held_out, often, min(near, leak))
    order = np.argsort(flat)
    keys, targets = flat[order], held_out[owner[order]]
    gone = []
    for some in chunks(kept):
        flat, owner = sets.of(some)
        first, last = np.searchsorted(keys, flat, "left"), np.searchsorted(keys, flat, "right")
        hits = np.flatnonzero(last > first)
        times = (last - first)[hits]
        within = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
        ours, theirs = some[np.repeat(owner[hits], times)], targets[np.repeat(first[hits], times) + within]
        pairs = np.unique(np.stack([ours, theirs], axis=1), axis=0)
        a, b = pairs.T
        both, size = common(sets, a, b), sets.count[b]
        quoted = (both >= leak * size - EPS) & (size >= SHORTEST_QUOTED)
        alike = both >= near * (sets.count[a] + size - both) - EPS
        gone.append(a[quoted | alike])
    return np.unique(np.concatenate([*gone, np.zeros(0, dtype=np.int64)]))
