"""The full-vocabulary pass over a question's nodes: student, teachers and objectives together, in chunks of nodes.

Each model's hidden states are computed once per prefix. Distributions and directions over the vocabulary live for one chunk
of nodes only; what leaves it are numbers per node, values at a few kept tokens, and a sketch of each configuration's step in the output
layer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradalign.configurations import TokenWeighting
from gradalign.models import Batches, LanguageModel, SharingModel
from gradalign.objectives import After, NodeSignals, Objective
from gradalign.sketch import OuterSketch
from gradalign.tails import spread_shares, spread_tail
from gradalign.tree import PrefixTree

DIVERGENCES = (
    "reverse_kl", "forward_kl", "jsd", "l2", "similarity", "teacher_entropy", "top_overlap", "student_mass_on_teacher_top",
    "teacher_mass_on_student_top",
)  # fmt: skip
RANKINGS = 3
_TOP = 10
_LARGEST = 1e6
_CELLS = 1 << 25


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
    tree = request.tree
    nodes = np.flatnonzero(tree.visits() > 0)
    members = (request.student, *request.teachers.values())
    models = [model for model, _ in members]
    states = {i: _node_states(*members[i], request, nodes) for i in _present_first(models)}
    hidden = [states[i] for i in range(len(models))]
    children = _children(tree, nodes, request.reward_R - request.reward_R.mean())
    sketch, flat = (outer_sketch(models[0].vocabulary_size, width) for width in (hidden[0].shape[1], 1))
    visits_N = tree.visits()[nodes].astype(np.float64)
    factor_WN = np.ones((1 + len(weightings), len(nodes)))
    if weightings:
        wrong_N = tree.weighted_visits(1 - request.reward_R)[nodes] / visits_N
        entropy_N = _entropies(models[0], hidden[0])
        factor_WN[1:] = [weighting.factors(entropy_N, visits_N, wrong_N) for weighting in weightings]
    weight_WN = torch.from_numpy(factor_WN * visits_N / len(request.sequences))
    arrays = 4 + len(models) + 2 * (len(models) - 1) * len(objectives)
    size = max(1, _CELLS // (models[0].vocabulary_size * arrays))

    def work(start: int, stop: int) -> dict[str, np.ndarray]:
        logprobs = [model.logprobs(states[start:stop]) for model, states in zip(models, hidden, strict=True)]
        logprobs[1:] = [_shared(model, tau, logprobs[0]) for model, tau in zip(models[1:], logprobs[1:], strict=True)]
        stepping = Stepping(sketch, flat, hidden[0][start:stop], weight_WN[:, start:stop])
        return _survey_chunk(logprobs, children.part(start, stop), objectives, ranked, stepping)

    chunks, sums = [], {"step_WCOL": np.zeros(()), "shift_WCOF": np.zeros(())}
    for chunk in Batches(size, "the pass over the vocabulary").over(len(nodes), work):
        sums = {
            name: total + chunk.pop(name) for name, total in sums.items()
        }  # as long as many nodes, so never kept for each chunk
        chunks.append(chunk)
    joined = {
        name: np.concatenate([chunk[name] for chunk in chunks], axis=_NODE_AXIS.get(name, 0)) for name in chunks[0]
    } | sums
    ranked = min(ranked, models[0].vocabulary_size)
    return Survey(
        nodes=nodes, ranked=ranked, sketch=sketch, flat=flat, student_states=hidden[0].cpu(), device=hidden[0].device,
        factor_WN=factor_WN, **joined,
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
        return _numpy(-(logprobs.exp() * logprobs).sum(-1), torch.float64)

    batches = Batches(max(1, _CELLS // (4 * model.vocabulary_size)), "entropies")
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


@dataclass(frozen=True, eq=False)
class Stepping:
    """The student's hidden states at a chunk of nodes, their weights in steps, and what keeps steps short."""

    sketch: OuterSketch
    flat: OuterSketch
    states_NH: Float[Tensor, "N H"]
    weight_WN: Float[Tensor, "W N"]

    def step(self, direction_NV: Float[Tensor, "N V"]) -> Float[Tensor, "W L"]:
        """sum_u w_u d_u h_u^T, sketched."""
        states = self.states_NH.to(direction_NV.device)
        return torch.stack([self.sketch.sum(weighted, states) for weighted in self._weighted(direction_NV)])

    def shift(self, direction_NV: Float[Tensor, "N V"]) -> Float[Tensor, "W F"]:
        """sum_u w_u d_u, sketched."""
        ones = torch.ones(len(direction_NV), 1).to(direction_NV)
        return torch.stack([self.flat.sum(weighted, ones) for weighted in self._weighted(direction_NV)])

    def _weighted(self, direction_NV: Tensor) -> Iterator[Tensor]:
        return (direction_NV * weight_N[:, None] for weight_N in self.weight_WN.to(direction_NV))


