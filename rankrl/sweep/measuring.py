"""What adapters start from, if it depends on the base.

It is measured once per model, init and seed, cached, and used by every cell.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import ray
import torch
from safetensors import SafetensorError

from rankrl.adapter.start import Start, read_start, write_start
from rankrl.adapter.watch import Batch, Samples
from rankrl.data.items import Item, revision, step_indices
from rankrl.ppo.rollout import Rollouts, Sample, experience
from rankrl.ppo.services import Services
from rankrl.recipe.init_section import FROM_WEIGHTS, Init
from rankrl.sweep.base_score import cache_key

VERSION = 1
"""Version of the measurement. Raise it if the same inputs give another result."""
MEASURING = -1
"""Step number that seeds the requests of a measurement, so that no sample of a run's own steps is
among them."""


def cached_start(
    services: Services, rollouts: Rollouts, items: list[Item], init: Init, rank: int, seed: int, directory: Path
) -> Start:
    """What adapters of rank up to `rank` start from: from the cache, else measured.

    The cache is under `directory`; a file that cannot be read is written again.
    """
    seed = 0 if init.method in FROM_WEIGHTS else seed
    path = directory / f"{init.method}-{start_key(services, items, init, rank, seed)}"
    try:
        return read_start(path)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):  # absent, or cut short
        start = measure(services, rollouts, items, init, rank, seed)
        write_start(path, start)
        return start


def start_key(services: Services, items: list[Item], init: Init, rank: int, seed: int) -> str:
    """A hash of everything that a start depends on.

    That is the base and how it is sampled, the items, the init without its norm, rank and seed.
    """
    scale = services.scale
    parts = [
        VERSION,
        cache_key(scale, services.model_path, revision(items)),
        scale.sampling.temperature,
        scale.model.modules,
        asdict(replace(init, norm="")),
        rank,
        seed,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def measure(services: Services, rollouts: Rollouts, items: list[Item], init: Init, rank: int, seed: int) -> Start:
    """What all policy workers measure together, as worker 0 returns it."""
    workers = len(services.policy.workers)
    if init.method in FROM_WEIGHTS:
        return ray.get(services.policy.each("measure", [(init, rank, seed, [], None)] * workers))[0]
    chosen = [items[i] for i in step_indices(seed, 0, init.prompts, len(items))]
    graded = rollouts.rollout(None, seed, MEASURING, chosen, init.samples_per_prompt)
    kept = graded if init.method == "eva" else mixed(graded, init)
    samples = facts(kept)
    shares = deal(
        kept, samples, workers, services.scale.placement.micro_batch, rollouts.prompter.tokenizer.pad_token_id
    )
    refs = services.policy.each("measure", [(init, rank, seed, share, samples) for share in shares])
    start = ray.get(refs)[0]
    start.summary.update(
        prompts=init.prompts,
        prompts_used=int(samples.group_N.max()) + 1,
        samples=len(graded),
        samples_used=len(kept),
        tokens=sum(sample.tokens for sample in graded),
    )
    return start


def mixed(graded: list[Sample], init: Init) -> list[Sample]:
    """The samples of prompts that were answered both right and wrong.

    For other prompts the advantage is 0. Raises ValueError if fewer than 4 prompts are left.
    """
    kept, used = both_ways(graded)
    if used < 4:
        raise ValueError(
            f"init.prompts: got {init.prompts}, allowed: so many that 4 are answered both right and wrong in "
            f"{init.samples_per_prompt} samples; {used} were (raise init.prompts or init.samples_per_prompt)"
        )
    return kept


def both_ways(graded: list[Sample]) -> tuple[list[Sample], int]:
    """The samples of prompts that were answered both right and wrong, and how many such prompts."""
    verdicts: dict[str, set[bool]] = {}
    for sample in graded:
        verdicts.setdefault(sample.item.item_id, set()).add(sample.verdict.correct)
    kept = [sample for sample in graded if len(verdicts[sample.item.item_id]) == 2]
    return kept, sum(len(seen) == 2 for seen in verdicts.values())


def facts(samples: list[Sample]) -> Samples:
    """Advantage, prompt, half and number of tokens of each sample.

    Advantages are leave-one-out (RLOO): a verdict minus the mean of the prompt's other verdicts.
    Prompts alternate between the two halves.
    """
    names = list(dict.fromkeys(sample.item.item_id for sample in samples))
    group_N = torch.tensor([names.index(sample.item.item_id) for sample in samples])
    right_N = torch.tensor([float(sample.verdict.correct) for sample in samples])
    sums, counts = (
        torch.zeros(len(names)).index_add(0, group_N, values) for values in (right_N, torch.ones_like(right_N))
    )
    others = (sums[group_N] - right_N) / (counts[group_N] - 1).clamp(min=1)
    tokens_N = torch.tensor([len(sample.response_ids) for sample in samples])
    return Samples(right_N - others, group_N, group_N % 2, tokens_N)


def deal(samples: list[Sample], known: Samples, workers: int, micro_batch: int, pad_token: int) -> list[list[Batch]]:
    """Each worker's micro-batches, the same number for every worker, of samples of similar length.

    The last micro-batch of a worker may be a copy with weight 0.
    """
    order = sorted(range(len(samples)), key=lambda i: samples[i].tokens)
    parts = [order[i : i + micro_batch] for i in range(0, len(order), micro_batch)]
    copies = -len(parts) % workers
    batches = [_batch(samples, known, part, 1.0, pad_token) for part in parts]
    batches += [_batch(samples, known, parts[-1], 0.0, pad_token)] * copies
    return [batches[worker::workers] for worker in range(workers)]


def _batch(samples: list[Sample], known: Samples, part: list[int], real: float, pad_token: int) -> Batch:
    padded = experience([samples[i] for i in part], part, [0.0] * len(part), pad_token, 0)
    row_B = torch.tensor(part)
    return Batch(
        padded.sequences,
        padded.attention_mask,
        padded.action_mask,
        row_B,
        known.half_N[row_B],
        known.advantage_N[row_B],
        torch.full((len(part),), real),
    )
