"""What a killed run leaves in its record, and what the next attempt makes of it. No Ray."""

from __future__ import annotations

import json

from conftest import runs_of


def lines(steps):
    from rankrl.ppo.records import TABS

    names = [name for tab in TABS.values() for name in tab]
    return [{"step": step, **dict.fromkeys(names, 0.1 * step)} for step in steps]


def test_a_run_resumed_after_a_kill_draws_one_curve(stack, tmp_path):
    """In the one file of events that is left, whatever reads it."""
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
