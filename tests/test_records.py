"""What a killed run leaves in its record, and how the next attempt continues it. No Ray."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from conftest import runs_of


def lines(steps):
    from rankrl.ppo.records import TABS

    names = [name for tab in TABS.values() for name in tab]
    return [{"step": step, **dict.fromkeys(names, 0.1 * step)} for step in steps]


def test_a_run_resumed_after_a_kill_draws_one_curve(stack, tmp_path):
    """Only one event file is left, so every reader of TensorBoard files sees one curve."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    from rankrl.ppo.records import Record

    (run,) = runs_of("demo", "ranks=[1]", "seeds=[0]")
    killed = Record(tmp_path, run)
    killed.start(run.resolved(), 0)
    for line in lines([1, 2, 3, 4, 5]):
        killed.step(line)
    killed.board.flush()
    (events,) = (tmp_path / "tb").iterdir()
    events.write_bytes(events.read_bytes()[:-7])  # killed in the middle of a write
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "rew')

    for resumed_step, steps in ((3, [4, 5, 6]), (4, [5])):
        again = Record(tmp_path, run)
        again.start(run.resolved(), resumed_step)
        for line in lines(steps):
            again.step(line)
        again.close()
    (events,) = (tmp_path / "tb").iterdir()
    drawn = [
        event.step
        for event in LegacyEventFileLoader(str(events)).Load()
        for value in event.summary.value
        if value.tag == "reward/accuracy"
    ]
    logged = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert drawn == logged == [1, 2, 3, 4, 5]


def sample(index, text, item="a", outcome="wrong"):
    from rankrl.data.items import Item
    from rankrl.ppo.rollout import Sample
    from rankrl.reward.grade import Verdict

    return Sample(
        Item(item, "s", f"prompt of {item}", "7"), index, [1], [2, 3], [0, 0], False, Verdict(outcome, True), text
    )


HOSTILE = "\ud800 \x1b[2J [bold]\x00"
STORED = "\\ud800 \x1b[2J [bold]\x00"


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        ("first", {0: [STORED, None], 1: [None, None], 2: ["c", None]}),
        ("all", {0: [STORED, "b"], 1: ["x", "y"], 2: ["c", "d"]}),
        ("none", {0: [None, None], 1: [None, None], 2: [None, None]}),
    ],
)
def test_the_texts_that_evaluations_keep(stack, tmp_path, keep, kept):
    import pyarrow.parquet as pq

    from rankrl.ppo.records import Record

    (run,) = runs_of("demo", "ranks=[1]", "seeds=[0]", "steps=2", f"keep_responses={keep}")
    record = Record(tmp_path, run)
    record.start(run.resolved(), 0)
    for step, texts in ((0, (HOSTILE, "b")), (1, ("x", "y")), (2, ("too late",) * 2), (2, ("c", "d"))):
        record.evaluation(step, [sample(i, text) for i, text in enumerate(texts)], 0.0)
    record.close()
    table = pq.read_table(tmp_path / "evals.parquet")
    assert table.column_names[-1] == "response" and str(table.schema.field("response").type) == "large_string"
    rows = table.to_pylist()
    assert {at: [row["response"] for row in rows if row["step"] == at] for at in (0, 1, 2)} == kept
    columns = [pq.ParquetFile(tmp_path / "evals.parquet").metadata.row_group(0).column(i) for i in range(9)]
    assert {column.compression for column in columns} == {"ZSTD"}


def test_evaluations_of_before_texts_were_kept_are_continued(stack, tmp_path):
    from rankrl.ppo.records import Record, eval_rows

    (run,) = runs_of("demo", "ranks=[1]", "seeds=[0]", "steps=2")
    pd.DataFrame(eval_rows(0, [sample(0, "lost")])).to_parquet(tmp_path / "evals.parquet")
    record = Record(tmp_path, run)
    record.start(run.resolved(), 1)
    record.evaluation(2, [sample(0, "kept")], 0.0)
    record.close()
    rows = pd.read_parquet(tmp_path / "evals.parquet")
    assert rows["step"].tolist() == [0, 2] and rows["response"].isna().tolist() == [True, False]
    assert rows["response"][1] == "kept"


def test_the_base_is_cached_with_texts_and_an_old_cache_stays_in_use(stack, tmp_path):
    """Sampled again, it could score otherwise than for the runs that a sweep has already."""
    from types import SimpleNamespace

    from rankrl.recipe.load import load_scale
    from rankrl.sweep.base_score import base_samples, cache_file
    from rankrl.sweep.evaluate import _cached

    samples = [sample(0, HOSTILE, outcome="correct"), sample(1, "b")]
    items, scale, model = [samples[0].item], load_scale("nano"), tmp_path / "model"
    model.mkdir()
    asked = []
    rollouts = SimpleNamespace(scale=scale, evaluate=lambda *words: asked.append(words) or samples)

    def texts():
        found = base_samples(rollouts, items, tmp_path, str(model))
        assert [s.verdict.outcome for s in found] == ["correct", "wrong"]
        return [s.response for s in found]

    assert texts() == [HOSTILE, "b"] and len(asked) == 1
    assert texts() == [STORED, "b"] and len(asked) == 1
    path = cache_file(scale, items, tmp_path, str(model))
    marks = _cached(path, items)
    assert sorted(marks.columns) == ["boxed", "correct", "item_id", "source", "truncated"]
    pd.read_parquet(path).drop(columns="response").to_parquet(path)
    assert texts() == [None, None] and len(asked) == 1
    pd.testing.assert_frame_equal(_cached(path, items), marks)


