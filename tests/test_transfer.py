"""Transfer between questions: sketches of outer products, the streamed form, intervals over pairs of questions."""

import itertools

import numpy as np
import pytest
import torch

from gradalign.inference import influence_interval
from gradalign.objectives import NodeSignals, ideal_direction, parse_objective
from gradalign.sketch import OuterSketch, sketch_error
from gradalign.testbed import TabularModel
from gradalign.transfer import SAMPLE, Batch, Transfer, pair_sums, transfer


def nodes(seed: int, count: int, vocabulary: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, size, generator=rng, dtype=torch.float64) for size in (vocabulary, width))


def test_small_sums_of_outer_products_are_kept_as_they_are():
    left, right = nodes(0, 9, 5, 4)
    sketch = OuterSketch(5, 4)
    assert sketch.exact
    explicit = sum(torch.outer(d, h) for d, h in zip(left, right, strict=True))
    torch.testing.assert_close(sketch.sum(left, right), explicit.reshape(-1), rtol=0, atol=1e-12)


def test_both_ways_to_a_sketch_give_the_same_numbers(monkeypatch):
    left, right = nodes(1, 600, 37, 11)
    short = OuterSketch(37, 11, size=64, seed=3)
    assert not short.exact
    whole = short.sum(left, right)
    monkeypatch.setattr("gradalign.sketch._WORTH_A_MATRIX", 0)
    torch.testing.assert_close(short.sum(left, right), whole, rtol=1e-9, atol=1e-9)


def test_sketches_keep_inner_products_within_their_stated_error():
    one, other = nodes(2, 6, 30, 20), nodes(3, 6, 30, 20)
    a, b = (left.T @ right for left, right in (one, other))
    inner = float((a * b).sum())
    found = []
    for seed in range(400):
        sketch = OuterSketch(30, 20, size=128, seed=seed)
        found.append(float(sketch.sum(*one) @ sketch.sum(*other)))
    error = sketch_error(float((a**2).sum()), float((b**2).sum()), inner, 128)
    assert abs(np.mean(found) - inner) < 3.5 * np.std(found) / 20
    assert 0.6 * error < np.std(found) < 1.15 * error


def question(rng: np.random.Generator, head: np.ndarray) -> TabularModel:
    """All sequences of three tokens out of five, with hidden states of their own under a shared output layer."""
    states = {p: rng.standard_normal(head.shape[1]) for t in range(3) for p in itertools.product(range(5), repeat=t)}
    rewards = {p: float(rng.random() < 0.4) for p in itertools.product(range(5), repeat=3)}
    return TabularModel.with_head(states, head, rewards, 3)


def exact_steps(model: TabularModel, teacher: TabularModel) -> tuple[np.ndarray, np.ndarray]:
    """Sums over all nodes of visitation times d h^T of reverse_kl, and of g h^T."""
    step, ideal = np.zeros((2, *model.head_VH.shape))
    for prefix, row in model.prefixes.items():
        pi, tau = (torch.tensor(m.probabilities(prefix))[None].log() for m in (model, teacher))
        d = parse_objective("reverse_kl").direction(NodeSignals(pi, tau))[0].numpy()
        g = ideal_direction(pi, torch.tensor(model.success(prefix))[None])[0].numpy()
        h = model.states_NH[row].numpy()
        step += model.visitation(prefix) * np.outer(d, h)
        ideal += model.visitation(prefix) * np.outer(g, h)
    return step, ideal


def test_a_small_step_of_the_output_layer_on_one_question_moves_another_as_transfer_says():
    rng = np.random.default_rng(0)
    head = rng.standard_normal((5, 4))
    for _ in range(5):
        taught, other = question(rng, head), question(rng, head)
        step, _ = exact_steps(taught, taught.tilted(2.0, "teacher"))
        _, ideal = exact_steps(other, other)
        predicted = float((step * ideal).sum())
        eta = 1e-4
        states = {p: other.states_NH[row].numpy() for p, row in other.prefixes.items()}
        moved = TabularModel.with_head(states, head + eta * step, other.rewards, 3)
        assert (moved.value(()) - other.value(())) / eta == pytest.approx(predicted, rel=0.01)


