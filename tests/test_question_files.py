"""Files of a user's own in every format: what is read, how much of it, and for every fault one line with file, place and mend."""

import json
import math
import tracemalloc

import pytest
from question_excerpts import parquet, table

from gradalign.questions import load_questions, parse_columns
from gradalign.types import GradalignError

PLAIN = [{"question": f"What is {i} plus 1?", "answer": str(i + 1)} for i in range(30)]


def written(path, content) -> str:
    path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content, encoding="utf-8")
    return str(path)


def same_questions(tmp_path) -> list[str]:
    return [
        written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, PLAIN))),
        written(tmp_path / "b.json", json.dumps(PLAIN)),
        written(tmp_path / "c.json", json.dumps({"version": 1, "data": PLAIN, "tags": ["x"]})),
        written(tmp_path / "d.json", "\n".join(map(json.dumps, PLAIN))),
        str(table(tmp_path / "e.csv", PLAIN)),
        str(table(tmp_path / "f.tsv", PLAIN, delimiter="\t")),
        str(parquet(tmp_path / "g.parquet", PLAIN)),
        written(tmp_path / "h.jsonl", b"\xef\xbb\xbf" + "\n".join(map(json.dumps, PLAIN)).encode()),
        written(tmp_path / "i.csv", b"\xef\xbb\xbf" + (tmp_path / "e.csv").read_bytes()),
    ]


def test_every_format_holds_the_same_questions(tmp_path):
    first, *others = [load_questions(file) for file in same_questions(tmp_path)]
    assert [q.answer for q in first] == [row["answer"] for row in PLAIN]
    assert all(found == first for found in others)


FAULTS = {
    "broken.parquet": (b"PAR1 and no more", "broken.parquet is damaged or no parquet file"),
    "empty.parquet": (b"", "empty.parquet is damaged"),
    "noanswer.csv": (
        "question,reply\nx,1\n",
        r"line 2: it has no column for the answer \(columns: question, reply\).*--map answer=COLUMN",
    ),
    "wide.csv": ("question,answer\nx,1,2\n", "line 2: 3 cells under 2 columns"),
    "twice.csv": ("question,answer,answer\nx,1,2\n", "line 1: two columns have the same name"),
    "quotes.csv": ('question,answer\nx,1\n"y" z,2\n', "line 3: .*mend the quotes"),
    "multi.csv": ('question,answer\n"a\nb",1\ny,\n', "line 4: the answer is missing"),
    "latin.csv": ("question,answer\nx,1\n\xe9,2\n".encode("latin-1"), "line 3: not UTF-8"),
    "latin.jsonl": (b'{"question": "x", "answer": "1"}\n{"question": "\xe9", "answer": "1"}', "line 2: not UTF-8"),
    "nothing.csv": ("", "holds no questions"),
    "header.csv": ("question,answer\n", "holds no questions"),
    "empty.json": ("[]", "holds no questions"),
    "scalar.json": ("3", "neither a list nor an object"),
    "lists.json": ('{"a": [{}], "b": [{}]}', "2 lists of objects"),
    "texts.json": ('["a", "b"]', "record 1: not an object"),
    "cut.json": ('[{"question": "x"', "not JSON"),
    "nan.jsonl": ('{"question": "x", "answer": NaN}', "line 1: the answer is missing"),
    "mixed.jsonl": (
        '{"question": "x", "answer": 1}\n{"question": "y", "answer": {"a": 1}}',
        "line 2: the answer is neither text nor",
    ),
    "same.jsonl": (
        '{"id": 1, "question": "x", "answer": 1}\n{"id": "1", "question": "y", "answer": 1}',
        "'1' twice; .*--map id=",
    ),
    "long.jsonl": (json.dumps({"id": "x" * 300, "question": "x", "answer": 1}), "the id has 300 characters"),
    "many.jsonl": (
        '{"question": "x", "answer": 7, "choices": ["a", "b"]}',
        "answer 7 is none of 2 choices, which integers count from 0",
    ),
    "options.csv": ("question,answer,choices\nx,A,['a' 'b']\n", "text but not a JSON list"),
    "notes.txt": ("question", "of no kind that is read"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_name_the_file_the_place_and_the_mend(tmp_path, name):
    content, says = FAULTS[name]
    with pytest.raises(GradalignError, match=says) as caught:
        load_questions(written(tmp_path / name, content))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_answers_of_parquet_are_refused_by_row(tmp_path):
    for missing in (None, math.nan):
        rows = [{"question": "x", "answer": 1.0}, {"question": "y", "answer": missing}]
        with pytest.raises(GradalignError, match="row 2: the answer is missing"):
            load_questions(str(parquet(tmp_path / "x.parquet", rows)))


def test_columns_are_named_by_the_user(tmp_path):
    rows = [{"QUERY, long": "Which?", "A": "red", "B": "blue", "C": "", "KEY": "B", "id": "../x", "hint": "Look."}]
    file = str(table(tmp_path / "exam.csv", rows))
    columns = parse_columns(["question=QUERY, long,answer=KEY", "choices=A+B+C,solution=hint"])
    (found,) = load_questions(file, columns=columns)
    assert (found.text, found.choices, found.answer, found.solution, found.id) == (
        "Which?",
        ("red", "blue"),
        "B",
        "Look.",
        "../x",
    )
    assert load_questions(file, columns=columns | {"id": ""})[0].id == "q1"
    with pytest.raises(GradalignError, match=r"--map answer=KEI: there is no column 'KEI'; the nearest are KEY"):
        load_questions(file, columns=columns | {"answer": "KEI"})
    with pytest.raises(GradalignError, match=r"there is no column 'D'"):
        load_questions(file, columns=columns | {"choices": "A+D"})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("question", "not understood"),
        ("anser=x", "did you mean answer"),
        ("answer=x,answer=y", "for answer twice"),
        ("answer=", "names no column"),
        ("", "not understood"),
    ],
)
def test_maps_that_cannot_be_meant_are_refused(text, says):
    with pytest.raises(GradalignError, match=says):
        parse_columns([text])


