"""Teachers with another tokenizer: what is told of the student's tokens, against texts whose every probability is known, and in runs."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from gradalign_cli.main import app
from other_tokenizers import byte_fallback_tokenizer, permuted_student, random_model, trained_tokenizer
from transformers import AutoTokenizer
from typer.testing import CliRunner

import gradalign
from gradalign.models import ChatCodec, LoadOptions, load_model
from gradalign.models.cross import CrossModel, cross_tokenizer
from gradalign.models.spelling import Spelling, spelling_of
from gradalign.models.translation import Translation
from gradalign.pipeline import Execution, RunConfig, load_cast
from gradalign.spans import Spellings
from gradalign.tails import spread_shares, spread_tail
from gradalign.testbed import CharacterChain, TokenView
from gradalign.types import GradalignError

CPU = LoadOptions(device="cpu", batch_size=4)
SETTINGS = {"limit": 2, "rollouts": 8, "demonstrations": 4, "budget": 8, "batch_size": 4, "device": "cpu"}
ALPHABET = "abc"
CHARACTERS = [*ALPHABET]
PAIRED = [*ALPHABET, "ab", "ca"]
TEXTS = ["Is 12 + 30 = 42? naïve 東京 🙂 the answer is that", "there were three other thoughts, then the other"] * 3


def world(student_words, teacher_words, seed=0):
    """The teacher's exact view in the student's tokens, and what is made of it in its own."""
    chain = CharacterChain.random(ALPHABET, seed)
    exact, teacher = TokenView(chain, student_words), TokenView(chain, teacher_words)
    return exact, CrossModel(teacher, Translation(exact.spelling, teacher.spelling))


def all_texts(view: TokenView, length: int = 3) -> list[np.ndarray]:
    """Every sequence of so many tokens that the tokenizer writes, and then the end."""
    end = view.vocabulary_size - 1
    sequences = itertools.product(range(end), repeat=length)
    return [np.array([*s, end]) for s in sequences if view.cut("".join(view.words[t] for t in s)) == [*s]]


def told(model, continuations):
    return torch.cat([model.logprobs(states) for states in model.hidden_states((0,), continuations)])


@pytest.mark.parametrize("words", [CHARACTERS, PAIRED])
def test_the_same_tokenizer_gives_the_teacher_back(words):
    exact, model = world(words, words)
    texts = all_texts(exact)
    found, truth = told(model, texts), torch.cat(exact.hidden_states((0,), texts))
    assert not found.isnan().any()
    torch.testing.assert_close(found.exp(), truth.exp(), rtol=0, atol=1e-12)


def with_byte_tokens(spelling: Spelling) -> Spelling:
    """The same tokenizer with a token for each byte of the alphabet before its own, which it does not write."""
    size = len(ALPHABET)
    surface_V = [*(f"<0x{ord(char):02X}>" for char in ALPHABET), *spelling.surface_V]
    specials = {token + size: name for token, name in spelling.specials.items()}
    stops = frozenset(token + size for token in spelling.stops)
    return Spelling(
        [*(char.encode() for char in ALPHABET), *spelling.words_V],
        lambda texts: [[token + size for token in cut] for cut in spelling.cut(texts)],
        surface_V,
        specials,
        stops,
        max(stops),
    )


def test_of_tokens_that_write_the_same_the_one_is_told_that_the_tokenizer_writes():
    """SentencePiece has tokens for bytes beside those for characters, and a byte-level teacher names neither as it does."""
    chain = CharacterChain.random(ALPHABET, 0)
    exact, teacher = TokenView(chain, CHARACTERS), TokenView(chain, PAIRED)
    named = replace(teacher.spelling, surface_V=["Ġ" + name for name in teacher.spelling.surface_V])
    model = CrossModel(teacher, Translation(with_byte_tokens(exact.spelling), named))
    row, truth = told(model, [np.array([3, 6])])[0].exp().nan_to_num(0.0), exact.next_probabilities([])
    np.testing.assert_allclose(row, [0, 0, 0, *truth], atol=1e-12)
    back = Translation(named, with_byte_tokens(exact.spelling))
    assert back.read([0, 1, 3]).tokens_M.tolist() == [3, 4, 3, 4]  # "a", "b" where the student writes "ab"


def test_the_same_tokenizer_reads_every_rollout_as_it_stands():
    """Also where it ends inside a character, and where a tokenizer would not have written such tokens."""
    words_V = [b"t", b"h", b"th", b"\xf0", b"\x9f", b"\xf0\x9f", b"\xc3", b"\xa9", "é".encode()]
    spelling = Spelling(words_V, lambda texts: [Spellings(words_V).cut(text.encode()) or [] for text in texts], ["?"] * 9)
    translation = Translation(spelling, spelling)
    for size in (1, 2, 3):
        for rollout in itertools.product(range(len(words_V)), repeat=size):
            assert translation.read(rollout).tokens_M.tolist() == [*rollout]


@pytest.mark.parametrize(("student_words", "teacher_words"), [(CHARACTERS, PAIRED), (PAIRED, CHARACTERS)])
def test_tokens_that_a_model_has_no_logits_for_are_as_if_they_were_not(student_words, teacher_words):
    exact, plain = world(student_words, teacher_words)

    def grown(spelling: Spelling) -> Spelling:
        more = Spellings([*spelling.words_V, b"bc"])
        surface_V = [*spelling.surface_V, "bc"]
        return replace(
            spelling, words_V=more.words_V, surface_V=surface_V, cut=lambda texts: [more.cut(t.encode()) or [] for t in texts]
        )

    held = [grown(spelling).held(len(spelling.words_V)) for spelling in (plain.translation.student, plain.translation.teacher)]
    texts = all_texts(exact)
    found, wanted = (told(model, texts) for model in (CrossModel(plain.inner, Translation(*held)), plain))
    torch.testing.assert_close(found, wanted, equal_nan=True)


def test_texts_have_the_same_probability_in_every_vocabulary():
    chain = CharacterChain.random(ALPHABET, 3)
    for text in ("a", "abca", "cab"):
        chances = []
        for words in (CHARACTERS, PAIRED, [*ALPHABET, "bca", "bc"]):
            view = TokenView(chain, words)
            tokens = [*view.cut(text), len(words)]
            chances.append(np.prod([view.next_probabilities(tokens[:t])[token] for t, token in enumerate(tokens)]))
        places = ["abc".index(char) for char in text]
        path = [3, *places, 3]
        assert chances == pytest.approx([np.prod([chain.probabilities[a, b] for a, b in itertools.pairwise(path)])] * 3)


def test_characters_under_a_teacher_of_pairs_are_exact():
    """At an edge all is told; inside a pair, what crosses it is told, and the tail is the rest."""
    exact, model = world(CHARACTERS, PAIRED)
    texts = all_texts(exact)
    found, truth = told(model, texts), torch.cat(exact.hidden_states((0,), texts)).exp()
    known = ~found.isnan()
    assert 0 < (~known).any(1).double().mean() < 1  # both kinds of nodes are there
    torch.testing.assert_close(found.exp()[known], truth[known], rtol=0, atol=1e-12)
    _, tail = spread_tail(found, torch.log_softmax(torch.zeros_like(found), -1))
    inside = ~tail.isnan()
    torch.testing.assert_close(tail[inside], truth.masked_fill(known, 0).sum(1)[inside], rtol=0, atol=1e-6)


def test_tokens_taken_have_the_product_over_their_span_and_are_not_counted_twice():
    """Where rollouts take every pair at a node, all of its probabilities are exact."""
    exact, model = world(PAIRED, CHARACTERS)
    texts = all_texts(exact, 2)
    found, truth = told(model, texts), torch.cat(exact.hidden_states((0,), texts)).exp()
    first = np.cumsum([0, *map(len, texts)])[:-1]
    torch.testing.assert_close(found[first].exp(), truth[first], rtol=0, atol=1e-6)


def test_tokens_not_taken_are_with_the_first_of_their_text():
    exact, model = world(PAIRED, CHARACTERS)
    text = np.array([1, len(PAIRED)])  # "b", then the end
    row, truth = told(model, [text])[0].exp(), exact.next_probabilities([])
    assert row[[3, 4]].isnan().all()
    assert row[0] == pytest.approx(truth[0] + truth[3])
    assert model.home_V.tolist() == [0, 1, 2, 0, 2, 5]


def test_tokens_that_one_more_of_the_teachers_makes_whole_are_exact():
    """After "a" the teacher's next distribution is known, so "ab" is, though no rollout took it; and what is left is that of "a"."""
    exact, model = world(PAIRED, CHARACTERS)
    row, truth = told(model, [np.array([0, len(PAIRED)])])[0].exp(), exact.next_probabilities([])
    assert row[3] == pytest.approx(truth[3])
    assert row[0] == pytest.approx(truth[0])
    assert row[4].isnan()
    assert row[2] == pytest.approx(truth[2] + truth[4])


