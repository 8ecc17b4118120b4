"""One exact first optimizer step of adapters of several ranks, from one policy gradient.

With A and B where they start and s = alpha / rank, the gradient of B is s G A^T and that of A is
s B^T G, which is 0 where B starts at 0. G [d_out, d_in], the gradient of the weight, is never
formed: its products with all As are summed in one pass, in fp32. Adam's first step is
lr g / (|g| + eps): its running means, without their bias, are g and g^2.

The KL of that step is that of the new policy to the base, over the full vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf

import torch
from torch import nn

from rankrl.adapter.eva import Shapes, random_bases
from rankrl.adapter.factors import Factors, starting_factors
from rankrl.adapter.gradient import Coordinates, GradientSketch
from rankrl.adapter.start import Start
from rankrl.adapter.watch import Batch, Reduce, Samples, Sums, hooked, walk_gradients
from rankrl.recipe.first_step import FirstStep, geometric_mean
from rankrl.recipe.init_section import Init
from rankrl.recipe.optimizer_section import Optimizer
from rankrl.recipe.rank_table import ModuleRank
from rankrl.recipe.require import require
from rankrl.recipe.rules import measured

EPS = Optimizer().eps
"""Adam's epsilon; the rule is refused with another one."""
READINGS = ("grad_norm", "captured_energy", "signal_to_noise")
COLUMNS = 64
"""Random orthonormal columns from which the energy of a module's gradient is estimated."""
Update = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Module -> (A [k, d_in], B [d_out, k]) with delta W = B A; the scale is in B."""


@dataclass(frozen=True)
class Candidate:
    """An adapter where it starts."""

    table: list[ModuleRank]
    rows: Factors
    columns: Factors
    """B of the modules whose B does not start at 0."""
    lr_ratio: float
    """Learning rate of B divided by that of A."""


@dataclass(frozen=True)
class Draw:
    """Where the adapters of all ranks start at one seed."""

    seed: int
    init: Init
    start: Start | None
    """What they start from if their init needs the base."""
    tables: dict[int, list[ModuleRank]]
    """Rank -> its modules."""
    lr_ratios: dict[int, float]
    trained: str = "both"
    """What of the adapter is trained: `both` factors, or `b` alone."""

    def candidates(self) -> list[Candidate]:
        """The adapter of each rank.

        Where A is frozen, delta W = s (B - B0) A: the step is that of B from 0, at the rate itself.
        """
        found = []
        for rank, table in self.tables.items():
            rows, columns = starting_factors(self.init, self.seed, table, self.start)
            both = self.trained == "both"
            found.append(Candidate(table, rows, columns if both else {}, self.lr_ratios[rank] if both else 1.0))
        return found


@dataclass(frozen=True)
class Gradient:
    """What is known of a candidate's gradient, without the scales of its modules."""

    of_b: Sums
    """Module -> G A^T [d_out, r]."""
    of_a: Sums
    """Module -> B^T G [r, d_in], of the modules whose B does not start at 0."""
    readings: dict[str, float]


@dataclass(frozen=True)
class Base:
    """One worker's frozen base."""

    logprobs: Callable[[Batch], torch.Tensor]
    """Log-probabilities [B, A] of a batch, differentiable."""
    hidden: Callable[[Batch], torch.Tensor]
    """The last hidden states [N, H], from which the N response tokens of a batch are predicted."""
    logits: Callable[[torch.Tensor], torch.Tensor]
    """Hidden states [N, H] -> logits [N, V] of the distribution that is sampled from, fp32."""
    linears: dict[str, nn.Linear]
    shapes: Shapes
    reduce: Reduce
    parts: int
    """Parts in which logits are computed: the same on every worker, since all gather the head."""

    @property
    def like(self) -> torch.Tensor:
        """An fp32 tensor on the base's device."""
        return torch.zeros((), device=next(iter(self.linears.values())).weight.device)


