"""Targets over a run folder: damage of every kind, and content that is hostile but whole; what was not touched must stay and be read."""

import hashlib
import json
import random
import tempfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

from gradalign_cli.score import _print_outcome
from hypothesis import strategies as st

import gradalign
from fuzz.making import changed, deep, mutated
from fuzz.target import Broken, Target
from gradalign import load_run
from gradalign.findings import rank
from gradalign.pipeline import Effort, parse_budget
from gradalign.pipeline.stopping import Watch
from gradalign.report import write_report
from gradalign.store import TABLES, Run, RunFolder, status
from gradalign.store.parts import part_path
from gradalign.types import GradalignError

_ODD = (
    b"",
    b"\x00" * 64,
    b"PAR1",
    b"{}",
    b"[]",
    b"null",
    b"\xff\xfe",
    b"[" * 50_000,
    b'{"generation": 1e400}',
    b'{"event": "part"}\n' * 50,
)


@cache
def whole_run() -> Path:
    """A run of two parts that was to decide, made once in this process and never changed."""
    folder = Path(tempfile.mkdtemp(prefix="gradalign-fuzz-")) / "run"
    gradalign.score(
        "builtin:arithmetic",
        limit=4,
        rollouts=4,
        budget=16,
        decide=0.9,
        part_size=2,
        teachers=["ctx:reference"],
        demonstrations=4,
        device="cpu",
        out=folder,
    )
    return folder


@cache
def _files() -> tuple[Path, ...]:
    run = whole_run()
    return tuple(sorted(path.relative_to(run) for path in run.rglob("*") if path.is_file() and path.name != ".lock"))


def _copy(folder: Path) -> Path:
    """The run again; its files are links until they are replaced."""
    run = folder / "run"
    for file in _files():
        (run / file).parent.mkdir(parents=True, exist_ok=True)
        (run / file).hardlink_to(whole_run() / file)
    return run


