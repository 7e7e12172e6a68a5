"""Measure the built-in models: pass rates, what each context does to accuracy, the leak of ctx:answer, parseability.

    python benchmarks/builtin_students.py [--questions 200] [--rollouts 16] [--out FILE.json]

Samples held-out questions at temperature 1 with the library's own engine. Contexts are compared on the questions that
have both a right and a wrong rollout, by fresh ones. Exits 1 if a property that the README of `data/` promises does not
hold. SMALL=1 in the environment makes a quick pass over 40 questions a set, and keeps no file.
"""

import argparse
import json
import os
import random
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from gradalign.contexts import CONTEXTS, Material, render_context, render_question, render_summary_request
from gradalign.engines import HFEngine
from gradalign.models import LoadOptions, load_model
from gradalign.questions import grade, load_questions
from gradalign.seeds import seed_of
from gradalign.types import CompletionRequest, Question

MODELS = ("small", "medium", "large")
STUDENTS = ("small", "medium")
SETS = ("arithmetic", "boolean", "choice")
MAX_TOKENS = 48
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Row:
    """The measures of one model on one set. Shares in [0, 1]; `contexts`: accuracies on `compared` questions."""

    model: str
    questions: str
    accuracy: float
    inside: float
    compared: int
    contexts: dict[str, float]
    answer_agrees: float
    none_agrees: float
    swapped_follows: float
    ungradable: float


@dataclass(frozen=True)
class Samples:
    """Texts of rollouts (Q, R) and their grades."""

    questions: list[Question]
    texts: list[list[str]]
    right: np.ndarray
    ungradable: float

    def subset(self, keep: list[int]) -> "Samples":
        questions, texts = [self.questions[i] for i in keep], [self.texts[i] for i in keep]
        return Samples(questions, texts, self.right[keep], self.ungradable)


class Sampler:
    """One model, ready to answer messages."""

    def __init__(self, model: str, rollouts: int):
        loaded = load_model(f"builtin:{model}", LoadOptions(device="cpu"))
        self.codec = loaded.codec
        self.engine = HFEngine(loaded.language_model, self.codec.stop_ids)  # pyright: ignore[reportArgumentType]
        self.rollouts = rollouts

    def texts(self, messages: list[str], rollouts: int, purpose: str) -> list[list[str]]:
        """`rollouts` answers to each message, without special tokens."""
        requests = [
            CompletionRequest(self.codec.prompt(message), tuple(seed_of(purpose, i, r) for r in range(rollouts)), MAX_TOKENS)
            for i, message in enumerate(messages)
        ]
        texts = [[""] * rollouts for _ in messages]
        for done in self.engine.complete(requests):
            texts[done.request][done.replicate] = self.codec.text(done.tokens)
        return texts

    def answer(self, questions: list[Question], messages: list[str], purpose: str) -> Samples:
        """Graded answers to each question's message."""
        texts = self.texts(messages, self.rollouts, purpose)
        grades = [[grade(question, text) for text in row] for question, row in zip(questions, texts, strict=True)]
        right = np.array([[entry.reward for entry in row] for row in grades])
        ungradable = np.mean([[entry.outcome == "ungradable" for entry in row] for row in grades])
        return Samples(questions, texts, right, float(ungradable))


def measure(sampler: Sampler, model: str, name: str, count: int) -> Row:
    """All measures of one model on one set."""
    questions = list(load_questions(f"builtin:{name}:heldout", count))
    base = sampler.answer(questions, [render_question(question) for question in questions], f"{name} none")
    rates = base.right.mean(1)
    compared = base.subset([i for i, rate in enumerate(rates) if 0 < rate < 1])
    materials = _materials(sampler, compared, name)
    under = {context: _under(sampler, context, compared.questions, materials, name) for context in CONTEXTS}
    swapped = _swapped_follows(sampler, compared.questions, name)
    ungradable = max(samples.ungradable for samples in (base, *under.values()))
    return Row(
        model, name, float(rates.mean()), float(((rates > 0.05) & (rates < 0.95)).mean()), len(materials),
        {context: float(samples.right.mean()) for context, samples in under.items()},
        _agreement(under["answer"]), _agreement(base), swapped, ungradable,
    )  # fmt: skip


def _materials(sampler: Sampler, base: Samples, name: str) -> list[Material]:
    """Each question's first right and first wrong rollout, and the model's own summary of the right one."""
    rows = list(zip(base.questions, base.texts, base.right, strict=True))
    correct = [texts[int(right.argmax())] for _, texts, right in rows]
    wrong = [texts[int(right.argmin())] for _, texts, right in rows]
    requests = [render_summary_request(question, text) for (question, _, _), text in zip(rows, correct, strict=True)]
    summaries = [texts[0] for texts in sampler.texts(requests, 1, f"{name} summary")]
    return [
        Material(right, false, summary, question.solution, question.answer)
        for question, right, false, summary in zip(base.questions, correct, wrong, summaries, strict=True)
    ]


