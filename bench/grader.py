"""`python bench/grader.py`: verdicts per second on ordinary answers, with two workers.

No pair was graded before. The mixture is meant to look like final answers of GSM8K, MATH and DAPO:
mostly integers, then fractions and decimals, and a few others. Half of the answers are right; half
of the right ones are written differently from the gold answer. The share that needs algebra is
printed with the result.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from fractions import Fraction

import psutil

from rankrl.reward.equality import judge
from rankrl.reward.grade import Grader

PAIRS = 20_000


def integer(draw: random.Random) -> tuple[str, str, str]:
    """(gold answer, the same answer written differently, another answer)."""
    n = draw.randrange(-2000, 100_000)
    return str(n), draw.choice([f"{n:,}", f"x = {n}", f"${n}$", rf"{n}\text{{ cm}}", f"{n}.0", rf"\${n}"]), str(n + 1)


def fraction(draw: random.Random) -> tuple[str, str, str]:
    value = Fraction(draw.randrange(1, 400), draw.randrange(2, 60))
    n, d = value.as_integer_ratio()
    return (
        rf"\frac{{{n}}}{{{d}}}",
        draw.choice([f"{n}/{d}", rf"\dfrac{{{2 * n}}}{{{2 * d}}}"]),
        rf"\frac{{{n + 1}}}{{{d}}}",
    )


def decimal(draw: random.Random) -> tuple[str, str, str]:
    n = draw.randrange(1, 100_000)
    return f"{n / 100:.2f}", f"{n / 100:.3f}", f"{(n + 1) / 100:.2f}"


def percentage(draw: random.Random) -> tuple[str, str, str]:
    n = draw.randrange(2, 2000)
    return rf"{n / 10}\%", f"{n / 10}%", rf"{n / 10 + 1}\%"


def polynomial(draw: random.Random) -> tuple[str, str, str]:
    a, b = draw.randrange(2, 90), draw.randrange(2, 90)
    return f"x^2+{a + b}x+{a * b}", f"(x+{a})(x+{b})", f"x^2+{a + b}x+{a * b + 1}"


def surd(draw: random.Random) -> tuple[str, str, str]:
    a, b = draw.randrange(2, 60), draw.randrange(2, 900)
    return rf"{a}\sqrt{{{b}}}", rf"\sqrt{{{a * a * b}}}", rf"{a}\sqrt{{{b + 1}}}"


def with_pi(draw: random.Random) -> tuple[str, str, str]:
    a, b = draw.randrange(1, 400), draw.randrange(2, 60)
    return rf"\frac{{{a}\pi}}{{{b}}}", rf"{a}\pi/{b}", rf"\frac{{{a + 1}\pi}}{{{b}}}"


def several(draw: random.Random) -> tuple[str, str, str]:
    a, b = draw.randrange(-99, 99), draw.randrange(100, 999)
    return draw.choice(
        [
            (f"({a},{b})", rf"\left({a}, {b}\right)", f"({b},{a})"),
            (f"[{a},{b})", rf"{a} \leq x < {b}", f"[{a},{b}]"),
            (f"{a},{b}", f"x={b} or x={a}", f"{a}"),
        ]
    )


def text(draw: random.Random) -> tuple[str, str, str]:
    name = "".join(draw.choices("abcdefghij", k=7))
    return name, rf"\text{{{name.title()}}}", "the answer is " + name


MIXTURE = [(integer, 62), (fraction, 12), (decimal, 7), (percentage, 2), (polynomial, 3), (surd, 3)]
MIXTURE += [(with_pi, 2), (several, 5), (text, 4)]
"""(function, share in percent). Every function returns the same three kinds of answers as
`integer`."""


def pairs(seed: int) -> list[tuple[str, str]]:
    """`PAIRS` pairs of (answer, gold answer), drawn from `seed`."""
    draw = random.Random(seed)
    kinds = draw.choices([kind for kind, _ in MIXTURE], [share for _, share in MIXTURE], k=PAIRS)
    made = []
    for kind in kinds:
        gold, otherwise, another = kind(draw)
        made.append((draw.choices([gold, otherwise, another], [1, 1, 2])[0], gold))
    return made


def cpu_s(grader: Grader) -> float:
    """CPU seconds that this process and the grader's workers have used."""
    times = [psutil.Process(worker.process.pid).cpu_times() for worker in grader.pool.workers]
    return time.process_time() + sum(t.user + t.system for t in times)


def main() -> None:
    grader, start_s = Grader(workers=2), time.perf_counter()
    warm = [(rf"2\sqrt{{{n}}}", rf"\sqrt{{{4 * n}}}") for n in range(1000, 1064)]
    grader.outcomes(warm)
    print(f"start of 2 workers: {time.perf_counter() - start_s:.1f} s, {cpu_s(grader):.1f} CPU s; once per process")
    made = pairs(0)
    hard = sum(judge(*pair) is None for pair in dict.fromkeys(made))
    start_s, start_cpu_s = time.perf_counter(), cpu_s(grader)
    outcomes = grader.outcomes(made)
    wall_s, used_s = time.perf_counter() - start_s, cpu_s(grader) - start_cpu_s
    print(
        f"{len(made):,} pairs, {len(set(made)):,} different, {hard / len(set(made)):.1%} need algebra: {dict(Counter(outcomes))}"
    )
    print(f"{len(made) / wall_s:,.0f} verdicts/s on {os.cpu_count()} cores (load {os.getloadavg()[0]:.1f})")
    print(
        f"{1000 * used_s / len(made):.3f} CPU ms a verdict: {2 * len(made) / used_s:,.0f} verdicts/s on 2 idle cores at most"
    )
    grader.close()


if __name__ == "__main__":
    main()
