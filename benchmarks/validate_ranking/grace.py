"""A score in the manner of GRACE (arXiv 2511.02833): how steady the student's gradients on text that a teacher wrote are across questions.

    GRACE = mean over splits of trace(A^-1 B)

with A the smoothed second moment of most questions' normalised gradients, and B that of the other questions' gradients.

Gradients are those of the log-likelihood of each of the teacher's own rollouts under the student's prompt, one a rollout, times the
logarithm of its length, sketched to 512 numbers. Less is better. It looks neither at the objective nor at how tokens are weighted.
"""

import numpy as np
import pyarrow.compute as pc
import torch
from training import load

from gradalign.first_step.student import Trainee
from gradalign.models import CausalLanguageModel
from gradalign.store import Run

_WIDTH = 512
_ROLLOUTS = 4  # of each question
_SPLITS, _HELD_OUT = 10, 0.1
_SMOOTH = 1e-3


def grace(run: Run, student: str) -> dict[str, float]:
    """By teacher, for those that sampled rollouts of their own."""
    loaded = load(student)
    assert isinstance(loaded.language_model, CausalLanguageModel)
    trainee, prompts = Trainee(loaded.language_model), run.questions.set_index("question")["prompt"]
    columns = ["question", "source", "rollout", "tokens"]
    rollouts = run.frame("rollouts", columns, pc.field("purpose") == "teacher").query("rollout < @_ROLLOUTS")
    sketch = _Sketch(sum(each.numel() for each in trainee.parameters))
    found = {}
    for teacher, mine in rollouts.groupby("source"):
        questions, gradients = [], []
        for row in mine.itertuples():
            tokens = np.asarray(row.tokens, dtype=np.int64)
            text = (loaded.codec.prompt(prompts[row.question]), tokens)
            gradient = trainee.gradient([text], lambda _, logprobs, tokens=tokens: _likelier(logprobs, tokens))
            gradients.append(np.log(max(len(tokens), 2)) / len(tokens) * sketch(gradient))
            questions.append(row.question)
        found[str(teacher)] = _cross_validated(np.stack(gradients), np.array(questions))
    return found


def _likelier(logprobs: torch.Tensor, tokens: np.ndarray) -> torch.Tensor:
    """The gradient of log pi(tokens) in the logits."""
    direction = -logprobs.exp()
    direction[torch.arange(len(tokens)), torch.from_numpy(tokens)] += 1
    return direction


class _Sketch:
    """Each coordinate is added, with a random sign, to one of a few numbers; products are kept in expectation."""

    def __init__(self, width: int):
        rng = torch.Generator().manual_seed(0)
        self.place = torch.randint(_WIDTH, (width,), generator=rng)
        self.sign = torch.randint(2, (width,), generator=rng) * 2.0 - 1

    def __call__(self, gradient: list[torch.Tensor]) -> np.ndarray:
        flat = torch.cat([each.flatten() for each in gradient])
        return torch.zeros(_WIDTH).index_add_(0, self.place, self.sign * flat).double().numpy()


def _cross_validated(gradient_RL: np.ndarray, question_R: np.ndarray) -> float:
    names, scores = np.unique(question_R), []
    unit_RL = gradient_RL / np.maximum(np.linalg.norm(gradient_RL, axis=1, keepdims=True), 1e-12)
    for seed in range(_SPLITS):
        held = np.isin(question_R, np.random.default_rng(seed).permutation(names)[: max(1, int(_HELD_OUT * len(names)))])
        seen = unit_RL[~held].T @ unit_RL[~held] / (~held).sum()
        smoothed = (1 - _SMOOTH) * seen + _SMOOTH * np.trace(seen) / _WIDTH * np.eye(_WIDTH)
        scores.append(np.trace(np.linalg.solve(smoothed, gradient_RL[held].T @ gradient_RL[held])) / held.sum())
    return float(np.mean(scores))
