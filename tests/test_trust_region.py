"""The trust region: formula, bounds and state with literal numbers, its section and its curve."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path

import pytest
import torch
import yaml
from conftest import rankrl, runs_of
from records import Grown, write_run

from rankrl.recipe.history import completed
from rankrl.recipe.idle import idle_settings
from rankrl.recipe.trust_section import CURVES, TrustRegion, shipped_curve
from rankrl.report.reference_curve import by_update, reference_curve, shared_medians
from rankrl.sweep.identity import check_identity

REFERENCE = "trust_region.target=reference"


def region(low: float = 0.05, high: float = 20.0, warmup_updates: int = 0, updates: int = 100, **section):
    from rankrl.ppo.trust_region import TrustRegion as Controller

    return Controller(TrustRegion(**{"target": 1e-3, "low": low, "high": high} | section), updates, warmup_updates)


def test_the_change_of_the_rate_after_a_step(stack):
    """sqrt(target / kl): KL goes as the square of the rate."""
    from rankrl.ppo.trust_region import change

    assert change(1e-3, 1e-3) == 1.0
    assert change(1.21e-3, 1e-3) == pytest.approx(1 / 1.1)
    assert change(1e-3, 1.44e-3) == pytest.approx(1.2)
    assert change(2.26e-3, 1e-3) == change(1.0, 1e-3) == change(inf, 1e-3) == pytest.approx(2 / 3)
    assert change(0.44e-3, 1e-3) == change(1e-12, 1e-3) == 1.5


def test_a_kl_of_0_and_the_first_step_leave_the_rate(stack):
    of = region()
    of.follow(0, 1e-9)  # before any update: the rounding of a GPU
    for done, kl in enumerate((0.0, -1e-9, 0.0), 1):
        of.follow(done, kl)
    assert of.factor == 1.0


def test_the_factor_is_a_product_within_bounds(stack):
    of = region(low=0.5, high=2.0)
    found = []
    for done, kl in enumerate([1e-4] * 3 + [1e-1] * 5 + [1e-3], 1):
        of.follow(done, kl)
        found.append(of.factor)
    expected = [1.5, 2.0, 2.0, 4 / 3, 8 / 9, 16 / 27, 0.5, 0.5, 0.5]
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("start", [0.25, 1.0, 4.0])
def test_three_starting_rates_end_at_one(stack, start):
    """Where KL is 2e-3 times the square of the rate, a target of 1e-3 is met at sqrt(1/2)."""
    of = region()
    for done in range(1, 12):
        of.follow(done, 2e-3 * (start * of.factor) ** 2)
    assert start * of.factor == pytest.approx(0.5**0.5)


def test_a_warm_up_may_only_lower_it(stack):
    of = region(warmup_updates=2)
    of.follow(1, 1e-5)
    assert of.factor == 1.0
    of.follow(2, 1.21e-3)
    assert of.factor == pytest.approx(1 / 1.1)
    of.follow(3, 1e-5)
    assert of.factor == pytest.approx(1.5 / 1.1)


def test_which_updates_belong_to_the_warm_up(stack):
    """60 steps of two updates: 3 % are 4 optimizer steps, at 1/4, 2/4, 3/4 and 1 of the rate."""
    from rankrl.ppo.trust_region import TrustRegion as Controller

    def of(*words):
        found = Controller.of(runs_of("low_rank", "trust_region.target=1e-3", "ranks=[1]", "seeds=[0]", *words)[0])
        return found.updates, found.warmup_updates

    assert of("steps=60") == (60, 2)
    assert of("steps=60", "rules.warmup=0") == (60, 0)
    assert of("steps=60", "rules.warmup=0.1") == (60, 6)
    assert of("steps=60", "rules.warmup=0.1", "updates_per_rollout=1") == (60, 5)  # the sixth has the whole rate
    assert of("steps=60", "rules.warmup=0.1", "updates_per_rollout=1", "warmup_offset=0") == (60, 6)
    assert of("steps=60", "critic.warmup_steps=10") == (50, 1)  # 3 optimizer steps: 1/3, 2/3, 1


def test_the_target_of_a_curve_is_that_of_the_same_share(stack):
    of = region(target="reference", curve=(1e-3, 2e-3, 3e-3, 4e-3), updates=8)
    assert [of.target(done) for done in range(9)] == [1e-3, 1e-3, 1e-3, 2e-3, 2e-3, 3e-3, 3e-3, 4e-3, 4e-3]
    longer = region(target="reference", curve=(1e-3, 2e-3), updates=3)
    assert [longer.target(done) for done in (1, 2, 3)] == [1e-3, 1e-3, 2e-3]
    assert region().target(0) == region().target(100) == 1e-3


def optimizer_and_schedule(shape: str = "cosine"):
    """Two weights at rates 0.1 and 0.4, 20 steps, a warm-up of 4."""
    from types import SimpleNamespace

    from rankrl.ppo.workers import scheduler

    weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    groups = [{"params": weights[:1], "lr": 0.1}, {"params": weights[1:], "lr": 0.4}]
    adam = torch.optim.AdamW(groups, weight_decay=0.0)
    spec = SimpleNamespace(optimizer_steps=20, lr_shape=shape, lr_final=0.1, warmup_offset=1)
    return weights, adam, scheduler(SimpleNamespace(adam=adam), spec, 0.2)


def rates(adam) -> list[float]:
    return [group["lr"] for group in adam.param_groups]


def take(weights, adam, schedule) -> None:
    adam.zero_grad()
    sum((weight**2).sum() for weight in weights).backward()
    adam.step()
    schedule.step()


def test_the_factor_multiplies_what_the_schedule_gives(stack):
    """Warm-up 1/4, 2/4, 3/4, 1; the ratio of the two rates stays."""
    weights, adam, schedule = optimizer_and_schedule("constant")
    assert rates(adam) == pytest.approx([0.025, 0.1])
    schedule.scale(2.0)
    assert rates(adam) == pytest.approx([0.05, 0.2]) == schedule.get_last_lr()
    take(weights, adam, schedule)
    assert rates(adam) == pytest.approx([0.1, 0.4])
    schedule.scale(0.5)
    schedule.scale(0.5)  # it is set, not multiplied once more
    assert rates(adam) == pytest.approx([0.025, 0.1]) and schedule.last_epoch == 1
    for _ in range(10):
        take(weights, adam, schedule)
    assert rates(adam) == pytest.approx([0.05, 0.2])


def test_a_factor_of_1_is_the_schedule_to_the_bit(stack):
    (_, plain, left), (_, scaled, right) = optimizer_and_schedule(), optimizer_and_schedule()
    for _ in range(19):
        right.scale(1.0)
        assert rates(plain) == rates(scaled)
        for adam, schedule in ((plain, left), (scaled, right)):
            adam.step()
            schedule.step()


def test_a_schedule_goes_on_from_its_state(stack):
    def steps(weights, adam, schedule, factors):
        for factor in factors:
            schedule.scale(factor)
            take(weights, adam, schedule)
            take(weights, adam, schedule)

    whole, first, resumed = (optimizer_and_schedule() for _ in range(3))
    steps(*whole, [1.0, 1.5, 0.7, 1.2])
    steps(*first, [1.0, 1.5])
    for weight, saved in zip(resumed[0], first[0], strict=True):
        weight.data.copy_(saved.data)
    resumed[1].load_state_dict(first[1].state_dict())
    resumed[2].load_state_dict(first[2].state_dict())
    assert rates(resumed[1]) == rates(first[1]) and resumed[2].factor == 1.5
    steps(*resumed, [0.7, 1.2])
    assert rates(resumed[1]) == rates(whole[1]) and all(map(torch.equal, resumed[0], whole[0]))


def test_the_loop_sets_and_logs_the_factor(stack):
    """RunTrainer's own method, on a policy that only takes notes."""
    from types import SimpleNamespace

    from rankrl.ppo.loop import RunTrainer
    from rankrl.ppo.trust_region import TrustRegion as Controller

    def trainer(*words):
        run = runs_of("low_rank", "ranks=[1]", "seeds=[0]", "rules.warmup=0", *words)[0]
        told: list[float] = []
        policy = SimpleNamespace(async_run_method=lambda name, factor: told.append(factor))
        of = SimpleNamespace(run=run, policy=policy, trust_region=None)
        if run.recipe.trust_region.on:
            of.trust_region = Controller.of(run)
        return of, told

    of, told = trainer("trust_region.target=1e-3")
    assert RunTrainer.set_rate(of, 0, 0.0) == {"kl_target": 1e-3, "lr_factor": 1.0}
    assert RunTrainer.set_rate(of, 1, 1e-5) == {"kl_target": 1e-3, "lr_factor": 1.5}
    assert RunTrainer.set_rate(of, 2, 1.21e-3)["lr_factor"] == pytest.approx(1.5 / 1.1) == told[-1]
    off, told = trainer()
    assert RunTrainer.set_rate(off, 5, 1e-2) == {} and told == []
    late, told = trainer("trust_region.target=1e-3", "critic.warmup_steps=3")
    factors = [RunTrainer.set_rate(late, step, 1e-9)["lr_factor"] for step in range(5)]
    assert factors == [1.0, 1.0, 1.0, 1.0, 1.5]  # the policy's first update is that of step 3


