"""`rankrl eval`: samples and grades a base, another model, an adapter or a finished run.

Sampling and grading are those of training; only engines are started.
"""

from __future__ import annotations

import json
import sys
from contextlib import closing, redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from rankrl.adapter.peft_files import CONFIG, check_fits, read_config
from rankrl.adapter.served import check_served
from rankrl.data.base_model import local_directory
from rankrl.data.items import Item, revision
from rankrl.data.loading import load_items
from rankrl.data.ready import check_ready
from rankrl.recipe.allocation import module_shapes
from rankrl.recipe.architecture import EMBEDDED, config_path
from rankrl.recipe.architecture import read_config as model_config
from rankrl.recipe.rank_table import Shapes, serving_rank
from rankrl.recipe.require import require
from rankrl.recipe.scale import Model, Scale
from rankrl.report.read import divergence, read_result
from rankrl.report.resolved import data_revision, newer, resolved_sections, section, versions
from rankrl.report.statistics.passk import pass_rows, pass_table
from rankrl.reward.grade import GRADER
from rankrl.sweep.base_score import base_samples, cache_file, sample_rows

if TYPE_CHECKING:
    from rankrl.ppo.rollout import Prompter
    from rankrl.ppo.serving import Payload

ADAPTER_ID = 1
MARKS = ["item_id", "correct", "boxed", "truncated"]
"""Columns of a cached base that pass@k needs."""
COMPARABLE = ("model.dtype", "data.evaluation", "data.eval_items", "data.template", "data.instruction", "data.thinking",
              "lengths.response_tokens", "sampling.eval_temperature", "sampling.eval_samples")  # fmt: skip
"""The settings that a score depends on, besides the adapter."""


@dataclass(frozen=True)
class Subject:
    """What is evaluated: the base of `scale`, or an adapter on it."""

    scale: Scale
    adapter: Path | None = None
    rank: int = 1
    """Largest rank among the adapter's modules."""
    eval_seed: int | None = None
    """What seeds the requests besides item and sample (recipe eval_seeds); None: nothing."""

    @property
    def samples(self) -> int:
        """Number of samples per item, as in a run.

        A base gets more than an adapter, because it is sampled only once.
        """
        sampling = self.scale.sampling
        return sampling.eval_samples if self.adapter else sampling.base_samples


def find_subject(word: str, scale: Scale) -> Subject:
    """What a user's word names: `base`, a directory (of a run, adapter or model), or a hub id.

    It starts and loads nothing. Raises ValueError, one line, for a word that names none of them, or
    for an adapter of another base than the scale's.
    """
    path = Path(word)
    if word == "base":
        return Subject(scale)
    if (path / "run.yaml").is_file() or (path / "result.json").is_file():
        return _of_run(path, scale)
    if (path / CONFIG).is_file():
        return _of_adapter(path, scale, "MODEL")
    hub_id = not path.exists() and word.count("/") < 2 and not word.startswith((".", "/", "~"))
    known = word.startswith("embedded:") or (path / "config.json").is_file() or hub_id
    allowed = f"base, or a directory with result.json (a finished run), {CONFIG} or config.json, or a hub id"
    require(known, "MODEL", word, allowed, "no such directory" if not path.exists() else "it has none of these files")
    return Subject(replace(scale, model=replace(scale.model, path=word, revision=None)))


