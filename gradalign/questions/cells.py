"""What the values of a record mean: texts, chats, options, answers and where they are stated. Knows no names of columns."""

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gradalign.questions.numbers import is_number, whole_quantity
from gradalign.questions.stated import stated_answer
from gradalign.seeds import seed_of

MOST_CHOICES = 26
_MARKED = re.compile(r"\n?####[ \t]*(\S[^\n]*)\s*\Z")
_CLASSES = {"0": "no", "1": "yes", "0.0": "no", "1.0": "yes"}  # BoolQ's; of CSV they are text
_CALCULATION = re.compile(r"<<[^<>]*>>")


def present(value: Any) -> bool:
    """Is there a value? None, not-a-number, and empty text are none."""
    return not (
        value is None or (isinstance(value, float) and math.isnan(value)) or (isinstance(value, str) and not value.strip())
    )


def text_of(value: Any, what: str) -> str:
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


def optional(cells: Mapping[str, Any], name: str) -> str | None:
    """The text of a cell that may be missing."""
    return text_of(cells[name], f"the {name}") if present(cells.get(name)) else None


def message_text(value: Any) -> str:
    """The text of a question. Of a chat the last message of the user, with system messages before it; earlier turns are not part of it."""
    if not isinstance(value, list):
        return text_of(value, "the question")
    if not all(isinstance(message, Mapping) and isinstance(message.get("content"), str) for message in value):
        raise TypeError("the question is a list, but not one of messages with a role and a text as content")
    said = [message["content"] for message in value if message.get("role") == "user"]
    if not said:
        raise ValueError("the question is a chat without a message of the user")
    system = [message["content"] for message in value if message.get("role") == "system"]
    return text_of("\n\n".join([*system, said[-1]]), "the question")


def options_of(value: Any, answer: Any) -> tuple[tuple[str, ...], str | None]:
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
    if not present(value) or value == []:
        return (), None
    if not isinstance(value, list) or len(value) > MOST_CHOICES:
        raise ValueError(f"choices must be a list of at most {MOST_CHOICES}, or an object with the lists text and label")
    options = tuple(text_of(option, "a choice") for option in value)
    if len(labels) == len(options) and isinstance(answer, str | int) and str(answer).strip() in labels:
        return options, _letter(labels.index(str(answer).strip()))
    whole = int(answer) if isinstance(answer, float) and answer.is_integer() else answer
    if isinstance(whole, int) and not isinstance(whole, bool) and all(isinstance(option, str) for option in value):
        if not 0 <= whole < len(options):
            raise ValueError(f"the answer {whole} is none of {len(options)} choices, which integers count from 0")
        return options, _letter(whole)
    return options, None


def mixed_options(right: Any, wrong: Sequence[Any], name: str) -> tuple[tuple[str, ...], str]:
    """Right and wrong answers in an order that the question's id decides, so that the right one has no place of its own."""
    first = text_of(right, "the answer")
    options = [first, *(text_of(option, "an incorrect answer") for option in wrong if present(option))]
    order = sorted(range(len(options)), key=lambda place: seed_of("order of choices", name, options[place], place))
    return tuple(options[place] for place in order), _letter(order.index(0))


def _letter(place: int) -> str:
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[place]


def answer_of(
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
        return (
            marked[1].strip(),
            None if whole_quantity(marked[1]) is None else "numeric",
            f"{worked}\nAnswer: {marked[1].strip()}".strip(),
        )
    if (
        present(cells.get("passage"))
        and not isinstance(answer, bool)
        and not choices
        and (verdict := _CLASSES.get(str(answer).strip()))
    ):
        return verdict, "boolean", solution
    return text_of(answer, "the answer"), None, solution


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


def guessed_kind(answer: str, choices: tuple[str, ...], columns: Collection[str]) -> str:
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
