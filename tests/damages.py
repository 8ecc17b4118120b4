"""Ways to damage a sweep, and what the report must then say. tests/test_damage.py tries them."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from itertools import pairwise
from pathlib import Path

import pandas as pd

RUN, OTHER = "r8-b16-s1", "r8-b16-s2"
STEPS = 6
OF_SWEEP = ("plan.json", "confirm.json")
LOST, COUNTS, NO_SAMPLES, OWN = "lost", "counts", "no samples", "own"
"""What a damage costs: the run; nothing; the run's samples; some numbers of its own."""


def place(root, file):
    return root / file if file in OF_SWEEP else root / RUN / file


def removed(path):
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def instead(file, make):
    """Puts something else in the place of a file, or with "" in that of the run's directory."""

    def act(root):
        removed(place(root, file))
        make(place(root, file))

    return act


def text(file, content):
    return instead(file, lambda path: path.write_text(content))


def edit(file, change):
    def act(root):
        path = place(root, file)
        path.write_bytes(change(path.read_bytes()))

    return act


def insert(file, before, more):
    """Writes `more` in front of the first `before` in a file."""
    return edit(file, lambda old: old.replace(before.encode(), more.encode() + before.encode(), 1))


def change(file, **changes):
    """Changes keys of a JSON object."""

    def act(root):
        old = json.loads(place(root, file).read_text())
        place(root, file).write_text(json.dumps(old | changes))

    return act


def infinite(file, key):
    """Writes a number of which a reader of JSON makes infinity."""
    return edit(file, lambda old: re.sub(rb'("%b": ?)[\d.]+' % key.encode(), rb"\g<1>1e999", old, count=1))


def result(**changes):
    return change("result.json", **changes)


def recoded(encoding, mark=b""):
    return edit("result.json", lambda old: mark + old.decode().encode(encoding))


def lines(reorder):
    return edit("metrics.jsonl", lambda old: b"\n".join(reorder(old.splitlines())) + b"\n")


def metric(at, **changes):
    """Changes values of the line of step `at`."""

    def act(found):
        found[at - 1] = json.dumps(json.loads(found[at - 1]) | changes).encode()
        return found

    return lines(act)


def evals(reshape):
    def act(root):
        path = root / RUN / "evals.parquet"
        reshape(pd.read_parquet(path)).to_parquet(path)

    return act


def rows(column, value, step=STEPS):
    """Sets a column of evals.parquet in the rows of a step."""

    def act(old):
        old = old.astype({column: object}) if isinstance(value, str) or value is None else old
        old.loc[old["step"] == step, column] = value
        return old

    return evals(act)


def one_wrong(old):
    """The samples with the last one judged the other way."""
    return old.assign(correct=[*old["correct"][:-1], not old["correct"].iloc[-1]])


def section(key, content):
    """Replaces a section of run.yaml by this text."""
    pattern = rb"(?ms)^%b:.*?(?=^[a-z]|\Z)" % key.encode()
    return edit("run.yaml", lambda old: re.sub(pattern, lambda found: content.encode(), old))


def until(heading, more=0):
    """Cuts run.yaml off at a heading, or some bytes after it."""
    return edit("run.yaml", lambda old: old[: old.index(f"\n{heading}:".encode()) + 1 + more])


def bound(path):
    before = Path.cwd()
    os.chdir(path.parent)  # the path of a socket has at most 108 bytes
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(before)


def linked(to):
    return lambda path: path.symlink_to(to)


def itself(path):
    path.symlink_to(path.name)


def endless(path):
    """A sparse file of a terabyte."""
    with path.open("wb") as made:
        made.truncate(1 << 40)


def nothing(path):
    assert not path.exists()


def moved_out(root):
    shutil.move(root / RUN, root.parent / "elsewhere")
    (root / RUN).symlink_to(root.parent / "elsewhere")


def of_future(root):
    os.utime(root / RUN / "result.json", (1e10, 1e10))


def pipes(root):
    """FIFOs in the place of files that the report reads besides the records."""
    (root / RUN / "adapter").mkdir()
    for path in (root / RUN / "adapter" / "allocation.json", root / f".{RUN}.lock", root / f".{RUN}.attempts"):
        os.mkfifo(path)


def pipe_of_slurm(root):
    os.mkfifo(root / "slurm" / "1.tasks")