def first_steps(
    base: Base,
    draws: list[Draw],
    lr: float,
    at_rank: int,
    batches: list[Batch],
    samples: Samples,
    held_out: list[Batch],
) -> dict[int, FirstStep]:
    """Rank -> its first step at rate `lr`, and at the rate that gives it the KL of `at_rank`.

    `batches` of `samples` give the gradient, and the KL is that on `held_out`.
    """
    given = [draw.candidates() for draw in draws]
    found = [gradients(base, candidates, batches, samples) for candidates in given]
    ranks = [*draws[0].tables]

    def kl_at(rates: dict[int, float]) -> dict[int, list[float]]:
        by_draw = []
        for pairs in (zip(ranks, *pair, strict=True) for pair in zip(given, found, strict=True)):
            by_draw.append(kls(base, [stepped(c, g, rates[rank], base.like) for rank, c, g in pairs], held_out))
        return dict(zip(ranks, map(list, zip(*by_draw, strict=True)), strict=True))

    first = kl_at(dict.fromkeys(ranks, lr))
    check_kls(first, lr)
    means = {rank: geometric_mean(values) for rank, values in first.items()}
    again = kl_at({rank: measured(rank, lr, at_rank, means) for rank in ranks})
    readings = {rank: [draw[i].readings for draw in found] for i, rank in enumerate(ranks)}
    return {
        rank: FirstStep(first[rank], again[rank], **{key: [r[key] for r in readings[rank]] for key in READINGS})
        for rank in ranks
    }


def check_kls(kls: dict[int, list[float]], lr: float) -> None:
    """Raises ValueError if a KL says nothing: it is 0 or not finite."""
    for rank, values in kls.items():
        fine = all(0 < value < inf for value in values)
        require(fine, f"KL of the first step at rank {rank}", values, "above 0 and finite", f"its rate was {lr:g}")


def adam_first_step(gradient: torch.Tensor, lr: float) -> torch.Tensor:
    """The change by the first step of Adam: lr times the sign, but for epsilon. 0 where it is 0."""
    return lr * gradient / (gradient.abs() + EPS)


def stepped(candidate: Candidate, gradient: Gradient, lr: float, like: torch.Tensor) -> Update:
    """delta W of each module after the first step up the gradient, at rate `lr` of A."""
    found: Update = {}
    for row in candidate.table:
        m, s = row.module, row.alpha / row.rank
        a, b = candidate.rows[m].to(like), adam_first_step(s * gradient.of_b[m].to(like), lr * candidate.lr_ratio)
        if m in candidate.columns:  # B A - B0 A0
            b0, a_step = candidate.columns[m].to(like), adam_first_step(s * gradient.of_a[m].to(like), lr)
            a, b = torch.cat([a + a_step, a]), torch.cat([b0 + b, -b0], dim=1)
        found[m] = (a, s * b)
    return found


def gradients(base: Base, candidates: list[Candidate], batches: list[Batch], samples: Samples) -> list[Gradient]:
    """The gradient of each candidate, from one pass over the batches of all workers.

    If B does not start at 0, a second pass gives those of A.
    """
    like, random = base.like, random_bases(base.shapes, 0, COLUMNS, 0, base.like)
    rows = {m: [*(c.rows[m].T.to(like) for c in candidates if m in c.rows), q] for m, q in random.items()}
    columns = {m: [c.columns[m].to(like) for c in candidates if m in c.columns] for m in base.shapes}
    columns = {m: blocks for m, blocks in columns.items() if blocks}
    of_b = products(base, batches, samples, rows, "ranges")
    of_a = products(base, batches, samples, columns, "projected") if columns else {}
    energy = sum(
        float(whole(halves[-1], samples).square().sum()) * base.shapes[m][0] / halves[-1].shape[-1]
        for m, halves in of_b.items()
    )
    left = {m: iter(halves) for m, halves in of_b.items()}, {m: iter(halves) for m, halves in of_a.items()}
    return [
        known(c, {m: next(left[0][m]) for m in c.rows}, {m: next(left[1][m]) for m in c.columns}, samples, energy)
        for c in candidates
    ]


def products(
    base: Base, batches: list[Batch], samples: Samples, blocks: dict[str, list[torch.Tensor]], method: str
) -> dict[str, list[torch.Tensor]]:
    """Module -> for each block [d, k] its product with G by half of the prompts.

    `ranges`: G X [2, d_out, k] of X [d_in, k]. `projected`: X^T G [2, k, d_in] of X [d_out, k].
    """
    walk = partial(walk_gradients, base.logprobs, base.linears, batches)
    one = {m: torch.cat(parts, dim=1) for m, parts in blocks.items()}
    plain, widths = {m: Coordinates([], []) for m in one}, {m: x.shape[1] for m, x in one.items()}
    sketch = GradientSketch(walk, base.shapes, plain, widths, samples, base.reduce)
    found = getattr(sketch, method)({m: x.expand(2, *x.shape) for m, x in one.items()})
    axis = -1 if method == "ranges" else -2
    return {m: [*halves.split([x.shape[1] for x in blocks[m]], dim=axis)] for m, halves in found.items()}


