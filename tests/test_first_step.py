"""First steps: directions of single rollouts against exact ones, gradients against automatic differentiation, slopes against both."""

import itertools
import shutil

import numpy as np
import pytest
import torch

import gradalign as package
from gradalign.configurations import Configuration, parse_questions, parse_tokens
from gradalign.findings import Horizon, rank, rank_configurations
from gradalign.first_step import foretell
from gradalign.first_step import foretelling as module
from gradalign.first_step.directions import Rollouts, rollout_direction, told_by_single_rollouts
from gradalign.first_step.moments import Moments
from gradalign.first_step.student import Trainee
from gradalign.models import CausalLanguageModel, LoadOptions, load_model
from gradalign.objectives import brought, parse_objective
from gradalign.store import FIRST_STEPS, FirstSteps, load_run, read_first_steps
from gradalign.types import GradalignError


def summed(objective: str, model, teacher) -> np.ndarray:
    """The mean over all rollouts, each as likely as it is, of the directions at the nodes that it passes: (N, V)."""
    spec, total = parse_objective(objective), torch.zeros_like(model.logits_NV)
    for sequence in itertools.product(range(model.vocabulary_size), repeat=model.length):
        rows = [model.prefixes[sequence[:depth]] for depth in range(model.length)]
        student, taught = (each.logits_NV[rows].log_softmax(-1) for each in (model, teacher))
        reward = np.array([model.rewards[sequence]])
        rollouts = Rollouts([np.array(sequence)], reward, reward)
        probability = float(student.gather(1, torch.tensor(sequence)[:, None]).sum().exp())
        total[rows] += probability * rollout_direction(spec, student, taught, rollouts)
    return total.numpy()


def sequence_loss(objective: str, model, teacher) -> np.ndarray:
    """The gradient in all logits of what the objective is to raise, by automatic differentiation over all sequences: (N, V)."""
    logits = model.logits_NV.clone().requires_grad_(True)
    raised = torch.zeros(())
    for sequence in itertools.product(range(model.vocabulary_size), repeat=model.length):
        rows = [model.prefixes[sequence[:depth]] for depth in range(model.length)]
        taken = torch.tensor(sequence)[:, None]
        student, taught = (each[rows].log_softmax(-1).gather(1, taken).sum() for each in (logits, teacher.logits_NV))
        worth = model.rewards[sequence] if objective in ("success", "dr_grpo") else taught - student
        raised = raised + student.exp() * worth
    raised.backward()
    assert logits.grad is not None
    return logits.grad.numpy()


@pytest.mark.parametrize("objective", ["success", "dr_grpo", "minillm:1"])
def test_rollouts_mean_the_gradient_of_the_whole_sequence(tabular, objective):
    """Success, and KL(student || teacher) of sequences."""
    teacher = tabular.tilted(1.5, "teacher")
    np.testing.assert_allclose(summed(objective, tabular, teacher), sequence_loss(objective, tabular, teacher), atol=1e-12)


@pytest.mark.parametrize("objective", ["reverse_kl", "forward_kl", "jsd:0.3", "forward_kl@reverse_kl*0.5"])
def test_of_objectives_of_a_node_the_direction_is_its_own(tabular, objective):
    teacher, spec = tabular.tilted(1.5, "teacher"), parse_objective(objective)
    found = summed(objective, tabular, teacher)
    for prefix, row in tabular.prefixes.items():
        student, taught = (each.logits_NV[[row]].log_softmax(-1) for each in (tabular, teacher))
        alone = rollout_direction(spec, student, taught, Rollouts([np.array([0])], np.zeros(1), np.zeros(1)))[0].numpy()
        np.testing.assert_allclose(found[row], tabular.visitation(prefix) * alone, atol=1e-12)


def test_a_sampled_log_ratio_means_the_reverse_kl(tabular):
    teacher = tabular.tilted(1.5, "teacher")
    np.testing.assert_allclose(summed("sampled_kl", tabular, teacher), summed("reverse_kl", tabular, teacher), atol=1e-12)


def test_a_reward_reweighted_target_adds_success(tabular):
    teacher = tabular.tilted(1.5, "teacher")
    parts = summed("reverse_kl", tabular, teacher) + summed("success", tabular, teacher) / 0.25
    np.testing.assert_allclose(summed("pbsd_target:0.25", tabular, teacher), parts, atol=1e-12)