_LARGE = ("direction_CONK", "lift_CONK")  # kept in single precision: they hold most of the memory
_NODE_AXIS = {
    "teacher_logprobs_CNK": 1, "direction_CONK": 2, "direction_norm2_CON": 2, "lift_CONK": 2, "lift2_CON": 2, "pull_CON": 2,
    "expected_norm2_CON": 2, "ratio2_CN": 1, "divergence_CND": 1, "tail_CN": 1,
}  # fmt: skip


def _node_states(model: LanguageModel, prompt: tuple[int, ...], request: SurveyRequest, nodes: np.ndarray) -> Tensor:
    """Hidden states (N, H) of the nodes, each taken from the first rollout that passes it."""
    origin_RT = request.tree.origin_RT()
    flat = origin_RT.reshape(-1)
    node, first = np.unique(flat, return_index=True)
    rollout, step = np.divmod(first[node >= 0], origin_RT.shape[1])
    needed, row = np.unique(rollout, return_inverse=True)
    states = model.hidden_states(prompt, [request.sequences[r] for r in needed])
    first_row = np.cumsum([0, *(len(state) for state in states)])
    return torch.cat(states)[torch.from_numpy(first_row[row.reshape(-1)] + step)]


@dataclass(frozen=True, eq=False)
class _Children:
    """Tokens that base rollouts took at each node, most taken first (-1 pads), the share of rollouts that took them, and the mean over
    all that passed of advantage x (took the token)."""

    tokens_NS: Int[np.ndarray, "N S"]
    share_NS: Float[np.ndarray, "N S"]
    advantage_NS: Float[np.ndarray, "N S"]

    def part(self, start: int, stop: int) -> "_Children":
        return _Children(self.tokens_NS[start:stop], self.share_NS[start:stop], self.advantage_NS[start:stop])


def _children(tree: PrefixTree, nodes: np.ndarray, advantage_R: np.ndarray) -> _Children:
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
    return _Children(tokens_NS, share_NS / passed, advantage_NS / passed)


