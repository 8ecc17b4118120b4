"""From the rows of sources to the items of a scale: copies, leaks, files.

test_sources.py tests how each source is read.
"""

import hashlib
import json
import random
import resource

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from rankrl.cli import main
from rankrl.data.drawing import split
from rankrl.data.items import Item
from rankrl.data.loading import load_items
from rankrl.data.mixture import build
from rankrl.data.prompt import load_tokenizer, prompt_text, short_enough
from rankrl.data.sources import SOURCES
from rankrl.recipe.load import find_scale, load_scale, read_yaml
from rankrl.recipe.scale import Data


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_shares_are_whole():
    assert split(10, {"a": 1, "b": 1, "c": 1}) == {"a": 4, "b": 3, "c": 3}
    assert split(24000, {"a": 2, "b": 6, "c": 1}) == {"a": 5333, "b": 16000, "c": 2667}


def words(count):
    rng = random.Random(0)
    return ["".join(rng.choices("abcdefghilmnoprstu", k=7)) for _ in range(count)]


WORDS = words(3000)


def story(i, words=40):
    """A problem of 40 words with three numbers that depend on `i`."""
    rng = random.Random(i)
    text = rng.choices(WORDS, k=words)
    for place in (5, 15, 25):
        text[place] = str(rng.randint(10, 99999))
    return " ".join(text)


def reworded(text, place=32):
    """`text` with one word replaced: 35 of 41 shingles are in common."""
    text = text.split()
    text[place] = "quite"
    return " ".join(text)


def gsm(prompt, answer):
    return {"question": prompt, "answer": f"...\n#### {answer}"}


def planted():
    """Rows of four sources, with copies of each kind."""
    gsm8k = [gsm(story(i), i) for i in range(100)]
    gsm8k += [gsm(story(i).upper() + "?", i) for i in range(10)]  # exact duplicates
    gsm8k += [gsm(reworded(story(i)), i) for i in range(10, 17)]  # near-copies
    gsm8k += [gsm(reworded(story(i)), i + 1) for i in range(20, 23)]  # another answer: another question
    gsm8k += [gsm(story(30), 31)]  # two answers
    gsm8k += [gsm("No answer here?", "")]
    math = [{"problem": story(i), "solution": f"\\boxed{{{i}}}", "level": "Level 2"} for i in range(1000, 1100)]
    math += [{"problem": story(i), "solution": f"\\boxed{{{i}}}", "level": "Level 2"} for i in range(5)]  # in gsm8k
    math += [
        {"problem": story(i), "solution": f"\\boxed{{{i}}}", "level": "Level 2"} for i in range(2000, 2004)
    ]  # leaks
    math += [
        {"problem": reworded(story(i)), "solution": "\\boxed{1}", "level": ""} for i in range(2004, 2010)
    ]  # near leaks
    math += [
        {"problem": f"Read this first, slowly: {story(2010)} Why so?", "solution": "\\boxed{1}", "level": ""}
    ]  # quoted
    math += [{"problem": story(3000, 400), "solution": "\\boxed{1}", "level": ""}]  # long
    math500 = [{"problem": story(i), "answer": str(i), "level": 3} for i in range(2000, 2020)]
    return {"gsm8k": gsm8k, "math": math, "math500": math500}


def mixture_scale(tmp_path, rows, **data):
    """nano's model with a mixture of local files."""
    origin = {name: {"path": str(write_rows(tmp_path / f"{name}.jsonl", found))} for name, found in rows.items()}
    mixture = {"train": {"gsm8k": 3, "math": 1}, "evaluation": {"math500": 20, "gsm8k": 10}, "origin": origin}
    config = read_yaml(find_scale("nano"), "scale") | {
        "name": "small",
        "lengths": {"prompt_tokens": 600, "response_tokens": 8},
    }
    config["data"] = {
        "train": str(tmp_path / "out" / "train.parquet"),
        "evaluation": str(tmp_path / "out" / "eval.parquet"),
        "train_items": 100,
        "eval_items": 30,
        "mixture": mixture,
    } | data
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def files(directory):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in directory.iterdir()}


