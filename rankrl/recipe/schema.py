"""The schema of a recipe: frozen dataclasses, every field with its unit.

A recipe chooses what is studied: grid, rules of rank, critic, reward, evaluation. Hardware and
model belong to the scale. Checks raise ValueError and name the dotted key, the value, what is
allowed and the likely fix.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import inf
from typing import Any, Optional

from rankrl.recipe.advantage_section import Advantage
from rankrl.recipe.allocation_section import Allocation
from rankrl.recipe.anchor_section import KLAnchor
from rankrl.recipe.average_section import Average
from rankrl.recipe.correction_section import Correction
from rankrl.recipe.critic_section import Critic
from rankrl.recipe.init_section import Init
from rankrl.recipe.kl_section import KLSchedule
from rankrl.recipe.optimizer_section import TRAINED, Optimizer, check_rate
from rankrl.recipe.require import require
from rankrl.recipe.rules_section import Rules
from rankrl.recipe.trust_section import TrustRegion

LENGTH_TERMS: dict[str, tuple[str, ...]] = {
    "linear": ("length_penalty", "length_free"),
    "overlong": ("length_penalty", "overlong_buffer_tokens"),
    "none": (),
}
KEEP_RESPONSES = ("first", "all", "none")
LR_SHAPES = ("constant", "linear", "cosine")
FEW_NORMS = 8
"""Gradient norms that must be known before `brakes.max_norm_ratio` skips a step."""
EVAL_SEEDS = ("shared", "per_seed")


def require_distinct(key: str, values: tuple[int, ...], least: int) -> None:
    require(len(values) > 0, key, list(values), "at least one value", f"for instance {key}=[{max(least, 1)}]")
    require(all(v >= least for v in values), key, list(values), f"integers of at least {least}")
    require(
        len(set(values)) == len(values), key, list(values), "distinct values", "a run is named after its grid point"
    )


@dataclass(frozen=True)
class Brakes:
    """Steps of the policy that are not taken. Both brakes are off by default; metrics.jsonl counts
    what they stop."""

    max_kl: Optional[float] = None
    """KL to the rollout policy (nats per token) above which a rollout's remaining minibatches are
    not trained on. It is measured on each minibatch before its optimizer step."""
    max_norm_ratio: Optional[float] = None
    """An optimizer step is skipped if its gradient norm, before it is scaled down, is more than
    this many times the median of the last 64 ones; null is off."""

    @property
    def on(self) -> bool:
        """Whether any step may be left out."""
        return self != Brakes()

    def check(self) -> None:
        most, ratio = self.max_kl, self.max_norm_ratio
        fine = most is None or 0 < most < inf
        require(fine, "brakes.max_kl", most, "above 0 and finite, or null", "null is off")
        fine = ratio is None or 1 < ratio < inf
        require(fine, "brakes.max_norm_ratio", ratio, "above 1 and finite, or null", "null is off")


@dataclass(frozen=True)
class Reward:
    """The shaped reward, used in training only. Scores count the verifier's verdict alone."""

    boxed_bonus: float = 0.05
    """Added if the answer is boxed, subtracted if not."""
    length: str = "linear"
    """Length term: `linear`, which grows from `length_free` on; `overlong`, the one of DAPO, which
    grows over the last `overlong_buffer_tokens`; or `none`."""
    length_penalty: float = 0.02
    """Weight of the length term: what the longest response loses."""
    length_free: float = 0.5
    """Share of the longest response that is free of a penalty, for `linear`."""
    overlong_buffer_tokens: Optional[int] = None
    """Number of tokens, at the end of the longest response, over which the penalty rises from 0,
    for `overlong`."""

    def check(self) -> None:
        require(self.boxed_bonus >= 0, "reward.boxed_bonus", self.boxed_bonus, "at least 0")
        require(self.length in LENGTH_TERMS, "reward.length", self.length, ", ".join(LENGTH_TERMS))
        require(self.length_penalty >= 0, "reward.length_penalty", self.length_penalty, "at least 0")
        require(0 <= self.length_free < 1, "reward.length_free", self.length_free, "a share from 0 to below 1")
        for option in ("length_penalty", "length_free", "overlong_buffer_tokens"):
            value, default = getattr(self, option), getattr(type(self), option)
            unused = f"nothing: reward.length={self.length} has no such option"
            require(option in LENGTH_TERMS[self.length] or value == default, f"reward.{option}", value, unused)
        buffer = self.overlong_buffer_tokens
        given = self.length != "overlong" or (buffer is not None and buffer >= 1)
        require(
            given, "reward.overlong_buffer_tokens", buffer, "an integer of at least 1: reward.length=overlong needs it"
        )
        swing = 2 * self.boxed_bonus + (0.0 if self.length == "none" else self.length_penalty)
        require(
            swing < 1,
            "reward.boxed_bonus",
            self.boxed_bonus,
            "2 * boxed_bonus + length_penalty below 1",
            "or wrong, boxed and short beats right, unboxed and long",
        )


