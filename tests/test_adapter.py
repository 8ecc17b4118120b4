"""Adapters: nested starts, patterns, exact counts, folding. Also schedules and prompt order."""

import pytest
import torch
from conftest import runs_of
from peft import PeftModel, get_peft_model
from torch import nn

from rankrl.adapter.delta import effective_rank, module_size, scalars, singular_values
from rankrl.adapter.factors import kaiming_rows, starting_factors
from rankrl.adapter.host import AdapterHost, doubled, lora_config, target_shapes
from rankrl.adapter.save import save_adapter
from rankrl.adapter.weights import start_from_weights
from rankrl.data.items import Item, request_seed, revision, step_indices
from rankrl.data.loading import load_items
from rankrl.ppo.rollout import Rollouts
from rankrl.ppo.schedules import KLController, adapt, clip_share, kl_share, lr_share
from rankrl.ppo.serving import pack, peft_names, unpack
from rankrl.recipe.init_section import Init
from rankrl.recipe.kl_section import KLSchedule
from rankrl.recipe.load import load_scale
from rankrl.recipe.rank_table import ModuleRank, rows, uniform
from rankrl.recipe.scale import Data


class Block(nn.Module):
    def __init__(self, layers: int = 12):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({"q_proj": nn.Linear(6, 4), "head": nn.Linear(4, 6)}) for _ in range(layers)
        )

    def forward(self, x):
        for layer in self.layers:
            x = x + layer["head"](layer["q_proj"](x))
        return x


def test_ranks_of_one_seed_share_their_first_rows():
    deep, shallow = kaiming_rows(3, "layers.0.q_proj", 32, 64), kaiming_rows(3, "layers.0.q_proj", 1, 64)
    assert torch.equal(deep[:1], shallow)
    assert not torch.equal(deep[0], kaiming_rows(4, "layers.0.q_proj", 1, 64)[0])
    assert not torch.equal(deep[0], kaiming_rows(3, "layers.1.q_proj", 1, 64)[0])
    assert deep.abs().max() <= 1 / 8
    assert deep.std().item() == pytest.approx(1 / (8 * 3**0.5), rel=0.05)  # PEFT's Kaiming: U(-1/sqrt(d), 1/sqrt(d))


def test_only_named_modules_of_the_stated_shape_are_targets():
    block = Block()
    assert len(target_shapes(block, {"q_proj": [6, 4]}, 12)) == 12
    with pytest.raises(ValueError, match=r"model.modules.q_proj: got \[6, 5\]"):
        target_shapes(block, {"q_proj": [6, 5]}, 12)
    with pytest.raises(ValueError, match=r"model\.modules"):
        target_shapes(block, {"q_proj": [6, 4]}, 11)


def test_mixed_ranks_reach_exactly_their_modules():
    """PEFT's pattern keys are regular expressions: layers.1 must not match layers.10 or 11."""
    table = [ModuleRank(f"layers.{i}.q_proj", 6, 4, 3 if i == 1 else 2, 6.0 if i == 1 else 8.0) for i in range(12)]
    model = get_peft_model(Block(), lora_config(table))
    layers = [model.base_model.model.layers[i]["q_proj"] for i in range(12)]
    assert [layer.r["default"] for layer in layers] == [2, 3, *[2] * 10]
    assert [layer.scaling["default"] for layer in layers] == [4.0, 2.0, *[4.0] * 10]


def start(host, rank, init=Init()):  # noqa: B008
    """(A, B) of the modules of a uniform adapter at its start."""
    weights = start_from_weights(host.linears(), init.method, rank) if init.method in ("pissa", "olora") else None
    return starting_factors(init, 0, uniform(host.shapes, rank, lambda r: 8.0), weights)


