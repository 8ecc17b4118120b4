"""Prompts in chat format: turns of system, user and assistant, of which the last is the user's.

Within rankrl a prompt is one text. A single turn of the user is its content; other conversations
are the JSON of their turns, from which `turns` gets them back.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from rankrl.data.printed import read_turns

KEYS = ("role", "content")
BEGINNING = '[{"role": "'
"""How the text of a conversation begins."""
Turn = dict[str, str]


def prompt_of(value: Any) -> str:
    """The prompt in the value of a row's key `prompt`: a text, a list of turns, or their JSON.

    Raises ValueError, with the reason, for anything else.
    """
    if isinstance(value, str) and (read := read_turns(value)) is not None:
        value = read
    if isinstance(value, str):
        _require(bool(value.strip()), "is empty")
        return value
    _require(isinstance(value, list | tuple) and len(value) > 0, f"is {repr(value)[:60]}, neither text nor turns")
    found = [_turn(turn) for turn in value]
    _check_order([turn["role"] for turn in found])
    alone = found[0]["content"]
    return json.dumps(found, ensure_ascii=False) if len(found) > 1 or alone.startswith(BEGINNING) else alone


def turns(prompt: str) -> list[Turn]:
    """The turns of a prompt; a text that is no conversation is one turn of the user."""
    if prompt.startswith(BEGINNING):
        with suppress(ValueError):
            return json.loads(prompt)
    return [{"role": "user", "content": prompt}]


def with_instruction(chat: list[Turn], instruction: str | None) -> list[Turn]:
    """The same turns, with an instruction after an empty line in the last one."""
    last = chat[-1]["content"]
    return [*chat[:-1], {"role": "user", "content": f"{last}\n\n{instruction}" if instruction else last}]


def without_template(chat: list[Turn]) -> str:
    """The text of a conversation of one turn of the user, with what the system says before it.

    Raises ValueError for more turns, which only a chat template can tell apart.
    """
    roles = [turn["role"] for turn in chat]
    _require(roles.count("user") == 1, f"has the turns {', '.join(roles)}: without data.template=chat, one of the user")
    return "\n\n".join(turn["content"] for turn in chat)


def _turn(turn: Any) -> Turn:
    """One turn, with a content in parts put together."""
    _require(
        isinstance(turn, dict) and set(KEYS) <= set(turn), f"has the turn {_shown(turn)}, without role and content"
    )
    more = sorted(str(key) for key, value in turn.items() if key not in KEYS and value not in (None, [], ""))
    _require(not more, f"has a turn with {', '.join(more)}, where role and content are known")
    content = turn["content"]
    if isinstance(content, list):
        _require(all(_is_text(part) for part in content), f"has the content {_shown(content)}, which is not all text")
        content = "".join(part["text"] for part in content)
    _require(isinstance(content, str) and bool(content.strip()), f"has the turn {_shown(turn)}, without text")
    return {"role": turn["role"], "content": content}


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _check_order(roles: list[Any]) -> None:
    told = [role for i, role in enumerate(roles) if role == "system" and i == 0]
    spoken = roles[len(told) :]
    fine = len(spoken) % 2 == 1 and all(role == ("user", "assistant")[i % 2] for i, role in enumerate(spoken))
    said = ", ".join(map(str, roles))
    _require(
        fine,
        f"has the turns {said}, allowed: system at most once and first, then user and assistant by turns, user last",
    )


def _shown(value: Any) -> str:
    return repr(value)[:80]


def _require(fine: bool, why: str) -> None:
    if not fine:
        raise ValueError(f"its prompt {why}")
