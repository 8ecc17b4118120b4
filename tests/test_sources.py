"""From the rows of a data set to questions. Everything is read from local files with `datasets`."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from test_data import write_rows

from rankrl.data.gold import gold
from rankrl.data.reading import read
from rankrl.data.sources import SOURCES, Question, accepted, unfit
from rankrl.data.text import bare, key, numbers, shingles, tokens
from rankrl.recipe.mixture_section import Origin

RAW_DAPO = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: $Answer "
    "(without quotes) where $Answer is the answer to the problem.\n\nFind $x$ if $2x = 68$.\n\n"
    'Remember to put your answer on its own line after "Answer:".'
)
MADE_SURE = "Solve the following math problem. Make sure to put the answer (and only answer) inside \\boxed{}.\n\n"
SAMPLES = {  # source -> (a row in the hub's column layout, the question that is made of it)
    "gsm8k": (
        {
            "question": "Ann has 1,000 apples and 72 pears. Together?",
            "answer": "1000+72=<<1000+72=1072>>1072\n#### 1,072",
        },
        Question("Ann has 1,000 apples and 72 pears. Together?", "1072"),
    ),
    "gsm8k_test": ({"question": "2 and 2?", "answer": "2+2=4\n#### 4"}, Question("2 and 2?", "4")),
    "math": (
        {"problem": "Halve 3.", "level": "Level 1", "type": "Algebra", "solution": "So $\\boxed{\\frac{3}{2}}$."},
        Question("Halve 3.", "\\frac{3}{2}", "Level 1"),
    ),
    "math500": (
        {
            "problem": "Halve 3.",
            "solution": "So $\\boxed{\\frac{3}{2}}$.",
            "answer": "\\frac{3}{2}",
            "subject": "Algebra",
            "level": 1,
            "unique_id": "test/algebra/1.json",
        },
        Question("Halve 3.", "\\frac{3}{2}", "1"),
    ),
    "openr1": (
        {
            "problem": "Solve $x^2=4$, $x>0$.",
            "solution": "...",
            "answer": "2",
            "problem_type": "Algebra",
            "question_type": "math-word-problem",
            "source": "olympiads",
            "uuid": "u",
            "generations": ["<think>...</think>"],
            "correctness_math_verify": [True],
        },
        Question("Solve $x^2=4$, $x>0$.", "2"),
    ),
    "dapo": (
        {
            "prompt": "Find $x$ if $2x = 68$.",
            "solution": "34",
            "data_source": "math_dapo",
            "source_prompt": [{"content": RAW_DAPO, "role": "user"}],
            "ability": "MATH",
            "reward_model": {"ground_truth": "34", "style": "rule-lighteval/MATH_v2"},
            "extra_info": {"index": "a"},
        },
        Question("Find $x$ if $2x = 68$.", "34"),
    ),
    "dapo_raw": (
        {
            "data_source": "math_dapo",
            "prompt": [{"content": RAW_DAPO, "role": "user"}],
            "ability": "MATH",
            "reward_model": {"ground_truth": "34", "style": "rule-lighteval/MATH_v2"},
            "extra_info": {"index": "a"},
        },
        Question("Find $x$ if $2x = 68$.", "34"),
    ),
    "nemotron": (
        {
            "uuid": "u",
            "license": "cc-by-4.0",
            "generator": "DeepSeek-R1-0528",
            "version": "v1",
            "category": "math",
            "reasoning": "on",
            "messages": [
                {
                    "role": "user",
                    "content": MADE_SURE + "3*3?",
                },
                {"role": "assistant", "content": "<think>\\boxed{8}? no</think> It is \\boxed{9}."},
            ],
        },
        Question("3*3?", "9"),
    ),
    "openthoughts": (
        {
            "system": "Your role ...",
            "conversations": [
                {"from": "user", "value": "Return your final response within \\boxed{}. What is $7 - 2$?"},
                {"from": "assistant", "value": "<|begin_of_solution|> \\boxed{5} <|end_of_solution|>"},
            ],
        },
        Question("What is $7 - 2$?", "5"),
    ),
    "aime_past": (
        {"ID": "1983-1", "Year": 1983, "Problem Number": 1, "Question": "Find $n$.", "Answer": "60", "Part": None},
        Question("Find $n$.", "60", "1983"),
    ),
    "aime24": (
        {"id": 60, "problem": "Find $m+n$.", "solution": "...", "answer": "204", "url": "https://x", "year": "2024"},
        Question("Find $m+n$.", "204"),
    ),
    "aime25": ({"question": "Find all $b$.", "answer": 70}, Question("Find all $b$.", "70")),
}


def rows_of(name, path, **options):
    return [row for batch in read(name, SOURCES[name], Origin(str(path), **options), None) for row in batch]


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_is_read_in_its_own_layout(name, tmp_path):
    row, question = SAMPLES[name]
    path = write_rows(tmp_path / "train.jsonl", [row])
    assert [accepted(found, SOURCES[name]) for found in rows_of(name, path)] == [question]


def test_every_source_has_a_sample():
    assert set(SAMPLES) == set(SOURCES) and len(SOURCES) == 12


def test_directories_parquet_csv_and_snapshots_are_read_alike(tmp_path):
    row, _ = SAMPLES["gsm8k"]
    table = pa.Table.from_pylist([row, row])
    (tmp_path / "parquet").mkdir()
    pq.write_table(table, tmp_path / "parquet" / "a.parquet")
    pq.write_table(table, tmp_path / "parquet" / "b.parquet")
    assert len(rows_of("gsm8k", tmp_path / "parquet")) == 4
    assert len(rows_of("gsm8k", tmp_path / "parquet", rows=3)) == 3
    snapshot = tmp_path / "snapshot"  # what `hf download` makes
    for split_name, count in (("train", 2), ("test", 1)):
        (snapshot / "main").mkdir(parents=True, exist_ok=True)
        pq.write_table(table.slice(0, count), snapshot / "main" / f"{split_name}-00000-of-00001.parquet")
    files = [{"split": name, "path": f"main/{name}-*"} for name in ("train", "test")]
    (snapshot / "README.md").write_text(
        f"---\n{yaml.dump({'configs': [{'config_name': 'main', 'data_files': files}]})}---\n"
    )
    assert (len(rows_of("gsm8k", snapshot)), len(rows_of("gsm8k_test", snapshot))) == (2, 1)
    aime = tmp_path / "AIME_Dataset_1983_2024.csv"
    aime.write_text(
        "ID,Year,Problem Number,Question,Answer,Part\n1983-1,1983,1,Find n.,60,\n2024-1,2024,1,Find m.,9,II\n"
    )
    found = [accepted(row, SOURCES["aime_past"]) for row in rows_of("aime_past", aime)]
    assert found == [Question("Find n.", "60", "1983"), "held out"]


@pytest.mark.parametrize(
    ("prompt", "answer", "reason"),
    [
        ("", "1", "no prompt"),
        ("Prove it.", "proof", "no answer"),
        ("x?", "", "no answer"),
        ("x?", "It is as it was before", "answer is prose"),
        ("x?", "1+" * 200 + "1", "answer is prose"),
        ("x?", "1" * 201, None),
        ("x?", "17\n18", "answer is prose"),
        ("x?", "['17']", "answer is prose"),
        ("x?", "...", "no answer"),
        ("Look: ![](https://cdn/x.jpg) area?", "3", "needs a figure"),
        ("Which? (A) 1 (B) 2 (C) 3", "B", "multiple choice"),
        ("Which? $\\textbf{(A)}\\ 1 \\textbf{(B)}\\ 2$", "\\text{(B)}", "multiple choice"),
        ("Which letter comes first?", "A", None),
        ("Which is it?", "\\text{Evelyn}", None),
        ("x?", "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}", None),
    ],
)
def test_answers_that_cannot_be_verified_are_dropped(prompt, answer, reason):
    assert unfit(Question(prompt, answer)) == reason


def test_the_answer_of_a_question_is_what_a_run_reads():
    row = SAMPLES["math"][0] | {"solution": "\\boxed{\\begin{pmatrix} 1 \\\\\n\n2 \\end{pmatrix}}"}
    found = accepted(row, SOURCES["math"])
    assert found.answer == "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}" == gold(found.answer)
    assert accepted(SAMPLES["dapo"][0] | {"solution": "= 34"}, SOURCES["dapo"]).answer == "34"


def test_a_proof_of_openr1_is_dropped():
    row = SAMPLES["openr1"][0] | {"question_type": "proof"}
    assert accepted(row, SOURCES["openr1"]) == "proof"


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("Find $x$, if  X = 1,000.", "find x if \\left x = 1000", True),
        ("\\dfrac{1}{2} of $x^{2}$?", "\\frac12 of x^2", False),  # 12 is another number than 1 2
        ("\\dfrac{1}{2} of $x^{2}$?", "\\tfrac{1}{2} of x^2", True),
        ("$x \\leqslant 3$", "x \\le 3", True),
        ("$x \\leqslant 3$", "x \\geqslant 3", False),
        ("x + 2", "x - 2", False),
        ("x^{a+b}", "x^a+b", False),
        ("n!", "n", False),
        ("3.5 m", "35 m", False),
        ("f'(x)", "f(x)", False),
    ],
)
def test_what_counts_as_the_same_text(a, b, same):
    assert (key(tokens(a)) == key(tokens(b))) is same


def test_shingles_and_numbers():
    flat, count = shingles([list("abcabc"), ["a"], list("abc")])
    assert count.tolist() == [3, 1, 1]  # abc, bca, cab; one short text; abc
    assert flat[4] in flat[:3] and flat[3] not in flat[:3]
    assert numbers(tokens("3 cats, 1.5 dogs")) == numbers(tokens("1.5 cats or 3")) != numbers(tokens("1 cat, 3.5 dogs"))
    assert bare(RAW_DAPO) == "Find $x$ if $2x = 68$."


@pytest.mark.parametrize("name", ["a.JSONL", "a.jsonl.gz", "a.JSONL.GZ"])
def test_a_file_is_read_whatever_its_ending(tmp_path, name):
    text = json.dumps({"question": "1+1", "answer": "#### 2"}).encode() + b"\n"
    (tmp_path / name).write_bytes(gzip.compress(text) if "gz" in name.lower() else text)
    for path in (tmp_path / name, tmp_path):
        found = list(read("gsm8k", SOURCES["gsm8k"], Origin(path=str(path)), None))
        assert found == [[{"question": "1+1", "answer": "#### 2"}]]


def test_a_line_that_is_no_utf8_is_named(tmp_path):
    text = b'{"question": "1+1", "answer": "#### 2"}\n{"question": "gr\xfcn", "answer": "#### 2"}\n'
    (tmp_path / "a.jsonl").write_bytes(text)
    with pytest.raises(ValueError, match=r"line 2 of \S*a\.jsonl, which is no UTF-8 text"):
        list(read("gsm8k", SOURCES["gsm8k"], Origin(path=str(tmp_path / "a.jsonl")), None))
