"""Answers of which none is right are named: in the log of a sweep, and in its report."""

import json
from types import SimpleNamespace

import pytest
from conftest import runs_of
from records import Grown, write_run

from rankrl.data.items import Item
from rankrl.report.build import build
from rankrl.report.nothing_right import Tally, tally
from rankrl.report.read import read_sweep

COUNTS = {"verdict_correct": 0, "verdict_wrong": 1, "verdict_unparsable": 127, "verdict_timeout": 0}
EXAMPLES = [
    {"verdict": "wrong", "response": "5", "gold": "17"},
    {"verdict": "unparsable", "response": "I can\u202e not\nsay", "gold": "17"},
]
ASKED = "nothing asks for the answer in \\boxed{} (scale.data.instruction)"


def test_a_rollout_without_a_right_answer_is_told():
    found = tally({**COUNTS, "truncated_frac": 0.25}, EXAMPLES)
    assert found == Tally(128, 0, 127, 0.25, "I can\u202e not\nsay", "17") and found.alarming
    assert found.said("the first rollout") == (
        "hardly anything is right: 0 of 128 answers of the first rollout are correct, 99% cannot be parsed, 25% are cut "
        "off; for instance 'I can\\u202e not\\nsay' where '17' is right. Likely causes: nothing asks for the answer in "
        "\\boxed{} (scale.data.instruction); a chat model without its template (scale.data.template=chat); golds of "
        "another kind than the answers (rankrl doctor, rankrl samples); too hard questions"
    )


@pytest.mark.parametrize(
    ("correct", "unparsable", "alarming"),
    [(0, 0, True), (1, 115, False), (1, 116, True), (64, 0, False)],
)
def test_when_it_is_told(correct, unparsable, alarming):
    assert Tally(128, correct, unparsable, 0.0).alarming is alarming
    assert not Tally(0, 0, 0, 0.0).alarming


def test_causes_follow_from_the_shares():
    assert "too few tokens (scale.lengths.response_tokens)" in Tally(10, 0, 0, 0.5).said("x")
    told = Tally(10, 0, 4, 0.4).said("x")
    assert "tokens" not in told and ASKED not in told and "for instance" not in told and "golds of another kind" in told
    assert len(Tally(10, 0, 10, 0.0, "\x1b[2J" * 9999, "\n" * 9999).said("x")) < 1000


def test_damaged_lines_count_for_nothing():
    assert (
        tally({"verdict_correct": True, "verdict_wrong": 1e999, "truncated_frac": "x"}, [{"response": 5}]).samples == 0
    )


def sample(outcome, response, truncated=False):
    verdict = SimpleNamespace(outcome=outcome, correct=outcome == "correct")
    return SimpleNamespace(item=Item("i", "s", "p", "17"), verdict=verdict, response=response, truncated=truncated)


def test_the_base_is_tallied():
    from rankrl.sweep.base_score import tally_of

    samples = [sample("wrong", "5"), sample("unparsable", "er", True), sample("correct", "17"), sample("wrong", None)]
    assert tally_of(samples) == Tally(4, 1, 1, 0.25, "er", "17")
    assert tally_of([sample("wrong", None)]) == Tally(1, 0, 0, 0.0, "", "17")
    assert tally_of([]) == Tally(0, 0, 0, 0.0)


