# ruff: noqa: RUF001 - look-alikes are tested
"""Verdicts: judged pairs, hostile answers, and a pool whose workers are killed, hang and run out of
memory. No Ray."""

from __future__ import annotations

import fcntl
import os
import random
import resource
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from rankrl.reward.equality import judge
from rankrl.reward.grade import Grader

JUDGED = Path(__file__).parent / "judged_pairs.tsv"
KINDS = Path(__file__).parent / "grader_kinds.tsv"


def judged() -> list[tuple[str, str, str]]:
    lines = JUDGED.read_text().splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("# ")]
    return [(given, gold, verdict) for given, gold, verdict in rows]


@pytest.fixture(scope="module")
def grader():
    grader = Grader()
    yield grader
    grader.close()


def test_judged_pairs(grader):
    rows = judged()
    assert len({(given, gold) for given, gold, _ in rows}) == len(rows) >= 400
    outcomes = grader.outcomes([(given, gold) for given, gold, _ in rows])
    wrong = [(*row, outcome) for row, outcome in zip(rows, outcomes, strict=True) if outcome != row[2]]
    assert wrong == []


def test_kinds_of_answers(grader):
    """Cases of public graders, real gold answers, and near misses of each rule that accepts."""
    rows = [tuple(line.split("\t")) for line in KINDS.read_text().splitlines()[1:]]
    assert len(rows) >= 700 and sum(expected == "not correct" for _, _, expected, _ in rows) >= 500
    verdicts = grader.grade([response for _, response, _, _ in rows], [gold for gold, _, _, _ in rows])
    told = ["correct" if verdict.correct else "not correct" for verdict in verdicts]
    assert [(*row, got.outcome) for row, got, said in zip(rows, verdicts, told, strict=True) if said != row[2]] == []


ALPHABET = [
    *"0123456789",
    *"xyeiE",
    *"+-*/^!(){}[],;=<>|&%$._ ",
    *"хО٣½²",
    r"\frac",
    r"\sqrt",
    r"\boxed{",
    r"\pm",
    r"\cup",
]
ALPHABET += [
    r"\infty",
    r"\text{",
    r"\begin{pmatrix}",
    r"\end{pmatrix}",
    r"\\",
    r"\sin",
    r"\log_",
    r"\binom",
    r"\overline{",
    "nan",
]


