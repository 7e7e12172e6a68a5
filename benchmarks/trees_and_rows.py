"""Prefix trees of a million rollouts, and a run's rows against the disk: seconds, peak memory, and what plainer ways take in the same run.

Trees: rollouts of a chain over 50,000 tokens that is mostly sure of its next token, so that early tokens are shared and late ones are
not; and the two ends, all rollouts different and all the same. A million rollouts of a hundred tokens each; beside them, on a part of
the same rollouts and interleaved, the tree by `np.unique` at every depth and one of dictionaries in dictionaries.

Rows: the tables of a run with made-up numbers, part by part, as the run folder writes them (flushed and renamed, with checksums) and reads
them (checked), against `pyarrow.parquet` alone with its defaults and against a copy of the bytes, flushed. What is read is in the
page cache.

Every measurement is a process of its own, so that its peak is its own. Exits 1, at full size, if a tree takes 60 s or 4 GB, or if the run
folder takes more than one and a half times as long as pyarrow. `SMALL=1` for the size that CI runs.
"""

import gc
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from side_by_side import Comparison, tell
from synthetic import write_run
from trials import SMALL, report

from gradalign.store import TABLES, RunFolder, load_run
from gradalign.tree import build_tree

ROLLOUTS, TOKENS, VOCABULARY = (20_000 if SMALL else 1_000_000), 100, 50_000
BY_DEPTH, IN_DICTIONARIES = ROLLOUTS // 10, ROLLOUTS // 100
SURE = 0.85  # how often the chain takes its likeliest token
QUESTIONS = 100 if SMALL else 400
KINDS = ("shared", "distinct", "same")
REPEATS = 3
LONGEST, MOST_MIB, MOST_RATIO = 60.0, 4096.0, 1.5
Timed = dict[str, list[float]]


