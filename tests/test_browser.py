"""The report as a reader meets it: a real Chromium opens the file from disk, without a network, by mouse, by keyboard and on paper."""

import os
import shutil
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from hostile import QUESTION, TEACHER, TEXT, WORDS, hostile_run

import gradalign
from gradalign.findings.tokens import question_tokens

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

MISSING = "\u2013"
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    teachers = ["ctx:correct_demo", "ctx:wrong_demo", "ctx:answer"]
    folder = tmp_path_factory.mktemp("run") / "r"
    made = gradalign.score(
        teachers=teachers, objectives=["reverse_kl", "forward_kl"], limit=12, budget=64, teacher_rollouts=4, out=folder
    )
    gradalign.write_report(made, draws=200)
    return made


@pytest.fixture(scope="module")
def hostile(tabular, tmp_path_factory):
    made = hostile_run(tabular, tmp_path_factory.mktemp("hostile") / "r")
    gradalign.write_report(made, draws=200)
    return made


@pytest.fixture
def open_page(chromium):
    """Open a report offline; every request beyond the file, and every fault of the script, is kept."""
    contexts = []

    def opened(run, fragment: str = "", **options):
        context = chromium.new_context(**{"viewport": {"width": 1200, "height": 900}, "offline": True} | options)
        contexts.append(context)
        page = context.new_page()
        page.faults, page.asked = [], []
        page.on("pageerror", lambda fault: page.faults.append(str(fault)))
        page.on("console", lambda message: message.type == "error" and page.faults.append(message.text))
        page.on("dialog", lambda dialog: (page.faults.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(f"{(run.path / 'report.html').as_uri()}{fragment}")
        page.wait_for_selector("#explorer:not([hidden])")
        return page

    yield opened
    for context in contexts:
        context.close()


def scored_place(run, question: str, number: int, teacher: str, objective: str) -> tuple[int, object, object]:
    """A position of a rollout at which tokens were tried, with the question's tokens and the rollout."""
    view = next(question_tokens(run, [question]))
    rollout = next(r for r in view.rollouts if r.number == number)
    dot = view.values(rollout, "dot", teacher, objective)
    return next(i for i, value in enumerate(dot) if value == value), view, rollout


def keep(page, name: str) -> None:
    """A screenshot, kept where GRADALIGN_SCREENSHOTS says."""
    picture = page.screenshot(full_page=True)
    assert len(picture) > 20_000
    if os.environ.get("GRADALIGN_SCREENSHOTS"):
        (Path(os.environ["GRADALIGN_SCREENSHOTS"]) / f"{name}.png").write_bytes(picture)


def test_it_opens_without_a_network_and_without_a_fault(run, open_page):
    page = open_page(run)
    assert page.faults == []
    assert page.asked == [(run.path / "report.html").as_uri()]
    for id in (
        "summary",
        "ranking",
        "paths",
        "depth",
        "divergence",
        "difficulty",
        "paced",
        "contexts",
        "skipped",
        "tokens",
        "method",
    ):
        assert page.locator(f"section#{id} h2").count() == 1
    assert "ctx:correct_demo" in page.locator("#summary").inner_text()
    assert page.locator("#ranking svg").count() == 1
    assert page.locator("#tokens select#question option").count() == (run.questions.scored_nodes > 0).sum()
    keep(page, "report-light")


def until(page, holds) -> None:
    """Wait for a condition (the page's own policy forbids evaluating text)."""
    for _ in range(100):
        if holds():
            return
        page.wait_for_timeout(50)
    raise AssertionError("it did not come to hold within 5 s")


def shown_place(page) -> dict[str, str]:
    """What the address says, once it has settled."""
    page.wait_for_timeout(200)
    return {name: values[0] for name, values in parse_qs(page.url.partition("#")[2], keep_blank_values=True).items()}


def number_of_rollout(page) -> int:
    return int(page.locator("#rollout option:checked").inner_text().partition(":")[0])


def test_numbers_on_the_page_are_those_of_the_rows(run, open_page):
    page = open_page(run)
    question = shown_question = page.locator("#question option:checked").inner_text().split(" ")[0]
    assert shown_question in run.questions.question.tolist()
    teacher, objective = "ctx:correct_demo", "reverse_kl"
    place, view, rollout = scored_place(run, question, number_of_rollout(page), teacher, objective)
    page.locator(f'.token[data-place="{place}"]').first.click()
    detail = page.locator("#detail")
    rows = [row.inner_text().split("\t") for row in detail.locator("tbody tr").all()]
    expected = view.candidates(int(rollout.nodes[place]), teacher, objective)
    assert len(rows) == len(expected) > 1
    for row, want in zip(rows, expected.to_dict("records"), strict=True):
        taken, text, pi, tau, success, n, g, d = row
        assert (taken.strip() == "→") == (want["token"] == rollout.tokens[place])
        assert text.strip() == (want["token_text"].strip() or "■")
        assert float(pi) == pytest.approx(want["student_prob"], abs=6e-4)
        assert float(tau) == pytest.approx(want["teacher_prob"], abs=6e-4)
        numbers = [float(x) for x in success.replace("[", "").replace("]", "").replace(",", "").split()]
        assert numbers == pytest.approx([want["success"], want["lower"], want["upper"]], abs=6e-3)
        assert int(n) == want["n"]
        for said, name in ((g, "ideal"), (d, "direction")):
            assert (said == MISSING) == (want[name] != want[name])
            if said != MISSING:
                assert float(said) == pytest.approx(want[name], abs=6e-5)
    key = (int(rollout.nodes[place]), teacher, objective)
    said = dict(zip(detail.locator("dt").all_inner_texts(), detail.locator("dd").all_inner_texts(), strict=True))
    dot, error = (float(x) for x in said["⟨g, d⟩ ± se"].split(" ± "))
    pair = view.pairs.loc[key]
    assert (dot, error) == (pytest.approx(pair["dot"], rel=0.06), pytest.approx(pair.dot_se, rel=0.06))
    assert float(said["alignment"]) == pytest.approx(pair.alignment, rel=6e-3)
    ranking = gradalign.rank(run, draws=200).sheets()[0]
    shown = [row.inner_text().split("\t") for row in page.locator("#ranking table").first.locator("tbody tr").all()]
    assert [[cell.strip() for cell in row] for row in shown] == [list(row) for row in ranking.rows]


def test_the_explorer_by_mouse(run, open_page):
    page = open_page(run)
    question = page.locator("#question option:checked").inner_text().split(" ")[0]
    place, _, _ = scored_place(run, question, number_of_rollout(page), "ctx:correct_demo", "reverse_kl")
    first = page.locator('.token[data-place="0"]').first
    first.click()
    page.locator(f'.token[data-place="{place}"]').first.hover()
    assert page.locator("#detail table").count() == 1  # what was tried under the cursor
    page.locator("#tokens-title").hover()
    assert first.get_attribute("aria-selected") == "true"  # hovering chooses nothing
    page.locator(f'.token[data-place="{place}"]').first.click()
    assert shown_place(page)["at"] == str(place)
    page.select_option("#beside", "ctx:answer")
    assert page.locator(".pane").count() == 2
    assert page.locator("#detail th", has_text="τ2").count() == 1
    page.select_option("#quantity", "reverse_kl")
    assert "KL" in page.locator("#legend").inner_text()
    coloured = page.locator('.token[style*="rgba"][data-place]')
    before = coloured.count()
    assert before > 0
    page.locator("#threshold").evaluate(
        "slider => { slider.value = 60; slider.dispatchEvent(new Event('input', {bubbles: true})) }"
    )
    until(page, lambda: page.locator("#threshold-value").inner_text() != "all")
    assert coloured.count() < before
    page.locator("#prompt").click()
    contexts = run.contexts.set_index(["question", "teacher"]).message
    seen = page.locator("#messages pre").all_inner_texts()
    assert seen[1:] == [contexts[question, "ctx:correct_demo"], contexts[question, "ctx:answer"]]
    page.locator("#after").click()
    until(page, lambda: not page.locator("#question option:checked").inner_text().startswith(f"{question} "))
    page.locator("#decisive").click()
    assert page.locator("#said").inner_text() != ""
    assert page.faults == []


def test_the_explorer_by_keyboard_alone(run, open_page):
    page = open_page(run)
    page.locator('.token[tabindex="0"]').first.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert shown_place(page)["at"] == "2"
    assert page.evaluate("document.activeElement.dataset.place") == "2"
    page.keyboard.press("End")
    last = page.locator(".pane").first.locator(".token").count() - 1
    assert shown_place(page)["at"] == str(last)
    page.keyboard.press("Home")
    page.keyboard.press("d")
    assert page.locator("#said").inner_text().startswith("1 of ")
    assert page.locator("#detail table").count() == 1
    decisive = shown_place(page)["at"]
    view = next(question_tokens(run, [shown_place(page)["q"]]))
    rollout = next(r for r in view.rollouts if r.number == int(shown_place(page)["r"]))
    assert int(decisive) == view.decisive(rollout)[0], (
        shown_place(page),
        view.decisive(rollout),
        view.nodes.reindex(rollout.nodes).g_norm2,
    )
    page.select_option("#teacher", "ctx:wrong_demo")
    until(page, lambda: page.locator(".pane h3").first.inner_text() == "ctx:wrong_demo")
    page.locator('.token[tabindex="0"]').first.focus()
    page.keyboard.press("Home")
    page.keyboard.press("w")
    worst = view.worst(rollout, "ctx:wrong_demo", shown_place(page)["o"])
    if len(worst):
        assert int(shown_place(page)["at"]) == worst[0]
    page.keyboard.press("p")
    assert page.locator("#messages").is_visible()
    reached = []
    page.locator("a.skip").focus()
    for _ in range(120):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert {"question", "rollout", "teacher", "quantity", "threshold", "worst", "decisive", "prompt"} <= {*reached}
    assert any(name.startswith("token") for name in reached)


def test_a_link_opens_its_place(run, open_page):
    page = open_page(run)
    page.locator("#after").click()
    until(page, lambda: "q=" in page.url)
    page.select_option("#beside", "ctx:wrong_demo")
    page.select_option("#quantity", "advantage")
    page.locator('.token[data-place="3"]').first.click()
    page.wait_for_timeout(200)
    fragment = "#" + page.url.partition("#")[2]
    again = open_page(run, fragment)
    again.wait_for_selector('.token[data-place="3"][aria-selected="true"]')
    assert again.locator("#question").input_value() == page.locator("#question").input_value()
    assert again.locator("#beside").input_value() == "ctx:wrong_demo"
    assert again.locator("#quantity").input_value() == "advantage"
    unknown = open_page(run, "#q=nothing&r=99&t=%3Cimg%3E&at=-4")
    assert unknown.faults == []


def test_a_link_into_a_long_rollout_shows_its_token(tmp_path, open_page):
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    from synthetic import write_run

    long = write_run(tmp_path / "r", 4, 20, rollouts=2, length=1500)
    gradalign.write_report(long, draws=100)
    page = open_page(long)
    token = page.locator('.token[data-place="1400"]').first
    fragment = f"#q=q00001&r={number_of_rollout(page)}&t=ctx%3Aanswer&b=&o=reverse_kl&by=dot&from=0&at=1400"
    page = open_page(long, fragment)
    token = page.locator('.token[data-place="1400"]').first
    box, held = token.bounding_box(), page.locator(".rollout").first.bounding_box()
    assert held["y"] <= box["y"] <= held["y"] + held["height"]


def test_hostile_text_shows_as_text(hostile, open_page):
    page = open_page(hostile)
    assert page.faults == []
    assert page.title() != "owned"
    assert page.locator("body img, body b img").count() == 0
    assert page.locator("section svg[onload]").count() == 0
    tokens = page.locator(".token[data-place]").all_inner_texts()
    assert {*tokens} <= {visible_words(word) for word in (*WORDS, *(f"{w}\nAnswer: {a}" for w in WORDS for a in ("yes", "no")))}
    assert any("<script>" in token or "</style>" in token for token in tokens)
    page.locator("#prompt").click()
    assert "<script>document.title='owned'</script>" in page.locator("#messages").inner_text()
    whole = page.locator("html").inner_text()
    assert not {*whole} & {*"\u202e\u2066\x1b\x07"}
    assert "<svg onload" in page.locator("#ranking").inner_text()
    assert QUESTION.split("<")[0] in page.locator("#question option").first.inner_text()
    assert TEXT.split("\x1b")[0] in page.locator("#messages").inner_text()
    assert TEACHER.split("\u202e")[0] in page.locator(".pane h3").first.inner_text()
    keep(page, "report-hostile")


def visible_words(word: str) -> str:
    """A token as the explorer writes it."""
    shown = "".join("\ufffd" if c in "\u202e\u2066\x1b\x07" else c for c in word)
    return shown.replace("\n", "⏎\n")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 1200), ("light", 380)])
def test_no_serious_fault_of_accessibility(run, open_page, scheme, width):
    page = open_page(run, color_scheme=scheme, viewport={"width": width, "height": 900})
    page.select_option("#beside", "ctx:answer")
    page.locator("#prompt").click()
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true })")
    found = axe.Axe().run(page).response["violations"]
    serious = [f"{each['id']}: {each['nodes'][0]['html'][:200]}" for each in found if each["impact"] in ("serious", "critical")]
    assert serious == []
    keep(page, f"report-{scheme}-{width}")


def test_it_fits_a_narrow_screen(run, open_page):
    page = open_page(run, viewport={"width": 380, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 380


def test_it_prints(run, open_page):
    page = open_page(run)
    page.set_viewport_size({"width": 718, "height": 1000})  # A4 with its margins
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    beyond = page.evaluate(
        "() => Array.from(document.querySelectorAll('main table')).filter((t) => t.getBoundingClientRect().right > 719).length"
    )
    assert beyond == 0
    assert page.locator("details:not([open])").count() == 0
    assert page.pdf(format="A4", print_background=True).startswith(b"%PDF")
