"""Excerpts in the formats that the named sets really have: their repositories, files, columns and types; the questions are made up."""

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

BOOLQ = [
    {
        "question": "does the harbour of lindale freeze in winter",
        "answer": False,
        "passage": "Lindale -- The harbour of Lindale is kept open all year by a warm current.",
    },
    {
        "question": "is the old mill of lindale older than its church",
        "answer": True,
        "passage": "Lindale -- The mill was built in 1402, the church in 1511.",
    },
]
LETTERS = ["A", "B", "C", "D"]
MMLU = [
    {
        "question": "Which bone is in the hand?",
        "subject": "anatomy",
        "choices": ["Femur", "Scaphoid", "Tibia", "Ulna"],
        "answer": 1,
    },
    {"question": "How many lungs has a person?", "subject": "anatomy", "choices": ["0", "1", "2", "3"], "answer": 2},
    {"question": "Which of these is a star?", "subject": "astronomy", "choices": ["Mars", "Io", "Moon", "Vega"], "answer": 3},
]
GSM8K = [
    {
        "question": "Ida has 3 boxes of 4 pens and gives 2 pens away. How many are left?",
        "answer": "She has 3*4=<<3*4=12>>12 pens.\nThen 12-2=<<12-2=10>>10 are left.\n#### 10",
    },
    {"question": "A ferry costs 1,050 a day. What do 2 days cost?", "answer": "2*1050=<<2*1050=2100>>2,100\n#### 2,100"},
]
MATH500 = [
    {
        "problem": "Find the length of the diagonal of a square with side $3$.",
        "solution": "It is $\\sqrt{3^2+3^2}=\\boxed{3\\sqrt{2}}$.",
        "answer": "3\\sqrt{2}",
        "subject": "Geometry",
        "level": 2,
        "unique_id": "test/geometry/9001.json",
    },
    {
        "problem": "What is $6\\cdot7$?",
        "solution": "$6\\cdot7=\\boxed{42}$.",
        "answer": "42",
        "subject": "Prealgebra",
        "level": 1,
        "unique_id": "test/prealgebra/9002.json",
    },
]
AIME_2024 = [
    {
        "id": 60,
        "problem": "Find $x+y$.",
        "solution": "So \\boxed{025}.",
        "answer": "025",
        "url": "https://example.org/60",
        "year": "2024",
    },
    {
        "id": 61,
        "problem": "Find $n$.",
        "solution": "So \\boxed{809}.",
        "answer": "809",
        "url": "https://example.org/61",
        "year": "2024",
    },
]
AIME_2025 = [{"problem_idx": 1, "problem": "Find $a$.", "answer": 70, "problem_type": ["Algebra"]}]
AIME_2026 = [{"problem_idx": 1, "answer": 277, "problem": "Find $b$."}]
GPQA = [
    {
        "Pre-Revision Question": "An earlier wording",
        "Question": f"Which particle number {i} is meant?\n",
        "Correct Answer": f"the right one {i}\n",
        "Incorrect Answer 1": f"wrong a {i}",
        "Incorrect Answer 2": f"wrong b {i}",
        "Incorrect Answer 3": f"wrong c {i}",
        "Explanation": "Because it is.",
        "Writer's Difficulty Estimate": "Hard graduate level",
        "High-level domain": "Physics",
        "Record ID": f"rec{i:04d}",
    }
    for i in range(40)
]
ARC = {
    "id": "Mercury_9001",
    "question": "Which of these is a liquid at room temperature?",
    "choices": {"text": ["iron", "water", "oxygen"], "label": ["1", "2", "3"]},
    "answerKey": "2",
}


def class_labels(names: list[str]) -> dict[bytes, bytes]:
    """Metadata of a schema as `datasets` writes it for a column `answer` of classes."""
    import json

    return {b"huggingface": json.dumps({"info": {"features": {"answer": {"names": names, "_type": "ClassLabel"}}}}).encode()}


def parquet(path: Path, rows: list[dict], metadata: dict[bytes, bytes] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(metadata), path)
    return path


def table(path: Path, rows: list[dict], delimiter: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path
