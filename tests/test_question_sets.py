"""Named sets in their real formats, from a stand-in for the hub and from files of them; the hub out of reach."""

import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RevisionNotFoundError
from question_excerpts import (
    AIME_2024,
    AIME_2025,
    AIME_2026,
    ARC,
    BOOLQ,
    GPQA,
    GSM8K,
    LETTERS,
    MATH500,
    MMLU,
    class_labels,
    parquet,
    table,
)

from gradalign.questions import grade, hub, load_questions
from gradalign.types import GradalignError

CONVERTED = "refs/convert/parquet"


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    """A folder in the place of the hub: REPOSITORY/REVISION/FILE; a repository without a revision says so as the hub does."""
    root = tmp_path / "hub"

    def files(repository: str, revision: str, offline: bool) -> list[str]:
        folder = root / repository / revision
        if not folder.is_dir():
            raise LocalEntryNotFoundError("not here")
        return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]

    monkeypatch.setattr(hub, "repository_files", files)
    monkeypatch.setattr(hub, "fetch", lambda repository, revision, file, offline: root / repository / revision / file)

    def add(repository: str, revision: str, file: str, rows, **more) -> Path:
        path = root / repository / revision / file
        if path.suffix == ".jsonl":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            return path
        return (table if path.suffix == ".csv" else parquet)(path, rows, **more)

    return add


def test_boolq_has_its_passage_before_the_question(fake_hub):
    fake_hub("google/boolq", CONVERTED, "default/train/0000.parquet", BOOLQ)
    fake_hub("google/boolq", CONVERTED, "default/validation/0000.parquet", BOOLQ[:1])
    found = load_questions("boolq")
    assert [(q.id, q.kind, q.answer) for q in found] == [("q1", "boolean", "no"), ("q2", "boolean", "yes")]
    assert found[0].text == (
        "Lindale -- The harbour of Lindale is kept open all year by a warm current.\n\ndoes the harbour of lindale freeze in winter?"
    )
    assert len(load_questions("boolq", split="validation")) == 1
    with pytest.raises(GradalignError, match=r"no split 'test'; it has train, validation"):
        load_questions("boolq", split="test")


def test_mmlu_takes_integers_for_letters_and_numbers_questions_within_their_subject(fake_hub):
    labels = class_labels(LETTERS)
    fake_hub("cais/mmlu", "main", "all/test-00000-of-00001.parquet", MMLU, metadata=labels)
    fake_hub("cais/mmlu", "main", "all/dev-00000-of-00001.parquet", MMLU[:1], metadata=labels)
    for subject in ("anatomy", "astronomy"):
        rows = [row for row in MMLU if row["subject"] == subject]
        fake_hub("cais/mmlu", "main", f"{subject}/test-00000-of-00001.parquet", rows, metadata=labels)
    whole = load_questions("mmlu")
    assert [(q.id, q.answer) for q in whole] == [("anatomy-1", "B"), ("anatomy-2", "C"), ("astronomy-1", "D")]
    assert whole[0].choices == ("Femur", "Scaphoid", "Tibia", "Ulna")
    assert load_questions("mmlu:anatomy,astronomy") == whole
    assert load_questions("mmlu:astronomy") == whole[2:]
    with pytest.raises(GradalignError, match=r"no part 'anatomi'; the nearest are anatomy"):
        load_questions("mmlu:anatomi")


def test_gsm8k_parts_its_answers_into_solution_and_number(fake_hub):
    for split in ("train", "test"):
        fake_hub("openai/gsm8k", CONVERTED, f"main/{split}/0000.parquet", GSM8K)
    fake_hub("openai/gsm8k", CONVERTED, "socratic/train/0000.parquet", GSM8K[:1])
    first, second = load_questions("gsm8k")
    assert (first.answer, first.kind, second.answer) == ("10", "numeric", "2,100")
    assert first.solution == "She has 3*4=12 pens.\nThen 12-2=10 are left.\nAnswer: 10"
    assert grade(first, first.solution).outcome == grade(second, "Answer: 2100").outcome == "right"


def test_math500_is_mathematics_whether_from_the_hub_or_from_its_file(fake_hub):
    file = fake_hub("HuggingFaceH4/MATH-500", "main", "test.jsonl", MATH500)
    found = load_questions("math500")
    assert [(q.id, q.kind, q.difficulty) for q in found] == [
        ("test/geometry/9001.json", "math", "2"),
        ("test/prealgebra/9002.json", "math", "1"),
    ]
    assert grade(found[0], "so \\boxed{\\sqrt{18}}").outcome == "right"
    assert load_questions(str(file)) == found


