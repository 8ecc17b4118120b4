"""What a recipe may say of how the policy's adapter starts."""

from __future__ import annotations

from dataclasses import dataclass, fields

from rankrl.recipe.require import require

DRAWN = ("kaiming", "orthonormal", "etf")
"""From the seed alone."""
FROM_WEIGHTS = ("rlpo", "rlmo", "pissa", "olora")
"""From the base's weights."""
MEASURED = ("eva", "pg_subspace")
"""From rollouts of the base."""
REWRITING = ("pissa", "olora")
"""B does not start at 0: their authors take B A out of the base's weights."""
SAMPLED = ("prompts", "samples_per_prompt")
OPTIONS: dict[str, tuple[str, ...]] = {
    "kaiming": (),
    "eva": ("norm", *SAMPLED, "oversample"),
    "pg_subspace": ("norm", *SAMPLED, "oversample", "off_principal", "fisher", "fallback"),
}


@dataclass(frozen=True)
class Init:
    """How A starts; B starts at 0, so that the policy starts as the base. Options that the method does not use must be left out."""

    method: str = "kaiming"
    """kaiming, orthonormal, etf (drawn); rlpo, rlmo (top, bottom right singular vectors of W); eva (of the
    activations); pg_subspace (of the base's policy gradient); pissa, olora (negative controls: A and B start as a part of W, which
    is subtracted)."""
    norm: str = "kaiming"
    """Norm of each row of A: kaiming (1/sqrt(3), as Kaiming's in the mean), or the method's own. Unmatched, an init is also a
    change of the learning rate."""
    prompts: int = 64
    """Prompts that the base answers for the measurement."""
    samples_per_prompt: int = 8
    """Answers for each of them."""
    oversample: int = 8
    """Columns of a sketch beyond the largest rank."""
    off_principal: int = 0
    """Top right singular vectors of W that pg_subspace projects out first; 0 is off."""
    fisher: bool = False
    """Whether pg_subspace whitens the gradient by the Fisher's Kronecker factors: most gain per KL instead of per step."""
    fallback: str = "etf"
    """Rows of pg_subspace where the gradient does not repeat itself: etf or orthonormal."""

    @property
    def served_ranks(self) -> int:
        """Ranks in the engine for each rank of the adapter."""
        return 2 if self.method in REWRITING else 1

    def check(self) -> None:
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
