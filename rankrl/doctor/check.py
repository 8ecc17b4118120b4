"""One line of what `rankrl doctor` says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    level: str
    """ok; warn: it runs, but not as well as it could; FAIL: it does not run."""
    what: str
    found: str
    fix: str = ""
    """What to do about it, unless all is well."""

    def __str__(self) -> str:
        return f"{self.level:<4}  {self.what:<11}  {self.found}" + (f" -> {self.fix}" if self.fix else "")


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def say(what: str, fix: str, check: Callable[..., Check], *args: Any) -> bool:
    """Prints what `check` finds, or a FAIL with what it raised and `fix`. Returns whether it runs."""
    try:
        found = check(*args)
    except (ValueError, ImportError, OSError) as error:  # DeepSpeed's and transformers' refusals are ValueErrors
        found = Check("FAIL", what, one_line(error), fix)
    print(found, flush=True)
    return found.level != "FAIL"
