"""Reading a large run: 1,000,000 alignment rows over 2,000 questions. Time and peak memory of what reads it, and the report in a browser.

Every reading is a process of its own, so that its peak is its own. The report is opened from disk in Chromium (with Playwright, where
both are installed) until its token explorer is there. Exits 1, at full size, if `paths` or `findings` take 60 s or 2 GB, or the report
5 s or 8 MB. `SMALL=1` for the size that CI runs.
"""

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from synthetic import OBJECTIVES, TEACHERS, write_run
from trials import SMALL, report

from gradalign.findings import alignment_findings, compare_paths, rank
from gradalign.report import write_report
from gradalign.store import load_run

QUESTIONS, SCORED = (60, 20) if SMALL else (2000, 63)
READERS = {"rank": rank, "paths": compare_paths, "findings": alignment_findings, "report": write_report}
LIMITS = {"paths": (60, 2000), "findings": (60, 2000)}
_OPEN, _SIZE = 5.0, 8e6


def measure(reader: str, folder: Path) -> dict:
    """Seconds and peak memory of one reader in this process, loading the run included; what it starts from is told apart."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.perf_counter()
    READERS[reader](load_run(folder))
    return {
        "seconds": time.perf_counter() - began,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "before_mib": before,
    }


def opened(page_file: Path) -> float | None:
    """Seconds from asking for the page to its explorer being usable, the best of three; None without a browser."""
    chromium = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if chromium is None:
        return None
    taken = []
    with sync_playwright() as p:
        browser = p.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        for _ in range(3):
            page = browser.new_page()
            began = time.perf_counter()
            page.goto(page_file.as_uri())
            page.wait_for_selector("#explorer:not([hidden])", timeout=60_000)
            taken.append(time.perf_counter() - began)
            page.close()
        browser.close()
    return sorted(taken)[1]


def main() -> None:
    if len(sys.argv) > 2:
        print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]))))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        write_run(folder, QUESTIONS, SCORED)
        found = {}
        for reader in READERS:
            done = subprocess.run([sys.executable, __file__, reader, str(folder)], check=True, capture_output=True, text=True)
            found[reader] = json.loads(done.stdout.splitlines()[-1])
        page = folder / "report.html"
        size, seconds = page.stat().st_size, opened(page)
    alignment = QUESTIONS * SCORED * len(TEACHERS) * len(OBJECTIVES)
    rows = [[name, f"{f['seconds']:.1f} s", f"{f['peak_mib']:,.0f} MiB"] for name, f in found.items()]
    rows.append([f"report in Chromium ({size / 1e6:.1f} MB)", "no browser" if seconds is None else f"{seconds:.2f} s", ""])
    stored = {
        "questions": QUESTIONS,
        "alignment_rows": alignment,
        "readers": found,
        "report_bytes": size,
        "report_opens_s": seconds,
    }
    report("reading", f"{alignment:,} alignment rows over {QUESTIONS:,} questions", ["", "time", "peak memory"], rows, stored)
    beyond = [name for name, (most, mib) in LIMITS.items() if found[name]["seconds"] > most or found[name]["peak_mib"] > mib]
    beyond += ["the report's size"] if size > _SIZE else []
    beyond += ["opening the report"] if seconds is not None and seconds > _OPEN else []
    if beyond:
        sys.exit(f"beyond its limit: {', '.join(beyond)}")


if __name__ == "__main__":
    main()
