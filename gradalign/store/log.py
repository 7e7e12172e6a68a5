"""The log of a run: what happened in each session, one JSON object a line, in log/session-0001.jsonl and so on.

`time` is the wall clock's, for people; `seconds` counts from the session's beginning by a clock that nobody can set.
"""

import contextlib
import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gradalign.store.places import Place

FOLDER = "log"
_NAME = re.compile(r"session-(\d{4,})\.jsonl")
_REWRITE = 2.0  # seconds between two writes of a log that cannot be appended to


class RunLog:
    """The log of one session. Nothing that it is told may be secret: anyone who reads the run reads it.

    A log that cannot be written, as on a full disk, is no reason to stop: what it would have said is lost.
    """

    def __init__(self, root: Place):
        self.number = max(sessions(root), default=0) + 1
        self.file = session_file(root, self.number)
        self.began = time.monotonic()
        self.written = -_REWRITE
        self.lines: list[str] = []
        self.lock = threading.Lock()
        with contextlib.suppress(OSError):
            if isinstance(self.file, Path):
                self.file.parent.mkdir(exist_ok=True)

    def write(self, event: str, **facts: Any) -> None:
        """Note an event with its facts."""
        seconds = time.monotonic() - self.began
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "seconds": round(seconds, 3),
            "event": event,
            **facts,
        }
        with self.lock, contextlib.suppress(Exception):
            line = json.dumps(entry) + "\n"
            if isinstance(self.file, Path):
                with self.file.open("a", encoding="utf-8") as file:
                    file.write(line)
                return
            self.lines.append(line)
            if seconds - self.written >= _REWRITE or event == "ended":
                self.written = seconds
                self.file.write_bytes("".join(self.lines).encode())


class _Warnings(logging.Handler):
    """What the library warns of, as events of the session."""

    def __init__(self, run_log: RunLog):
        super().__init__(logging.WARNING)
        self.run_log = run_log

    def emit(self, record: logging.LogRecord) -> None:
        self.run_log.write("warning", source=record.name, message=record.getMessage())


@contextmanager
def session(root: Place, **facts: Any) -> Iterator[RunLog]:
    """A session of a run, from its beginning, which `facts` tell of, to its end, however it ends."""
    run_log = RunLog(root)
    run_log.write("began", pid=os.getpid(), host=socket.gethostname(), **facts)
    handler, library = _Warnings(run_log), logging.getLogger("gradalign")
    library.addHandler(handler)
    try:
        yield run_log
    except KeyboardInterrupt:
        run_log.write("ended", how="interrupted")
        raise
    except BaseException as error:
        run_log.write("ended", how="failed", message=_first_line(error))
        raise
    else:
        run_log.write("ended", how="done")
    finally:
        library.removeHandler(handler)


def sessions(root: Place) -> list[int]:
    """Numbers of the sessions that a run has had."""
    folder = root / FOLDER
    names = (entry.name for entry in folder.iterdir()) if folder.exists() else ()
    return sorted(int(found[1]) for name in names if (found := _NAME.fullmatch(name)))


def session_file(root: Place, number: int) -> Place:
    """Where the log of a session lies."""
    return root / FOLDER / f"session-{number:04d}.jsonl"


def read_session(root: Place, number: int) -> list[dict[str, Any]]:
    """The events of a session; a line that was cut off as its writer died is left out."""
    events = []
    try:
        lines = session_file(root, number).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # a log is never needed
        return []
    for line in lines:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            events.append(event)
    return events


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:500]
