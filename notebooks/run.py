"""Run every notebook from top to bottom, in an empty folder: python notebooks/run.py [--store].

Fails at the first cell that does; `--store` keeps the outputs.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

HERE = Path(__file__).parent
os.environ["JUPYTER_PLATFORM_DIRS"] = "1"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", action="store_true", help="write outputs into the notebooks")
    options = parser.parse_args()
    for path in sorted(HERE.glob("*.ipynb")):
        began = time.perf_counter()
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as place:
            client = NotebookClient(notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": place}})
            try:
                client.execute()
            except CellExecutionError as fault:
                print(f"{path.name} failed:\n{fault}", file=sys.stderr)
                return 1
        print(f"{path.name}: {time.perf_counter() - began:.0f} s", flush=True)
        if options.store:
            for cell in notebook.cells:
                cell.metadata.pop("execution", None)  # times of day: every run would differ
            notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
            nbformat.write(notebook, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
