"""The prompt that the model reads: a question with the scale's instruction and template.

Building data, rollouts and evaluations all use `prompt_ids`.
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
    return tokenizer(prompt_text(tokenizer, data, prompt), add_special_tokens=False)["input_ids"]


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
    """Raises ValueError, one line, where a chat template is wanted and the tokenizer has none."""
    chats = scale.data.template != "chat" or bool(tokenizer.chat_template)
    require(chats, "data.template", "chat", "a text with {}, or null", f"{scale.model.path} has no chat template")


def short_enough(scale: Scale) -> Callable[[str], bool]:
    """A check that a prompt fits into `lengths.prompt_tokens` with instruction and template.

    Raises ValueError, one line, if there is no tokenizer or no chat template.
    """
    tokenizer = load_tokenizer(scale.model)
    check_template(scale, tokenizer)
    return lambda prompt: len(prompt_ids(tokenizer, scale.data, prompt)) <= scale.lengths.prompt_tokens
