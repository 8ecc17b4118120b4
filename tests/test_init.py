"""Starts of adapters: nested, orthonormal and norm-matched ones; those from weights, compared with
NumPy; those of PEFT, on a copy. Also what a recipe may set."""

import math

import numpy as np
import pytest
import torch
from conftest import runs_of
from torch import nn

from rankrl.adapter.factors import (
    DRAW,
    completed,
    etf_rows,
    gram_schmidt,
    kaiming_rows,
    orthonormal_rows,
    starting_factors,
)
from rankrl.adapter.start import Start, read_start, write_start
from rankrl.adapter.weights import right_singular, start_from_weights
from rankrl.recipe.init_section import Init
from rankrl.recipe.rank_table import uniform

SHAPES = {"layers.0.q_proj": (48, 32), "layers.0.down_proj": (96, 48)}


@pytest.fixture(scope="module")
def linears():
    torch.manual_seed(0)
    return {m: nn.Linear(d_in, d_out, bias=False) for m, (d_in, d_out) in SHAPES.items()}


@pytest.mark.parametrize("method", DRAW)
@pytest.mark.parametrize("d_in", [64, 63, 5])
def test_drawn_rows_are_nested_and_the_seeds(method, d_in):
    most = min(d_in, 33)
    deep = DRAW[method](3, "m", most, d_in)
    assert deep.shape == (most, d_in) and deep.dtype == torch.float32
    for rank in (1, 2, 3, most - 1):
        assert torch.equal(deep[:rank], DRAW[method](3, "m", rank, d_in))
    assert not torch.allclose(deep, DRAW[method](4, "m", most, d_in))
    assert not torch.allclose(deep, DRAW[method](3, "n", most, d_in))


@pytest.mark.parametrize(("rows", "d_in"), [(orthonormal_rows, 64), (etf_rows, 64), (etf_rows, 63)])
@pytest.mark.parametrize("rank", [1, 2, 7, 62])
def test_orthonormal_and_etf_rows_are_orthonormal(rows, d_in, rank):
    a = rows(0, "m", rank, d_in).double()
    assert (a @ a.T - torch.eye(rank)).abs().max() < 1e-6


def test_etf_columns_have_one_norm_at_even_ranks_and_a_full_set_of_rows_is_a_basis():
    for rank in (2, 8, 62):
        norms = etf_rows(0, "m", rank, 64).norm(dim=0)
        assert torch.allclose(norms, torch.full((64,), math.sqrt(rank / 64)), atol=1e-6)
    whole = etf_rows(0, "m", 64, 64).double()
    assert (whole @ whole.T - torch.eye(64)).abs().max() < 1e-6
    coherence = lambda a: (nn.functional.normalize(a, dim=0).T @ nn.functional.normalize(a, dim=0)).fill_diagonal_(0)  # noqa: E731
    etf, kaiming = (coherence(rows(0, "m", 16, 64)).square().mean() for rows in (etf_rows, kaiming_rows))
    assert etf < kaiming  # a tight frame has the least mean squared coherence


def test_gram_schmidt_spans_the_same_rows():
    rows = torch.randn(4, 9)
    basis = gram_schmidt(rows)
    for i in range(1, 5):
        assert torch.linalg.matrix_rank(torch.cat([rows[:i], basis[:i]]).double(), rtol=1e-5) == i


@pytest.mark.parametrize("method", ["orthonormal", "etf", "rlpo", "rlmo"])
def test_rows_have_kaimings_norm_unless_told_otherwise(linears, method):
    start = start_from_weights(linears, method, 8) if method.startswith("rl") else None
    table = uniform(SHAPES, 8, lambda rank: 32.0)
    for norm, expected in (("kaiming", 1 / math.sqrt(3)), ("own", 1.0)):
        rows, columns = starting_factors(Init(method, norm), 0, table, start)
        assert not columns
        for a in rows.values():
            assert torch.allclose(a.norm(dim=1), torch.full((8,), expected), atol=1e-6)
    assert kaiming_rows(0, "m", 256, 512).norm(dim=1).square().mean().sqrt() == pytest.approx(
        1 / math.sqrt(3), rel=0.01
    )


def test_kaiming_is_what_it_always_was():
    table = uniform(SHAPES, 3, lambda rank: 32.0)
    rows, columns = starting_factors(Init(), 5, table, None)
    assert not columns
    assert all(torch.equal(rows[m], kaiming_rows(5, m, 3, d_in)) for m, (d_in, _) in SHAPES.items())
    expected = [0.3926936984062195, 0.2742829918861389, -0.43527257442474365, -0.29223698377609253]
    assert kaiming_rows(0, "layers.0.q_proj", 1, 4).tolist() == [expected]