def test_the_factor_is_checkpointed(stack):
    from types import SimpleNamespace

    from rankrl.ppo.canary import Canary
    from rankrl.ppo.loop import RunTrainer

    run = runs_of("low_rank", "trust_region.target=1e-3", "ranks=[1]", "seeds=[0]")[0]

    def trainer(of):
        rest = {"tokens_total": 7, "kl_ctl": SimpleNamespace(adapted=1.0), "canary": Canary(1.0), "table": []}
        rest["experience_maker"] = SimpleNamespace(history=None)
        return SimpleNamespace(run=run, trust_region=of, _parts=dict, sync=lambda: 0, ahead=None, **rest)

    saved, resumed = region(), region()
    saved.follow(1, 1.21e-3)
    RunTrainer.restore(trainer(resumed), RunTrainer.state(trainer(saved), 1))
    assert resumed == saved and resumed.factor == pytest.approx(1 / 1.1)
    before = {key: value for key, value in RunTrainer.state(trainer(None), 1).items() if key != "lr_factor"}
    RunTrainer.restore(trainer(None), before)  # of before there were trust regions


def test_off_unless_a_recipe_asks_for_it():
    assert runs_of("demo")[0].recipe.trust_region == TrustRegion() and not TrustRegion().on
    run = runs_of("demo", "trust_region.target=2e-3")[0]
    assert run.recipe.trust_region == TrustRegion(2e-3) and run["lr"] == 1e-3  # the rate at the start
    assert str(run.recipe.trust_region) == "KL per step 0.002, factor on the rate 0.05 to 20"


