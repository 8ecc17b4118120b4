"""The base's evaluation, which all runs use.

It is sampled once per model, items and sampling settings, and cached under the runs directory with
the text of every response. A cache file of an earlier rankrl, without texts, stays in use: sampled
again, the base might score otherwise, and the runs of a sweep would have different bases.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from rankrl.data.items import Item, revision
from rankrl.recipe.scale import Scale
from rankrl.recipe.whole_file import whole_file
from rankrl.report.model_text import storable
from rankrl.report.nothing_right import Tally
from rankrl.reward.grade import GRADER, Verdict

if TYPE_CHECKING:  # a cached score is read without the training stack
    from rankrl.ppo.rollout import Rollouts, Sample


def base_samples(rollouts: Rollouts, items: list[Item], directory: Path, model_path: str) -> list[Sample]:
    """Graded samples of the base: from the cache under `directory`, else from the engines.

    A cache file that cannot be read is written again.
    """
    path = cache_file(rollouts.scale, items, directory, model_path)
    try:
        return _read(path, items)
    except Exception:  # absent, cut short, or of other items
        samples = rollouts.evaluate(None, items, rollouts.scale.sampling.base_samples)
        _write(path, samples)
        return samples


def cache_file(scale: Scale, items: list[Item], directory: Path, model_path: str) -> Path:
    """The file under `directory` that caches the base's evaluation."""
    return directory / "base" / f"{scale.name}-{cache_key(scale, model_path, revision(items))}.parquet"


def sample_rows(samples: list[Sample]) -> pd.DataFrame:
    """A row per sample, as in a run's evals.parquet, with `truncated` instead of the text."""
    from rankrl.ppo.records import eval_rows

    return pd.DataFrame(eval_rows(0, samples)).assign(truncated=[sample.truncated for sample in samples])


def tally_of(samples: list[Sample]) -> Tally:
    """Verdicts on samples, with an example of those that are not correct."""
    outcomes = [sample.verdict.outcome for sample in samples]
    wrong = [sample for sample in samples if not sample.verdict.correct]
    example = next((sample for sample in wrong if sample.verdict.outcome == "unparsable"), wrong[0] if wrong else None)
    return Tally(
        len(samples),
        outcomes.count("correct"),
        outcomes.count("unparsable"),
        sum(sample.truncated for sample in samples) / max(1, len(samples)),
        (example.response or "") if example else "",
        example.item.answer if example else "",
    )


def _write(path: Path, samples: list[Sample]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:  # two tasks may evaluate the base at once
        texts = [None if sample.response is None else storable(sample.response) for sample in samples]
        rows = sample_rows(samples).assign(response=pd.Series(texts, dtype="str"))
        rows.to_parquet(part, compression="zstd")


def _read(path: Path, items: list[Item]) -> list[Sample]:
    from rankrl.ppo.rollout import Sample

    by_id = {item.item_id: item for item in items}
    rows = pd.read_parquet(path)
    texts = rows["response"] if "response" in rows else [None] * len(rows)
    return [
        Sample(
            by_id[r.item_id],
            r.sample,
            [],
            [0] * r.response_tokens,
            [],
            r.truncated,
            Verdict(r.verdict, r.boxed),
            text if isinstance(text, str) else None,
        )
        for r, text in zip(rows.itertuples(), texts, strict=True)
    ]


def cache_key(scale: Scale, model_path: str, items: str) -> str:
    """A hash of everything that the base's score depends on.

    That is the model with its precision and tokenizer, items, prompt, lengths, sampling and grader.
    """
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
    """A hash of a small file's content; size and modification time of a large file."""
    if file.stat().st_size < 1 << 26:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    return f"{file.stat().st_size} {file.stat().st_mtime_ns}"
