"""The student as something that can be trained: gradients in all its parameters, and how likely rollouts are when these are moved."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gradalign.first_step.moments import Parameters
from gradalign.models import CausalLanguageModel
from gradalign.models.attention import forward
from gradalign.models.memory import Batches
from gradalign.types import GradalignError

_CELLS = {"cpu": 1 << 25, "cuda": 1 << 28}  # logits held at once
Text = tuple[Sequence[int], np.ndarray]
"""Token ids of a prompt and of its rollout."""
Cotangent = Callable[[Sequence[int], Tensor], Tensor]
"""What logits (N, V) are to move by, from the places of the rollouts whose tokens they predict and their log-probabilities."""


class Trainee:
    """A `CausalLanguageModel` in float32 on one device, of which every parameter may be moved."""

    def __init__(self, model: CausalLanguageModel):
        self.model, self.body = model, model.model
        self.parameters: Parameters = [each for each in self.body.parameters() if each.is_floating_point()]
        odd = {str(each.dtype) for each in self.body.parameters()} - {"torch.float32"}
        if odd or len({each.device for each in self.parameters}) > 1 or self.parameters[0].is_meta:
            raise GradalignError(
                f"first steps need all weights of {model.name} in float32 on one device, not {', '.join(sorted(odd)) or 'spread'}; choose "
                "a --device with more memory, and a student that is not quantised"
            )
        self.batches = Batches(64, f"gradients of {model.name}")

    def gradient(self, texts: Sequence[Text], cotangent: Cotangent) -> Parameters:
        """The sum over all tokens of J^T d, with J the Jacobian of the logits in the parameters and d their `cotangent`."""
        total = [torch.zeros_like(each) for each in self.parameters]

        def part(places: Sequence[int]) -> Parameters:
            logprobs, logits = self._logprobs([texts[place] for place in places])
            with torch.no_grad():
                direction = cotangent(places, logprobs.detach())
            found = torch.autograd.grad(logits, self.parameters, direction, allow_unused=True)
            return [torch.zeros_like(p) if each is None else each for p, each in zip(self.parameters, found, strict=True)]

        with torch.enable_grad(), self._trainable():
            for gradients in self._over(texts, part):
                for each, gradient in zip(total, gradients, strict=True):
                    each += gradient
        return total

    @torch.inference_mode()
    def loglikelihoods(self, texts: Sequence[Text]) -> Float[np.ndarray, " R"]:
        """log pi of each rollout, in nats."""

        def part(places: Sequence[int]) -> list[tuple[int, float]]:
            chosen = [texts[place] for place in places]
            taken = torch.from_numpy(np.concatenate([tokens for _, tokens in chosen])).to(self.model.device)
            at_N = self._logprobs(chosen)[0].gather(1, taken[:, None])[:, 0].double()
            sums = [float(each.sum()) for each in at_N.split([len(tokens) for _, tokens in chosen])]
            return list(zip(places, sums, strict=True))

        found = dict(pair for pairs in self._over(texts, part) for pair in pairs)
        return np.array([found[place] for place in range(len(texts))])

    @contextmanager
    def moved(self, step: Parameters, by: float) -> Iterator[None]:
        """The parameters moved along a step; afterwards they are exactly what they were."""
        held = [each.detach().clone() for each in self.parameters]
        with torch.no_grad():
            for each, along in zip(self.parameters, step, strict=True):
                each.add_(along, alpha=by)
        try:
            yield
        finally:
            with torch.no_grad():
                for each, before in zip(self.parameters, held, strict=True):
                    each.copy_(before)

    @contextmanager
    def _trainable(self) -> Iterator[None]:
        asked = [each.requires_grad for each in self.parameters]
        try:
            for each in self.parameters:
                each.requires_grad_(True)
            yield
        finally:
            for each, before in zip(self.parameters, asked, strict=True):
                each.requires_grad_(before)

    def _over(self, texts: Sequence[Text], work: Callable[[list[int]], object]) -> Iterator:
        """Work over the texts' places in batches that fit, the longest first."""
        order = sorted(range(len(texts)), key=lambda place: -len(texts[place][1]))
        weights = [len(texts[place][1]) for place in order]
        most = max(1, _CELLS.get(self.model.device.type, 1 << 26) // self.model.vocabulary_size)
        return self.batches.over(len(order), lambda start, stop: work(order[start:stop]), weights, most)

    def _logprobs(self, texts: Sequence[Text]) -> tuple[Float[Tensor, "N V"], Float[Tensor, "N V"]]:
        """Log-probabilities that predict the rollouts' tokens, one rollout behind the other, and the logits they are made of."""
        width = max(len(prompt) + len(tokens) for prompt, tokens in texts)
        ids = torch.zeros((len(texts), width), dtype=torch.long)
        predicts = torch.zeros((len(texts), width), dtype=torch.bool)
        for row, (prompt, tokens) in enumerate(texts):
            ids[row, : len(prompt) + len(tokens)] = torch.from_numpy(np.concatenate([prompt, tokens]))
            predicts[row, len(prompt) - 1 : len(prompt) + len(tokens) - 1] = True
        states = forward(self.body, input_ids=ids.to(self.model.device), use_cache=False).last_hidden_state
        logits = self.model.logits(states[predicts.to(states.device)]) / self.model.temperature
        return logits.log_softmax(-1), logits
