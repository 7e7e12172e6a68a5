"""The pictures of README: a demo scored, its table as the terminal shows it, its report as Chromium does. python docs/pictures.py"""

import re
import shutil
import tempfile
from pathlib import Path

from gradalign_cli import console, tables
from playwright.sync_api import sync_playwright
from rich.console import Console

import gradalign

HERE = Path(__file__).parent
_FONTS = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)  # they would be fetched from a network


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        run = gradalign.score(teacher_rollouts=8, out=Path(place) / "run")
        recorded = Console(record=True, width=92, file=open("/dev/null", "w"))  # noqa: SIM115
        console.output = tables.output = recorded
        tables.print_sheets(gradalign.rank(run).sheets())
        picture = recorded.export_svg(title="gradalign score", clear=False)
        (HERE / "terminal.svg").write_text(_FONTS.sub("", picture).replace("Fira Code", "ui-monospace"), encoding="utf-8")
        gradalign.write_report(run)
        with sync_playwright() as p:
            browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1180, "height": 860})
            page.goto((run.path / "report.html").as_uri())
            page.wait_for_selector("#explorer:not([hidden])")
            page.locator("#ranking").scroll_into_view_if_needed()
            page.screenshot(path=HERE / "report.png")
            page.select_option("#beside", "ctx:answer")
            page.locator(".token[tabindex='0']").first.focus()
            page.keyboard.press("d")
            page.locator("#tokens").screenshot(path=HERE / "tokens.png")
            browser.close()


if __name__ == "__main__":
    main()
