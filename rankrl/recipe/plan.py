"""From recipe and scale to runs: every seed of every cell with its derived hyperparameters.

No torch; 10,000 runs are planned in under a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import gcd, lcm
from typing import Any

from rankrl.recipe.allocation import planned
from rankrl.recipe.axes import Point
from rankrl.recipe.deepspeed import deepspeed_config
from rankrl.recipe.first_step import FirstSteps
from rankrl.recipe.history import FORMAT, recorded
from rankrl.recipe.init_section import MEASURED
from rankrl.recipe.knobs import Knob, derive
from rankrl.recipe.load import Experiment
from rankrl.recipe.measurable import check_measurable
from rankrl.recipe.optimizer_section import check_values
from rankrl.recipe.rank_table import LARGEST_SERVED
from rankrl.recipe.require import require
from rankrl.recipe.rules_section import Rules
from rankrl.recipe.run_id import run_id
from rankrl.recipe.scale import Scale
from rankrl.recipe.schema import FEW_NORMS, Recipe


@dataclass(frozen=True)
class Run:
    """One seed of one cell: the unit of work, of resume and of statistics."""

    sweep: str
    arm: str
    rank: int
    batch_size: int
    """What the grid calls it: prompts per PPO step, at `batch_samples_per_prompt` samples each."""
    seed: int
    recipe: Recipe
    scale: Scale
    knobs: dict[str, Knob]
    trainable_params: int
    """Trained parameters of the policy adapter; an upper bound if its allocation needs a
    measurement."""
    max_rank: int
    """Largest rank of a module of the policy adapter; an upper bound if that needs a
    measurement."""
    frozen_params: int = 0
    """Parameters of the policy adapter that are not trained: its A with trained=b."""
    beside_critics: bool = False
    """Whether other runs of the recipe have a critic. Then all have as many policy workers, so that
    a run goes on with as many, whichever runs are left."""
    axes: Point = field(default_factory=dict)
    """Dotted key of the recipe -> the value of the arm on each axis."""

    @cached_property
    def run_id(self) -> str:
        return run_id(self.arm, self.rank, self.batch_size, self.seed)

    def __getitem__(self, knob: str) -> float:
        """The value of a derived hyperparameter, such as lr."""
        return self.knobs[knob].value

    @property
    def prompts(self) -> int:
        """Prompts per PPO step."""
        return self.recipe.prompts(self.batch_size)

    @property
    def rollout_samples(self) -> int:
        """Samples per PPO step."""
        return self.prompts * self.recipe.samples_per_prompt

    @property
    def updates(self) -> int:
        """Optimizer steps per PPO step."""
        return self.recipe.updates(self.batch_size)

    @property
    def samples(self) -> int:
        """Samples that the run trains on."""
        return self.rollout_samples * self.recipe.steps

    @property
    def train_batch(self) -> int:
        """Samples per optimizer step."""
        return self.rollout_samples // self.updates

    @property
    def optimizer_steps(self) -> int:
        return self.recipe.steps * self.updates

    @property
    def eval_seed(self) -> int | None:
        """What seeds the evaluation's requests besides item and sample; None if all runs share."""
        return self.seed if self.recipe.eval_seeds == "per_seed" else None

    @property
    def critic(self) -> bool:
        """Whether the run has a value model."""
        return self.recipe.advantage.critic

    @property
    def critics(self) -> int:
        """Number of value adapters, each with a head: 0 without a critic, 2 in an ensemble."""
        return self.recipe.critic.ensemble if self.critic else 0

    @property
    def critic_rank(self) -> int:
        """Rank of a value adapter; 0 without one."""
        return self.recipe.critic.rank if self.critic else 0

    @property
    def critic_ranks(self) -> int:
        """Sum of the ranks of the value adapters, which are as large as one of that rank."""
        return self.critics * self.critic_rank

    @property
    def critic_warmup_steps(self) -> int:
        """PPO steps at the start in which only the critic learns."""
        return self.recipe.critic.warmup_steps if self.critic else 0

    @cached_property
    def served(self) -> Scale:
        """The scale with the processes that this run needs: no value workers without a critic."""
        if self.critic:
            return self.scale
        return self.scale.without_values if self.beside_critics else self.scale.without_critic

    @property
    def pending(self) -> bool:
        """Whether a hyperparameter is still to be measured on the base."""
        return any(knob.pending for knob in self.knobs.values())

    def at(self, found: FirstSteps) -> Run:
        """This run with the hyperparameters that follow from what was measured."""
        new = derive(self.recipe, self.scale.reference, self.rank, found)  # of a recipe that has other values already
        return replace(self, knobs={name: new[name] if old.pending else old for name, old in self.knobs.items()})

    def row(self) -> dict[str, Any]:
        """What `rankrl plan` shows of this run, by column; None if it is still to be measured."""
        grid = {
            "run_id": self.run_id,
            "arm": self.arm,
            "rank": self.rank,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }
        return {
            **grid,
            **({"axes": self.axes} if self.axes else {}),
            "steps": self.recipe.steps,
            **{name: None if knob.pending else knob.value for name, knob in self.knobs.items()},
            "trainable_params": self.trainable_params,
        }

    def resolved(self) -> dict[str, Any]:
        """Everything that determines this run, as the content of run.yaml."""
        grid = {k: v for k, v in self.row().items() if k not in self.knobs}
        return {
            "format": FORMAT,
            "sweep": self.sweep,
            **grid,
            "derived": {name: knob.recorded() for name, knob in self.knobs.items()},
            "recipe": recorded("recipe", self.recipe),
            "rules": recorded("rules", self.recipe.rules),
            "scale": recorded("scale", self.scale),
        }


