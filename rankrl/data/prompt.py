"""The prompt that the model reads: a question with the scale's instruction and template.

Building data, rollouts and evaluations all use `as_ids`. The engine is given these ids, not a text,
and training puts the response's ids behind them, so neither adds a token of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rankrl.data.turns import turns, with_instruction, without_template
from rankrl.recipe.architecture import EMBEDDED
from rankrl.recipe.require import require
from rankrl.recipe.scale import Data, Model, Scale


def prompt_text(tokenizer: Any, data: Data, prompt: str) -> str:
    """The question followed by the scale's instruction, with the template around both."""
    chat = with_instruction(turns(prompt), data.instruction)
    if data.template != "chat":
        question = without_template(chat)
        return data.template.replace("{}", question) if data.template else question
    thinking = {} if data.thinking is None else {"enable_thinking": data.thinking}
    return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **thinking)


def prompt_ids(tokenizer: Any, data: Data, prompt: str) -> list[int]:
    return as_ids(tokenizer, data, [prompt_text(tokenizer, data, prompt)])[0]


def as_ids(tokenizer: Any, data: Data, texts: list[str]) -> list[list[int]]:
    """The ids of prompts that `prompt_text` has made.

    A tokenizer that begins every text with a bos token does so here too, once, since its model has
    seen no text without. A chat template writes all special tokens itself, and an end token behind
    a prompt would end what is to be continued.
    """
    bos = [] if data.template == "chat" else own_start(tokenizer)
    found = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [ids if ids[: len(bos)] == bos else bos + ids for ids in found]


def own_start(tokenizer: Any) -> list[int]:
    """The bos token as a list, if the tokenizer puts it before a text by itself; else empty."""
    first = tokenizer("")["input_ids"][:1]
    return first if first == [tokenizer.bos_token_id] else []


def load_tokenizer(model: Model) -> Any:
    """The tokenizer of a directory, a model of the hub, or an embedded model.

    Raises ValueError, one line, if it cannot be loaded.
    """
    try:
        return _tokenizer(model, str(EMBEDDED.get(model.path, model.path)), local=False)
    except Exception as error:  # no network, no such model, no access, damaged files: each has its own class
        raise ValueError(
            f"model.path: the tokenizer of {model.path} is not to be had ({type(error).__name__}); "
            "a local copy: scale.model.path=DIR"
        ) from error


def tokenizer_here(model: Model, directory: Path | None = None) -> Any:
    """The tokenizer in `directory` or on this machine; None if it is not here, or is damaged."""
    try:
        path = directory or EMBEDDED.get(model.path) or model.path
        return _tokenizer(model, str(path), local=True)
    except Exception:  # as above
        return None


def _tokenizer(model: Model, path: str, local: bool) -> Any:
    from transformers import AutoTokenizer

    options = {"revision": model.revision, "trust_remote_code": model.trust_remote_code, "local_files_only": local}
    return AutoTokenizer.from_pretrained(path, **options)


def check_template(scale: Scale, tokenizer: Any) -> None:
    """Raises ValueError, one line, for a chat template that is not there, or a switch it lacks."""
    chats = scale.data.template != "chat" or bool(tokenizer.chat_template)
    require(chats, "data.template", "chat", "a text with {}, or null", f"{scale.model.path} has no chat template")
    thinking = scale.data.thinking
    knows = thinking is None or "enable_thinking" in str(tokenizer.chat_template)
    fix = f"the chat template of {scale.model.path} knows no enable_thinking"
    require(knows, "data.thinking", thinking, "null", fix)


def check_tokens(scale: Scale, tokenizer: Any, vocabulary: int | None) -> None:
    """Raises ValueError, one line, for a tokenizer without an end token, or with too many tokens.

    `vocabulary` is the number of the model's embeddings. Without a pad token, OpenRLHF pads with
    the end token; the pad token is never attended to, but it is looked up.
    """
    has_end, path = tokenizer.eos_token_id is not None, scale.model.path
    fix = "responses would never end; set eos_token in tokenizer_config.json"
    require(has_end, "model.path", path, "a model whose tokenizer has an end token", fix)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    fix = f"its pad token is {pad}; set pad_token in tokenizer_config.json to the end token"
    allowed = f"a model whose tokenizer pads with one of its {vocabulary} embeddings"
    require(vocabulary is None or pad < vocabulary, "model.path", path, allowed, fix)


def short_enough(scale: Scale) -> Callable[[str], bool]:
    """A check that a prompt fits into `lengths.prompt_tokens` with instruction and template.

    Raises ValueError, one line, if there is no tokenizer or no chat template.
    """
    tokenizer = load_tokenizer(scale.model)
    check_template(scale, tokenizer)
    return lambda prompt: len(prompt_ids(tokenizer, scale.data, prompt)) <= scale.lengths.prompt_tokens