def test_longer_tokens_are_taken_from_the_longest_before():
    exact, model = world([*ALPHABET, "ab", "abc"], CHARACTERS)
    row, truth = told(model, [np.array([3, 0, 5])])[0].exp(), exact.next_probabilities([])
    np.testing.assert_allclose(row.numpy(), truth, atol=1e-6)


@pytest.mark.parametrize("longer", [[], ["abca"]])
def test_longer_tokens_that_longer_ones_of_the_teacher_begin_are_not_told_in_part(longer):
    """The teacher's "abc" tells a part of "ab", the rest of which is with "a"; "abca" is with both, and at home with "ab"."""
    exact, model = world([*CHARACTERS, "ab", *longer], [*CHARACTERS, "abc"])
    end, truth = exact.vocabulary_size - 1, torch.from_numpy(exact.next_probabilities([]))
    assert model.home_V.tolist() == [0, 1, 2, 0, *(3 for _ in longer), end]
    for first, untold in ((2, [3, *(4 for _ in longer)]), (0, [4 for _ in longer])):  # after "a", "b" makes "ab" whole
        row = told(model, [np.array([first, end])])[:1]
        assert row.isnan().nonzero()[:, 1].tolist() == untold
        shared = spread_shares(row, truth.log()[None], model.home_V)[0].exp()
        torch.testing.assert_close(shared, truth, rtol=0, atol=1e-6)


