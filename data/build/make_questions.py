"""Write the built-in question sets: data/questions/{arithmetic,boolean,choice}/{train,heldout}.jsonl.

python data/build/make_questions.py [--out data/questions] [--size 600] [--seed 7]
"""

import argparse
import json
import random
from pathlib import Path

from chains import solve
from tasks import TASKS, Puzzle, Task, draw_puzzle

ROOT = Path(__file__).resolve().parents[1]
SPLITS = ("train", "heldout")


def main() -> None:
    options = _parse()
    for task in TASKS:
        rng = random.Random(f"{options.seed}-{task.name}")
        puzzles = distinct_puzzles(task, options.size * len(SPLITS), rng)
        for index, split in enumerate(SPLITS):
            own = puzzles[index * options.size : (index + 1) * options.size]
            rng.shuffle(own)
            rows = [_row(puzzle, split, number) for number, puzzle in enumerate(own, start=1)]
            path = options.out / task.name / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def distinct_puzzles(task: Task, count: int, rng: random.Random) -> list[Puzzle]:
    """Puzzles with different texts, the difficulties in turn."""
    found: dict[str, Puzzle] = {}
    for number in range(count):
        steps = task.difficulties[number % len(task.difficulties)]
        puzzle = draw_puzzle(task, steps, rng)
        while puzzle.text in found:
            puzzle = draw_puzzle(task, steps, rng)
        found[puzzle.text] = puzzle
    return list(found.values())


def _row(puzzle: Puzzle, split: str, number: int) -> dict[str, object]:
    solution = solve(puzzle)
    return {
        "id": f"{puzzle.task.name}-{split}-{number:04d}",
        "question": puzzle.text,
        "answer": solution.answer,
        "kind": puzzle.task.kind,
        "choices": list(puzzle.task.options),
        "solution": solution.text,
        "difficulty": str(len(puzzle.operations)),
    }


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "questions")
    parser.add_argument("--size", type=int, default=600, help="questions in a split")
    parser.add_argument("--seed", type=int, default=7)
    return parser.parse_args()


if __name__ == "__main__":
    main()
