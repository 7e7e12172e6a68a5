"""How far a run is, from its folder alone: for another terminal, another machine, or after the fact."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from gradalign.sheets import Head, Remark, Sheet
from gradalign.store.damage import seconds, whole
from gradalign.store.lock import lock_of
from gradalign.store.log import read_session, sessions
from gradalign.store.parts import read_description
from gradalign.store.places import Place, place_of

State = Literal["starting", "running", "done", "interrupted", "failed", "killed", "not begun", "unknown"]
_RECENT = 20
_SHOWN = 10
_UNSEEN = "its lock cannot be looked at from here; it runs if it was heard of just now"
_GO_ON = "the same command goes on where it was"


@dataclass(frozen=True)
class Status:
    """A run's state, and how far its latest session is.

    `questions` of `questions_planned` stand in finished parts; `to_do` parts were left when the session began, `done` of them are done
    (a part counts once for each pass over it). `rate` is in questions a minute, over the latest parts, `left` in seconds; None where they
    cannot be told. `failures` and `set_aside` are of all sessions.
    """

    path: Place
    state: State
    session: int
    pid: int | None
    host: str | None
    questions: int
    questions_planned: int
    done: int
    to_do: int
    rollouts: int
    tokens: int
    elapsed: float
    silent: float | None
    rate: float | None
    left: float | None
    failures: tuple[Mapping[str, Any], ...]
    set_aside: tuple[Mapping[str, Any], ...]
    warnings: tuple[str, ...]
    message: str

    def sheets(self) -> list[Sheet]:
        """The status as people read it."""
        heads = (Head("", number=False), Head("", number=False))
        rows = [("state", self._state()), ("questions", f"{self.questions:,} of {self.questions_planned:,} scored")]
        if self.to_do:
            rows.append(("this session", f"{self.done:,} of {self.to_do:,} parts, {_time(self.elapsed)}"))
        if self.rate is not None:
            rows.append(("rate", f"{self.rate:.1f} questions a minute"))
        if self.left is not None:
            rows.append(("left", f"about {_time(self.left)}"))
        rows.append(("sampled", f"{self.rollouts:,} rollouts, {self.tokens:,} tokens"))
        if self.silent is not None and self.state in ("running", "unknown"):
            rows.append(("last heard of", f"{_time(self.silent)} ago"))
        rows.append(("set aside", f"{len(self.set_aside):,} questions"))
        rows.append(("failures", f"{len(self.failures):,}"))
        said = [f"set aside {entry.get('question')}: {entry.get('reason')}" for entry in self.set_aside]
        said += [
            f"part {entry.get('part')} failed (try {entry.get('tries')}): {entry.get('reason')}" for entry in self.failures
        ]
        said += [f"warning: {warning}" for warning in self.warnings]
        more = [f"and {len(said) - _SHOWN:,} more in {self.path}/log"] if len(said) > _SHOWN else []
        return [Sheet(f"Run {self.path}", heads, tuple(rows), tuple(map(Remark, (*said[:_SHOWN], *more))))]

    def _state(self) -> str:
        if self.state == "running":
            return f"running (process {self.pid} on {self.host})"
        return self.state + (f": {self.message}" if self.message else "")


def status(path: str | Place) -> Status:
    """How far the run at `path` is; it may be running, here or elsewhere, or have ended in whatever way."""
    root = place_of(path)
    read_description(root)
    numbers = sessions(root)
    logs = [read_session(root, number) for number in numbers]
    latest = logs[-1] if logs else []
    began = latest[0] if latest else {}
    parts = [event for event in latest if event["event"] == "part"]
    known = [event for events in logs for event in events if event["event"] == "part"]
    last = known[-1] if known else {}
    to_do, done = whole(began.get("to_do")), len(parts)
    rate, left = _pace(parts, to_do)
    state, message = _state(latest, lock_of(root).taken())
    return Status(
        path=root,
        state=state,
        session=numbers[-1] if numbers else 0,
        pid=began.get("pid"),
        host=began.get("host"),
        questions=whole(last.get("scored")),
        questions_planned=whole(began.get("questions")),
        done=done,
        to_do=to_do,
        rollouts=whole(last.get("rollouts")),
        tokens=whole(last.get("tokens")),
        elapsed=seconds(latest[-1].get("seconds")) if latest else 0.0,
        silent=_since(latest[-1].get("time")) if latest else None,
        rate=rate,
        left=left if state == "running" else None,
        failures=tuple(event for events in logs for event in events if event["event"] == "failed"),
        set_aside=tuple(event for events in logs for event in events if event["event"] == "set aside"),
        warnings=tuple(str(event.get("message")) for event in latest if event["event"] == "warning"),
        message=message,
    )


def _state(latest: Sequence[Mapping[str, Any]], taken: bool | None) -> tuple[State, str]:
    """What became of the latest session; one that holds no lock and did not say that it ended was killed."""
    if not latest:
        return "starting" if taken else "not begun", ""
    end = latest[-1]
    if end["event"] == "ended" and taken:
        return "starting", "models are loaded, or questions read"
    if end["event"] != "ended":
        return ("running", "") if taken else ("killed", _GO_ON) if taken is not None else ("unknown", _UNSEEN)
    how = end.get("how")
    if how not in ("done", "interrupted", "failed"):
        return "unknown", "its log does not say how it ended"
    return how, str(end.get("message", _GO_ON if how == "interrupted" else ""))


def _pace(parts: Sequence[Mapping[str, Any]], to_do: int) -> tuple[float | None, float | None]:
    """Questions a minute over the latest parts, and the seconds that what is left would take at that."""
    recent = parts[-_RECENT:]
    if not recent:
        return None, None
    before = seconds(parts[-len(recent) - 1].get("seconds")) if len(parts) > len(recent) else 0.0
    took = max(seconds(recent[-1].get("seconds")) - before, 1e-9)
    return 60 * sum(whole(part.get("questions")) for part in recent) / took, (to_do - len(parts)) * took / len(recent)


def _since(time: Any) -> float | None:
    """Seconds since a moment of the wall clock; None where the clock says that it is yet to come."""
    try:
        passed = (datetime.now(UTC) - datetime.fromisoformat(str(time))).total_seconds()
    except (ValueError, TypeError):
        return None
    return passed if passed >= 0 else None


def _time(length: float) -> str:
    """A length of time in seconds, roughly."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if length >= 2 * size:
            return f"{length / size:.0f} {unit}"
    return f"{length:.0f} s"