def _of_run(run: Path, scale: Scale) -> Subject:
    result = read_result(run)
    status = result.get("status") if isinstance(result, dict) else None
    measurable = status == "finished" or divergence(run)
    require(bool(measurable), "RUN_DIR", str(run), "a finished run", f"it is {status or 'not finished'}")
    sections = resolved_sections(run / "run.yaml")
    unreadable = newer(sections)
    require(not unreadable, "RUN_DIR", str(run), "a run that this rankrl reads", unreadable)
    try:
        made_at = section("scale", sections["scale"]).tree
        was = Model(**made_at["model"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"RUN_DIR: {run / 'run.yaml'} is missing or damaged ({type(error).__name__})") from error
    same = _same(was.path, scale.model.path) and was.revision == scale.model.revision
    trained_on = f"{was.path}" + (f" at {was.revision}" if was.revision else "")
    require(same, "SCALE", scale.name, f"a scale whose base is {trained_on}", f"{run} was trained on it")
    for line in filter(None, [divergence(run), *differences(made_at, scale)]):
        print(f"note: {line}", file=sys.stderr)
    return replace(_of_adapter(run / "adapter", scale, "RUN_DIR"), eval_seed=_eval_seed(sections))


def _eval_seed(sections: dict[str, str]) -> int | None:
    """What seeded the evaluation requests of a run besides item and sample."""
    recipe = section("recipe", sections.get("recipe", "{}")).tree
    apart = isinstance(recipe, dict) and recipe.get("eval_seeds") == "per_seed"
    return int(sections["seed"]) if apart else None


def differences(made_at: dict[str, Any], scale: Scale) -> list[str]:
    """A line for each setting in which this evaluation differs from the run's own.

    Only settings that scores depend on are compared.
    """
    was, now = _flat(made_at), _flat(asdict(scale))
    keys = [key for key in now if key in COMPARABLE and was.get(key) != now[key]]
    return [f"the run's own evaluation had {key}={was.get(key)!r}, this one has {now[key]!r}" for key in keys]


def measured_apart(run: Path, items: list[Item]) -> list[str]:
    """A line each if a run was evaluated on other items than these, or by another grader."""
    sections = resolved_sections(run / "run.yaml")
    was = {"evaluation items": data_revision(sections).get("evaluation"), "grader": versions(sections).get("grader")}
    now = {"evaluation items": revision(items), "grader": str(GRADER)}
    apart = [(key, there, now[key]) for key, there in was.items() if there is not None and there != now[key]]
    return [
        f"the run's own evaluation had {key} of revision {there}, this one has {here}" for key, there, here in apart
    ]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return leaves


def _of_adapter(directory: Path, scale: Scale, key: str) -> Subject:
    base = read_config(directory, key).get("base_model_name_or_path")
    same = base is None or _same(base, scale.model.path)
    require(same, key, str(directory), f"an adapter of {scale.model.path}, the base of this scale", f"it is {base}'s")
    rank = check_fits(directory, _shapes(scale), scale.model.path, key)
    serving_rank(rank)
    return Subject(scale, directory, rank)


def _shapes(scale: Scale) -> Shapes:
    """The shapes of the adapted modules by the names that the model gives them."""
    path = config_path(scale.model)
    if path is None:
        return module_shapes(scale)
    from rankrl.adapter.host import target_shapes
    from rankrl.adapter.reach import meta_model

    return target_shapes(meta_model(path), scale.model.modules, scale.model.layers)


def _same(a: str, b: str) -> bool:
    """Whether two names of models are equal, or name the same directory."""
    first, second = (EMBEDDED.get(name, Path(name)).resolve() for name in (a, b))
    return a == b or first == second


def evaluate(word: str, scale: Scale, directory: Path, as_json: bool) -> int:
    """Prints pass@k, overall and by source. Returns the exit code.

    A base's samples are cached under `directory`, for runs as well. Raises ValueError, one line,
    before anything is started if the word, model, adapter or data are wrong.
    """
    subject = find_subject(word, scale)
    model_path = str(local_directory(subject.scale.model))  # a missing model is an error at once
    items = load_items(scale.data)[1]
    for line in measured_apart(Path(word), items):
        print(f"note: {line}", file=sys.stderr)
    rows = None if subject.adapter else _cached(cache_file(subject.scale, items, directory, model_path), items)
    if rows is None:
        check_served(subject.scale.model.path, model_config(Path(model_path) / "config.json"))
        for line in check_ready(subject.scale, ([], items), Path(model_path)):
            print(f"warning: {line}", file=sys.stderr)
        with redirect_stdout(sys.stderr):  # libraries log to stderr; stdout has the answer alone
            rows = _sampled(subject, items, directory, model_path)
    results = pass_rows(rows.to_dict("records"))
    if as_json:
        words = {"model": word, "scale": scale.name, "samples_per_item": subject.samples}
        print(json.dumps({**words, "temperature": scale.sampling.eval_temperature, "results": results}))
        return 0
    print("\n".join(pass_table(results)))
    print(f"{subject.samples} samples an item, 95 % intervals over items in brackets")
    return 0


def _cached(path: Path, items: list[Item]) -> pd.DataFrame | None:
    """A row per cached sample of a base; None if there are none.

    Sources are not part of the cache key, so they are taken from `items`.
    """
    try:
        rows = pd.read_parquet(path, columns=MARKS)
    except (OSError, ValueError):  # absent, cut short, or without one of them
        return None
    return rows.assign(source=rows["item_id"].map({item.item_id: item.source for item in items}))


def _sampled(subject: Subject, items: list[Item], directory: Path, model_path: str) -> pd.DataFrame:
    """A row per sample. Starts Ray and the engines of the scale, and nothing else.

    Raises ValueError, one line, if an engine fails.
    """
    from rankrl.sweep.local import prepare_process

    prepare_process(subject.scale.placement.engines_only.gpus, lambda line: print(line, file=sys.stderr))
    import ray

    from rankrl.ppo.services import engines_alone, resolve_model

    try:
        resolve_model(subject.scale.model)  # refuses a precision that this machine cannot serve
        prompter = tokenized(subject.scale, items, model_path)
        engines = engines_alone(subject.scale, model_path, subject.rank)
        return sample(subject, engines, prompter, items, directory, model_path)
    except ray.exceptions.RayError as error:
        said = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]  # it is below the remote traceback
        raise ValueError(f"MODEL: the engine failed: {said[:500]}") from error
    finally:
        ray.shutdown()


