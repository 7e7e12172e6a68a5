"""Addresses of served models, and one endpoint asked over HTTP: what is refused and in which words, retries, many at once, the key."""

import importlib
import sys
import threading
import time

import pytest
from fake_endpoint import served

from gradalign.endpoint import Address, parse_address
from gradalign.endpoint.client import Endpoint, EndpointError, _keys
from gradalign.models.served import connect
from gradalign.types import GradalignError

SETTINGS = {"max_tokens": 1, "temperature": 1.0}


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    for name in ("GRADALIGN_API_KEY", "OPENAI_API_KEY", "GRADALIGN_API_HOSTS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("server:http://127.0.0.1:8000", Address("http://127.0.0.1:8000/v1")),
        ("server:http://host/v1/#org/model-1", Address("http://host/v1", "org/model-1")),
        ("server:https://host:443/team/v2#m", Address("https://host:443/team/v2", "m")),
    ],
)
def test_addresses(text, address):
    assert parse_address(text) == address
    assert parse_address("server:http://host/team").root == "http://host/team"


@pytest.mark.parametrize(
    "text", ["server:", "server:host:8000", "server:ftp://host", "server:http://", "server:http://h:x", "http://h"]
)
def test_what_is_no_address_is_refused_with_an_example(text):
    with pytest.raises(GradalignError, match="as server:http"):
        parse_address(text)


@pytest.mark.parametrize(
    "text", ["server:http://me:hunter2@host#m", "server:http://hunter2@host", "server:http://host?api_key=hunter2"]
)
def test_addresses_with_secrets_are_refused_and_not_shown(text):
    with pytest.raises(GradalignError, match="GRADALIGN_API_KEY") as caught:
        parse_address(text)
    assert "hunter2" not in str(caught.value)


def unfit(small, says: str, **behaviour) -> str:
    with served(small, **behaviour) as fake, pytest.raises(GradalignError, match=says) as caught:
        connect(fake.name, small, 2)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_fit_endpoint_is_taken(small):
    for lacks in ((), ("tokenize",), ("tokenize", "prompt_ids"), ("token_ids",), ("as_ids",)):
        with served(small, lacks=frozenset(lacks)) as fake:
            endpoint = connect(fake.name, small, 2)
            assert (endpoint.model, endpoint.root, endpoint.window) == ("tiny", "/models/tiny", 512)


@pytest.mark.parametrize(
    ("lacks", "says"),
    [
        ({"ids", "tokenize"}, "does not complete token ids.*must be a string"),
        ({"token_ids", "as_ids"}, "returns no token ids"),
        ({"logprobs"}, "returns no log-probabilities"),
    ],
)
def test_what_an_endpoint_lacks_is_named(small, lacks, says):
    unfit(small, says, lacks=frozenset(lacks))


@pytest.mark.parametrize("lacks", [(), ("tokenize",)])
def test_another_tokenizer_is_refused(small, lacks):
    assert "token 0 is id" in unfit(small, "another tokenizer than student 'builtin:small'", lacks=frozenset(lacks), moved=1)


def test_another_tokenizer_is_told_by_counts_alone(small):
    unfit(small, "an unknown number of tokens there", lacks=frozenset({"tokenize", "prompt_ids", "usage"}))


def test_no_server_no_api_and_no_such_model(small):
    with served(small) as fake:
        url = fake.url
        with pytest.raises(GradalignError, match="'other' but tiny"):
            Endpoint(f"server:{url}#other")
        with pytest.raises(GradalignError, match="no OpenAI-compatible API at"):
            Endpoint(f"server:{url}/elsewhere")
    with pytest.raises(GradalignError, match=r"cannot be reached \(.*\); start the server"):
        Endpoint(f"server:{url}#tiny")


def test_a_model_is_named_where_there_are_several(small):
    with served(small) as fake:
        assert Endpoint(f"server:{fake.url}").model == "tiny"
    with served(small, names=("a", "b")) as fake:
        assert Endpoint(f"server:{fake.url}#b").model == "b"
        with pytest.raises(GradalignError, match="serves a, b; name one"):
            Endpoint(f"server:{fake.url}")


def test_the_key_is_sent_and_stands_in_no_message(small, monkeypatch, caplog):
    with served(small, key="right-key") as fake:
        with pytest.raises(GradalignError, match="asks for a key; set GRADALIGN_API_KEY"):
            Endpoint(fake.name)
        monkeypatch.setenv("GRADALIGN_API_KEY", "right-key")
        endpoint = Endpoint(fake.name, retries=0)
        monkeypatch.setenv("GRADALIGN_API_KEY", "wrong-key")
        with caplog.at_level("DEBUG"), pytest.raises(EndpointError, match="refuses the key") as caught:
            Endpoint(fake.name)
        error = caught.value
        assert "wrong-key" not in f"{error} {error.words} {error.__cause__} {error.__context__} {caplog.text}"
        fake.faults, fake.says = [400], "bad right-key,\n\tsaid twice: right-key"
        with pytest.raises(EndpointError, match=r"answered 400: bad \[key\], said twice: \[key\]"):
            endpoint.complete([1, 2], SETTINGS)
        fake.faults, fake.says = [400], "x" * 295 + "right-key"
        with pytest.raises(EndpointError) as caught:
            endpoint.complete([1, 2], SETTINGS)
        assert "right" not in str(caught.value)
        assert "right-key" not in repr(endpoint)


