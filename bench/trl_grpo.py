"""A peer on the same work: TRL's GRPOTrainer with LoRA on a small local model.

One process per run, no vLLM, no critic, one update a step, no evaluations. It runs in an
environment of its own (`make .venv-trl/.ready`): `trl_grpo.py MODEL_DIR ROWS_JSONL RANK STEPS
THREADS`. A row has `input` and `label`. The reward is 1 if the boxed answer, or the beginning of
the text, is the label.
"""

import json
import re
import sys
import tempfile

import torch
from datasets import Dataset
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

PROMPTS, SAMPLES, NEW_TOKENS = 16, 8, 8


def right(text: str, gold: str) -> float:
    box = re.findall(r"\\boxed\{([^{}]*)\}", text)
    return float((box[-1] if box else text).strip().startswith(gold))


def reward(completions: list[str], label: list[str], **_: object) -> list[float]:
    return [right(text, gold) for text, gold in zip(completions, label, strict=True)]


def main() -> None:
    model, path, rank, steps, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    with open(path) as file:
        rows = [json.loads(line) for line in file]
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=PROMPTS * SAMPLES,
        num_generations=SAMPLES,
        max_completion_length=NEW_TOKENS,
        beta=0.001,
        learning_rate=1e-3,
        max_steps=int(steps),
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        logging_steps=50,
        temperature=1.0,
        gradient_checkpointing=False,
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": row["input"], "label": row["label"]} for row in rows]),
        peft_config=LoraConfig(r=int(rank), lora_alpha=16, target_modules="all-linear"),
    )
    trainer.train()


if __name__ == "__main__":
    main()
