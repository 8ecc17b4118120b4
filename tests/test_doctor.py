"""`rankrl doctor` on a machine without a GPU.

Nothing is wrong for nano. For other scales it names what is missing and what to do.
"""

import dataclasses
import json
import socket
from types import SimpleNamespace

import psutil
import pytest
from conftest import runs_of

from rankrl.cli import main
from rankrl.doctor import assets, machine, usual_run
from rankrl.recipe.load import doctor_words, find_scale, load_scale

pytestmark = pytest.mark.usefixtures("stack", "no_gpu")


@pytest.fixture
def no_gpu():
    import torch

    if torch.cuda.is_available():
        pytest.skip("expects a machine without a GPU")


def doctor(capsys, *words):
    """(exit code, check -> its line, whole output) of `rankrl doctor`."""
    code = main(["doctor", *words])
    shown = capsys.readouterr().out
    lines = [line for line in shown.partition("\n\n")[0].splitlines() if line[:4] in ("ok  ", "warn", "FAIL")]
    return code, {line.split()[1]: line for line in lines}, shown


def test_a_usual_run_of_few_items():
    scale = load_scale("nano", {"data": {"train_items": 5}})
    assert usual_run(scale).batch_size == 5
    assert usual_run(load_scale("nano")).batch_size == 16


def test_a_scale_whose_path_has_an_equals_sign(tmp_path):
    path = tmp_path / "a=b.yaml"
    path.write_text(find_scale("nano").read_text())
    assert doctor_words([str(path), "scale.data.train_items=7"])[0].data.train_items == 7


def test_nano_is_fine(capsys, tmp_path):
    code, lines, shown = doctor(capsys, "--runs", str(tmp_path / "runs"))
    assert code == 0 and "FAIL" not in shown, shown
    assert (
        "1,198,080 parameters, 2 layers" in lines["model"] and "7,936 per rank, 0.6624% of the base" in lines["model"]
    )
    assert "6,000 training and 252 evaluation items" in lines["data"]
    assert len(lines) == 14 and "vllm 0.29.0" in lines["packages"] and "Ray" in lines
    assert "processes of a task" in shown and "1.02 MB saved" in shown
    assert not (tmp_path / "runs").exists()


