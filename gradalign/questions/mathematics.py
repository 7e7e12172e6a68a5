r"""Mathematical answers: equal as texts or as numbers where that decides it, else by math-verify in a process of its own.

math-verify (https://github.com/huggingface/Math-Verify) can take for ever on a short expression. It works in a process of its own, started
when first needed, given one line of JSON at a time, and killed when it takes too long; what it said is remembered.
"""

import atexit
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from gradalign.questions.numbers import UNIT, Quantity, equal_quantities, whole_quantity
from gradalign.questions.stated import TEXT_COMMAND, Ungradable
from gradalign.types import GradalignError

WALL_SECONDS = 4.5  # beyond the limit of CPU time that the process sets itself
_START_SECONDS = 120.0
_LONGEST = 1000
_REMEMBERED = 16_384

_SEGMENT = re.compile(r"\$\$?([^$]{1,1000})\$\$?|\\\(([^$]{1,1000}?)\\\)|\\\[([^$]{1,1000}?)\\\]")
_JOINING = re.compile(r"(?:\s|,|and|or|\.|\\text|\{|\}){0,20}")
_DROPPED = re.compile(
    r"\\(?:left|right|displaystyle|limits|quad|qquad)(?![A-Za-z])|(?<!\\)\\[!,;: ]|\*\*(?=\s|$)|`|\\\$"
    r"|(?:\^\{?\\circ\}?|\u00b0|\\degree)(?:\s{0,2}[CF](?![A-Za-z]))?"
)
_SPELT = {"\u2212": "-", "\u2013": "-", "\u00d7": "\\times ", "\u00b7": "\\cdot ", "\u00f7": "/", "\u03c0": "\\pi ", "\u2264": "\\le ",
          "\u221e": "\\infty ", "\u2265": "\\ge ", "\u222a": "\\cup ", "\u221a": "\\sqrt ", "\u00b1": "\\pm ", "\u00b2": "^2",
          "\u00b3": "^3", "\\%": "%", "{,}": ",", "\\dfrac": "\\frac", "\\tfrac": "\\frac", "\\cfrac": "\\frac", "**": "^",
          "\\lbrace": "\\{", "\\rbrace": "\\}"}  # fmt: skip
_NAMES = re.compile(r"(?<![\\A-Za-z])(pi|infinity|infty|sqrt|sin|cos|tan|log|ln|exp)(?![A-Za-z])")
_ROOT = re.compile(r"\\sqrt\s{0,2}\(([^()]{1,200})\)")
_END = re.compile(r"[.;?](?:\s|$)|\n|,?\s(?:because|since|where|for|which|when|so|as)\s|,\s(?=[A-Za-z]{3})")
_NAME = (
    r"(?:\\(?:sin|cos|tan|log|ln)\s{0,2})?(?:m?\s?\\angle\s{0,2})?"
    r"(?:[A-Z]{1,3}|[a-z]|\\(?:alpha|beta|gamma|delta|theta|lambda|mu|phi|omega|rho|sigma)|\\(?:overline|vec|bar|mathbf)\{[A-Za-z]{1,3}\})"
    r"(?:_\{?\w{1,5}\}?)?'?(?:\^\{-1\})?(?:\s?\([^()=]{1,20}\))?"
)
_ASSIGNED = re.compile(rf"\s{{0,4}}({_NAME})\s{{0,4}}=(?!=)\s{{0,4}}")
_ALSO = re.compile(rf"(?<=,)\s{{0,4}}({_NAME})\s{{0,4}}=(?!=)\s{{0,4}}")
_MOST_SIDES = 4
_BASE = re.compile(r"\d_\{?(\w{1,4})\}?")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s{0,2}\{\w{1,20}\*?\}")
_LETTERS = re.compile(r"\\[A-Za-z]{1,30}|[A-Za-z]")
_FACTORS = re.compile(r"(?<=[\d}])\s{0,2}([A-HJ-Za-hj-z]{1,3})$")
_UNITS = re.compile(rf"(?<=[\d}})%])\s{{0,4}}{UNIT}$")
_PROSE = re.compile(
    r"(?<![\\A-Za-z])(?!(?:sinh|cosh|tanh|arcsin|arccos|arctan|begin|array|cases|[bpv]?matrix)(?![A-Za-z]))"
    r"(?:[A-Za-z]{4,}|(?:the|and|not|are|for|was|all|odd|yes|one|two|six|ten|any)(?![A-Za-z]))"
)