def test_aime_takes_years_and_tells_their_questions_apart(fake_hub):
    fake_hub("HuggingFaceH4/aime_2024", CONVERTED, "default/train/0000.parquet", AIME_2024)
    fake_hub("MathArena/aime_2025", "main", "data/train-00000-of-00001.parquet", AIME_2025)
    fake_hub("MathArena/aime_2026", "main", "data/train-00000-of-00001.parquet", AIME_2026)
    assert [(q.id, q.answer, q.kind) for q in load_questions("aime:2024,2025")] == [
        ("2024-60", "025", "numeric"), ("2024-61", "809", "numeric"), ("2025-1", "70", "numeric"),
    ]  # fmt: skip
    assert [q.id for q in load_questions("aime")] == ["2024-60", "2024-61", "2025-1", "2026-1"]
    assert grade(load_questions("aime:2024")[0], "\\boxed{25}").outcome == "right"
    with pytest.raises(GradalignError, match="aime has no part '1999'"):
        load_questions("aime:1999")


def test_gpqa_has_the_right_answer_at_every_place_and_always_at_the_same(fake_hub):
    file = fake_hub("Idavidrein/gpqa", "main", "gpqa_diamond.csv", GPQA)
    fake_hub("Idavidrein/gpqa", "main", "gpqa_main.csv", GPQA[:5])
    found = load_questions("gpqa:diamond")
    assert found == load_questions("gpqa")
    assert {q.answer for q in found} == {*LETTERS}
    for question, row in zip(found, GPQA, strict=True):
        assert question.id == row["Record ID"]
        assert question.choices["ABCD".index(question.answer)] == row["Correct Answer"].strip()
        assert len({*question.choices}) == 4
        assert question.solution == "Because it is."
    turned = table(file.parent / "turned.csv", GPQA[::-1])
    assert {q.id: q.answer for q in load_questions(str(turned))} == {q.id: q.answer for q in found}
    assert len(load_questions("gpqa:main")) == 5


def test_a_gated_set_says_to_log_in_and_shows_no_token(monkeypatch):
    def refused(repository, revision, offline):
        raise GatedRepoError.__new__(GatedRepoError, "403 for hf_abcdefghijk")

    monkeypatch.setattr(hub, "repository_files", refused)
    with pytest.raises(GradalignError, match=r"gpqa \(Idavidrein/gpqa on the hub\) is gated: .*hf auth login") as caught:
        load_questions("gpqa")
    assert "hf_abc" not in str(caught.value)

    def broken(repository, revision, offline):
        raise OSError("connection with hf_abcdefghijk lost\nmore")

    monkeypatch.setattr(hub, "repository_files", broken)
    with pytest.raises(GradalignError, match=r"log in with") as caught:
        load_questions("gpqa")
    assert "hf_abc" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("source", "repository"), [("boolq", "google/boolq"), ("hf://nobody/nothing:some", "nobody/nothing")])
def test_without_a_network_the_fault_names_set_repository_and_mend(source, repository):
    """The hub's real client, which is told in conftest.py that it is offline."""
    with pytest.raises(
        GradalignError, match=f"{source} .{repository} on the hub.* could not be read: no network.*local file"
    ) as caught:
        load_questions(source)
    assert "\n" not in str(caught.value)


def test_where_the_connection_fails_what_was_fetched_before_is_read(tmp_path, monkeypatch):
    parquet(tmp_path / "default/train/0000.parquet", BOOLQ)

    def files(repository, revision, offline):
        if not offline:
            raise OSError("no route")
        if revision == "main":
            raise RevisionNotFoundError
        return ["default/train/0000.parquet"]

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "repository_files", files)
    monkeypatch.setattr(hub, "fetch", lambda repository, revision, file, offline: tmp_path / file if offline else None)
    assert len(load_questions("boolq")) == 2


