"""A file is the old one or the whole new one, whatever happens to its writer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from multiprocessing import get_context

import pytest
from conftest import ROOT

from rankrl.recipe.whole_file import whole_file


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_text_bytes_and_libraries_are_served(tmp_path):
    import pandas as pd

    with whole_file(tmp_path / "a.txt") as part:
        part.write_text("first")
        assert names(tmp_path) == [part.name]
    with whole_file(tmp_path / "a.txt") as part:
        part.write_bytes(b"second")
        assert (tmp_path / "a.txt").read_text() == "first"
    with whole_file(tmp_path / "b.parquet") as part:
        pd.DataFrame({"x": [1, 2]}).to_parquet(part)
    assert (tmp_path / "a.txt").read_text() == "second"
    assert pd.read_parquet(tmp_path / "b.parquet")["x"].tolist() == [1, 2]
    assert names(tmp_path) == ["a.txt", "b.parquet"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), SystemExit(143)])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(type(error)), whole_file(tmp_path / "a.txt") as part:
        part.write_text("half of the n")
        raise error
    assert names(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"


def test_a_disk_that_is_full_at_the_end_of_the_write_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"), whole_file(tmp_path / "a.txt") as part:
        part.write_text("new")
    assert names(tmp_path) == []


def test_a_file_is_on_disk_before_it_takes_the_place_of_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("old")
    seen = []
    monkeypatch.setattr(os, "fsync", lambda _: seen.append((tmp_path / "a.txt").read_text()))
    with whole_file(tmp_path / "a.txt") as part:
        part.write_text("new")
    assert seen == ["old"] and (tmp_path / "a.txt").read_text() == "new"


def write_often(path, letter):
    for _ in range(200):
        with whole_file(path) as part:
            part.write_text(letter * 10_000)


def test_a_link_is_followed_and_a_long_name_is_written(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    long = tmp_path / ("n" * 250)
    for path in (tmp_path / "link.txt", long):
        with whole_file(path) as part:
            part.write_text("new")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "real.txt").read_text() == "new"
    assert long.read_text() == "new" and len([*tmp_path.iterdir()]) == 3


def test_two_processes_may_write_one_file_at_once(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a" * 10_000)
    writers = [get_context("spawn").Process(target=write_often, args=(path, letter)) for letter in "ab"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert path.read_text() in ("a" * 10_000, "b" * 10_000)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert names(tmp_path) == ["a.txt"]


def test_what_a_killed_writer_left_goes_with_a_later_write(tmp_path):
    """A killed writer cannot clean up. Temporary files in use, and those of other files, stay."""
    killed = "from pathlib import Path\nfrom rankrl.recipe.whole_file import whole_file\nimport os, sys\n" + (
        "with whole_file(Path(sys.argv[1])) as part:\n    part.write_text('half')\n    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", killed, str(tmp_path / "state.pt")], cwd=ROOT)
    (left,) = tmp_path.iterdir()
    assert done.returncode == -signal.SIGKILL and left.read_text() == "half"
    (tmp_path / ".other.pt.0.part").touch()
    for path in tmp_path.iterdir():
        os.utime(path, (1, 1))
    (tmp_path / ".state.pt.1.part").touch()
    with whole_file(tmp_path / "state.pt") as part:
        part.write_text("whole")
    assert names(tmp_path) == [".other.pt.0.part", ".state.pt.1.part", "state.pt"]
