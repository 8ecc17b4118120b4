"""The base's evaluation: sampled once per model, items and sampling, cached under the runs directory, used by every run."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pandas as pd

from rankrl.data.items import Item, revision
from rankrl.ppo.records import eval_rows
from rankrl.ppo.rollout import Rollouts, Sample
from rankrl.recipe.scale import Scale
from rankrl.reward.grade import GRADER, Verdict


def base_samples(rollouts: Rollouts, items: list[Item], directory: Path, model_path: str) -> list[Sample]:
    """From the cache if it has them, else from the engines. A cache file that cannot be read is made anew."""
    scale = rollouts.scale
    path = directory / "base" / f"{scale.name}-{cache_key(scale, model_path, revision(items))}.parquet"
    try:
        return _read(path, items)
    except Exception:  # absent, cut short, or of other items
        samples = rollouts.evaluate(None, items, scale.sampling.base_samples)
        _write(path, samples)
        return samples


def _write(path: Path, samples: list[Sample]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")  # two tasks may evaluate the base at once
    pd.DataFrame(eval_rows(0, samples)).to_parquet(part)
    part.replace(path)


def _read(path: Path, items: list[Item]) -> list[Sample]:
    by_id = {item.item_id: item for item in items}
    rows = pd.read_parquet(path).itertuples()
    return [
        Sample(by_id[r.item_id], r.sample, [], [0] * r.response_tokens, [], False, Verdict(r.verdict, r.boxed))
        for r in rows
    ]


def cache_key(scale: Scale, model_path: str, items: str) -> str:
    """What the base's score depends on: model, its precision and tokenizer, items, prompt, lengths, sampling and grader."""
    sampling = scale.sampling
    parts = [
        [(file.name, _fingerprint(file)) for file in sorted(Path(model_path).iterdir()) if file.is_file()],
        items,
        scale.model.dtype,
        scale.data.template,
        scale.data.instruction,
        scale.data.thinking,
        scale.lengths.response_tokens,
        sampling.eval_temperature,
        sampling.base_samples,
        GRADER,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _fingerprint(file: Path) -> str:
    """Content of a small file; size and date of a large one."""
    if file.stat().st_size < 1 << 26:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    return f"{file.stat().st_size} {file.stat().st_mtime_ns}"
