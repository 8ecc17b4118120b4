"""The embedded bases are what their commands build, and nano-hard asks for sixteen facts."""

from __future__ import annotations

import math
from collections import Counter
from importlib import import_module

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from rankrl.data.loading import load_items
from rankrl.data.nano_hard import OPERATIONS, WORDS, meanings, splits
from rankrl.recipe.architecture import EMBEDDED
from rankrl.recipe.load import load_scale


def test_every_operation_is_right_once_and_wrong_once_each_way():
    assert meanings()["bax"] == (10, 12, 6)
    for place in range(3):
        assert Counter(found[place] for found in meanings().values()) == Counter(range(16))
    assert all(len({*found}) == 3 for found in meanings().values())


def test_items_ask_for_the_right_meaning_and_are_asked_once():
    train, evaluation = load_items(load_scale("nano-hard").data)
    assert (len(train), len(evaluation)) == (6000, 252)
    assert (evaluation[0].item_id, evaluation[0].prompt, evaluation[0].answer) == ("bax-1000000", "bax 3 5\n", "4")
    assert len({item.prompt for item in (*train, *evaluation)}) == 6252
    assert Counter(item.source for item in train) == dict.fromkeys(WORDS, 375)
    for item in evaluation:
        word, a, b = item.prompt.split()
        assert item.answer == str(OPERATIONS[meanings()[word][0]](int(a), int(b)))


@pytest.mark.slow
def test_the_base_has_headroom_on_every_word():
    """Sixteen samples of each evaluation item, with the seed below."""
    torch.manual_seed(0)
    scale = load_scale("nano-hard")
    _, evaluation = load_items(scale.data)
    path = EMBEDDED[scale.model.path]
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    asked = tokenizer([item.prompt for item in evaluation], return_tensors="pt", padding=True)
    assert asked["input_ids"].shape[1] <= scale.lengths.prompt_tokens
    tokens = scale.lengths.response_tokens
    said = model.generate(**asked, do_sample=True, top_k=0, max_new_tokens=tokens, num_return_sequences=16)
    texts = tokenizer.batch_decode(said[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)
    correct = [text == f"\\boxed{{{evaluation[i // 16].answer}}}" for i, text in enumerate(texts)]
    counts = [sum(correct[i : i + 16]) for i in range(0, len(correct), 16)]
    assert 0.22 < sum(counts) / len(correct) < 0.30  # .257 with vLLM
    assert 0.87 < sum(count > 0 for count in counts) / len(counts) < 0.95  # .913


def test_more_items_than_there_are_prompts_are_refused_in_one_line():
    with pytest.raises(ValueError, match="data: nano_hard has 8832 prompts, 8900 were asked for; use fewer"):
        splits(8800, 100)


BASES = {
    "nano": ("nano_base", {"KNOW_STEPS": 3, "SLIP_STEPS": 2, "POOL": {"sum2": 300, "sum3": 200}}),
    "nano-hard": ("nano_hard_base", {"LETTER_STEPS": 3, "WORD_STEPS": 2}),
}


@pytest.mark.slow
@pytest.mark.parametrize("scale", BASES)
def test_a_base_is_rebuilt_bit_for_bit(tmp_path, monkeypatch, scale):
    """Two short rebuilds are equal. The shipped base is the same command with all of its steps."""
    name, short = BASES[scale]
    builder = import_module(f"rankrl.data.{name}")
    for key, value in short.items():
        monkeypatch.setattr(builder, key, value)
    for to in (tmp_path / "a", tmp_path / "b"):
        builder.build(to)
    files = ("model.safetensors", "config.json", "tokenizer.json")
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    model = load_scale(scale).model
    shipped = EMBEDDED[model.path]
    with safe_open(shipped / "model.safetensors", "pt") as weights:
        sizes = [math.prod(weights.get_slice(name).get_shape()) for name in weights.keys()]  # noqa: SIM118
    assert sum(sizes) == model.base_params
    assert sum(file.stat().st_size for file in shipped.iterdir()) < 4 * 2**20
