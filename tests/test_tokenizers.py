"""What exactly the ids of a prompt are, for tokenizers of each kind, in the engine and in training.

The tokenizers are made here, saved, and loaded as a run loads them.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rankrl.data.items import Item
from rankrl.data.prompt import check_template, check_tokens, prompt_ids, short_enough, tokenizer_here
from rankrl.data.ready import check_prompts
from rankrl.recipe.load import load_scale

SPECIAL = ("<pad>", "<s>", "</s>", "<user>", "<bot>")
WORDS = (*SPECIAL, "<think>", "</think>", "a", "b", "c", "{", "}")
PAD, BOS, EOS, USER, BOT, THINK, NO_THINK, A, B, C = range(10)
CHAT = (
    "{{ bos_token }}{% for m in messages %}<user>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<bot>"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"
)
OPENED = "{% for m in messages %}<user>{{ m.content }}{% endfor %}<bot><think>"
"""A template that opens the tag itself and has no switch, as DeepSeek-R1's."""


def tokenizer_of(directory, adds="", **options):
    """A tokenizer of WORDS that puts tokens around every text: "<s> $A", as training loads it."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.add_special_tokens([*SPECIAL])
    made.add_tokens(["<think>", "</think>"])
    if adds:
        pairs = [(word, WORDS.index(word)) for word in SPECIAL]
        made.post_processor = processors.TemplateProcessing(single=adds, special_tokens=pairs)
    PreTrainedTokenizerFast(tokenizer_object=made, **{"eos_token": "</s>", **options}).save_pretrained(directory)
    from openrlhf.utils.utils import get_tokenizer

    return get_tokenizer(str(directory), None)


def scale_of(directory, **data):
    scale = load_scale("nano")
    lengths = dataclasses.replace(scale.lengths, prompt_tokens=8)
    model = dataclasses.replace(scale.model, path=str(directory))
    return dataclasses.replace(scale, model=model, lengths=lengths, data=dataclasses.replace(scale.data, **data))


def seen(monkeypatch, tokenizer, scale, response, prompt="ab"):
    """(the ids that an engine is asked to continue, the micro-batch that training then sees)."""
    from rankrl.ppo import rollout
    from rankrl.ppo.serving import Responses

    asked = []

    def answer(_, requests):
        asked.extend(requests.prompts)
        return Responses(np.array(response), np.zeros(len(response)), np.array([len(response)]), np.array([False]))

    monkeypatch.setattr(rollout.ray, "get", lambda ref: ref)
    engine = SimpleNamespace(generate_batch=SimpleNamespace(remote=answer))
    grader = SimpleNamespace(grade=lambda texts, _: [SimpleNamespace(correct=True, outcome=text) for text in texts])
    item = Item("i", "s", prompt, "c")
    samples = rollout.Rollouts(rollout.Prompter(tokenizer, scale), [engine], scale, grader).rollout(
        None, 0, 1, [item], 1
    )
    longer = dataclasses.replace(samples[0], response_ids=[*response, C], logprobs=[0.0] * (len(response) + 1))
    batch = rollout.experience([samples[0], longer], [0, 1], [1.0, 1.0], tokenizer.pad_token_id, 99)
    assert tokenizer_here(scale.model)("ab", add_special_tokens=False)["input_ids"] == [A, B]
    return asked[0], batch, samples[0].response


KINDS = {
    "no pad token": ({}, {}, [A, B]),
    "pad is eos": ({"pad_token": "</s>"}, {}, [A, B]),
    "a pad token": ({"pad_token": "<pad>"}, {}, [A, B]),
    "a bos token that it adds to nothing": ({"bos_token": "<s>"}, {}, [A, B]),
    "adds bos": ({"bos_token": "<s>", "adds": "<s> $A"}, {}, [BOS, A, B]),
    "adds bos and eos": ({"bos_token": "<s>", "adds": "<s> $A </s>"}, {}, [BOS, A, B]),
    "adds eos": ({"adds": "$A </s>"}, {}, [A, B]),
    "adds bos, in a text": (
        {"bos_token": "<s>", "adds": "<s> $A"},
        {"template": "<user>{}<bot>"},
        [BOS, USER, A, B, BOT],
    ),
    "adds bos, which the text has": ({"bos_token": "<s>", "adds": "<s> $A"}, {"template": "<s>{}"}, [BOS, A, B]),
    "adds bos, which the chat template writes": (
        {"bos_token": "<s>", "adds": "<s> $A", "chat_template": CHAT},
        {"template": "chat"},
        [BOS, USER, A, B, BOT],
    ),
    "adds bos, which the chat template leaves out": (
        {"bos_token": "<s>", "adds": "<s> $A", "chat_template": OPENED},
        {"template": "chat"},
        [USER, A, B, BOT, THINK],
    ),
    "thinking off": (
        {"bos_token": "<s>", "chat_template": CHAT},
        {"template": "chat", "thinking": False},
        [BOS, USER, A, B, BOT, THINK, NO_THINK],
    ),
    "thinking on": (
        {"bos_token": "<s>", "chat_template": CHAT},
        {"template": "chat", "thinking": True},
        [BOS, USER, A, B, BOT],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_and_training_see_the_same_prompt(stack, monkeypatch, tmp_path, kind):
    options, data, expected = KINDS[kind]
    tokenizer, scale = tokenizer_of(tmp_path, **options), scale_of(tmp_path, **data)
    asked, batch, text = seen(monkeypatch, tokenizer, scale, [C, EOS])
    assert asked == expected == prompt_ids(tokenizer_here(scale.model), scale.data, "ab")
    length = len(expected) + 2
    assert batch.sequences[0].tolist() == [*expected, C, EOS, tokenizer.pad_token_id]
    assert batch.attention_mask[0].tolist() == [1] * length + [0]  # the end token is attended to, also if it pads
    assert batch.action_mask[0].tolist() == [0] * (len(expected) - 1) + [1, 1, 0]  # and it is learned
    assert text == "c"


def test_tags_in_a_response_are_tokens_like_others(stack, monkeypatch, tmp_path):
    tokenizer = tokenizer_of(tmp_path, chat_template=OPENED)
    response = [A, NO_THINK, C, EOS]
    _, batch, text = seen(monkeypatch, tokenizer, scale_of(tmp_path, template="chat"), response)
    assert text == "a </think> c"  # what is graded keeps them; only the end token goes
    assert batch.action_mask[0].sum() == len(response)


@pytest.mark.parametrize(("adds", "tokens"), [("", 8), ("<s> $A", 7)])
def test_every_token_of_a_prompt_counts(stack, tmp_path, adds, tokens):
    tokenizer = tokenizer_of(tmp_path, adds=adds, bos_token="<s>")
    scale = scale_of(tmp_path)
    fits, longer = (Item(str(count), "s", "a" * count, "c") for count in (tokens, tokens + 1))
    assert short_enough(scale)(fits.prompt) and not short_enough(scale)(longer.prompt)
    check_prompts(scale, tokenizer, [fits], "data.train")
    with pytest.raises(ValueError, match=r"the longest, item .*, has 9 prompt tokens"):
        check_prompts(scale, tokenizer, [longer], "data.train")


REFUSED = {
    "no end token": ({"eos_token": None}, {}, "tokenizer has an end token"),
    "a pad token beyond the embeddings": ({"pad_token": "}"}, {}, "embeddings .its pad token is 11;"),
    "a switch that the template lacks": ({"chat_template": OPENED}, {"template": "chat", "thinking": True}, "thinking: got True"),
    "no chat template": ({}, {"template": "chat"}, "data.template: got 'chat'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_tokenizers_that_cannot_work_are_refused(stack, tmp_path, case):
    options, data, says = REFUSED[case]
    tokenizer_of(tmp_path, **options)
    scale = scale_of(tmp_path, **data)
    with pytest.raises(ValueError, match=says) as error:
        check_template(scale, tokenizer_here(scale.model))
        check_tokens(scale, tokenizer_here(scale.model), 10)
    assert "\n" not in str(error.value)
