"""Rows as they were typed: every digit of a number, every key; files that are not read."""

import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankrl.data.exact import read_json
from rankrl.data.gold import gold
from rankrl.data.loading import read_items
from rankrl.data.sources import text
from rankrl.reward.equality import judge

NUMBERS = [
    ("1e23", "100000000000000000000000"),
    ("12345678901234567890.5", "12345678901234567890.5"),
    ("0.1", "0.1"),
    ("1e-7", "0.0000001"),
    ("0.10", "0.10"),
    ("17.00", "17"),
    ("-0.0", "0"),
    ("123456789012345678901234567890", "123456789012345678901234567890"),
]


@pytest.mark.parametrize(("typed", "answer"), NUMBERS)
def test_a_number_of_a_row_keeps_its_digits(typed, answer, tmp_path):
    (tmp_path / "a.jsonl").write_text(f'{{"prompt": "a", "answer": {typed}}}\n')
    assert [item.answer for item in read_items(tmp_path / "a.jsonl", "data.train")] == [answer]
    assert gold(f'{{"ground_truth": {typed}}}') == answer
    assert judge(typed if "e" not in typed else answer, answer) == "correct"


def test_a_float_is_its_shortest_text():
    assert [gold(value) for value in (1e23, 0.1, 1e-7, 2.5e-300)] == [
        "100000000000000000000000", "0.1", "0.0000001", "0." + "0" * 299 + "25",
    ]  # fmt: skip
    assert [text(value) for value in (1e23, 70.0, 0.5, 3, None)] == ["1" + "0" * 23, "70", "0.5", "3", ""]


@pytest.mark.parametrize("typed", ["1e999999999", "1e-999999999", "1e99999999999999999999", "NaN", "-Infinity"])
def test_a_number_out_of_bounds_is_refused_by_line(typed, tmp_path):
    (tmp_path / "a.jsonl").write_text(f'{{"prompt": "a", "answer": {typed}}}\n')
    with pytest.raises(ValueError, match=r"^data.train: line 1 of [^\n]*$"):
        read_items(tmp_path / "a.jsonl", "data.train")


@pytest.mark.parametrize("item_id", ["7.5", "1e999999"])
def test_an_item_id_stays_whole(item_id, tmp_path):
    (tmp_path / "a.jsonl").write_text(f'{{"prompt": "a", "answer": 1, "item_id": {item_id}}}\n')
    with pytest.raises(ValueError, match=r"line 1 of .*its item_id is .*allowed: text, a whole number, or null"):
        read_items(tmp_path / "a.jsonl", "data.train")


@pytest.mark.parametrize(
    "line",
    [
        '{"prompt": "a", "answer": "1", "answer": "2"}',
        '{"prompt": [{"role": "user", "content": "a", "content": "b"}], "answer": "1"}',
    ],
)
def test_a_key_that_a_row_has_twice_is_refused(line, tmp_path):
    (tmp_path / "a.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=r"^data.train: line 1 of .*\(it has '(answer|content)' twice\)$"):
        read_items(tmp_path / "a.jsonl", "data.train")
    assert read_json('{"a": {"b": 1}, "b": {"b": 1}}') == {"a": {"b": 1}, "b": {"b": 1}}


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_a_number_of_parquet_is_the_shortest_of_its_type(kind, tmp_path):
    values = [0.1, 17.0, -2.5, 0.3]
    answers = pa.array(values).cast(kind)
    nested = pa.StructArray.from_arrays([answers, pa.array(["rule"] * 4)], ["ground_truth", "style"])
    for number, column in enumerate((answers, nested)):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(
            pa.table({"prompt": ["a", "b", "c", "d"], "answer": column, "item_id": pa.array([1.0, 2, 3, 4])}), path
        )
        found = read_items(path, "data.train")
        assert [item.answer for item in found] == ["0.1", "17", "-2.5", "0.3"]
        assert [item.item_id for item in found] == ["1", "2", "3", "4"]


def test_a_text_of_parquet_that_is_no_utf8_is_named(tmp_path):
    text = pa.array([b"1+1?", b"gr\xfcn"])
    broken = pa.StringArray.from_buffers(2, *text.buffers()[1:])
    pq.write_table(pa.table({"prompt": ["a", "b"], "answer": broken}), tmp_path / "a.parquet")
    with pytest.raises(
        ValueError, match=r"^data.train: the column answer of .*a.parquet is no UTF-8 text in row 2 [^\n]*$"
    ):
        read_items(tmp_path / "a.parquet", "data.train")


ROW = '{"prompt": "a", "answer": "1"}\n'
FOREIGN = {
    "a.jsonl": [
        (ROW.encode("utf-16"), "UTF-16 text"), (ROW.encode("utf-32"), "UTF-32 text"), (b"BZh91AY", "packed by bzip2"),
        (b"\xfe\xff" + ROW.encode("utf-16-be"), "UTF-16 text"), (b"PAR1", "Parquet"), (b"  \n[" + ROW.encode(), "JSON array"),
        (gzip.compress(b"[" + ROW.encode() + b"]"), "JSON array"),
    ],
    "a.jsonl.xz": [(lzma.compress(ROW.encode()), "packed by xz")],
    "a.jsonl.zst": [(b"\x28\xb5\x2f\xfd\x04\x00", "packed by zstd")],
    "a.zip": [(b"PK\x03\x04", "a zip archive")],
    "a.json": [(json.dumps([json.loads(ROW)], indent=1).encode(), "JSON array")],
    "a.csv": [(b"prompt,answer\na,1\n", "a table")],
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_another_format_is_named(name, tmp_path):
    for content, says in FOREIGN[name]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"^data.train: .*{says}, allowed: JSONL, one JSON object a line[^\n]*$"):
            read_items(tmp_path / name, "data.train")
