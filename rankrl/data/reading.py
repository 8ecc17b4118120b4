"""Reads the rows of a source, streaming, from the hub or from local files.

Both go through the library `datasets`. No code of a data set is run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rankrl.data.lines import line_no_text
from rankrl.data.sources import Row, Source
from rankrl.recipe.mixture_section import Origin
from rankrl.recipe.require import require

BATCH_ROWS = 1000
READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


def commit(name: str, source: Source, origin: Origin) -> str:
    """The commit that the origin's revision stands for on the hub.

    Raises ValueError, one line, if the hub cannot be asked or does not know it.
    """
    from huggingface_hub import dataset_info

    try:
        return str(dataset_info(source.hub, revision=origin.revision).sha)
    except Exception as error:  # no network, no such repository or revision, no access: each has its own class
        raise ValueError(
            f"data.mixture.origin.{name}: {source.hub} at {origin.revision} is not to be had from the hub "
            f"({_short(error)}); elsewhere: hf download --repo-type dataset {source.hub} --local-dir DIR, then here: "
            f"scale.data.mixture.origin.{name}.path=DIR"
        ) from error


def read(name: str, source: Source, origin: Origin, revision: str | None) -> Iterator[list[Row]]:
    """Batches of rows with the source's columns, at most `origin.rows` rows in all.

    `revision` is a commit of the hub, or None for local files. Raises ValueError, one line, for a
    missing file, config, split or column, damaged files, or a source without rows.
    """
    key, left, seen = f"data.mixture.origin.{name}", origin.rows, 0
    for part in _parts(key, source, origin):
        for rows in _batches(key, source, part | ({"revision": revision} if revision else {})):
            kept = rows if left is None else rows[: left - seen]
            seen += len(kept)
            yield kept
            if seen == left:
                return
    require(seen > 0, key, "no rows", "a source with rows", origin.path or source.hub)


def _parts(key: str, source: Source, origin: Origin) -> list[dict[str, Any]]:
    """The arguments of each call of `load_dataset`.

    One call for each (config, split) of a repository or a copy of it, or one for plain files.
    """
    if origin.path is None:
        return [{"path": source.hub, "name": config, "split": split} for config, split in source.parts]
    path = Path(origin.path)
    require(path.exists(), f"{key}.path", origin.path, "an existing file or directory")
    if (path / "README.md").is_file():
        return [{"path": str(path), "name": config, "split": split} for config, split in source.parts]
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if _ending(file) in READERS)
    endings = {_ending(file) for file in files}
    fine = len(files) > 0 and len(endings) == 1 and endings <= set(READERS)
    require(fine, f"{key}.path", origin.path, f"files of one kind: {', '.join(READERS)}")
    return [{"path": READERS[_ending(files[0])], "data_files": [str(file) for file in files], "split": "train"}]


def _ending(file: Path) -> str:
    """The ending of a file's name in lower case, without that of a compressed one: .jsonl."""
    return Path(file.name.lower().removesuffix(".gz")).suffix


def _batches(key: str, source: Source, part: dict[str, Any]) -> Iterator[list[Row]]:
    from datasets import disable_progress_bars, load_dataset, logging

    disable_progress_bars()
    logging.set_verbosity(logging.CRITICAL)  # what it logs as an error it also raises
    try:
        stream = load_dataset(**part, streaming=True).with_format("arrow")
        for table in stream.iter(batch_size=BATCH_ROWS):
            missing = sorted(set(source.columns) - set(table.column_names))
            require(not missing, f"{key}: columns", sorted(table.column_names), f"with {', '.join(missing)}")
            here = [column for column in source.columns + source.extra if column in table.column_names]
            yield table.select(here).to_pylist()
    except Exception as error:
        # For each kind of trouble the library raises its own class, or one of pyarrow, fsspec or
        # the hub.
        told = str(error) if isinstance(error, ValueError) and str(error).startswith(key) else None
        raise ValueError(told or f"{key}: {_place(part)} is not readable ({_short(error)})") from error


def _place(part: dict[str, Any]) -> str:
    """What could not be read: the line of a file, where one is no UTF-8 text."""
    for file in part.get("data_files", []) if part["path"] in ("json", "csv") else []:
        if number := line_no_text(Path(file)):
            return f"line {number} of {file}, which is no UTF-8 text,"
    return " ".join(str(part[field]) for field in ("data_files", "path", "name", "split") if field in part)


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
