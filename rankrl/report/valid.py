"""What a result.json must say, and whether runs belong to one sweep. Everything is compared as text: no YAML is parsed here."""

from __future__ import annotations

import json
import re
from collections import Counter
from math import isfinite
from pathlib import Path
from typing import Any, get_type_hints

from rankrl.recipe.run_id import run_id
from rankrl.report.result import KEYS, Result

STATUSES = ("finished", "diverged", "failed")
TYPES = get_type_hints(Result)
TEXTS = tuple(key for key in KEYS if TYPES[key] is str)
COUNTS = tuple(key for key in KEYS if TYPES[key] is int)
FRACTIONS = tuple(key for key in KEYS if TYPES[key] == float | None)
LARGEST_FILE_BYTES = 1 << 20
"""Of result.json and run.yaml; real ones have a few thousand."""
LONGEST_S = 1e10
"""Of a run: three centuries."""
SHARED = ("sweep", "scale")
BY_ARM = ("steps", "recipe", "rules")


def read_json(path: Path) -> Any:
    """Strict JSON of a small file. Raises ValueError, in words, for what is none, and for NaN or Infinity."""
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise ValueError(f"larger than {LARGEST_FILE_BYTES} bytes")
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise ValueError("no text") from error
    except json.JSONDecodeError as error:
        raise ValueError("cut off or no JSON") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except OSError as error:
        raise ValueError(f"not readable ({error.strerror})") from error


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number")


def result_problem(result: Any) -> str:
    """The first thing that is wrong with the content of a result.json; "" if nothing is."""
    if not isinstance(result, dict):
        return "no JSON object"
    missing = [key for key in KEYS if key not in result]
    if missing:
        return f"lacks {', '.join(missing)}"
    for key in TEXTS:
        if not isinstance(result[key], str):
            return f"{key} is {_short(result[key])}, no text"
    if result["status"] not in STATUSES:
        return f"status is {_short(result['status'])}, none of {', '.join(STATUSES)}"
    return _number_problem(result) or _contradiction(result)


def _number_problem(result: dict[str, Any]) -> str:
    for key in COUNTS:
        value = result[key]
        least = 1 if key in ("rank", "batch_size", "trainable_params", "base_params") else 0
        if type(value) is not int or not least <= value < 2**63:
            return f"{key} is {_short(value)}, no count"
    if not _real(result["wall_s"]) or not 0 <= result["wall_s"] <= LONGEST_S:
        return f"wall_s is {_short(result['wall_s'])}, no duration"
    for key in FRACTIONS:
        value, least = result[key], -1 if key == "gain" else 0
        if value is None and (result["status"] != "finished"):
            continue
        if not _real(value) or not least <= value <= 1:
            return f"{key} is {_short(value)}, no fraction"
    return ""


def _contradiction(result: dict[str, Any]) -> str:
    name = run_id(*(result[key] for key in ("arm", "rank", "batch_size", "seed")))
    if result["run_id"] != name:
        return f"run_id is {_short(result['run_id'])}, and its arm, rank, batch size and seed say {name}"
    scores = [result[key] for key in ("final_score", "base_score", "gain")]
    if None not in scores and abs(scores[0] - scores[1] - scores[2]) > 1e-6:
        return f"gain is {scores[2]:.6g}, and final_score - base_score is {scores[0] - scores[1]:.6g}"
    return ""


def _real(value: Any) -> bool:
    return type(value) in (int, float) and isfinite(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def resolved_sections(path: Path) -> dict[str, str]:
    """Top-level key -> text of its value, of the run.yaml at `path`; {} if it is no such file."""
    try:
        text = path.read_text(encoding="utf-8") if path.stat().st_size <= LARGEST_FILE_BYTES else ""
    except (OSError, UnicodeDecodeError):
        return {}
    parts = (part.partition(":") for part in re.split(r"(?m)^(?=[A-Za-z])", text))
    return {key: value.rstrip("\n") for key, colon, value in parts if colon}


def kind(sections: dict[str, str], result: dict[str, Any]) -> dict[str, str]:
    """What must be the same in all runs of a sweep, or of one of its arms: key -> text."""
    arm = f" of arm {result['arm']}" if result["arm"] else ""
    shared = {key: sections[key] for key in SHARED if key in sections}
    own = {key + arm: sections[key] for key in BY_ARM if key in sections}
    return {**shared, **own, "base_params": str(result["base_params"])}


def usual_kind(kinds: list[dict[str, str]]) -> dict[str, str]:
    """Each key with its most frequent text."""
    texts: dict[str, Counter[str]] = {}
    for found in kinds:
        for key, text in found.items():
            texts.setdefault(key, Counter())[text] += 1
    return {key: counter.most_common(1)[0][0] for key, counter in texts.items()}


def difference(ours: dict[str, str], usual: dict[str, str]) -> str:
    """The first key, in words, in which a run differs from the others; "" if it does not, as where no other is of its arm."""
    for key, text in ours.items():
        if text != usual.get(key, text):
            was, now = _leaves(usual[key]), _leaves(text)
            leaf = next((leaf for leaf in [*now, *was] if now.get(leaf) != was.get(leaf)), "")
            return f"{key}{leaf}: {_short(now.get(leaf))} here, {_short(was.get(leaf))} there"
    return ""


def _leaves(text: str) -> dict[str, str]:
    """Block YAML -> {".a.b": value}, by indentation alone; a scalar -> {"": value}."""
    if "\n" not in text:
        return {"": text.strip()}
    leaves: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for number, line in enumerate(filter(str.strip, text.splitlines())):
        key, colon, value = line.strip().partition(":")
        depth = len(line) - len(line.lstrip())
        path = [(at, name) for at, name in path if at < depth] + [(depth, key if colon else str(number))]
        leaves["".join(f".{name}" for _, name in path if name)] = value.strip() if colon else key
    return leaves