def rollouts_of(kind: str) -> list[np.ndarray]:
    """Views of one array of tokens: `shared` of ragged lengths, `distinct`, or the `same`."""
    rng = np.random.default_rng(0)
    ragged = rng.integers(TOKENS // 2, 3 * TOKENS // 2 + 1, ROLLOUTS)
    lengths = ragged if kind == "shared" else np.full(ROLLOUTS, TOKENS)
    ends = np.cumsum(lengths)
    flat = np.zeros(ends[-1], dtype=np.int32)
    if kind == "distinct":
        flat[:] = rng.integers(VOCABULARY, size=len(flat), dtype=np.int32)
    elif kind == "shared":
        _chain(rng, flat, ends - lengths, lengths)
    return [flat[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]


def _chain(rng: np.random.Generator, flat: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> None:
    """Fill in rollouts of a chain in which each token has a likeliest successor, and others that are ever less likely."""
    token = np.zeros(len(starts), dtype=np.int64)
    for step in range(lengths.max()):
        rank = np.where(rng.random(len(token)) < SURE, 0, (1 / (1e-5 + rng.random(len(token)))).astype(np.int64))
        token = (token * 31 + rank * 7919 + step) % VOCABULARY
        goes_on = lengths > step
        flat[starts[goes_on] + step] = token[goes_on]


def by_depth(sequences: Sequence[np.ndarray]) -> int:
    """Nodes of the tree, made by sorting all rollouts anew at every depth."""
    lengths = np.array([len(sequence) for sequence in sequences])
    tokens = np.full((len(sequences), lengths.max()), -1, dtype=np.int64)
    tokens[np.arange(lengths.max()) < lengths[:, None]] = np.concatenate(sequences)
    here, nodes = np.zeros(len(sequences), dtype=np.int64), 1
    for step in range(tokens.shape[1]):
        rows = np.flatnonzero(lengths > step)
        found, inverse = np.unique(here[rows] * VOCABULARY + tokens[rows, step], return_inverse=True)
        here[rows] = nodes + inverse
        nodes += len(found)
    return nodes


def in_dictionaries(sequences: Sequence[np.ndarray]) -> int:
    """Nodes of the tree, as dictionaries in dictionaries."""
    root: dict[int, Any] = {}
    nodes = 1
    for sequence in sequences:
        here = root
        for token in sequence.tolist():
            if token not in here:
                here[token] = {}
                nodes += 1
            here = here[token]
    return nodes


def _seconds(work: Callable[[], Any]) -> float:
    gc.collect()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def whole_tree(kind: str) -> dict[str, Any]:
    """Build the tree of all rollouts a few times."""
    sequences = rollouts_of(kind)
    before = peak_mib()
    seconds, nodes = [], 0
    for _ in range(REPEATS):
        began = time.perf_counter()
        nodes = len(build_tree(sequences))
        seconds.append(time.perf_counter() - began)
    built = peak_mib()
    tokens = sum(len(sequence) for sequence in sequences)
    return {
        "rollouts": len(sequences),
        "tokens": tokens,
        "nodes": nodes,
        "seconds": seconds,
        "before_mib": before,
        "peak_mib": built,
    }


def tree_against(kind: str) -> dict[str, Any]:
    """The same tree three ways, on as many rollouts as the plainer ways allow."""
    sequences = rollouts_of(kind)
    found: dict[str, Any] = {}
    for name, plainer, count in (("sorting by depth", by_depth, BY_DEPTH), ("dictionaries", in_dictionaries, IN_DICTIONARIES)):
        some = sequences[:count]
        nodes = plainer(some)
        assert nodes == len(build_tree(some))
        times: Timed = {"ours": [], "plainer": []}
        for _ in range(REPEATS):
            times["ours"].append(_seconds(lambda some=some: build_tree(some)))
            times["plainer"].append(_seconds(lambda some=some, plainer=plainer: plainer(some)))
        found[name] = {"rollouts": count, "nodes": nodes, **times}
    return found


def rows_on_disk() -> dict[str, Any]:
    """Write and read the parts of a run; every way of doing it in turn for each part."""
    writes: Timed = {"ours": [], "pyarrow": [], "bytes, flushed": []}
    reads: Timed = {"ours": [], "pyarrow": [], "bytes": []}
    sizes = {"arrow": 0, "ours": 0, "pyarrow": 0}
    with tempfile.TemporaryDirectory() as place:
        run = write_run(Path(place) / "made", QUESTIONS, 63)
        folder, plain, copy = RunFolder(Path(place) / "run"), Path(place) / "plain", Path(place) / "copy"
        folder.open(run.identity, run.description["provenance"])
        for path in (plain, copy):
            path.mkdir()
        for part in run.parts:
            tables = {name: RunFolder(run.path).table(part, name) for name in TABLES}
            writes["ours"].append(_seconds(lambda part=part, tables=tables: folder.write(part, tables)))
            writes["pyarrow"].append(_seconds(lambda part=part, tables=tables: _plain_write(plain, part, tables)))
            ours = _files(folder.path, part)
            content = [file.read_bytes() for file in ours]
            writes["bytes, flushed"].append(
                _seconds(lambda content=content: [_flushed(copy / str(i), c) for i, c in enumerate(content)])
            )
            sizes["arrow"] += sum(table.nbytes for table in tables.values())
            sizes["ours"] += sum(map(len, content))
            sizes["pyarrow"] += sum(file.stat().st_size for file in _plain_files(plain, part))
        for part in run.parts:
            reads["ours"].append(_seconds(lambda part=part: [folder.table(part, name) for name in TABLES]))
            reads["pyarrow"].append(_seconds(lambda part=part: [pq.read_table(file) for file in _plain_files(plain, part)]))
            reads["bytes"].append(_seconds(lambda part=part: [file.read_bytes() for file in _files(folder.path, part)]))
        checked = _seconds(lambda: load_run(folder.path)) / len(run.parts)
    return {
        "parts": len(writes["ours"]),
        "write": writes,
        "read": reads,
        "check_of_a_part": checked,
        "bytes": sizes,
        "peak_mib": peak_mib(),
    }


def _files(path: Any, part: int) -> list[Path]:
    return [path / name / f"part-{part:05d}.parquet" for name in TABLES]


def _plain_files(plain: Path, part: int) -> list[Path]:
    return [plain / f"{name}-{part}.parquet" for name in TABLES]


def _plain_write(plain: Path, part: int, tables: dict[str, pa.Table]) -> None:
    for file, table in zip(_plain_files(plain, part), tables.values(), strict=True):
        pq.write_table(table, file)


def _flushed(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _apart(measure: Callable[..., dict[str, Any]], *what: str) -> dict[str, Any]:
    """A measurement in a process of its own."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(measure, what)


def _spread(seconds: Sequence[float]) -> str:
    return f"{np.median(seconds):.3g} ({min(seconds):.3g}-{max(seconds):.3g})"


def _ratio(ours: Sequence[float], other: Sequence[float]) -> float:
    """How many times as long ours takes as the other: the median of ratios of neighbours."""
    return float(np.median(np.array(ours) / np.array(other)))


def _tree_rows(kind: str, tree: dict[str, Any], against: dict[str, Any]) -> list[list[str]]:
    memory = f"{tree['peak_mib']:,.0f}, {tree['before_mib']:,.0f} before"
    rows = [[f"tree, {kind}", f"{tree['rollouts']:,}", f"{tree['nodes']:,}", _spread(tree["seconds"]), "", "", memory]]
    for name, times in against.items():
        ratio = _ratio(times["ours"], times["plainer"])
        compared = [_spread(times["ours"]), _spread(times["plainer"]), f"{ratio:.2g}"]
        rows.append([f"  against {name}", f"{times['rollouts']:,}", f"{times['nodes']:,}", *compared, ""])
    return rows


def _disk_rows(disk: dict[str, Any]) -> list[list[str]]:
    rows = []
    for way in ("write", "read"):
        ours = disk[way]["ours"]
        for name, times in disk[way].items():
            if name != "ours":
                compared = [_spread(ours), _spread(times), f"{_ratio(ours, times):.2g}"]
                rows.append([f"{way} a part, against {name}", "", "", *compared, ""])
    rows.append(["check a part", "", "", f"{disk['check_of_a_part']:.3g}", "", "", f"{disk['peak_mib']:,.0f}"])
    return rows


def beyond(trees: dict[str, dict[str, Any]], disk: dict[str, Any]) -> list[str]:
    """What is over its limit."""
    slow = [f"the tree of {kind} rollouts" for kind, tree in trees.items() if max(tree["seconds"]) > LONGEST]
    slow += [f"its memory, of {kind} ones" for kind, tree in trees.items() if tree["peak_mib"] > MOST_MIB]
    return slow + [
        f"to {way} a part" for way in ("write", "read") if _ratio(disk[way]["ours"], disk[way]["pyarrow"]) > MOST_RATIO
    ]


def comparisons(trees: dict[str, Any], against: dict[str, Any], disk: dict[str, Any]) -> list[Comparison]:
    """The rows for `bench.py`."""
    found = []
    for kind, tree in trees.items():
        what = f"prefix tree of {tree['rollouts']:,} {kind} rollouts"
        found.append(Comparison(what, "s", tree["seconds"], bar=LONGEST))
        found.append(Comparison(what, "MiB", [tree["peak_mib"]], bar=MOST_MIB))
    for name, times in against["shared"].items():
        what = f"prefix tree of {times['rollouts']:,} shared rollouts"
        found.append(Comparison(what, "s", times["ours"], name, times["plainer"]))
    for way in ("write", "read"):
        found.append(
            Comparison(f"{way} the rows of a part", "s", disk[way]["ours"], "pyarrow alone", disk[way]["pyarrow"], MOST_RATIO)
        )
    return found


def main() -> None:
    trees = {kind: _apart(whole_tree, kind) for kind in KINDS}
    against = {kind: _apart(tree_against, kind) for kind in KINDS}
    disk = _apart(rows_on_disk)
    rows = [row for kind in KINDS for row in _tree_rows(kind, trees[kind], against[kind])] + _disk_rows(disk)
    sizes = {name: size / disk["parts"] / 1e6 for name, size in disk["bytes"].items()}
    title = f"Trees, and parts of {sizes['arrow']:.0f} MB in memory: {sizes['ours']:.1f} MB on disk, {sizes['pyarrow']:.1f} MB by pyarrow"
    columns = ["", "rollouts", "nodes", "seconds", "the other's", "ratio", "peak MiB"]
    report("trees_and_rows", title, columns, rows, {"trees": trees, "against": against, "rows": disk})
    tell(comparisons(trees, against, disk))
    broken = beyond(trees, disk)
    if broken and not SMALL:
        sys.exit(f"beyond its limit: {', '.join(broken)}")


if __name__ == "__main__":
    main()
