"""The process that does algebra: `python -m rankrl.reward.prover CPU_S MEMORY_BYTES`.

A line of its input is a JSON list of [given, gold] pairs. For each pair it prints a line at once:
correct, wrong or unparsable. It may hang or run out of memory: the pool kills it and starts
another. It executes no text: the parser is a grammar (ANTLR), and an audit hook, which cannot be
removed, refuses to run strings as code, write files, start programs or open connections.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import signal
import sys
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

from rankrl.reward.equality import judge

REFUSED = (
    "subprocess.",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.remove",
    "os.rename",
    "socket.",
    "shutil.",
)
DIGITS = 60
PR_SET_PDEATHSIG = 1
WARM = [
    (r"\sqrt{8}", r"2\sqrt{2}"),
    (r"\sin^2 x+\cos^2 x+\ln 4", r"1+2\ln 2"),
    (r"|x|+\sqrt{2}", r"\sqrt{x^2}+2^{1/2}"),
    (r"\sqrt{2}x=\tan y", r"2x=\sqrt{2}\tan y"),
    (r"(\sqrt{2}+i)^3", r"-\sqrt{2}+5i"),
]


def guard(memory_bytes: int) -> None:
    """Makes this process die with its parent, ignore Ctrl-C and stay within its memory.

    The parent decides what Ctrl-C does.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def exhausted() -> bool:
    """Whether memory has ever come near its limit.

    If so, the verdict is void: the libraries take a MemoryError for `not equal`.
    """
    peak_kib = int(re.search(r"VmPeak:\s*(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]
    return peak_kib << 10 > 0.9 * resource.getrlimit(resource.RLIMIT_AS)[0]


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook that raises RuntimeError before a forbidden action happens."""
    text = event == "exec" and arguments[0].co_filename.startswith("<") and "frozen" not in arguments[0].co_filename
    writing = event == "open" and isinstance(arguments[1], str) and arguments[1].strip("rbtU") != ""
    if text or writing or event.startswith(REFUSED):
        raise RuntimeError(f"refused: {event}")


@lru_cache(maxsize=4096)
def parsed(text: str) -> Any:
    """The sympy expression that math-verify's parser reads. Raises whatever the parser raises."""
    import sympy
    from latex2sympy2_extended import latex2sympy

    real = None if re.search(r"(?<![\\A-Za-z])i(?![A-Za-z])", text) else True
    expression = latex2sympy(text, is_real=real, convert_degrees=False, normalization_config=None)
    return expression.xreplace({letter: sympy.I for letter in expression.free_symbols if letter.name == "i"})


def number(_: Any, text: str) -> Any:
    """The exact sympy number for a text.

    The parser's own method evaluates the text of a number as Python code, and rounds it.
    """
    from sympy import Rational

    return Rational(*Fraction(text.replace(",", "")).as_integer_ratio())


def install_numbers() -> None:
    from latex2sympy2_extended import latex2sympy2

    latex2sympy2._Latex2Sympy.parse_number = number


def install_monomials() -> None:
    """Replaces sympy's functions on monomials by plain ones.

    sympy writes its own as Python text, for each number of letters, and executes the text. `refuse`
    would stop that, simplifying would fail, and equal answers would be called wrong.
    """
    from sympy.polys import monomials

    for name in ("mul", "pow", "ldiv", "div", "lcm", "gcd"):
        plain = getattr(monomials, f"monomial_{name}")
        setattr(monomials.MonomialOps, name, lambda _, plain=plain: plain)
    monomials.MonomialOps.mulpow = lambda _: lambda a, b, n: tuple(x + y * n for x, y in zip(a, b, strict=True))


def at_point(expression: Any, point: int) -> Any:
    """The value of an expression to DIGITS digits, at fixed rational values of its letters."""
    from sympy import Rational

    letters = sorted(expression.free_symbols, key=str)
    values = {letter: Rational(17 + 31 * i + 7 * point, 9 + i + point) for i, letter in enumerate(letters)}
    return expression.subs(values).doit().evalf(DIGITS)


def vanishes(value: Any) -> bool:
    """Whether a sympy value is a number that is 0 to 40 digits."""
    from sympy import Float

    return bool(value.is_number and value.is_finite is not False and abs(value) < Float(10) ** (20 - DIGITS))


def algebra(given: str, gold: str, same_ratio: bool) -> bool:
    """Whether two answers are equal: by value to 40 digits, and by math-verify.

    With `same_ratio`, whether they are equal up to a constant factor, to 40 digits at four points.
    """
    from math_verify import verify

    try:
        ours, theirs = parsed(given), parsed(gold)
        if same_ratio:
            first, *others = [at_point(ours / theirs, point) for point in range(4)]
            return not vanishes(first) and all(vanishes(other - first) for other in others)
        return vanishes(at_point(ours - theirs, 0)) and bool(verify(theirs, ours, timeout_seconds=None))
    except Exception:  # the parser and the algebra system may raise anything
        return False


def main() -> None:
    cpu_s, memory_bytes = int(sys.argv[1]), int(sys.argv[2])
    guard(memory_bytes)
    install_numbers()
    install_monomials()
    for given, gold in WARM:  # triggers lazy imports
        judge(given, gold, algebra)
    sys.addaudithook(refuse)
    print("ready", flush=True)
    for line in sys.stdin:
        for given, gold in json.loads(line):
            used = resource.getrusage(resource.RUSAGE_SELF)
            limit = int(used.ru_utime + used.ru_stime) + cpu_s + 1
            resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
            verdict = judge(given, gold, algebra)
            if exhausted():
                os._exit(1)
            print(verdict or "wrong", flush=True)


if __name__ == "__main__":
    main()