@pytest.mark.parametrize("method", ["pissa", "olora"])
def test_an_adapter_that_starts_as_a_part_of_the_base_acts_as_what_it_adds(method, tmp_path):
    host, x = AdapterHost(Block(2), {"q_proj": [6, 4]}, 2), torch.randn(3, 6)
    base, weights = host.base(x), {m: linear.weight.clone() for m, linear in host.linears().items()}
    table = uniform(host.shapes, 3, lambda r: 8.0)
    host.attach("r1", uniform(host.shapes, 1, lambda r: 8.0), *start(host, 1))
    host.attach("r3", table, *start(host, 3, Init(method)))
    assert (host.model(x) - base).abs().max() < 1e-5  # r + d - d is rounded
    assert all(
        torch.equal(b @ a, torch.zeros(4, 6)) for a, b in host.update("r3", table).values()
    )  # engines round nothing
    host.activate("r1")
    assert torch.equal(host.model(x), base)
    host.activate("r3")
    trained = {name for name, p in host.model.named_parameters() if p.requires_grad and "r3" in name}
    assert len(trained) == 4 and not any("start-of" in name for name in trained)
    for a, b in host.factors("r3", table).values():
        a.data.add_(0.1 * torch.randn(a.shape))
        b.data.add_(0.1 * torch.randn(b.shape))
    acting = host.model(x)
    with host.disabled():
        assert torch.equal(host.model(x), base)
    assert all(torch.equal(weights[m], linear.weight) for m, linear in host.linears().items())
    facts = dict.fromkeys(("rank", "run_id", "sweep", "steps"), "x")
    facts |= dict.fromkeys(("params", "share", "final", "start", "gain"), 0)
    config, tensors = lora_config(doubled(table)).to_dict(), peft_names(host.update("r3", table))
    fresh = Block(2)
    fresh.load_state_dict(
        {k.replace(".base_layer", ""): v for k, v in host.base.state_dict().items() if ".lora_" not in k}
    )
    save_adapter(tmp_path / "adapter", config, tensors, "x", facts)
    loaded = PeftModel.from_pretrained(fresh, str(tmp_path / "adapter"))
    assert torch.allclose(loaded(x), acting, atol=1e-5)
    host.detach("r3")
    host.activate("r1")
    assert torch.equal(host.model(x), base)
    assert not any("r3" in name for name, _ in host.model.named_parameters())


def test_the_size_of_an_update_is_that_of_its_product():
    a, b = torch.randn(3, 9), torch.randn(7, 3)
    singular = torch.linalg.svdvals(2.5 * (b @ a).double())[:3]
    assert singular_values(a, b, 2.5).tolist() == pytest.approx(singular.tolist(), rel=1e-5)
    assert module_size(a, b, 2.5)["delta_norm"] == pytest.approx(float((2.5 * b @ a).norm()), rel=1e-5)
    assert effective_rank(torch.tensor([2.0, 2.0, 0.0])) == pytest.approx(2)
    assert effective_rank(torch.tensor([1.0, 0.0])) == pytest.approx(1)
    assert module_size(a, torch.zeros(7, 3), 1.0) == {"delta_norm": 0.0, "effective_rank": 0.0}
    sizes = {"l.0.q": {"delta_norm": 3.0, "effective_rank": 1.0}, "l.1.q": {"delta_norm": 4.0, "effective_rank": 2.0}}
    assert scalars(sizes) == {"delta_norm": 5.0, "delta_norm_q": 5.0, "effective_rank": 1.5}


def test_adapters_come_and_go_on_one_base():
    host = AdapterHost(Block(2), {"q_proj": [6, 4]}, 2)
    x = torch.randn(3, 6)
    base = host.base(x)
    for name, rank in (("r1-b16-s0", 1), ("r3-b16-s0", 3)):
        host.attach(name, uniform(host.shapes, rank, lambda r: 8.0), *start(host, rank))
        assert torch.equal(host.model(x), base)  # B = 0
    for a, b in host.factors("r3-b16-s0", uniform(host.shapes, 3, lambda r: 8.0)).values():
        assert a.dtype == b.dtype == torch.float32
        nn.init.normal_(b)
    moved = host.model(x)
    assert not torch.allclose(moved, base)
    with host.model.disable_adapter():
        assert torch.equal(host.model(x), base)
    host.activate("r1-b16-s0")
    assert torch.equal(host.model(x), base)
    host.detach("r1-b16-s0")
    host.activate("r3-b16-s0")
    assert torch.equal(host.model(x), moved)
    host.detach("r3-b16-s0")  # the last one goes, and one of the same name comes back
    host.attach("r3-b16-s0", uniform(host.shapes, 3, lambda r: 8.0), *start(host, 3))
    host.activate("r3-b16-s0")
    assert torch.equal(host.model(x), base)
    trainable = {name for name, p in host.model.named_parameters() if p.requires_grad}
    assert trainable and all("r3-b16-s0" in name for name in trainable)


def moved(host, name, table):
    """Fills B of the adapter with values other than 0."""
    host.attach(name, table, *starting_factors(Init(), 0, table, None))
    for _, b in host.factors(name, table).values():
        nn.init.normal_(b)


