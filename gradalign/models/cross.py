"""A teacher with a tokenizer of its own, as a model over the student's tokens: probabilities aligned by the bytes of one text.

It knows two tokenisations of every rollout and the teacher's distributions in its own; of the student it knows the vocabulary alone.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from gradalign.models.chat import ChatCodec
from gradalign.models.memory import Batches
from gradalign.models.protocol import LanguageModel, LoadedModel
from gradalign.models.spelling import spelling_of
from gradalign.models.told import EDGE, EXTRAS, MOVES, UNKNOWN, Told, add_told, fold_told, move_told
from gradalign.models.translation import Ahead, Crossings, Reading, Translation
from gradalign.spans import Alignment, align

_CELLS = 1 << 25


class CrossModel:
    """A LanguageModel over the student's vocabulary, made of a teacher with another; `logprobs` are NaN for tokens that it does not tell.

    Let the student's tokens y_1..y_t have been written, B their bytes, and z_1..z_M the teacher's own tokens of the rollout. What is
    wanted is the probability that, of texts that the student writes as y_1..y_t and then more, k is its next token. Let the teacher write
    a text that goes on from B: up to some edge c_m <= |B| it wrote z_1..z_m, and its next token z crosses |B|. So

        tau(k) ∝ sum_m P(z_1..z_m) sum_z P(z | z_1..z_m) [z goes on from the bytes of B after c_m, and the student's next token is then k],

    where the student's next token is told from z alone, as the student cuts it (`Translation`): the whole mass of z goes there, as in
    matching by text (GOLD, Hugging Face 2025; compare ULD, Boizard et al., arXiv 2402.12030), but also where no student token equals z.
    The sum over m is that over covers of B (Phan et al., arXiv 2410.09303), along the teacher's own reading of the rollout.

    k may also be longer than z. Where k is the rollout's next teacher tokens and one more, whichever, the chain rule gives its mass,
    prod P(z_l), which is taken from the token that stands for them till then. Others share with that token what is left (`home_V`), and
    what z tells of them is added to it: it is a part of theirs alone.

    Where |B| is inside a teacher token, the mass of the token that ends just there is known, but not what would follow it: it is left
    untold, and goes to the student tokens that no crossing token tells, which is where it belongs if the teacher's tokenizer merges.
    """

    def __init__(self, inner: LanguageModel, translation: Translation):
        self.inner, self.translation = inner, translation
        self.name = inner.name
        self.vocabulary_size = len(translation.student.words_V)
        self.context_window = inner.context_window
        self._crossings: list[Crossings] = []
        self._numbers: dict[tuple[int, bytes], int] = {}
        self._dtype: torch.dtype | None = None
        self.home_V = torch.from_numpy(translation.home_V)
        self._levels = _levels(self.home_V)
        mapped = np.flatnonzero(translation.first_V >= 0)
        self._mapped = torch.from_numpy(mapped)
        self._first = torch.from_numpy(translation.first_V[mapped])
        self.batches = Batches(max(1, _CELLS // (2 * inner.vocabulary_size)), f"aligning {self.name}")

    @property
    def present(self) -> bool:
        """Has the teacher its turn in memory?"""
        return getattr(self.inner, "present", True)

    @torch.inference_mode()
    def hidden_states(self, prompt: Sequence[int], continuations: Sequence[np.ndarray]) -> list[Float[Tensor, "T H"]]:
        """What is known (`Told`, packed) at the T places of each continuation; the prompt is in the teacher's tokens."""
        readings = [self.translation.read(tokens.tolist()) for tokens in continuations]
        spines = [_Spine.of(reading, self.context_window - len(prompt)) for reading in readings]
        hidden = self.inner.hidden_states(prompt, [spine.fed for spine in spines])
        places = _places(continuations, readings, [spine.alignment for spine in spines])
        moves: dict[tuple[int, int], dict[int, tuple[int, float]]] = defaultdict(dict)
        extras = []
        for spine, reading, states, tokens, path in zip(spines, readings, hidden, continuations, places, strict=True):
            wanted = _Wanted(self._crossed(reading, spine), self._ahead(reading, spine, len(states)))
            spans = self._spans(reading, spine, tokens)
            found = self._masses(states, reading, spine, wanted, bool(spans))
            extras.append(found.extras)
            for t, student, source, mass in found.moves:
                moves[path[t]].setdefault(student, (source, mass))
            for t, (start, end, source) in spans.items():
                mass = found.cumulative_M1[end] - found.cumulative_M1[start]
                moves[path[t]].setdefault(int(tokens[t]), (source, mass))
        return [
            self._told(states, reading, spine, extra, [moves.get(place, {}) for place in path])
            for states, reading, spine, extra, path in zip(hidden, readings, spines, extras, places, strict=True)
        ]

    @torch.inference_mode()
    def logprobs(self, hidden_NH: Float[Tensor, "N H"]) -> Float[Tensor, "N V"]:
        """Log-probabilities in nats, in double precision; NaN for tokens that are not told."""
        parts = self.batches.over(len(hidden_NH), lambda start, stop: self._logprobs(Told.unpack(hidden_NH[start:stop])))
        return torch.cat(list(parts))

    def _logprobs(self, told: Told) -> Float64[Tensor, "N V"]:
        tau = self.inner.logprobs(told.hidden_NH.to(self._dtype or told.hidden_NH.dtype)).double().exp()
        mass = torch.zeros(len(tau), self.vocabulary_size, dtype=torch.float64, device=tau.device)
        known = torch.zeros_like(mass, dtype=torch.bool)
        rest_N = told.rest_N.double().exp().nan_to_num(0.0)
        edges = (told.kind_N == EDGE).nonzero()[:, 0]
        mapped, first = self._mapped.to(tau.device), self._first.to(tau.device)
        mass[edges] = mass[edges].index_add_(1, first, tau[edges][:, mapped])
        known[edges[:, None], first] = True
        for number in told.kind_N[told.kind_N >= 0].unique().long().tolist():
            rows = (told.kind_N == number).nonzero()[:, 0]
            crossings = self._crossings[number]
            student, teacher = (torch.from_numpy(ids).to(tau.device) for ids in (crossings.student_K, crossings.teacher_K))
            mass[rows] = mass[rows].index_add_(1, student, tau[rows][:, teacher])
            known[rows[:, None], student] = True
            rest_N[rows] += tau[rows][:, crossings.ending].sum(-1)
        add_told(mass, known, told.target_NW, told.extra_NW.double().exp())
        if bool((told.to_NM >= 0).any()):
            mass = move_told(mass, known, told)
        fold_told(mass, known, told.to_NM, [(tokens.to(tau.device), homes.to(tau.device)) for tokens, homes in self._levels])
        total_N = mass.sum(-1) + rest_N.masked_fill(known.all(-1), 0.0)
        return (mass / total_N[:, None]).clamp_min(torch.finfo(mass.dtype).tiny).log().masked_fill(~known, torch.nan)

    def _number(self, lead: int, written: bytes) -> int:
        """The number of the crossings of these bytes, which a state can hold."""
        key = (lead, written)
        if key not in self._numbers:
            self._numbers[key] = len(self._crossings)
            self._crossings.append(self.translation.crossings(lead, written))
        return self._numbers[key]

    def _crossed(self, reading: Reading, spine: "_Spine") -> dict[int, list[tuple[int, Crossings]]]:
        """By the teacher's token: the nodes after it that tokens beginning in its place can cross, with those tokens."""
        found: dict[int, list[tuple[int, Crossings]]] = defaultdict(list)
        words, alignment = self.translation.teacher.words, spine.alignment
        for m in range(spine.length - 1):
            start, lead = int(reading.teacher_M1[m]), int(alignment.lead_M1[m])
            reach = words.reach(reading.text, start)
            if reach < reading.teacher_M1[m + 1]:
                continue
            first, last = np.searchsorted(reading.student_T1, [reading.teacher_M1[m + 1], reach + 1])
            for t in range(int(first), min(int(last), spine.known)):
                end = int(reading.student_T1[t])
                if lead <= end - start and alignment.before_T[t] > m:
                    crossings = self._crossings[self._number(lead, reading.text[start:end])]
                    if len(crossings.teacher_K):
                        found[m].append((t, crossings))
        return found

    def _spans(self, reading: Reading, spine: "_Spine", tokens: np.ndarray) -> dict[int, tuple[int, int, int]]:
        """Nodes where the token taken spans several of the teacher's and ends with one: its edges, and what the first stands for."""
        ends_T = np.searchsorted(reading.teacher_M1, reading.student_T1[1:])
        found = {}
        for t in range(spine.known):
            start, end = int(spine.alignment.before_T[t]), int(ends_T[t])
            whole = end <= spine.length and reading.teacher_M1[end] == reading.student_T1[t + 1]
            if whole and end - start > 1:
                source = self._stands_for(reading, spine.alignment, t)
                if source not in (-1, tokens[t]):
                    found[t] = (start, end, source)
        return found

    def _ahead(self, reading: Reading, spine: "_Spine", states: int) -> dict[int, list[tuple[int, Ahead, int]]]:
        """By how many tokens the teacher has read: the nodes before, at edges, from which its next one makes longer student tokens whole.

        With them, those student tokens, and the one that has their mass until then: the longest that the tokens read make.
        """
        found: dict[int, list[tuple[int, Ahead, int]]] = defaultdict(list)
        tokens, alignment = reading.tokens_M.tolist(), spine.alignment
        for t in range(spine.known):
            start = int(alignment.before_T[t])
            if alignment.written_T[t] or start >= spine.length:
                continue
            source, end = int(self.translation.first_V[tokens[start]]), start + 1
            while source >= 0 and end < min(states, spine.length + 1):
                ahead = self.translation.ahead.get(tuple(tokens[start:end]))
                if ahead is None:
                    break
                found[end].append((t, ahead, source))
                source = ahead.whole(tokens[end]) if end < spine.length and ahead.whole(tokens[end]) >= 0 else source
                end += 1
        return found

    def _stands_for(self, reading: Reading, alignment: Alignment, t: int) -> int:
        """The student token that the teacher's token at node t gives its mass to, -1 for none."""
        m = int(alignment.before_T[t])
        token = int(reading.tokens_M[m])
        if not alignment.written_T[t]:
            return int(self.translation.first_V[token])
        crossings = self._crossings[self._kind(reading, alignment, t)]
        found = crossings.student_K[crossings.teacher_K == token]
        return int(found[0]) if len(found) else -1

    def _kind(self, reading: Reading, alignment: Alignment, t: int) -> int:
        m, written = int(alignment.before_T[t]), int(alignment.written_T[t])
        if not written:
            return EDGE
        start = int(reading.teacher_M1[m])
        return self._number(int(alignment.lead_M1[m]), reading.text[start : start + written])

    def _masses(self, states: Tensor, reading: Reading, spine: "_Spine", wanted: "_Wanted", spans: bool) -> "_Masses":
        """Log-probabilities of the teacher's own tokens along its reading, and of those that are wanted beside them."""
        cumulative_M1 = np.zeros(spine.length + 1)
        found = _Masses(cumulative_M1, defaultdict(dict), [])
        if not wanted.crossed and not wanted.ahead and not spans:
            return found
        seen: list[tuple[int, list[Float64[np.ndarray, " K"]]]] = []

        def work(start: int, stop: int) -> np.ndarray:
            logprobs = self.inner.logprobs(states[start:stop])
            seen.extend((m, [_at(logprobs[m - start], ids) for ids in wanted.ids(m)]) for m in range(start, stop))
            own = torch.from_numpy(np.append(reading.tokens_M, 0)[start:stop]).to(logprobs.device)
            return logprobs.gather(1, own[:, None])[:, 0].double().cpu().numpy()

        own = np.concatenate([np.zeros(0), *self.batches.over(min(len(states), spine.length + 1), work)])
        cumulative_M1[1:] = np.cumsum(own[: spine.length])
        before_T = spine.alignment.before_T
        for m, masses in seen:
            crossed, ahead = wanted.crossed.get(m, []), wanted.ahead.get(m, [])
            for (t, crossings), mass_K in zip(crossed, masses, strict=False):
                found.add(t, crossings.student_K, mass_K + cumulative_M1[m] - cumulative_M1[before_T[t]])
            for (t, longer, source), mass_K in zip(ahead, masses[len(crossed) :], strict=True):
                weight = cumulative_M1[m] - cumulative_M1[before_T[t]]
                for place in np.argsort(-mass_K)[:MOVES].tolist():
                    found.moves.append((t, int(longer.student_K[place]), source, float(mass_K[place] + weight)))
        return found

    def _told(
        self,
        states: Tensor,
        reading: Reading,
        spine: "_Spine",
        extras: Mapping[int, Mapping[int, float]],
        moves: Sequence[Mapping[int, tuple[int, float]]],
    ) -> Float[Tensor, "T H"]:
        nodes = len(moves)
        self._dtype = states.dtype
        kind_N, rest_N = np.full(nodes, float(UNKNOWN)), np.full(nodes, np.nan)
        target, extra = np.full((nodes, EXTRAS), -1.0), np.full((nodes, EXTRAS), np.nan)
        source, to, moved = np.full((nodes, MOVES), -1.0), np.full((nodes, MOVES), -1.0), np.full((nodes, MOVES), np.nan)
        for t in range(spine.known):
            kind_N[t] = self._kind(reading, spine.alignment, t)
            by_mass = sorted(extras.get(t, {}).items(), key=lambda item: -item[1])
            for i, (token, mass) in enumerate(by_mass[:EXTRAS]):
                target[t, i], extra[t, i] = token, mass
            if len(by_mass) > EXTRAS:
                rest_N[t] = np.logaddexp.reduce([mass for _, mass in by_mass[EXTRAS:]])
            for i, (token, (stood, mass)) in enumerate(sorted(moves[t].items(), key=lambda item: -item[1][1])[:MOVES]):
                source[t, i], to[t, i], moved[t, i] = stood, token, mass
        row_T = torch.from_numpy(np.minimum(spine.alignment.before_T, len(states) - 1)).to(states.device)
        columns = (torch.from_numpy(column) for column in (kind_N, rest_N, target, extra, source, to, moved))
        return Told(states[row_T], *columns).pack()


def _levels(home_V: Int64[Tensor, " V"]) -> list[tuple[Tensor, Tensor]]:
    """Tokens that are not at home with themselves, and their homes, by how many homes lie above them."""
    at_V = torch.arange(len(home_V))
    above_V = torch.zeros_like(at_V)
    while bool((moving_V := home_V[at_V] != at_V).any()):
        above_V += moving_V
        at_V = home_V[at_V]
    groups = ((above_V == level).nonzero()[:, 0] for level in range(1, int(above_V.max()) + 1))
    return [(tokens, home_V[tokens]) for tokens in groups]


def _at(logprobs_V: Float[Tensor, " V"], ids_K: Int64[np.ndarray, " K"]) -> Float64[np.ndarray, " K"]:
    return logprobs_V[torch.from_numpy(ids_K).to(logprobs_V.device)].double().cpu().numpy()


@dataclass(frozen=True, eq=False)
class _Wanted:
    """What is asked of the teacher's distributions along its reading, by how many tokens it has read."""

    crossed: Mapping[int, list[tuple[int, Crossings]]]
    ahead: Mapping[int, list[tuple[int, Ahead, int]]]

    def ids(self, m: int) -> list[Int64[np.ndarray, " K"]]:
        """Teacher tokens whose probabilities are wanted there."""
        return [c.teacher_K for _, c in self.crossed.get(m, [])] + [a.teacher_K for _, a, _ in self.ahead.get(m, [])]


@dataclass(frozen=True, eq=False)
class _Masses:
    """Cumulative log-probabilities of the teacher's own tokens; by node the log masses of student tokens in earlier crossings; and
    masses to be moved, as node, student token, the token that stood for it, log mass."""

    cumulative_M1: Float64[np.ndarray, " M1"]
    extras: dict[int, dict[int, float]]
    moves: list[tuple[int, int, int, float]]

    def add(self, t: int, student_K: Int64[np.ndarray, " K"], mass_K: Float64[np.ndarray, " K"]) -> None:
        """Add log masses to a node's extras."""
        for token, mass in zip(student_K.tolist(), mass_K.tolist(), strict=True):
            self.extras[t][token] = float(np.logaddexp(self.extras[t].get(token, -np.inf), mass))


@dataclass(frozen=True, eq=False)
class _Spine:
    """The teacher's tokens that it is `fed`, of which `length` are the rollout's, and the first `known` nodes, at which it has a state."""

    alignment: Alignment
    fed: np.ndarray
    length: int
    known: int

    @classmethod
    def of(cls, reading: Reading, room: int) -> "_Spine":
        """As many tokens as there is room for, one of them to predict something after the last."""
        length = min(len(reading.tokens_M), max(0, room - 1))
        cut = replace(reading, tokens_M=reading.tokens_M[:length], teacher_M1=reading.teacher_M1[: length + 1])
        alignment = align(cut.student_T1, cut.teacher_M1)
        whole = cut.teacher_M1[-1] == cut.student_T1[-1]
        inside = (alignment.before_T < length) | (alignment.written_T == 0)
        known = len(inside) if whole else int(np.argmin(np.append(inside, False)))
        needed = int(alignment.before_T[:known].max(initial=0)) + 1
        return cls(alignment, np.append(cut.tokens_M, 0)[: max(needed, length)], length, known)


def _places(
    continuations: Sequence[np.ndarray], readings: Sequence[Reading], alignments: Sequence[Alignment]
) -> list[list[tuple[int, int]]]:
    """Each node as a pair of numbers, equal where the tokens before it are, the student's and the teacher's."""
    numbers: dict[tuple[int, int], int] = {}

    def follow(tokens: Sequence[int]) -> list[int]:
        path = [0]
        for token in tokens:
            path.append(numbers.setdefault((path[-1], token), len(numbers) + 1))
        return path

    return [
        list(
            zip(
                follow(tokens.tolist())[:-1],
                np.array(follow(reading.tokens_M.tolist()))[alignment.before_T].tolist(),
                strict=True,
            )
        )
        for tokens, reading, alignment in zip(continuations, readings, alignments, strict=True)
    ]


def cross_tokenizer(student: LoadedModel, teacher: LoadedModel) -> LoadedModel:
    """The teacher with its own prompts and text, over the student's vocabulary: of both the tokens that the models have logits for."""
    assert isinstance(student.codec, ChatCodec)
    assert isinstance(teacher.codec, ChatCodec)
    ours = spelling_of(student.codec).held(student.language_model.vocabulary_size)
    theirs = spelling_of(teacher.codec).held(teacher.language_model.vocabulary_size)
    return replace(teacher, language_model=CrossModel(teacher.language_model, Translation(ours, theirs)))