def test_training_samples_are_neither_doubled_nor_missing_after_a_kill(stack, tmp_path):
    from rankrl.ppo.records import Record

    (run,) = runs_of("demo", "ranks=[1]", "seeds=[0]")
    record = Record(tmp_path, run)
    record.start(run.resolved(), 0)
    for step in (1, 2, 3):
        record.examples([{"step": step, "response": "\x1b[31m\u00e9"}] * 2)
    with (tmp_path / "rollouts.jsonl").open("a") as file:
        file.write('{"step": 4, "resp')
    record.close()
    again = Record(tmp_path, run)
    again.start(run.resolved(), 2)
    again.examples([{"step": 3, "response": "again"}])
    again.close()
    text = (tmp_path / "rollouts.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in lines] == [1, 1, 2, 2, 3] and lines[-1]["response"] == "again"
    assert text.isascii() and "\x1b" not in text and lines[0]["response"] == "\x1b[31m\u00e9"


def test_the_training_samples_of_a_step_are_few_and_the_same_whatever_the_batches(stack):
    import torch
    from openrlhf.trainer.ppo_utils.experience import Experience

    from rankrl.ppo.examples import LONGEST, examples

    samples = [sample(k, "\U0001f600" * 10**6 if item == "c" else HOSTILE, item) for item in "abcdef" for k in range(2)]

    def batch(index):
        mask = torch.tensor([[True, True, False]] * len(index))
        advantages = torch.tensor([[i + 1.0, i + 2.0, 99.0] for i in index])
        return Experience(action_mask=mask, advantages=advantages, rewards=torch.tensor(index) * 0.5, index=index)

    lines = examples(7, samples, [batch([11, 0, 3, 4]), batch([1, 2, 5, 6, 7, 8, 9, 10])])
    assert lines == examples(7, samples, [batch(list(range(12)))])
    assert [(line["item_id"], line["sample"], line["reward"], line["advantage"]) for line in lines] == [
        ("a", 0, 0.0, 1.5),
        ("b", 0, 1.0, 3.5),
        ("c", 0, 2.0, 5.5),
        ("d", 0, 3.0, 7.5),
    ]
    told = {"step": 7, "item_id": "a", "source": "s", "sample": 0, "prompt": "prompt of a", "gold": "7"}
    assert lines[0] == told | {"response": STORED, "verdict": "wrong", "reward": 0.0, "advantage": 1.5}
    assert lines[2]["response"].count("\U0001f600") == LONGEST["response"] == 4000
    assert "\n[... 996,000 characters left out ...]\n" in lines[2]["response"]
    assert len(json.dumps(lines[2])) < 12 * sum(LONGEST.values())


@pytest.mark.parametrize(("steps", "kept"), [(1, 1), (500, 500), (501, 251), (1000, 500), (100_000, 500)])
def test_training_samples_of_at_most_500_steps_are_kept(stack, steps, kept):
    from rankrl.ppo.examples import keeps_examples

    found = [step for step in range(1, steps + 1) if keeps_examples(step, steps)]
    assert len(found) == kept and found[0] == 1


def test_the_step_of_a_checkpoint_is_known_without_reading_it(stack, tmp_path):
    from rankrl.ppo.records import Record

    record = Record(tmp_path, runs_of("demo", "ranks=[1]", "seeds=[3]")[0])
    assert record.saved_step() == 0
    record.save_checkpoint({"step": 20})
    record.wait_for_checkpoint()
    (tmp_path / "checkpoint" / "state.pt").write_bytes(b"damaged")
    assert record.saved_step() == 20 and (tmp_path / "checkpoint" / "state.pt").exists()
    assert record.load_checkpoint() is None and record.saved_step() == 0


def test_every_run_has_all_columns_of_hparams(stack, tmp_path):
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    from rankrl.ppo.records import OUTCOMES, Record
    from rankrl.report.result import Result

    (run,) = runs_of("demo", "ranks=[1]", "seeds=[3]", "rules.warmup.rule=by_rank")
    record = Record(tmp_path, run)
    record.start(run.resolved(), 0)
    record.finish(Result.of(run, "finished", 0.25, 0.75, 0.75, 1024, 7, 1.0, run.trainable_params))
    (events,) = (tmp_path / "tb").iterdir()
    start, metrics, outcomes = {}, [], {}
    for event in LegacyEventFileLoader(str(events)).Load():
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == "hparams":
                data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                start |= dict(data.session_start_info.hparams)
                metrics += [info.name.tag for info in data.experiment.metric_infos]
            elif value.tag in OUTCOMES:
                outcomes[value.tag] = value.simple_value
    row = {name: value.number_value or value.string_value for name, value in start.items()}
    assert row == {
        "arm": "-",
        "rank": 1,
        "batch_size": run.batch_size,
        "seed": 3,
        "alpha": run["alpha"],
        "lr": run["lr"],
        "lr_ratio": 1,
        "kl": run["kl"],
        "clip_low": 0.2,
        "clip_high": 0.28,
        "max_norm": run["max_norm"],
        "warmup": 0.1,
        "correction": "none",
        "advantage": "gae",
        "critic_rank": 32,
        "init": "kaiming",
        "allocation": "uniform",
    }
    assert metrics == ["hparam/final_score", "hparam/gain", "hparam/best_score", "hparam/tokens_total"]
    assert outcomes == dict(zip(metrics, (0.75, 0.5, 0.75, 1024), strict=True))
