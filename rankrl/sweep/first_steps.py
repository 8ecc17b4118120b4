"""The first optimizer step of each rank, measured on the services before the first run.

It is measured once per base, init, rules of alpha and of the rates, allocation and ranks, and
cached beside the measured starts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import ray

from rankrl.adapter.first_step import Draw
from rankrl.adapter.start import Start
from rankrl.data.items import Item, step_indices
from rankrl.ppo.rollout import Rollouts, Sample
from rankrl.ppo.services import Services
from rankrl.recipe.allocation import allocation_table
from rankrl.recipe.first_step import DRAWS, FirstSteps
from rankrl.recipe.init_section import FROM_WEIGHTS, Init
from rankrl.recipe.knobs import knob
from rankrl.recipe.plan import Run
from rankrl.recipe.require import require
from rankrl.sweep.first_step_cache import measured_ranks, reference_rate
from rankrl.sweep.measuring import both_ways, deal, facts
from rankrl.sweep.training import measured_importance

PROMPTS, ANSWERS = 64, 8
"""Training prompts of the policy gradient, and answers to each."""
HELD_OUT, HELD_OUT_ANSWERS = 64, 2
"""Evaluation prompts on whose answers the KL is taken, and answers to each."""
GRADIENT, JUDGE = -2, -3
"""Step numbers that seed the requests: neither those of a run nor those that measure its start."""
TOKENS_AT_ONCE = 2048
"""Tokens whose logits a worker holds at once."""
Starts = Callable[[Run, Init], Start | None]


def measure_first_steps(
    services: Services, rollouts: Rollouts, items: tuple[list[Item], list[Item]], run: Run, start: Starts
) -> FirstSteps:
    """What all policy workers measure together. Advantages are leave-one-out, as in `facts`: the
    verdict minus the mean of its prompt's others, which is its group mean but for a factor."""
    graded = answers(rollouts, items[0], GRADIENT, PROMPTS, ANSWERS)
    kept, used = both_ways(graded)
    why = "the others have no advantage; the base must solve some prompts, and not always"
    require(used >= 4, "rules.lr.rule", f"{used} of {PROMPTS} prompts answered both right and wrong", "at least 4", why)
    judged = answers(rollouts, items[1], JUDGE, HELD_OUT, HELD_OUT_ANSWERS)
    place, pad = services.scale.placement, rollouts.prompter.tokenizer.pad_token_id
    samples, workers = facts(kept), len(services.policy.workers)
    shares, held_out = (
        deal(part, told, workers, place.micro_batch, pad) for part, told in ((kept, samples), (judged, facts(judged)))
    )
    rate, parts = reference_rate(run), -(-place.micro_batch * services.scale.lengths.response_tokens // TOKENS_AT_ONCE)
    drawn = draws(run, services, start)
    tasks = [(drawn, rate, share, samples, held, parts) for share, held in zip(shares, held_out, strict=True)]
    ranks = ray.get(services.policy.each("first_steps", tasks))[0]
    told = {"prompts": PROMPTS, "prompts_used": used, "samples": len(graded), "samples_used": len(kept)}
    tokens = sum(sample.tokens for sample in (*graded, *judged))
    return FirstSteps(*rate, ranks, {**told, "held_out_samples": len(judged), "tokens": tokens})


def answers(rollouts: Rollouts, items: list[Item], step: int, prompts: int, each: int) -> list[Sample]:
    """Graded answers of the base to up to so many prompts, drawn by seed 0."""
    chosen = [items[i] for i in step_indices(0, 0, min(prompts, len(items)), len(items))]
    return rollouts.rollout(None, 0, step, chosen, each)


def draws(run: Run, services: Services, start: Starts) -> list[Draw]:
    """Where the adapters of all ranks start, at the seeds 0 to DRAWS - 1.

    A start from the weights does not depend on the seed, so it is one draw.
    """
    number = 1 if run.recipe.init.method in FROM_WEIGHTS else DRAWS
    return [_draw(run, seed, services, start) for seed in range(number)]


def _draw(run: Run, seed: int, services: Services, start: Starts) -> Draw:
    recipe, reference, ranks = run.recipe, run.scale.reference, measured_ranks(run)
    at = replace(run, seed=seed, recipe=replace(recipe, ranks=tuple(ranks)))
    importance = measured_importance(at, start) if recipe.allocation.measured else None
    tables = {r: allocation_table(recipe, reference, r, services.policy_shapes, seed, importance) for r in ranks}
    ratios = {r: knob(recipe, reference, "lr_ratio", r).value for r in ranks}
    return Draw(seed, recipe.init, start(at, recipe.init), tables, ratios, recipe.trained)