def test_mass_is_never_made():
    for student_words, teacher_words in ((PAIRED, [*ALPHABET, "bc", "aa"]), ([*ALPHABET, "abc", "ab"], PAIRED)):
        exact, model = world(student_words, teacher_words, 5)
        found = told(model, all_texts(exact))
        assert (found.exp().nan_to_num(0.0).sum(1) <= 1 + 1e-12).all()
        assert (found.nan_to_num(0.0) <= 0).all()


def test_where_nothing_is_known_the_student_is_left_alone():
    pi = torch.log_softmax(torch.randn(2, 7), -1)
    spread, tail = spread_tail(torch.full_like(pi, torch.nan), pi)
    torch.testing.assert_close(spread, pi)
    assert torch.allclose(tail, torch.ones(2))


def test_past_the_teachers_window_nothing_is_known():
    exact, model = world(CHARACTERS, PAIRED)
    text = all_texts(exact, 5)[0]
    model.context_window = 1 + 4  # a prompt of one token
    found = told(model, [text])
    assert found[-1].isnan().all()
    assert not found[0].isnan().any()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two random networks with tokenizers of their own, trained on different halves, and the built-in one permuted."""
    home = tmp_path_factory.mktemp("models")
    random_model(home / "one", trained_tokenizer(TEXTS, 300), 1)
    random_model(home / "two", trained_tokenizer(TEXTS[1:2] * 4, 330, end="<stop>"), 2)
    permuted_student(home / "permuted")
    return home


def test_tokens_of_several_bytes_and_ends_of_turns(folders):
    one, two = (load_model(str(folders / name), CPU) for name in ("two", "one"))  # the teacher's tokens are longer
    translation = Translation(spelling_of(one.codec), spelling_of(two.codec))
    text = "naïve 東京 🙂 the other"
    tokens = [*one.codec.ids(text), *one.codec.stop_ids]
    reading = translation.read(tokens)
    assert reading.text == text.encode() + b"\xff"
    assert reading.teacher_M1[-1] == reading.student_T1[-1] == len(reading.text)
    assert reading.tokens_M.tolist() == [*two.codec.ids(text), *two.codec.stop_ids]
    assert [translation.first_V[token] for token in two.codec.stop_ids] == [*one.codec.stop_ids]
    half = [one.codec.tokenizer.get_vocab()[char] for char in "ðŁ"]  # the first bytes of a character
    cut = translation.read(half)
    assert (cut.text, cut.teacher_M1[-1]) == ("🙂".encode()[:2], 2)
    model = cross_tokenizer(one, two).language_model
    found = told(model, [np.array(tokens)])
    assert (found.exp().nan_to_num(0.0).sum(1) <= 1 + 1e-9).all()
    edges = np.isin(reading.student_T1[:-1], reading.teacher_M1)
    assert 0 < edges.mean() < 1
    theirs = two.language_model.hidden_states((0,), [reading.tokens_M])[0]
    own = two.language_model.logprobs(theirs).double().exp()
    stop, mine = [*two.codec.stop_ids], [*one.codec.stop_ids]
    assert found[-1, mine].exp().item() == pytest.approx(own[-1, stop].item(), rel=1e-5)


def test_a_tokenizer_with_bytes_and_marks_for_spaces(folders):
    """Runs of spaces are added tokens in some (Gemma); a space of a byte-level teacher is not the byte 32 of such a student."""
    tokenizer = byte_fallback_tokenizer([*"▁abcdefghijklmnopqrstuvwxyz", "▁▁", "th"], ["▁▁"])
    spelling = spelling_of(ChatCodec(tokenizer, "marked", frozenset({0})))
    ids = tokenizer.get_vocab()
    assert spelling.cut(["the  é"]) == [[ids[name] for name in ("th", "e", "▁▁", "<0xC3>", "<0xA9>")]]
    assert spelling.written(spelling.cut(["the  é"])[0]) == "the  é".encode()
    teacher = load_model(str(folders / "one"), CPU)
    theirs = teacher.codec.tokenizer.get_vocab()
    first_V = Translation(spelling, spelling_of(teacher.codec)).first_V
    assert [first_V[theirs[name]] for name in "ĠaĊ"] == [ids["▁"], ids["a"], ids["<0x0A>"]]


def test_models_with_fewer_logits_than_their_tokenizers_have_tokens(folders):
    one, two = (load_model(str(folders / name), CPU) for name in ("one", "two"))
    for loaded in (one, two):
        loaded.language_model.vocabulary_size -= 20
    model = cross_tokenizer(one, two).language_model
    assert model.vocabulary_size == one.language_model.vocabulary_size
    found = told(model, [np.array(model.translation.student.cut(["there were three others"])[0])])
    assert (found.exp().nan_to_num(0.0).sum(1) <= 1 + 1e-9).all()
    assert not found.isnan().all(1).any()


def test_text_that_looks_like_a_special_token_is_text(folders):
    one, two = (load_model(str(folders / name), CPU) for name in ("one", "two"))
    translation = Translation(spelling_of(one.codec), spelling_of(two.codec))
    tokens = one.codec.tokenizer("say <stop> now", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    reading = translation.read(tokens)
    assert not {*reading.tokens_M.tolist()} & two.codec.stop_ids
    assert reading.teacher_M1[-1] == len("say <stop> now")


def test_a_permuted_vocabulary_reads_as_the_network_itself(small, folders):
    """Also where the student's tokens are not those that its tokenizer would have written."""
    permuted = load_model(str(folders / "permuted"), CPU)
    model = cross_tokenizer(small, permuted)
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 353, 20), np.array([*small.codec.ids("12 + 30 = 42. Answer: 42"), *small.codec.stop_ids])]
    own = [small.language_model.logprobs(s) for s in small.language_model.hidden_states(small.codec.prompt("Hi"), texts)]
    found = [model.language_model.logprobs(s) for s in model.language_model.hidden_states(model.codec.prompt("Hi"), texts)]
    for mine, theirs in zip(own, found, strict=True):
        torch.testing.assert_close(theirs.float(), mine, rtol=1e-4, atol=1e-5)