def test_numbers_among_choices_are_taken_by_value_and_integers_among_texts_by_place(tmp_path):
    records = [
        {"question": "x", "choices": [1, 2, 3], "answer": 2},
        {"question": "y", "choices": ["1", "2", "3"], "answer": 2},
        {"question": "z", "choices": ["1", "2", "3"], "answer": "2"},
    ]
    found = load_questions(written(tmp_path / "c.jsonl", "\n".join(map(json.dumps, records))))
    assert [(q.choices["ABC".index(q.answer)] if q.answer in "ABC" else q.answer) for q in found] == ["2", "3", "2"]


def test_of_a_long_file_no_more_is_read_than_is_asked_for(tmp_path):
    """Whatever is behind the first lines, be it damaged, is not looked at."""
    good = "".join(json.dumps(row) + "\n" for row in PLAIN)
    for name, start in {"a.jsonl": good, "b.csv": table(tmp_path / "e.csv", PLAIN).read_text()}.items():
        file = tmp_path / name
        file.write_text(start)
        with file.open("ab") as end:
            end.write(b"\xff\xfe broken\n" * 20_000)
        assert len(load_questions(str(file), 8)) == 8
        with pytest.raises(GradalignError, match=r"not UTF-8|not JSON"):
            load_questions(str(file))


def test_a_gigabyte_of_json_lines_is_not_read_for_eight_questions(tmp_path):
    file = tmp_path / "huge.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in PLAIN))
    with file.open("r+b") as hole:
        hole.truncate(1 << 30)
    tracemalloc.start()
    assert len(load_questions(str(file), 8)) == 8
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


def test_a_sample_is_seeded_and_knows_no_order(tmp_path):
    forward = written(tmp_path / "f.jsonl", "\n".join(map(json.dumps, PLAIN)))
    backward = written(tmp_path / "b.jsonl", "\n".join(map(json.dumps, PLAIN[::-1])))
    chosen = [q.text for q in load_questions(forward, sample=10, seed=1)]
    assert len(chosen) == 10
    assert chosen == [q.text for q in load_questions(forward, sample=10, seed=1)]
    assert sorted(chosen) == sorted(q.text for q in load_questions(backward, sample=10, seed=1))
    assert chosen != [q.text for q in load_questions(forward, sample=10, seed=2)]
    assert {q.text for q in load_questions(forward, sample=4, seed=1)} < {*chosen}
    assert [q.text for q in load_questions(forward)].index(chosen[0]) < [q.text for q in load_questions(forward)].index(
        chosen[1]
    )
    assert {q.text for q in load_questions(forward, 12, sample=10)} <= {row["question"] for row in PLAIN[:12]}
    assert len(load_questions(forward, sample=99)) == 30
    drawn = [{q.text for q in load_questions(forward, sample=10, seed=seed)} for seed in range(60)]
    times = [sum(row["question"] in texts for texts in drawn) for row in PLAIN]
    assert max(times) < 40
    assert min(times) > 5


def test_splits_are_asked_of_what_has_them(tmp_path):
    file = written(tmp_path / "f.jsonl", json.dumps(PLAIN[0]))
    with pytest.raises(GradalignError, match="is one file and has no splits; leave out --split train"):
        load_questions(file, split="train")
    assert load_questions("builtin:choice", 3, split="heldout") == load_questions("builtin:choice:heldout", 3)
    with pytest.raises(GradalignError, match="names a split and --split heldout another"):
        load_questions("builtin:choice:train", split="heldout")
    with pytest.raises(GradalignError, match="holds no questions"):
        load_questions(str((tmp_path / "nothing").mkdir() or tmp_path / "nothing"))


def test_a_name_that_is_no_set_is_answered_with_those_that_are():
    with pytest.raises(GradalignError, match=r"no such question set or file: bolq; .*one of boolq, mmlu"):
        load_questions("bolq")