def tokenized(scale: Scale, items: list[Item], model_path: str) -> Prompter:
    """A prompter that has tokenized all items. Raises ValueError for a prompt that is too long."""
    from openrlhf.utils.utils import get_tokenizer

    from rankrl.ppo.rollout import Prompter

    prompter = Prompter(get_tokenizer(model_path, None), scale)
    for item in items:
        prompter(item)
    return prompter


def sample(
    subject: Subject, engines: list[Any], prompter: Prompter, items: list[Item], directory: Path, model_path: str
) -> pd.DataFrame:
    """A row per sample, from the requests and seeds of a run's evaluations."""
    import ray

    from rankrl.ppo.canary import check_digests
    from rankrl.ppo.rollout import Rollouts
    from rankrl.reward.grade import Grader

    with closing(Grader()) as grader:
        rollouts = Rollouts(prompter, engines, subject.scale, grader)
        if subject.adapter is None:
            return sample_rows(base_samples(rollouts, items, directory, model_path))
        payload = adapter_payload(subject.adapter, subject.scale.model.dtype)
        check_digests(ray.get([engine.load_adapter.remote(ADAPTER_ID, payload) for engine in engines]))
        return sample_rows(rollouts.evaluate(ADAPTER_ID, items, subject.samples, subject.eval_seed))


def adapter_payload(directory: Path, dtype: str) -> Payload:
    """The payload of an adapter on disk, the same as training sends.

    Factors are read in fp32, scales are folded in, then they are cast to `dtype`, the engine's
    precision.
    """
    from safetensors.torch import load_file

    from rankrl.adapter.export import module_scale
    from rankrl.adapter.peft_files import PREFIX, WEIGHTS
    from rankrl.ppo.serving import pack

    config, tensors = read_config(directory, "MODEL"), load_file(directory / WEIGHTS)
    names = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    pairs = {name: (tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]) for name in names}
    factors = {name.removeprefix(PREFIX): (a.float(), b.float()) for name, (a, b) in pairs.items()}
    scales = {name: module_scale(config, name, len(a)) for name, (a, _) in factors.items()}
    return pack(factors, scales, dtype)