def test_a_set_that_was_not_fetched_whole_is_not_read_without_a_connection(tmp_path, monkeypatch):
    shards = [f"main/test/000{i}.parquet" for i in range(3)]
    parquet(tmp_path / shards[0], [{"question": "?", "answer": "1"}])
    listed = ["README.md", *shards]

    def fetch(repository, revision, file, offline):
        if not (tmp_path / file).exists():
            raise LocalEntryNotFoundError("not here")
        return tmp_path / file

    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "HfApi", lambda: SimpleNamespace(list_repo_files=lambda *_, **__: listed))
    monkeypatch.setattr(hub, "fetch", fetch)
    assert hub.repository_files("me/mine", CONVERTED, offline=False) == listed
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    assert hub.repository_files("me/mine", CONVERTED, offline=True) == shards
    with pytest.raises(
        GradalignError, match=r"not whole on this disk.*: main/test/0001.parquet, main/test/0002.parquet missing"
    ):
        load_questions("hf://me/mine:main")
    with pytest.raises(GradalignError, match="no split 'train'; it has test"):
        load_questions("hf://me/mine:main", split="train")
    for shard in shards[1:]:
        parquet(tmp_path / shard, [{"question": "?", "answer": "1", "id": shard}])
    assert len(load_questions("hf://me/mine:main")) == 3


def test_any_set_of_the_hub_by_its_name_and_configuration(fake_hub):
    for configuration in ("easy", "hard"):
        for split in ("test", "validation"):
            fake_hub(
                "me/mine", CONVERTED, f"{configuration}/{split}/0000.parquet", [{"question": configuration, "answer": split}]
            )
    (question,) = load_questions("hf://me/mine:hard")
    assert (question.text, question.answer) == ("hard", "test")
    assert load_questions("hf://me/mine:hard", split="validation")[0].answer == "validation"
    for source, says in {
        "hf://me/mine": "several configurations; put one behind its name and a colon: easy, hard",
        "hf://me/mine:medium": "no configuration 'medium'; it has easy, hard",
        "hf://mine": "names no data set; write hf://OWNER/NAME",
        "hf://me/nothing": "could not be read",
    }.items():
        with pytest.raises(GradalignError, match=says):
            load_questions(source)
    with pytest.raises(GradalignError, match="no split 'train'; it has test, validation"):
        load_questions("hf://me/mine:easy", split="train")


def test_a_set_without_data_files_is_refused_and_its_script_never_looked_at(fake_hub):
    fake_hub("me/code", "main", "x.jsonl", []).rename(fake_hub("me/code", "main", "y.jsonl", []).with_name("code.py"))
    fake_hub("me/code", "main", "y.jsonl", []).unlink()
    with pytest.raises(GradalignError, match="could not be read"):
        load_questions("hf://me/code")


def test_choices_of_arc_and_answers_by_their_labels(tmp_path):
    file = tmp_path / "arc.jsonl"
    file.write_text(
        json.dumps(ARC) + "\n" + json.dumps(ARC | {"id": "b", "choices": json.dumps(ARC["choices"]), "answerKey": "3"})
    )
    first, second = load_questions(str(file))
    assert (first.choices, first.answer, second.answer) == (("iron", "water", "oxygen"), "B", "C")


def test_classes_read_by_name_and_hidden_labels_refused(tmp_path):
    rows = [
        {"question": "is it", "passage": "It is.", "answer": 1},
        {"question": "is it not", "passage": "It is.", "answer": 0},
    ]
    file = parquet(tmp_path / "b.parquet", rows, class_labels(["False", "True"]))
    assert [q.answer for q in load_questions(str(file))] == ["True", "False"]
    assert [q.kind for q in load_questions(str(file))] == ["boolean", "boolean"]
    hidden = parquet(tmp_path / "h.parquet", [rows[0] | {"answer": -1}], class_labels(["False", "True"]))
    with pytest.raises(GradalignError, match="row 1: the answer is missing"):
        load_questions(str(hidden))
    plain = parquet(tmp_path / "g.parquet", [{"question": "is it", "passage": "It is.", "idx": 7, "label": 1}])
    (glue,) = load_questions(str(plain))
    assert (glue.id, glue.answer, glue.kind) == ("7", "yes", "boolean")
    table = tmp_path / "b.csv"
    table.write_text("question,passage,answer\nis it,It is.,1\nis it not,It is.,0\nhow many,Two.,2\n")
    assert [(q.answer, q.kind) for q in load_questions(str(table))] == [("yes", "boolean"), ("no", "boolean"), ("2", "numeric")]


@pytest.mark.parametrize(
    ("answer", "kind"), [("$5", "numeric"), ("5 1/2", "numeric"), ("5 eggs", "numeric"), ("5 or 6", "exact")]
)
def test_the_number_behind_gsm8k_s_mark_may_have_a_currency_or_a_unit(tmp_path, answer, kind):
    file = tmp_path / "g.jsonl"
    file.write_text(json.dumps({"question": "?", "answer": f"Half of it.\n#### {answer}"}))
    [question] = load_questions(str(file))
    assert (question.answer, question.kind) == (answer, kind)


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Earlier?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "What is 6 times 7?"},
]


