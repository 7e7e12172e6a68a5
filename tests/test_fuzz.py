"""Every parser of what comes from outside, on some hundred cases and on every case that ever failed; campaigns are tests/fuzz/run.py's."""

import logging
import signal
import warnings
from contextlib import contextmanager
from itertools import count

import pytest
from fuzz import model_files, runs
from fuzz.run import REGRESSIONS, store, wrong
from fuzz.table import TARGETS
from fuzz.target import Broken, Target, verdict
from hypothesis import HealthCheck, Phase, given, seed, settings

from gradalign.types import GradalignError

CASES = 150
HANGS = 60
FEWER = {  # where a case takes milliseconds, or, as a template that never ends, seconds
    "report": 2,
    "server answer": 60,
    "context template": 30,
    "chat template": 12,
    **{target.name: 25 for target in runs.TARGETS if target.name != "report"},
    **{target.name: 12 for target in model_files.TARGETS},
}
STORED = sorted(path for path in REGRESSIONS.rglob("*") if path.is_file())


@contextmanager
def no_hang():
    """Ends a case that has taken as much of the processor as no import and no first use of a model does.

    Campaigns hold every case to 5 seconds on the clock, in processes that are warm; a test process may be loading torch in its first.
    """

    def end(signum: int, frame: object) -> None:
        raise Broken(f"still running after {HANGS} seconds of the processor")

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, HANGS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    """What libraries warn of and log about hostile files is not looked at."""
    monkeypatch.chdir(tmp_path)
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", TARGETS)
def test_every_case_ends_in_success_or_one_line(name, tmp_path):
    target, ends, number = TARGETS[name], {"success": 0, "refused": 0, "not read": 0}, count()

    @seed(7)
    @settings(
        max_examples=FEWER.get(name, CASES),
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(target.cases)
    def each(case: bytes) -> None:
        folder = tmp_path / str(next(number))
        folder.mkdir()
        with no_hang():
            ends[verdict(target, case, folder)] += 1

    each()
    assert ends["success"] + ends["refused"] > 0
    assert ends["refused"] or name in ("answers", "log", "place of a run", "hostile id"), "nothing hostile was made"


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.seeds or target.whole])
def test_what_is_whole_gets_through(name, tmp_path):
    target = TARGETS[name]
    assert verdict(target, target.whole() if target.whole else target.seeds[0], tmp_path) == "success"


@pytest.mark.parametrize("path", STORED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_failed_once_is_refused_in_a_line(path, tmp_path):
    name = path.parent.name.replace("_", " ")
    target = next(target for target in TARGETS.values() if target.name.replace("_", " ") == name)
    with no_hang():
        verdict(target, path.read_bytes(), tmp_path)


def test_stored_cases_have_a_target_and_the_name_of_their_content():
    for path in STORED:
        assert path == store(path.parent.name, path.read_bytes())
        assert path.parent.name in {name.replace(" ", "_") for name in TARGETS}


@pytest.mark.parametrize(("cases", "failed", "code"), [(4, 0, 0), (3, 0, 1), (4, 1, 1)])
def test_a_campaign_fails_by_its_figures(cases, failed, code):
    """One case in five reached no parser; what failed before a campaign was killed and went on counts as well."""
    figures = {"total": {"failed": failed}, "targets": {"x": {"cases": cases, "not read": 1, "wanted": 5}}}
    assert wrong(figures) == code


@pytest.mark.parametrize("said", ["", "\n", "a\x1b[2J"])
def test_a_line_that_no_user_should_see_fails(said, tmp_path):
    """What the terminal would obey is made visible before, so only an empty line is left to fail."""

    def read(case: bytes, folder: object) -> None:
        raise GradalignError(said)

    target = Target("x", TARGETS["budget"].cases, read)
    if said.strip():
        assert verdict(target, b"", tmp_path) == "refused"
    else:
        with pytest.raises(Broken):
            verdict(target, b"", tmp_path)
