"""The section `advantage` of a recipe: what a sampled response is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from rankrl.recipe.require import require

METHODS = ("gae", "group_mean", "rloo", "group_norm", "batch_mean", "shrinkage", "history")
WITHIN_GROUPS = ("group_mean", "rloo", "group_norm")
"""Methods that compare a response with those to the same prompt alone: where all have one reward,
there is nothing to learn."""
NORMALISERS = ("tokens", "constant")


@dataclass(frozen=True)
class Advantage:
    """How the advantage of a response is estimated. A group is all responses to one prompt."""

    method: str = "gae"
    """gae: PPO with a critic. The others have none, so there are no value workers: group_mean
    (reward minus the mean of its group), rloo (minus the mean of the others in the group),
    group_norm (group_mean by the group's standard deviation), batch_mean (minus the mean of the
    rollout), shrinkage (minus a mix of the group's others and the other groups), history (minus the
    mean of the group's others and of what the prompt got before)."""
    discount: float = 0.9
    """What a reward counts at the prompt's next visit, relative to one that is new, for history."""
    prior_strength: float = 1.0
    """Number of responses that the mean of all other prompts counts as, for history."""
    drop_uniform_groups: bool = False
    """Leave groups whose rewards are all equal out of the policy's loss, and weigh the others
    accordingly more. For methods that compare within groups."""
    normaliser: str = "tokens"
    """What the policy's loss is divided by: the response `tokens` of an optimizer step, or a
    `constant`, the tokens that its samples could have at most (Dr. GRPO)."""

    @property
    def critic(self) -> bool:
        """Whether there is a value model."""
        return self.method == "gae"

    def check(self, samples_per_prompt: int, batch_sizes: tuple[int, ...], gamma: float) -> None:
        """Raises ValueError for a value out of range, or one that the grid or `gamma` forbids."""
        method = self.method
        require(method in METHODS, "advantage.method", method, ", ".join(METHODS))
        require(self.normaliser in NORMALISERS, "advantage.normaliser", self.normaliser, " or ".join(NORMALISERS))
        fine = method in WITHIN_GROUPS or not self.drop_uniform_groups
        why = f"method={method} learns from uniform groups too; {', '.join(WITHIN_GROUPS)} do not"
        require(fine, "advantage.drop_uniform_groups", self.drop_uniform_groups, "false", why)
        for option in ("discount", "prior_strength"):
            value, default = getattr(self, option), getattr(type(self), option)
            unused = f"nothing: advantage.method={method} has no such option"
            require(method == "history" or value == default, f"advantage.{option}", value, unused)
        require(0 <= self.discount <= 1, "advantage.discount", self.discount, "a share from 0 to 1")
        fine = 0 <= self.prior_strength < inf
        require(fine, "advantage.prior_strength", self.prior_strength, "a number of responses, at least 0")
        fine = method in ("gae", "batch_mean", "history") or samples_per_prompt > 1
        why = f"advantage.method={method} compares the responses to a prompt; gae, batch_mean and history take single ones"
        require(fine, "samples_per_prompt", samples_per_prompt, "at least 2", why)
        fewest = 3 if method == "shrinkage" else 2 if method == "batch_mean" and samples_per_prompt == 1 else 1
        why = f"advantage.method={method} compares prompts"
        require(min(batch_sizes) >= fewest, "batch_sizes", min(batch_sizes), f"at least {fewest}", why)
        require(self.critic or gamma == 1, "gamma", gamma, "1", f"advantage.method={method} does not discount")