def test_a_mixture_counts_what_it_drops(tmp_path, capsys):
    path = mixture_scale(tmp_path, planted())
    assert main(["data", str(path), "--to", str(tmp_path / "out")]) == 0
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    shown = capsys.readouterr().out
    assert "100 training and 30 evaluation items" in shown and "| gsm8k | duplicate | 11 |" in shown
    found = {name: (s["rows"], s["dropped"], s["train"], s["eval"]) for name, s in card["sources"].items()}
    assert found["math500"] == (20, {}, 0, 20)
    dropped = {"duplicate": 11, "near-copy": 7, "no answer": 1, "two answers": 1}
    assert found["gsm8k"] == (122, dropped, 75, 10)
    dropped = found["math"][1]
    too_long = dropped.pop("prompt too long", 0)
    assert dropped == {"copy of an evaluation item": 4, "duplicate": 5, "near-copy of an evaluation item": 7}
    assert (too_long in (0, 1), found["math"][2:]) == (True, (25, 0))
    train, evaluation = load_items(load_scale(str(path)).data)
    assert (len(train), len(evaluation)) == (100, 30)
    assert {item.source for item in train} == {"gsm8k", "math"}
    leaked = {story(i) for i in range(2000, 2020)} | {reworded(story(i)) for i in range(2000, 2020)}
    assert not leaked & {item.prompt for item in train} and len(leaked & {item.prompt for item in evaluation}) == 20
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_shuffled_rows_give_the_same_bytes(tmp_path):
    rows = planted()
    build(load_scale(str(mixture_scale(tmp_path / "a", rows))), tmp_path / "a" / "out", short_enough)
    for found in rows.values():
        random.Random(1).shuffle(found)
    build(load_scale(str(mixture_scale(tmp_path / "b", rows))), tmp_path / "b" / "out", short_enough)
    first, second = files(tmp_path / "a" / "out"), files(tmp_path / "b" / "out")
    assert first == second and sorted(first) == ["README.md", "card.json", "eval.parquet", "train.parquet"]


def test_another_seed_draws_others_and_what_lacks_is_shared(tmp_path):
    scale = load_scale(str(mixture_scale(tmp_path, planted())))
    words = load_scale(
        str(tmp_path / "small.yaml"), {"data": {"mixture": {"seed": 1, "train": {"math": 30}}, "train_items": 140}}
    )
    build(scale, tmp_path / "one", short_enough)
    build(words, tmp_path / "two", short_enough)
    assert files(tmp_path / "one")["eval.parquet"] != files(tmp_path / "two")["eval.parquet"]
    card = json.loads((tmp_path / "two" / "card.json").read_text())["sources"]
    assert (card["gsm8k"]["train"], card["math"]["train"]) == (40, 100)  # math has no 127
    assert card["math"]["dropped"]["prompt too long"] == 1


def test_batches_and_sources_without_an_answer_are_passed_over(tmp_path, capsys):
    rows = planted()
    rows["gsm8k"] = [gsm(f"What is {i}?", "") for i in range(2001)] + rows["gsm8k"]
    rows["math"] = [{"problem": "x?", "solution": "none", "level": ""}]
    path = mixture_scale(tmp_path, rows, train_items=50)
    assert main(["data", str(path), "--to", str(tmp_path / "out")]) == 0
    sources = json.loads((tmp_path / "out" / "card.json").read_text())["sources"]
    assert sources["gsm8k"]["dropped"]["no answer"] == 2002 and sources["math"]["dropped"] == {"no answer": 1}
    assert (sources["gsm8k"]["train"], sources["math"]["train"]) == (50, 0)
    for name, row in (("gsm8k", gsm("x", "")), ("math500", {"problem": "x?", "answer": "", "level": ""})):
        rows[name] = [row]
    path = mixture_scale(tmp_path / "none", rows)
    assert main(["data", str(path), "--to", str(tmp_path / "none" / "out")]) == 2
    assert "data.mixture: got 'no question', allowed: sources with verifiable answers" in capsys.readouterr().err


