"""`rankrl eval`: its statistics, and its refusals before anything is started.

Its samples are also those that a run has recorded.
"""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT, rankrl, runs_of
from records import record
from safetensors.numpy import save_file

from rankrl.cli import main
from rankrl.data.items import Item
from rankrl.recipe.load import load_scale, scale_of_words
from rankrl.report.statistics.passk import item_interval, pass_rows, pass_table
from rankrl.sweep.evaluate import _cached, differences, find_subject

SMALL = ("scale.data.eval_items=24", "scale.sampling.eval_samples=2", "scale.sampling.base_samples=4")


def samples(counts: dict[str, int], source: str, n: int = 4) -> list[dict]:
    """`n` samples of each item, of which `counts[item]` are correct.

    The correct ones are boxed and the first one is truncated.
    """
    return [
        {"item_id": item, "source": source, "correct": i < c, "boxed": i < c, "truncated": i == 0}
        for item, c in counts.items()
        for i in range(n)
    ]


def test_the_interval_takes_the_item_as_the_unit():
    """sd 0.176777, SE 0.0790569, t(0.975, 4) 2.776445."""
    assert item_interval([0.25, 0.5, 0.5, 0.75, 0.5]) == pytest.approx([0.280503, 0.719497], abs=1e-6)
    assert item_interval([0.0, 0.0, 0.0, 0.5]) == [0.0, pytest.approx(0.522806, abs=1e-6)]  # a share is not negative
    assert item_interval([0.5]) is None
    assert item_interval([1.0, 1.0, 1.0]) is None


def test_the_interval_is_that_of_cluster_robust_least_squares():
    """A regression on a constant, with the sandwich estimator: scores are summed by item, the
    variance is multiplied by G / (G - 1), and t has G - 1 degrees of freedom."""
    correct = np.random.default_rng(0).random((30, 8)) < np.random.default_rng(1).random((30, 1))
    x, y, item = np.ones((240, 1)), correct.ravel().astype(float), np.repeat(np.arange(30), 8)
    bread = np.linalg.inv(x.T @ x)
    errors = y - x @ (bread @ x.T @ y)
    scores = np.stack([x[item == g].T @ errors[item == g] for g in range(30)])
    se = np.sqrt((bread @ scores.T @ scores @ bread)[0, 0] * 30 / 29)
    low, high = item_interval(correct.mean(1).tolist())
    assert (high - low) / 2 == pytest.approx(2.0452296 * se, rel=1e-6)
    assert (high + low) / 2 == pytest.approx(y.mean())


def test_rows_are_by_source_and_k():
    rows = pass_rows(samples({"a": 1, "b": 2}, "easy") + samples({"c": 0, "d": 0}, "hard"))
    assert [(row["source"], row["items"], row["samples"]) for row in rows] == [
        ("easy", 2, 8),
        ("hard", 2, 8),
        ("all", 4, 16),
    ]
    easy, hard, every = (row["pass_at_k"] for row in rows)
    assert {k: row["mean"] for k, row in easy.items()} == pytest.approx({1: 0.375, 2: (0.5 + 5 / 6) / 2, 4: 1.0})
    assert hard[4] == {"mean": 0.0, "ci95": None}
    assert every[1] == {"mean": 0.1875, "ci95": [0.0, pytest.approx(0.568370, abs=1e-6)]}
    assert rows[2]["boxed_frac"] == 0.1875 and rows[2]["truncated_frac"] == 0.25
    assert [*pass_rows(samples({"a": 1}, "x", n=3))[0]["pass_at_k"]] == [1, 2]


def test_the_table_reads_as_it_says():
    lines = pass_table(pass_rows(samples({"a": 1, "b": 2}, "easy") + samples({"c": 0, "d": 0}, "hard")))
    assert lines[0].split() == ["source", "items", "pass@1", "pass@2", "pass@4", "boxed", "truncated"]
    assert lines[2].split() == ["hard", "2", "0.000", "0.000", "0.000", "0.000", "0.250"]
    assert lines[3].split()[:5] == ["all", "4", "0.188", "[0.000,", "0.568]"]
    assert len({len(line) for line in lines}) == 1