def test_the_curve_of_a_scale_stands_in_run_yaml():
    section = runs_of("demo", REFERENCE)[0].recipe.trust_region
    assert section.curve == shipped_curve("nano") and len(section.curve) == 10
    own = runs_of("demo", "trust_region={target: reference, curve: [1e-3, 2e-3]}")[0]
    assert own.resolved()["recipe"]["trust_region"] == {
        "target": "reference",
        "low": 0.05,
        "high": 20.0,
        "curve": [1e-3, 2e-3],
    }


def test_it_is_an_axis_and_an_arm():
    runs = runs_of("demo", "ranks=[1]", "seeds=[0]", "axes={trust_region.target: [null, 0.001, reference]}")
    assert [run.recipe.trust_region.target for run in runs] == [None, 1e-3, "reference"]
    arms = {"off": {}, "on": {"trust_region": {"target": "reference"}}}
    runs = runs_of("demo", "ranks=[1]", "seeds=[0]", f"arms={json.dumps(arms)}")
    assert [run.recipe.trust_region.on for run in runs] == [False, True]


def test_a_sweep_of_before_goes_on_without_one(tmp_path):
    record = runs_of("demo")[0].resolved()
    del record["recipe"]["trust_region"]
    assert completed("recipe", record["recipe"])["trust_region"]["target"] is None
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(record))
    check_identity(tmp_path, runs_of("demo")[0])
    with pytest.raises(ValueError, match="trust_region"):
        check_identity(tmp_path, runs_of("demo", REFERENCE)[0])


def test_a_decay_that_it_undoes_is_named():
    (warning,) = idle_settings(runs_of("demo", REFERENCE, "lr_shape=cosine"))
    assert warning.startswith("warning: lr_shape=cosine hardly acts: trust_region.target")
    assert idle_settings(runs_of("demo", REFERENCE, "rules.lr_ratio=4", "rules.warmup=0.1")) == []
    assert idle_settings(runs_of("demo", "lr_shape=cosine")) == []