def broken(tmp_path):
    """Case -> (overrides, expected message)."""
    other = write_rows(tmp_path / "other.jsonl", [{"problem": "x"}])
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "damaged.parquet").write_text("no parquet")
    (tmp_path / "nothing").mkdir()
    odd = write_rows(tmp_path / "odd.jsonl", [{"ID": "1", "Year": "MM", "Question": "x", "Answer": "1"}])
    origin = "data.mixture.origin.gsm8k"
    at = f"scale.{origin}.path="
    return {
        "missing": ([at + "no.jsonl"], f"{origin}.path: got 'no.jsonl', allowed: an existing file or directory"),
        "column": ([at + str(other)], f"{origin}: columns: got ['problem'], allowed: with answer, question"),
        "empty": ([at + str(tmp_path / "empty.jsonl")], f"{origin}: "),
        "damaged": ([at + str(tmp_path / "damaged.parquet")], "is not readable"),
        "no files": ([at + str(tmp_path / "nothing")], "files of one kind: .jsonl, .json, .parquet, .csv"),
        "layout": (
            ["scale.data.mixture.train.aime_past=1", f"scale.data.mixture.origin.aime_past.path={odd}"],
            "a row is not as expected",
        ),
        "too few": (
            ["scale.data.train_items=500"],
            "data.train_items: got 500, allowed: at most the 192 that are left",
        ),
        "too few to evaluate": (
            ["scale.data.mixture.evaluation.math500=21", "scale.data.eval_items=31"],
            "data.mixture.evaluation.math500: got 21, allowed: at most the 20 that are left",
        ),
        "sum": (
            ["scale.data.eval_items=31"],
            "data.eval_items: got 31, allowed: 30, the sum of data.mixture.evaluation",
        ),
        "source": (["scale.data.mixture.train.mathx=1"], "data.mixture: got 'mathx', allowed: gsm8k"),
        "weight": (["scale.data.mixture.train.math=0"], "data.mixture.train.math: got 0.0, allowed: a weight above 0"),
        "unused": (["scale.data.mixture.origin.dapo.path=x"], "data.mixture.origin.dapo"),
        "model": (["scale.model.path=no/model"], "model.path: the tokenizer of no/model is not to be had"),
        "chat": (["scale.data.template=chat"], "has no chat template"),
        "thinking": (["scale.data.thinking=true"], "data.thinking: got True, allowed: null"),
    }


CASES = [
    *(
        "missing",
        "column",
        "empty",
        "damaged",
        "no files",
        "layout",
        "too few",
        "too few to evaluate",
        "sum",
        "source",
        "weight",
    ),
    *("unused", "model", "chat", "thinking"),
]


