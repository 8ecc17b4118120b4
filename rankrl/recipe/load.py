"""YAML and `key=value` overrides to checked recipes and scales (OmegaConf; no torch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rankrl.recipe.schema import RULES, Recipe, Scale, require

T = TypeVar("T", Recipe, Scale)
ROOT = Path(__file__).resolve().parents[2]
GRID = {"ranks", "batch_sizes", "seeds", "arms", "name"}


@dataclass(frozen=True)
class Experiment:
    """A recipe at a scale: one recipe per arm (the unnamed arm is "")."""

    name: str
    arms: dict[str, Recipe]
    scale: Scale


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def read_yaml(path: Path, key: str) -> DictConfig:
    if not path.is_file():
        raise ValueError(f"{key}: got {str(path)!r}, allowed: an existing YAML file")
    try:
        config = OmegaConf.load(path)
    except Exception as error:
        raise ValueError(f"{key}: {path} is no readable YAML: {_one_line(error)}") from error
    if not isinstance(config, DictConfig):
        raise ValueError(f"{key}: {path} must hold a mapping of keys to values")
    return config


def find_scale(name: str) -> Path:
    """The YAML file of a scale: a path, or the name of a shipped one."""
    shipped = {path.stem: path for path in sorted((Path(__file__).parents[1] / "scales").glob("*.yaml"))}
    if name in shipped:
        return shipped[name]
    path = Path(name)
    require(
        path.suffix in (".yaml", ".yml") and path.is_file(),
        "scale",
        name,
        f"{', '.join(shipped)}, or the path of a YAML file",
    )
    return path


def _expand(config: DictConfig) -> DictConfig:
    """`rules.lr: 1e-4` is short for a constant rule with that value. Arms may be called off and on."""
    if isinstance(config.get("arms"), DictConfig):
        config.arms = {
            {False: "off", True: "on"}.get(key, key): value for key, value in config.arms.items()
        }  # YAML reads off as false
    rules = config.get("rules")
    if isinstance(rules, DictConfig):
        for knob in RULES:
            if knob in rules and isinstance(rules[knob], (int, float)) and not isinstance(rules[knob], bool):
                rules[knob] = {"rule": "constant", "value": rules[knob], "exponent": None, "c": None, "table": None}
            elif isinstance(rules.get(knob), DictConfig) and "rule" in rules[knob]:
                # a named rule starts afresh: options of the default rule do not leak into it
                rules[knob] = {"exponent": None, "c": None, "table": None, **rules[knob]}
    return config


def _overrides(words: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
    """(dotlist as a config, scale words): `scale=NAME` and `scale.KEY=VALUE` are kept apart from the recipe's keys."""
    for word in words:
        require(
            "=" in word and not word.startswith(("=", "-")), "override", word, "key=value", "for instance seeds=[0,1]"
        )
    scale = {w.partition("=")[0]: w for w in words if w.startswith(("scale=", "scale."))}
    try:
        return OmegaConf.from_dotlist([w for w in words if w not in scale.values()]), scale
    except Exception as error:
        raise ValueError(f"override: got {' '.join(words)!r}: {_one_line(error)}") from error


def build(kind: type[T], *layers: Any) -> T:
    """Merges `layers` over the schema and checks the result. Raises ValueError, one line, naming the key."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(kind), *layers)
        missing = OmegaConf.missing_keys(merged)
        if missing:
            raise ValueError(f"{min(missing)}: missing; the {kind.__name__.lower()} must set it")
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ValueError(
            f"{error.full_key or kind.__name__.lower()}: {_one_line(error).partition(' full_key:')[0]}"
        ) from error


def load_scale(name: str, *layers: Any) -> Scale:
    path = find_scale(name)
    return build(Scale, {"name": path.stem}, read_yaml(path, "scale"), *layers)


def load_experiment(recipe: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """A recipe file with `key=value` overrides. `scale=` picks the scale (default nano), `scale.KEY=` changes it.

    Raises ValueError, one line, naming the key, the value and what is allowed.
    """
    path = Path(recipe)
    words, scale_words = _overrides(overrides)
    scale_name = scale_words.pop("scale", "scale=nano").partition("=")[2]
    scale_layer = OmegaConf.from_dotlist([word.removeprefix("scale.") for word in scale_words.values()])
    layers = [{"name": path.stem}, _expand(read_yaml(path, "recipe")), _expand(words)]
    whole = build(Recipe, *layers)
    arms = {name: _arm(name, override, layers) for name, override in whole.arms.items()} or {"": whole}
    return Experiment(whole.name, arms, load_scale(scale_name, scale_layer))


def _arm(name: str, override: dict[str, Any], layers: list[Any]) -> Recipe:
    require(name.isidentifier(), "arms", name, "a name of letters, digits and _", "it stands in the run id")
    fixed = sorted(GRID & set(override))
    require(not fixed, f"arms.{name}", fixed, "keys other than the grid", "all arms share one grid")
    return build(Recipe, *layers, _expand(OmegaConf.create(override)))