def test_pairs_of_rollouts_are_not_told_by_single_ones():
    assert not told_by_single_rollouts(parse_objective("pbsd:0.1"))
    assert told_by_single_rollouts(parse_objective("jsd:0.5"))


def test_functions_of_the_users_are_known_without_importing_them():
    assert brought("no.such.module:function")
    assert brought("mine")
    assert not any(map(brought, ("gkd", "reverse_kl", "jsd:0.5", "minillm:1", "forward_kl@reverse_kl*1", "dr_grpo")))


def exact_success(logits: torch.Tensor, model) -> float:
    """The mean reward of all rollouts, each as likely as these logits make it."""
    logprobs, found = logits.log_softmax(-1), 0.0
    for sequence in itertools.product(range(model.vocabulary_size), repeat=model.length):
        rows = [model.prefixes[sequence[:depth]] for depth in range(model.length)]
        found += float(logprobs[rows, list(sequence)].sum().exp()) * model.rewards[sequence]
    return found


@pytest.mark.parametrize("objective", ["reverse_kl", "forward_kl", "jsd:0.5", "minillm:1", "pbsd_target:0.25", "dr_grpo"])
def test_small_steps_change_success_as_their_slope_says(tabular, objective):
    """Exactly, with no sampling: the change over slope times step goes to 1, and errs by less the smaller the step."""
    step = torch.from_numpy(summed(objective, tabular, tabular.tilted(1.5, "teacher")))
    slope = float((step * torch.from_numpy(summed("success", tabular, tabular))).sum())
    before, ratios = exact_success(tabular.logits_NV, tabular), []
    for told in (0.02, 0.002, 0.0002):
        size = told / abs(slope)
        ratios.append((exact_success(tabular.logits_NV + size * step, tabular) - before) / (size * slope))
    assert abs(ratios[0] - 1) < 0.1
    assert abs(ratios[2] - 1) < abs(ratios[1] - 1) < abs(ratios[0] - 1)
    assert abs(ratios[2] - 1) < 2e-3


