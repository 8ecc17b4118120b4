"""Checks a run's metrics.jsonl: one line of finite numbers for each PPO step, in order."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any

from rankrl.report.regular_file import content
from rankrl.report.resolved import short

NUMERALS = b"0123456789.+-eE, \n"
MOST_NAMED = 3
LARGEST = 1e300


def metrics_problem(path: Path, steps: int) -> str:
    """What is wrong with the metrics.jsonl of a run that finished after `steps`; "" if nothing."""
    try:
        text = content(path)
    except OSError as error:
        return f"not readable ({error.strerror or error})"
    lines = text.split(b"\n")
    lines = lines if lines[-1] else lines[:-1]
    if _plain(text, lines, steps):
        return ""
    said = [*_steps_problems([metric_line(line) for line in lines], steps), *_value_problems(lines)]
    more = [f"and {len(said) - MOST_NAMED} more"] if len(said) > MOST_NAMED else []
    return "; ".join([*said[:MOST_NAMED], *more])


def metric_line(text: bytes) -> dict[str, Any]:
    """A line of JSONL as a dict; {} if it is not a JSON object."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return line if isinstance(line, dict) else {}


def number(value: Any) -> bool:
    """Whether a value from a file is a finite number, and no integer of thousands of digits."""
    return type(value) in (int, float) and abs(value) < LARGEST and isfinite(value)


def _plain(text: bytes, lines: list[bytes], steps: int) -> bool:
    """Whether nothing can be wrong: all lines are the first one, with other numbers, in order.

    JSON is parsed for the first line alone: a sweep has millions.
    """
    if len(lines) != steps or not steps or not text.endswith(b"\n"):
        return False
    first = lines[0]
    same = text.translate(None, NUMERALS) == first.translate(None, NUMERALS) * steps
    small = _positive_exponents(text) == _positive_exponents(first) * steps
    told = _value_problems(lines[:1])
    return same and small and not told and all(map(bytes.startswith, lines, _heads(first, steps)))


def _positive_exponents(text: bytes) -> int:
    return text.count(b"e") - text.count(b"e-") + text.count(b"E")


def _heads(first: bytes, steps: int) -> list[bytes]:
    """How each line of a file begins, which has its step first."""
    space = b" " if first.startswith(b'{"step": ') else b""
    return [b'{"step":%b%d,' % (space, step) for step in range(1, steps + 1)]


def _steps_problems(lines: list[dict[str, Any]], steps: int) -> list[str]:
    found = [line["step"] for line in lines if type(line.get("step")) is int]
    said = []
    if broken := len(lines) - len(found):
        said.append(f"{broken} of {len(lines)} lines cannot be read")
    lacking = sorted(set(range(1, min(steps, len(lines) + MOST_NAMED) + 1)) - set(found))
    if lacking:
        said.append(f"no line of step {', '.join(map(str, lacking[:MOST_NAMED]))}")
    if doubled := sorted(step for step, times in Counter(found).items() if times > 1):
        said.append(f"more than one line of step {', '.join(short(step) for step in doubled[:MOST_NAMED])}")
    if beyond := [step for step in found if not 1 <= step <= steps]:
        said.append(f"a line of step {short(beyond[0])}, allowed: 1 to {steps}")
    if back := next((after for before, after in pairwise(found) if after < before), None):
        said.append(f"step {short(back)} after a later one")
    return said


def _value_problems(lines: list[bytes]) -> list[str]:
    """The first value that is no finite number, in words. Null stands for what was not measured."""
    for line in map(metric_line, lines):
        for key, value in line.items():
            if key != "step" and value is not None and not number(value):
                return [f"{short(key)} is {short(value)} at step {short(line.get('step'))}"]
    return []
