"""Loads YAML and `key=value` overrides as checked recipes and scales (OmegaConf; no torch)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from io import StringIO
from os.path import expanduser
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from rankrl.recipe.advantage_section import Advantage
from rankrl.recipe.axes import (
    GRID,
    Point,
    arm_name,
    check_axes,
    check_unset,
    check_values,
    flat_axes,
    nested,
    placed,
    points,
)  # fmt: skip
from rankrl.recipe.key import as_fields, as_key, other_name
from rankrl.recipe.require import require
from rankrl.recipe.rules_section import OPTIONS
from rankrl.recipe.scale import Execution, Scale
from rankrl.recipe.schema import Recipe
from rankrl.recipe.shipped import find_recipe
from rankrl.recipe.typed import at, described, kind_of, literal, parts, typed_word, typed_yaml

T = TypeVar("T", Recipe, Scale, Execution, Advantage)
_QUOTED = re.compile(r"'(\w+)'")


@dataclass(frozen=True)
class Experiment:
    """A recipe at a scale. `arms` has one recipe per arm; the unnamed arm is "".

    Every point of the axes makes an arm of each arm.
    """

    name: str
    arms: dict[str, Recipe]
    scale: Scale
    execution: Execution = field(default_factory=Execution)
    points: dict[str, Point] = field(default_factory=dict)
    """Name of the arm -> its values on the axes."""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).partition(" full_key:")[0]


def _plain(key: str, make: Callable[[], Any]) -> dict[str, Any]:
    """The config that `make` returns, as plain dicts and lists.

    Raises ValueError, in one line, if it is not YAML or not a mapping.
    """
    try:
        plain = OmegaConf.to_container(make(), resolve=True)
    except Exception as error:
        refused = type(error) is ValueError and ", allowed: " in str(error)
        raise ValueError(f"{key}: {'' if refused else 'not readable as YAML: '}{_one_line(error)}") from error
    require(isinstance(plain, dict), key, plain, "a mapping of keys to values")
    return plain


def read_yaml(path: Path, key: str, kind: type = Recipe) -> dict[str, Any]:
    """The content of a YAML file that has the keys of `kind`: text there is as it was typed."""
    require(path.is_file(), key, str(path), "an existing YAML file")
    return _plain(f"{key} {path}", lambda: OmegaConf.load(StringIO(typed_yaml(kind, path.read_text("utf-8")))))


def _scale_files() -> list[Path]:
    """The shipped scales, by name."""
    return sorted((Path(__file__).parents[1] / "scales").glob("*.yaml"), key=lambda path: path.stem)


def find_scale(name: str) -> Path:
    """The YAML file of a scale, which is given by path or by the name of a shipped one.

    Raises ValueError for an unknown scale.
    """
    shipped = {path.stem: path for path in _scale_files()}
    if name in shipped:
        return shipped[name]
    path = Path(expanduser(name))
    require(
        path.suffix in (".yaml", ".yml") and path.is_file(),
        "scale",
        name,
        f"{', '.join(shipped)}, or the path of a YAML file",
    )
    return path


def _expand(config: dict[str, Any]) -> dict[str, Any]:
    """A recipe with its short forms written out.

    `rules.lr: 1e-4` is short for a constant rule with that value, `correction: NAME` and
    `advantage: NAME` for the method of that name. Axes have dotted keys.
    """
    if "axes" in config:
        config = {**config, "axes": flat_axes(config["axes"])}
    for section in ("correction", "advantage"):
        if isinstance(config.get(section), str):
            config = {**config, section: {"method": config[section]}}
    if isinstance(config.get("rules"), dict):
        config = {**config, "rules": {knob: _expand_rule(knob, rule) for knob, rule in config["rules"].items()}}
    return config


def _expand_rule(knob: str, rule: Any) -> dict[str, Any]:
    number = isinstance(rule, (int, float)) and not isinstance(rule, bool)
    require(number or isinstance(rule, dict), f"rules.{knob}", rule, "a number, or {rule: NAME, ...}")
    afresh = dict.fromkeys(OPTIONS)  # a named rule does not get the options of the default one
    if number:
        return {"rule": "constant", "value": rule, **afresh}
    return {**afresh, **rule} if "rule" in rule else rule


def _overrides(words: Sequence[str], kind: type = Recipe) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """(overrides of the recipe, name of the scale, overrides of the scale) of `key=value` words.

    Words that are not the scale's have the keys of `kind`.
    """
    for word in words:
        fine = "=" in word and not word.startswith(("=", "-", "."))
        require(fine, "override", word, "key=value", "for instance seeds=[0,1]")
    names = [word.removeprefix("scale=") for word in words if word.startswith("scale=")]
    scale = [word.removeprefix("scale.") for word in words if word.startswith("scale.")]
    recipe = [word for word in words if not word.startswith(("scale=", "scale."))]
    recipe_layer, scale_layer = (
        _plain(f"override {' '.join(part)}", lambda part=part, of=of: _dotlist(of, part))  # type: ignore[misc]
        for of, part in ((kind, recipe), (Scale, scale))
    )
    return recipe_layer, (names or ["nano"])[-1], scale_layer


def _dotlist(kind: type, words: Sequence[str]) -> Any:
    return OmegaConf.from_dotlist([typed_word(kind, word) for word in words])


@cache
def _schema(kind: type) -> Any:
    """The OmegaConf schema of a dataclass, with defaults. It is shared, since `merge` copies it."""
    return OmegaConf.structured(kind)


def build(kind: type[T], *layers: dict[str, Any]) -> T:
    """A checked `kind`, made by merging `layers` over its schema.

    Raises ValueError, in one line that names the key.
    """
    try:
        merged = OmegaConf.merge(_schema(kind), *(literal(as_fields(kind, layer)) for layer in layers))  # type: ignore[arg-type]
        missing = OmegaConf.missing_keys(merged)
        if not missing:
            return OmegaConf.to_object(merged)
    except (OmegaConfBaseException, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(_diagnosis(kind, layers, error)) from error
    raise ValueError(f"{min(missing)}: missing; the {kind.__name__.lower()} must set it")


def _diagnosis(kind: type, layers: Sequence[dict[str, Any]], error: Exception) -> str:
    """One line that says which key of which layer the schema refuses, and why."""
    for layer in layers:
        for key, value in layer.items():
            try:
                OmegaConf.merge(_schema(kind), literal(as_fields(kind, {key: value})))
            except Exception as cause:
                full_key = as_key(str(getattr(cause, "full_key", None) or key))
                if isinstance(cause, ConfigKeyError):
                    return f"{full_key}: {_QUOTED.sub(lambda name: repr(as_key(name[1])), _one_line(cause))}"
                names = parts(full_key)
                return f"{full_key}: got {at(layer, names)!r}, allowed: {described(kind_of(kind, names))}"
    return f"{kind.__name__.lower()}: {_one_line(error)}"


def load_scale(name: str, *layers: Any) -> Scale:
    path = find_scale(name)
    return build(Scale, {"name": path.stem}, read_yaml(path, "scale", Scale), *layers)


def scale_of_words(words: Sequence[str]) -> Scale:
    """The scale that `[NAME_OR_PATH] [scale.KEY=VALUE ...]` describes; nano if no name is given.

    Raises ValueError, in one line, as `load_experiment` does.
    """
    names = [word for word in words if "=" not in word or Path(expanduser(word)).is_file()]
    require(len(names) <= 1, "scale", names, "one name or path")
    given = [word for word in words if word not in names]
    recipe, name, scale = _overrides([*(f"scale={name}" for name in names), *given])
    require(not recipe, "override", sorted(recipe), "scale.KEY=VALUE")
    return load_scale(name, scale)


def doctor_words(words: Sequence[str]) -> tuple[Scale, Advantage]:
    """The scale that `words` describe, and the `advantage.KEY=VALUE` among them.

    Raises ValueError, in one line, as `load_experiment` does.
    """
    given = [word for word in words if word.startswith(("advantage.", "advantage="))]
    scale = scale_of_words([word for word in words if word not in given])
    return scale, build(Advantage, _expand(_overrides(given)[0]).get("advantage", {}))


def load_experiment(recipe: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """A recipe, by path or by the name of a shipped one, with `key=value` overrides.

    `scale=` chooses the scale (default nano) and `scale.KEY=` changes it. `parallel_runs=` and
    `services=` say how the runs are executed. Raises ValueError, in one line that names the key,
    the value and what is allowed.
    """
    path = find_recipe(recipe)
    here = tuple(f"{option.name}=" for option in fields(Execution))
    words, scale, scale_words = _overrides([word for word in overrides if not word.startswith(here)])
    execution = _overrides([word for word in overrides if word.startswith(here)], Execution)[0]
    layers = [{"name": path.stem}, _expand(read_yaml(path, "recipe")), _expand(words)]
    axes = _axes(layers)
    grid = points(axes)
    whole = build(Recipe, *layers, _expand(nested(grid[0])))
    require(bool(whole.name), "name", "", "letters, digits, _, - and .", "the sweep's directory has this name")
    given = {name: _arm(name, override, axes) for name, override in whole.arms.items()} or {"": {}}
    arms: dict[str, Recipe] = {}
    of: dict[str, Point] = {}
    for arm, override in given.items():
        names = [arm_name(arm, point) for point in grid]
        of |= dict(zip(names, grid, strict=True))
        arms |= dict(zip(names, _at_points(whole, [*layers, override], grid), strict=True))
    return Experiment(whole.name, arms, load_scale(scale, scale_words), build(Execution, execution), of)


def _at_points(whole: Recipe, layers: list[dict[str, Any]], grid: list[Point]) -> Iterator[Recipe]:
    """The recipe of `layers` at each point of the grid. `whole` is that without the last layer.

    Merging takes 30 ms: it is done once for all points that differ in plain values alone.
    """
    merged = {} if layers[-1] else {repr(_split(grid[0])[0]): whole}
    for point in grid:
        short, plain = _split(point)
        if repr(short) not in merged:
            merged[repr(short)] = build(Recipe, *layers, _expand(nested(point)))
        recipe = merged[repr(short)]
        yield placed(recipe, nested(plain)) if plain else recipe


def _split(point: Point) -> tuple[Point, Point]:
    """(values of a point that stand for several keys, such as the name of a rule, other values)."""
    short = {key: value for key, value in point.items() if _expand(nested({key: value})) != nested({key: value})}
    return short, {key: value for key, value in point.items() if key not in short}


def _arm(name: str, override: dict[str, Any], axes: dict[str, list[Any]]) -> dict[str, Any]:
    """The overrides of an arm, as a layer of its recipe."""
    require(name.isidentifier(), "arms", name, "a name of letters, digits and _", "it stands in the run id")
    fixed = sorted(GRID & set(override))
    require(not fixed, f"arms.{name}", fixed, "keys other than the grid", "all arms share one grid")
    layer = _expand(override)
    check_unset(axes, layer, f"arms.{name}.")
    return layer


def _axes(layers: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Dotted key -> values of each axis, as the schema reads them; a later layer's replace others.

    Raises ValueError for what is no axis, and for a key that is set where it is an axis, or later.
    """
    found: dict[str, list[Any]] = {}
    for layer in layers:
        found |= layer.get("axes", {})
        check_axes(found)
        check_unset(found, {key: value for key, value in layer.items() if key not in GRID}, "")
    read = {key: [_read(key, value) for value in values] for key, values in found.items()}
    for key, values in read.items():
        check_values(key, values)
    return read


def _read(key: str, value: Any) -> Any:
    """A value of a recipe's key, in the type of the schema; of a section's short form, itself.

    Raises ValueError, in one line that names the key.
    """
    layer = _expand(nested({key: value}))
    try:
        at = OmegaConf.merge(_schema(Recipe), literal(as_fields(Recipe, layer)))
        for name in key.split("."):
            at = at[other_name(name)]
    except (OmegaConfBaseException, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"axes: {_diagnosis(Recipe, [layer], error)}") from error
    return value if OmegaConf.is_config(at) else at
