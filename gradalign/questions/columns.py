"""From a record's columns to a question: which column is which by the names that sets use, and what their values mean.

The same rules hold for a set of the hub and for a file of it; `--map` says otherwise. Knows no file: records in, questions out.
"""

import difflib
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradalign.questions.grading import KINDS, answer_fault
from gradalign.questions.numbers import is_number
from gradalign.questions.stated import stated_answer
from gradalign.seeds import seed_of
from gradalign.types import GradalignError, Question

MOST_CHOICES = 26
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
_MARKED = re.compile(r"\n?####[ \t]*(\S[^\n]*)\s*\Z")
_CALCULATION = re.compile(r"<<[^<>]*>>")
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
        choices, letter = _choices(cells.get("choices"), cells.get("answer"))
        if "wrong" in cells:
            choices, letter = _in_order(cells["answer"], cells["wrong"], name)
        text, solution = _message(cells["question"]), _optional(cells, "solution")
        answer, kind, solution = _answer(cells, letter, choices, solution)
        kind = _optional(cells, "kind") or self.kind or kind or _guessed_kind(answer, choices, _folded(record).keys())
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r} is none of {', '.join(KINDS)}")
        if _present(cells.get("passage")):
            text = f"{_text(cells['passage'], 'the passage')}\n\n{text if text.endswith('?') else text + '?'}"
        question = Question(name, text, answer, kind, choices, solution, _optional(cells, "difficulty"))  # pyright: ignore[reportArgumentType]
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
            if name not in found and not (name == "answer" and _present(found.get("solution"))):
                listed = ", ".join(str(column) for column in list(record)[:12])
                raise ValueError(f"it has no column for the {name} (columns: {listed}); name it with --map {name}=COLUMN")
        return found

    def _id(self, cells: Mapping[str, Any], record: Mapping[str, Any]) -> str:
        """The record's own id, else a number: within its subject, where the set has subjects."""
        if _present(cells.get("id")):
            name = _text(cells["id"], "the id")
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
        return [record[one] for one in several if _present(record[one])]
    missing = next((one for one in several if one not in record), column) if name == "choices" else column
    listed = [str(known) for known in record]
    near = difflib.get_close_matches(missing, listed, n=3, cutoff=0.5)
    raise ValueError(f"--map {name}={column}: there is no column {missing!r}; {'the nearest are' if near else 'it has'} "
                     f"{', '.join(near or listed[:12])}")  # fmt: skip


def _present(value: Any) -> bool:
    """Is there a value? None, not-a-number, and empty text are none."""
    return not (
        value is None or (isinstance(value, float) and math.isnan(value)) or (isinstance(value, str) and not value.strip())
    )


def _text(value: Any, what: str) -> str:
    """A text from a string, number or boolean; nothing empty, and nothing that has no UTF-8."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise ValueError(f"{what} is missing")
    if not isinstance(value, str | int | float | bool):
        raise TypeError(f"{what} is neither text nor a number")
    text = ("yes" if value else "no") if isinstance(value, bool) else str(value).strip()
    text.encode()
    if not text:
        raise ValueError(f"{what} is empty")
    return text


def _optional(cells: Mapping[str, Any], name: str) -> str | None:
    return _text(cells[name], f"the {name}") if _present(cells.get(name)) else None


def _message(value: Any) -> str:
    """The text of a question. Of a chat the last message of the user, with system messages before it; earlier turns are not part of it."""
    if not isinstance(value, list):
        return _text(value, "the question")
    if not all(isinstance(message, Mapping) and isinstance(message.get("content"), str) for message in value):
        raise TypeError("the question is a list, but not one of messages with a role and a text as content")
    said = [message["content"] for message in value if message.get("role") == "user"]
    if not said:
        raise ValueError("the question is a chat without a message of the user")
    system = [message["content"] for message in value if message.get("role") == "system"]
    return _text("\n\n".join([*system, said[-1]]), "the question")


def _choices(value: Any, answer: Any) -> tuple[tuple[str, ...], str | None]:
    """Options, and the letter of the answer where its place is told: an integer from 0, or one of the labels beside the options."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                "choices are text but not a JSON list; write them as JSON, or map several columns: choices=A+B+C+D"
            ) from error
    labels: list[str] = []
    if isinstance(value, Mapping) and {"text", "label"} <= value.keys() and isinstance(value["label"], list):
        labels, value = [str(label).strip() for label in value["label"]], value["text"]
    if not _present(value) or value == []:
        return (), None
    if not isinstance(value, list) or len(value) > MOST_CHOICES:
        raise ValueError(f"choices must be a list of at most {MOST_CHOICES}, or an object with the lists text and label")
    options = tuple(_text(option, "a choice") for option in value)
    if len(labels) == len(options) and isinstance(answer, str | int) and str(answer).strip() in labels:
        return options, _letter(labels.index(str(answer).strip()))
    whole = int(answer) if isinstance(answer, float) and answer.is_integer() else answer
    if isinstance(whole, int) and not isinstance(whole, bool) and all(isinstance(option, str) for option in value):
        if not 0 <= whole < len(options):
            raise ValueError(f"the answer {whole} is none of {len(options)} choices, which integers count from 0")
        return options, _letter(whole)
    return options, None


