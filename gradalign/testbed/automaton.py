"""A tabular language model as long as real answers: tokens lead from state to state, so values come by dynamic programming.

Where `TabularModel` lists every prefix, here many prefixes share a state: tens of tokens and depths of thirty cost nothing, yet
success, values, ideal directions, visits and every linear score are exact. Engine and LanguageModel at once, for any number
of questions; `families` makes kinds of them, `Automaton.teacher` teachers of known quality.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradalign.engines.sampling import sampled_tokens
from gradalign.objectives import NodeSignals, Objective
from gradalign.seeds import uniforms
from gradalign.types import Completion, CompletionRequest, Question


@dataclass(frozen=True, eq=False)
class ExactScores:
    """Per question, for one teacher and objective: sums over nodes of visitation times <g, d>, |d|^2, the advantage, and 1."""

    dot_Q: Float[np.ndarray, " Q"]
    d_norm2_Q: Float[np.ndarray, " Q"]
    advantage_Q: Float[np.ndarray, " Q"]
    length_Q: Float[np.ndarray, " Q"]

    @property
    def drive(self) -> float:
        """Gain in success for one unit of learning rate, per token."""
        return float(self.dot_Q.sum() / self.length_Q.sum())

    @property
    def gain(self) -> float:
        """Gain in success for one unit of step."""
        return float(self.dot_Q.mean() / np.sqrt(self.d_norm2_Q.mean()))

    @property
    def teacher_advantage(self) -> float:
        """What the nodes would gain if the student became the teacher there."""
        return float(self.advantage_Q.sum() / self.length_Q.sum())


class Automaton:
    """Log-probabilities and successors of Q questions, T layers, W states a layer and V tokens.

    `logprobs_QTWV` of the next token in nats; `successor_QTWV` the state of the next layer that a token leads to. Every sequence starts in
    state 0, has T tokens, and its last one is its verdict: 1 says that it succeeded. Question q has the prompt of one token, V + q.
    """

    kind = "automaton"

    def __init__(
        self,
        logprobs_QTWV: Float[np.ndarray, "Q T W V"],
        successor_QTWV: Int[np.ndarray, "Q T W V"],
        name: str = "automaton",
    ):
        self.name = name
        self.logprobs_QTWV = logprobs_QTWV
        self.successor_QTWV = successor_QTWV
        self.number, self.length, self.width, self.vocabulary_size = logprobs_QTWV.shape
        self.context_window = self.length + 1
        self._rows = torch.from_numpy(logprobs_QTWV.reshape(-1, self.vocabulary_size))

    @cached_property
    def success_QTWV(self) -> Float[np.ndarray, "Q T W V"]:
        """S_k in every state, exactly."""
        success = np.empty_like(self.logprobs_QTWV)
        success[:, -1] = np.arange(self.vocabulary_size) == 1
        for t in range(self.length - 2, -1, -1):
            value_QW = (np.exp(self.logprobs_QTWV[:, t + 1]) * success[:, t + 1]).sum(-1)
            success[:, t] = np.take_along_axis(value_QW[:, None, :], self.successor_QTWV[:, t], axis=2)
        return success

    @cached_property
    def value_QTW(self) -> Float[np.ndarray, "Q T W"]:
        """V of every state, exactly."""
        return (np.exp(self.logprobs_QTWV) * self.success_QTWV).sum(-1)

    @cached_property
    def visitation_QTW(self) -> Float[np.ndarray, "Q T W"]:
        """Probability that a rollout passes each state."""
        visits = np.zeros(self.logprobs_QTWV.shape[:3])
        visits[:, 0, 0] = 1.0
        question = np.arange(self.number)[:, None, None]
        for t in range(self.length - 1):
            flow = visits[:, t, :, None] * np.exp(self.logprobs_QTWV[:, t])
            np.add.at(visits[:, t + 1], (np.broadcast_to(question, flow.shape), self.successor_QTWV[:, t]), flow)
        return visits

    def teacher(self, tilt: float, noise: float = 0.0, share: float = 1.0, seed: int = 0, name: str = "") -> "Automaton":
        """The teacher tau ∝ pi exp(tilt · S + noise · xi) in a random `share` of the states; xi is normal.

        In the other states, and where the verdict is written down, tau = pi.
        """
        rng = np.random.default_rng(seed)
        shape = self.logprobs_QTWV.shape
        change = tilt * self.success_QTWV + noise * rng.standard_normal(shape)
        change *= (rng.random(shape[:3]) < share)[..., None]
        change[:, -1] = 0.0
        logits = self.logprobs_QTWV + change
        logits -= np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        return Automaton(logits, self.successor_QTWV, name or f"tilt {tilt:g}, noise {noise:g}")

    def exact_scores(self, teacher: "Automaton", objective: Objective) -> ExactScores:
        """The linear scores and what normalises them, by dynamic programming."""
        visits = self.visitation_QTW
        signals = NodeSignals(self._rows, teacher._rows)
        d = objective.direction(signals).numpy().reshape(self.logprobs_QTWV.shape)
        pi, tau = np.exp(self.logprobs_QTWV), np.exp(teacher.logprobs_QTWV)
        g = pi * (self.success_QTWV - self.value_QTW[..., None])
        return ExactScores(
            dot_Q=(visits * (g * d).sum(-1)).sum((1, 2)),
            d_norm2_Q=(visits * (d**2).sum(-1)).sum((1, 2)),
            advantage_Q=(visits * ((tau - pi) * self.success_QTWV).sum(-1)).sum((1, 2)),
            length_Q=visits.sum((1, 2)),
        )

    def states(self, question: int, tokens: np.ndarray) -> Int[np.ndarray, " T"]:
        """State before each of the tokens, and after the last where the sequence goes on: (T,) or (T + 1,)."""
        states = [0]
        for t, token in enumerate(tokens[: self.length - 1]):
            states.append(int(self.successor_QTWV[question, t, states[-1], token]))
        return np.array(states)

    def hidden_states(self, prompt: Sequence[int], continuations: Sequence[np.ndarray]) -> list[Float[Tensor, "T H"]]:
        """The rows of the table at the prefixes of each continuation."""
        question = prompt[-1] - self.vocabulary_size
        found = []
        for tokens in continuations:
            states = self.states(question, tokens)[: len(tokens)]
            found.append(self._rows[torch.from_numpy(self._row(question, np.arange(len(states)), states))])
        return found

    def logprobs(self, hidden_NH: Float[Tensor, "N H"]) -> Float[Tensor, "N V"]:
        return hidden_NH

    def rest(self) -> None:
        """It holds nothing but its tables."""

    def complete(self, requests: Sequence[CompletionRequest]) -> Iterator[Completion]:
        """Sample completions, one step at a time for all requests together (the Engine's protocol)."""
        counts = [len(request.seeds) for request in requests]
        owner = np.repeat(np.arange(len(requests)), counts)
        question = np.array([request.prefix[0] - self.vocabulary_size for request in requests])
        depth = np.array([len(request.prefix) - 1 for request in requests])
        state = np.array(
            [self.states(int(q), np.array(r.prefix[1:], dtype=int))[-1] for q, r in zip(question, requests, strict=True)]
        )
        limit = np.minimum(self.length - depth, [request.max_tokens for request in requests])
        seeds = np.array([seed for request in requests for seed in request.seeds], dtype=np.uint64)
        question, depth, state, limit = question[owner], depth[owner], state[owner], limit[owner]
        tokens_BT = np.zeros((len(owner), int(limit.max(initial=0))), dtype=np.int64)
        logprobs_BT = np.zeros(tokens_BT.shape)
        for step in range(tokens_BT.shape[1]):
            live = np.flatnonzero(limit > step)
            rows = self._rows[torch.from_numpy(self._row(question[live], depth[live] + step, state[live]))]
            draws = torch.from_numpy(uniforms(seeds[live], np.full(len(live), step, dtype=np.uint64)))
            chosen = sampled_tokens(rows.exp(), draws)
            tokens_BT[live, step] = chosen.numpy()
            logprobs_BT[live, step] = rows.gather(1, chosen[:, None])[:, 0].numpy()
            state[live] = self.successor_QTWV[question[live], depth[live] + step, state[live], tokens_BT[live, step]]
        replicate = np.concatenate([np.arange(count) for count in counts]) if counts else np.array([], dtype=int)
        for i, request in enumerate(owner):
            sampled = slice(0, limit[i])
            yield Completion(int(request), int(replicate[i]), tokens_BT[i, sampled], logprobs_BT[i, sampled], "length")

    def questions(self) -> list[Question]:
        """One question for each prompt."""
        return [Question(f"q{q}", f"question {q}", "yes", "boolean") for q in range(self.number)]

    def _row(self, question: np.ndarray | int, layer: np.ndarray, state: np.ndarray) -> np.ndarray:
        return (question * self.length + layer) * self.width + state


class AutomatonCodec:
    """Codec of an automaton: a question's number is its prompt; the text of a whole sequence states whether it succeeded."""

    stop_ids: frozenset[int] = frozenset()

    def __init__(self, model: Automaton):
        self.model = model

    def prompt(self, user: str, system: str | None = None) -> tuple[int, ...]:
        """The one-token prompt of the question that `user` names."""
        return (self.model.vocabulary_size + int(user.split()[1]),)

    def boundary(self, user: str, system: str | None = None) -> tuple[int, ...]:
        return ()

    def ids(self, text: str) -> tuple[int, ...]:
        """One id a word: the model reads no texts."""
        return (0,) * len(text.split())

    def shown(self, tokens: Sequence[int] | np.ndarray) -> str:
        return " ".join(str(int(token)) for token in tokens)

    def text(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The tokens' numbers, or of a whole sequence its verdict, for a grader to read."""
        if len(tokens) == self.model.length:
            return f"Answer: {'yes' if int(tokens[-1]) == 1 else 'no'}"
        return " ".join(str(int(token)) for token in tokens)