def test_a_line_has_the_kl_of_the_update_before():
    lines = [{"step": i + 1, "kl_step": kl} for i, kl in enumerate((0.0, 1e-3, None, 3e-3, 0.0))]
    assert by_update(lines) == [1e-3, None, 3e-3, None]
    assert by_update(lines, alone=2) == [3e-3, None]  # in two steps only the critic learned


def test_the_median_of_all_runs_in_each_tenth():
    """20 updates, of which 19 are measured: the first tenth has the first two of each run."""
    runs = [[float(update + 1) for update in range(19)], [float(update + 2) for update in range(19)]]
    medians = shared_medians(runs, 20)
    assert medians[:2] == [2.0, 4.0] and medians[-1] == 19.5 and len(medians) == 10
    with pytest.raises(ValueError, match=r"none in shares \[10\] of 10"):
        shared_medians([[1.0] * 18], 20)


def recorded(tmp_path: Path, *words: str) -> Path:
    """Runs at ranks 1 and 32 whose KL is 1e-5 times step and rank, but for a factor of the seed."""
    for run in runs_of("demo", "ranks=[1,32]", "seeds=[0,1,2]", *words):
        steps = range(1, run.recipe.steps + 1)
        kls = [1e-5 * run.rank * (step - 1) * (1, 1.1, 9)[run.seed] for step in steps]
        lines = [json.dumps({"step": step, "kl_step": kl}) + "\n" for step, kl in zip(steps, kls, strict=True)]
        write_run(tmp_path / "demo" / run.run_id, run, Grown(0.1, 1000, 10.0), 0, "".join(lines).encode())
    return tmp_path / "demo"


def test_a_curve_is_recorded_from_finished_runs(tmp_path):
    found = reference_curve(recorded(tmp_path, "steps=40"))
    kl_step = found.pop("kl_step")
    facts = {"scale": "nano", "rank": 32, "batch_size": 16, "steps": 40, "updates_per_rollout": 2, "runs": 3}
    assert found == facts and len(kl_step) == 10
    # updates 1 to 4 have 32e-5 times 1, 2, 3, 4; 1.1, ..., 4.4; and 9, ..., 36
    assert kl_step[0] == pytest.approx(32e-5 * (3.3 + 4) / 2, rel=1e-3)
    assert reference_curve(tmp_path / "demo", "r1-b16")["kl_step"][0] == pytest.approx(kl_step[0] / 32, rel=1e-3)


@pytest.mark.parametrize(
    ("words", "cell", "says"),
    [
        (["steps=40"], "r2-b16", "--cell: got 'r2-b16', allowed: one of r1-b16, r32-b16"),
        (["steps=40", "batch_sizes=[16,32]"], None, "--cell: got None, allowed: one of r1-b16, r1-b32, r32-b16"),
        (["steps=19"], None, "allowed: runs of at least 20 steps"),
    ],
)
def test_what_no_curve_is_made_from(tmp_path, words, cell, says):
    with pytest.raises(ValueError, match=says) as refused:
        reference_curve(recorded(tmp_path, *words), cell)
    assert "\n" not in str(refused.value)


def test_the_command_writes_what_a_recipe_takes(tmp_path):
    done = rankrl("curve", str(recorded(tmp_path, "steps=40")), "--to", str(tmp_path / "curves" / "mine.json"))
    assert done.returncode == 0, done.stderr
    word = done.stdout.splitlines()[-1]
    section = runs_of("demo", REFERENCE, word)[0].recipe.trust_region
    assert [*section.curve] == json.loads((tmp_path / "curves" / "mine.json").read_text())["kl_step"]


def test_the_shipped_curves_are_of_shipped_scales():
    paths = [*CURVES.glob("*.json")]
    assert {path.stem for path in paths} == {"nano"}
    for path in paths:
        found = json.loads(path.read_text())
        assert found["scale"] == path.stem and (CURVES.parent / f"{path.stem}.yaml").is_file()
        assert found["runs"] >= 6 and len(found["kl_step"]) == 10 and all(0 < kl < 0.1 for kl in found["kl_step"])
