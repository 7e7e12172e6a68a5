"""How well foretold changes came true: what `benchmarks/validate_ranking` found when it last trained, in a sentence."""

import json
from functools import cache
from pathlib import Path
from typing import Any

_KEPT = Path(__file__).with_name("validated.json")


@cache
def validated() -> str:
    """A plain statement for whoever goes by `foretold` or `first_step`."""
    told: dict[str, Any] = json.loads(_KEPT.read_text(encoding="utf-8"))
    best, worst = told["spearman"]["most"], told["spearman"]["least"]
    derived = "held back while they were derived" if told["held_back"] else "on which they were derived"
    return (
        f"foretold and first_step look at all parameters of the student. In {told['runs']:,} training runs of the {told['student']} "
        f"built-in student, {derived}, on {told['sets']} question sets (Adam, 1 to {told['steps']} steps), the rank correlation of "
        f"foretold and measured change of success on other questions was {worst:.2f} to {best:.2f}, and the first choice at most "
        f"{told['regret']:.1f} points short of the best. Larger models and longer training were not tried: docs/validation.md."
    )