def _replace(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _damaged(case: bytes, folder: Path) -> None:
    """The case seeds a few strokes: flips, cuts, removals, swaps, other content, folders for files. What no stroke met must stay."""
    run, chance, met = _copy(folder), random.Random(case), set()
    for _ in range(chance.randint(1, 3)):
        met |= _stroke(run, chance)
    _read(run, met, case)


def _stroke(run: Path, chance: random.Random) -> set[Path]:
    file, other = chance.choice(_files()), chance.choice(_files())
    path = run / file
    if not path.is_file():
        return {file}
    content = path.read_bytes()
    at = chance.randrange(len(content) + 1)
    match chance.randrange(8):
        case 0 | 1 if at < len(content):
            _replace(path, content[:at] + bytes([content[at] ^ (1 << chance.randrange(8))]) + content[at + 1 :])
        case 2:
            _replace(path, content[:at])
        case 3:
            path.unlink()
        case 4 if (run / other).is_file():
            _replace(path, (run / other).read_bytes())
            _replace(run / other, content)
            return {file, other}
        case 5:
            _replace(path, chance.choice(_ODD))
        case 6:
            path.unlink()
            path.mkdir()
        case _:
            stray = (
                run
                / file.parent
                / chance.choice(
                    ("part-00009.json", "part-0000x.json", "part-99999999999999999999.json", "x\x1b[2J\n", "session-9999.jsonl")
                )
            )
            _replace(stray, chance.choice(_ODD))
            return set()
    return {file}


def _read(run: Path, met: set[Path], case: bytes) -> None:
    """Read in every way (one case in eight is ranked, which is dear); then the parts that no stroke met are still held, and can be read."""
    look = rank if zlib.crc32(case) % 8 == 0 else Run.summary
    ends = [_end(lambda: look(load_run(run))), _end(lambda: status(run).sheets())]
    if Path("run.json") not in met:
        kept = {part for part in (0, 1) if not any(_part_of(file) == part for file in met)}
        folder = RunFolder(run)
        with folder.held():
            found = folder.finished()
            if not kept <= found.keys():
                raise Broken(f"parts {kept - found.keys()} were not touched and are lost")
            for part in kept:
                for table in TABLES:
                    folder.rows(part, table)
    for file in set(_files()) - met:
        if (run / file).read_bytes() != (whole_run() / file).read_bytes():
            raise Broken(f"{file} was changed")
    for end in ends:
        if end is not None:
            raise end


def _end(read: Callable[[], object]) -> GradalignError | None:
    try:
        read()
    except GradalignError as error:
        return error
    return None


def _part_of(file: Path) -> int | None:
    stem = file.name.partition(".")[0].split("-")
    return int(stem[1]) if stem[0] == "part" else None


def _instead(name: str) -> Callable[[bytes, Path], None]:
    """Read the run with the case in the place of one of its small files."""

    def read(case: bytes, folder: Path) -> None:
        run = _copy(folder)
        file = next(file for file in _files() if file.match(name))
        _replace(run / file, case)
        _read(run, {file}, case)

    return read


def _forged(case: bytes, folder: Path) -> None:
    """A part's Parquet file is the case, and its marker says that this is right."""
    run = _copy(folder)
    table = list(TABLES)[case[0] % len(TABLES)] if case else "nodes"
    _replace(part_path(run, table, 0), case[1:])
    marker = run / "finished" / "part-00000.json"
    found = json.loads(marker.read_bytes())
    del found["sha256"]
    found["tables"][table]["sha256"] = hashlib.sha256(case[1:]).hexdigest()
    _replace(
        marker, json.dumps(found | {"sha256": hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()}).encode()
    )
    load_run(run).frame(table)


def _reported(case: bytes, folder: Path) -> None:
    """A report of a run whose description is the case."""
    run = _copy(folder)
    _replace(run / "run.json", case)
    write_report(load_run(run), folder / "page.html")


def _outcome(case: bytes, folder: Path) -> None:
    """What the run ended with is the case; shown as the command shows it, and taken up where the run goes on."""
    run = _copy(folder)
    _replace(run / "outcome.json", case)
    _read(run, {Path("outcome.json")}, case)
    outcome = load_run(run).outcome
    if not outcome:
        raise GradalignError("it is taken for no outcome")
    _print_outcome(outcome)
    Watch(Effort(parse_budget("16"), decide=0.9), 1, 2, 4, outcome)


def _content(pattern: str) -> bytes:
    return (whole_run() / next(file for file in _files() if file.match(pattern))).read_bytes()


def _documents(pattern: str) -> st.SearchStrategy[bytes]:
    content = _content(pattern)
    document = json.loads(content)
    return st.one_of(changed([document]), changed([document]), mutated([content]), deep())


def _log_cases() -> st.SearchStrategy[bytes]:
    content = _content("log/*.jsonl")
    lines = [json.loads(line) for line in content.splitlines()]
    return st.one_of(mutated([content]), st.lists(changed(lines), max_size=5).map(b"\n".join), deep())


def _parquet_cases() -> st.SearchStrategy[bytes]:
    return mutated(_tables(), 4)


def _tables() -> list[bytes]:
    return [bytes([i]) + _content(f"{table}/*.parquet") for i, table in enumerate(TABLES)]


def _document_target(file: str, read: Callable[[bytes, Path], None], share: float, name: str | None = None) -> Target:
    """Cases in the place of one of a run's JSON files."""
    cases = st.deferred(lambda: _documents(file))
    return Target(name or file, cases, read, share, guided=False, whole=lambda: _content(file))


TARGETS = [
    Target("run folder", st.binary(min_size=1, max_size=8), _damaged, 12, guided=False),
    _document_target("run.json", _instead("run.json"), 5),
    _document_target("finished/part-00000.json", _instead("finished/part-00000.json"), 4, "marker"),
    _document_target("outcome.json", _outcome, 2),
    Target("log", st.deferred(_log_cases), _instead("log/*.jsonl"), 4, guided=False, whole=lambda: _content("log/*.jsonl")),
    Target("forged part", st.deferred(_parquet_cases), _forged, 4, guided=False, whole=lambda: _tables()[0]),
    _document_target("run.json", _reported, 0.05, "report"),
]
