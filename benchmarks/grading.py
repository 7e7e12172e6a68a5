"""How far gradalign's graders agree with those that the field uses, on the cases of tests/grading_cases.jsonl that they share.

Compared are, as they are published: math-verify's own `parse` and `verify` on the whole text (numeric and math cases); of lm-eval
(EleutherAI's harness) the two filters of its task gsm8k, with the patterns of its own gsm8k.yaml and that task's exact match (numeric), and
the grader of its task aime, which is that of hendrycks_math behind a look for the last box (numeric and math). A grader that asks for one
form of answer gets the cases that have it: strict-match those with `####`, aime those with a box. All know right and not right, so wrong
and ungradable count as one. lm-eval is no dependency: `make bench` puts it beside the environment; without it its rows are left out.

The table of cases is this project's own judgement, written before any grader was run; gradalign's graders are then tested on it, so that
they agree with it by construction. What is to be learnt here is in the list: where graders differ, on what, and what the table says.
`SMALL=1` takes every eighth case.
"""

import importlib.util
import json
import multiprocessing
import os
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from types import ModuleType

import yaml
from rich.markup import escape
from trials import SMALL, console, report

from gradalign.questions import grade
from gradalign.types import Question
from gradalign.visible import visible

CASES = Path(__file__).parents[1] / "tests" / "grading_cases.jsonl"
LM_EVAL = os.environ.get("LM_EVAL", "")
_SECONDS = 20
Verdict = bool | None
Grader = tuple[str, tuple[str, ...], str, Callable[[str, str], Verdict]]  # name, kinds, what a text has to have, what it says


class MathVerify:
    """math-verify on whole texts, in a process that is given up where it does not come back: its own limits do not end a loop in C."""

    def __init__(self) -> None:
        self.pool = multiprocessing.get_context("spawn").Pool(1)
        self.pool.apply(by_math_verify, ("1", "1"))

    def __call__(self, answer: str, text: str) -> Verdict:
        try:
            return self.pool.apply_async(by_math_verify, (answer, text)).get(_SECONDS)
        except multiprocessing.TimeoutError:
            self.close()
            self.__init__()
            return None

    def close(self) -> None:
        self.pool.terminate()
        self.pool.join()


def by_math_verify(answer: str, text: str) -> bool:
    """As its README does it."""
    from math_verify import parse, verify

    return bool(verify(parse(f"${answer}$"), parse(text)))


def gsm8k(name: str) -> Callable[[str, str], Verdict]:
    """A filter of lm-eval's task gsm8k, then its exact match."""
    from lm_eval.filters.extraction import RegexFilter  # pyright: ignore[reportMissingImports]

    task = yaml.load((_lm_eval() / "tasks" / "gsm8k" / "gsm8k.yaml").read_text(encoding="utf-8"), _Plain)
    found = next(f for f in task["filter_list"] if f["name"] == name)["filter"][0]
    pick = RegexFilter(found["regex_pattern"], found.get("group_select", 0))
    ignored = task["metric_list"][0]["regexes_to_ignore"]

    def judged(answer: str, text: str) -> bool:
        (said,) = pick.apply([[text]], [{}])
        return _without(ignored, said[0]) == _without(ignored, answer)

    return judged


def aime() -> Callable[[str, str], Verdict]:
    """The grader of lm-eval's task aime."""
    module = _module(_lm_eval() / "tasks" / "aime" / "utils.py")

    def judged(answer: str, text: str) -> bool:
        with redirect_stdout(StringIO()):
            return bool(module.process_results({"answer": answer}, [text])["exact_match"])

    return judged


class _Plain(yaml.SafeLoader):
    """YAML whose own tags are left alone."""


_Plain.add_multi_constructor("!", lambda loader, tag, node: None)


def _without(ignored: list[str], text: str) -> str:
    for pattern in ignored:
        text = re.sub(pattern, "", text)
    return text.lower().strip()


def _lm_eval() -> Path:
    (place,) = importlib.util.find_spec("lm_eval").submodule_search_locations  # pyright: ignore
    return Path(place)


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("lm_eval_task", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def graders(math_verify: MathVerify) -> list[Grader]:
    """Those that are here."""
    found: list[Grader] = [("math-verify", ("numeric", "math"), "", math_verify)]
    if LM_EVAL:
        sys.path.append(LM_EVAL)
    if importlib.util.find_spec("lm_eval") is None:
        console.print("lm-eval is not here: its rows are left out (`make bench` puts it beside the environment).")
        return found
    return [
        *found,
        ("lm-eval gsm8k strict-match", ("numeric",), "####", gsm8k("strict-match")),
        ("lm-eval gsm8k flexible-extract", ("numeric",), "", gsm8k("flexible-extract")),
        ("lm-eval aime (hendrycks_math)", ("numeric", "math"), "\\boxed", aime()),
    ]


def main() -> None:
    cases = [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()][:: 8 if SMALL else 1]
    math_verify = MathVerify()
    rows, differences, ours = [], [], {}
    try:
        for name, kinds, form, judged in graders(math_verify):
            for kind in kinds:
                both, by_table, silent, shared = (
                    0,
                    {"gradalign": 0, name: 0},
                    0,
                    [c for c in cases if c["kind"] == kind and form in c["text"]],
                )
                for case in shared:
                    question = Question("q", "?", case["answer"], kind)
                    key = (kind, case["answer"], case["text"])
                    ours[key] = mine = ours[key] if key in ours else grade(question, case["text"]).outcome == "right"
                    theirs = judged(case["answer"], case["text"])
                    if theirs is None:
                        silent += 1
                        continue
                    both += mine == theirs
                    if mine != theirs:
                        by = "gradalign" if mine == (case["outcome"] == "right") else name
                        by_table[by] += 1
                        differences.append(
                            {"grader": name, "kind": kind, "right_by_the_table": by, "says_right": theirs, **case}
                        )
                rows.append([name, kind, len(shared), both, by_table["gradalign"], by_table[name], silent])
    finally:
        math_verify.close()
    columns = ["grader", "kind", "cases", "agree", "only gradalign right", "only it right", "no verdict"]
    for d in differences:
        told = "right" if d["says_right"] else "not right"
        line = f"{d['grader']}, {d['kind']}: {d['answer']!r} in {d['text']!r} is {told}; the table says {d['outcome']} ({d['note']})"
        console.print(escape(visible(line)), soft_wrap=True, highlight=False)
    packages = {"math-verify": version("math-verify")} | (
        {"lm-eval": version("lm_eval")} if len({r[0] for r in rows}) > 1 else {}
    )
    stored = {"packages": packages, "rows": [dict(zip(columns, row, strict=True)) for row in rows], "differences": differences}
    title = "Agreement with the graders of the field, on shared cases (right or not right)"
    report("grading", title, columns, [[str(cell) for cell in row] for row in rows], stored)


if __name__ == "__main__":
    main()
