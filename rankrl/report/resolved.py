"""Reads run.yaml and decides whether runs belong to one sweep.

Files are split into sections as text, and each distinct text is parsed once: parsing the YAML of
ten thousand files takes minutes.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import MISSING, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from rankrl.recipe.history import FORMAT, SECTIONS, completed, first_difference, unknown
from rankrl.report.regular_file import content, missing
from rankrl.report.visible import visible

LARGEST_FILE_BYTES = 1 << 20
"""Largest run.yaml or result.json that is read. Real ones have a few thousand bytes."""
SHARED = ("sweep", "scale")
BY_ARM = ("steps", "axes", "recipe", "rules")
TYPES: dict[str, type] = {
    "format": int,
    "sweep": str,
    "steps": int,
    **dict.fromkeys(("scale", "axes", "recipe", "rules"), dict),
    **dict.fromkeys(("data_revision", "versions"), object),
}
"""Section of run.yaml -> its type."""
KEPT = {"format", *SHARED, *BY_ARM, "data_revision", "versions", "rank", "batch_size", "seed"}
"""Keys of run.yaml that are compared with other runs; the others are not kept in memory."""
OTHERS = {"run_id", "arm", "trainable_params", "derived", "openrlhf"}
"""Keys of run.yaml that are not compared with other runs."""
LONGEST_SECTION = 1 << 16
LONGEST = 60
MOST_VERSIONS = 4


class TreeLoader(yaml.SafeLoader):
    """A safe YAML loader that refuses aliases, with which a small file can make a huge tree.

    It is the loader in Python, since the one in C crashes the process on deeply nested files.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias")
        return super().compose_node(parent, index)


@dataclass(frozen=True)
class Section:
    """A top-level key of a run.yaml."""

    tree: Any
    """The value, with every key of today's schema; the text itself if it is not YAML."""
    notation: str
    """The value as JSON. Values that mean the same have the same notation."""
    unknown: tuple[tuple[str, Any], ...] = ()
    """(dotted key, value) of each key that the schema does not know."""
    damage: str = ""
    """Why the text is no plain YAML; "" if it is."""


def resolved_sections(path: Path) -> dict[str, str]:
    """Top-level key -> text of its value, of the run.yaml at `path`; {} if it cannot be read."""
    try:
        return _split(content(path, LARGEST_FILE_BYTES).decode())
    except (OSError, UnicodeDecodeError):
        return {}


def _split(text: str) -> dict[str, str]:
    return {key: sys.intern(value.rstrip("\n")) for key, value in _parts(text)}


def _parts(text: str) -> list[tuple[str, str]]:
    parts = (part.partition(":") for part in re.split(r"(?m)^(?=[A-Za-z])", text))
    return [(key, value) for key, colon, value in parts if colon]


def compared_sections(run: Path) -> tuple[dict[str, str], str]:
    """(key -> text of the sections of a run's run.yaml that are compared with others, problem).

    A damaged file has no sections, and problem says why; "" if there is none. The last section of a
    file that ends before its versions is left out: the file may be cut off there.
    """
    try:
        text = content(run / "run.yaml", LARGEST_FILE_BYTES).decode()
    except UnicodeDecodeError:
        return {}, "no UTF-8 text"
    except OSError as error:
        return {}, "" if missing(run / "run.yaml") else f"not readable ({error.strerror or error})"
    sections, times = _split(text), Counter(key for key, _ in _parts(text))
    if "versions" not in sections:
        sections = dict(list(sections.items())[:-1])
    found = {key: part for key, part in sections.items() if key not in OTHERS}
    said = [f"{short(key)} stands in it {n} times" for key, n in times.items() if n > 1]
    said += filter(None, (_damage(key, found[key]) for key in TYPES if key in found))
    return ({}, said[0]) if said else (found, "")


def _damage(key: str, text: str) -> str:
    """Why a section cannot be what rankrl wrote under this key; "" if it can."""
    parsed = section(key, text)
    if parsed.damage:
        return f"{key} is {parsed.damage}"
    fine = isinstance(parsed.tree, TYPES[key]) and type(parsed.tree) is not bool
    return "" if fine and (key != "format" or parsed.tree > 0) else f"{key} is {short(parsed.tree)}"


@lru_cache(maxsize=4096)
def section(key: str, text: str) -> Section:
    """A section, parsed from its text. It stays a text if it is not YAML or too long to be real."""
    try:
        if len(text) >= LONGEST_SECTION:
            raise ValueError(f"longer than {LONGEST_SECTION} characters")
        tree = yaml.load(text, Loader=TreeLoader)
        beyond = unknown(key, tree) if key in SECTIONS else []
        whole = completed(key, tree) if key in SECTIONS else tree
        return Section(whole, json.dumps(_plain_numbers(whole), default=str), tuple(beyond))
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        damage = f"no plain YAML ({_why(error)})"
        return Section(text.strip(), json.dumps(text.strip()), damage=damage)