def twin(name):
    """A copy of the run under another name."""
    return lambda root: shutil.copytree(root / RUN, root / name)


def strays(root):
    for i in range(3000):
        (root / f"core.{i}").touch()


def nest(heading, inner, last):
    """YAML in which each of ten anchors holds the one before it several times."""
    names = "abcdefghijk"
    steps = "".join(f"  {b}: &{b} {inner.replace('?', f'*{a}')}\n" for a, b in pairwise(names))
    return f"{heading}:\n  a: &a {last}\n{steps}"


ALIASES = nest("scale", "[?, ?, ?]", "[x]")
MERGES = nest("derived", "{<<: [?, ?, ?, ?, ?, ?, ?, ?, ?]}", "{k: {value: 1}}")
CODE = "recipe: !!python/object/apply:os.system ['false']\n"
FIFO, DIRECTORY, ZERO = os.mkfifo, Path.mkdir, linked("/dev/zero")
SURROGATE = {"arm": "\ud800", "run_id": "\ud800-r8-b16-s1"}
UPWARD = {"arm": "../" * 80, "run_id": "../" * 80 + "-r8-b16-s1"}
FAILED = {"status": "failed", "final_score": None, "gain": None, "error": "\udfff\x1b[31m"}
OF_OTHER = f"duplicate: its result.json is that of {OTHER}"
NO_REGULAR, TOO_MANY = "not readable (no regular file)", "not readable (Too many levels of symbolic links)"
END, BACK = f"metrics.jsonl ends at step %s of {STEPS}: its curves", "a link that leads back to the sweep"
RESULT, METRICS, EVALS, SETTINGS = "result.json", "metrics.jsonl", "evals.parquet", "run.yaml"
BEYOND = f"allowed: 1 to {STEPS}"