def _under(sampler: Sampler, context: str, questions: list[Question], materials: list[Material], name: str) -> Samples:
    messages = [render_context(context, *pair).user for pair in zip(questions, materials, strict=True)]
    return sampler.answer(questions, messages, f"{name} under {context}")


def _swapped_follows(sampler: Sampler, questions: list[Question], name: str) -> float:
    """Share of final answers that equal a wrong answer given in the context."""
    rng = random.Random(0)
    given = [rng.choice([answer for answer in _answers(q) if answer != q.answer]) for q in questions]
    pairs = zip(questions, given, strict=True)
    messages = [render_context("answer", question, Material(answer=answer)).user for question, answer in pairs]
    samples = sampler.answer(questions, messages, f"{name} swapped")
    return float(np.mean([[_final(text) == a for text in row] for row, a in zip(samples.texts, given, strict=True)]))


def _answers(question: Question) -> list[str]:
    if question.kind == "boolean":
        return ["yes", "no"]
    return list("ABCD") if question.kind == "choice" else [str(digit) for digit in range(10)]


def _agreement(samples: Samples) -> float:
    """Share of solutions whose final answer is the one that their own last state means."""
    rows = zip(samples.questions, samples.texts, strict=True)
    return float(np.mean([_final(text) == _meant(question, text) for question, texts in rows for text in texts]))


def _final(text: str) -> str:
    return text.rpartition("Answer:")[2].strip()


def _meant(question: Question, text: str) -> str:
    words = text.rpartition(". Answer:")[0].split()
    last = words[-1] if words else ""
    if question.kind == "choice":
        return "ABCD"[question.choices.index(last)] if last in question.choices else "?"
    return {"on": "yes", "off": "no"}.get(last, last)


def failures(rows: list[Row]) -> list[str]:
    """The promised properties that do not hold."""
    failed = []
    accuracy = {(row.model, row.questions): row.accuracy for row in rows}
    for row in rows:
        checks = {"1% of rollouts or more do not parse": row.ungradable < 0.01}
        checks |= {"a wrong given answer is not followed in 90%": row.swapped_follows > 0.9}
        if row.model in STUDENTS:
            checks |= _student_checks(row, accuracy["large", row.questions])
        failed += [f"{row.model} on {row.questions}: {what}" for what, holds in checks.items() if not holds]
    return failed


def _student_checks(row: Row, large: float) -> dict[str, bool]:
    under = row.contexts
    return {
        "less than 60% of pass rates inside (0.05, 0.95)": row.inside >= 0.6,
        "correct_demo adds less than 15 points": under["correct_demo"] >= under["none"] + 0.15,
        "correct_wrong_demo less than 3 points below it": under["correct_wrong_demo"] <= under["correct_demo"] - 0.03,
        "wrong_demo less than 3 points below it": under["wrong_demo"] <= under["correct_demo"] - 0.03,
        "ctx:answer does not leak": row.answer_agrees < 0.95 <= row.none_agrees,
        "large less than 10 points better": large >= row.accuracy + 0.1,
    }


def show(rows: list[Row]) -> None:
    """Print the measures as one table."""
    table = Table(title="Built-in models, percent")
    names = ("model", "set", "pass rate", "inside", "compared", *CONTEXTS, "agrees", "follows wrong", "ungradable")
    for column in names:
        table.add_column(column.replace("_", " "), justify="left" if column in ("model", "set") else "right")
    for row in rows:
        shares = [*row.contexts.values(), row.answer_agrees, row.swapped_follows]
        table.add_row(
            row.model, row.questions, f"{row.accuracy:.1%}"[:-1], f"{row.inside:.0%}"[:-1], str(row.compared),
            *(f"{share:.1%}"[:-1] for share in shares), f"{row.ungradable:.2%}"[:-1],
        )  # fmt: skip
    Console(width=190).print(table)


def main() -> int:
    options = _parse()
    torch.set_num_threads(1)
    started, rows = time.monotonic(), []
    for model in MODELS:
        sampler = Sampler(model, options.rollouts)
        rows += [measure(sampler, model, name, options.questions) for name in SETS]
    show(rows)
    failed = failures(rows)
    print("\n".join(f"FAILED {line}" for line in failed) or "All promised properties hold.")
    report = {"questions": options.questions, "rollouts": options.rollouts, "failed": failed}
    report |= {"seconds": round(time.monotonic() - started), "rows": [asdict(row) for row in rows]}
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    small = os.environ.get("SMALL", "0") not in ("", "0")
    out = None if small else ROOT / "benchmarks/results/builtin_students.json"
    parser.add_argument("--questions", type=int, default=40 if small else 200, help="questions of each set")
    parser.add_argument("--rollouts", type=int, default=16, help="rollouts of each question in each context")
    parser.add_argument("--out", type=Path, default=out, help="where the measures are kept")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
