"""The section `init` of a recipe: how the policy's adapter starts."""

from __future__ import annotations

from dataclasses import dataclass, fields

from rankrl.recipe.require import require

DRAWN = ("kaiming", "orthonormal", "etf")
"""Methods that draw A from the seed alone."""
FROM_WEIGHTS = ("rlpo", "rlmo", "pissa", "olora", "olora_tail")
"""Methods that compute the start from the base's weights."""
MEASURED = ("eva", "pg_subspace")
"""Methods that measure the start on rollouts of the base."""
REWRITING = ("pissa", "olora", "olora_tail")
"""Methods in which B does not start at 0: their authors subtract s B A from the base's weights."""
SAMPLED = ("prompts", "samples_per_prompt")
OPTIONS: dict[str, tuple[str, ...]] = {
    "kaiming": (),
    "eva": ("norm", *SAMPLED, "oversample"),
    "pg_subspace": ("norm", *SAMPLED, "oversample", "off_principal", "fisher", "fallback"),
}
"""Options of each method; a method that is not listed has `norm` only."""


@dataclass(frozen=True)
class Init:
    """How A starts. B starts at 0, so that the policy starts as the base.

    Options that the method does not use must be left out.
    """

    method: str = "kaiming"
    """Drawn: kaiming, orthonormal, etf. Right singular vectors of W: rlpo (top), rlmo (bottom); of
    the activations: eva; of the base's policy gradient: pg_subspace. A and B start as matrices that
    are subtracted from W: olora_tail (the bottom singular vectors on both sides) and the negative
    controls pissa and olora (a part of W)."""
    norm: str = "kaiming"
    """Norm of each row of A: kaiming (1/sqrt(3), the mean of Kaiming's), or own (the method's). An
    init whose norm is not matched also acts as a change of the learning rate."""
    prompts: int = 64
    """Prompts that the base answers for the measurement."""
    samples_per_prompt: int = 8
    """Answers to each of these prompts."""
    oversample: int = 8
    """Columns of a random sketch beyond the largest rank."""
    off_principal: int = 0
    """Top right singular vectors of W that pg_subspace projects out first; 0 is off."""
    fisher: bool = False
    """Whether pg_subspace whitens the gradient by the Kronecker factors of the Fisher matrix: most
    gain per KL instead of per step."""
    fallback: str = "etf"
    """Rows for pg_subspace where the gradient does not recur on held-out prompts: etf or
    orthonormal."""

    @property
    def served_ranks(self) -> int:
        """Ranks that an engine serves for each rank of an adapter of which A and B are trained."""
        return 2 if self.method in REWRITING else 1

    def check(self) -> None:
        """Raises ValueError for a value that is not allowed, or an option that the method lacks."""
        known = (*DRAWN, *FROM_WEIGHTS, *MEASURED)
        require(self.method in known, "init.method", self.method, ", ".join(known))
        for option in fields(self)[1:]:
            used = option.name in OPTIONS.get(self.method, ("norm",))
            value = getattr(self, option.name)
            allowed = f"nothing: method {self.method!r} has no such option"
            require(used or value == option.default, f"init.{option.name}", value, allowed)
        require(self.norm in ("kaiming", "own"), "init.norm", self.norm, "kaiming or own")
        require(self.fallback in ("etf", "orthonormal"), "init.fallback", self.fallback, "etf or orthonormal")
        require(self.prompts >= 4, "init.prompts", self.prompts, "an integer of at least 4", "it is split in halves")
        pairs = 2 if self.method == "pg_subspace" else 1
        fix = "an advantage compares answers" if pairs == 2 else ""
        allowed = f"an integer of at least {pairs}"
        require(self.samples_per_prompt >= pairs, "init.samples_per_prompt", self.samples_per_prompt, allowed, fix)
        require(self.oversample >= 0, "init.oversample", self.oversample, "an integer of at least 0")
        require(self.off_principal >= 0, "init.off_principal", self.off_principal, "an integer of at least 0")