@pytest.mark.parametrize("case", CASES)
def test_trouble_is_one_line(case, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    path = mixture_scale(tmp_path, planted())
    words, says = broken(tmp_path)[case]
    assert main(["data", str(path), "--to", str(tmp_path / "out"), *words]) == 2
    told = capsys.readouterr().err
    assert says in told and told.count("\n") == 1 and "Traceback" not in told
    assert not (tmp_path / "out").exists() and not [e for e in tmp_path.iterdir() if e.name.startswith(".out")]


def test_an_unreachable_hub_says_how_to_go_on_without(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    rows = planted()
    del rows["gsm8k"]
    path = mixture_scale(tmp_path, rows)
    assert main(["data", str(path), "--to", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "hf download --repo-type dataset openai/gsm8k" in told and "scale.data.mixture.origin.gsm8k.path=DIR" in told
    (tmp_path / "out").mkdir()
    assert main(["data", str(path), "--to", str(tmp_path / "out")]) == 2
    assert "does not exist yet" in capsys.readouterr().err
    assert main(["data", "nano", "--to", str(tmp_path / "new")]) == 2
    assert "scale nano has none" in capsys.readouterr().err


def test_items_are_read_from_parquet(tmp_path):
    columns = {"prompt": ["1+1", "2+2"], "answer": ["2", "4"], "level": ["", ""]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    pq.write_table(
        pa.table({"prompt": ["3+3"], "answer": ["6"], "item_id": ["x"], "source": ["s"]}), tmp_path / "b.parquet"
    )
    train, evaluation = load_items(Data(str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet"), 2, 1))
    assert train == [Item("train-a-1", "a", "1+1", "2"), Item("train-a-2", "a", "2+2", "4")]
    assert evaluation == [Item("x", "s", "3+3", "6")]
    pq.write_table(pa.table({"prompt": ["3+3"]}), tmp_path / "c.parquet")
    pq.write_table(pa.table({"prompt": ["3+3"], "answer": pa.array([None], pa.string())}), tmp_path / "d.parquet")
    (tmp_path / "e.parquet").write_text("no")
    for name, says in (
        ("c", "columns answer"),
        ("d", "line 1"),
        ("e", "no readable Parquet"),
        ("f", "rankrl data SCALE --to"),
    ):
        with pytest.raises(ValueError, match=says):
            load_items(Data(str(tmp_path / f"{name}.parquet"), str(tmp_path / "b.parquet"), 1, 1))


QWEN = ("qwen3-8b", "qwen3-30b-a3b", "qwen3-235b-a22b")


@pytest.mark.parametrize("name", QWEN)
def test_qwen3_scales_are_complete(name):
    scale = load_scale(name)
    data, mixture = scale.data, scale.data.mixture
    assert mixture == load_scale("qwen3-8b").data.mixture
    assert (data.train, data.evaluation) == (f"data/{name}/train.parquet", f"data/{name}/eval.parquet")
    assert (data.train_items, data.eval_items, data.template, data.thinking) == (24000, 1330, "chat", True)
    assert sum(mixture.evaluation.values()) == 1330 and set(mixture.sources) <= set(SOURCES)
    assert mixture.sources[:4] == ["math500", "gsm8k_test", "aime24", "aime25"]
    assert split(24000, mixture.train)["math"] == 6000
    assert data.instruction == "Please reason step by step, and put your final answer within \\boxed{}."
    sampling = scale.sampling
    assert (sampling.temperature, sampling.eval_temperature, sampling.eval_samples) == (1.0, 1.0, 4)


def test_instruction_and_thinking_reach_the_template():
    tokenizer = load_tokenizer(load_scale("nano").model)
    assert prompt_text(tokenizer, Data("nano", "nano", 1, 1), "1+1") == "1+1"
    assert (
        prompt_text(tokenizer, Data("nano", "nano", 1, 1, "Q: {} A:", "In \\boxed{}."), "1+1")
        == "Q: 1+1\n\nIn \\boxed{}. A:"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if enable_thinking is defined and not enable_thinking %}<no think>{% endif %}"
    )
    shown = [
        prompt_text(tokenizer, Data("nano", "nano", 1, 1, "chat", "Box.", on), "1+1") for on in (None, True, False)
    ]
    assert shown == ["<user>1+1\n\nBox."] * 2 + ["<user>1+1\n\nBox.<no think>"]


def test_near_copies_of_a_copy_that_goes_stay(tmp_path):
    """a is near b and b is near c, but a is not near c: b is removed and c stays."""
    from rankrl.data import dedup
    from rankrl.data.spool import Columns, Shingles

    sets = np.array([[1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 6]], dtype=np.uint64) << np.uint64(50)
    (tmp_path / "s.bin").write_bytes(sets.tobytes())
    zero = np.zeros(3, dtype=np.uint64)
    rows = Columns(zero, zero, np.arange(3, dtype=np.uint64), zero, zero, np.full(3, 4))
    found = Shingles(tmp_path / "s.bin", rows.shingles)
    often = dedup.frequencies(found, np.arange(3))
    assert dedup.near(rows, found, np.arange(3), np.arange(3), often, 0.6).tolist() == [1]
    assert dedup.near(rows, found, np.arange(3), np.array([1, 0, 2]), often, 0.6).tolist() == [0, 2]
    assert dedup.near(rows, found, np.arange(3), np.arange(3), often, 0.61).tolist() == []


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, capsys):
    path = mixture_scale(tmp_path, planted())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        code = main(["data", str(path), "--to", str(tmp_path / "out")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    told = capsys.readouterr().err
    assert code == 1 and told.startswith("rankrl: ") and told.count("\n") == 1
    assert not (tmp_path / "out").exists() and not [e for e in tmp_path.iterdir() if e.name.startswith(".out")]