@dataclass(frozen=True)
class Stages:
    """Seeds that are assigned in stages to the cells that need them (rankrl next).

    All zero is off: every cell gets every seed.
    """

    first: int = 0
    """Number of seeds that every cell starts with, taken from the start of `seeds`."""
    add: int = 0
    """Number of runs that each later stage adds."""
    confirm: int = 0
    """Number of seeds that are held back, from the end of `seeds`. Only the cells that are left at
    the end get them, and no choice depends on them."""

    def check(self, seeds: int) -> None:
        if not self.first and not self.add and not self.confirm:
            return
        require(self.first >= 2, "stages.first", self.first, "at least 2: one seed has no spread")
        require(self.add >= 1, "stages.add", self.add, "at least 1")
        require(self.confirm >= 0, "stages.confirm", self.confirm, "at least 0")
        spent = self.first + self.confirm
        require(spent < seeds, "stages", f"first + confirm = {spent}", f"below the number of seeds ({seeds})")


@dataclass(frozen=True)
class Recipe:
    """What is studied: the grid and every setting of a run except hardware, model and data."""

    ranks: tuple[int, ...]
    """LoRA ranks of the policy adapter."""
    batch_sizes: tuple[int, ...]
    """Prompts per PPO step."""
    seeds: tuple[int, ...]
    """Seeds. A seed fixes the order of prompts, the initialisation of adapter and value model, and
    the sampling seed of every request."""
    steps: int
    """Number of PPO steps."""
    name: str = ""
    """Name of the sweep. Defaults to the name of the file."""
    samples_per_prompt: int = 8
    """Responses sampled for each prompt."""
    batch_samples_per_prompt: Optional[int] = None
    """Samples per prompt at which `batch_sizes` count prompts: a step has batch size *
    batch_samples_per_prompt samples, of as many prompts as samples_per_prompt leaves room for. So
    arms trade prompts for samples at one batch size. null: a batch size is a number of prompts."""
    updates_per_rollout: int = 2
    """Optimizer steps on each rollout. With one, the ratio is always 1 and clipping cannot act. The
    same for all batch sizes: a larger batch means larger minibatches."""
    minibatch_prompts: Optional[int] = None
    """Prompts per optimizer step, the other rule of the batch size: a larger batch takes more
    optimizer steps. null: `updates_per_rollout` gives them."""
    lr_shape: str = "constant"
    """Learning rate after the warm-up: constant, linear (to 0) or cosine (to `lr_final`)."""
    lr_final: float = 0.1
    """Share of the learning rate that is left at the end, for cosine."""
    warmup_offset: int = 1
    """Optimizer step i (from 0) of a warm-up of n takes (i + warmup_offset) / n of the rate. With
    0, as rankrl 0.1 had it, the first step does nothing."""
    clip_final: float = 1.0
    """Share of the clip range that is left at the last step. The range shrinks linearly."""
    dual_clip: Optional[float] = None
    """Bound on the ratio for negative advantages (above 1); null is off."""
    gamma: float = 1.0
    """Discount factor of the GAE."""
    gae_lambda: float = 1.0
    """Lambda of the GAE, for the policy's advantages and, unless critic.lambda is set, the critic's
    target."""
    gae_length_alpha: Optional[float] = None
    """The policy's lambda is 1 - 1 / (gae_length_alpha * l) for a response of l tokens, at least 0
    (VAPO: 0.05, for thousands of tokens); null is off. The critic's target keeps its lambda."""
    eval_every: int = 0
    """PPO steps between evaluations. 0 evaluates only the base and the last step."""
    eval_seeds: str = "shared"
    """Sampling seeds of evaluation requests: `shared` by all runs, so that differences of runs are
    paired; `per_seed`, drawn from the run's seed, so that the noise of sampling is independent
    between seeds and stands in the intervals of gains (docs/report.md)."""
    checkpoint_every: int = 10
    """PPO steps between checkpoints."""
    keep_responses: str = "first"
    """Which evaluation samples keep their text in evals.parquet: `first` (the first of each item,
    at step 0 and at the last one), `all` (of every evaluation) or `none`."""
    rules: Rules = field(default_factory=Rules)
    allocation: Allocation = field(default_factory=Allocation)
    init: Init = field(default_factory=Init)
    trained: str = "both"
    """What of the policy's adapter is trained: `both` of its factors, or `b` alone, with A frozen
    where it starts."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    kl_schedule: KLSchedule = field(default_factory=KLSchedule)
    kl_anchor: KLAnchor = field(default_factory=KLAnchor)
    correction: Correction = field(default_factory=Correction)
    advantage: Advantage = field(default_factory=Advantage)
    critic: Critic = field(default_factory=Critic)
    brakes: Brakes = field(default_factory=Brakes)
    trust_region: TrustRegion = field(default_factory=TrustRegion)
    average: Average = field(default_factory=Average)
    reward: Reward = field(default_factory=Reward)
    stages: Stages = field(default_factory=Stages)
    equal_params: Optional[float] = None
    """Largest share by which the arms' adapter parameters may differ at a rank; null is off."""
    equal_samples: bool = False
    """Whether arms must train on as many samples at each rank and batch size: prompts per step x
    samples_per_prompt x steps. Tokens follow from samples, and the report compares them."""
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Variants of this recipe: name -> overrides. Without any there is one unnamed variant."""
    axes: dict[str, list[Any]] = field(default_factory=dict)
    """Axes of the grid: dotted key of the recipe -> values. Every point of their product is run, in
    each arm."""

    def __post_init__(self) -> None:
        require(
            re.fullmatch(r"[\w-][\w.-]*", self.name) is not None or not self.name,
            "name",
            self.name,
            "letters, digits, _, - and .",
        )
        require_distinct("ranks", self.ranks, 1)
        require_distinct("batch_sizes", self.batch_sizes, 1)
        require_distinct("seeds", self.seeds, 0)
        require(max(self.seeds) < 2**32, "seeds", max(self.seeds), "below 2**32")
        for name in ("steps", "samples_per_prompt", "updates_per_rollout", "checkpoint_every"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "an integer of at least 1")
        require(self.eval_every >= 0, "eval_every", self.eval_every, "at least 0")
        keep = self.keep_responses
        require(keep in KEEP_RESPONSES, "keep_responses", keep, ", ".join(KEEP_RESPONSES))
        self._check_rate_shape()
        require(self.warmup_offset in (0, 1), "warmup_offset", self.warmup_offset, "0 or 1")
        require(self.eval_seeds in EVAL_SEEDS, "eval_seeds", self.eval_seeds, ", ".join(EVAL_SEEDS))
        require(0 < self.clip_final <= 1, "clip_final", self.clip_final, "above 0 and at most 1")
        require(self.eval_every <= self.steps, "eval_every", self.eval_every, f"at most steps={self.steps}")
        require(self.dual_clip is None or 1 < self.dual_clip < 1e6, "dual_clip", self.dual_clip, "above 1, or null")
        for name in ("gamma", "gae_lambda"):
            require(0 < getattr(self, name) <= 1, name, getattr(self, name), "above 0 and at most 1")
        self._check_batches()
        self._check_critics()
        share = self.equal_params
        require(share is None or 0 < share < 1, "equal_params", share, "a share above 0 and below 1, or null")
        several = bool(self.arms or self.axes)
        require(share is None or several, "equal_params", share, "null: the recipe has no arms to compare")
        alike = self.equal_samples
        require(not alike or several, "equal_samples", alike, "false: the recipe has no arms to compare")
        self.stages.check(len(self.seeds))
        self.rules.check()
        self.allocation.check()
        self.init.check()
        require(self.trained in TRAINED, "trained", self.trained, " or ".join(TRAINED))
        self.optimizer.check()
        check_rate(self.optimizer, self.rules.lr)
        self.kl_schedule.check()
        self.kl_anchor.check()
        self.correction.check()
        self.advantage.check(self.samples_per_prompt, tuple(map(self.prompts, self.batch_sizes)), self.gamma)
        self.critic.check()
        self.brakes.check()
        self.trust_region.check()
        self.average.check()
        self.reward.check()
        require(
            self.critic.warmup_steps < self.steps,
            "critic.warmup_steps",
            self.critic.warmup_steps,
            f"below steps={self.steps}",
        )

    def prompts(self, batch_size: int) -> int:
        """Prompts per PPO step at a batch size of the grid."""
        return batch_size * (self.batch_samples_per_prompt or self.samples_per_prompt) // self.samples_per_prompt

    def updates(self, batch_size: int) -> int:
        """Optimizer steps per PPO step at a batch size of the grid."""
        prompts = self.minibatch_prompts
        return self.updates_per_rollout if prompts is None else self.prompts(batch_size) // prompts

    def _check_batches(self) -> None:
        """Raises ValueError for samples or minibatches that batch sizes cannot be split into."""
        whole, each, sizes = self.batch_samples_per_prompt, self.samples_per_prompt, self.batch_sizes
        require(whole is None or whole >= 1, "batch_samples_per_prompt", whole, "an integer of at least 1, or null")
        odd = [size for size in sizes if whole is not None and size * whole % each]
        why = f"batch size * batch_samples_per_prompt samples are shared by prompts of samples_per_prompt={each}"
        require(not odd, "batch_samples_per_prompt", whole, f"a number that {each} divides at batch size {odd}", why)
        small = self.minibatch_prompts
        require(small is None or small >= 1, "minibatch_prompts", small, "an integer of at least 1, or null")
        odd = [self.prompts(size) for size in sizes if small is not None and self.prompts(size) % small]
        require(not odd, "minibatch_prompts", small, f"a divisor of the prompts of a step, here {odd}")
        usual = Recipe.updates_per_rollout
        fine, why = small is None or self.updates_per_rollout == usual, "minibatch_prompts gives the optimizer steps"
        require(fine, "updates_per_rollout", self.updates_per_rollout, f"its default, {usual}", why)

    @property
    def served_ranks(self) -> int:
        """Ranks that an engine serves for each rank of the adapter."""
        return self.init.served_ranks if self.trained == "both" else 1  # with A frozen, B - B0 is the update

    def _check_rate_shape(self) -> None:
        """Raises ValueError for an unknown shape of the rate, or an end that it does not have."""
        shape, final = self.lr_shape, self.lr_final
        require(shape in LR_SHAPES, "lr_shape", shape, ", ".join(LR_SHAPES))
        acts, why = shape == "cosine" or final == Recipe.lr_final, f"lr_shape={shape} has no such option"
        require(acts, "lr_final", final, f"nothing: {why}", "lr_shape=cosine has it")
        require(0 <= final < 1, "lr_final", final, "a share from 0 to below 1", "lr_shape=constant keeps the rate")

    def _check_critics(self) -> None:
        """Raises ValueError for two lambdas of the policy, or an odd batch for two critics."""
        alpha, policy = self.gae_length_alpha, self.gae_lambda
        require(alpha is None or alpha > 0, "gae_length_alpha", alpha, "above 0, or null", "null is off")
        both, why = alpha is not None and policy != 1, "gae_length_alpha gives the policy's lambda: drop one of the two"
        require(not both, "gae_lambda", policy, "1", why)
        odd = [
            size
            for size in self.batch_sizes
            if self.prompts(size) % 2 and self.advantage.critic and self.critic.ensemble == 2
        ]
        require(
            not odd, "batch_sizes", odd, "even numbers of prompts", "critic.ensemble=2 deals the prompts to two critics"
        )
