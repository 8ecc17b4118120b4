"""Checks the content of result.json."""

from __future__ import annotations

import codecs
import json
from collections import Counter
from math import isfinite
from pathlib import Path
from typing import Any, get_type_hints

from rankrl.recipe.run_id import run_id
from rankrl.report.regular_file import content
from rankrl.report.resolved import LARGEST_FILE_BYTES, short
from rankrl.report.result import KEYS, Result

STATUSES = ("finished", "diverged", "failed")
TYPES = get_type_hints(Result)
TEXTS = tuple(key for key in KEYS if TYPES[key] is str)
COUNTS = tuple(key for key in KEYS if TYPES[key] is int)
FRACTIONS = tuple(key for key in KEYS if TYPES[key] == float | None)
MARKS = {codecs.BOM_UTF8: "UTF-8", codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}
LONGEST_S = 1e10
"""Longest believable duration of a run in seconds: three centuries."""


def read_json(path: Path, most_bytes: int = LARGEST_FILE_BYTES) -> Any:
    """The content of a JSON file.

    Raises ValueError, with the reason, if it cannot be read, is larger than `most_bytes`, is not
    JSON, has a key twice, or contains NaN or Infinity.
    """
    try:
        text = content(path, most_bytes)
        return json.loads(_decoded(text), parse_constant=_refuse, object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        raise ValueError("no text") from error
    except json.JSONDecodeError as error:
        raise ValueError("cut off or no JSON" if text.strip() else "empty") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except OSError as error:
        raise ValueError(f"not readable ({error.strerror or error})") from error


def _decoded(text: bytes) -> str:
    """The text of a JSON file. rankrl writes UTF-8 without a mark; an editor may have saved it."""
    for mark, name in MARKS.items():
        if text.startswith(mark):
            raise ValueError(f"{name} with a byte order mark, allowed: UTF-8 without one")
    return text.decode()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        doubled = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise ValueError(f"{short(doubled)} stands in it twice")
    return found


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number")


def result_problem(result: Any) -> str:
    """The first problem with the content of a result.json; "" if there is none."""
    if not isinstance(result, dict):
        return "no JSON object"
    missing = [key for key in KEYS if key not in result]
    if missing:
        return f"lacks {', '.join(missing)}"
    for key in TEXTS:
        if not isinstance(result[key], str) or not encodable(result[key]):
            return f"{key} is {short(result[key])}, no text"
    if result["status"] not in STATUSES:
        return f"status is {short(result['status'])}, none of {', '.join(STATUSES)}"
    return _number_problem(result) or _contradiction(result)


def _number_problem(result: dict[str, Any]) -> str:
    for key in COUNTS:
        value = result[key]
        least = 1 if key in ("rank", "batch_size", "trainable_params", "base_params") else 0
        if type(value) is not int or not least <= value < 2**63:
            return f"{key} is {short(value)}, no count"
    if not _real(result["wall_s"]) or not 0 <= result["wall_s"] <= LONGEST_S:
        return f"wall_s is {short(result['wall_s'])}, no duration"
    for key in (*FRACTIONS, *({"average_score"} & {*result})):
        value, least = result[key], -1 if key == "gain" else 0
        if value is None and (result["status"] != "finished"):
            continue
        if not _real(value) or not least <= value <= 1:
            return f"{key} is {short(value)}, no fraction"
    return ""


def _contradiction(result: dict[str, Any]) -> str:
    name = run_id(*(result[key] for key in ("arm", "rank", "batch_size", "seed")))
    if result["run_id"] != name:
        return f"run_id is {short(result['run_id'])}, and its arm, rank, batch size and seed say {name}"
    scores = [result[key] for key in ("final_score", "base_score", "gain")]
    if None not in scores and abs(scores[0] - scores[1] - scores[2]) > 1e-6:
        return f"gain is {scores[2]:.6g}, and final_score - base_score is {scores[0] - scores[1]:.6g}"
    return ""


def _real(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300 and isfinite(value)


def encodable(text: str) -> bool:
    """Whether `text` has no half of a surrogate pair, which no file or page can hold."""
    return not any("\ud800" <= mark <= "\udfff" for mark in text)