def batches(count: int, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.tensor([0.3, -1.0, 0.0]) + torch.tensor([1.0, 0.5, 2.0]) * torch.randn(count, 3, generator=rng)


def test_moments_are_mean_and_variance():
    seen = batches(50)
    moments = Moments([torch.zeros(1), torch.zeros(2)])
    for each in seen:
        moments.add([each[:1], each[1:]], 8)
    step = moments.step()
    torch.testing.assert_close(torch.cat(step.mean), seen.mean(0))
    torch.testing.assert_close(torch.cat(step.variance), seen.var(0))
    assert (step.rollouts, step.batches) == (8, 50)


def test_one_batch_has_no_spread():
    moments = Moments([torch.zeros(3)])
    moments.add([torch.ones(3)], 8)
    with pytest.raises(ValueError, match="no spread"):
        moments.step()


def test_the_squared_length_is_free_of_what_noise_adds():
    found = []
    for seed in range(400):
        moments = Moments([torch.zeros(3)])
        for each in batches(5, seed):
            moments.add([each], 8)
        found.append(moments.step().norm2)
    assert abs(np.mean(found) - 1.09) < 3.5 * np.std(found) / 20


def test_the_expected_sign_is_that_of_larger_batches():
    """Of batches four times the size, whose mean is as sure as that of four."""
    moments = Moments([torch.zeros(3)])
    for each in batches(20_000):
        moments.add([each], 8)
    signs = batches(80_000, seed=1).reshape(20_000, 4, 3).mean(1).sign().mean(0)
    torch.testing.assert_close(moments.step().expected_sign(32)[0], signs, atol=0.02, rtol=0)


def test_what_never_moves_has_no_sign():
    moments = Moments([torch.zeros(2)])
    for _ in range(2):
        moments.add([torch.tensor([0.0, 1.0])], 8)
    torch.testing.assert_close(moments.step().expected_sign(8)[0], torch.tensor([0.0, 1.0]))


@pytest.fixture(scope="module")
def trainee() -> Trainee:
    model = load_model("builtin:small", LoadOptions(device="cpu")).language_model
    assert isinstance(model, CausalLanguageModel)
    return Trainee(model)


@pytest.fixture(scope="module")
def texts(small):
    prompts = [small.codec.prompt(text) for text in ("Start at 3: +5 -2 (modulo 10). What is the total?", "Hello")]
    return [(prompts[i % 2], np.array([5 + i, 7, 9, 11][: 1 + i % 4])) for i in range(7)]


def plainly(trainee: Trainee, texts, weights) -> torch.Tensor:
    """sum over rollouts of weight x log pi, one rollout after the other."""
    total = torch.zeros(())
    for (prompt, tokens), weight in zip(texts, weights, strict=True):
        logits = trainee.body(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
        taken = torch.from_numpy(tokens)[:, None]
        total = total + weight * logits[:, : trainee.model.vocabulary_size].log_softmax(-1).gather(1, taken).sum()
    return total


def test_gradients_are_those_of_automatic_differentiation(trainee, texts, monkeypatch):
    """Policy gradients by cotangents, in one batch and in several, against the plain sum of weighted log-likelihoods."""
    weights = np.linspace(-1, 1, len(texts))

    def cotangent(places, logprobs):
        lengths = [len(texts[place][1]) for place in places]
        taken = torch.from_numpy(np.concatenate([texts[place][1] for place in places]))
        direction = -logprobs.exp()
        direction[torch.arange(len(taken)), taken] += 1
        return direction * torch.from_numpy(np.repeat(weights[list(places)], lengths)).float()[:, None]

    whole = trainee.gradient(texts, cotangent)
    monkeypatch.setattr("gradalign.first_step.student._CELLS", {"cpu": 3 * trainee.model.vocabulary_size})
    in_parts = trainee.gradient(texts, cotangent)
    plain = torch.autograd.grad(plainly(trainee, texts, weights), trainee.parameters)
    for one, other, wanted in zip(whole, in_parts, plain, strict=True):
        torch.testing.assert_close(one, wanted, atol=2e-5, rtol=1e-3)
        torch.testing.assert_close(other, wanted, atol=2e-5, rtol=1e-3)


def test_loglikelihoods_and_moved_parameters(trainee, texts):
    before = [each.clone() for each in trainee.parameters]
    plain = [float(plainly(trainee, [text], [1.0]).detach()) for text in texts]
    np.testing.assert_allclose(trainee.loglikelihoods(texts), plain, atol=1e-4)
    step = [torch.randn_like(each) for each in trainee.parameters]
    with trainee.moved(step, 0.01):
        assert not np.allclose(trainee.loglikelihoods(texts), plain, atol=1e-2)
    assert all(torch.equal(one, other) for one, other in zip(before, trainee.parameters, strict=True))


def test_weights_that_cannot_be_moved_are_refused(trainee):
    half = load_model("builtin:small", LoadOptions(device="cpu", dtype="bfloat16")).language_model
    with pytest.raises(GradalignError, match=r"float32 on one device, not torch\.bfloat16"):
        Trainee(half)


CONFIGURATIONS = (
    Configuration("plain", "reverse_kl", "ctx:correct_demo"),
    Configuration("paced", "reverse_kl", "ctx:correct_demo", questions=parse_questions("paced:1:1")),
    Configuration("uncertain", "reverse_kl", "ctx:correct_demo", tokens=parse_tokens("entropy_top:0.2")),
    Configuration("leak", "reverse_kl", "ctx:answer"),
)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    return package.score(
        teachers=("ctx:none", "ctx:correct_demo", "ctx:wrong_demo", "ctx:answer"),
        objectives=("reverse_kl", "dr_grpo", "pbsd:0.5"),
        tokens=("entropy_top:0.2",),
        limit=12,
        rollouts=12,
        teacher_rollouts=8,
        budget=8,
        out=str(tmp_path_factory.mktemp("run") / "run"),
    )


@pytest.fixture(scope="module")
def told(scored):
    return foretell(scored, CONFIGURATIONS, batch=8)


def mean_of(told, teacher: str, objective: str = "reverse_kl", name: str = "adam", **weighting: str) -> float:
    rows = told[(told["teacher"] == teacher) & (told["objective"] == objective)]
    wanted = {"questions": "uniform", "tokens": "all"} | weighting
    return float(rows[(rows[[*wanted]] == [*wanted.values()]).all(axis=1)][name].mean())


def test_slopes_are_products_of_gradients(scored, told, trainee):
    """Of the same rollouts: <D, gradient of success>, by a backward pass over all of the other half's, against central differences."""
    cast = module.load_cast(module._config(scored, module._units(scored, (), ()), False), module.Execution(engine="hf"))
    work = module.Foretelling(scored, cast, Trainee(cast.student.model.language_model), module.ROLLOUTS, 8)
    unit = next(u for u in module._units(scored, (), ()) if u.key == ("ctx:correct_demo", "reverse_kl", "uniform", "all"))
    for half in range(2):
        step, others = work.step(unit, work.taught[half::2]), work.taught[1 - half :: 2]
        texts = [text for other in others for text in other.texts]
        worth = np.concatenate([other.rollouts.advantage_R / len(other.rollouts.advantage_R) for other in others]) / len(others)
        gradient = torch.autograd.grad(plainly(work.trainee, texts, worth), work.trainee.parameters)
        names = [other.question for other in others]
        mine = told[told["question"].isin(names) & (told["teacher"] == unit.teacher) & (told["objective"] == "reverse_kl")]
        mine = mine[(mine["questions"] == "uniform") & (mine["tokens"] == "all")]
        for name, along in (("plain", step.mean), ("adam", step.expected_sign(8))):
            exact = sum(float((a.double() * b.double()).sum()) for a, b in zip(along, gradient, strict=True))
            assert mine[name].mean() == pytest.approx(exact, rel=0.02)


def test_help_and_harm_are_told(told):
    assert mean_of(told, "ctx:correct_demo") > 100 > mean_of(told, "ctx:answer")
    assert mean_of(told, "ctx:wrong_demo") < -50
    assert mean_of(told, "ctx:correct_demo", tokens="entropy_top:0.2") > 100
    assert mean_of(told, "ctx:correct_demo", questions="paced:1:1") > 100
    assert mean_of(told, "rewards", "dr_grpo") > 0
    assert "pbsd:0.5" not in set(told["objective"])


def test_a_teacher_that_is_the_student_makes_no_step(told):
    assert mean_of(told, "ctx:none") == 0


def test_rows_are_kept_and_found_again(scored, told, monkeypatch):
    assert list(read_first_steps(scored.path).columns) == [column.name for column in FIRST_STEPS]
    assert set(told.groupby(list(FirstSteps.KEYS)).size()) == {len(scored.questions)}
    monkeypatch.setattr(module, "load_cast", lambda *given: pytest.fail("loaded again"))
    again = foretell(scored, CONFIGURATIONS, batch=8)
    assert again.equals(told)


def test_what_was_done_is_kept_when_the_rest_is_interrupted_and_runs_foretell_equally(scored, told, tmp_path):
    run = load_run(shutil.copytree(scored.path, tmp_path / "run"))
    (tmp_path / "run" / "first_steps.parquet").unlink(missing_ok=True)

    class Impatient:
        units = 0

        def begin(self, units, done): ...

        def stage(self, what):
            self.units += what.startswith("reverse_kl")
            if self.units == 2:
                raise KeyboardInterrupt

        def advance(self, units): ...

        def standing(self, standing, spent): ...

    with pytest.raises(KeyboardInterrupt):
        foretell(run, batch=8, objectives=("reverse_kl",), progress=Impatient())
    assert read_first_steps(run.path)["teacher"].nunique() == 1
    found = foretell(run, batch=8, objectives=("reverse_kl",))
    mine = told[(told["objective"] == "reverse_kl") & (told["questions"] == "uniform") & (told["tokens"] == "all")]
    np.testing.assert_allclose(found["adam"], mine["adam"], rtol=1e-6)


def test_the_ranking_goes_by_what_is_foretold(scored, told):
    found = rank(scored, objectives=("reverse_kl",))
    assert found.by == "foretold"
    assert found.frame["teacher"].iloc[0] == "ctx:correct_demo"
    row = found.frame.set_index("teacher").loc["ctx:correct_demo"]
    assert row["first_step_low"] < row["first_step"] < row["first_step_high"]
    assert row["foretold_low"] < row["foretold"] < row["foretold_high"]
    assert row["first_step"] == pytest.approx(mean_of(told[told["question"].isin(_shared(scored))], "ctx:correct_demo"))
    assert found.frame["teacher"].iloc[-1] == "ctx:wrong_demo"


def _shared(run) -> list[str]:
    contexts = run.frame("scores", ["question", "teacher"]).drop_duplicates()
    counts = contexts[contexts["teacher"] != "rewards"].groupby("question").size()
    return [question for question, count in counts.items() if count == 4]


def test_a_short_horizon_follows_the_slope_and_a_long_one_the_teacher(scored, told):
    short = rank(scored, "foretold", objectives=("reverse_kl",), horizon=Horizon(1, 1e-9)).frame.set_index("teacher")
    np.testing.assert_allclose(short["foretold"], 1e-9 * short["first_step"], rtol=1e-3, atol=1e-15)
    long = rank(scored, "foretold", objectives=("reverse_kl",), horizon=Horizon(10**6, 1e-3)).frame.set_index("teacher")
    questions, rollouts = _shared(scored), scored.frame("rollouts")
    own = rollouts[(rollouts["source"] == "ctx:correct_demo") & rollouts["question"].isin(questions)]
    rate = scored.questions.set_index("question").loc[questions, "pass_rate"]
    lift = (own[own["purpose"] == "teacher"].groupby("question")["reward"].mean() - rate).mean()
    assert long.loc["ctx:correct_demo", "first_step_share"] == 1
    assert long.loc["ctx:correct_demo", "foretold"] == pytest.approx(lift)


def test_a_leak_is_warned_of_and_what_helps_is_not(scored, told):
    found = rank(scored, objectives=("reverse_kl",))
    warned = {warning.split(" with ")[0] for warning in found.warnings}
    assert warned == {"ctx:answer", "ctx:wrong_demo"}
    leak = next(warning for warning in found.warnings if warning.startswith("ctx:answer"))
    assert "helps other questions by" in leak
    assert "leaked answer" in leak


def test_configurations_are_ranked_by_it_too(scored, told):
    found = rank_configurations(scored, CONFIGURATIONS)
    assert found.by == "foretold"
    frame = found.frame.set_index("configuration")
    assert frame["first_step"].notna().all()
    assert frame["foretold"].idxmin() == "leak"


def test_what_has_no_first_step_keeps_the_default(scored, told):
    other = Configuration("half", "reverse_kl", "ctx:correct_demo", tokens=parse_tokens("entropy_top:0.5"))
    found = rank_configurations(scored, [*CONFIGURATIONS, other])
    assert found.by == "transfer_drive"
    assert found.notes[0].startswith("first steps are not known of half: `gradalign foretell` (with --configs")
    frame = rank_configurations(scored, [*CONFIGURATIONS, other], by="first_step").frame.set_index("configuration")
    assert np.isnan(frame.loc["half", "first_step"])
    assert np.isnan(frame.loc["half", "foretold"])


def test_a_run_that_was_never_asked_says_how(scored, tmp_path):
    run = load_run(shutil.copytree(scored.path, tmp_path / "run"))
    (tmp_path / "run" / "first_steps.parquet").unlink(missing_ok=True)
    assert rank(run).by == "transfer_drive"
    with pytest.raises(GradalignError, match="run `gradalign foretell` on it"):
        rank(run, by="first_step")


def test_too_few_questions_are_refused(tmp_path):
    run = package.score(teachers=("ctx:correct_demo",), limit=3, rollouts=8, budget=4, out=str(tmp_path / "run"))
    with pytest.raises(GradalignError, match="has 3 questions with two rollouts each; first steps need 4"):
        foretell(run)


def test_a_function_named_in_a_run_is_not_imported_unless_asked_for(scored, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "parse_objective", lambda spec: seen.append(spec) or parse_objective("reverse_kl"))
    assert not module._asked("evil:function", ())
    assert not seen
    assert module._asked("evil:function", ("evil:function",))


def test_code_beside_a_model_is_run_only_if_the_user_says_so(scored):
    run = load_run(scored.path)
    run.description["identity"]["trust_remote_code"] = True
    units = module._units(run, (), ())
    assert not module._config(run, units, False).trust_remote_code
    assert module._config(run, units, True).dtype == "float32"


def test_a_horizon_is_two_numbers():
    with pytest.raises(GradalignError, match="give both, or neither"):
        Horizon(steps=100)
    with pytest.raises(GradalignError, match="must be above 0"):
        Horizon(0, 1e-5)


def test_the_command(scored, told, gradalign):
    code, shown, _ = gradalign("foretell", str(scored.path), "--objective", "reverse_kl", "--batch", "8", "--out", "table.csv")
    assert code == 0
    assert "Ranking by foretold" in shown
    code, shown, _ = gradalign("rank", str(scored.path), "--by", "foretold", "--steps", "10", "--learning-rate", "1e-4")
    assert code == 0
    code, _, said = gradalign("rank", str(scored.path), "--steps", "10")
    assert code == 2
    assert "give both, or neither" in said
