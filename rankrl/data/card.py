"""Writes the files of a mixture: Parquet, card.json and README.md. Equal items give equal bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rankrl.data.drawing import Drawn, Ledger
from rankrl.data.sources import SOURCES
from rankrl.recipe.require import require
from rankrl.recipe.scale import Scale

SCHEMA = pa.schema([(name, pa.string()) for name in ("item_id", "source", "prompt", "answer", "level")])


def write(scale: Scale, train: Drawn, evaluation: Drawn, ledgers: dict[str, Ledger], to: Path) -> None:
    """Writes all files into the new directory `to`.

    Raises ValueError if the numbers of distinct items are not those of the scale.
    """
    to.mkdir()
    hashes = {}
    for name, drawn, count in (
        ("train.parquet", train, scale.data.train_items),
        ("eval.parquet", evaluation, scale.data.eval_items),
    ):
        rows = [
            (item.item_id, item.source, item.prompt, item.answer, level)
            for found in drawn.values()
            for item, level in found
        ]
        require(
            len(rows) == count and len({row[0] for row in rows}) == count, name, len(rows), f"{count} distinct items"
        )
        table = pa.table([list(column) for column in zip(*rows, strict=True)], schema=SCHEMA)
        pq.write_table(table, to / name, compression="zstd")
        hashes[name] = hashlib.sha256((to / name).read_bytes()).hexdigest()
    card = content(scale, train, evaluation, ledgers, hashes)
    (to / "card.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    (to / "README.md").write_text(readme(card))


def content(
    scale: Scale, train: Drawn, evaluation: Drawn, ledgers: dict[str, Ledger], hashes: dict[str, str]
) -> dict[str, Any]:
    """The content of card.json. `hashes`: file name -> sha256."""
    mixture = scale.data.mixture
    assert mixture is not None
    return {
        "scale": scale.name,
        "train_items": scale.data.train_items,
        "eval_items": scale.data.eval_items,
        "seed": mixture.seed,
        "near": mixture.near,
        "leak": mixture.leak,
        "prompt_tokens": scale.lengths.prompt_tokens,
        "tokenizer": scale.model.path,
        "sources": {name: _source(name, ledger, train, evaluation) for name, ledger in ledgers.items()},
        "sha256": hashes,
    }


def _source(name: str, ledger: Ledger, train: Drawn, evaluation: Drawn) -> dict[str, Any]:
    source = SOURCES[name]
    return {
        "hub": source.hub,
        "parts": ["/".join(part) for part in source.parts],
        "revision": ledger.revision,
        "licence": source.licence,
        "rows": ledger.read,
        "rows_hash": f"{ledger.content:016x}",
        "dropped": dict(sorted(ledger.dropped.items())),
        "train": len(train.get(name, [])),
        "eval": len(evaluation.get(name, [])),
    }


def readme(card: dict[str, Any]) -> str:
    """The text of README.md, from the content of card.json."""
    sources = card["sources"]
    lines = [
        f"# Mathematics mixture of scale {card['scale']}",
        f"{card['train_items']:,} training and {card['eval_items']:,} evaluation items by `rankrl data`, seed {card['seed']}.",
        f"Prompts have at most {card['prompt_tokens']:,} tokens of {card['tokenizer']}, template and instruction included.",
        "Each item keeps the licence of its source.",
        "",
        "| source | data set | revision | licence | rows | train | eval |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {name} | {s['hub']} | {s['revision']} | {s['licence']} | {s['rows']:,} | {s['train']:,} | {s['eval']:,} |"
            for name, s in sources.items()
        ),
        "",
        "Dropped. Prompts are measured only until enough are drawn, so more of them may be too long.",
        "",
        "| source | reason | rows |",
        "| --- | --- | --- |",
        *(f"| {name} | {reason} | {n:,} |" for name, s in sources.items() for reason, n in s["dropped"].items()),
        "",
        *(f"- {name}: sha256 {digest}" for name, digest in card["sha256"].items()),
    ]
    return "\n".join(lines) + "\n"