# fmt: off
DAMAGES = {
    "result empty": (text(RESULT, ""), LOST, "result.json: empty"),
    "result of spaces": (text(RESULT, " \n"), LOST, "result.json: empty"),
    "result truncated": (edit(RESULT, lambda old: old[:90]), LOST, "result.json: cut off or no JSON"),
    "result with a byte order mark": (recoded("utf-8-sig"), LOST, "result.json: UTF-8 with a byte order mark"),
    "result in UTF-16": (recoded("utf-16"), LOST, "result.json: UTF-16 with a byte order mark"),
    "result in UTF-16 without a mark": (recoded("utf-16-le"), LOST, "result.json: cut off or no JSON"),
    "result of bytes": (recoded("utf-8", b"\xfe\xff\x00"), LOST, "result.json: UTF-16 with a byte order mark"),
    "result nested deeply": (text(RESULT, '{"a":' * 100_000), LOST, "result.json: nested too deeply"),
    "result with a key twice": (insert(RESULT, '"gain"', '"gain": 0.1, '), LOST, "result.json: 'gain' stands in it twice"),
    "result that is a list": (edit(RESULT, lambda old: b"[" + old + b"]"), LOST, "result.json: no JSON object"),
    "result with a huge integer": (result(gain=10**400), LOST, "result.json: gain is 1000"),
    "result with an endless integer": (insert(RESULT, '"seed"', f'"x": {"9" * 5000}, '), LOST, "4300 digits"),
    "result with NaN": (result(best_score=float("nan")), LOST, "result.json: NaN is no number"),
    "result with infinity": (infinite(RESULT, "wall_s"), LOST, "result.json: wall_s is inf, no duration"),
    "score above one": (result(final_score=1.2), LOST, "result.json: final_score is 1.2, no fraction"),
    "score below zero": (result(base_score=-0.1), LOST, "result.json: base_score is -0.1, no fraction"),
    "gain that is none": (result(gain=0.9), LOST, "result.json: gain is 0.9, and final_score - base_score is"),
    "time below zero": (result(wall_s=-5), LOST, "result.json: wall_s is -5, no duration"),
    "arm of half a surrogate": (result(**SURROGATE), LOST, "no text"),
    "error that moves the cursor": (result(**FAILED), LOST, r"failed, missing from the statistics: \udfff\x1b[31m"),
    "result with a path for a name": (result(**UPWARD), LOST, "foreign: its result.json is that of ../"),
    "no tokens": (result(tokens_total=0), OWN, f"tokens_total is 0 after {STEPS} steps; counted"),
    "steps above the plan": (result(steps=9), NO_SAMPLES, f"finished after 9 steps, and plan.json has {STEPS}; counted"),
    "steps below the plan": (result(steps=5), NO_SAMPLES, f"finished after 5 steps, and plan.json has {STEPS}; counted"),
    "result of the future": (of_future, COUNTS, "result.json is of the future (2286-11-20): a clock is wrong; counted"),

    "result is a FIFO": (instead(RESULT, FIFO), LOST, f"result.json: {NO_REGULAR}"),
    "result is a directory": (instead(RESULT, DIRECTORY), LOST, "result.json: not readable (a directory)"),
    "result is a socket": (instead(RESULT, bound), LOST, f"result.json: {NO_REGULAR}"),
    "result is a device": (instead(RESULT, ZERO), LOST, f"result.json: {NO_REGULAR}"),
    "result is a link to itself": (instead(RESULT, itself), LOST, f"result.json: {TOO_MANY}"),
    "result is a link to nothing": (instead(RESULT, linked("gone")), LOST, "result.json: not readable (No such file"),
    "result is another run's": (instead(RESULT, linked(f"../{OTHER}/result.json")), LOST, OF_OTHER),
    "result without end": (instead(RESULT, endless), LOST, "result.json: not readable (larger than 1048576 bytes)"),
    "metrics are a FIFO": (instead(METRICS, FIFO), COUNTS, END % "none"),
    "metrics are a device": (instead(METRICS, ZERO), COUNTS, END % "none"),
    "metrics are missing": (instead(METRICS, nothing), COUNTS, END % "none"),
    "metrics without end": (instead(METRICS, endless), COUNTS, END % "none"),
    "samples are missing": (instead(EVALS, nothing), NO_SAMPLES, "evals.parquet: missing; its gain counts all the same"),
    "samples are a FIFO": (instead(EVALS, FIFO), NO_SAMPLES, "evals.parquet: no regular file"),
    "samples are a directory": (instead(EVALS, DIRECTORY), NO_SAMPLES, "evals.parquet: a directory"),
    "samples are a link to themselves": (instead(EVALS, itself), NO_SAMPLES, "evals.parquet: Too many levels"),
    "settings are missing": (instead(SETTINGS, nothing), COUNTS, "run.yaml is missing or no resolved run"),
    "settings are a FIFO": (instead(SETTINGS, FIFO), COUNTS, f"run.yaml: {NO_REGULAR}; whether it belongs here"),
    "settings are a link to themselves": (instead(SETTINGS, itself), COUNTS, f"run.yaml: {TOO_MANY}"),
    "settings without end": (instead(SETTINGS, endless), COUNTS, "run.yaml: not readable (larger than"),
    "run is a file": (instead("", Path.touch), LOST, "no directory, and it has a run's name"),
    "run is a FIFO": (instead("", FIFO), LOST, "no directory, and it has a run's name"),
    "run is a link to nothing": (instead("", linked("gone")), LOST, "not readable (No such file"),
    "run is a link to itself": (instead("", itself), LOST, TOO_MANY),
    "run is a link to the sweep": (instead("", linked(".")), LOST, BACK),
    "run is a link to above the sweep": (instead("", linked("../..")), LOST, BACK),
    "run is a link to another run": (instead("", linked(OTHER)), LOST, OF_OTHER),
    "run is a link out of the sweep": (moved_out, COUNTS, "a link to another directory; counted"),
    "other files are FIFOs": (pipes, COUNTS, ""),

    "line twice": (lines(lambda old: [*old[:3], *old[2:]]), COUNTS, "more than one line of step 3;"),
    "line missing": (lines(lambda old: [*old[:2], *old[3:]]), COUNTS, "metrics.jsonl: no line of step 3;"),
    "lines out of order": (lines(lambda old: [*old[:2], old[3], old[2], *old[4:]]), COUNTS, "step 3 after a later one"),
    "line cut off": (lines(lambda old: [*old[:2], old[2][:30], *old[3:]]), COUNTS, "1 of 6 lines cannot be read; no line of"),
    "line of zeros": (lines(lambda old: [*old[:2], bytes(50), *old[3:]]), COUNTS, "metrics.jsonl: 1 of 6 lines cannot be read"),
    "line of text": (metric(3, accuracy="many"), COUNTS, "metrics.jsonl: 'accuracy' is 'many' at step 3"),
    "line with NaN": (metric(3, kl_ref=float("nan")), COUNTS, "metrics.jsonl: 'kl_ref' is nan at step 3"),
    "line with infinity": (infinite(METRICS, "kl_ref"), COUNTS, "metrics.jsonl: 'kl_ref' is inf at step 1"),
    "line with a list": (metric(3, entropy=[1]), COUNTS, "metrics.jsonl: 'entropy' is [1] at step 3"),
    "line with a huge integer": (metric(3, entropy=10**400), COUNTS, "metrics.jsonl: 'entropy' is 1000"),
    "line of step zero": (metric(1, step=0), COUNTS, f"a line of step 0, {BEYOND}"),
    "line of the future": (metric(2, step=10**9), COUNTS, f"a line of step 1000000000, {BEYOND}"),
    "line of half a step": (metric(2, step=1.5), COUNTS, "1 of 6 lines cannot be read; no line of step 2"),
    "last line cut off": (edit(METRICS, lambda old: old[:-40]), COUNTS, END % 5),
    "line after the end": (lines(lambda old: [*old, old[-1].replace(b'"step":6', b'"step":7')]), COUNTS, END % 7),

    "samples truncated": (edit(EVALS, lambda old: old[:-100]), NO_SAMPLES, "evals.parquet: "),
    "samples are text": (text(EVALS, "PAR1 no parquet"), NO_SAMPLES, "evals.parquet: "),
    "samples damaged inside": (edit(EVALS, lambda old: old[:200] + b"\xff" * 400 + old[600:]), NO_SAMPLES, "evals.parquet: "),
    "samples contradict the final score": (rows("correct", True), NO_SAMPLES, "its samples say final_score 1.0000, the"),
    "one sample contradicts the score": (evals(one_wrong), NO_SAMPLES, "contradicts result.json: its samples say"),
    "samples contradict the base score": (rows("correct", False, 0), NO_SAMPLES, "its samples say base_score 0.0000, the"),
    "samples without a column": (evals(lambda old: old.drop(columns="correct")), NO_SAMPLES, "evals.parquet: lacks correct"),
    "samples twice": (evals(lambda old: pd.concat([old, old])), NO_SAMPLES, "evals.parquet: 80 samples stand in it twice"),
    "samples of other items": (evals(lambda old: old.assign(item_id="x" + old["item_id"])), NO_SAMPLES, "evaluated on other items"),
    "samples of another source": (evals(lambda old: old.assign(source="x")), NO_SAMPLES, "evaluated on other items"),
    "samples of two sources": (rows("source", "x"), NO_SAMPLES, "evals.parquet: an item has two sources"),
    "samples of the future": (rows("step", 99), NO_SAMPLES, f"evals.parquet: rows of step 99, allowed: 0 to {STEPS}"),
    "samples of step -1": (rows("step", -1), NO_SAMPLES, "evals.parquet: rows of step -1"),
    "samples of the base alone": (evals(lambda old: old[old["step"] == 0]), NO_SAMPLES, "an item lacks samples at step 6"),
    "samples unequal in number": (evals(lambda old: old[1:]), NO_SAMPLES, "from 3 to 4 samples per item at step 0"),
    "no samples": (evals(lambda old: old[:0]), NO_SAMPLES, "evals.parquet: no samples"),
    "samples that are shares": (evals(lambda old: old.assign(correct=0.5)), NO_SAMPLES, "correct has type double"),
    "samples without a verdict": (rows("correct", None), NO_SAMPLES, "evals.parquet: correct is missing in 40 rows"),
    "samples without an item": (rows("item_id", None), NO_SAMPLES, "evals.parquet: item_id is missing in 40 rows"),

    "settings with aliases of aliases": (section("scale", ALIASES), COUNTS, "run.yaml: scale is no plain YAML (an alias); whether"),
    "settings with merges of merges": (section("derived", MERGES), COUNTS, ""),
    "settings that run code": (section("recipe", CODE), COUNTS, "run.yaml: recipe is no plain YAML (could not"),
    "settings nested deeply": (section("scale", f"scale: {'[' * 3000}\n"), COUNTS, "scale is no plain YAML (nested too"),
    "settings of another kind": (section("rules", "rules: 7\n"), COUNTS, "run.yaml: rules is 7; whether it belongs here"),
    "settings of no format": (section("format", "format: -3\n"), COUNTS, "run.yaml: format is -3; whether it belongs here"),
    "settings with a key twice": (insert(SETTINGS, "seed:", "seed: 1\n"), COUNTS, "run.yaml: 'seed' stands in it 2 times"),
    "settings in Latin-1": (edit(SETTINGS, lambda old: old + b"\xe9"), COUNTS, "run.yaml: no UTF-8 text"),
    "settings cut off in the scale": (until("scale", 60), COUNTS, "run.yaml is missing or no resolved run"),
    "settings cut off in the rules": (until("rules", 60), COUNTS, "run.yaml is missing or no resolved run"),
    "settings cut off before versions": (until("versions"), COUNTS, "run.yaml"),
    "settings of another seed": (section("seed", "seed: 2\n"), COUNTS, "run.yaml says seed=2; counted as its result says"),
}
"""Name -> (damage of a run, what it costs, what is said of the run; "" if it harms nothing)."""

