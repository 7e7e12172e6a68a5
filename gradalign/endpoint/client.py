"""Requests to one OpenAI-compatible endpoint: its key, retries, many at once, and its faults in a user's words."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, TypeVar
from urllib.parse import urlsplit

from gradalign.endpoint.address import Address, parse_address
from gradalign.endpoint.answer import Answer, read_answer, read_tokens
from gradalign.types import GradalignError

try:
    import openai
except ImportError as error:
    raise GradalignError("a served model is asked through the openai package; pip install 'gradalign[server]'") from error

OWN_KEY, OPENAI_KEY, HOSTS = "GRADALIGN_API_KEY", "OPENAI_API_KEY", "GRADALIGN_API_HOSTS"
_OPENAI = "https://api.openai.com"
_RETRIES, _FIRST_RETRIES = 6, 2
_TIMEOUT = 900.0
_CONNECT = 10.0
_LONGEST_WORDS = 300
Item = TypeVar("Item")
Result = TypeVar("Result")


class EndpointError(GradalignError):
    """What went wrong at an endpoint; `status` is that of its answer, None if there was none, and `words` what it said itself."""

    def __init__(self, message: str, status: int | None = None, words: str = ""):
        super().__init__(message)
        self.status = status
        self.words = words


class Endpoint:
    """One endpoint and the model that it is asked for.

    Requests that met a broken connection, no answer in time, 408, 409, 429 or 5xx are sent again by the `openai` client: after 0.5, 1, 2, 4
    and then every 8 seconds, each less up to a quarter at random, or after what the server asks for. `concurrency` requests at most are
    under way at once. The key is that of the environment (`_keys`); it goes to the server and into no message. `named` says whether the
    user named the server, or only a file does: the latter gets no key unless its host stands in `HOSTS`.

    `model` is the name it is asked for by, `root` what the server says it was loaded from, `window` the most tokens of a prompt with its
    completion.
    """

    def __init__(self, name: str, concurrency: int = 1, timeout: float = _TIMEOUT, retries: int = _RETRIES, named: bool = True):
        self.name = name
        self.address = parse_address(name)
        self.concurrency = concurrency
        self.timeout = timeout
        self._keys = _keys(self.address, named)
        self._key = next((key for name in self._keys if (key := os.environ.get(name, "").strip())), None)
        self._client = openai.OpenAI(
            api_key=self._key or "none",
            base_url=self.address.url,
            timeout=openai.Timeout(timeout, connect=min(timeout, _CONNECT)),
            max_retries=retries,
        )
        card = self._card()
        self.model = str(card["id"])
        self.root = None if card.get("root") is None else str(card["root"])
        window = card.get("max_model_len")
        self.window = window if isinstance(window, int) and window > 0 else None

    def complete(self, prompt: Sequence[int] | str, settings: Mapping[str, Any]) -> Answer:
        """One completion of a prompt, with the request's other fields as given."""
        body = self._send("/completions", {"model": self.model, "prompt": prompt, **settings})
        try:
            return read_answer(body)
        except ValueError:
            raise EndpointError(
                f"{self.name} answers with something that is no completion; give an OpenAI-compatible server"
            ) from None

    def tokenize(self, question: Mapping[str, Any]) -> tuple[int, ...] | None:
        """Token ids of `prompt` or of `messages`, where the server has vLLM's /tokenize; None where it has not."""
        try:
            body = self._send(f"{self.address.root}/tokenize", {"model": self.model, **question})
            return read_tokens(body)
        except EndpointError as error:
            if error.status in (404, 405, 501):
                return None
            raise
        except ValueError:
            return None

    def over(self, items: Iterable[Item], work: Callable[[Item], Result]) -> Iterator[Result]:
        """`work(item)` for every item, each in a thread, as they come. When the iterator is closed, what has not begun is dropped."""
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="gradalign-request")
        try:
            for future in as_completed([pool.submit(work, item) for item in items]):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _card(self) -> dict[str, Any]:
        """What the server says of the model that the address names, or of its only one."""
        try:
            body = self._send("/models", None)
        except EndpointError as error:
            if error.status == 404:
                raise EndpointError(
                    f"{self.name}: no OpenAI-compatible API at {self.address.url}; check the URL", 404
                ) from None
            raise
        try:
            cards = {str(card["id"]): dict(card) for card in body["data"]}
        except (LookupError, TypeError, ValueError):
            raise EndpointError(f"{self.name}: what answers at {self.address.url} lists no models; check the URL") from None
        wanted = self.address.model or (next(iter(cards)) if len(cards) == 1 else None)
        if wanted is None:
            raise EndpointError(
                f"{self.name} serves {', '.join(cards) or 'no model'}; name one after the URL, as {self.name}#MODEL"
            )
        if wanted not in cards:
            raise EndpointError(
                f"{self.name} does not serve {wanted!r} but {', '.join(cards) or 'nothing'}; name one of these after the #"
            )
        return cards[wanted]

    def _send(self, path: str, body: Mapping[str, Any] | None) -> Any:
        """The JSON that the server answers with; None as body asks without one, with fewer retries, since nothing hangs on it yet."""
        try:
            if body is None:
                return self._client.get(path, cast_to=object, options={"max_retries": _FIRST_RETRIES})
            return self._client.post(path, cast_to=object, body=dict(body))
        except (openai.OpenAIError, ValueError, RecursionError) as error:
            fault = self._fault(error)
        raise fault  # without what the client raised: that may hold the key

    def _fault(self, error: Exception) -> EndpointError:
        words = self._without_key(_words(error))[:_LONGEST_WORDS]
        if isinstance(error, openai.APITimeoutError):
            return EndpointError(
                f"{self.name} did not answer within {self.timeout:g} s; look at its log, lower --batch-size, and run the same command again"
            )
        if isinstance(error, openai.APIConnectionError):
            return EndpointError(f"{self.name} cannot be reached ({words}); start the server, or check the address")
        if not isinstance(error, openai.APIStatusError):
            return EndpointError(f"{self.name} gives answers that cannot be read ({words}); check the URL")
        status = error.status_code
        if status in (401, 403):
            return EndpointError(f"{self.name} {self._about_the_key()} ({status})", status, words)
        end = "; look at its log, and run the same command again to go on" if status >= 500 else ""
        return EndpointError(f"{self.name} answered {status}: {words}{end}", status, words)

    def _about_the_key(self) -> str:
        if not self._keys:
            return f"asks for a key, and gets none since only a file names it; give it as --teacher too, or its host in {HOSTS}"
        return f"{'refuses the key in' if self._key else 'asks for a key; set'} {' or '.join(self._keys)}"

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text


def _keys(address: Address, named: bool) -> tuple[str, ...]:
    """Variables of the environment whose key may go to the server: OpenAI's goes to OpenAI alone, none to one that only a file names."""
    trusted = {host.strip().lower() for host in os.environ.get(HOSTS, "").split(",")}
    if not named and urlsplit(address.url).hostname not in trusted:
        return ()
    return (OWN_KEY, OPENAI_KEY) if address.origin == _OPENAI else (OWN_KEY,)


def _words(error: Exception) -> str:
    """What the server or the network said, in one line."""
    body = getattr(error, "body", None)
    said = (body.get("message") or body.get("detail")) if isinstance(body, dict) else None
    cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else None
    text = str(said or cause or getattr(error, "message", None) or error).strip() or type(error).__name__
    return " ".join(text.split())
