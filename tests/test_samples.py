"""Reading responses: which items moved, what a terminal is shown, and what is refused."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from conftest import rankrl
from records import drawn, grid, write_all

from rankrl.cli import main
from rankrl.report.model_text import shortened, storable
from rankrl.report.page.moved import moved
from rankrl.report.read import read_sweep
from rankrl.report.samples import Moved, Side, evaluated_steps, moved_items, movement, read_evaluations
from rankrl.report.showing import VERDICTS
from rankrl.report.visible import visible

ESCAPES = "\x1b]0;title\x07\x1b[2J\r\x9b31m \ud800\u202e\U000e0041 [bold]x[/bold] :smile:"
SHOWN = r"\x1b]0;title\x07\x1b[2J\r\x9b31m \ud800\u202e\U000e0041 [bold]x[/bold] :smile:"


def test_text_of_a_model_commands_no_terminal():
    assert visible(ESCAPES, "\n\t") == SHOWN
    assert visible("a\n\tb \u00e9 \u4e2d \U0001f600", "\n\t") == "a\n\tb \u00e9 \u4e2d \U0001f600"
    assert storable("a\ud800b\x00") == "a\\ud800b\x00"
    assert shortened("0123456789", 10) == "0123456789"
    assert shortened("0123456789", 5) == "012\n[... 5 characters left out ...]\n89"


def rows(*samples):
    """Rows of evals.parquet from (step, item, correct, response); sample numbers count up."""
    table = pd.DataFrame(samples, columns=["step", "item_id", "correct", "response"])
    table["verdict"] = ["correct" if correct else "wrong" for correct in table["correct"]]
    table["sample"] = table.groupby(["step", "item_id"]).cumcount()
    return table.assign(source="s", boxed=True, response_tokens=3).astype({"response": object})


def of_item(item, step, marks, *texts):
    """Rows of one item, a mark (1: correct) for each sample and texts for the first ones."""
    padded = [*texts, *[None] * (len(marks) - len(texts))]
    return [(step, item, mark == "1", text) for mark, text in zip(marks, padded, strict=True)]


TABLE = rows(
    *of_item("half", 0, "1100", "h0"),
    *of_item("half", 9, "01", "h9"),  # 2/4 and 1/2: solved by both
    *of_item("up", 0, "1000", "right by luck", "wrong as usual"),
    *of_item("up", 9, "01", "wrong at the end", "right at the end"),
    *of_item("far", 0, "0000", "f0"),
    *of_item("far", 9, "11", None),
    *of_item("down", 0, "0111", "d0"),
    *of_item("down", 9, "00", "d9" * 3000),
    *of_item("down", 5, "11", "between"),
    *of_item("new", 9, "11"),  # not at step 0
)


def test_items_gained_and_lost_with_the_texts_that_show_it():
    moves = moved_items(TABLE, most=5, longest=10)
    assert (moves.step, moves.items, moves.n_gained, moves.n_lost) == (9, 4, 2, 1)
    far = Moved("far", "s", Side(0, 4, "wrong", "f0"), Side(2, 2))
    up = Moved(
        "up", "s", Side(1, 4, "wrong", "wrong\n[... 4 characters left out ...]\nusual"), Side(1, 2, "correct", "right")
    )
    assert moves.gained[0] == far and moves.gained[1].before == up.before
    assert moves.gained[1].after.text.startswith("right") and moves.gained[1].after.verdict == "correct"
    assert moves.lost == [
        Moved(
            "down",
            "s",
            Side(3, 4, "wrong", "d0"),
            Side(0, 2, "wrong", "d9d9d\n[... 5,990 characters left out ...]\n9d9d9"),
        )
    ]
    few = moved_items(TABLE, most=1)
    assert [item.item_id for item in few.gained] == ["far"] and few.n_gained == 2
    assert moves.gained[0].after.share == 1 and moves.lost[0].before.share == 0.75


@pytest.mark.parametrize("steps", [[0], [9], []])
def test_a_run_at_one_step_has_moved_no_items(steps):
    with pytest.raises(ValueError, match=r"^RUN_DIR: got .* allowed: a run evaluated at step 0 and later"):
        moved_items(TABLE[TABLE["step"].isin(steps)])


@pytest.fixture
def run(tmp_path):
    """A run with TABLE, and with training samples of steps 1 and 2."""
    directory = tmp_path / "a=b" / "demo" / "r1-b16-s0"  # not a partition of a data set
    directory.mkdir(parents=True)
    hostile = rows(*of_item("evil", 0, "0", storable(ESCAPES)), *of_item("evil", 9, "0", "two\nlines\n"))
    pd.concat([TABLE, hostile]).to_parquet(directory / "evals.parquet")
    line = {"item_id": "t", "source": "s", "sample": 0, "prompt": "p\nq", "gold": "7", "response": ESCAPES}
    lines = [line | {"step": step, "verdict": "wrong", "reward": 0.05, "advantage": -1.25} for step in (1, 1, 2)]
    (directory / "rollouts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def said(capsys, *words):
    code = main(["samples", *map(str, words)])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def refused(capsys, *words):
    assert main(["samples", *map(str, words)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("rankrl: "), err
    return err


def test_samples_of_the_last_step_are_printed_as_they_are(run, capsys):
    out = said(capsys, run, "--limit", "3")
    assert out.startswith(
        "half  s  step 9  sample 0  wrong\nresponse  h9\n\nup  s  step 9  sample 0  wrong\nresponse  wrong at"
    )
    assert out.endswith("\n3 of 5 samples (step 9 has 5 with a text; --limit 5 shows all)\n")
    out = said(capsys, run, "--verdict", "wrong", "--source", "s")
    assert "right at the end" not in out and "response  two\n          lines\n" in out
    assert out.endswith("4 wrong samples of s (step 9 has 5 with a text)\n")
    assert said(capsys, run, "--verdict", "timeout") == "0 timeout samples (step 9 has 5 with a text)\n"
    assert SHOWN in said(capsys, run, "--step", 0)


def test_training_samples_are_printed_with_reward_and_advantage(run, capsys):
    out = said(capsys, run, "--training")
    head = "t  s  step 2  sample 0  reward 0.050  advantage -1.250  wrong\nprompt    p\n          q\ngold      7\n"
    assert out == f"{head}response  {SHOWN}\n\n1 sample (step 2 has 1 with a text)\n"
    assert "2 samples (step 1 has 2" in said(capsys, run, "--training", "--step", "1")
    with (run / "rollouts.jsonl").open("a") as file:
        file.write('{"step": 3}\n' + "[" * 10**5 + "\n")
    assert "rollouts.jsonl: line 4 of 5 is damaged" in said(capsys, run, "--training")


def test_gained_and_lost_items_are_printed_with_both_texts(run, capsys):
    out = said(capsys, run, "--gained")
    assert (
        "up  s  step 0: 1/4  step 9: 1/2\nstep 0, wrong    wrong as usual\nstep 9, correct  right at the end\n" in out
    )
    assert "far  s  step 0: 0/4  step 9: 2/2\nstep 0, wrong  f0\n\n" in out and "no response was kept" in out
    assert out.endswith("2 items gained (of 5: at least half of the samples correct at step 9, fewer at step 0)\n")
    out = said(capsys, run, "--lost", "--source", "s")
    assert out.startswith("down  s  step 0: 3/4  step 9: 0/2\nstep 0, wrong  d0\nstep 9, wrong  d9d9")
    assert len(out) > 6000 and "1 item of s lost (of 5" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--verdict", "rong"), "--verdict: got 'rong', allowed: correct, wrong, unparsable, timeout"),
        (("--source", "t"), "--source: got 't', allowed: s"),
        (("--gained", "--source", "t"), "--source: got 't', allowed: s"),
        (("--step", "4"), "--step: got 4, allowed: an evaluated one: 0, 5, 9 (--training shows"),
        (("--step", "-1"), "--step: got -1, allowed: a PPO step"),
        (("--training", "--step", "9"), "--step: got 9, allowed: a step with training samples: 1, 2"),
        (("--limit", "0"), "--limit: got 0, allowed: at least 1"),
        (("--gained", "--lost"), "--gained: got 'with --lost', allowed: one of the two"),
        (("--gained", "--step", "9"), "--step: got 9, allowed: nothing with --gained"),
        (("--lost", "--verdict", "wrong"), "--verdict: got 'wrong', allowed: nothing with --lost"),
        (("--lost", "--training"), "--training: got True, allowed: nothing with --lost"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_line(run, capsys, words, says):
    assert says in refused(capsys, run, *words)


def test_missing_and_damaged_records_are_refused_in_one_line(run, capsys, tmp_path):
    assert "no/run', allowed: the directory of a run, with evals.parquet (it does not exist)" in refused(
        capsys, "no/run"
    )
    assert "(it holds runs, for instance r1-b16-s0)" in refused(capsys, run.parent)
    assert "(it is no directory)" in refused(capsys, run / "evals.parquet")
    (run / "rollouts.jsonl").write_text("")
    assert "allowed: a run with training samples (it has made no step yet)" in refused(capsys, run, "--training")
    (run / "rollouts.jsonl").unlink()
    assert "with rollouts.jsonl (no file of that name is in it)" in refused(capsys, run, "--training")
    whole = (run / "evals.parquet").read_bytes()
    for damaged in (b"", b"PAR1 no parquet", whole[: len(whole) // 2], whole[:40] + b"\xff" * 300 + whole[340:]):
        (run / "evals.parquet").write_bytes(damaged)
        assert "evals.parquet is damaged (" in refused(capsys, run)
    TABLE.drop(columns="verdict").assign(**{"\x1b[31m": 1}).to_parquet(run / "evals.parquet")
    assert "\x1b" not in refused(capsys, run)
    TABLE.assign(step=[{"a": 1}] * len(TABLE)).to_parquet(run / "evals.parquet")
    assert "is damaged" in refused(capsys, run, "--gained")
    TABLE[:0].to_parquet(run / "evals.parquet")
    assert "its evals.parquet has no rows" in refused(capsys, run)


@pytest.mark.parametrize("old", [TABLE.drop(columns="response"), TABLE.assign(response=None)])
def test_a_run_without_texts_says_so_and_still_names_its_items(run, capsys, old):
    old.to_parquet(run / "evals.parquet")
    error = refused(capsys, run)
    assert "allowed: a run that kept responses of step 9 (keep_responses: first keeps" in error
    out = said(capsys, run, "--lost")
    assert out.startswith("down  s  step 0: 3/4  step 9: 0/2\n\nnote: of step 0 or 9 no response was kept")


def test_only_the_steps_and_columns_that_are_needed_are_read(run):
    assert evaluated_steps(run) == [0, 5, 9]
    read = read_evaluations(run, [0, 9])
    assert list(read.columns) == ["step", "item_id", "source", "sample", "correct", "verdict", "response"]
    assert set(read["step"]) == {0, 9}
    assert movement(run, 5).n_gained == 2


def test_prompts_and_golds_come_from_the_items_of_the_run(tmp_path, capsys):
    """Only where their revision is the recorded one: ids alone may name other questions."""
    from rankrl.data.items import revision
    from rankrl.data.loading import load_items

    (made,) = grid("small", "demo", "ranks=[1]", "seeds=[0]")
    run = write_all(tmp_path / "small", [made], drawn([made], {"": 0.2}, 0.02)) / made.run_id
    items = load_items(made.scale.data)[1]
    item = items[5]
    rows(*of_item(item.item_id, 0, "0", "no"), *of_item(item.item_id, 30, "1", "yes")).to_parquet(run / "evals.parquet")
    assert main(["samples", str(run)]) == 0
    out, err = capsys.readouterr()
    assert "prompt" not in out and err.startswith(
        "note: without prompts and golds: the run's items are of revision None"
    )
    text = (
        (run / "run.yaml")
        .read_text()
        .replace("data_revision: synthetic", f"data_revision: {{evaluation: {revision(items)}}}")
    )
    (run / "run.yaml").write_text(text)
    for word in ("--verdict=correct", "--gained"):
        assert f"{item.prompt.strip()}\ngold" in said(capsys, run, word)
    (run / "run.yaml").write_text("[")
    assert main(["samples", str(run)]) == 0
    assert capsys.readouterr().err == "note: without prompts and golds: run.yaml is missing or damaged\n"


def test_a_terminal_that_is_not_utf8_gets_escapes(run, monkeypatch):
    TABLE.assign(response="\u4e2d").to_parquet(run / "evals.parquet")
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = rankrl("samples", str(run), "--limit", "1")
    assert done.returncode == 0, done.stderr
    assert "response  \\u4e2d\n" in done.stdout and done.stdout.isascii()


def test_verdicts_are_those_of_the_grader():
    from rankrl.reward.grade import OUTCOMES

    assert VERDICTS == OUTCOMES


def test_the_page_has_items_of_a_few_runs(tmp_path):
    """At most three each way, of the first run of each rank; markup in an answer stays text."""
    runs = grid("few", "demo")
    root = write_all(tmp_path / "few", runs, drawn(runs, {"": 0.1}, 0.05))
    sweep = read_sweep(root)
    found = moved(sweep)
    assert {row["run_id"] for row in found} == {"r1-b16-s0", "r8-b16-s0", "r32-b16-s0"}
    ways = [(row["run_id"], row["way"]) for row in found]
    assert {"gained", "lost"} == {way for _, way in ways} and max(map(ways.count, ways)) == 3
    first = found[0]
    (same,) = [one for one in movement(root / first["run_id"]).gained if one.item_id == first["item_id"]]
    assert (first["before"], first["after"]) == (
        f"{same.before.correct} of {same.before.samples}",
        f"{same.after.correct} of {same.after.samples}",
    )
    assert first["text_after"] == f"\\boxed{{{first['item_id']}}}"
