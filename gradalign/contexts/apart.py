"""Templates of users in a process of their own: one that never ends, or builds gigabytes, costs a few seconds and is then refused."""

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

from gradalign.contexts import sandbox

SECONDS = 3.0
_START = 60.0


class TemplateFault(Exception):
    """Why a template has no text, in one line."""


class Apart:
    """A process that runs `sandbox`, started when it is first asked and again after one that had to be ended; any thread may ask.

    A fork of who asked has one of its own.
    """

    def __init__(self, seconds: float = SECONDS):
        self.seconds = seconds
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._late = False
        self._owner = os.getpid()
        atexit.register(self.close)

    def ask(self, source: str, variables: Mapping[str, Any] | None) -> Any:
        """Text of a template; with variables None the names that it uses. Raises TemplateFault."""
        with self._lock:
            child = self._started()
            try:
                line = self._exchanged(child, json.dumps({"source": source, "variables": variables}), self.seconds)
            except BaseException:
                self._end()  # an answer may still be under way
                raise
            if not line.endswith("\n"):  # it may have been ended in the middle of one
                self._end()
                why = f"it took longer than {self.seconds:g} s" if self._late else "it brought its process down"
                raise TemplateFault(why)
        answer = json.loads(line)
        if "fault" in answer:
            raise TemplateFault(answer["fault"])
        return answer["found"]

    def close(self) -> None:
        """End the process; the next question starts another."""
        with self._lock:
            self._end()

    def _started(self) -> "subprocess.Popen[str]":
        if self._child is None or self._owner != os.getpid() or self._child.poll() is not None:
            self._end()
            self._owner, self._child = os.getpid(), self._start()
            if not self._exchanged(self._child, None, _START):
                self._end()
                raise TemplateFault(f"the process that was started for it with {sys.executable} does not answer")
        return self._child

    def _start(self) -> "subprocess.Popen[str]":
        try:
            return subprocess.Popen(
                [sys.executable, sandbox.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="ascii",
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
        except OSError as error:
            raise TemplateFault(f"no process could be started for it with {sys.executable} ({error})") from error

    def _exchanged(self, child: "subprocess.Popen[str]", line: str | None, seconds: float) -> str:
        """The line that the process answers, or the part of it that came before it ended or was too slow."""
        assert child.stdin is not None
        assert child.stdout is not None
        self._late = False
        timer = threading.Timer(seconds, self._give_up, [child])
        timer.start()
        try:
            if line is not None:
                child.stdin.write(line + "\n")
                child.stdin.flush()
            return child.stdout.readline()
        except BrokenPipeError:
            return ""
        finally:
            timer.cancel()

    def _give_up(self, child: "subprocess.Popen[str]") -> None:
        self._late = True
        child.kill()

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        if self._owner == os.getpid():
            child.kill()
            child.wait()
        else:
            child.poll()
        for pipe in (child.stdin, child.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:
                pass  # what was not yet written has no reader any more


APART = Apart()
