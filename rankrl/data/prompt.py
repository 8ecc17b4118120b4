"""The prompt that the model reads: a question with the scale's instruction and template.

Building data, rollouts and evaluations all use `prompt_ids`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rankrl.recipe.architecture import EMBEDDED
from rankrl.recipe.require import require
from rankrl.recipe.scale import Data, Model, Scale


def prompt_text(tokenizer: Any, data: Data, prompt: str) -> str:
    """The question followed by the scale's instruction, with the template around both."""
    question = f"{prompt}\n\n{data.instruction}" if data.instruction else prompt
    if data.template != "chat":
        return data.template.replace("{}", question) if data.template else question
    thinking = {} if data.thinking is None else {"enable_thinking": data.thinking}
    chat = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **thinking)


def prompt_ids(tokenizer: Any, data: Data, prompt: str) -> list[int]:
    return tokenizer(prompt_text(tokenizer, data, prompt), add_special_tokens=False)["input_ids"]


def load_tokenizer(model: Model) -> Any:
    """The tokenizer of a directory, a model of the hub, or an embedded model.

    Raises ValueError, one line, if it cannot be loaded.
    """
    from transformers import AutoTokenizer

    path = str(EMBEDDED.get(model.path, model.path))
    try:
        return AutoTokenizer.from_pretrained(path, revision=model.revision, trust_remote_code=model.trust_remote_code)
    except Exception as error:  # no network, no such model, no access, damaged files: each has its own class
        raise ValueError(
            f"model.path: the tokenizer of {model.path} is not to be had ({type(error).__name__}); "
            "a local copy: scale.model.path=DIR"
        ) from error


def short_enough(scale: Scale) -> Callable[[str], bool]:
    """A check that a prompt fits into `lengths.prompt_tokens` with instruction and template.

    Raises ValueError, one line, if there is no tokenizer or no chat template.
    """
    tokenizer = load_tokenizer(scale.model)
    chats = scale.data.template != "chat" or bool(tokenizer.chat_template)
    require(chats, "data.template", "chat", "a text with {}, or null", f"{scale.model.path} has no chat template")
    return lambda prompt: len(prompt_ids(tokenizer, scale.data, prompt)) <= scale.lengths.prompt_tokens
