"""`rankrl export`: an adapter of mixed ranks has the trainer's logits in stock PEFT and vLLM."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import rankrl, runs_of, shell

from rankrl.cli import main

PROMPTS = ["1 + 2 =", "12 + 30 ="]
STOCK_VLLM = """
import json, sys
import vllm
from vllm.lora.request import LoRARequest

model, adapter, prompts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
engine = vllm.LLM(model, dtype="float32", enable_lora=True, max_lora_rank=8, enforce_eager=True, max_model_len=32, max_num_seqs=4,
                  enable_chunked_prefill=False)
params = vllm.SamplingParams(temperature=0, max_tokens=6, logprobs=0)
tokens = [vllm.TokensPrompt(prompt_token_ids=ids) for ids in prompts]
answers = [o.outputs[0] for o in engine.generate(tokens, params, lora_request=LoRARequest("exported", 1, adapter))]
seen = [(list(a.token_ids), [step[token].logprob for token, step in zip(a.token_ids, a.logprobs)]) for a in answers]
json.dump(seen, open(sys.argv[4], "w"))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(run directory, base model, directory of the base model, the trainer's model).

    The run's adapter has ranks 0 to 5 and is far from the base.
    """
    import torch
    from peft import get_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    from rankrl.adapter.factors import starting_factors
    from rankrl.adapter.host import AdapterHost
    from rankrl.adapter.save import save_adapter
    from rankrl.recipe.architecture import EMBEDDED
    from rankrl.recipe.init_section import Init
    from rankrl.recipe.rank_table import ModuleRank

    (run,) = runs_of("demo", "ranks=[8]", "seeds=[0]", "rules.lr={rule: equal_kl, c: 4}")
    path = EMBEDDED[run.scale.model.path]
    host = AdapterHost(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), run.scale.model.modules, 2)
    table = [ModuleRank(name, *shape, i % 6, 4.0 + i) for i, (name, shape) in enumerate(host.shapes.items()) if i % 6]
    host.attach("trained", table, *starting_factors(Init(), 0, table, None))
    generator = torch.Generator().manual_seed(1)
    for _, b in host.factors("trained", table).values():
        b.data = 0.1 * torch.randn(b.shape, generator=generator)
    directory = tmp_path_factory.mktemp("runs") / "demo" / run.run_id
    config = host.model.peft_config["trained"].to_dict()
    tensors = get_peft_model_state_dict(host.model, adapter_name="trained", save_embedding_layers=False)
    facts = dict.fromkeys(("rank", "run_id", "sweep", "steps"), 8) | {
        "params": 1,
        "share": 0,
        "final": 0,
        "start": 0,
        "gain": 0,
    }
    save_adapter(directory / "adapter", config, {k: t.detach().clone() for k, t in tensors.items()}, str(path), facts)
    scores = {"base_score": 0.25, "final_score": 0.5, "best_score": 0.5, "gain": 0.25}
    spent = {"tokens_total": 1000, "steps": 30, "wall_s": 1.0, "base_params": 1198080}
    cell = {"run_id": run.run_id, "arm": "", "rank": 8, "batch_size": 16, "seed": 0, "status": "finished"}
    result = {**cell, **scores, **spent, "trainable_params": sum(row.params for row in table)}
    (directory / "result.json").write_text(json.dumps(result))
    (directory / "run.yaml").write_text(yaml.safe_dump(run.resolved()))
    items = [(30, item, sample, item == 1) for item in (0, 1) for sample in (0, 1)]
    pd.DataFrame(items, columns=["step", "item_id", "sample", "correct"]).to_parquet(directory / "evals.parquet")
    return directory, host.model, path


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    to = tmp_path_factory.mktemp("export") / "served"
    done = rankrl("export", str(trained[0]), "--to", str(to))
    assert done.returncode == 0, done.stderr
    return to


def logits(model, ids):
    import torch

    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def prompt_ids(path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    return [tokenizer(text)["input_ids"] for text in PROMPTS]


@pytest.mark.parametrize("part", [".", "peft"])
@pytest.mark.slow
def test_stock_peft_gives_the_trainers_logits(trained, exported, part):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    _, model, path = trained
    base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    for ids in prompt_ids(path):
        plain = logits(base, ids)
        assert (plain - logits(model, ids)).abs().max() > 0.5  # the adapter does something
    loaded = PeftModel.from_pretrained(base, exported / part)
    for ids in prompt_ids(path):
        assert torch.allclose(logits(loaded, ids), logits(model, ids), atol=2e-5, rtol=0)


@pytest.mark.slow
def test_the_serving_copy_has_one_rank_and_scale_1(trained, exported):
    config = json.loads((exported / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]) == (5, 5, {}, {})
    assert len(config["target_modules"]) == 11  # of 14; three have rank 0
    original = json.loads((exported / "peft" / "adapter_config.json").read_text())
    assert original["rank_pattern"] and original["alpha_pattern"]


@pytest.mark.slow
def test_the_card_has_recipe_scores_and_intervals(exported):
    card = (exported / "README.md").read_text()
    assert "| this run | 0.5000 [-5.8531, 6.8531] |" in card  # t interval of two items
    assert "| gain | +0.2500 |" in card and "| lr | 0.000866025 | " in card
    assert "0 of 1, risk below 0.97" in card and "--max-lora-rank 8" in card


@pytest.mark.pipeline
def test_stock_vllm_gives_the_trainers_logits(trained, exported, tmp_path):
    import torch

    _, model, path = trained
    prompts = prompt_ids(path)
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": "1",
                "VLLM_LOGGING_LEVEL": "WARNING", "HF_HUB_OFFLINE": "1"}  # fmt: skip
    words = [
        sys.executable,
        "-c",
        STOCK_VLLM,
        str(path),
        str(exported),
        json.dumps(prompts),
        str(tmp_path / "seen.json"),
    ]
    with shell() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for ids, (answer, logprobs) in zip(prompts, json.loads((tmp_path / "seen.json").read_text()), strict=True):
        ours = torch.log_softmax(logits(model, ids + answer), -1)[len(ids) - 1 : -1]
        assert answer == ours.argmax(-1).tolist()
        assert np.allclose(logprobs, ours.max(-1).values, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_the_export_of_a_diverged_run_says_what_it_is(trained, tmp_path, capsys):
    run = tmp_path / "demo" / trained[0].name
    shutil.copytree(trained[0], run)
    result = json.loads((run / "result.json").read_text()) | {"status": "diverged", "error": "Diverged: step 7: x"}
    (run / "result.json").write_text(json.dumps(result | dict.fromkeys(("final_score", "best_score", "gain"))))
    (run / "adapter" / "diagnostics.json").write_text('{"steps": 6}')
    assert main(["export", str(run), "--to", str(tmp_path / "served")]) == 0
    assert "diverged; its adapter is that after step 6, before the divergence" in capsys.readouterr().err
    card = (tmp_path / "served" / "README.md").read_text()
    assert "**The run diverged**: Diverged: step 7: x. These are its weights after step 6, before the" in card
    assert "the base has 0.2500. Of the 1 seeds of its cell, 1 diverged." in card and "| lr | 0.000866025 | " in card


def test_a_refusal_does_not_wait_for_torch(tmp_path):
    code = "import sys; from rankrl.cli import main; print(main(['export', *sys.argv[1:]]), {'torch', 'peft'} & {*sys.modules})"
    words = [sys.executable, "-c", code, str(tmp_path), "--to", str(tmp_path / "x")]
    assert subprocess.run(words, capture_output=True, text=True, timeout=120).stdout == "2 set()\n"


@pytest.mark.slow
def test_what_cannot_be_exported_is_one_line(trained, exported, tmp_path, capsys):
    directory, *_ = trained
    for words, told in (
        ((str(tmp_path), "--to", str(tmp_path / "x")), "the directory of a finished run"),
        ((str(directory), "--to", str(exported)), "a new or empty directory"),
    ):
        code, said = main(["export", *words]), capsys.readouterr().err
        assert code == 2 and told in said and len(said.splitlines()) == 1
    damaged = tmp_path / "damaged" / directory.name
    (damaged / "adapter").mkdir(parents=True)
    (damaged / "adapter" / "adapter_config.json").write_text("{}")
    (damaged / "adapter" / "adapter_model.safetensors").write_bytes(b"\x08")
    assert main(["export", str(damaged), "--to", str(tmp_path / "y")]) == 2
    assert "is damaged" in capsys.readouterr().err and not (tmp_path / "y").exists()
