"""The first optimizer step of each rank: its statistics, its cache, and that it is the real one."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, replace
from math import log
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import ROOT, runs_of

from rankrl.adapter import first_step
from rankrl.adapter.factors import starting_factors
from rankrl.adapter.first_step import Base, Draw
from rankrl.adapter.host import AdapterHost
from rankrl.adapter.start import Start
from rankrl.adapter.watch import Batch, Samples
from rankrl.adapter.weights import start_from_weights
from rankrl.cli import main
from rankrl.data.base_model import local_directory
from rankrl.data.loading import load_items
from rankrl.recipe.allocation import module_shapes
from rankrl.recipe.first_step import (
    FirstStep,
    FirstSteps,
    geometric_mean,
    log_interval,
    read_first_steps,
    write_first_steps,
)
from rankrl.recipe.init_section import Init
from rankrl.recipe.rank_table import rows
from rankrl.recipe.rules import measured
from rankrl.sweep.first_step_cache import cache_path, cached, measured_ranks
from rankrl.sweep.identity import check_identity

MEASURED = ("rules.lr.rule=measured", "ranks=[1,8]")


def step(*kl):
    return FirstStep([*kl], [1.0] * len(kl), *([[0.5] * len(kl)] * 3))


def steps(**changes):
    """Rank 1 has 4 times the KL of rank 32, give or take a factor of 2; rank 8 as much."""
    ranks = {1: step(2.0, 2.0, 8.0, 8.0), 8: step(1.0, 1.0, 1.0, 1.0), 32: step(1.0, 1.0, 1.0, 1.0)}
    return FirstSteps(**({"lr": 1e-3, "at_rank": 32, "ranks": ranks, "facts": {}} | changes))


def test_the_rate_gives_every_rank_the_kl_of_the_reference_rank():
    kl = {1: 4e-4, 8: 1e-4, 32: 1e-4}
    assert [measured(r, 1e-3, 32, kl) for r in (1, 8, 32)] == [5e-4, 1e-3, 1e-3]
    assert measured(1, 1e-3, 8, {1: 1e-4, 8: 4e-4}) == 2e-3


def test_the_interval_is_of_the_logarithm_over_four_draws():
    assert geometric_mean([2.0, 2.0, 8.0, 8.0]) == pytest.approx(4)
    assert log_interval([2.0, 2.0, 8.0, 8.0]) == pytest.approx((1.11931, 14.2945), rel=1e-4)
    assert log_interval([3.0] * 4) == pytest.approx((3, 3))
    assert log_interval([3.0]) is None  # A does not depend on the seed
    found = steps()
    assert found.kl == pytest.approx({1: 4, 8: 1, 32: 1})
    assert found.rate(1) == pytest.approx(5e-4) and found.rate(8) == 1e-3
    assert found.rate_ci95(1) == pytest.approx((1e-3 / 14.2945**0.5, 1e-3 / 1.11931**0.5), rel=1e-4)
    together = steps(ranks={1: step(2.0, 4.0, 6.0, 8.0), 32: step(1.0, 2.0, 3.0, 4.0)})  # ratios are of one draw each
    assert together.ratio_ci95(1) == pytest.approx((2, 2))


def test_what_was_not_measured_keeps_the_value_of_its_rule():
    words = ("seeds=[0]", "optimizer.weight_decay=0.1", "rules.weight_decay={rule: power, exponent: -1}")
    planned = runs_of("demo", *MEASURED, *words)[0]
    run = planned.at(steps())
    assert (run["lr"], run["weight_decay"]) == (pytest.approx(5e-4), pytest.approx(3.2))
    assert run.recipe.optimizer.weight_decay == run["weight_decay"]
    assert not run.pending and run.knobs["weight_decay"] == planned.knobs["weight_decay"]


def test_rows_have_what_measure_prints():
    row = steps().rows()[0]
    assert [*row][:6] == ["rank", "kl_first_step", "kl_ci95", "kl_ratio", "kl_ratio_ci95", "grad_norm"]
    assert (row["rank"], row["kl_ratio"], row["lr"], row["kl_at_rule"]) == (1, pytest.approx(4), pytest.approx(5e-4), 1)
    json.dumps(steps().rows(), allow_nan=False)


def test_the_cache_is_read_as_it_was_written_or_not_at_all(tmp_path):
    path = tmp_path / "adapter" / "first_step-x.json"
    assert read_first_steps(path) is None
    write_first_steps(path, steps())
    assert read_first_steps(path) == steps()
    whole, plain = path.read_text(), asdict(steps())
    damaged = [whole[:100], "", "[]", "null", '"x"', json.dumps(plain | {"ranks": {}}), json.dumps(plain | {"more": 1})]
    for kl in ([0.0, 1.0, 1.0, 1.0], [float("nan")] * 4, [1.0], ["1"] * 4):
        ranks = asdict(steps())["ranks"]
        ranks[1]["kl"] = kl
        damaged.append(json.dumps(plain | {"ranks": ranks}))
    for text in damaged:
        path.write_text(text)
        assert read_first_steps(path) is None, text


def test_adams_first_step_is_adams():
    gradient = torch.tensor([3.0, -2e-8, 0.0, 1e-3])
    p = torch.nn.Parameter(torch.zeros(4))
    p.grad = -gradient  # of the loss
    torch.optim.AdamW([p], lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0).step()
    assert torch.allclose(first_step.adam_first_step(gradient, 1e-3), p.detach(), rtol=1e-5, atol=0)


def test_kl_is_of_the_new_policy_to_the_base_over_the_vocabulary():
    p, q = torch.tensor([[0.5, 0.5], [1.0, 1.0]]), torch.tensor([[0.25, 0.75], [2.0, 2.0]])
    assert float(first_step.kl(p.log(), q.log())) == pytest.approx(0.5 * log(2) + 0.5 * log(2 / 3))
    near = p.log() + torch.tensor([[1e-4, -1e-4], [0.0, 0.0]])
    assert float(first_step.kl(near, p.log())) == pytest.approx(5e-9, rel=1e-2)  # far below fp32's 6e-8


def test_readings_of_known_gradients():
    samples = Samples(*torch.zeros(2, 4), torch.tensor([0, 0, 1, 1]), torch.tensor([1, 2, 4, 5]))  # 3 tokens, and 9
    halves = torch.tensor([[3.0, 0.0], [1.0, 4.0]])  # whole: 1.5, 3
    assert first_step.squares(halves, samples).tolist() == [11.25, 3.0, 20.0]
    g, a = torch.diag(torch.tensor([3.0, 4.0])), torch.tensor([[0.0, 0.1]])
    assert first_step.captured(g @ a.T, a) == pytest.approx(16)
    assert first_step.captured(g @ torch.eye(2) * 7, 7 * torch.eye(2)) == pytest.approx(25)


@pytest.fixture(scope="module")
def nano():
    """(Base, AdapterHost, batches, samples): the embedded base on random tokens and advantages."""
    from transformers import AutoModelForCausalLM

    scale = runs_of("demo")[0].scale
    model = AutoModelForCausalLM.from_pretrained(local_directory(scale.model), dtype=torch.float32)
    host = AdapterHost(model, scale.model.modules, scale.model.layers)

    def logits(batch):
        return model(batch.sequences_BT, attention_mask=batch.attention_mask_BT).logits[:, :-1]

    def logprobs(batch):
        of_tokens = logits(batch).log_softmax(-1).gather(-1, batch.sequences_BT[:, 1:, None])[..., 0]
        return of_tokens * batch.action_mask_BA

    def hidden(batch):
        states = model.base_model(batch.sequences_BT, attention_mask=batch.attention_mask_BT).last_hidden_state
        return states[:, :-1][batch.action_mask_BA.bool()]

    draw = torch.Generator().manual_seed(0)
    samples = Samples(
        torch.randn(8, generator=draw), torch.arange(8) // 2, torch.arange(8) // 2 % 2, torch.full((8,), 5)
    )
    ids = torch.randint(5, 20, (8, 12), generator=draw)
    answered = torch.ones(8, 11, dtype=torch.long)
    answered[:, :6] = 0  # 5 response tokens
    parts = [torch.arange(4), torch.arange(4, 8)]
    batches = [
        Batch(ids[i], torch.ones(4, 12, dtype=torch.long), answered[i], i, samples.half_N[i], samples.advantage_N[i], torch.ones(4))
        for i in parts
    ]  # fmt: skip
    base = Base(logprobs, hidden, model.lm_head, host.linears(), host.shapes, lambda total: total, 3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker on a CPU: so small matrices only wait for more
    yield base, host, batches, samples
    torch.set_num_threads(threads)


def close(ours, theirs):
    return float((ours - theirs).norm()) < 1e-4 * float(theirs.norm())


@pytest.mark.parametrize(("method", "trained"), [("kaiming", "both"), ("pissa", "both"), ("olora_tail", "b")])
def test_it_is_the_step_that_peft_and_adam_take(nano, method, trained):
    """Also for modules of different ranks, where B does not start at 0, and where A is frozen."""
    base, host, batches, samples = nano
    ranks = {module: 1 + i % 3 for i, module in enumerate(base.shapes)}
    tables = [
        rows(base.shapes, ranks, lambda r: 16.0 * r),
        rows(base.shapes, dict.fromkeys(base.shapes, 2), lambda r: 8.0),
    ]
    init = Init(method)
    start = Start({}) if method == "kaiming" else start_from_weights(host.linears(), method, 4)
    draw = Draw(3, init, start, dict(enumerate(tables)), {0: 2.0, 1: 2.0}, trained)
    starts, candidates = [starting_factors(init, 3, table, start) for table in tables], draw.candidates()
    found = first_step.gradients(base, candidates, batches, samples)
    updates = [first_step.stepped(*pair, 1e-2, base.like) for pair in zip(candidates, found, strict=True)]
    kls = first_step.kls(base, updates, batches)
    with host.disabled():
        before = [base.logits(base.hidden(batch)).detach() for batch in batches]
    for i, (candidate, gradient, kl) in enumerate(zip(candidates, found, kls, strict=True)):
        name = f"{method}-{i}"
        host.attach(name, candidate.table, *starts[i], trained)
        factors = host.factors(name, candidate.table)
        loss = -sum((base.logprobs(b).sum(1) * b.advantage_B).sum() for b in batches) / samples.tokens_N.sum()
        loss.backward()
        scale = {row.module: row.alpha / row.rank for row in candidate.table}
        for module, (a, b) in factors.items():
            assert close(-b.grad, scale[module] * gradient.of_b[module])
            if module in candidate.columns:
                assert close(-a.grad, scale[module] * gradient.of_a[module])
        moving = [p for pair in factors.values() for p in pair if p.grad is not None]
        assert len(moving) == (28 if trained == "both" else 14)
        norm = sum(float(p.grad.square().sum()) for p in moving) ** 0.5
        assert gradient.readings["grad_norm"] == pytest.approx(norm, rel=1e-4)
        groups = [{"params": [a for a, _ in factors.values()], "lr": 1e-2}]  # a frozen A has no gradient
        groups.append({"params": [b for _, b in factors.values()], "lr": 2e-2 if trained == "both" else 1e-2})
        torch.optim.AdamW(groups, eps=1e-8, weight_decay=0.0).step()
        after = [base.logits(base.hidden(batch)).detach() for batch in batches]
        host.detach(name)
        tokens = sum(len(part) for part in after)
        exact = sum(float(first_step.kl(a, b)) for a, b in zip(after, before, strict=True)) / tokens
        assert exact > 1e-6 and kl == pytest.approx(exact, rel=0.02)


def test_a_kl_that_says_nothing_is_refused():
    with pytest.raises(ValueError, match=r"KL of the first step at rank 8: got \[0.0\], allowed: above 0 and finite"):
        first_step.check_kls({1: [1e-4], 8: [0.0]}, 1e-12)


def test_plan_and_explain_say_that_it_is_measured_before_the_run(tmp_path, capsys, monkeypatch):
    run = runs_of("demo", *MEASURED)[0]
    assert run.pending and run["lr"] == 1e-3 and run.row()["lr"] is None
    words = [str(ROOT / "recipes" / "demo.yaml"), *MEASURED]
    assert main(["plan", *words, "--json"]) == 0
    assert {row["lr"] for row in json.loads(capsys.readouterr().out)} == {None}
    assert main(["plan", *words]) == 0
    assert capsys.readouterr().out.count("measured before the run") == 4
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["explain", *words, "--runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("measured before the run  measured") == 2
    write_first_steps(path_of(run, tmp_path), steps())
    assert main(["explain", *words, "--runs", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "0.0005 [0.000264, 0.000945], measured before the run" in said
    assert cached(run, tmp_path) == steps()
    assert main(["measure", *words, "--runs", str(tmp_path), "--json"]) == 0  # cached: no services
    assert [row["rank"] for row in json.loads(capsys.readouterr().out)] == [1, 8, 32]


def path_of(run, directory):
    return cache_path(run, load_items(run.scale.data), str(local_directory(run.scale.model)), directory)


def test_the_cache_is_of_all_that_acts_on_the_first_step(tmp_path):
    words = ([], ["rules.alpha.rule=power", "rules.alpha.exponent=1"], ["init.method=rlmo"], ["rules.lr.value=1e-4"],
             ["rules.lr_ratio=4"], ["allocation.method=profile", "allocation.profile=mlp"], ["ranks=[1]"],
             ["rules.lr.at_rank=16"], ["scale.sampling.temperature=0.9"], ["trained=b"])  # fmt: skip
    paths = [path_of(runs_of("demo", *MEASURED, *more)[0], tmp_path) for more in words]
    assert len({*paths}) == len(words)
    same = path_of(runs_of("demo", "ranks=[1,8]", "seeds=[9]", "steps=99", "batch_sizes=[32]")[0], tmp_path)
    assert same == paths[0]  # neither seeds, steps, batch nor the rule itself
    assert measured_ranks(runs_of("demo", *MEASURED)[0]) == [1, 8, 32]


def test_run_yaml_has_the_measured_rate_with_its_interval_and_resumes(tmp_path):
    planned = runs_of("demo", *MEASURED)[0]
    run = planned.at(steps())
    assert not run.pending and run["lr"] == pytest.approx(5e-4)
    derived = run.resolved()["derived"]
    assert derived["lr"]["source"] == "KL of the first step on the base: 4 [1.12, 14.3] times that of rank 32"
    assert derived["lr"]["ci95"] == pytest.approx([1e-3 / 14.2945**0.5, 1e-3 / 1.11931**0.5], rel=1e-4)
    assert {"ci95", "pending"} & {*derived["alpha"]} == set()
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run.resolved(), sort_keys=False))
    check_identity(tmp_path, planned)
    check_identity(tmp_path, run)
    with pytest.raises(ValueError, match=r"lr"):
        check_identity(tmp_path, replace(run, knobs=run.knobs | {"lr": replace(run.knobs["lr"], value=1.0)}))
    with pytest.raises(ValueError, match=r"derived\.lr\.value=0\.0005, and this one has 0\.001"):
        check_identity(tmp_path, runs_of("demo", "ranks=[1,8]")[0])


def test_of_two_processes_that_measure_at_once_the_first_to_end_counts(stack, tmp_path):
    from rankrl.sweep.bench import Bench

    run = runs_of("demo", *MEASURED)[0]
    path, ours, theirs = path_of(run, tmp_path), steps(facts={"of": "us"}), steps(facts={"of": "another process"})
    measured = []

    class Alone(Bench):
        """A bench whose services are not started."""

        def __init__(self):
            self.train_items, self.eval_items = load_items(run.scale.data)
            self.directory, self._lock = tmp_path, threading.RLock()
            self._services = SimpleNamespace(model_path=str(local_directory(run.scale.model)), broken=False)

        def _measure_first_steps(self, run):
            measured.append(run)
            if len(measured) == 1:
                write_first_steps(path, theirs)
            return ours

    bench = Alone()
    assert bench.first_steps(run) == bench.first_steps(run) == theirs and len(measured) == 1
    path.write_text(path.read_text()[:50])  # damaged: measured again, and whole from then on
    assert bench.first_steps(run) == bench.first_steps(run) == read_first_steps(path) == ours and len(measured) == 2


def test_a_measured_allocation_is_that_of_each_draw(stack):
    """And the start has rows for the reference rank too, which is not in the grid."""
    from rankrl.sweep.first_steps import draws

    words = ("rules.lr.rule=measured", "rules.lr.at_rank=8", "ranks=[2]", "rules.lr_ratio=4")
    run = runs_of("demo", *words, "allocation.method=greedy", "allocation.value=signal", "init.method=eva")[0]
    shapes, asked = module_shapes(run.scale), []

    def start(at, init):
        asked.append((at.seed, at.recipe.ranks, init.method))
        first = {m: [1.0] * 64 if i == at.seed else [1e-6] * 64 for i, m in enumerate(shapes)}
        return Start({}, values=first)

    found = draws(run, SimpleNamespace(policy_shapes=shapes), start)
    assert asked == [(seed, (2, 8), method) for seed in range(4) for method in ("pg_subspace", "eva")]
    for i, draw in enumerate(found):
        assert [*draw.tables] == [2, 8] and draw.lr_ratios == {2: 4.0, 8: 4.0}
        most = max(draw.tables[2], key=lambda row: row.rank)
        assert most.module == [*shapes][i] and most.rank > 2