def adapter_params(scale: Scale, rank: int) -> int:
    """Parameters of an adapter of the same rank everywhere.

    They are rank (d_in + d_out), summed over all adapted modules.
    """
    return rank * scale.model.layers * sum(d_in + d_out for d_in, d_out in scale.model.modules.values())


def largest_rank(scale: Scale) -> int:
    """The largest rank that a uniform adapter may have.

    It is the full rank of the narrowest adapted module, or the largest rank that vLLM serves if
    that is smaller.
    """
    return min(*(min(shape) for shape in scale.model.modules.values()), LARGEST_SERVED)


def plan(experiment: Experiment) -> list[Run]:
    """All runs of an experiment: arms outermost, then ranks, batch sizes and seeds, in given order.

    Raises ValueError, one line, for a grid point that cannot run at this scale.
    """
    scale = experiment.scale
    deepspeed_config(scale)
    runs = []
    critics = any(given.advantage.critic for given in experiment.arms.values())
    for arm, given in experiment.arms.items():
        point = experiment.points.get(arm, {})
        correction, region = (
            given.correction.at(scale.model.dtype, scale.engine.one_step_off),
            given.trust_region.at(scale.name),
        )
        whole = replace(given, correction=correction, trust_region=region)
        _check(whole, scale, critics)
        _check_overlong(whole, scale)
        check_values(whole.optimizer, whole.rules.given)
        if whole.rules.lr.rule == "measured":
            check_measurable(whole, scale, largest_rank(scale))
        for rank in whole.ranks:
            knobs, sizes = derive(whole, scale.reference, rank), _sizes(whole, scale, rank)
            optimizer = whole.optimizer.at({name: knob.value for name, knob in knobs.items()})
            recipe = whole if optimizer == whole.optimizer else replace(whole, optimizer=optimizer)
            _check_init(recipe, scale, rank, max(max_rank for _, max_rank, _ in sizes.values()))
            if recipe.kl_anchor.given:
                recipe.kl_anchor.check_level(knobs["kl"].value, rank)
            shape = recipe.kl_schedule.shape
            scheduled = shape == "constant" or knobs["kl"].value > 0
            require(
                scheduled,
                "kl_schedule.shape",
                shape,
                f"constant: the KL level at rank {rank} is 0, there is nothing to schedule",
            )
            runs += [
                Run(experiment.name, arm, rank, batch_size, seed, recipe, scale, knobs, *sizes[seed], critics, point)
                for batch_size in recipe.batch_sizes
                for seed in recipe.seeds
            ]
    _check_equal_params(runs)
    _check_equal_samples(runs)
    return runs