def test_adapters_that_leave_out_modules_share_a_base_with_others(tmp_path):
    """With more than 20 modules, PEFT shortens the names of its targets."""
    base = Block(12)
    host = AdapterHost(base, {"q_proj": [6, 4], "head": [4, 6]}, 12)
    x = torch.randn(3, 6)
    plain, ranks = host.base(x), [i % 6 for i in range(24)]
    mixed = rows(host.shapes, dict(zip(host.shapes, ranks, strict=True)), lambda r: 4.0 + r)
    others = rows(host.shapes, dict(zip(host.shapes, ranks[::-1], strict=True)), lambda r: 8.0)
    seen = {}
    for name, table in (("mixed", mixed), ("others", others)):
        assert len(table) == 20
        moved(host, name, table)
        seen[name] = host.model(x)
    for name, table in (("mixed", mixed), ("others", others)):
        host.activate(name)
        assert torch.equal(host.model(x), seen[name]) and not torch.equal(seen[name], plain)
        with host.disabled():
            assert torch.equal(host.model(x), plain)
        by_module = {row.module: row for row in table}
        for module in host.shapes:
            layer = base.get_submodule(module)
            assert layer.r.get(name, 0) == getattr(by_module.get(module), "rank", 0)
            if module in by_module:
                assert layer.scaling[name] == by_module[module].alpha / by_module[module].rank
    host.activate("mixed")
    host.model.save_pretrained(tmp_path, selected_adapters=["mixed"])
    host.detach("others")
    host.activate("mixed")
    assert torch.equal(host.model(x), seen["mixed"])
    fresh = Block(12)
    host.detach("mixed")
    state = {name.replace("base_layer.", ""): t for name, t in base.state_dict().items()}
    fresh.load_state_dict(state)
    assert torch.equal(PeftModel.from_pretrained(fresh, str(tmp_path / "mixed"))(x), seen["mixed"])


def test_folding_keeps_the_update():
    a, b = torch.randn(2, 6), torch.randn(4, 2)
    payload = pack({"m": (a, b)}, {"m": 2.5}, "float32")
    tensors = unpack(payload.names, payload.shapes, payload.dtype, payload.data)
    folded_b, sent_a = tensors["base_model.model.m.lora_B.weight"], tensors["base_model.model.m.lora_A.weight"]
    assert torch.allclose(folded_b @ sent_a, 2.5 * b @ a)
    assert len(pack({"m": (a, b)}, {"m": 2.5}, "bfloat16").data) == 2 * (12 + 8)  # two bytes a parameter, nothing else


def test_kl_schedules_are_literal():
    share = lambda shape, **kw: [round(kl_share(KLSchedule(shape, **kw), step, 5), 4) for step in range(5)]  # noqa: E731
    assert share("constant") == [1, 1, 1, 1, 1]
    assert share("linear", final=0.2) == [1, 0.8, 0.6, 0.4, 0.2]
    assert share("cosine", final=0.0) == [1, 0.8536, 0.5, 0.1464, 0]
    assert share("early_anchor", anchor=5.0, anchor_share=0.5) == [5, 3, 1, 1, 1]


def test_adaptive_kl_does_not_depend_on_the_batch():
    assert adapt(1.0, kl=0.2, target=0.1, horizon_steps=50) == pytest.approx(1.004)
    assert adapt(1.0, kl=0.0, target=0.1, horizon_steps=50) == pytest.approx(0.996)
    controller = KLController(0.01, KLSchedule("adaptive", target=0.1, horizon_share=None), 10)
    controller.update(0.3)  # the batch size is no argument
    assert controller.value == pytest.approx(0.01 * 1.004)


@pytest.mark.parametrize(("steps", "factor"), [(3, 1.2), (20, 1.2), (60, 1 + 0.2 / 3), (500, 1.008)])
def test_the_horizon_of_adaptive_kl_is_a_share_of_the_run(steps, factor):
    controller = KLController(0.01, KLSchedule("adaptive", target=0.1), steps)
    controller.update(0.3)
    assert controller.value == pytest.approx(0.01 * factor)
    controller.update(0.0)
    assert controller.value == pytest.approx(0.01 * factor * (2 - factor))


