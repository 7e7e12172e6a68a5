"""Write the pages that are made from the code: python docs/build.py [--check]. `--check` writes nothing and fails where a page is old."""

import sys
from pathlib import Path

import typer
from gradalign_cli.main import app
from typer.cli import get_docs_for_click

from gradalign.store import TABLES

HERE = Path(__file__).parent


def schema_page() -> str:
    """Every table and column of a run folder."""
    parts = [
        "# The tables of a run\n",
        "Made from `gradalign/store/schema.py` by `python docs/build.py`.\n",
        "A run folder holds `run.json`, `finished/` with a marker and checksums for each part, `log/` with what happened in each session "
        "(`gradalign status` reads it), and a folder of Parquet files for each "
        'table. They open in pandas, DuckDB, Polars or `datasets.load_dataset("parquet", …)` without this package; '
        "`gradalign.load_run(path)` gives them as frames: `run.alignment`, `run.nodes`, … Columns carry unit and meaning as Arrow metadata "
        "too.\n",
    ]
    for table, columns in TABLES.items():
        rows = [f"| `{c.name}` | {c.type} | {c.unit} | {c.meaning.replace('|', chr(92) + '|')} |" for c in columns]
        parts.append("\n".join([f"## {table}\n", "| column | type | unit | meaning |", "| --- | --- | --- | --- |", *rows, ""]))
    return "\n".join(parts)


def commands_page() -> str:
    """Every command with its options."""
    made = get_docs_for_click(obj=typer.main.get_command(app), ctx=typer.Context(typer.main.get_command(app)), name="gradalign")
    return f"<!-- Made from the commands by `python docs/build.py`. -->\n\n{made.strip()}\n"


PAGES = {"schema.md": schema_page, "commands.md": commands_page}


def main() -> int:
    old = []
    for name, page in PAGES.items():
        text, place = page(), HERE / name
        if not place.exists() or place.read_text(encoding="utf-8") != text:
            old.append(name)
            if "--check" not in sys.argv:
                place.write_text(text, encoding="utf-8")
    if old and "--check" in sys.argv:
        print(f"old: {', '.join(old)}; run python docs/build.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
