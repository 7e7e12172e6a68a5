"""Are the distributions that pip would install the ones that were tested? python .ci/hashes.py [--all] [--write]

constraints.sha256 holds the checksum of every distribution that constraints.txt led to where it was written, by file name. pip is asked
what it would install into an empty environment, with which checksums (`pip install --dry-run --report`), and each file that the lock knows
must have the lock's. A file of another platform or Python has another name; it is counted and not refused, since an index may serve what
was never tested here, as torch's CPU build comes under a name of its own. A known name with other content is what nobody should install.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "constraints.sha256"
EXTRAS = "test,trl,scale,browser,notebooks,fuzz"
TORCH = "torch==2.13.0"


def offered(extras: str) -> dict[str, str]:
    """sha256 by file name of everything that pip would install."""
    project = f"{ROOT}[{extras}]" if extras else str(ROOT)
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--quiet",
        "--disable-pip-version-check",
        "--dry-run",
        "--ignore-installed",
    ]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        subprocess.run(
            [*command, "--report", str(report), "--constraint", str(ROOT / "constraints.txt"), TORCH, project], check=True
        )
        items = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {
        unquote(item["download_info"]["url"].rpartition("/")[2]): item["download_info"]["archive_info"]["hashes"]["sha256"]
        for item in items
        if "archive_info" in item["download_info"]
    }


def locked() -> dict[str, str]:
    """sha256 by file name as the lock has them."""
    lines = (line.split() for line in LOCK.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    return {name: checksum for checksum, name in lines}


def differing(lock: dict[str, str], found: dict[str, str]) -> list[str]:
    """Names of files whose content is not the one in the lock."""
    return sorted(name for name, checksum in found.items() if lock.get(name, checksum) != checksum)


def write(found: dict[str, str]) -> None:
    head = "# Checksums of what constraints.txt led to on Linux x86-64 with Python 3.11: python .ci/hashes.py --all --write\n"
    lines = [f"{checksum}  {name}\n" for name, checksum in sorted(found.items(), key=lambda item: item[0].lower())]
    LOCK.write_text(head + "".join(lines), encoding="utf-8")


def main() -> int:
    if "--write" in sys.argv and "--all" not in sys.argv:
        print("--write without --all would leave out what the extras install; give both", file=sys.stderr)
        return 2
    found = offered(EXTRAS if "--all" in sys.argv else "")
    if "--write" in sys.argv:
        write(found)
    wrong = differing(locked(), found)
    for name in wrong:
        print(f"{name} has sha256 {found[name]}, not {locked()[name]} as in {LOCK.name}: do not install it", file=sys.stderr)
    known = len(found.keys() & locked().keys())
    print(
        f"{known - len(wrong)} of {len(found)} distributions are the ones tested; {len(found) - known} are unknown to {LOCK.name}"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