def read_math(said: str, answer: str) -> str:
    """What `said` is: the question's answer, as `canonical_answer` writes it, where both are equal; else something that differs from it."""
    target, text = canonical_answer(answer), latex(said)
    if not text:
        raise Ungradable("nothing is stated")
    if "=" not in target:
        text = _assigned(text)
    if _squeezed(text) == _squeezed(target):
        return target
    wanted, number = _number(target), _number(text)
    if wanted is not None and number is not None:
        return target if equal_quantities(wanted, number) else str(number)
    if len(text) > _LONGEST:
        raise Ungradable("too long to be an answer")
    if _PROSE.search(text) or _PROSE.search(target):
        if _PROSE.search(text) and not _PROSE.search(target):
            raise Ungradable("words, and no expression")
        return " ".join(text.casefold().split())
    if _BASE.findall(text) != _BASE.findall(target):
        raise Ungradable("another base than the answer's, or none")
    if _differ_in_case(text, target):
        return text
    if "=" in text and "=" not in target:
        sides = text.split("=")
        if len(sides) > _MOST_SIDES or not all(_asked(target, side)["same"] for side in sides):
            raise Ungradable("an equation, not one value")
        return target
    told = _asked(target, text)
    return target if told["same"] else told["read"]


def _assigned(text: str) -> str:
    """The value that a name gets, or the values, as in "x = 1, x = 2"; other text as it is."""
    first = _ASSIGNED.match(text)
    if first is None:
        return text
    rest = text[first.end() :]
    for _ in range(_MOST_SIDES):  # as in "AB = CD = 5"
        rest = _ASSIGNED.sub("", rest, count=1) if _ASSIGNED.match(rest) else rest
    return _ALSO.sub(lambda also: " " if also[1][:1] == first[1][:1] else also[0], rest)


def _differ_in_case(text: str, target: str) -> bool:
    """Does a letter of one stand in the other in another case only? math-verify takes p and P for the same."""
    said, wanted = ({*_LETTERS.findall(_ENVIRONMENT.sub("", one))} for one in (text, target))
    return not {letter.casefold() for letter in said - wanted}.isdisjoint(letter.casefold() for letter in wanted - said)


def _asked(target: str, text: str) -> Mapping[str, Any]:
    """What math-verify says. Factors at the end are written as such: it takes some letters there for units."""
    target, text = (
        _FACTORS.sub(lambda m: "".join(rf"\cdot{{{one}}}" for one in m[1]), side.strip()) for side in (target, text)
    )
    told = _compared(target, text)
    if "reason" in told:
        raise Ungradable(told["reason"])
    if told["read"] is None:
        raise Ungradable("not an expression that math-verify can read")
    return told


@lru_cache(maxsize=4096)
def canonical_answer(answer: str) -> str:
    """The question's answer as LaTeX without what does not count."""
    return latex(answer) or answer.strip()