def whole(halves: torch.Tensor, samples: Samples) -> torch.Tensor:
    """The gradient of all samples, from those of the two halves of the prompts [2, ...]."""
    tokens = [float(samples.tokens_N[samples.half_N == half].sum()) for half in (0, 1)]
    return (tokens[0] * halves[0] + tokens[1] * halves[1]) / sum(tokens)


def known(candidate: Candidate, of_b: Sums, of_a: Sums, samples: Samples, energy: float) -> Gradient:
    """A candidate's gradient and its readings; `energy` is |G|^2 over all modules.

    The readings are the gradient's norm, the share of the energy of G in the span of A's rows, and
    |E g|^2 / E |g - E g|^2, from the gradients a and b of the halves of the prompts: a b estimates
    |E g|^2, and |a - b|^2 / 4 the noise of their mean.
    """
    scale = {row.module: row.alpha / row.rank for row in candidate.table}
    sides = [(scale[m], y) for side in (of_b, of_a) for m, y in side.items()]
    norm, together, apart = (sum(s**2 * squares(y, samples) for s, y in sides)).tolist()
    kept = sum(captured(whole(y, samples), candidate.rows[m].to(y)) for m, y in of_b.items())
    readings = {
        "grad_norm": norm**0.5,
        "captured_energy": kept / energy,
        "signal_to_noise": 4 * together / apart,
    }
    b, a = ({m: whole(y, samples).cpu() for m, y in side.items()} for side in (of_b, of_a))
    return Gradient(b, a, readings)


def captured(product_or: torch.Tensor, rows_ri: torch.Tensor) -> float:
    """|G P|^2 with P the projection onto the span of A's rows, from G A^T [d_out, r] and A."""
    product, rows = product_or.double(), rows_ri.double()
    return float(((product @ torch.linalg.pinv(rows @ rows.T, hermitian=True)) * product).sum())


def squares(halves: torch.Tensor, samples: Samples) -> torch.Tensor:
    """[|g|^2, a b, |a - b|^2] of the gradient g of all samples and those of the halves, a and b."""
    a, b = halves.double()
    return torch.stack([whole(halves.double(), samples).square().sum(), (a * b).sum(), (a - b).square().sum()])


@torch.no_grad()
def kls(base: Base, updates: list[Update], batches: list[Batch]) -> list[float]:
    """KL of the base with each update to the base, in nats per response token, over all workers."""
    total = base.like.new_zeros(len(updates) + 1, dtype=torch.float64)
    for batch in batches:
        start = base.hidden(batch)
        total[-1] += len(start)
        for i, update in enumerate(updates):
            with hooked({m: base.linears[m] for m in update}, partial(moved, update)):
                after = base.hidden(batch)
            pairs = zip(after.tensor_split(base.parts), start.tensor_split(base.parts), strict=True)
            total[i] += sum(kl(base.logits(ours), base.logits(theirs)) for ours, theirs in pairs)
    total = base.reduce(total)
    return (total[:-1] / total[-1]).tolist()


def moved(update: Update, module: str, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """The output of a linear module with delta W added to its weight; added in fp32."""
    a, b = update[module]
    return (output.float() + (x.float() @ a.T) @ b.T).to(output.dtype)


def kl(logits_NV: torch.Tensor, base_NV: torch.Tensor) -> torch.Tensor:
    """KL(p || q) summed over N tokens, fp64, of logits of p and of q (the base).

    It is summed as p (q / p - 1 - log(q / p)), whose terms are not negative: of p log(p / q), those
    of first order in the step cancel, and leave their rounding.
    """
    ours, theirs = logits_NV.log_softmax(-1), base_NV.log_softmax(-1)
    gap = theirs - ours
    return (ours.exp() * (gap.expm1() - gap)).sum(dtype=torch.float64)