def hostile(canary: Path, seed: int = 0) -> list[str]:
    """2,000 answers that try to hang, to crash, to run code, or to look like 5 or 2 sqrt(2)."""
    draw = random.Random(seed)
    code = f"open('{canary}','w').write('x')"
    makers: list[Callable[[int], str]] = [
        lambda n: "^{".join(["9"] * (2 + n)) + "}" * (1 + n),
        lambda n: "**".join(["9"] * (2 + n)),
        lambda n: f"10^{{10^{{{n}}}}}" + f"+\\sqrt{{{n}}}",
        lambda n: f"{9 ** (n % 40 + 1)}!" + "!" * (n % 3),
        lambda n: f"(x+\\sqrt{{2}})^{{{n * 50}}}",
        lambda n: f"\\sqrt[{10**n}]{{2}}^{{{10**n}}}",
        lambda n: f"\\binom{{{10**n}}}{{{5 * 10 ** (n - 1)}}}",
        lambda n: f"\\log_{{1}} {n}+e^{{e^{{e^{{{n}}}}}}}",
        lambda n: "{" * (n * 100) + "5" + "}" * (n * 100),
        lambda n: "(" * (n * 40) + "5" + ")" * (n * 40),
        lambda n: r"\boxed{" * (n * 50) + "5",
        lambda n: r"\sqrt{" * n + "2" + "}" * n + "+1",
        lambda n: r"\frac{1}{1+" * n + "x" + "}" * n,
        lambda n: "5" * (n * 25_000),
        lambda n: "5 " * (n * 12_500),
        lambda n: f"__import__('os').system('touch {canary}')" + " " * n,
        lambda n: f"{code}+{n}",
        lambda n: f'eval("{code}")*{n}',
        lambda n: f"\\text{{{code}}}^{n}",
        lambda n: f"x_{{{code}}}+\\sqrt{{{n}}}",
        lambda n: f"(lambda: {code})()-{n}",
        lambda n: f"\\input{{{canary}}}\\write18{{touch {canary}}}{n}",
        lambda n: "٥" * (n % 5 + 1) + "х" * (n % 3),
        lambda n: (
            draw.choice(["nan", "NaN", "inf", "-inf", r"\infty-\infty", r"0\cdot\infty", "1/0", "0^0/0"]) + " " * n
        ),
        lambda n: "5," * n + "2\\sqrt{2}",
        lambda n: " or ".join(str(k) for k in range(n + 2)),
        lambda n: "".join(draw.choices(ALPHABET, k=3 * n)),
        lambda n: r"\begin{pmatrix}" + "1&" * (20 * n) + r"1\end{pmatrix}",
    ]
    return [makers[k % len(makers)](k // len(makers) % 40 + 1) for k in range(2000)]


@pytest.mark.parametrize("gold", [r"2\sqrt{3}+1", "123456"])
def test_nothing_a_model_writes_hangs_crashes_runs_or_passes(gold, tmp_path):
    canary = tmp_path / "canary"
    answers = hostile(canary)
    grader = Grader(deadline_s=4)
    try:
        outcomes = grader.outcomes([(text, gold) for text in answers])
        boxed = grader.grade([rf"so \boxed{{{text}}}" for text in answers[:300]], [gold] * 300)
        late_s = grader.pool.slowest_s
    finally:
        grader.close()
    assert len(outcomes) == 2000 and max(map(len, answers)) >= 10**6
    assert set(outcomes) <= {"wrong", "unparsable", "timeout"}
    assert {verdict.outcome for verdict in boxed} <= {"wrong", "unparsable", "timeout"}
    assert late_s < 4 + 30  # by the pool's own clock: the deadline, and a margin for a busy machine
    assert not canary.exists()


NEW = (
    r"\max( \gcd \lfloor \rfloor \approx \over \choose \{ \} \pmod \mod{ \begin{cases} \end{cases} \vec \angle ^\circ "
    r"^\prime \mathbb{R} \cap \setminus \mid \in \mp \dot \Phi( \text{m/s} \color{red} 5000! \equiv \neq \Omega \bf f( ' : for"
)
WORDS = [*ALPHABET, *NEW.split(), " for all ", " where "]


@pytest.mark.parametrize("gold", [r"\lfloor n/2\rfloor+\sqrt{7}", r"|AB|=59", r"\mathbb{R}\setminus\{59\}"])
def test_no_text_is_too_much_for_the_exact_rules(gold):
    draw = random.Random(gold)
    answers = ["".join(draw.choices(WORDS, k=draw.choice([3, 10, 30, 100, 300]))) for _ in range(1000)]
    answers += [r"\max(1)", r"\binom{x}{99}" * 20, "n!" * 100, "+".join(f"{4000 + k}!" for k in range(50))]
    start_s = time.process_time()
    outcomes = {judge(answer, gold) for answer in answers}
    assert outcomes <= {"wrong", "unparsable", None} and time.process_time() - start_s < 60


def test_half_a_surrogate_pair_reaches_a_worker(grader):
    assert grader.outcomes([("\\sqrt{8},\ud800", "2\\sqrt{2},\\sqrt{8}")]) == ["unparsable"]


def prove_here(pairs: list[tuple[str, str]]) -> str:
    """A script that prints the verdicts of `pairs` under the audit hook, and then makes attempts
    that the hook must refuse."""
    return f"""
import sys
from rankrl.reward import prover
prover.install_numbers()
prover.install_monomials()
for given, gold in prover.WARM:
    assert prover.judge(given, gold, prover.algebra) == "correct", (given, gold)
sys.addaudithook(prover.refuse)
for given, gold in {pairs!r}:
    print(prover.judge(given, gold, prover.algebra))
for attempt in ("eval('1')", "open('x', 'w')", "__import__('os').system('true')", "__import__('subprocess').run('true')"):
    try:
        exec(compile(attempt, "attempt.py", "exec"))
        print("done", attempt)
    except RuntimeError as error:
        print(error)
"""


def test_the_prover_refuses_to_run_text():
    script = prove_here([(r"\sqrt{12}", r"2\sqrt{3}"), (r"\sqrt{12}", r"3\sqrt{2}")])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=JUDGED.parents[1])
    told = ["refused: exec", "refused: open", "refused: os.system", "refused: subprocess.Popen"]
    assert done.stdout.splitlines() == ["correct", "wrong", *told], done.stderr


def test_the_prover_imports_nothing_heavy():
    script = (
        "import sys, rankrl.reward.prover, rankrl.reward.grade; print({'torch', 'ray', 'sympy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=JUDGED.parents[1])
    assert done.stdout.strip() == "set()", done.stderr


POWER = (r"\sqrt{2}(a+b+f)^{60}(c+d)^{60}", r"\frac{1}{2}\sqrt{8}(ac+ad+bc+bd+fc+fd)^{60}")
SURDS = [(rf"2\sqrt{{{n}}}", rf"\sqrt{{{4 * n}}}") for n in range(101, 113)]


def test_the_pool_starts_only_for_algebra():
    grader = Grader()
    assert grader.outcomes([("1/2", "0.5"), ("(x+1)^2", "x^2+2x+1"), (r"\sqrt{2}", "3")]) == [
        "correct",
        "correct",
        "wrong",
    ]
    assert grader.pool.workers == []


@pytest.fixture
def warm():
    """A pool of one worker that has started."""
    grader = Grader(workers=1, deadline_s=4)
    assert grader.outcomes(SURDS[:1]) == ["correct"]
    yield grader.pool
    grader.close()


@pytest.mark.slow
def test_a_worker_that_hangs_costs_one_verdict(warm):
    """First a power of sums that sympy expands for long, then a process that is stopped."""
    pairs = [*SURDS[1:3], POWER, *SURDS[3:5]]
    assert warm.prove(pairs, 60) == ["correct", "correct", "timeout", "correct", "correct"]
    assert warm.replaced == 1
    os.kill(warm.workers[0].process.pid, signal.SIGSTOP)
    assert warm.prove(SURDS[5:8], 60) == ["timeout", "correct", "correct"]
    assert warm.replaced == 2 and len(warm.workers) == 1


def test_a_worker_that_is_killed_in_mid_grading_costs_one_verdict(warm):
    worker = warm.workers[0]
    os.kill(worker.process.pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as thread:
        proved = thread.submit(warm.prove, SURDS[1:5], 60)
        while not int.from_bytes(fcntl.ioctl(worker.process.stdin, termios.FIONREAD, bytes(4)), sys.byteorder):
            time.sleep(0.01)  # until the question is in the worker's pipe
        os.kill(worker.process.pid, signal.SIGKILL)
        assert proved.result() == ["timeout", "correct", "correct", "correct"]
    assert warm.replaced == 1


@pytest.mark.slow
def test_a_worker_out_of_memory_costs_one_verdict():
    grader = Grader(workers=1, deadline_s=200)
    assert grader.outcomes(SURDS[:1]) == ["correct"]
    pid = grader.pool.workers[0].process.pid
    limit = psutil.Process(pid).memory_info().vms + (32 << 20)
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
    assert grader.outcomes([SURDS[1], POWER, SURDS[2]]) == ["correct", "timeout", "correct"]
    assert grader.pool.replaced == 1 and grader.pool.slowest_s < 200
    grader.close()


def test_a_worker_that_dies_idle_costs_nothing_and_a_call_ends_in_time(warm):
    os.kill(warm.workers[0].process.pid, signal.SIGKILL)
    warm.workers[0].process.wait()
    assert warm.prove(SURDS[1:3], 60) == ["correct", "correct"]
    assert warm.prove(SURDS[1:3], -1) == ["timeout", "timeout"]


@pytest.mark.slow
def test_workers_end_with_the_process_that_graded():
    script = (
        "import os, rankrl.reward.grade as g; grader = g.Grader(1); "
        f"grader.outcomes({SURDS[:1]!r}); print(grader.pool.workers[0].process.pid, flush=True); os._exit(1)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=JUDGED.parents[1])
    psutil.wait_procs([psutil.Process(int(done.stdout))] if psutil.pid_exists(int(done.stdout)) else [], timeout=30)
    assert not psutil.pid_exists(int(done.stdout))


def test_answers_are_remembered():
    grader = Grader(remembered=2)
    assert grader.outcomes([("1", "1"), ("2", "1"), ("1", "1"), ("3", "3")]) == [
        "correct",
        "wrong",
        "correct",
        "correct",
    ]
    assert grader._known == {("2", "1"): "wrong", ("3", "3"): "correct"}