def _in_order(right: Any, wrong: Sequence[Any], name: str) -> tuple[tuple[str, ...], str]:
    """Right and wrong answers in an order that the question's id decides, so that the right one has no place of its own."""
    first = _text(right, "the answer")
    options = [first, *(_text(option, "an incorrect answer") for option in wrong if _present(option))]
    order = sorted(range(len(options)), key=lambda place: seed_of("order of choices", name, options[place], place))
    return tuple(options[place] for place in order), _letter(order.index(0))


def _letter(place: int) -> str:
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[place]


def _answer(
    cells: Mapping[str, Any], letter: str | None, choices: tuple[str, ...], solution: str | None
) -> tuple[str, str | None, str | None]:
    """The answer, its kind where that is certain, and the worked solution.

    GSM8K's answers are solutions that end in `#### 42`. TRL's sets have no answer but a `solution`: what it states, or all of it if that is
    one line.
    """
    if letter is not None:
        return letter, "choice", solution
    if "answer" not in cells:
        return _stated(solution or "")
    answer = cells["answer"]
    if isinstance(answer, str) and not choices and (marked := _MARKED.search(answer)):
        worked = _CALCULATION.sub("", answer[: marked.start()]).strip()
        return marked[1].strip(), "numeric" if is_number(marked[1]) else None, f"{worked}\nAnswer: {marked[1].strip()}".strip()
    if isinstance(answer, int | float) and not isinstance(answer, bool) and _present(cells.get("passage")) and answer in (0, 1):
        return ("yes" if answer else "no"), "boolean", solution
    return _text(answer, "the answer"), None, solution


def _stated(solution: str) -> tuple[str, str | None, str | None]:
    """The answer that a solution states, and the solution where it is more than the answer."""
    if marked := _MARKED.search(solution):
        return marked[1].strip(), None, f"{solution[: marked.start()].strip()}\nAnswer: {marked[1].strip()}".strip()
    said = stated_answer(solution)
    if said is not None and said.strip("$ ") != solution.strip("$ \n"):
        return said.strip("$ "), None, solution
    if "\n" in solution.strip() or not solution.strip():
        raise ValueError(
            "its solution states no answer; end it in \\boxed{...} or 'Answer: ...', or name a column with --map answer=COLUMN"
        )
    return solution.strip("$ "), None, None


def _guessed_kind(answer: str, choices: tuple[str, ...], columns: Collection[str]) -> str:
    """What the answer looks like. A `problem` with a level is of MATH; an answer to a problem that is no number is mathematics too."""
    if choices:
        return "choice"
    if {"problem", "level"} <= {*columns}:
        return "math"
    if answer.lower() in ("yes", "no", "true", "false"):
        return "boolean"
    if is_number(answer):
        return "numeric"
    return "math" if "problem" in columns or "\\" in answer else "exact"
