"""One line of the output of `rankrl doctor`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rankrl.recipe.shipped import install_words


@dataclass(frozen=True)
class Check:
    level: str
    """ok; warn: runs work, but not as well as they could; FAIL: they do not work."""
    what: str
    found: str
    fix: str = ""
    """What to do about it; empty if all is well."""

    def __str__(self) -> str:
        return f"{self.level:<4}  {self.what:<11}  {self.found}" + (f" -> {self.fix}" if self.fix else "")


def one_line(error: Exception) -> str:
    """The message of an error in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


def say(what: str, fix: str, check: Callable[..., Check], *args: Any) -> bool:
    """Prints what `check` finds, or, if it raises, a FAIL with the error and `fix`.

    Returns whether the level is not FAIL.
    """
    try:
        found = check(*args)
    except ModuleNotFoundError as error:  # or PackageNotFoundError
        found = Check("FAIL", what, f"{error.name} is not installed", install_words())
    except (ValueError, ImportError, OSError) as error:  # DeepSpeed's and transformers' refusals are ValueErrors
        found = Check("FAIL", what, one_line(error), fix)
    print(found, flush=True)
    return found.level != "FAIL"
