"""Do this loop and TRL's trainer train alike? One configuration, a larger model as teacher, by both, with the same seeds, rate and steps.

    python benchmarks/validate_ranking/trl_check.py            # arithmetic-small, 20 steps, 3 seeds

TRL trains what `gradalign export --to trl` writes. Both students take the same exam on held-out questions; printed and kept in
benchmarks/results/validation/trl.json is the change of success of each, with its standard error over seeds and answers. SMALL=1: one seed,
2 steps, few answers; keeps nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from settings import HELD_OUT, PLACE, SEEDS, Setting, configurations
from training import BATCH, Exam, Trainee, external, lessons_of, load, train

from gradalign import export_configuration
from gradalign.configurations import Configuration
from gradalign.models import CausalLanguageModel, LoadedModel, LoadOptions, load_model
from gradalign.questions import load_questions
from gradalign.store import Run, load_run

SMALL = os.environ.get("SMALL") == "1"
NAME, RATE = "larger", 1e-4
STEPS, ANSWERS = (2, 2) if SMALL else (20, 32)


def ours(run: Run, student: LoadedModel, how: Configuration, seed: int) -> LoadedModel:
    """The student trained by this loop."""
    name = external(how)
    assert name is not None
    teacher = load(name).language_model
    assert isinstance(teacher, CausalLanguageModel)
    trainee = Trainee(student)
    for _ in train(trainee, teacher.model, lessons_of(run, how, student), how, RATE, STEPS, seed):
        pass
    return replace(student, language_model=trainee.language_model)


def trls(run: Run, how: Configuration, seed: int, folder: Path) -> LoadedModel:
    """The student trained by TRL, from what is exported."""
    export_configuration(run, how, folder, "trl", force=True)
    plan = json.loads((folder / "trl.json").read_text(encoding="utf-8"))
    plan["arguments"] |= {
        "learning_rate": RATE, "lr_scheduler_type": "constant", "per_device_train_batch_size": BATCH, "gradient_accumulation_steps": 1,
        "max_grad_norm": 0.0, "weight_decay": 0.0, "seed": seed, "use_cpu": True, "report_to": "none",
    }  # fmt: skip
    (folder / "trl.json").write_text(json.dumps(plan), encoding="utf-8")
    command = [sys.executable, "train.py", "--max-steps", str(STEPS), "--output-dir", "trained"]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return load_model(str(folder / "trained"), LoadOptions(device="cpu"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/validation"), help="where the scored runs are")
    options = parser.parse_args()
    torch.set_num_threads(1)
    setting = Setting("arithmetic", "small")
    run, student = load_run(options.work.resolve() / setting.folder), load(setting.student)
    os.chdir(PLACE)  # templates are named from here
    how = next(each for each in configurations() if each.name == NAME)
    questions = load_questions(f"builtin:{setting.questions}:heldout", HELD_OUT)
    changes: dict[str, list[float]] = {"this loop": [], "TRL": []}
    for seed in SEEDS[: 1 if SMALL else None]:
        exam = Exam(questions, student, ANSWERS, seed)
        before = exam.right(Trainee(student)).mean() / ANSWERS
        with tempfile.TemporaryDirectory() as folder:
            for name, trained in (("this loop", ours(run, student, how, seed)), ("TRL", trls(run, how, seed, Path(folder)))):
                changes[name].append(exam.right(Trainee(trained)).mean() / ANSWERS - before)
    table = Table(title=f"{setting}, {NAME}: change of success after {STEPS} steps of Adam at {RATE:g}, points")
    for head in ("trained by", *(f"seed {seed}" for seed in SEEDS[: len(changes["TRL"])]), "mean", "standard error"):
        table.add_column(head, justify="right")
    for name, found in changes.items():
        error = np.std(found, ddof=1) / np.sqrt(len(found)) if len(found) > 1 else np.nan
        table.add_row(name, *(f"{100 * each:+.1f}" for each in (*found, np.mean(found))), f"{100 * error:.2f}")
    Console(width=120).print(table)
    if not SMALL:
        kept = {"setting": setting.folder, "configuration": NAME, "rate": RATE, "steps": STEPS, "changes": changes}
        (PLACE.parent / "results" / "validation" / "trl.json").write_text(json.dumps(kept, indent=1, default=float) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