def test_prompt_and_solution_as_trainers_have_them(tmp_path):
    records = [
        {"prompt": "What is 6 times 7?", "solution": "42"},
        {"prompt": CHAT, "solution": "It is $6 \\cdot 7 = \\boxed{42}$."},
        {"prompt": "What is half of a half?", "solution": "$\\frac{1}{4}$"},
    ]
    file = tmp_path / "trl.jsonl"
    file.write_text("\n".join(map(json.dumps, records)))
    plain, chat, fraction = load_questions(str(file))
    assert (plain.text, plain.answer, plain.kind, plain.solution) == ("What is 6 times 7?", "42", "numeric", None)
    assert chat.text == "Be brief.\n\nWhat is 6 times 7?"
    assert (chat.answer, chat.kind, chat.solution) == ("42", "numeric", records[1]["solution"])
    assert (fraction.answer, fraction.kind) == ("\\frac{1}{4}", "math")
    for wrong, says in (
        ({"prompt": "x", "solution": "First one thing.\nThen another."}, "states no answer"),
        ({"prompt": [{"role": "system", "content": "x"}], "solution": "1"}, "without a message of the user"),
        ({"prompt": ["x"], "solution": "1"}, "not one of messages"),
    ):
        file.write_text(json.dumps(wrong))
        with pytest.raises(GradalignError, match=says):
            load_questions(str(file))


def test_folders_that_datasets_saved_are_read_without_it(tmp_path):
    """As `DatasetDict.save_to_disk` lays them out: state.json, Arrow streams, dataset_dict.json."""
    for split, rows in (("train", BOOLQ), ("validation", BOOLQ[:1])):
        folder = tmp_path / "saved" / split
        folder.mkdir(parents=True)
        batch = pa.Table.from_pylist(rows)
        with (
            pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file,
            pa.ipc.new_stream(file, batch.schema) as stream,
        ):
            stream.write_table(batch)
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (tmp_path / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))
    saved = str(tmp_path / "saved")
    assert [q.answer for q in load_questions(saved)] == ["no", "yes"]
    assert len(load_questions(saved, split="validation")) == 1
    assert load_questions(str(tmp_path / "saved" / "train")) == load_questions(saved)
    with pytest.raises(GradalignError, match="no split 'test'; it has train, validation"):
        load_questions(saved, split="test")
    with pytest.raises(GradalignError, match="is one split and has no others"):
        load_questions(f"{saved}/train", split="test")
    (tmp_path / "saved" / "train" / "data-00000-of-00001.arrow").write_bytes(b"ARROW1 but no")
    with pytest.raises(GradalignError, match="damaged or no arrow file"):
        load_questions(saved)
    for name in ("../validation/data-00000-of-00001.arrow", "/etc/passwd", "..", ""):
        (tmp_path / "saved" / "train" / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
        with pytest.raises(GradalignError, match=r"damaged: state\.json cannot be used"):
            load_questions(saved)


def test_what_datasets_itself_saves_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({
        "question": datasets.Value("string"),
        "subject": datasets.Value("string"),
        "choices": datasets.Sequence(datasets.Value("string")),
        "answer": datasets.ClassLabel(names=LETTERS),
    })  # fmt: skip
    made = datasets.Dataset.from_list(MMLU, features=features)
    datasets.DatasetDict({"test": made}).save_to_disk(str(tmp_path / "d"))
    made.to_parquet(str(tmp_path / "m.parquet"))
    found = load_questions(str(tmp_path / "d"))
    assert [(q.id, q.answer) for q in found] == [("anatomy-1", "B"), ("anatomy-2", "C"), ("astronomy-1", "D")]
    assert load_questions(str(tmp_path / "m.parquet")) == found


def test_a_downloaded_folder_of_parquet_files_is_read_by_split(tmp_path):
    parquet(tmp_path / "data/train-00000-of-00002.parquet", BOOLQ[:1])
    parquet(tmp_path / "data/train-00001-of-00002.parquet", BOOLQ[1:])
    parquet(tmp_path / "data/validation-00000-of-00001-0123456789abcdef.parquet", BOOLQ)
    assert [q.answer for q in load_questions(str(tmp_path))] == ["no", "yes"]
    assert len(load_questions(str(tmp_path), split="validation")) == 2
    (tmp_path / "data/train-00001-of-00002.parquet").write_bytes(b"PAR1")
    with pytest.raises(GradalignError, match=r"train-00001-of-00002\.parquet\) is damaged"):
        load_questions(str(tmp_path))
