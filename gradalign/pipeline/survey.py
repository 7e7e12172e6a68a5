"""The full-vocabulary pass over a question's nodes: student, teachers and objectives together, in chunks of nodes.

Each model's hidden states are computed once per prefix. Distributions and directions over the vocabulary live for one chunk
of nodes only; what leaves it are numbers per node, values at a few kept tokens, and a sketch of each configuration's step in the output
layer.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradalign.configurations import TokenWeighting
from gradalign.models import Batches, CausalLanguageModel, LanguageModel, SharingModel
from gradalign.models.memory import Room, sent
from gradalign.objectives import Objective
from gradalign.pipeline.fused import can_fuse, fused_numbers
from gradalign.pipeline.joining import Coming, Joined, as_array, fetched
from gradalign.pipeline.vocabulary import Stepping, Taken, chunk_numbers
from gradalign.sketch import OuterSketch
from gradalign.tails import spread_shares, spread_tail
from gradalign.tree import PrefixTree

RANKINGS = 3
_CELLS = 3 << 19  # of one array over the vocabulary on the CPU: several of them stay in its cache
_HEAD_CELLS = 18 << 20  # of one array of logits there: a matrix product lays the output layer out anew each time
_FUSED_NODES = 8192  # on a GPU: enough for its kernels, and few enough that numbers of some are put away while others are made
_NATIVE_NODES = 128  # on the CPU: its kernel takes one at a time, and what comes of so many still lies in the cache
_SHARE = 0.25  # of a GPU's free memory
_KEPT_SHARE = 0.01
_ROOM = Room(1 << 28)


@dataclass(frozen=True, eq=False)
class Survey:
    """What the pass found at N nodes, for C teachers and O objectives, at K kept tokens (-1 pads a row).

    The last `RANKINGS * ranked` columns of `kept_NK` are the rankings by |d|, |tau - pi| and pi, best first, each `ranked` long;
    the columns before them are the tokens that base rollouts took. `lift` is d_k - sum_j pi_j d_j of the expected direction, so that
    <g, d> is the mean over k ~ pi of lift_k S_k; `lift2` its mean square under pi, `ratio2` that of tau/pi - 1. `pull` is sum_j pi_j d_j
    of the expected direction and `expected_norm2` its squared length. What is chosen for rollouts looks at these: `direction` may have
    looked at which tokens the base rollouts took and how they ended.

    `tail` is the teacher's probability outside the tokens that its server told, NaN where it knows the whole vocabulary.

    `step` is sum_u w_u d_u h_u^T as `sketch` keeps it, with h the student's last hidden states, `student_states`, and `shift` is
    sum_u w_u d_u as `flat` keeps it; w are visits times a `factor`, 1 in the first place of W and then one for each token weighting.
    """

    nodes: Int[np.ndarray, " N"]
    kept_NK: Int[np.ndarray, "N K"]
    ranked: int
    student_logprobs_NK: Float[np.ndarray, "N K"]
    teacher_logprobs_CNK: Float[np.ndarray, "C N K"]
    direction_CONK: Float[np.ndarray, "C O N K"]
    direction_norm2_CON: Float[np.ndarray, "C O N"]
    lift_CONK: Float[np.ndarray, "C O N K"]
    lift2_CON: Float[np.ndarray, "C O N"]
    pull_CON: Float[np.ndarray, "C O N"]
    expected_norm2_CON: Float[np.ndarray, "C O N"]
    ratio2_CN: Float[np.ndarray, "C N"]
    student_entropy_N: Float[np.ndarray, " N"]
    divergence_CND: Float[np.ndarray, "C N D"]
    tail_CN: Float[np.ndarray, "C N"]
    factor_WN: Float[np.ndarray, "W N"]
    step_WCOL: Float[np.ndarray, "W C O L"]
    shift_WCOF: Float[np.ndarray, "W C O F"]
    sketch: OuterSketch
    flat: OuterSketch
    student_states: Float[Tensor, "N H"]
    device: torch.device

    @cached_property
    def student_probs_NK(self) -> Float[np.ndarray, "N K"]:
        """pi at the kept tokens."""
        return np.exp(self.student_logprobs_NK)

    @cached_property
    def priority_N(self) -> Float[np.ndarray, " N"]:
        """The largest expected |d| over teachers and objectives."""
        return np.sqrt(self.expected_norm2_CON.max(axis=(0, 1)))


@dataclass(frozen=True, eq=False)
class SurveyRequest:
    """A question's tree with its base rollouts and their rewards, and the prompts under which student and teachers read it."""

    tree: PrefixTree
    sequences: Sequence[np.ndarray]
    reward_R: Float[np.ndarray, " R"]
    student: tuple[LanguageModel, tuple[int, ...]]
    teachers: Mapping[str, tuple[LanguageModel, tuple[int, ...]]]


