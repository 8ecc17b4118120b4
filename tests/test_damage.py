"""Damaged sweeps: each damage is named, none ends the report, and no other run's number changes.

One small sweep is written once and copied for each kind of damage. A run that does not count leaves
the statistics of the sweep without it; one that counts leaves those of the whole sweep.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from damages import COUNTS, DAMAGES, DAMAGES_OF_ALL, EXTRA, LOST, NO_SAMPLES, OWN, RUN, STEPS, itself, linked, removed
from records import drawn, grid, write_all

from rankrl.cli import main
from rankrl.report.build import build, print_table
from rankrl.report.ledger import ledger
from rankrl.report.planned import read_plan
from rankrl.report.read import curve

NOBODY = 65534
BOOKKEEPING = {"problems", "answer", "words", "n_unfinished", "n_planned", "page", "sweep"}
"""Parts of a summary that say which runs there are, besides the numbers of those that count."""


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Leaves out the table of the shipped scales, which no sweep changes: most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rankrl.report.summary.LARGE_SCALES", ())
        yield


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    runs = grid("small", "demo", "ranks=[1,8]", "seeds=[0,1,2]", f"steps={STEPS}")
    root = tmp_path_factory.mktemp("healthy") / "small"
    for name in ("adapter", "slurm"):
        (root / name).mkdir(parents=True)
    (root / ".sweep.lock").touch()
    return write_all(root, runs, drawn(runs, {"": 0.2}, 0.02), items=10)


@pytest.fixture(scope="module")
def expected(healthy, tmp_path_factory):
    """What a damage costs -> the summary of the healthy sweep without that."""
    found = {COUNTS: numbers(healthy)}
    assert not found[COUNTS]["problems"]
    for cost, name in ((LOST, ""), (NO_SAMPLES, "evals.parquet")):
        root = copied(healthy, tmp_path_factory.mktemp(cost.replace(" ", "_")))
        removed(root / RUN / name)
        found[cost] = numbers(root)
    return found


def copied(root, to):
    return Path(shutil.copytree(root, to / root.name, symlinks=True, ignore=shutil.ignore_patterns("report")))


def copies(root, to, *names):
    return [copied(root, to).rename(to / name) for name in names]


def numbers(root):
    (summary,) = build(root, tables_only=True)
    return json.loads(json.dumps(summary))


def without(summary, keys=BOOKKEEPING):
    return {key: value for key, value in summary.items() if key not in keys}


def said_of(summary, run):
    return " | ".join(row["problem"] for row in summary["problems"] if row["run"] == run)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_run_is_named_and_costs_nothing_else(healthy, expected, tmp_path, name):
    damage, cost, words = DAMAGES[name]
    root = copied(healthy, tmp_path)
    damage(root)
    summary = numbers(root)
    assert words in said_of(summary, RUN) and bool(words) == bool(said_of(summary, RUN))
    assert not [row for row in summary["problems"] if row["run"] != RUN]
    if cost == OWN:
        for key in ("cells", "ranks"):
            other, as_before = (
                without(found[key][0], {"marginal_efficiency"}) for found in (summary, expected[COUNTS])
            )
            assert other == as_before and other["rank"] == 1
    else:
        failed = {"n_failed", "worst_case"} if "failed" in said_of(summary, RUN) else set()
        assert without(unfailed(summary), BOOKKEEPING | failed) == without(expected[cost], BOOKKEEPING | failed)


def unfailed(summary):
    """The summary with no failed runs counted: those of a lost run are none."""
    groups = {key: [row | {"failed_runs": 0} for row in summary[key]] for key in ("cells", "ranks", "batches", "arms")}
    return summary | groups


def base_apart(root):
    path = root / RUN / "result.json"
    old = json.loads(path.read_text())
    path.write_text(json.dumps(old | {"base_score": old["base_score"] - 0.1, "gain": old["gain"] + 0.1}))


def other_case(root):
    for arm in ("On", "on"):
        for seed in (0, 1):
            to = root / f"{arm}-r8-b16-s{seed}"
            shutil.copytree(root / f"r8-b16-s{seed}", to)
            found = json.loads((to / "result.json").read_text()) | {"arm": arm, "run_id": to.name}
            (to / "result.json").write_text(json.dumps(found))


@pytest.mark.parametrize("name", DAMAGES_OF_ALL)
def test_a_damage_of_the_sweep_is_named_and_costs_no_run(healthy, expected, tmp_path, name):
    damage, words = DAMAGES_OF_ALL[name]
    root = copied(healthy, tmp_path)
    damage(root)
    summary = numbers(root)
    assert words in said_of(summary, "") and bool(words) == bool(said_of(summary, ""))
    assert not [row for row in summary["problems"] if row["run"]]
    assert without(summary) == without(expected[COUNTS])
    assert set(read_plan(root)) <= {path.name for path in healthy.glob("r*-*")}
    assert len(ledger(root)) == len(read_plan(root))


@pytest.mark.parametrize("name", EXTRA)
def test_a_run_too_many_is_named_and_costs_no_run(healthy, expected, tmp_path, capsys, name):
    damage, run, words = EXTRA[name]
    root = copied(healthy, tmp_path)
    damage(root)
    summary = numbers(root)
    assert said_of(summary, run).startswith(words)
    assert without(summary) == without(expected[COUNTS])
    print_table(summary)
    assert f"{run}: {words}" in capsys.readouterr().out


def test_what_looks_alike_or_was_measured_apart_is_named(healthy, tmp_path):
    root = copied(healthy, tmp_path)
    base_apart(root)
    said = said_of(numbers(root), "")
    assert "base scores from 0.2000 to 0.3000: gains are over different measurements of the base (r8-b16-s1)" in said
    other_case(root)
    assert "arms 'On' and 'on' differ in case or notation alone" in said_of(numbers(root), "")


# ---------------------------------------------------------------- permission


@contextmanager
def as_nobody(*paths):
    """Gives these trees to a user without privileges and acts as that user, if we are root."""
    if os.geteuid():
        yield
        return
    for path in paths:
        for found in [path, *path.rglob("*")]:
            os.chown(found, NOBODY, NOBODY, follow_symlinks=False)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_directory():
    """A directory that everybody may enter, unlike tmp_path."""
    made = Path(tempfile.mkdtemp())
    made.chmod(0o755)
    yield made
    for found in [made, *made.glob("**/")]:
        found.chmod(0o755)
    shutil.rmtree(made, ignore_errors=True)


LOCKED = {
    "": (LOST, "result.json: not readable (Permission denied)"),
    "result.json": (LOST, "result.json: not readable (Permission denied)"),
    "run.yaml": (COUNTS, "run.yaml: not readable (Permission denied); whether it belongs here is not known"),
    "metrics.jsonl": (COUNTS, f"metrics.jsonl ends at step none of {STEPS}"),
    "evals.parquet": (NO_SAMPLES, "evals.parquet: Permission denied"),
}


@pytest.mark.parametrize("file", LOCKED)
def test_a_run_without_permission_costs_itself_alone(healthy, expected, open_directory, file):
    cost, words = LOCKED[file]
    root = copied(healthy, open_directory)
    (root / RUN / file).chmod(0)
    with as_nobody(root):
        summary = numbers(root)
        assert len(ledger(root)) == 6
    assert words in said_of(summary, RUN)
    assert not [row for row in summary["problems"] if row["run"] != RUN]
    assert without(summary) == without(expected[cost])


def test_sweeps_without_permission_cost_themselves_alone(healthy, open_directory, capsys):
    fine, closed, fixed, planless = copies(healthy, open_directory, "fine", "closed", "fixed", "planless")
    (planless / "plan.json").chmod(0)
    (fixed / "report").mkdir()
    print_table(numbers(fine))  # imports what a user without privileges cannot
    capsys.readouterr()
    (fixed / "report").chmod(0o555)
    closed.chmod(0)
    with as_nobody(open_directory):
        assert main(["report", str(open_directory), "--tables-only"]) == 1
    out, err = capsys.readouterr()
    assert [line.split(":")[0] for line in out.splitlines() if "gain over the base by rank" in line] == [
        "fine",
        "planless",
    ]
    assert "plan.json: not readable (Permission denied)" in out
    first, second = err.splitlines()
    assert first == "rankrl: closed: left out, not readable (Permission denied)"
    assert second.startswith("rankrl: fixed: no whole report: [Errno 13] Permission denied")


# ---------------------------------------------------------------- several sweeps


def mixed(root):
    path = root / RUN / "run.yaml"
    path.write_text(path.read_text().replace("  samples_per_prompt: 8\n", "  samples_per_prompt: 4\n"))


def test_a_mixed_sweep_does_not_block_the_others(healthy, tmp_path, capsys):
    fine, wrong = copies(healthy, tmp_path, "fine", "wrong")
    mixed(wrong)
    (tmp_path / "latest").symlink_to("fine")
    (tmp_path / "loop").symlink_to(".")
    assert main(["report", str(tmp_path), "--tables-only"]) == 1
    out, err = capsys.readouterr()
    assert out.count("gain over the base by rank") == 1 and "fine: gain over the base by rank" in out
    linked, refused = err.splitlines()
    assert linked == "rankrl: latest: left out, a link to fine"
    assert refused.startswith("rankrl: wrong: left out, DIR: ") and "mixes runs that are not alike" in refused
    assert f"({RUN}: recipe.samples_per_prompt: '4' here, '8' there;" in refused
    assert not (wrong / "report" / "summary.json").exists()
    assert main(["next", str(tmp_path), "--budget", "3"]) == 1
    capsys.readouterr()
    assert main(["report", str(wrong)]) == 2
    (alone,) = capsys.readouterr().err.splitlines()
    assert alone.startswith("rankrl: DIR: ") and "mixes runs that are not alike" in alone
    shutil.rmtree(fine)
    assert main(["report", str(tmp_path)]) == 2 and len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("make", [Path.touch, os.mkfifo, itself, linked("gone")])
def test_a_report_that_cannot_be_written_is_refused_in_one_line(healthy, tmp_path, capsys, make):
    root = copied(healthy, tmp_path)
    make(root / "report")
    assert main(["report", str(root), "--tables-only"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rankrl: [Errno ")


def test_what_lies_in_the_place_of_a_file_of_the_report_is_replaced(healthy, tmp_path):
    root = copied(healthy, tmp_path)
    (root / "report").mkdir()
    os.mkfifo(root / "report" / "runs.csv")
    itself(root / "report" / "summary.json")
    numbers(root)
    assert (root / "report" / "runs.csv").read_text().count("\n") == 7
    assert json.loads((root / "report" / "summary.json").read_text())["n_runs"] == 6


# ---------------------------------------------------------------- figures and page


def test_figures_and_page_of_a_damaged_sweep(healthy, tmp_path):
    root = copied(healthy, tmp_path)
    for name in ("line of the future", "settings with merges of merges", "no tokens", "other files are FIFOs"):
        DAMAGES[name][0](root)
    DAMAGES_OF_ALL["thousands of stray files"][0](root)
    (summary,) = build(root)
    assert {row["run"] for row in summary["problems"]} == {RUN, ""}
    page = Path(summary["page"]).read_text()
    assert page.count("<figure") >= 8
    assert all(row["problem"].replace("'", "&#x27;") in page for row in summary["problems"])


def test_a_line_of_a_later_step_than_the_last_does_not_stretch_the_curves(healthy, tmp_path):
    root = copied(healthy, tmp_path)
    DAMAGES["line of the future"][0](root)
    assert [line["step"] for line in curve(root / RUN, steps=STEPS)] == [1, 3, 4, 5, 6]
