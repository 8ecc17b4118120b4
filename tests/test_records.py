"""What a killed run leaves in its record, and how the next attempt continues it. No Ray."""

from __future__ import annotations

import json

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


def test_the_step_of_a_checkpoint_is_known_without_reading_it(stack, tmp_path):
    from rankrl.ppo.records import Record

    record = Record(tmp_path, runs_of("demo", "ranks=[1]", "seeds=[3]")[0])
    assert record.saved_step() == 0
    record.save_checkpoint({"step": 20})
    (tmp_path / "checkpoint" / "state.pt").write_bytes(b"damaged")
    assert record.saved_step() == 20 and (tmp_path / "checkpoint" / "state.pt").exists()
    assert record.load_checkpoint() is None and record.saved_step() == 0


def test_every_run_has_all_columns_of_hparams(stack, tmp_path):
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    from rankrl.ppo.records import OUTCOMES, Record
    from rankrl.report.result import Result

    (run,) = runs_of("demo", "ranks=[1]", "seeds=[3]")
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
        "critic_rank": run.recipe.critic.rank,
        "init": "kaiming",
        "allocation": "uniform",
    }
    assert metrics == ["hparam/final_score", "hparam/gain", "hparam/best_score", "hparam/tokens_total"]
    assert outcomes == dict(zip(metrics, (0.75, 0.5, 0.75, 1024), strict=True))
