"""pass@k, overall and by source: the unbiased estimate of Chen et al. (2107.03374).

Intervals are clustered by item.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import comb
from statistics import fmean
from typing import Any

from rankrl.report.statistics.intervals import t_interval


@dataclass
class Marks:
    """Marks of the samples of one item; each list has one entry per sample."""

    source: str
    correct: list[bool] = field(default_factory=list)
    boxed: list[bool] = field(default_factory=list)
    truncated: list[bool] = field(default_factory=list)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Probability that at least one of k samples, drawn from the n, is correct.

    1 - C(n - c, k) / C(n, k) with c = `correct`.
    """
    return 1 - comb(n - correct, k) / comb(n, k)


def item_interval(values: list[float]) -> list[float] | None:
    """95 % interval of the mean of one value per item, within [0, 1].

    None for one item, or where all items are alike. The item is the unit, because samples of one
    item are not independent: mean +- t(0.975, G - 1) SE over G items with
    SE^2 = sum_g (v_g - mean)^2 / (G (G - 1)). For shares of equally many samples per item this is
    the cluster-robust variance of the mean of all samples,
    sum_g (sum_i e_gi)^2 / N^2 times G / (G - 1) (Liang and Zeger 1986; Miller, 2411.00640).
    """
    interval = t_interval(values) if len(set(values)) > 1 else None
    return interval and [max(0.0, interval[0]), min(1.0, interval[1])]


def pass_rows(samples: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per source, then one for all items; all estimates are fractions.

    `samples` have item_id, source, correct, boxed and truncated. pass_at_k: k = 1, 2, 4, ... up to
    the number of samples per item -> the mean over items and its 95 % interval.
    """
    items: dict[str, Marks] = {}
    for sample in samples:
        marks = items.setdefault(sample["item_id"], Marks(sample["source"]))
        for name in ("correct", "boxed", "truncated"):
            getattr(marks, name).append(bool(sample[name]))
    sources = sorted({marks.source for marks in items.values()})
    parts = {source: [marks for marks in items.values() if marks.source == source] for source in sources}
    return [_row(source, part) for source, part in [*parts.items(), ("all", list(items.values()))]]


def _row(source: str, items: list[Marks]) -> dict[str, Any]:
    fewest = min(len(marks.correct) for marks in items)
    return {
        "source": source,
        "items": len(items),
        "samples": sum(len(marks.correct) for marks in items),
        "pass_at_k": {1 << i: _estimate(items, 1 << i) for i in range(fewest.bit_length())},
        "boxed_frac": fmean(mark for marks in items for mark in marks.boxed),
        "truncated_frac": fmean(mark for marks in items for mark in marks.truncated),
    }


def _estimate(items: list[Marks], k: int) -> dict[str, Any]:
    values = [pass_at_k(len(marks.correct), sum(marks.correct), k) for marks in items]
    return {"mean": fmean(values), "ci95": item_interval(values)}


def pass_table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of a text table of the rows of `pass_rows`, with intervals in brackets."""
    ks = list(rows[-1]["pass_at_k"])
    wide = max(len("source"), *(len(row["source"]) for row in rows))
    head = "".join(f"  {f'pass@{k}':<20}" for k in ks)
    lines = [f"{'source':<{wide}}  {'items':>6}{head}  {'boxed':>5}  truncated"]
    for row in rows:
        cells = "".join(f"  {_text(row['pass_at_k'].get(k)):<20}" for k in ks)
        shares = f"  {row['boxed_frac']:>5.3f}  {row['truncated_frac']:>9.3f}"
        lines.append(f"{row['source']:<{wide}}  {row['items']:>6,}{cells}{shares}")
    return lines


def _text(estimate: dict[str, Any] | None) -> str:
    if estimate is None:
        return ""
    return f"{estimate['mean']:.3f}" + (" [{:.3f}, {:.3f}]".format(*estimate["ci95"]) if estimate["ci95"] else "")