def test_evaluation_requests_are_seeded_alike_for_all_runs_unless_the_recipe_says_per_seed():
    asked: list[list[list[int]]] = []
    rollouts = Rollouts(*[None] * 2, load_scale("nano"), None)
    rollouts.sample = lambda adapter_id, items, seeds, temperature: asked.append(seeds)
    items = [Item("sum2-0", "sum2", "1 + 1 =", "2"), Item("sum2-1", "sum2", "1 + 2 =", "3")]
    plain, apart = ("eval_seeds=shared", "eval_seeds=per_seed")
    for word in (plain, apart):
        for run in runs_of("demo", "ranks=[1,8]", "seeds=[0,1]", word):
            rollouts.evaluate(1, items, 2, run.eval_seed)
    rollouts.evaluate(None, items, 2)  # the base
    assert asked[0] == [[request_seed("eval", item.item_id, k) for k in (0, 1)] for item in items]
    assert asked[:4] == [asked[0]] * 4 and asked[-1] == asked[0]
    own = [[[request_seed("eval", seed, item.item_id, k) for k in (0, 1)] for item in items] for seed in (0, 1)]
    assert asked[4:8] == own * 2, "runs of one seed share theirs: ranks stay paired"
    assert len({seed for seeds in (asked[0], *own) for row in seeds for seed in row}) == 12


def test_adaptive_kl_can_move_by_55_in_a_run_of_any_length():
    for steps, most in ((60, 48.0), (500, 53.7)):
        controller = KLController(1.0, KLSchedule("adaptive", target=0.1), steps)
        for _ in range(steps):
            controller.update(1.0)
        assert controller.value == pytest.approx(most, rel=0.01) and controller.value < 55


@pytest.mark.parametrize(
    ("shape", "warmup", "end", "shares"),
    [
        ("constant", 4, (1,), [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ("constant", 4, (0,), [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]),
        ("constant", 0, (1,), [1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", 4, (1,), [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", 4, (1,), [0.25, 0.5, 0.75, 1, 1, 0.8682, 0.55, 0.2318]),
        ("cosine", 4, (1, 0.25), [0.25, 0.5, 0.75, 1, 1, 0.8902, 0.625, 0.3598]),
    ],
)
def test_learning_rates_are_literal(shape, warmup, end, shares):
    assert [round(lr_share(shape, step, 8, warmup, *end), 4) for step in range(8)] == shares


def test_clip_range_narrows_linearly():
    assert [clip_share(0.5, step, 3) for step in range(3)] == [1, 0.75, 0.5]


def test_prompt_order_depends_on_the_seed_alone():
    stream = [i for step in range(6) for i in step_indices(0, step, 4, 8)]
    assert sorted(stream[:8]) == sorted(stream[8:16]) == sorted(stream[16:]) == list(range(8))
    assert stream[:8] != stream[8:16]
    assert stream == [i for step in range(4) for i in step_indices(0, step, 6, 8)]  # one stream for all batch sizes
    assert stream[:4] != step_indices(1, 0, 4, 8)


def test_request_seeds_are_literal_and_distinct():
    assert request_seed("train", 0, 0, "sum2-0", 0) == request_seed("train", 0, 0, "sum2-0", 0)
    assert len({request_seed("train", s, t, "x", k) for s in range(5) for t in range(5) for k in range(5)}) == 125
    assert 0 <= request_seed("eval", "x", 1) < 2**31


def test_nano_splits_are_disjoint_and_fixed():
    train, evaluation = load_items(Data("nano", "nano", 6000, 252))
    assert (len(train), len(evaluation)) == (6000, 252)
    assert not {i.prompt for i in train} & {i.prompt for i in evaluation}
    assert len({i.item_id for i in train + evaluation}) == 6252
    assert evaluation[0] == Item("sum2-1000000", "sum2", evaluation[0].prompt, evaluation[0].answer)
    assert eval(evaluation[0].prompt.split(":")[1].strip(" =\n")) == int(
        evaluation[0].answer
    )  # our own generator's sum


def test_bad_data_files_are_named(tmp_path):
    good = tmp_path / "good.jsonl"
    good.write_text('{"prompt": "1+1", "answer": 2}\n')
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "1+1", "answer": 2}\n{"prompt": "x"}\n')
    for train, says in ((tmp_path / "none.jsonl", "none.jsonl"), (bad, "line 2"), (good, "also stand in data.train")):
        with pytest.raises(ValueError, match=says):
            load_items(Data(str(train), str(good), 1, 1))
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "2+2", "answer": 4}\n')
    with pytest.raises(ValueError, match=r"data\.train_items: got 2, allowed: at most the 1"):
        load_items(Data(str(good), str(other), 2, 1))
    items, _ = load_items(Data(str(good), str(other), 1, 1))
    assert items == [Item("train-good-1", "good", "1+1", "2")]
    assert revision(items) != revision([])
