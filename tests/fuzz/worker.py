"""A process that runs cases and is ended where one takes too long. A case is told before it is begun, so it is never lost."""

import contextlib
import logging
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Told = tuple[str, bytes, float, str]
_MEMORY = 24 << 30  # bytes of address space, of which torch alone takes several
_LONGEST_CASE = 1 << 20


class Worker:
    """One process at a time; another is started after one that had to be ended."""

    def __init__(self, seconds: float, start: float):
        self.seconds, self.start = seconds, start
        self.over = False  # has the process made all the cases it can?
        self.process: multiprocessing.Process | None = None
        self.pipe: Connection | None = None

    def work(self, name: str, maker: str, count: int, seed: int) -> Iterator[Told]:
        """The verdict of each case (`target.Verdict` or "failed"), with the case, its seconds, and for a failure what was raised."""
        done, self.over = 0, False
        while done < count and not self.over:
            for told in self._some(name, maker, count - done, seed + done):
                done += 1
                yield told

    def _some(self, name: str, maker: str, count: int, seed: int) -> Iterator[Told]:
        """Cases until the process has made all it can, or had to be ended."""
        pipe = self._started()
        pipe.send((name, maker, count, seed))
        patience, case = self.start, None
        while True:
            if not self._answers(pipe, patience):
                self.end()
                yield (
                    "failed",
                    case or b"",
                    patience,
                    f"it took longer than {patience:g} s" if case is not None else "no first case",
                )
                return
            try:
                message = pipe.recv()
            except (EOFError, OSError):
                code = self.process.exitcode if self.process is not None else None
                self.end()
                if maker == "libfuzzer" and case is None:  # it ends its process when it is done
                    self.over = True
                    return
                yield "failed", case or b"", 0.0, f"the process died (exit code {code})"
                return
            if message is None:
                self.over = True
                return
            if isinstance(message, bytes):
                case, patience = message, self.seconds
            else:
                yield message[0], case or b"", message[1], message[2]
                case, patience = None, self.start

    def _answers(self, pipe: Connection, patience: float) -> bool:
        """Does it say something before it has been at work for so long? On a busy machine it may wait for longer, ten times at most."""
        began, used = time.monotonic(), self._used()
        try:
            while not pipe.poll(patience):
                if self._used() - used >= 0.9 * patience or time.monotonic() - began >= 10 * patience:
                    return False
            return True
        except (OSError, EOFError):
            return True

    def _used(self) -> float:
        """Seconds of processor time that the process has used."""
        assert self.process is not None
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _started(self) -> Connection:
        if self.process is None or not self.process.is_alive() or self.pipe is None:
            self.pipe, theirs = multiprocessing.Pipe()
            self.process = multiprocessing.Process(target=_serve, args=(theirs,), daemon=True)
            self.process.start()
            theirs.close()
        return self.pipe

    def end(self) -> None:
        """End the process, whatever it does."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
        if self.pipe is not None:
            self.pipe.close()
        self.process, self.pipe = None, None


def _serve(pipe: Connection) -> None:
    """Make and run cases as they are asked for. What the cases print goes nowhere."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if "FUZZ_SHOWS" not in os.environ:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
    os.environ["HF_HUB_OFFLINE"] = "1"
    logging.disable(logging.CRITICAL)
    while True:
        try:
            name, maker, count, seed = pipe.recv()
        except EOFError:
            return
        (_by_libfuzzer if maker == "libfuzzer" else _by_hypothesis)(pipe, name, count, seed)
        pipe.send(None)


def _by_hypothesis(pipe: Connection, name: str, count: int, seed: int) -> None:
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    from fuzz.table import TARGETS

    run = _runner(pipe, TARGETS[name])

    @seeded(seed)
    @settings(
        max_examples=count, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(TARGETS[name].cases)
    def each(case: bytes) -> None:
        run(case)

    each()


def _by_libfuzzer(pipe: Connection, name: str, count: int, seed: int) -> None:
    """libFuzzer never returns: this process ends with it, and the case that it ended in is the last one told."""
    import atheris

    with atheris.instrument_imports(include=["gradalign", "yaml", "jinja2"]):
        from fuzz.table import TARGETS
    target = TARGETS[name]
    corpus = Path(tempfile.mkdtemp(prefix="gradalign-corpus-"))
    for number, whole in enumerate(target.seeds):
        (corpus / str(number)).write_bytes(whole)
    arguments = [
        sys.argv[0],
        str(corpus),
        f"-runs={count}",
        f"-seed={seed % 2**31 + 1}",
        "-rss_limit_mb=0",
        "-max_len=4096",
        "-detect_leaks=0",
    ]
    run = _runner(pipe, target)
    atheris.Setup(arguments, run, enable_python_coverage=True)
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(corpus, ignore_errors=True)


def _runner(pipe: Connection, target: Any) -> Callable[[bytes], None]:
    """Runs a case in an empty folder of its own, and tells first the case, then its verdict."""
    from fuzz.target import verdict

    room = Path(tempfile.mkdtemp(prefix="gradalign-room-"))

    def run(case: bytes) -> None:
        case = bytes(case[:_LONGEST_CASE])
        pipe.send(case)
        folder = room / "case"
        folder.mkdir()
        began = time.perf_counter()
        try:
            told, said = verdict(target, case, folder), ""
        except Exception:
            told, said = "failed", traceback.format_exc()
        seconds = time.perf_counter() - began
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
        pipe.send((told, seconds, said))

    return run
