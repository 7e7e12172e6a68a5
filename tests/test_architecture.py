"""The house keeps its floors: no import runs upward, none in a circle, and what must not know torch does not."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "gradalign"
FLOORS = [
    {"types", "visible", "home", "deadline"},
    {
        "sheets",
        "builtin",
        "seeds",
        "inference",
        "sketch",
        "tails",
        "spans",
        "transfer",
        "pacing",
        "horizon",
        "plugins",
        "endpoint",
    },
    {"tree", "questions", "contexts", "store", "objectives"},
    {"success", "models", "configurations"},
    {"alignment", "engines", "schedule", "totals"},
    {"testbed", "findings", "returns"},
    {"pipeline", "handover", "report"},
    {"api", "first_step"},
]
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "gradalign" and len(parts) > 1 else None


def imports(path: Path) -> set[str]:
    """Rooms that a file imports at its top (imports for type checkers only are none)."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(room(node.module))
        elif isinstance(node, ast.Import):
            found |= {room(alias.name) for alias in node.names}
    return {name for name in found if name}


def files() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).parts
        if parts[0] not in ("__init__.py", "data"):
            found.append((parts[0].removesuffix(".py"), path))
    return found


@pytest.mark.parametrize(("name", "path"), files(), ids=lambda value: str(value) if isinstance(value, str) else value.stem)
def test_no_import_runs_upward(name, path):
    assert name in LEVEL, f"give {name} a floor"
    for imported in imports(path) - {name}:
        assert LEVEL[imported] < LEVEL[name], f"{path.name} of {name} imports {imported}"


def test_floors_name_only_rooms_that_exist():
    assert {*LEVEL} == {name for name, _ in files()}


@pytest.mark.parametrize(
    "module",
    ["gradalign", "gradalign.store", "gradalign.findings", "gradalign.handover", "gradalign.report", "gradalign_cli.main"],
)
def test_reading_a_run_needs_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