@torch.inference_mode()
def _survey_chunk(
    logprobs: Sequence[Tensor],
    taken: _Children,
    objectives: Sequence[Objective],
    ranked: int,
    stepping: Stepping,
) -> dict[str, np.ndarray]:
    student, told = logprobs[0], logprobs[1:]
    teachers, tails = zip(*(spread_tail(tau.to(student), student) for tau in told), strict=True)
    pi = student.exp()
    children = torch.from_numpy(taken.tokens_NS).to(student.device)
    at_children = children.clamp_min(0)
    frequency, advantage = (
        torch.zeros_like(pi).scatter_add_(1, at_children, torch.from_numpy(values).to(pi))
        for values in (taken.share_NS, taken.advantage_NS)
    )
    signals = [NodeSignals(student, tau, frequency, sample_advantage=advantage) for tau in teachers]
    directions = [[o.known_direction(signal) for o in objectives] for signal in signals]
    expected = [
        [d if o.expected is None else o.expected_direction(signal) for o, d in zip(objectives, row, strict=True)]
        for signal, row in zip(signals, directions, strict=True)
    ]
    pull = torch.stack([torch.stack([(pi * d).sum(-1) for d in row]) for row in expected])
    lifts = [
        [o.lift(signal) if isinstance(o, After) else d - p[:, None] for o, d, p in zip(objectives, row, pulls, strict=True)]
        for signal, row, pulls in zip(signals, expected, pull, strict=True)
    ]
    norm2 = torch.stack([torch.stack([(d**2).sum(-1) for d in row]) for row in expected])
    ranked = min(ranked, pi.shape[1])
    kept = torch.cat([children, *(s.topk(ranked).indices for s in _rankings(pi, teachers, expected, norm2))], dim=1)
    at = kept.clamp_min(0)
    values = {
        "kept_NK": kept,
        "student_logprobs_NK": student.gather(1, at),
        "teacher_logprobs_CNK": torch.stack([tau.gather(1, at) for tau in teachers]),
        "direction_CONK": torch.stack([torch.stack([d.gather(1, at) for d in row]) for row in directions]),
        "direction_norm2_CON": torch.stack([torch.stack([(d**2).sum(-1) for d in row]) for row in directions]),
        "pull_CON": pull,
        "expected_norm2_CON": norm2,
        "lift_CONK": torch.stack([torch.stack([lift.gather(1, at) for lift in row]) for row in lifts]),
        "lift2_CON": torch.stack([torch.stack([(pi * lift**2).sum(-1) for lift in row]) for row in lifts]),
        "ratio2_CN": torch.stack(
            [((2 * tau - student).exp().nan_to_num(0.0).clamp_max(_LARGEST).sum(-1) - 1).clamp_min(0) for tau in teachers]
        ),
        "student_entropy_N": -(pi * student).sum(-1),
        "divergence_CND": torch.stack([_divergences(student, tau) for tau in teachers]),
        "tail_CN": torch.stack(tails),
        "step_WCOL": torch.stack([torch.stack([stepping.step(d) for d in row]) for row in directions]).permute(2, 0, 1, 3),
        "shift_WCOF": torch.stack([torch.stack([stepping.shift(d) for d in row]) for row in directions]).permute(2, 0, 1, 3),
    }
    return {name: _numpy(value, torch.float32 if name in _LARGE else torch.float64) for name, value in values.items()}


def _rankings(pi: Tensor, teachers: Sequence[Tensor], directions: list[list[Tensor]], norm2: Tensor) -> list[Tensor]:
    """Scores (N, V) to rank candidate tokens by: share of |d| (largest over teachers and objectives), |tau - pi|, pi."""
    strength, distance = torch.zeros_like(pi), torch.zeros_like(pi)
    for row, norms in zip(directions, norm2, strict=True):
        for d, length2 in zip(row, norms, strict=True):
            strength = torch.maximum(strength, d.abs() / length2.sqrt().clamp_min(torch.finfo(d.dtype).tiny)[:, None])
    for tau in teachers:
        distance = torch.maximum(distance, (tau.exp() - pi).abs())
    return [strength, distance, pi]


def _divergences(student: Tensor, teacher: Tensor) -> Tensor:
    """The numbers of `DIVERGENCES` for N nodes: (N, D)."""
    pi, tau = student.exp(), teacher.exp()
    mixture = torch.logaddexp(student, teacher) - float(np.log(2))
    top = min(_TOP, pi.shape[1])
    mine, theirs = student.topk(top).indices, teacher.topk(top).indices
    overlap = (mine[:, :, None] == theirs[:, None, :]).any(-1).double().mean(-1)
    columns = [
        (pi * (student - teacher)).sum(-1),
        (tau * (teacher - student)).sum(-1),
        0.5 * ((pi * (student - mixture)).sum(-1) + (tau * (teacher - mixture)).sum(-1)),
        (pi - tau).norm(dim=-1),
        torch.nn.functional.cosine_similarity(pi, tau, dim=-1),
        -(tau * teacher).sum(-1),
        overlap,
        pi.gather(1, theirs).sum(-1),
        tau.gather(1, mine).sum(-1),
    ]
    return torch.stack([column.double() for column in columns], dim=-1)


def _numpy(value: Tensor, dtype: torch.dtype) -> np.ndarray:
    return value.cpu().numpy() if value.dtype == torch.int64 else value.to(dtype).cpu().numpy()