PLAN, CONFIRM = OF_SWEEP
PATHS = dict.fromkeys(("/etc-r2-b16-s0", "../a-r2-b16-s0", "a\0-r2-b16-s0", "\ud800-r2-b16-s0"), 6)
DAMAGES_OF_ALL = {
    "plan is a list": (text(PLAN, "[1]"), "plan.json: [1], no run ids with their steps; which runs are missing is not known"),
    "plan is text": (text(PLAN, "hello"), "plan.json: cut off or no JSON; which runs are missing is not known"),
    "plan is empty": (text(PLAN, ""), "plan.json: empty"),
    "plan is a FIFO": (instead(PLAN, FIFO), f"plan.json: {NO_REGULAR}"),
    "plan is a directory": (instead(PLAN, DIRECTORY), "plan.json: not readable (a directory)"),
    "plan is a link to itself": (instead(PLAN, itself), f"plan.json: {TOO_MANY}"),
    "plan with a run twice": (insert(PLAN, '"r8-b16-s1"', '"r8-b16-s1": 6, '), "plan.json: 'r8-b16-s1' stands in it twice"),
    "plan with two names of a run": (change(PLAN, **{"r08-b16-s1": 6}), "'r08-b16-s1' is another name of 'r8-b16-s1'; left out"),
    "plan without a number of steps": (change(PLAN, **{"r2-b16-s0": "many"}), "'r2-b16-s0' has 'many' steps; left out"),
    "plan with steps below zero": (change(PLAN, **{"r2-b16-s0": -1}), "plan.json: 'r2-b16-s0' has -1 steps; left out"),
    "plan with paths": (change(PLAN, **PATHS), "'/etc-r2-b16-s0' is no run id; left out"),
    "seeds kept back are text": (text(CONFIRM, '"all"'), "'all', no seeds; no result is given apart"),
    "seeds kept back are a FIFO": (instead(CONFIRM, FIFO), f"confirm.json: {NO_REGULAR}"),
    "thousands of stray files": (strays, "3000 entries here belong to no run: 'core.0', 'core.1', 'core.10', and 2997 more"),
    "a link to the sweep itself": (lambda root: (root / "loop").symlink_to("."), "1 entry here belongs to no run: 'loop'"),
    "a FIFO": (lambda root: os.mkfifo(root / "pipe"), "1 entry here belongs to no run: 'pipe'"),
    "tasks of Slurm are a FIFO": (pipe_of_slurm, ""),
}
"""Name -> (damage of the sweep, what must be said of it)."""

COPY = f"duplicate: its result.json is that of {RUN}"
EXTRA = {
    "with a case of its own": (twin("R8-B16-S1"), "R8-B16-S1", COPY),
    "with a zero in front": (twin("r08-b16-s1"), "r08-b16-s1", COPY),
    "that hides its name": (twin("\u202e1s-61b-8r\x1b[2J\n"), r"\u202e1s-61b-8r\x1b[2J\n", COPY),
    "whose name is no text": (twin(b"\xff-r8-b16-s1".decode(errors="surrogateescape")), r"\udcff-r8-b16-s1", COPY),
    "that is empty": (lambda root: (root / "r8-b16-s9").mkdir(), "r8-b16-s9", "partial: begun, and no result.json yet"),
}
"""Name -> (what makes a run too many, its name as it is shown, what must be said of it)."""
# fmt: on
