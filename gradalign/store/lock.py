"""One writer a run: a lock that a dead holder does not keep."""

import contextlib
import json
import logging
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gradalign.store.places import Place

log = logging.getLogger(__name__)
_PATIENCE = 2.0  # seconds; a look at the lock, as `gradalign status` takes, holds it for an instant
_BEAT = 5.0
_MISSED = 4


def lock_of(root: Place) -> "RunLock":
    """The lock of the run at `root`."""
    return FolderLock(root) if isinstance(root, Path) else LeaseLock(root)


class RunLock:
    """What a writer holds while it writes; `lost` once another process has taken it over."""

    lost = False

    def take(self) -> bool:
        """Take it, if nobody else has it."""
        raise NotImplementedError

    def release(self) -> None:
        """Give it back."""
        raise NotImplementedError

    def taken(self) -> bool | None:
        """Does somebody hold it? None where that cannot be seen from here."""
        raise NotImplementedError


class FolderLock(RunLock):
    """A lock of the operating system on RUN/.lock: it ends with the process that holds it, however that ends, and knows no clock."""

    def __init__(self, root: Path):
        self.lock = FileLock(root / ".lock", thread_local=False)

    def take(self) -> bool:
        try:
            self.lock.acquire(timeout=_PATIENCE, poll_interval=0.05)
        except Timeout:
            return False
        except (NotImplementedError, OSError) as error:
            log.warning(
                "the file system of %s has no locks (%s); see to it that only one process writes this run",
                self.lock.lock_file,
                error,
            )
        return True

    def release(self) -> None:
        self.lock.release()

    def taken(self) -> bool | None:
        if self.lock.is_locked:
            return True
        if not Path(self.lock.lock_file).exists():
            return False
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            return True
        except (NotImplementedError, OSError):  # another user's, or a file system without locks
            return None
        self.lock.release()
        return False


class LeaseLock(RunLock):
    """A lease in an object store, which has no locks: an object that its holder writes anew every few seconds.

    Who finds one watches it by a clock of its own; where it does not change for a while its holder is dead. Two that take a dead holder's
    lease in the same second may both have it for one beat, after which the one that finds the other's name in it stops.
    """

    def __init__(self, root: Place, beat: float = _BEAT):
        self.object = root / "lease.json"
        self.name = uuid.uuid4().hex
        self.beat = beat
        self.beats = 0
        self.over = threading.Event()
        self.thread: threading.Thread | None = None

    def take(self) -> bool:
        if self._alive():
            return False
        self._write()
        time.sleep(min(1.0, self.beat / 2))
        if (self._read() or {}).get("holder") != self.name:
            return False
        self.thread = threading.Thread(target=self._keep, daemon=True, name="lease of a run")
        self.thread.start()
        return True

    def release(self) -> None:
        self.over.set()
        if self.thread is not None:
            self.thread.join()
        if not self.lost and (self._read() or {}).get("holder") == self.name:
            self.object.unlink(missing_ok=True)

    def taken(self) -> bool:
        return self.thread is not None or self._alive()

    def _alive(self) -> bool:
        """Does the lease change while it is watched? One that cannot be read is not known to be dead."""
        first = self._read()
        if first == {}:
            return False
        until = time.monotonic() + _MISSED * self.beat
        while time.monotonic() < until:
            time.sleep(self.beat / 4)
            now = self._read()
            if first is None:
                first = now
            elif now is not None and now != first:
                return bool(now)
        return first is None

    def _keep(self) -> None:
        renewed = time.monotonic()
        while not self.over.wait(self.beat):
            found = self._read()
            if found is not None and found.get("holder") not in (self.name, None):
                self.lost = True
                return
            with contextlib.suppress(Exception):  # the next beat tries again
                self._write()
                renewed = time.monotonic()
            if time.monotonic() - renewed > _MISSED * self.beat:  # whoever watched it took it for dead
                self.lost = True
                return

    def _write(self) -> None:
        self.beats += 1
        self.object.write_bytes(json.dumps({"holder": self.name, "beat": self.beats}).encode())

    def _read(self) -> dict[str, Any] | None:
        """What stands in the lease: nothing where there is none, None where it cannot be read just now."""
        try:
            return json.loads(self.object.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except Exception:  # the packages of object stores raise whatever they like
            return None