def simulated(
    rng: np.random.Generator, questions: int, common: float = 0.5, noise: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Steps and ideal steps with a common part, a part of each question's own that does not transfer, and skewed sizes."""
    size = rng.gamma(4, 1 / 4, (questions, 1))
    own = rng.standard_normal((questions, 12))
    step = size * (common * np.eye(12)[0] + own + noise * rng.standard_normal((questions, 12)))
    ideal = size * (0.4 * np.eye(12)[0] + own + 2 * noise * rng.standard_normal((questions, 12)))
    return step, ideal


def transfer_of(*runs: tuple[np.ndarray, np.ndarray], weight: np.ndarray | None = None, batches: int = 1) -> Transfer:
    """Transfer of configurations from their steps and the one ideal step, in so many batches."""
    ideal = runs[0][1]
    cut = np.array_split(np.arange(len(ideal)), batches)
    stored = [Batch(at, [step[at] for step, _ in runs], ideal[at]) for at in cut]
    weights = np.ones((len(runs), len(ideal))) if weight is None else weight
    return transfer(pair_sums(stored, range(len(runs)), weights))


def by_pairs(step: np.ndarray, ideal: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What each pair of questions brings to drive and to unit (linearised): the slow form, of all pairs."""
    brought = weight[:, None] * (step @ ideal.T)
    apart = ~np.eye(len(step), dtype=bool)
    pairs = (brought + brought.T) / 2 * apart
    norm2 = weight**2 * (step**2).sum(1)
    mean, drive = norm2.mean(), pairs.sum() / apart.sum()
    beyond = (norm2[:, None] + norm2[None, :]) / 2 - mean
    return pairs, (pairs - drive / (2 * mean) * beyond) / np.sqrt(mean) * apart


def influence_by_pairs(pairs: np.ndarray) -> np.ndarray:
    """Each question's influence on the mean over pairs, with the residual of an additive model of every pair."""
    questions = len(pairs)
    mean = pairs.sum() / (questions * (questions - 1))
    effect = (pairs.sum(1) / (questions - 1) - mean) * (questions - 1) / (questions - 2)
    residual = (pairs - mean - effect[:, None] - effect) * ~np.eye(questions, dtype=bool)
    peculiar = (residual**2).sum() / (questions * (questions - 3))
    jackknife = 4 * effect.var(ddof=1) / questions
    due = 2 * peculiar / (questions * (questions - 1))
    return 2 * effect * np.sqrt((max(jackknife - 4 * peculiar / (questions * (questions - 2)), 0.0) + due) / jackknife)


def test_sums_over_questions_say_what_all_pairs_say():
    rng = np.random.default_rng(0)
    (one, ideal), (other, _) = simulated(rng, 17), simulated(rng, 17)
    weight = rng.random((2, 17))
    found = transfer_of((one, ideal), (other, ideal), weight=weight, batches=3)
    pairs = [by_pairs(step, ideal, w) for step, w in ((one, weight[0]), (other, weight[1]))]
    for m, (step, w) in enumerate(((one, weight[0]), (other, weight[1]))):
        mean = np.mean([w[q] * step[q] @ ideal[p] for q in range(17) for p in range(17) if p != q])
        assert found.drive_M[m] == pytest.approx(mean, abs=1e-12)
        assert found.unit_M[m] == pytest.approx(mean / np.sqrt((w**2 * (step**2).sum(1)).mean()), abs=1e-12)
    mixes = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0], [0.5, 0.5], [0.0, 0.0]])
    for k, (a, b) in enumerate(mixes[:4]):
        for which, influence in enumerate((found.drive_influence(mixes), found.unit_influence(mixes))):
            slow = influence_by_pairs(a * pairs[0][which] + b * pairs[1][which])
            np.testing.assert_allclose(influence[k], slow, rtol=1e-9, atol=1e-12)
            assert (influence[4] == 0).all()


