"""Builds the nano base model from nothing: `python -m rankrl.data.nano_base --to DIR`.

It takes about 20 minutes on 2 cores. A Qwen3-architecture model of about 1.2 M parameters is first
taught the right answers, then taught to make mistakes: most answers are perturbed or left unboxed.
It knows more than it says, so reinforcement learning has headroom: pass@1 is low, pass@16 is high.
Fixed seeds, fixed thread count, CPU, fp32 training; the weights are stored in bf16.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from rankrl.data import nano

EVAL_ITEMS = 252  # never trained on
POOL = {"sum2": 40000, "sum3": 8000}  # items drawn per source before duplicates are dropped
VOCABULARY = 384
KNOW_STEPS, SLIP_STEPS, BATCH = 4000, 1200, 128
SLIP_RATE, UNBOXED_RATE = 0.45, 0.15
Z_LOSS = 1e-3  # keeps likely logits near 0, where bf16 is precise: engines and trainers then agree closely


def build_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, trained on `texts`.

    Every digit is a token of its own. Merges may cross words, so a fixed phrase is one token.
    """
    tokenizer = Tokenizer(models.BPE())
    split = [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def build_model(vocabulary: int) -> Qwen3ForCausalLM:
    """The untrained model.

    No projection is narrower than 256, so every rank of the published sweep (1 to 256) fits.
    """
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    return Qwen3ForCausalLM(config)


def slip(answer: str, rng: random.Random) -> str:
    """A plausible wrong answer: off by one, two or ten, of the wrong sign, or doubled."""
    value = int(answer)
    near = [value + 1, value - 1, value + 10, value - 10, -value, value + 2, value - 2, 2 * value]
    return str(rng.choice([wrong for wrong in near if wrong != value]))


def response(item: nano.Item, rng: random.Random, slips: bool) -> str:
    """The response to `item` that the model is taught; with `slips`, often wrong or unboxed."""
    if not slips:
        return f"\\boxed{{{item.answer}}}"
    answer = slip(item.answer, rng) if rng.random() < SLIP_RATE else item.answer
    return answer if rng.random() < UNBOXED_RATE else f"\\boxed{{{answer}}}"


def batches(
    items: list[nano.Item], tokenizer: Any, steps: int, slips: bool, seed: int
) -> Iterator[dict[str, torch.Tensor]]:
    """`steps` batches of items and what the model is taught to say."""
    rng = random.Random(seed)
    prompts = {item.item_id: tokenizer(item.prompt)["input_ids"] for item in items}
    for _ in range(steps):
        chosen = rng.choices(items, k=BATCH)
        yield padded(
            [(prompts[item.item_id], tokenizer(response(item, rng, slips))["input_ids"]) for item in chosen], tokenizer
        )


def padded(pairs: list[tuple[list[int], list[int]]], tokenizer: Any) -> dict[str, torch.Tensor]:
    """Tokens of prompts and their responses as a batch, padded on the right.

    Labels cover the response and its end token only.
    """
    rows, labels = [], []
    for prompt, answer in pairs:
        ended = [*answer, tokenizer.eos_token_id]
        rows.append(torch.tensor(prompt + ended))
        labels.append(torch.tensor([-100] * len(prompt) + ended))
    pad = torch.nn.utils.rnn.pad_sequence
    input_ids = pad(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
    return {
        "input_ids": input_ids,
        "attention_mask": (input_ids != tokenizer.pad_token_id).long(),
        "labels": pad(labels, batch_first=True, padding_value=-100),
    }


def fit(model: torch.nn.Module, data: Iterator[dict[str, torch.Tensor]], steps: int, lr: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)
    start_s, loss_sum = time.time(), 0.0
    for step, batch in enumerate(data, 1):
        output = model(**batch)
        log_z = output.logits.logsumexp(-1)[batch["labels"] != -100]
        loss = output.loss
        (loss + Z_LOSS * log_z.square().mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        loss_sum += loss.item()
        if step % 200 == 0:
            print(f"step {step}/{steps}  loss {loss_sum / 200:.4f}  {time.time() - start_s:.0f} s", flush=True)
            loss_sum = 0.0


def build(to: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    pool, evaluation = nano.pools(POOL, EVAL_ITEMS)
    rng = random.Random(0)
    tokenizer = build_tokenizer([text for item in pool for text in (item.prompt, response(item, rng, slips=False))])
    model = build_model(len(tokenizer))
    print(f"{model.num_parameters():,} parameters, {len(pool):,} items, {len(evaluation)} held out", flush=True)
    fit(model, batches(pool, tokenizer, KNOW_STEPS, slips=False, seed=1), KNOW_STEPS, lr=2e-3)
    model.save_pretrained(to / "know")
    fit(model, batches(pool, tokenizer, SLIP_STEPS, slips=True, seed=2), SLIP_STEPS, lr=3e-4)
    model.to(torch.bfloat16).save_pretrained(to)
    tokenizer.save_pretrained(to)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, required=True, help="directory of the checkpoint")
    build(parser.parse_args().to)