@pytest.mark.parametrize("module", SHAPES)
def test_right_singular_vectors_are_numpys(linears, module):
    weight = linears[module].weight.detach()
    _, singular, vt = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    for bottom, expected, values in ((False, vt[:5], singular[:5]), (True, vt[::-1][:5], singular[::-1][:5])):
        rows, found = right_singular(weight, 5, bottom)
        cosines = np.abs((rows.double().numpy() * expected).sum(1))
        assert cosines == pytest.approx(np.ones(5), abs=1e-6)
        assert found.numpy() == pytest.approx(values, rel=1e-5)
        assert (rows.gather(1, rows.abs().argmax(1, keepdim=True)) > 0).all()
        assert torch.equal(rows[:2], right_singular(weight, 2, bottom)[0])


@pytest.mark.parametrize("method", ["pissa", "olora"])
@pytest.mark.parametrize("norm", ["kaiming", "own"])
def test_rewriting_starts_are_pefts_and_leave_the_base_alone(linears, method, norm):
    from peft import LoraConfig
    from peft.tuners.lora.layer import Linear

    before = {m: linear.weight.detach().clone() for m, linear in linears.items()}
    start = start_from_weights(linears, method, 8)
    assert all(torch.equal(before[m], linear.weight) for m, linear in linears.items())
    rows, columns = starting_factors(Init(method, norm), 0, uniform(SHAPES, 3, lambda rank: 12.0), start)
    for module, linear in linears.items():
        copy = nn.Linear(*SHAPES[module], bias=False)
        copy.weight.data.copy_(linear.weight.data)
        theirs = Linear(copy, "x", LoraConfig(r=3, lora_alpha=12, init_lora_weights=method), r=3, lora_alpha=12)
        a, b = theirs.lora_A["x"].weight, theirs.lora_B["x"].weight
        assert torch.allclose(columns[module] @ rows[module], b @ a, atol=1e-5)
        if norm == "own":
            assert torch.allclose(rows[module].abs(), a.abs(), atol=1e-5)
        else:
            assert torch.allclose(rows[module].norm(dim=1), torch.full((3,), 1 / math.sqrt(3)), atol=1e-6)


def test_completed_rows_are_orthonormal_nested_and_off_what_is_avoided():
    avoid, basis = orthonormal_rows(1, "m", 5, 40)[:2], orthonormal_rows(1, "m", 5, 40)[2:]
    rows = completed(basis, 0, "m", 10, "etf", avoid)
    assert rows.shape == (10, 40)
    assert (rows @ rows.T - torch.eye(10)).abs().max() < 1e-5
    assert (rows @ avoid.T).abs().max() < 1e-6
    assert torch.allclose(rows[:3], basis, atol=1e-6)
    assert torch.equal(completed(basis, 0, "m", 4, "etf", avoid), rows[:4])


def test_a_start_survives_its_files_and_a_short_one_is_refused(tmp_path, linears):
    start = start_from_weights(linears, "pissa", 2)
    write_start(tmp_path / "deep" / "start", start)
    again = read_start(tmp_path / "deep" / "start")
    assert all(torch.equal(start.rows[m], again.rows[m]) for m in SHAPES)
    assert all(torch.equal(start.columns[m], again.columns[m]) for m in SHAPES)
    assert again.diagnostics == start.diagnostics
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["start.json", "start.safetensors"]
    with pytest.raises(ValueError, match=r"init\.method: got 'pissa' with 2 rows for layers\.0\.q_proj"):
        starting_factors(Init("pissa"), 0, uniform(SHAPES, 3, lambda rank: 1.0), start)
    with pytest.raises(ValueError, match="with 0 rows"):
        starting_factors(Init("rlpo"), 0, uniform(SHAPES, 3, lambda rank: 1.0), None)
    assert Start({}).values == {}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("init.method=gauss", "init.method: got 'gauss', allowed: kaiming, orthonormal, etf"),
        ("init.norm=own", "init.norm: got 'own', allowed: nothing: method 'kaiming'"),
        ("init.method=etf init.prompts=8", "init.prompts: got 8, allowed: nothing: method 'etf'"),
        ("init.method=eva init.fisher=true", "init.fisher: got True, allowed: nothing: method 'eva'"),
        ("init.method=rlpo init.norm=big", "init.norm: got 'big', allowed: kaiming or own"),
        ("init.method=pg_subspace init.samples_per_prompt=1", "init.samples_per_prompt: got 1"),
        ("init.method=pg_subspace init.off_principal=2000", "init.off_principal: got 2000, allowed: 0 to"),
        ("init.method=eva init.prompts=7000", "init.prompts: got 7000, allowed: at most data.train_items=6000"),
        ("init.method=pissa ranks=[300] scale=qwen3-8b", "ranks: got 300, allowed: at most 256"),
    ],
)
def test_an_init_that_cannot_be_or_has_no_effect_is_refused(words, says):
    with pytest.raises(ValueError) as error:
        runs_of("demo", *words.split())
    assert str(error.value).startswith(says)


def test_the_init_is_part_of_the_run():
    run = runs_of("demo", "init.method=pg_subspace", "init.fisher=true")[0]
    assert run.resolved()["recipe"]["init"]["method"] == "pg_subspace"
    assert (Init("pissa").served_ranks, Init("eva").served_ranks) == (2, 1)