def _check_equal_params(runs: list[Run]) -> None:
    """Raises ValueError if arms of one rank and seed differ in size by more than `equal_params`.

    Otherwise a comparison of arms would also compare their sizes.
    """
    share = runs[0].recipe.equal_params
    cells: dict[tuple[int, int], list[Run]] = {}
    for run in runs if share else []:
        cells.setdefault((run.rank, run.seed), []).append(run)
    for (rank, _), arms in cells.items():
        least, most = (pick(arms, key=lambda run: run.trainable_params) for pick in (min, max))
        if least.trainable_params < (1 - (share or 0)) * most.trainable_params:
            raise ValueError(
                f"equal_params: got {least.trainable_params:,} parameters in arm {least.arm} and {most.trainable_params:,} in arm "
                f"{most.arm} at rank {rank}, allowed: a difference of {share:.1%} (scale {least.scale.name} has too few modules "
                "for so small a budget: raise ranks, or drop the arm)"
            )


def _check_equal_samples(runs: list[Run]) -> None:
    """Raises ValueError if `equal_samples` is set and arms of a cell train on other numbers of
    samples.

    Otherwise a comparison of arms would also compare what they have seen.
    """
    cells: dict[tuple[int, int], dict[str, Run]] = {}
    for run in runs if runs[0].recipe.equal_samples else []:
        cells.setdefault((run.rank, run.batch_size), {})[run.arm] = run
    for (rank, batch_size), arms in cells.items():
        least, most = (pick(arms.values(), key=lambda run: run.samples) for pick in (min, max))
        if least.samples < most.samples:
            raise ValueError(
                f"equal_samples: got {least.samples:,} training samples in arm {least.arm} and {most.samples:,} in arm "
                f"{most.arm} at rank {rank}, batch size {batch_size}, allowed: as many in each (steps, or samples a step, "
                "differ: equal_samples=false if that is what the arms compare)"
            )


def neediest(runs: Sequence[Run]) -> Run:
    """The run whose services can serve all of `runs`: the first with the most value adapters."""
    return max(runs, key=lambda run: run.critics)


def largest_served_rank(runs: Sequence[Run]) -> int:
    """The rank that engines must serve. One of an adapter that starts as a part of the base is
    twice its own."""
    return max(run.max_rank * run.recipe.served_ranks for run in runs)


def _sizes(recipe: Recipe, scale: Scale, rank: int) -> dict[int, tuple[int, int, int]]:
    """(trained parameters, largest rank of a module, frozen parameters) by seed.

    Only a random allocation depends on the seed.
    """
    if recipe.allocation.control == "random":
        return {seed: planned(recipe, scale, rank, seed) for seed in recipe.seeds}
    return dict.fromkeys(recipe.seeds, planned(recipe, scale, rank, recipe.seeds[0]))


def _check(recipe: Recipe, scale: Scale, critics_beside: bool) -> None:
    most, place = largest_rank(scale), scale.placement
    narrow = min(scale.model.modules, key=lambda name: min(scale.model.modules[name]))
    for rank in recipe.ranks:
        require(
            rank <= most,
            "ranks",
            rank,
            f"1 to {most} at scale {scale.name}",
            f"{narrow} is {scale.model.modules[narrow]}",
        )
    workers = {"policy": place.policy_workers}
    if not critics_beside:
        workers["policy (without critics)"] = scale.without_critic.placement.policy_workers
    if recipe.advantage.critic:
        require(recipe.critic.rank <= most, "critic.rank", recipe.critic.rank, f"1 to {most} at scale {scale.name}")
        critics = recipe.critic.ensemble
        workers["value" if critics == 1 else "critics * value"] = critics * place.value_workers
        if place.micro_batch_tokens is not None:  # each of them has its own share of an optimizer step
            workers["policy and value"] = critics * lcm(place.policy_workers, place.value_workers)
    for batch_size in recipe.batch_sizes:
        for role, world in workers.items():
            prompts, updates = recipe.prompts(batch_size), recipe.updates(batch_size)
            samples, share = prompts * recipe.samples_per_prompt, updates * world
            require(
                samples % share == 0,
                "batch_sizes",
                batch_size,
                f"prompts * samples_per_prompt divisible by the optimizer steps of a rollout * {role} workers = {share}",
                f"{prompts} * {recipe.samples_per_prompt} = {samples}",
            )
        require(
            prompts <= scale.data.train_items,
            "batch_sizes",
            batch_size,
            f"at most data.train_items={scale.data.train_items} prompts",
        )
    _check_no_effect(recipe)


