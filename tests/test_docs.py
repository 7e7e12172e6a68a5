"""The documents stay true: pages made from the code are as it makes them, links lead somewhere, commands and code in them work."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from gradalign_cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def build():
    """docs/build.py as a module, which finds those beside it."""
    sys.path.insert(0, str(ROOT / "docs"))
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "docs"))
    return module


def test_pages_made_from_the_code_are_as_it_makes_them():
    for name, page in build().PAGES.items():
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == page(), f"{name} is old: run python docs/build.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if "://" in link or link.startswith("#"):
            continue
        target, _, anchor = link.partition("#")
        place = page.parent / target
        assert place.exists(), link
        if anchor:
            heads = re.findall(r"^#+ (.*)$", place.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}, link


def commands() -> list[str]:
    """Every gradalign command in a shell block or in backticks of the pages."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", text, flags=re.DOTALL)
        lines = [line for block in blocks for line in block.splitlines()]
        lines += re.findall(r"`(gradalign [^`]+)`", text)
        found += [line.partition("  #")[0].strip() for line in lines if line.strip().startswith("gradalign ")]
    return sorted({*found})


def test_commands_in_the_documents_exist_with_their_options():
    group = typer.main.get_command(app)
    commands_below = {
        f"{name} {below}": command
        for name, whole in group.commands.items()
        for below, command in getattr(whole, "commands", {}).items()
    }
    known = {
        name: {o for p in command.get_params(typer.Context(command)) for o in (*p.opts, *p.secondary_opts)}
        for name, command in (group.commands | commands_below).items()
    }
    listed = commands()
    assert len(listed) > 20
    for line in listed:
        words = shlex.split(line.replace("…", "").replace("'\\[trl]'", ""))[1:]
        if not words or words[0].startswith("-") or words[0] == "RUN":
            continue
        assert words[0] in known, line
        options = known.get(" ".join(words[:2]), known[words[0]])
        for word in words[1:]:
            if word.startswith("--"):
                assert word.partition("=")[0] in options, line


@pytest.mark.slow
def test_code_in_the_documents_runs(tmp_path):
    """The Python of the tutorial and of what users bring, in files of their own."""
    for page in ("tutorial.md", "your-own.md"):
        for i, code in enumerate(
            re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), flags=re.DOTALL)
        ):
            file = tmp_path / f"{page.removesuffix('.md').replace('-', '_')}_{i}.py"
            file.write_text(code)
            done = subprocess.run(
                [sys.executable, str(file)],
                cwd=tmp_path,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr[-1500:]
    assert "is first" in done.stdout