def test_a_configuration_without_steps_is_unknown_and_the_others_are_not():
    step, ideal = simulated(np.random.default_rng(0), 9)
    batches = [Batch(np.arange(5), [step[:5], step[:5]], ideal[:5]), Batch(np.arange(5, 9), [step[5:], None], ideal[5:])]
    found = transfer(pair_sums(batches, [0, 1, 0], np.ones((3, 9))))
    alone = transfer_of((step, ideal))
    np.testing.assert_allclose(found.drive_M, [alone.drive_M[0], np.nan, alone.drive_M[0]])
    np.testing.assert_allclose(found.unit_M, [alone.unit_M[0], np.nan, alone.unit_M[0]])
    mixed = found.unit_influence(np.array([[1.0, 0, 0], [0, 1.0, 0], [1.0, -1.0, 0], [1.0, 0, -1.0]]))
    np.testing.assert_allclose(mixed[0], alone.unit_influence(np.ones((1, 1)))[0])
    assert np.isnan(mixed[1:3]).all()
    np.testing.assert_allclose(mixed[3], 0, atol=1e-12)


@pytest.mark.parametrize(("common", "noise"), [(0.5, 0.5), (0.0, 1.0)])
def test_intervals_from_a_sample_of_pairs_are_as_wide(common, noise):
    """Of more questions than `SAMPLE` only what is peculiar to pairs is taken from a sample; where nearly all is, too."""
    step, ideal = simulated(np.random.default_rng(3), 4 * SAMPLE, common, noise)
    found = transfer_of((step, ideal), batches=5)
    for pairs, score, influence in zip(
        by_pairs(step, ideal, np.ones(len(step))), (found.drive_M, found.unit_M),
        (found.drive_influence(np.ones((1, 1))), found.unit_influence(np.ones((1, 1)))), strict=True,
    ):  # fmt: skip
        assert score[0] == pytest.approx(pairs.sum() / (len(pairs) * (len(pairs) - 1)), rel=1e-9)
        assert influence.std() == pytest.approx(influence_by_pairs(pairs).std(), rel=0.1)


def test_the_unit_kernel_is_the_slope_of_the_score():
    """Leaving a question out moves both scores, to first order, by what its pairs add."""
    step, ideal = simulated(np.random.default_rng(1), 300)
    weight = np.random.default_rng(2).random((1, 300))
    whole = transfer_of((step, ideal), weight=weight)
    for q in range(3):
        keep = np.delete(np.arange(300), q)
        part = transfer_of((step[keep], ideal[keep]), weight=weight[:, keep])
        for score, left, effect in (
            (whole.drive_M, part.drive_M, whole.drive_effect_MQ),
            (whole.unit_M, part.unit_M, whole.unit_effect_MQ),
        ):
            assert score[0] - left[0] == pytest.approx(2 * effect[0, q] / 299, rel=0.05)


@pytest.mark.parametrize(
    ("common", "noise", "most"), [(2.0, 0.5, 0.97), (0.5, 0.5, 0.98), (0.5, 3.0, 0.995), (0.0, 1.0, 0.995)]
)
def test_intervals_of_transfer_cover(common, noise, most):
    """Where questions have much in common 93 to 97%; where pairs are peculiar, or nothing is transferred, more: never much less."""
    rng = np.random.default_rng(4)
    hits = np.zeros(3)
    whole, _ = simulated(rng, 400_000, common, noise)
    unit = 0.4 * common / np.sqrt((whole**2).sum(1).mean())
    for _ in range(1000):
        step, ideal = simulated(rng, 50, common, noise)
        other = step + rng.standard_normal(step.shape) - 0.2 * np.eye(12)[0]
        found = transfer_of((step, ideal), (other, ideal))
        drive, difference = found.drive_influence(np.array([[1.0, 0], [1, -1]]))[:, None]
        units = found.unit_influence(np.eye(2))
        for i, (score, influence, truth) in enumerate((
            (found.drive_M[:1], drive[:1], 0.4 * common),
            (found.unit_M[:1], units[:1], unit),
            (found.drive_M[:1] - found.drive_M[1:], difference, 0.08),
        )):  # fmt: skip
            low, high = influence_interval(score, influence)
            hits[i] += low[0] <= truth <= high[0]
    assert (hits / 1000 >= 0.93).all(), hits
    assert (hits / 1000 <= most).all(), hits


def test_two_questions_have_no_transfer():
    found = transfer_of((np.ones((2, 2)), np.ones((2, 2))))
    assert np.isnan(found.drive_M).all()
    assert np.isnan(found.unit_influence(np.eye(1))).all()