@pytest.mark.parametrize(
    ("url", "named", "hosts", "sent"),
    [
        ("https://api.openai.com", True, "", ("GRADALIGN_API_KEY", "OPENAI_API_KEY")),
        ("http://api.openai.com", True, "", ("GRADALIGN_API_KEY",)),
        ("https://api.openai.com.evil.example", True, "", ("GRADALIGN_API_KEY",)),
        ("https://evil.example", True, "", ("GRADALIGN_API_KEY",)),
        ("https://evil.example", False, "", ()),
        ("https://evil.example", False, "good.example, evil.example.org", ()),
        ("https://good.example:8000", False, "other, Good.example", ("GRADALIGN_API_KEY",)),
        ("https://api.openai.com", False, "", ()),
    ],
)
def test_keys_go_where_the_user_says(url, named, hosts, sent, monkeypatch):
    monkeypatch.setenv("GRADALIGN_API_HOSTS", hosts)
    assert _keys(parse_address(f"server:{url}"), named) == sent


def test_a_server_that_only_a_file_names_gets_no_key(small, monkeypatch):
    monkeypatch.setenv("GRADALIGN_API_KEY", "right-key")
    with served(small, key="right-key") as fake:
        with pytest.raises(EndpointError, match=r"only a file names it; give it as --teacher too.*GRADALIGN_API_HOSTS \(401\)"):
            Endpoint(fake.name, named=False)
        monkeypatch.setenv("GRADALIGN_API_HOSTS", "127.0.0.1")
        assert Endpoint(fake.name, named=False).model == "tiny"


def test_faults_that_pass_are_sent_again(small):
    with served(small) as fake:
        endpoint = Endpoint(fake.name)
        fake.faults = [503, 503]
        assert endpoint.complete([1, 2], SETTINGS).tokens is not None
        assert len(fake.asked) == 3
        fake.faults = [400]
        with pytest.raises(EndpointError):
            endpoint.complete([1, 2], SETTINGS)
        assert len(fake.asked) == 4
        fake.faults = [500]
        with pytest.raises(EndpointError, match="answered 500: no; look at its log, and run the same command again"):
            Endpoint(fake.name, retries=0).complete([1, 2], SETTINGS)


def test_what_does_not_answer_in_time_is_asked_again(small):
    with served(small) as fake:
        fake.delays = [1.5]
        assert Endpoint(fake.name, timeout=0.5, retries=1).complete([1, 2], SETTINGS).tokens is not None
        fake.delays = [1.5]
        with pytest.raises(EndpointError, match=r"did not answer within 0\.5 s"):
            Endpoint(fake.name, timeout=0.5, retries=0).complete([1, 2], SETTINGS)


def test_answers_that_are_no_completions_are_refused(small, monkeypatch):
    with served(small) as fake:
        endpoint = Endpoint(fake.name)
        monkeypatch.setattr(fake, "complete", lambda body: (200, {"choices": []}))
        with pytest.raises(EndpointError, match="no completion"):
            endpoint.complete([1, 2], SETTINGS)
        monkeypatch.setattr(fake, "complete", lambda body: (200, b"[" * 100_000))
        with pytest.raises(EndpointError, match="gives answers that cannot be read"):
            endpoint.complete([1, 2], SETTINGS)


@pytest.mark.parametrize("tokens", [[-1, 5], [1 << 40], [True], ["5"], "5", None, [1.0]])
def test_ids_that_no_vocabulary_has_are_none(small, monkeypatch, tokens):
    with served(small) as fake:
        endpoint = Endpoint(fake.name)
        monkeypatch.setattr(fake, "tokenize", lambda body: (200, {"tokens": tokens}))
        assert endpoint.tokenize({"prompt": "x"}) is None


def test_many_at_once_but_no_more_than_allowed(small):
    with served(small, pause=0.3) as fake:
        endpoint = Endpoint(fake.name, concurrency=4)
        found = list(endpoint.over(range(8), lambda i: (i, endpoint.complete([1, i], SETTINGS).tokens)))
    assert sorted(i for i, _ in found) == list(range(8))
    assert fake.most_at_once == 4


def test_what_ends_first_comes_first(small):
    with served(small) as fake:
        gate = threading.Event()
        slow = Endpoint(fake.name, concurrency=2).over([True, False], lambda first: gate.wait(10) if first else "fast")
        assert next(slow) == "fast"
        gate.set()
        assert next(slow) is True


def test_a_closed_iterator_drops_what_has_not_begun(small):
    begun = []

    def work(i: int) -> int:
        begun.append(i)
        time.sleep(0.02)
        return i

    with served(small) as fake:
        running = Endpoint(fake.name, concurrency=2).over(range(100), work)
        next(running)
        running.close()
        count = len(begun)
        time.sleep(0.1)
    assert count == len(begun) <= 6


def test_without_the_client_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    monkeypatch.delitem(sys.modules, "gradalign.endpoint.client")
    with pytest.raises(GradalignError, match=r"pip install 'gradalign\[server\]'"):
        importlib.import_module("gradalign.endpoint.client")
