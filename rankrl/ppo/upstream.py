"""Access to the inside of OpenRLHF 0.11.2: its argument parser and checks, and its worker classes.

The parser is in the block `if __name__ == "__main__"` of openrlhf/cli/train_ppo_ray.py. The source
of the block is executed up to, but not including, the closing `train(args)`, so defaults and checks
are upstream's own. The worker classes are the plain ones under its Ray actors. This file imports
neither vllm nor deepspeed.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.util
import os
import sys
import threading
from datetime import datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

OPENRLHF = "0.11.2"
PARSED = "args = hierarchize(args)"
LAST = "train(args)"
# Upstream's parser reads sys.argv, and Python 3.11's ast counts its depth for all threads together:
# two threads that parse or compile a tree at the same time raise SystemError
# (github.com/python/cpython/issues/106905).
ONE_AT_A_TIME = threading.Lock()


def check_version() -> None:
    """Raises RuntimeError if the installed OpenRLHF is not the version that rankrl extends."""
    found = version("openrlhf")
    if found != OPENRLHF:
        raise RuntimeError(
            f"openrlhf {found} is installed, rankrl extends {OPENRLHF} exactly: pip install openrlhf=={OPENRLHF}"
        )


def raw(actor_class: Any) -> type:
    """The plain class under a Ray actor class. Ray refuses subclasses of the actor class itself."""
    return actor_class.__ray_actor_class__


@cache
def _main_body() -> tuple[CodeType, CodeType]:
    """Upstream's main block, compiled as (parser, checks).

    Raises RuntimeError if the block no longer has the expected shape.
    """
    spec = importlib.util.find_spec("openrlhf")
    assert spec is not None and spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]) / "cli" / "train_ppo_ray.py"
    main = ast.parse(path.read_text()).body[-1]
    statements = main.body if isinstance(main, ast.If) else []
    texts = [ast.unparse(statement) for statement in statements]
    if not texts or texts[-1] != LAST or PARSED not in texts:
        raise RuntimeError(
            f"{path} does not end with `{LAST}` after `{PARSED}`: OpenRLHF changed, adapt rankrl/ppo/upstream.py"
        )
    cut = texts.index(PARSED) + 1
    parts = (ast.Module(part, []) for part in (statements[:cut], statements[cut:-1]))
    parse, check = (compile(ast.fix_missing_locations(part), str(path), "exec") for part in parts)
    return parse, check


def flatten(namespace: SimpleNamespace, prefix: str = "") -> dict[str, Any]:
    """A nested namespace as a flat dict, such as {"actor.adam.lr": value}."""
    flat: dict[str, Any] = {}
    for key, value in vars(namespace).items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, SimpleNamespace) else {prefix + key: value})
    return flat


def parse_arguments(words: list[str]) -> SimpleNamespace:
    """OpenRLHF's nested argument namespace for a command line, from its own parser and checks.

    Raises ValueError if the parser or a check refuses an argument, or if a check would silently
    change one.
    """
    check_version()
    scope: dict[str, Any] = {"argparse": argparse, "os": os, "datetime": datetime}
    with ONE_AT_A_TIME:
        parse, check = _main_body()
        argv, sys.argv = sys.argv, ["train_ppo_ray", *words]
        try:
            exec(parse, scope)
            before = copy.deepcopy(scope["args"])
            exec(check, scope)
        except (SystemExit, AssertionError) as error:
            raise ValueError(f"OpenRLHF refuses the arguments: {error} (given: {' '.join(words)})") from error
        finally:
            sys.argv = argv
    was, now = flatten(before), flatten(scope["args"])
    rewritten = {key: (was.get(key), value) for key, value in now.items() if was.get(key) != value}
    if rewritten:
        key, (given, value) = next(iter(rewritten.items()))
        raise ValueError(f"{key}: OpenRLHF would silently turn {given!r} into {value!r}; set it to that, or drop it")
    return scope["args"]