def survey_nodes(
    request: SurveyRequest, objectives: Sequence[Objective], ranked: int, weightings: Sequence[TokenWeighting] = ()
) -> Survey:
    """Run student and teachers over every node of the tree and keep what scheduling and scoring need."""
    nodes = np.flatnonzero(request.tree.visits() > 0)
    members = (request.student, *request.teachers.values())
    states = {i: _node_states(*members[i], request, nodes) for i in _present_first([model for model, _ in members])}
    return survey_states(request, [states[i] for i in range(len(members))], objectives, ranked, weightings)


def survey_states(
    request: SurveyRequest,
    hidden: Sequence[Tensor],
    objectives: Sequence[Objective],
    ranked: int,
    weightings: Sequence[TokenWeighting] = (),
) -> Survey:
    """The pass over the vocabulary, from the hidden states of student and teachers at the nodes where rollouts chose a token."""
    tree = request.tree
    nodes = np.flatnonzero(tree.visits() > 0)
    models = [request.student[0], *(model for model, _ in request.teachers.values())]
    children = _children(tree, nodes, request.reward_R - request.reward_R.mean())
    sketch, flat = (outer_sketch(models[0].vocabulary_size, width) for width in (hidden[0].shape[1], 1))
    visits_N = tree.visits()[nodes].astype(np.float64)
    factor_WN = np.ones((1 + len(weightings), len(nodes)))
    if weightings:
        wrong_N = tree.weighted_visits(1 - request.reward_R)[nodes] / visits_N
        entropy_N = _entropies(models[0], hidden[0])
        factor_WN[1:] = [weighting.factors(entropy_N, visits_N, wrong_N) for weighting in weightings]
    stepping = Stepping(sketch, flat, hidden[0], torch.from_numpy(factor_WN * visits_N / len(request.sequences)))
    joined = Joined(len(nodes), children.tokens_NS.shape[1], RANKINGS * min(ranked, models[0].vocabulary_size))
    together = _even(len(nodes), max(1, _HEAD_CELLS // models[0].vocabulary_size))
    with ExitStack() as lent:
        cells = together * models[0].vocabulary_size if hidden[0].device.type == "cpu" else 0
        rooms = [lent.enter_context(_ROOM.lent(cells)) for _ in models]
        source = _Source(models, hidden, children, objectives, ranked, stepping, together, rooms)
        size, numbers = source.way()
        joined.add(Batches(size, "the pass over the vocabulary").over(len(nodes), numbers))
    step_WCOL, shift_WCOF = stepping.folded(*(torch.from_numpy(joined.sums[name]) for name in ("step", "shift")))
    return Survey(
        nodes=nodes, ranked=min(ranked, models[0].vocabulary_size), sketch=sketch, flat=flat, student_states=_kept_states(hidden[0]),
        device=hidden[0].device, factor_WN=factor_WN, step_WCOL=step_WCOL.numpy(), shift_WCOF=shift_WCOF.numpy(),
        **joined.arrays,
    )  # fmt: skip


def _present_first(models: Sequence[LanguageModel]) -> list[int]:
    """Places of models, those of one model together and first of all the one that has its turn in memory."""
    first = {id(model): place for place, model in reversed([*enumerate(models)])}
    return sorted(range(len(models)), key=lambda i: (not getattr(models[i], "present", True), first[id(models[i])]))


@torch.inference_mode()
def _entropies(model: LanguageModel, states_NH: Tensor) -> Float[np.ndarray, " N"]:
    """Entropy of the next token at every node, in nats."""

    def work(start: int, stop: int) -> np.ndarray:
        logprobs = model.logprobs(states_NH[start:stop])
        return as_array(-torch.linalg.vecdot(logprobs.exp(), logprobs), np.float64)

    batches = Batches(max(1, _CELLS // model.vocabulary_size), "entropies")
    return np.concatenate(list(batches.over(len(states_NH), work)))


def _shared(model: LanguageModel, told_NV: Tensor, student_NV: Tensor) -> Tensor:
    """What a teacher tells, shared out over tokens that it does not tell apart."""
    if not isinstance(model, SharingModel):
        return told_NV
    return spread_shares(told_NV.to(student_NV), student_NV, model.home_V.to(student_NV.device))


@cache
def outer_sketch(vocabulary: int, width: int) -> OuterSketch:
    """The sketch of a student's output layer: the same in every run, so that steps of several runs can be compared."""
    return OuterSketch(vocabulary, width)


def _node_states(model: LanguageModel, prompt: tuple[int, ...], request: SurveyRequest, nodes: np.ndarray) -> Tensor:
    """Hidden states (N, H) of the nodes, each taken from the first rollout that passes it."""
    origin_RT = request.tree.origin_RT()
    flat = origin_RT.reshape(-1)
    node, first = np.unique(flat, return_index=True)
    rollout, step = np.divmod(first[node >= 0], origin_RT.shape[1])
    needed, row = np.unique(rollout, return_inverse=True)
    sequences = [request.sequences[r] for r in needed]
    first_row = np.cumsum([0, *map(len, sequences)])
    states = torch.cat(model.hidden_states(prompt, sequences))
    return states[sent(first_row[row.reshape(-1)] + step, states.device)]


def _children(tree: PrefixTree, nodes: np.ndarray, advantage_R: np.ndarray) -> Taken:
    there_RT = tree.path_RT >= 0
    taken = tree.branch_sums(there_RT, np.ones(len(advantage_R)))
    advantage = tree.branch_sums(there_RT, advantage_R)
    order = np.lexsort((tree.token, -taken, tree.parent))
    order = order[tree.parent[order] >= 0]
    row = np.searchsorted(nodes, tree.parent[order])
    first = np.searchsorted(row, np.arange(len(nodes)))
    place = np.arange(len(order)) - first[row]
    tokens_NS = np.full((len(nodes), int(place.max()) + 1), -1, dtype=np.int64)
    share_NS, advantage_NS = np.zeros(tokens_NS.shape), np.zeros(tokens_NS.shape)
    tokens_NS[row, place] = tree.token[order]
    share_NS[row, place], advantage_NS[row, place] = taken[order], advantage[order]
    passed = share_NS.sum(1, keepdims=True)
    return Taken(tokens_NS, share_NS / passed, advantage_NS / passed)


@dataclass(frozen=True, eq=False)
class _Source:
    """What numbers are made of: models with their hidden states at all nodes, what rollouts took there, and what is asked for.

    On the CPU so many nodes go through the output layers `together`, whose scores lie in `rooms`, one for each model.
    """

    models: Sequence[LanguageModel]
    hidden: Sequence[Tensor]
    taken: Taken
    objectives: Sequence[Objective]
    ranked: int
    stepping: Stepping
    together: int
    rooms: Sequence[Tensor]

    def way(self) -> tuple[int, Callable[[int, int], Coming]]:
        """How many nodes go through the output layers together, and how their numbers are made.

        Logits of whole models on one GPU go straight into kernels, if these know the objectives.
        """
        device, vocabulary, teachers = self.hidden[0].device, self.models[0].vocabulary_size, len(self.models) - 1
        if device.type != "cuda":
            size = _NATIVE_NODES if self._native else max(1, _CELLS // vocabulary)
            return self.together, lambda start, stop: self.by_parts(start, stop, size)
        room = int(_SHARE * torch.cuda.mem_get_info(device)[0]) // 4
        if self._alike and can_fuse(self.objectives, self.stepping, device):
            fit = room // (len(self.models) * vocabulary + 8 * teachers * self.stepping.sketch.length)
            return max(1, min(_FUSED_NODES, fit)), self.fused
        arrays = 6 + 2 * len(self.models) + (2 * len(self.objectives) + 3) * teachers
        return max(1, room // (arrays * vocabulary)), lambda start, stop: self.by_parts(start, stop, stop - start)

    @torch.inference_mode()
    def fused(self, start: int, stop: int) -> Coming:
        """Numbers of the nodes from `start` to `stop`, by a GPU's kernels."""
        nodes = slice(start, stop)
        models = [model for model in self.models if isinstance(model, CausalLanguageModel)]
        made = [model.scores(states[nodes]) for model, states in zip(models, self.hidden, strict=True)]
        return self._by_kernels([scores for scores, _ in made], [factor for _, factor in made], nodes)

    @torch.inference_mode()
    def by_parts(self, start: int, stop: int, size: int) -> Coming:
        """The same, `size` nodes at a time, from scores of as many nodes as go through the output layers together."""
        nodes, size = slice(start, stop), _even(stop - start, size)
        outputs = [self._scores(place, nodes) for place in range(len(self.models))]
        parts = []
        for low in range(0, stop - start, size):
            found = [(scores(slice(low, low + size)), factor) for scores, factor in outputs]
            parts.append(self._of(found, slice(start + low, min(start + low + size, stop))))
        return lambda: [arrays for part in parts for arrays in part()]

    def _by_kernels(
        self, scores: Sequence[Tensor], factors: Sequence[float], nodes: slice, tails: Sequence[Tensor] = ()
    ) -> Coming:
        """From scores whose log-softmax, after multiplication with `factors`, are log-probabilities."""
        values, rows = fused_numbers(
            scores, factors, self.taken.part(nodes), self.objectives, self.ranked, self.stepping.sketch
        )
        values["tail_CN"] = torch.stack([*tails]) if tails else torch.full_like(values["ratio2_CN"], torch.nan)
        every = [row[None] for of_teacher in rows for row in of_teacher]
        coming = fetched(values | self.stepping.part(nodes).of_rows(every, (len(rows), len(rows[0]))))

        def checked() -> list[dict[str, np.ndarray]]:
            (arrays,) = coming()
            for model, lse in zip(self.models, [arrays.pop("student_lse_N"), *arrays.pop("teacher_lse_CN")], strict=True):
                if isinstance(model, CausalLanguageModel):
                    model.require_numbers(torch.from_numpy(lse))
            return [arrays]

        return checked

    @cached_property
    def _native(self) -> bool:
        """Are numbers made by the CPU's kernel?"""
        device = self.hidden[0].device
        return device.type == "cpu" and can_fuse(self.objectives, self.stepping, device)

    @cached_property
    def _alike(self) -> bool:
        """Are all of them whole models on one device?"""
        whole = all(isinstance(model, CausalLanguageModel) for model in self.models)
        return whole and len({states.device for states in self.hidden}) == 1

    @cached_property
    def _raw(self) -> bool:
        """Are scores taken as output layers make them? Where nothing is left to the kernel but to find their softmax."""
        return self._native and self._alike

    def _scores(self, place: int, nodes: slice) -> tuple[Callable[[slice], Tensor], float]:
        """What gives a model's scores at any part of these nodes, each part once, and the factor whose product with them has the
        log-probabilities for its log-softmax; where they are not `_raw` they are log-probabilities.

        On the CPU they are written over those of nodes before, as to take so much memory anew takes time, and their softmax is left
        until they are wanted, as they are then in its cache for what follows.
        """
        model, states_NH = self.models[place], self.hidden[place][nodes]
        if not isinstance(model, CausalLanguageModel):
            return model.logprobs(states_NH).__getitem__, 1.0
        kept = self.hidden[0].device.type == states_NH.device.type == "cpu"
        into = self.rooms[place].view(self.together, -1)[: len(states_NH)] if kept else None
        if self._raw:
            scores, factor = model.scores(states_NH, into)
            return scores.__getitem__, factor
        logits = model.logits(states_NH, into)
        return lambda part: model.log_softmax(logits[part]), 1.0

    def _of(self, found: Sequence[tuple[Tensor, float]], nodes: slice) -> Coming:
        scores, factors = zip(*found, strict=True)
        if self._raw:
            return self._by_kernels(scores, factors, nodes)
        student = scores[0]
        told = [_shared(model, tau, student) for model, tau in zip(self.models[1:], scores[1:], strict=True)]
        teachers, tails = zip(*(spread_tail(tau.to(student), student) for tau in told), strict=True)
        if self._native:
            return self._by_kernels([student, *teachers], factors, nodes, tails)
        values, directions = chunk_numbers(student, teachers, self.taken.part(nodes), self.objectives, self.ranked)
        return fetched(values | {"tail_CN": torch.stack(tails)} | self.stepping.part(nodes).of_directions(directions))


def _even(number: int, most: int) -> int:
    """How many at a time, so that none is left for a short last time."""
    return -(-number // -(-number // most))


def _kept_states(states_NH: Tensor) -> Tensor:
    """Where they are, unless they are much of what a GPU has left."""
    if states_NH.is_cuda and states_NH.nbytes > _KEPT_SHARE * torch.cuda.mem_get_info(states_NH.device)[0]:
        return states_NH.cpu()
    return states_NH
