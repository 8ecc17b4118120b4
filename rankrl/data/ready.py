"""What a run asks of its data and model, all checked before services start.

`rankrl doctor`, sweeps and evaluations call `check_ready`, so that none refuses what another takes.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from rankrl.data.items import Item
from rankrl.data.prompt import as_ids, check_template, check_tokens, prompt_text, tokenizer_here
from rankrl.recipe.architecture import EMBEDDED, config_path, read_config
from rankrl.recipe.require import require
from rankrl.recipe.scale import Scale
from rankrl.reward.grade import Grader

Items = tuple[list[Item], list[Item]]
KEYS = ("data.train", "data.evaluation")
MOST_UNMATCHED = 0.05
"""Share of a file's golds that may be such that no answer is right; more are an error."""
BATCH = 1000
STRETCHED = ("su", "longrope", "llama3")


def check_ready(scale: Scale, items: Items, directory: Path | None = None) -> list[str]:
    """Notes on (training items, evaluation items) of a scale, a line each.

    `directory` is that of the base; None looks for it on this machine, in the hub's cache too, and
    a note says if there is no tokenizer. Raises ValueError, one line, for what no run would take:
    no chat template, an empty prompt or one that is too long, lengths beyond the model's, golds
    that no answer matches.
    """
    here = Path(EMBEDDED.get(scale.model.path, scale.model.path))
    directory = directory or (here if here.is_dir() else None)
    config = _config(scale, directory)
    check_positions(scale, config)
    check_attention(scale, config)
    notes = [note for key, part in zip(KEYS, items, strict=True) for note in check_golds(part, key)]
    tokenizer = tokenizer_here(scale.model, directory)
    if tokenizer is not None:
        check_template(scale, tokenizer)
        check_tokens(scale, tokenizer, config.get("vocab_size"))
        for key, part in zip(KEYS, items, strict=True):
            check_prompts(scale, tokenizer, part, key)
        return notes
    require(directory is None, "model.path", str(directory), "a directory with a tokenizer", "copy its files there")
    return [*notes, f"prompts are not measured: the tokenizer of {scale.model.path} is not here"]


def _config(scale: Scale, directory: Path | None) -> dict[str, Any]:
    """The config.json of the base, of its decoder where that is nested; empty if it is not here."""
    path = directory / "config.json" if directory else config_path(scale.model)
    config = read_config(path) if path and path.is_file() else {}
    return config.get("text_config", config)


def check_positions(scale: Scale, config: dict[str, Any]) -> None:
    """Raises ValueError, one line, for sequences that are longer than the model's positions."""
    most = positions(config)
    asked = scale.lengths.prompt_tokens + scale.lengths.response_tokens
    fine = most is None or asked <= most
    fix = "lengths.prompt_tokens + response_tokens; the engine would refuse to start"
    require(
        fine,
        "lengths",
        asked,
        f"at most {most}, the positions of {scale.model.path} (max_position_embeddings and rope_scaling)",
        fix,
    )


def positions(config: dict[str, Any]) -> int | None:
    """The most positions that the engine takes of a model: vLLM's rule; None if there is no limit.

    Some ways to stretch them (llama3, longrope) have the stretched number in
    max_position_embeddings already; of the others it is the number before, to be multiplied.
    """
    most = config.get("max_position_embeddings") or config.get("n_positions")
    stretched = config.get("rope_scaling") or config.get("rope_parameters") or {}
    by_layer = [part for part in stretched.values() if isinstance(part, dict)]
    if most is None or "gemma3" in str(config.get("model_type")):
        return most
    factor = 1.0
    for part in by_layer or [stretched]:
        kind = part.get("rope_type", part.get("type", "default"))
        if kind not in STRETCHED:
            factor = part.get("factor") or factor
        if kind == "yarn":
            most = part.get("original_max_position_embeddings") or most
    return int(most * factor)


def check_attention(scale: Scale, config: dict[str, Any]) -> None:
    """Raises ValueError, one line, for attention that the trainer would compute as another's.

    transformers' sdpa leaves out a soft cap, and shared prefixes bring a mask without a window.
    """
    model, asked = scale.model, scale.lengths.prompt_tokens + scale.lengths.response_tokens
    capped = bool(config.get("attn_logit_softcapping")) and model.attention == "sdpa"
    fix = f"sdpa leaves out the soft cap of {model.path}"
    require(not capped, "model.attention", model.attention, "eager or flash_attention_2", fix)
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    whole = not model.share_prefixes or window is None or asked <= window
    fix = f"{model.path} looks back {window} tokens, prompt and response have {asked}"
    require(whole, "model.share_prefixes", model.share_prefixes, "false", fix)


def check_prompts(scale: Scale, tokenizer: Any, items: list[Item], key: str) -> None:
    """Raises ValueError, one line, for a prompt of no tokens, or of more than the scale allows."""
    longest, too_long = scale.lengths.prompt_tokens, []
    for start in range(0, len(items), BATCH):
        batch = items[start : start + BATCH]
        texts = [_text(scale, tokenizer, item, key) for item in batch]
        lengths = [len(ids) for ids in as_ids(tokenizer, scale.data, texts)]
        for item, tokens in zip(batch, lengths, strict=True):
            require(tokens > 0, key, item.item_id, "prompts of at least one token", "the item's prompt has none")
        too_long += [(item.item_id, tokens) for item, tokens in zip(batch, lengths, strict=True) if tokens > longest]
    if too_long:
        name, tokens = max(too_long, key=lambda found: found[1])
        raise ValueError(
            f"lengths.prompt_tokens: got {longest}, but {len(too_long):,} of {len(items):,} prompts of {key} are longer; "
            f"the longest, item {name}, has {tokens:,} prompt tokens (scale.lengths.prompt_tokens={tokens}, or drop them)"
        )


def _text(scale: Scale, tokenizer: Any, item: Item, key: str) -> str:
    try:
        return prompt_text(tokenizer, scale.data, item.prompt)
    except Exception as error:  # templates raise what they like, for instance where they know no system turn
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{key}: the template of {scale.model.path} refuses item {item.item_id} ({said})") from error


def check_golds(items: list[Item], key: str) -> list[str]:
    """A note if the grader finds golds wrong that are answered in a box, in another spelling.

    Raises ValueError, one line, if they are more than a few. Another spelling, since a text is
    always right as an answer to itself, read or not. No algebra is needed for right ones.
    """
    golds = list(dict.fromkeys(item.answer for item in items))
    with closing(Grader()) as grader:
        verdicts = grader.grade([f"\\boxed{{{respelled(gold)}}}" for gold in golds], golds)
    bad = {gold for gold, verdict in zip(golds, verdicts, strict=True) if not verdict.correct}
    failing = [item for item in items if item.answer in bad]
    if not failing:
        return []
    first = failing[0]
    said = f"{len(failing):,} of {len(items):,} golds are wrong even as an answer"
    example = f"for instance {first.answer[:60]!r} of item {first.item_id}"
    if len(failing) > MOST_UNMATCHED * len(items):
        raise ValueError(f"{key}: {said}, {example}, allowed: golds that the grader reads (docs/grader.md)")
    return [f"{key}: {said}, {example}: they teach nothing"]


def respelled(gold: str) -> str:
    """A gold in a spelling that no grader should mind: in dollars, and with a full stop."""
    within = f" {gold} " if "$" in gold or "\\(" in gold or "\\[" in gold else f"$ {gold} $"
    return within if gold.endswith((".", ",", ";", "\\")) else f"{within}."