def write_adapter(directory, base="embedded:nano", d_in=256, module="model.layers.0.self_attn.q_proj", **config):
    """A rank-2 adapter of one module."""
    directory.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": base, **config}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    a, b = np.ones((2, d_in), np.float32), np.ones((256, 2), np.float32)
    name = f"base_model.model.{module}"
    save_file({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, directory / "adapter_model.safetensors")
    return directory


def write_run(directory, status="finished"):
    (run,) = runs_of("demo", "ranks=[2]", "seeds=[0]")
    write_adapter(directory / "adapter")
    (directory / "run.yaml").write_text(yaml.safe_dump(run.resolved()))
    if status:
        (directory / "result.json").write_text(json.dumps(record(status)))
    return directory


def refused(capsys, *words) -> str:
    """The one line on stderr with which a command is refused."""
    assert main(["eval", *map(str, words)]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    return shown.err


def test_a_missing_model_is_one_line_before_anything_heavy_is_loaded():
    code = (
        "import sys; from rankrl.cli import main; "
        "print(main(['eval', 'no/such/model', 'nano']), {'ray', 'torch'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "2 set()\n"
    assert done.stderr.startswith("rankrl: MODEL: got 'no/such/model', allowed: base, or a directory with result.json")
    assert done.stderr.count("\n") == 1


def test_words_that_name_no_model_are_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "it has none of these files" in refused(capsys, tmp_path, "nano")
    assert "model.path: got 'no/such', allowed: an existing directory, or a hub id" in refused(
        capsys, "no/such", "nano"
    )
    assert "scale: got 'nono', allowed: nano, " in refused(capsys, "base", "nono")
    assert "override: got ['steps'], allowed: scale.KEY=VALUE" in refused(capsys, "base", "nano", "steps=3")
    (tmp_path / "config.json").write_text('{"model_type": "qwen3", "auto_map": {}}')
    assert "model.trust_remote_code" in refused(capsys, tmp_path, "nano")


def test_a_run_that_has_not_finished_is_refused(capsys, tmp_path):
    assert "it is not finished" in refused(capsys, write_run(tmp_path / "open", status=None), "nano")
    assert "it is diverged" in refused(capsys, write_run(tmp_path / "diverged", status="diverged"), "nano")
    bare = write_run(tmp_path / "bare")
    (bare / "run.yaml").write_text("scale: 3")
    assert "run.yaml is missing or damaged" in refused(capsys, bare, "nano")


def test_a_diverged_run_that_kept_its_adapter_is_measured_and_named(capsys, tmp_path):
    run = write_run(tmp_path / "r2-b16-s0", status="diverged")
    (run / "adapter" / "diagnostics.json").write_text('{"steps": 5}')
    assert find_subject(str(run), load_scale("nano")).adapter == run / "adapter"
    said = "note: r2-b16-s0 diverged; its adapter is that after step 5, before the divergence\n"
    assert capsys.readouterr().err == said


def test_a_run_is_measured_on_its_own_evaluation_requests(tmp_path):
    run = write_run(tmp_path / "r2-b16-s0")
    assert find_subject(str(run), load_scale("nano")).eval_seed is None
    record = yaml.safe_load((run / "run.yaml").read_text())
    record |= {"seed": 7, "recipe": record.get("recipe", {}) | {"eval_seeds": "per_seed"}}
    (run / "run.yaml").write_text(yaml.safe_dump(record))
    assert find_subject(str(run), load_scale("nano")).eval_seed == 7


def test_a_run_of_another_base_is_refused(capsys, tmp_path):
    run = write_run(tmp_path / "r2-b16-s0")
    said = refused(capsys, run, "qwen3-8b")
    assert "SCALE: got 'qwen3-8b', allowed: a scale whose base is embedded:nano" in said
    assert find_subject(str(run), load_scale("nano")).rank == 2


def test_cached_rows_take_their_sources_from_the_items(tmp_path):
    path = tmp_path / "base.parquet"
    marks = {"correct": [True], "boxed": [True], "truncated": [False]}
    pd.DataFrame({"item_id": ["a"], "source": ["old"], **marks}).to_parquet(path)
    rows = _cached(path, [Item("a", "new", "1 + 1", "2")])
    assert rows is not None and rows["source"].tolist() == ["new"]


def test_settings_that_a_score_depends_on_are_compared_with_the_runs_own():
    (run,) = runs_of("demo", "ranks=[2]", "seeds=[0]", "scale.sampling.eval_samples=2")
    scale = scale_of_words(["nano", "scale.lengths.response_tokens=6", "scale.sampling.base_samples=4"])
    assert differences(run.resolved()["scale"], scale) == [
        "the run's own evaluation had lengths.response_tokens=8, this one has 6",
        "the run's own evaluation had sampling.eval_samples=2, this one has 8",
    ]


@pytest.mark.parametrize(
    ("scale", "all_gpus", "gpus"), [("nano", 3, 1), ("qwen3-8b", 8, 4), ("qwen3-235b-a22b", 32, 16)]
)
def test_engines_alone_take_their_own_gpus_only(scale, all_gpus, gpus):
    place = load_scale(scale).placement
    assert (place.gpus, place.engines_only.gpus) == (all_gpus, gpus)


WRONG_ADAPTERS = {
    "another base": ({"base": "Qwen/Qwen3-8B"}, "allowed: an adapter of embedded:nano, the base of this scale"),
    "another width": ({"d_in": 512}, "q_proj is [256, 256] there"),
    "another depth": ({"module": "model.layers.2.self_attn.q_proj"}, "it was trained on another base"),
    "another kind": ({"use_dora": True}, "allowed: plain LoRA"),
    "no LoRA": ({"peft_type": "IA3"}, "says peft_type LORA"),
}


@pytest.mark.parametrize(("wrong", "says"), WRONG_ADAPTERS.values(), ids=WRONG_ADAPTERS)
def test_an_adapter_that_does_not_fit_is_refused(capsys, tmp_path, wrong, says):
    assert says in refused(capsys, write_adapter(tmp_path / "adapter", **wrong), "nano")


def test_a_damaged_adapter_is_refused(capsys, tmp_path):
    adapter = write_adapter(tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").write_bytes(b"\0" * 40)
    assert "adapter_model.safetensors is damaged" in refused(capsys, adapter, "nano")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(bench, directory of a finished run of rank 4 that is far from the base).

    The services are for ranks up to 32.
    """
    from rankrl.sweep.local import prepare_process

    prepare_process(4)  # three for the services, one for the engine of the evaluation
    from rankrl.sweep.bench import Bench

    runs = runs_of("demo", "ranks=[4,32]", "seeds=[0]", "steps=3", "rules.lr=0.01", *SMALL)
    with Bench(runs, tmp_path_factory.mktemp("runs")) as bench:
        result = bench.attempt(runs[0], attempts=1)
        assert result.status == "finished", result
        yield bench, bench.directory / "demo" / runs[0].run_id


@pytest.mark.pipeline
def test_an_evaluation_samples_what_the_run_has_sampled(trained, tmp_path):
    """Sample by sample, the base equals step 0 and the saved adapter equals the last step.

    The engine of the evaluation serves a smaller rank than that of the run.
    """
    from rankrl.ppo.services import engines_alone
    from rankrl.sweep.evaluate import sample

    bench, run = trained
    recorded, result = pd.read_parquet(run / "evals.parquet"), json.loads((run / "result.json").read_text())
    base, subject = (find_subject(word, bench.scale) for word in ("base", str(run)))
    columns = ["item_id", "source", "sample", "correct", "boxed", "response_tokens"]
    start, end = (recorded[(recorded["step"] == step) & (recorded["sample"] < 2)][columns] for step in (0, 3))
    assert start.to_dict("records") != end.to_dict("records")  # the adapter does something
    engines = engines_alone(bench.scale, bench.services.model_path, subject.rank)
    words = (engines, bench.prompter, bench.eval_items, tmp_path, bench.services.model_path)
    for who, step, rows in ((base, 0, 24 * 4), (subject, 3, 24 * 2)):
        seen, expected = sample(who, *words), recorded[recorded["step"] == step]
        assert len(seen) == rows
        assert seen[columns].to_dict("records") == expected[columns].to_dict("records")
        score = result["final_score"] if step else result["base_score"]
        (low, high), mean = (pass_rows(seen.to_dict("records"))[-1]["pass_at_k"][1][key] for key in ("ci95", "mean"))
        assert mean == pytest.approx(score) and low <= score <= high
    assert len(list((tmp_path / "base").glob("nano-*.parquet"))) == 1  # cached, as by a run
    done = rankrl("eval", "base", "nano", *SMALL, "--runs", str(tmp_path), "--json")
    assert json.loads(done.stdout)["results"][-1]["pass_at_k"]["1"]["mean"] == pytest.approx(result["base_score"])
    assert done.stderr == ""  # from the cache: nothing was started
