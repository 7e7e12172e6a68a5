"""The command as a user meets it: what it prints, and for every fault one line and exit code 2."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from gradalign import load_run
from gradalign.builtin import builtin_path

TINY = ["--limit", "4", "--rollouts", "4", "--budget", "32", "--demonstrations", "4", "--teacher", "ctx:reference"]


def spoiled(tmp_path: Path, change) -> str:
    folder = Path(shutil.copytree(builtin_path("students") / "small", tmp_path / "spoiled"))
    change(folder)
    return str(folder)


def question_file(tmp_path: Path, **record) -> str:
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"question": "What is 2+2?", "answer": "4", **record}), encoding="utf-8")
    return str(path)


def test_score_then_rank_then_go_on(gradalign, tmp_path):
    code, out, _ = gradalign("score", *TINY, "--out", "r")
    assert code == 0
    assert "Ranking by transfer_drive over 4 questions" in out
    assert "ctx:reference" in out
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*.parquet"))
    assert gradalign("score", *TINY, "--out", "r")[0] == 0
    assert sorted(path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*.parquet")) == before
    code, out, _ = gradalign("rank", "r", "--by", "gain")
    assert code == 0
    assert "Ranking by gain" in out
    code, _, err = gradalign("score", *TINY, "--out", "r", "--seed", "3")
    assert code == 2
    assert "seed=0, not 3" in err


def test_configurations_say_what_to_score_and_are_ranked_and_written(gradalign, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "- {name: first | plain, teacher: 'ctx:reference', objective: reverse_kl}\n"
        "- {name: '[bold]second', teacher: 'ctx:reference', objective: 'jsd:0.5', questions: 'paced:1:1'}\n"
    )
    code, out, _ = gradalign("score", *TINY, "--configs", "mine.yaml", "--out", "r")
    assert code == 0
    assert "[bold]second" in out
    (tmp_path / "more.yaml").write_text("- {name: third, teacher: 'ctx:reference', objective: forward_kl}\n"
                                        "- {name: first | plain, teacher: 'ctx:reference', objective: reverse_kl}\n")  # fmt: skip
    for suffix in ("csv", "json", "parquet", "md", "tex"):
        code, out, _ = gradalign("rank", "r", "--configs", "more.yaml", "--by", "drive", "--out", f"t.{suffix}")
        assert code == 0
        assert "score with --objective 'forward_kl'" in " ".join(out.split())
    frames = [pd.read_csv(tmp_path / "t.csv"), pd.read_json(tmp_path / "t.json"), pd.read_parquet(tmp_path / "t.parquet")]
    for frame in frames:
        assert frame.configuration.tolist() == ["first | plain"]
        assert frame.drive[0] == pytest.approx(frames[0].drive[0])
    assert (tmp_path / "t.md").read_text().count("first \\| plain") == 1
    assert "\\begin{tabular}" in (tmp_path / "t.tex").read_text()
    code, out, _ = gradalign("pbsd", "r", "--beta", "0.5", "--samples", "8", "--out", "p.csv")
    assert code == 0
    assert "known from 8 rollouts" in " ".join(out.split())
    assert "score contexts" in " ".join(out.split())
    assert len(pd.read_csv(tmp_path / "p.csv")) == 2
    code, out, _ = gradalign("paths", "r", "--draws", "100", "--out", "w.json")
    assert code == 0
    assert "flipping signs of whole questions" in " ".join(out.split())
    assert pd.read_json(tmp_path / "w.json").cosine.tolist()[:3] == ["mean", "weighted", "pooled"]
    code, out, _ = gradalign("paced", "r", "--out", "c.parquet")
    assert code == 0
    assert "default" in out
    assert {*pd.read_parquet(tmp_path / "c.parquet").space} == {"head", "logits"}
    code, _, err = gradalign("rank", "r", "--out", "t.xls")
    assert code == 2
    assert ".csv" in err


def test_an_edited_template_is_another_configuration(gradalign, tmp_path):
    template = tmp_path / "mine.j2"
    template.write_text("{{ prompt }} {{ answer }}")
    arguments = ["score", *TINY[:-2], "--teacher", f"ctx:{template}", "--out", "r"]
    assert gradalign(*arguments)[0] == 0
    template.write_text("{{ prompt }} {{ solution }}")
    code, _, err = gradalign(*arguments)
    assert code == 2
    assert "text of" in err


def test_an_unfinished_run_is_ranked_and_said_to_be_unfinished(gradalign, tmp_path):
    assert gradalign("score", *TINY[2:], "--limit", "12", "--out", "r")[0] == 0
    (tmp_path / "r" / "finished" / "part-00001.json").unlink()
    code, out, _ = gradalign("rank", "r")
    assert code == 0
    assert "6 questions are not scored yet" in out


def test_both_doors_find_the_same_run(gradalign, tmp_path):
    import gradalign as library

    student = str(builtin_path("students") / "small")
    assert gradalign("score", *TINY, "--student", student)[0] == 0
    run = library.score(student=student, teachers=["ctx:reference"], limit=4, rollouts=4, budget=32, demonstrations=4)
    assert len(list((tmp_path / "runs").iterdir())) == 1
    assert run.path.name == next((tmp_path / "runs").iterdir()).name


def test_settings_find_their_run_again(gradalign, tmp_path):
    assert gradalign("score", *TINY)[0] == 0
    assert gradalign("score", *TINY)[0] == 0
    assert len(list((tmp_path / "runs").iterdir())) == 1
    assert gradalign("score", *TINY, "--seed", "1")[0] == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2


@pytest.mark.parametrize("arguments", [["--help"], ["score", "--help"], ["rank", "--help"], ["doctor", "--help"]])
def test_help_has_examples(gradalign, arguments):
    code, out, _ = gradalign(*arguments)
    assert code == 0
    assert "gradalign" in out
    assert arguments == ["--help"] or "Example" in out


def test_version_and_doctor(gradalign):
    assert gradalign("--version")[1].startswith("gradalign 0.")
    code, out, _ = gradalign("doctor")
    assert code == 0
    assert torch.__version__ in out
    assert "builtin:small" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["score", "--student", "Qwen3-0.6"], "did you mean Qwen3-0.6B"),
        (["score", "--student", "nobody/nothing"], "no network"),
        (["score", "nowhere.jsonl"], "no such question set or file"),
        (["score", "builtin:algebra"], "builtin:arithmetic"),
        (["score", "--teacher", "correct_demo"], "ctx:NAME"),
        (["score", "--teacher", "ctx:corect_demo"], "did you mean correct_demo"),
        (["score", "--teacher", "ctx:answer", "--teacher", "ctx:answer"], "twice"),
        (["score", "--objective", "klkl"], "reverse_kl"),
        (["score", "--objective", "gkd", "--objective", "reverse_kl"], "twice"),
        (["score", "--objective", "jsd:2"], "between 0 and 1"),
        (["score", "--budget", "lots"], "budget"),
        (["score", "--temperature", "0"], "above 0"),
        (["score", "--rollouts", "0"], "at least 1"),
        (["score", "--node-selection", "best"], "pps or top"),
        (["score", "--budget", "0"], "budget"),
        (["score", "--budget", "1.5-rollouts-per-question"], "budget"),
        (["score", "--precision", "0"], "precision"),
        (["score", "--decide", "--confidence", "2"], "confidence"),
        (["score", "--decide", "--precision", "0.1"], "not both"),
        (["score", "--decide", "--node-selection", "top"], "top nodes"),
        (["score", "--decide", "--teacher", "ctx:none", "--objective", "gkd"], "nothing to decide"),
        (["score", "--top-p", "0.9"], "truncated sampling"),
        (["score", "--top-k", "20"], "truncated sampling"),
        (["score", "--device", "abacus"], "device"),
        (["score", "--dtype", "float7"], "dtype"),
        (["score", "--chat-template", "none.jinja"], "chat template"),
        (["score", "--temperature", "inf"], "above 0"),
        (["score", "--max-tokens", "0"], "at least 1"),
        (["score", "--batch-size", "0"], "batch_size"),
        (["score", "--student", ""], "unknown model"),
        (["score", "--student", "x" * 400], "unknown model"),
        (["score", "--teacher", "ctx:" + "x" * 400], "no such context"),
        (["score", "--teacher", "ctx:binary"], "UTF-8"),
        (["score", "binary"], "of no kind that is read"),
        (["score", "--out", "binary"], "cannot write"),
        (["score", "--out", "x" * 400], "cannot write"),
        (["score", "--out", "foreign"], "damaged"),
        (["rank", "foreign"], "damaged"),
        (["rank", "nowhere"], "not a run"),
        (["rank", "."], "not a run"),
    ],
)
def test_faults_are_one_line_and_exit_code_2(gradalign, tmp_path, arguments, says):
    (tmp_path / "binary").write_bytes(b"\x80\x81")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "run.json").write_text('{"format": 1}')
    code, _, err = gradalign(*arguments)
    assert code == 2
    message = err[err.index("error:") :].strip()
    assert says in message
    assert "\n" not in message
    assert "Traceback" not in err


def test_debug_shows_the_traceback(gradalign):
    with pytest.raises(Exception, match="did you mean"):
        gradalign("--debug", "score", "--student", "Qwen3-0.6")


def test_unknown_options_are_refused(gradalign):
    code, _, err = gradalign("score", "--studnet", "x")
    assert code == 2
    assert "--studnet" in err


def test_no_chat_template(gradalign, tmp_path):
    student = spoiled(tmp_path, lambda folder: (folder / "chat_template.jinja").unlink())
    code, _, err = gradalign("score", *TINY, "--student", student)
    assert code == 2
    assert "no chat template" in err


def test_teacher_with_another_tokenizer(gradalign, tmp_path):
    def change(folder: Path) -> None:
        settings = json.loads((folder / "tokenizer.json").read_text())
        vocabulary = settings["model"]["vocab"]
        first, second = sorted((token for token in vocabulary if vocabulary[token] in (70, 71)), key=vocabulary.get)
        vocabulary[first], vocabulary[second] = 71, 70
        (folder / "tokenizer.json").write_text(json.dumps(settings))

    code, _, err = gradalign("score", "--teacher", f"model:{spoiled(tmp_path, change)}")
    assert code == 2
    assert "2 tokens differ, first" in " ".join(err.split())


def test_logits_that_are_no_numbers(gradalign, tmp_path):
    def change(folder: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            model.model.norm.weight[0] = float("nan")
        model.save_pretrained(folder)

    code, _, err = gradalign("score", *TINY, "--student", spoiled(tmp_path, change))
    assert code == 2
    assert "not numbers" in err
    assert "--dtype float32" in err


def test_padded_logits_are_noted(gradalign, tmp_path):
    def change(folder: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(folder)
        model.resize_token_embeddings(model.config.vocab_size + 32, mean_resizing=False)
        model.save_pretrained(folder)

    code, _, err = gradalign("score", *TINY, "--student", spoiled(tmp_path, change))
    assert code == 0
    assert "trimmed to the tokens" in err


def test_questions_and_teachers_that_lack_something_are_skipped_and_counted(gradalign, tmp_path):
    long = "What is 2+2? " * 300
    records = [{"question": "What is 2+2?", "answer": "4"}, {"question": long, "answer": "4"}]
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    code, out, _ = gradalign(
        "score", "q.jsonl", "--teacher", "ctx:reference", "--teacher", "ctx:answer", "--out", "r", "--budget", "32"
    )
    assert code == 0, out
    skipped = load_run(tmp_path / "r").skipped.set_index("question")
    assert skipped.loc["q1"].reason == "no reference solution"
    assert skipped.loc["q2"].reason == "question longer than the student's window"
    assert "no reference solution" in out
    assert "longer than the student's window" in out


def test_where_a_filter_leaves_nothing_the_command_says_so_in_a_line(gradalign, tmp_path):
    arguments = [*TINY, "--filter", "pass_rate:0.45-0.55", "--filter-rollouts", "3", "--out", "r"]
    code, out, err = gradalign("score", *arguments, "--dry-run")
    assert code == 0
    assert "rollouts to filter by" in out
    code, out, err = gradalign("score", *arguments)
    assert code == 2
    assert "every teacher: 4 questions skipped, pass rate outside 0.45-0.55" in err
    assert "Traceback" not in err
    assert gradalign("rank", "r")[0] == 2
    assert gradalign("report", "r")[0] == 0


def test_questions_are_chosen_by_columns_split_and_sample(gradalign, tmp_path):
    (tmp_path / "exam.csv").write_text(
        "QUERY,KEY,HINT\n" + "".join(f"What is {i}+1?,{i + 1},Answer: {i + 1}\n" for i in range(9))
    )
    tiny = [
        "--rollouts",
        "4",
        "--budget",
        "8",
        "--demonstrations",
        "1",
        "--teacher",
        "ctx:reference",
        "--out",
        "r",
        "--sample",
        "3",
    ]
    code, _, err = gradalign("score", "exam.csv", *tiny, "--map", "question=QUERI,answer=KEY")
    assert (code, "the nearest are QUERY" in err) == (2, True)
    code, _, err = gradalign("score", "exam.csv", *tiny, "--map", "question=QUERY,answer=KEY,solution=HINT")
    assert code == 0, err
    run = load_run(tmp_path / "r")
    assert len(run.questions) == 3
    assert run.identity["columns"] == ["question=QUERY,answer=KEY,solution=HINT"]
    code, _, err = gradalign("score", "exam.csv", *tiny, "--map", "question=QUERY,answer=KEY", "--split", "train")
    assert (code, "has no splits" in err) == (2, True)


def test_a_context_longer_than_the_window_is_skipped(gradalign, tmp_path):
    file = question_file(tmp_path, solution="so " * 2000)
    code, _, err = gradalign("score", file, "--teacher", "ctx:reference", "--out", "r", "--budget", "32")
    assert code == 2
    assert "no question could be scored" in err
    skipped = load_run(tmp_path / "r").skipped
    assert "context longer than the model's window" in skipped.reason.tolist()


def test_ungradable_and_all_wrong_are_counted(gradalign, tmp_path):
    file = question_file(tmp_path, question="Start at 3: +5 -2 (modulo 10). What is the total?", answer="Pegasus", kind="exact")
    code, out, _ = gradalign("score", file, "--teacher", "ctx:answer", "--out", "r", "--budget", "32")
    assert code in (0, 2)
    questions = load_run(tmp_path / "r").questions
    assert questions.pass_rate[0] == 0
    if code == 0:
        assert "every base rollout wrong" in out


def test_hostile_text_is_shown_as_text(gradalign, tmp_path):
    nasty = "ctx:\x1b[31mred[bold]\u202e"
    code, _, err = gradalign("score", "--teacher", nasty)
    assert code == 2
    assert "\x1b[31m" not in err


def test_an_interrupt_says_how_to_go_on(gradalign, monkeypatch):
    from gradalign.pipeline import group

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(group, "sample_targeted", interrupted)
    code, _, err = gradalign("score", *TINY, "--out", "r")
    assert code == 130
    assert "gradalign score" in err
    assert "--out r" in err
    monkeypatch.undo()


def test_a_damaged_part_is_named_and_redone(gradalign, tmp_path):
    assert gradalign("score", *TINY, "--out", "r")[0] == 0
    expected = load_run(tmp_path / "r").alignment
    (tmp_path / "r" / "nodes" / "part-00000.parquet").write_bytes(b"not parquet")
    code, _, err = gradalign("rank", "r")
    assert code == 2
    assert "damaged" in err
    assert gradalign("score", *TINY, "--out", "r")[0] == 0
    assert load_run(tmp_path / "r").alignment.equals(expected)


def test_dry_run_prints_a_plan_and_keeps_nothing(gradalign, tmp_path):
    code, out, _ = gradalign("score", *TINY, "--dry-run")
    assert code == 0
    for what in (
        "base rollouts",
        "nodes chosen",
        "targeted rollouts",
        "tokens to sample",
        "estimated time",
        "nothing was kept",
    ):
        assert what in out
    assert not list(tmp_path.rglob("run.json"))


def test_a_decision_is_said_and_a_spent_budget_too(gradalign):
    settings = [
        "--limit",
        "24",
        "--rollouts",
        "16",
        "--budget",
        "16",
        "--objective",
        "reverse_kl",
        "--teacher",
        "ctx:reference",
    ]
    code, out, _ = gradalign("score", *settings, "--teacher", "ctx:none", "--decide", "--out", "decided")
    assert code == 0
    assert "Goal reached: ctx:reference reverse_kl is best" in out
    code, out, _ = gradalign("score", *settings, "--precision", "1e-9", "--out", "precise")
    assert code == 0
    assert "The budget was spent before the goal was reached" in out


def test_what_a_run_found_is_shown_and_reported(gradalign, tmp_path):
    code, out, _ = gradalign("score", *TINY, "--report", "--out", "r")
    assert code == 0
    assert "The report lies in r/report.html" in out
    page = (tmp_path / "r" / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    code, out, _ = gradalign("report", "r", "--compare", "r", "--questions", "2", "--out", "mine.html", "--draws", "100")
    assert code == 0
    assert "tokens of 2 of 4 questions" in out
    assert "Two runs" in (tmp_path / "mine.html").read_text()
    code, out, _ = gradalign("findings", "r", "--draws", "100", "--out", "f.csv")
    assert code == 0
    assert "Rank correlation of alignment, within questions" in out
    assert {*pd.read_csv(tmp_path / "f-profiles.csv").by} == {"depth", "window", "difficulty", "pass_rate"}
    assert len(pd.read_csv(tmp_path / "f-associations.csv")) == 18
    assert pd.read_csv(tmp_path / "f-selective.csv").objective.tolist() == ["forward_kl", "reverse_kl"]
    code, _, err = gradalign("report", "r", "--out", "nowhere/mine.html")
    assert code == 2
    assert "cannot write nowhere/mine.html" in err


def test_a_question_is_shown_token_by_token(gradalign, tmp_path):
    assert gradalign("score", *TINY, "--student", "builtin:small", "--out", "r")[0] == 0
    run = load_run(tmp_path / "r")
    scored = run.questions[run.questions.scored_nodes > 0].question.iloc[0]
    base = run.rollouts[(run.rollouts.purpose == "base") & (run.rollouts.question == scored)].set_index("rollout")
    code, out, _ = gradalign("show", "r", "--question", scored, "--rollout", "1", "--quantity", "alignment")
    assert code == 0
    assert base.text[1].strip() in out
    assert "cosine of ideal and distillation direction" in out
    node = run.branches[run.branches.question == scored].node.iloc[0]
    code, out, _ = gradalign(
        "show", "r", "--question", scored, "--rollout", "1", "--position", "0", "--objective", "forward_kl"
    )
    assert code == 0
    assert "position 0, node 0" in out
    assert node >= 0
    for arguments, says in (
        (["--question", "nope"], "has no question 'nope'"),
        (["--question", scored, "--rollout", "9"], "has no rollout 9; choose 0 to 3"),
        (["--question", scored, "--quantity", "luck"], "no quantity 'luck'; choose from dot"),
        (["--question", scored, "--teacher", "ctx:none"], "has no ctx:none"),
        (["--question", scored, "--rollout", "1", "--position", "999"], "has no position 999"),
    ):
        code, _, err = gradalign("show", "r", *arguments)
        assert code == 2
        assert says in err


def test_contexts_are_screened_and_written(gradalign, tmp_path):
    arguments = ["--limit", "5", "--rollouts", "4", "--budget", "8", "--teacher-rollouts", "2", "--demonstrations", "2"]
    code, out, _ = gradalign(
        "contexts", *arguments, "--teacher", "ctx:reference", "--teacher", "ctx:answer", "--out", "r", "--table", "t.csv"
    )
    assert code == 0
    assert "Contexts to train under with reverse_kl, 5 questions" in out
    assert "Recommended:" in out
    assert "by difficulty" in out
    assert pd.read_csv(tmp_path / "t.csv").teacher.tolist()[-1] == "the student alone"
    assert "pyarrow" not in out


def test_hostile_text_of_a_run_is_shown_as_text(gradalign, tabular, tmp_path):
    from hostile import QUESTION, hostile_run, is_clean

    hostile_run(tabular, tmp_path / "r")
    for command in (["rank", "r"], ["paths", "r"], ["findings", "r"], ["show", "r", "--question", QUESTION, "--rollout", "0"]):
        code, out, _ = gradalign(*command)
        assert code == 0
        assert is_clean(out), command
    assert "<script>" in out
    code, _, err = gradalign("show", "r", "--question", "\x1b[31m\u202e")
    assert code == 2
    assert is_clean(err)


def test_a_run_that_can_hardly_tell_anything_still_says_where_it_lies(gradalign, tmp_path):
    """No node is scored: what can be said is said, and what cannot has one line."""
    arguments = ["--limit", "4", "--rollouts", "4", "--budget", "1", "--teacher", "ctx:none", "--out", "r"]
    code, out, err = gradalign("score", *arguments, "--report")
    assert code in (0, 2)
    assert "The run lies in r" in out
    assert "Traceback" not in err
    if not load_run(tmp_path / "r").nodes.scored.any():
        code, _, err = gradalign("findings", "r")
        assert code == 2
        assert "no scored node" in err


def test_the_first_question_shown_is_one_that_was_scored(gradalign, tmp_path):
    long = "What is 2+2? " * 300
    records = [
        {"question": long, "answer": "4"},
        {"question": "Start at 3: +5 -2 (modulo 10). What is the total?", "answer": "6"},
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    assert (
        gradalign("score", "q.jsonl", "--student", "builtin:small", "--teacher", "ctx:answer", "--out", "r", "--budget", "16")[
            0
        ]
        == 0
    )
    code, out, _ = gradalign("show", "r")
    assert code == 0
    assert "Start at 3" in out


def test_status_tells_how_far_a_run_is(gradalign, tmp_path):
    code, _, err = gradalign("status", "nowhere")
    assert code == 2
    assert "nowhere is not a run" in err
    gradalign("score", *TINY, "--out", "r")
    code, out, _ = gradalign("status", "r")
    assert code == 0
    assert "4 of 4 scored" in out
    code, out, _ = gradalign("status", "r", "--json", "--watch", "1")
    found = json.loads(out)
    assert (code, found["state"], found["questions"], found["set_aside"]) == (0, "done", 4, [])
    assert sorted(path.name for path in (tmp_path / "r" / "log").iterdir()) == ["session-0001.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--executor", "cloud"], "unknown executor 'cloud'; choose local or ray"),
        (["--worker-gpus", "2"], "worker_gpus is for workers of a Ray cluster; give --executor ray"),
        (["--place", "student"], "write NAME=DEVICE"),
        (["--place", "nobody=cpu"], "no model 'nobody' to place; choose from student"),
        (["--out", "nowhere://bucket/run"], "cannot be reached"),
    ],
)
def test_where_to_score_is_checked_before_anything_is_loaded(gradalign, arguments, said):
    code, _, err = gradalign("score", *TINY, *arguments)
    assert code == 2
    assert said in " ".join(err.split())