def test_8b_names_gpu_model_and_data(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    code, lines, shown = doctor(capsys, "qwen3-8b")
    assert code == 1
    assert "no GPU, qwen3-8b asks for 8 on one node" in lines["accelerator"] and " -> " in lines["accelerator"]
    assert "FAIL" in lines["attention"] and "flash-attn==2.8.3" in lines["attention"]
    assert "Qwen/Qwen3-8B is not in" in lines["weights"] and "16.4 GB" in lines["weights"]
    assert lines["model"].startswith("ok") and "8,190,735,360 parameters" in lines["model"]
    assert "FAIL" in lines["data"] and "data/qwen3-8b/train.parquet" in lines["data"]
    assert "-> rankrl data qwen3-8b --to data/qwen3-8b" in lines["data"]
    assert lines["DeepSpeed"].startswith("ok") and "stage 0" in lines["DeepSpeed"]
    assert "memory, policy worker  40.2 GB of 80 GB" in shown


WRONG = {
    "shape": (["nano", "scale.model.modules.q_proj=[256,128]"], "model", "model.modules.q_proj: got [256, 128]"),
    "layers": (["nano", "scale.model.layers=3"], "model", "model.layers: got 3, allowed: 2"),
    "data": (
        ["nano", "scale.data.train=no.jsonl", "scale.data.evaluation=no.jsonl"],
        "data",
        "data.train: got 'no.jsonl'",
    ),
    "dtype": (["nano", "scale.model.dtype=bfloat16"], "precision", "scale.model.dtype=float32"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(capsys, case):
    words, check, says = WRONG[case]
    code, lines, _ = doctor(capsys, *words)
    assert says in lines[check] and " -> " in lines[check]
    assert code == (0 if case == "dtype" else 1)


@pytest.mark.parametrize("content", ["{ not json", "[]", '{"model_type": "none", "dtype": "bfloat16"}'])
def test_a_corrupt_config_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"model\.path"):
        assets.model(dataclasses.replace(load_scale("nano").model, path=str(tmp_path)))


def test_an_unknown_key_for_deepspeed_is_named(capsys, tmp_path):
    file = tmp_path / "zero.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 3, "stage3_prefetch": 1}}))
    code, lines, _ = doctor(capsys, f"scale.deepspeed={file}")
    assert code == 1 and "FAIL" in lines["DeepSpeed"] and "stage3_prefetch" in lines["DeepSpeed"]
    code, lines, _ = doctor(capsys, "scale.deepspeed=no.json")
    assert code == 1 and "FAIL" in lines["plan"] and "no.json" in lines["plan"]


def test_wrong_words_are_refused(capsys):
    assert (
        main(["doctor", "nope"]) == main(["doctor", "nano", "ranks=[1]"]) == main(["doctor", "nano", "qwen3-8b"]) == 2
    )


def test_weights_are_looked_for_by_the_index(tmp_path):
    model = dataclasses.replace(load_scale("nano").model, path=str(tmp_path))
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    for name, content in {"model.safetensors.index.json": json.dumps(index), "model-1.safetensors": ""}.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "config.json").write_text("{}")
    assert str(assets.weights(model)).startswith("FAIL") and "lacks model-2.safetensors" in str(assets.weights(model))
    (tmp_path / "model-2.safetensors").write_text("")
    assert str(assets.weights(model)).startswith("ok")


def test_other_versions_are_named(monkeypatch):
    assert set(machine.pins()) == set(machine.PINNED)
    real = machine.installed
    monkeypatch.setattr(machine, "installed", lambda name: {"peft": "0.20.0", "ray": None}.get(name, real(name)))
    found = machine.packages()
    assert found.level == "FAIL" and "ray missing instead of ==2.55.0" in found.found
    assert "peft 0.20.0 instead of ==0.21.2" in found.found and "make setup" in found.fix


def test_a_node_with_too_few_gpus_is_named(monkeypatch):
    import torch

    gpu = SimpleNamespace(name="H100", total_memory=85_000_000_000)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: gpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = machine.accelerator(load_scale("qwen3-8b"))
    assert (found.level, found.found) == ("FAIL", "4 x H100 with 85 GB, qwen3-8b asks for 8 on one node")
    assert machine.precision(load_scale("nano")).level == "FAIL"  # float32 on a GPU


def test_memory_that_cannot_be_enough_is_named():
    fits = machine.memory(usual_run(load_scale("qwen3-8b")))
    assert (fits.level, fits.found) == ("ok", "policy worker 28 GB of 80 GB at rank 32 (estimate)")
    narrow = dataclasses.replace(load_scale("qwen3-235b-a22b").placement, tensor_parallel=4)
    run = usual_run(dataclasses.replace(load_scale("qwen3-235b-a22b"), placement=narrow))
    assert machine.memory(run).level == "FAIL" and "room for 0 tokens" in machine.memory(run).found


def test_a_small_machine_is_told(monkeypatch, tmp_path):
    small = SimpleNamespace(total=2e9, available=1e9)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: small)
    run = runs_of("demo")[0]
    assert machine.memory(run).level == "FAIL"
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: SimpleNamespace(total=1e8, free=1e6))
    assert machine.shared_memory().level == "warn" and "shm-size" in machine.shared_memory().fix
    assert machine.disk(run, tmp_path / "runs").level == "FAIL"


def test_a_cluster_needs_a_name_that_others_reach(monkeypatch):
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.1.1")
    assert machine.network(load_scale("nano")).level == "ok"
    found = machine.network(load_scale("qwen3-235b-a22b"))
    assert found.level == "FAIL" and "127.0.1.1, but a task takes 4 nodes" in found.found


def test_slurm_is_asked_for_gpus(monkeypatch):
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert "this machine alone" in machine.slurm(load_scale("qwen3-8b")).found
    monkeypatch.setattr(machine.shutil, "which", lambda name: name)
    answer = SimpleNamespace(returncode=0, stdout="gpu:h100:4(S:0-1)\n(null)\n", stderr="")
    monkeypatch.setattr(machine.subprocess, "run", lambda *args, **kwargs: answer)
    found = machine.slurm(load_scale("qwen3-8b"))
    assert (found.level, found.fix) == ("warn", "scale.slurm.gpus_per_node=4")
