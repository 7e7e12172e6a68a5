"""From a record's columns to a question: which column is which by the names that sets use, and what their values mean.

The same rules hold for a set of the hub and for a file of it; `--map` says otherwise. Knows no file: records in, questions out.
"""

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradalign.questions.cells import (
    answer_of,
    guessed_kind,
    message_text,
    mixed_options,
    optional,
    options_of,
    present,
    text_of,
)
from gradalign.questions.grading import KINDS, answer_fault
from gradalign.types import GradalignError, Question

LONGEST_ID = 256

# Names of columns, in lower case, by what they hold; the first that a record has is taken.
NAMES = {
    "question": ("question", "problem", "prompt"),
    "answer": ("answer", "answerkey", "correct answer"),
    "kind": ("kind",),
    "choices": ("choices", "options"),
    "solution": ("solution", "explanation"),
    "difficulty": ("difficulty", "level", "writer's difficulty estimate"),
    "id": ("id", "unique_id", "record id", "question_id", "problem_idx", "idx"),
    "passage": ("passage",),
}
_WRONG = re.compile(r"incorrect answer \d+")
_FORM = re.compile(rf",(?=\s*(?:{'|'.join(NAMES)})\s*=)")


def parse_columns(texts: Sequence[str]) -> dict[str, str]:
    """`("question=QUERY,answer=LABEL",)` as a mapping; a name with nothing behind it leaves that column unread."""
    found: dict[str, str] = {}
    for piece in (piece for text in texts for piece in _FORM.split(text)):
        name, equals, column = (part.strip() for part in piece.partition("="))
        if not equals or name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise GradalignError(
                f"--map {piece.strip()!r} is not understood{hint}; write NAME=COLUMN with a name of {', '.join(NAMES)}"
            )
        if name in found:
            raise GradalignError(f"--map names a column for {name} twice; give each once")
        if not column and name in ("question", "answer"):
            raise GradalignError(f"--map {name}= names no column; a question needs its {name}")
        found[name] = column
    return found


@dataclass(eq=False)
class Columns:
    """Reads questions from records in turn. `mapping` names columns, `kind` is that of a known set, `label` goes before its ids."""

    mapping: Mapping[str, str] = field(default_factory=dict)
    kind: str | None = None
    label: str | None = None
    numbers: Counter[str] = field(default_factory=Counter)

    def question(self, record: Any) -> Question:
        """The question of one record; `ValueError` or `TypeError` says what is wrong with it."""
        if not isinstance(record, Mapping):
            raise TypeError("not an object; a line is a JSON object with a question and an answer")
        cells = self._cells(record)
        name = self._id(cells, record)
        choices, letter = options_of(cells.get("choices"), cells.get("answer"))
        if "wrong" in cells:
            choices, letter = mixed_options(cells["answer"], cells["wrong"], name)
        text, solution = message_text(cells["question"]), optional(cells, "solution")
        answer, kind, solution = answer_of(cells, letter, choices, solution)
        kind = optional(cells, "kind") or self.kind or kind or guessed_kind(answer, choices, _folded(record).keys())
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r} is none of {', '.join(KINDS)}")
        if present(cells.get("passage")):
            text = f"{text_of(cells['passage'], 'the passage')}\n\n{text if text.endswith('?') else text + '?'}"
        question = Question(name, text, answer, kind, choices, solution, optional(cells, "difficulty"))  # pyright: ignore[reportArgumentType]
        fault = answer_fault(question)
        if fault:
            raise ValueError(fault)
        return question

    def _cells(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Values by what they are; columns that the record has not are left out, and a question and an answer are required."""
        by_name = _folded(record)
        found: dict[str, Any] = {}
        for name, known in NAMES.items():
            if name in self.mapping:
                if self.mapping[name]:
                    found[name] = _mapped(record, name, self.mapping[name])
            elif (column := next((column for column in known if column in by_name), None)) is not None:
                found[name] = record[by_name[column]]
        wrong = [record[column] for folded, column in by_name.items() if _WRONG.fullmatch(folded)]
        if "correct answer" in by_name and wrong and not {"answer", "choices"} & self.mapping.keys():
            found |= {"answer": record[by_name["correct answer"]], "wrong": wrong}
        if "passage" in found and "answer" not in found and "label" in by_name and "answer" not in self.mapping:
            found["answer"] = record[by_name["label"]]  # BoolQ as it stands in SuperGLUE
        for name in ("question", "answer"):
            if name not in found and not (name == "answer" and present(found.get("solution"))):
                listed = ", ".join(str(column) for column in list(record)[:12])
                raise ValueError(f"it has no column for the {name} (columns: {listed}); name it with --map {name}=COLUMN")
        return found

    def _id(self, cells: Mapping[str, Any], record: Mapping[str, Any]) -> str:
        """The record's own id, else a number: within its subject, where the set has subjects."""
        if present(cells.get("id")):
            name = text_of(cells["id"], "the id")
        else:
            subject = record.get("subject")
            group = subject if isinstance(subject, str) and subject and "id" not in self.mapping else ""
            self.numbers[group] += 1
            name = f"{group}-{self.numbers[group]}" if group else f"q{self.numbers[group]}"
        name = name if self.label is None else f"{self.label}-{name}"
        if len(name) > LONGEST_ID:
            raise ValueError(
                f"the id has {len(name):,} characters; give one of at most {LONGEST_ID}, or number them with --map id="
            )
        return name


def _folded(record: Mapping[str, Any]) -> dict[str, str]:
    """The record's columns by their names in lower case."""
    return {str(column).strip().lower(): column for column in record}


def _mapped(record: Mapping[str, Any], name: str, column: str) -> Any:
    """The value of a column that the user named; options may stand in several, as choices=A+B+C+D."""
    if column in record:
        return record[column]
    several = column.split("+")
    if name == "choices" and len(several) > 1 and all(one in record for one in several):
        return [record[one] for one in several if present(record[one])]
    missing = next((one for one in several if one not in record), column) if name == "choices" else column
    listed = [str(known) for known in record]
    near = difflib.get_close_matches(missing, listed, n=3, cutoff=0.5)
    raise ValueError(f"--map {name}={column}: there is no column {missing!r}; {'the nearest are' if near else 'it has'} "
                     f"{', '.join(near or listed[:12])}")  # fmt: skip