def latex(said: str) -> str:
    r"""The expression in a stated answer: what stands in $...$, else the text up to where the sentence ends; without units and wrapping."""
    said = _segments(said[: 4 * _LONGEST].replace("\\$", ""))
    text = TEXT_COMMAND.sub(lambda m: {"and": ",", "or": ","}.get(m.group(1).strip(), f" {m.group(1)} "), said)
    for sign, spelt in _SPELT.items():
        text = text.replace(sign, spelt)
    text = _DROPPED.sub(" ", text).strip()
    end = _END.search(text, text.rfind("\\end{") + 1)  # a matrix is whole, whatever stands in it
    text = (text[: end.start()] if end and end.start() else text).replace("\n", " ").lstrip(" ,;:*\"'").rstrip(" .,;:*\"'")
    text = re.sub(r"\s(?:and|or)\s", " , ", text)
    if "\\" not in text or _NAMES.search(text):
        text = _NAMES.sub(lambda m: "\\" + m.group().replace("infinity", "infty") + " ", text)
        text = _ROOT.sub(r"\\sqrt{\1}", text.replace("*", "\\cdot "))
    return _UNITS.sub("", text).strip()


def _segments(said: str) -> str:
    found = [*_SEGMENT.finditer(said)]
    if not found:
        return said.replace("$", "")
    parts = [next(part for part in match.groups() if part is not None) for match in found]
    return ", ".join(parts) if _JOINING.fullmatch(_SEGMENT.sub("", said).strip()) else parts[0]


def _squeezed(text: str) -> str:
    return "".join(text.split()).casefold() if _PROSE.search(text) else "".join(text.split())


@lru_cache(maxsize=_REMEMBERED)
def _number(text: str) -> Quantity | None:
    return whole_quantity(text)


@lru_cache(maxsize=_REMEMBERED)
def _compared(answer: str, said: str) -> Mapping[str, Any]:
    return _worker(os.getpid()).ask({"answer": answer, "said": said})


@cache
def _worker(process: int) -> "MathWorker":
    """The worker of this process: one that was forked must not talk to its parent's."""
    worker = MathWorker()
    atexit.register(worker.close)
    return worker


class MathWorker:
    """math-verify in a process of its own: started when first asked, and again after it was killed. Safe to ask from several threads.

    Ctrl-C does not reach it; it ends when its input does, so that it does not outlive whoever started it.
    """

    def __init__(self, seconds: float = WALL_SECONDS):
        self.seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = os.getpid()

    def ask(self, request: Mapping[str, str]) -> Mapping[str, Any]:
        """Its answer, or `{"reason": why there is none}`."""
        with self._lock:
            process = self._process or self._started()
            told = self._exchanged(process, json.dumps(request), self.seconds)
            return told if told is not None else {"reason": "comparing takes too much time or memory"}

    def close(self) -> None:
        """End it; in a fork of the process that started it, only let go of it."""
        if self._process is None:
            return
        ended, self._process = self._process, None
        if self._owner == os.getpid():
            ended.kill()
            ended.wait()
        else:
            ended.poll()
        for stream in (ended.stdin, ended.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:  # what was not yet written to it is lost with it
                    continue

    def _started(self) -> subprocess.Popen[str]:
        self._owner, path = os.getpid(), os.pathsep.join(folder for folder in sys.path if folder)
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("math_worker.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8",
            env=os.environ | {"PYTHONPATH": path}, start_new_session=True,
        )  # fmt: skip
        told = self._exchanged(self._process, None, _START_SECONDS)
        if told is None or "ready" not in told:
            self.close()
            why = (told or {}).get("missing", "it ended at once")
            raise GradalignError(f"the grader of mathematics does not start ({why}); pip install math-verify")
        return self._process

    def _exchanged(self, process: subprocess.Popen[str], line: str | None, seconds: float) -> Mapping[str, Any] | None:
        """One line in and one out; None, and the process ended, where that takes too long or it dies of it."""
        assert process.stdin is not None
        assert process.stdout is not None
        limit = threading.Timer(seconds, process.kill)
        limit.daemon = True
        limit.start()
        told = ""
        try:
            if line is not None:
                process.stdin.write(line + "\n")
                process.stdin.flush()
            told = process.stdout.readline()
            return json.loads(told) if told.endswith("\n") else None
        except (OSError, ValueError):
            told = ""
            return None
        finally:
            limit.cancel()
            if not told.endswith("\n"):
                self.close()