def _why(error: Exception) -> str:
    """The reason for which YAML was refused, in a few words."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    said = getattr(error, "problem", None) or str(error)
    return " ".join(visible(said).split())[:LONGEST]


def _plain_numbers(tree: Any) -> Any:
    """`tree` with whole floats as integers (1.0 as 1, which it equals) and keys as texts."""
    if isinstance(tree, dict):
        return {str(key): _plain_numbers(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_plain_numbers(value) for value in tree]
    return int(tree) if isinstance(tree, float) and tree.is_integer() else tree


def newer(sections: dict[str, str]) -> str:
    """Why a run.yaml is that of another rankrl, whose runs cannot be compared; "" if it is not."""
    found = section("format", sections.get("format", "1")).tree
    if type(found) is not int or found < 1:
        return f"run.yaml has format={short(found)}, allowed: 1 to {FORMAT} (it is damaged)"
    if found > FORMAT:
        return f"run.yaml has format={found}, allowed: at most {FORMAT} (a newer rankrl wrote it: use that one)"
    unknown_here = [pair for name in SECTIONS for pair in section(name, sections.get(name, "{}")).unknown]
    unknown_here += [(name, section(name, text).tree) for name, text in sections.items() if name not in KEPT | OTHERS]
    for key, value in unknown_here:
        if value is not None:
            return f"run.yaml has {key}={short(value)}, a key unknown here (another rankrl wrote it: use that one)"
    return ""


def versions(sections: dict[str, str]) -> dict[str, str]:
    """Package -> version, with the grader's version and the commit; {} if none are recorded."""
    tree = section("versions", sections.get("versions", "{}")).tree
    return {str(name): str(version) for name, version in tree.items()} if isinstance(tree, dict) else {}


def data_revision(sections: dict[str, str]) -> dict[str, str]:
    """Part of the data (train, evaluation) -> revision of its items; {} if none are recorded."""
    tree = section("data_revision", sections.get("data_revision", "{}")).tree
    return {str(part): str(revision) for part, revision in tree.items()} if isinstance(tree, dict) else {}


def occurring(resolved: Iterable[dict[str, str]]) -> dict[str, Counter[str]]:
    """Package -> version -> number of runs.

    A run that records versions, but not this package's, counts as version `none`.
    """
    found = Counter(sections["versions"] for sections in resolved if "versions" in sections)
    named = [(versions({"versions": text}), runs) for text, runs in found.items()]
    counted: dict[str, Counter[str]] = {name: Counter() for given, _ in named for name in given}
    for name, counter in counted.items():
        for given, runs in named:
            counter[given.get(name, "none")] += runs
    return counted


def versions_note(resolved: Iterable[dict[str, str]]) -> str:
    """Versions and their numbers of runs, of packages with more than one version; "" if none."""
    mixed = {name: counter for name, counter in occurring(resolved).items() if len(counter) > 1}
    return "; ".join(f"{name} {_listed(counter)}" for name, counter in mixed.items())


def versions_apart(resolved: Iterable[dict[str, str]], here: dict[str, str]) -> str:
    """Of which packages runs had another version than there is here; "" if none."""
    apart = {
        name: Counter({version: runs for version, runs in counter.items() if version != here.get(name, "none")})
        for name, counter in occurring(resolved).items()
    }
    return "; ".join(
        f"{name} {_brief(here.get(name, 'none'))} here, {_listed(others)}" for name, others in apart.items() if others
    )


def _listed(counter: Counter[str]) -> str:
    """Versions and numbers of runs, most frequent first: `2.13.0 (5 runs), 2.14.0 (1 run)`."""
    shown = [f"{_brief(version)} ({n} run{'s' * (n > 1)})" for version, n in counter.most_common(MOST_VERSIONS)]
    more = len(counter) - len(shown)
    return ", ".join(shown) + (f", and {more} more" if more else "")


def _brief(version: str) -> str:
    """A commit by its first twelve digits."""
    return version[: 12 if re.fullmatch("[0-9a-f]{40}", version) else 40]


def kind(sections: dict[str, str], result: dict[str, Any]) -> dict[str, str]:
    """Key -> notation of all that must be equal in the runs of a sweep, or in those of an arm."""
    arm = f" of arm {result['arm']}" if result["arm"] else ""
    shared = {key: section(key, sections[key]).notation for key in SHARED if key in sections}
    own = {key + arm: section(key, sections[key]).notation for key in BY_ARM if key in sections}
    grader = {"versions.grader": json.dumps(graded)} if (graded := versions(sections).get("grader")) else {}
    items = {f"data_revision.{part}": json.dumps(revision) for part, revision in data_revision(sections).items()}
    return {**shared, **own, **items, **grader, "base_params": str(result["base_params"])}


def usual_kind(kinds: list[dict[str, str]]) -> dict[str, str]:
    """Key -> its most frequent notation among `kinds`."""
    found: dict[str, Counter[str]] = {}
    for one in kinds:
        for key, notation in one.items():
            found.setdefault(key, Counter())[notation] += 1
    return {key: counter.most_common(1)[0][0] for key, counter in found.items()}


def difference(ours: dict[str, str], usual: dict[str, str]) -> str:
    """The first difference between a run and the usual one, in words.

    "" if there is none. Keys that `usual` lacks are not compared.
    """
    for key, notation in ours.items():
        if notation != (other := usual.get(key, notation)):
            trees = json.loads(other), json.loads(notation)
            leaf, there, here = first_difference(*trees) or ("", *trees)
            return f"{key}{leaf and '.'}{leaf}: {short(_text(here))} here, {short(_text(there))} there"
    return ""


def _text(value: Any) -> str | None:
    """A value as text, in JSON unless it is a text already; None if it is MISSING."""
    return None if value is MISSING else value if isinstance(value, str) else json.dumps(value)


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