def _check_init(recipe: Recipe, scale: Scale, rank: int, max_rank: int) -> None:
    init, narrow = recipe.init, min(d_in for d_in, _ in scale.model.modules.values())
    most = LARGEST_SERVED // recipe.served_ranks
    why = f"init.method={init.method} takes {recipe.served_ranks} ranks of an engine, which serves {LARGEST_SERVED}, for each"
    require(max_rank <= most, "ranks", rank, f"at most {most} in a module", why)
    left, why = narrow - max_rank, f"the narrowest input has {narrow} dimensions, of which the adapter needs {max_rank}"
    off = init.off_principal
    require(off == 0 or off <= left, "init.off_principal", off, f"0 to {max(left, 0)}", why)
    items, asked = scale.data.train_items, {}
    if init.method in MEASURED:
        asked["init.prompts"] = init.prompts
    if recipe.allocation.measured:
        asked["allocation.prompts"] = recipe.allocation.prompts
    for key, prompts in asked.items():
        require(prompts <= items, key, prompts, f"at most data.train_items={items}")


def micro_batch(run: Run) -> int:
    """Number of samples in a micro-batch.

    It is the largest within the scale's that divides every worker's share of an optimizer step.
    """
    place, critics = run.served.placement, max(run.critics, 1)  # two critics share the samples
    share = gcd(run.train_batch // place.policy_workers, run.train_batch // (critics * place.value_workers))
    return max(m for m in range(1, min(place.micro_batch, share) + 1) if share % m == 0)


def _check_overlong(recipe: Recipe, scale: Scale) -> None:
    buffer, longest = recipe.reward.overlong_buffer_tokens, scale.lengths.response_tokens
    require(
        buffer is None or buffer <= longest,
        "reward.overlong_buffer_tokens",
        buffer,
        f"at most lengths.response_tokens={longest}",
    )


def _check_no_effect(recipe: Recipe) -> None:
    """Raises ValueError for settings that would silently have no effect."""
    unset = Rules()
    clipping = [name for name in ("clip_low", "clip_high") if getattr(recipe.rules, name) != getattr(unset, name)]
    clipping = [f"rules.{name}" for name in clipping] + ["clip_final"] * (recipe.clip_final != 1)
    clipping += ["dual_clip"] * (recipe.dual_clip is not None) + ["brakes.max_kl"] * (recipe.brakes.max_kl is not None)
    updates = {size: recipe.updates(size) for size in recipe.batch_sizes}
    if max(updates.values()) == 1 and clipping:
        raise ValueError(
            f"{clipping[0]}: got a value while updates_per_rollout=1, allowed: nothing (the ratio is 1 throughout, so it "
            "cannot act; set updates_per_rollout to 2 or more)"
            if recipe.minibatch_prompts is None
            else f"{clipping[0]}: got a value while minibatch_prompts={recipe.minibatch_prompts} is a whole batch, allowed: "
            "nothing (one optimizer step per rollout has a ratio of 1 throughout, so it cannot act; take fewer prompts)"
        )
    ratio = recipe.brakes.max_norm_ratio
    norms = (recipe.steps - recipe.critic.warmup_steps) * min(updates.values())
    why = f"the run has {norms} optimizer steps, and the brake knows a median from the {FEW_NORMS + 1}th on"
    require(ratio is None or norms > FEW_NORMS, "brakes.max_norm_ratio", ratio, "null", why)