@pytest.mark.usefixtures("stack")
def test_the_first_rollout_is_told_once(monkeypatch, capsys):
    from rankrl.sweep import progress, training

    monkeypatch.setattr(progress, "TOLD", set())
    monkeypatch.setattr(training, "stop_found", lambda record: False)
    nothing = lambda *args: None  # noqa: E731
    record = SimpleNamespace(step=nothing, prove_checkpoint=nothing, examples=nothing)
    trainer = SimpleNamespace(step=lambda step: {**COUNTS, "truncated_frac": 0.0}, examples=EXAMPLES)
    run = runs_of("demo")[0]
    for step in (0, 1, 0):
        training.take_step(run, record, trainer, step)
    (told,) = capsys.readouterr().out.splitlines()
    assert "warning: hardly anything is right: 0 of 128 answers of the first rollout are correct, 99%" in told
    trainer.step = lambda step: {**COUNTS, "verdict_correct": 128, "truncated_frac": 0.0}
    monkeypatch.setattr(progress, "TOLD", set())
    training.take_step(run, record, trainer, 0)
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("stack")
def test_the_base_is_told(monkeypatch, capsys, tmp_path):
    from rankrl.sweep import bench, progress

    monkeypatch.setattr(progress, "TOLD", set())
    monkeypatch.setattr(bench, "base_samples", lambda *args: [sample("unparsable", "er")] * 4)
    held = object.__new__(bench.Bench)
    held.runs, held.directory, held.scale, held.eval_items = [], tmp_path, None, []
    held.prompter, held._lock = None, bench.threading.RLock()
    held._services = SimpleNamespace(broken=False, model_path="m", engines=[], grader=None)
    assert len(held._evaluate_base()) == 4
    told = capsys.readouterr().out
    assert "warning: hardly anything is right: 0 of 4 answers of the base are correct, 100% cannot be parsed" in told


def sweep_of(tmp_path, scores, counts):
    """Two runs with (base score, final score) each, and the verdicts of their last rollouts."""
    root = tmp_path / "demo"
    for run, (base, final), more in zip(runs_of("demo"), scores, counts, strict=False):
        directory = write_run(root / run.run_id, run, Grown(0.0, 1000, 1.0), items=0)
        result = json.loads((directory / "result.json").read_text())
        result |= {"base_score": base, "final_score": final, "best_score": max(base, final), "gain": final - base}
        (directory / "result.json").write_text(json.dumps(result))
        lines = [json.loads(line) | more for line in (directory / "metrics.jsonl").read_text().splitlines()]
        (directory / "metrics.jsonl").write_text(
            "".join(json.dumps(line | {"truncated_frac": 0.5}) + "\n" for line in lines)
        )
        (directory / "rollouts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in EXAMPLES))
    return root


def test_the_report_names_it_first(tmp_path, capsys):
    from rankrl.report.build import print_table

    root = sweep_of(tmp_path, [(0.0, 0.0)] * 2, [COUNTS] * 2)
    (summary,) = build(root, tables_only=True)
    first = summary["problems"][0]
    assert first["run"] == "" and first["problem"].startswith(
        "hardly anything is right: 0 of 256 answers of the last rollouts of all runs are correct, 99% cannot be parsed, "
        "50% are cut off; for instance 'I can\\u202e not\\nsay' where '17' is right. Likely causes: too few tokens"
    )
    print_table(summary)
    assert "all runs: hardly anything is right: 0 of 256 answers" in capsys.readouterr().out


def test_the_report_names_the_runs_if_they_are_not_all(tmp_path):
    root = sweep_of(
        tmp_path, [(0.2, 0.3), (0.2, 0.3)], [COUNTS | {"verdict_correct": 99}, COUNTS | {"verdict_correct": 2}]
    )
    (said,) = [row["problem"] for row in read_sweep(root).problems if row["problem"].startswith("hardly")]
    assert said.startswith("hardly anything is right: 2 of 130 answers of the last rollouts of the runs r1-b16-s1 are")


def test_older_records_without_counts_are_told_by_their_scores(tmp_path):
    root = sweep_of(tmp_path, [(0.0, 0.0), (0.2, 0.3)], [{}, {}])
    found = [row["problem"] for row in read_sweep(root).problems if row["problem"].startswith("hardly")]
    assert found == ["hardly anything is right: no answer of the runs r1-b16-s0 was correct in any evaluation"]
    root = sweep_of(tmp_path / "fine", [(0.0, 0.1), (0.2, 0.0)], [{}, {}])
    assert not [row for row in read_sweep(root).problems if row["problem"].startswith("hardly")]
