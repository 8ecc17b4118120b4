"""pass@k: the unbiased estimate of Chen et al. (2107.03374), by source."""

from __future__ import annotations

from math import comb, sqrt
from statistics import mean, stdev


def pass_at_k(n: int, correct: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): the chance that at least one of k samples, drawn from the n, is correct."""
    return 1 - comb(n - correct, k) / comb(n, k)


def pass_table(samples: list[tuple[str, str, bool]]) -> list[str]:
    """Lines of text from (item_id, source, correct): pass@1 with its standard error over items, pass@k at an item's samples."""
    items: dict[str, tuple[str, list[bool]]] = {}
    for item_id, source, correct in samples:
        items.setdefault(item_id, (source, []))[1].append(correct)
    n = len(next(iter(items.values()))[1])
    lines = [f"{'source':<10} {'items':>6} {'pass@1':>8} {'+-':>7} {'pass@' + str(n):>8}"]
    for source in [*sorted({source for source, _ in items.values()}), "all"]:
        counts = [sum(marks) for at, marks in items.values() if source in (at, "all")]
        ones, many = [pass_at_k(n, c, 1) for c in counts], [pass_at_k(n, c, n) for c in counts]
        error = stdev(ones) / sqrt(len(ones)) if len(ones) > 1 else 0.0
        lines.append(f"{source:<10} {len(ones):>6} {mean(ones):>8.4f} {error:>7.4f} {mean(many):>8.4f}")
    return lines