def test_a_tokenizer_that_changes_text_is_refused(small, folders, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folders / "one")
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    lower = load_model(str(random_model(tmp_path / "lower", tokenizer, 0)), CPU)
    with pytest.raises(GradalignError, match="changes the text that it cuts") as caught:
        cross_tokenizer(small, lower)
    assert "\n" not in str(caught.value)


def test_another_tokenizer_needs_to_be_asked_for(folders):
    teacher = f"model:{folders / 'two'}"
    config = RunConfig("builtin:small", "builtin:arithmetic", (teacher,))
    with pytest.raises(GradalignError, match=r"tokens differ, first .*--cross-tokenizer"):
        load_cast(config, Execution(device="cpu"))
    for objective in ("minillm:1", "pbsd:1"):
        summing = RunConfig(
            "builtin:small",
            "builtin:arithmetic",
            (teacher,),
            ("reverse_kl", objective),
            teacher_rollouts=2,
            cross_tokenizer=True,
        )
        with pytest.raises(GradalignError, match=f"objective {objective} sums") as caught:
            load_cast(summing, Execution(device="cpu"))
        assert "\n" not in str(caught.value)


def test_a_given_template_is_for_the_tokenizer_of_the_student(folders, tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text("{% for message in messages %}Q: {{ message['content'] }}{% endfor %}")
    name = str(folders / "two")
    teachers = (f"model:{name}", "model:builtin:medium")
    config = RunConfig("builtin:small", "builtin:arithmetic", teachers, chat_template=str(file), cross_tokenizer=True)
    cast = load_cast(config, Execution(device="cpu"))
    assert cast.others[name].model.codec.prompt("1") == load_model(name, CPU).codec.prompt("1")
    for codec in (cast.student.model.codec, cast.others["builtin:medium"].model.codec):
        assert codec.shown(codec.prompt("1")) == "Q: 1"


def test_a_permuted_teacher_scores_as_the_same_network(folders, tmp_path):
    """The very strong test: the same run, with the teacher's vocabulary permuted."""
    local = gradalign.score(teachers=["model:builtin:small+ctx:answer"], out=tmp_path / "local", **SETTINGS)
    name = f"model:{folders / 'permuted'}+ctx:answer"
    run = gradalign.score(teachers=[name], out=tmp_path / "run", cross_tokenizer=True, **SETTINGS)
    for table, columns in (
        ("scores", ["dot", "d_norm2", "advantage"]),
        ("teachers", ["reverse_kl", "forward_kl", "jsd"]),
        ("alignment", ["alignment", "alignment_full"]),
    ):
        theirs, ours = getattr(local, table), getattr(run, table)
        assert len(theirs) == len(ours) > 0
        np.testing.assert_allclose(ours[columns], theirs[columns], rtol=1e-4, atol=1e-6)
    assert run.teachers["tail"].isna().all()
    assert "approximate: " in run.description["provenance"]["notices"][0]


def test_the_command_scores_across_tokenizers(folders, tmp_path):
    arguments = [
        "score",
        "--teacher",
        f"model:{folders / 'two'}",
        "--limit",
        "2",
        "--rollouts",
        "8",
        "--budget",
        "8",
        "--no-report",
    ]
    arguments += ["--device", "cpu", "--out", str(tmp_path / "run")]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code != 0
    result = CliRunner().invoke(app, [*arguments, "--cross-tokenizer"])
    assert result.exit_code == 0, result.output
    run = gradalign.load_run(tmp_path / "run")
    assert run.teachers["tail"].dropna().between(0, 1 + 1e-6).all()
    assert (run.teachers["tail"] < 0.5).any()
    assert np.isfinite(run.scores["dot"]).all()
