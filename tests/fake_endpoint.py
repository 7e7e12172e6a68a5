"""An OpenAI-compatible endpoint in a thread, over a model in this process, that can be made unfit in every way that tests need."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch

from gradalign.engines import HFEngine
from gradalign.models import CausalLanguageModel, LoadedModel
from gradalign.types import CompletionRequest


@dataclass
class Fake:
    """How the endpoint behaves, and what it was asked."""

    model: LoadedModel
    key: str | None = None
    names: tuple[str, ...] = ("tiny",)
    window: int | None = 512
    lacks: frozenset[str] = (
        frozenset()
    )  # of: tokenize, token_ids, as_ids, logprobs, ids, prompt_ids, usage, stops, told, own, chat
    faults: list[int] = field(default_factory=list)  # statuses of the next completions
    delays: list[float] = field(default_factory=list)  # seconds that the next completions take
    shift: float = 0.0  # nats on every log-probability of a sampled token
    raw: bool = False  # log-probabilities at temperature 1 whatever the temperature
    moved: int = 0  # added to every id that a text is made of
    most_told: int = 1000
    says: str = "no"
    pause: float = 0.0
    stray: int | None = None  # an id to end every completion with
    asked: list[dict[str, Any]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    compute: threading.Lock = field(default_factory=threading.Lock)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def name(self) -> str:
        """As a user names it."""
        return f"server:{self.url}#{self.names[0]}"

    def models(self) -> dict[str, Any]:
        return {"data": [{"id": name, "root": f"/models/{name}", "max_model_len": self.window} for name in self.names]}

    def tokenize(self, body: dict[str, Any]) -> tuple[int, Any]:
        if "tokenize" in self.lacks:
            return 404, {"detail": "Not Found"}
        chat = body.get("messages")
        ids = self._chat(body) if chat else self._ids(body["prompt"])
        return 200, {"count": len(ids), "tokens": ids, "max_model_len": self.window}

    def complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        with self.lock:
            self.asked.append(body)
            fault = self.faults.pop(0) if self.faults else None
            delay = self.delays.pop(0) if self.delays else self.pause
        time.sleep(delay)
        if fault is not None:
            return fault, {"error": {"message": self.says}}
        if "ids" in self.lacks and not isinstance(body["prompt"], str):
            return 400, {"error": {"message": "prompt must be a string"}}
        if body.get("prompt_logprobs", 0) > self.most_told:
            return 400, {"error": {"message": f"Requested prompt logprobs of more than max allowed: {self.most_told}"}}
        ids = self._ids(body["prompt"]) if isinstance(body["prompt"], str) else body["prompt"]
        with self.compute:
            choice = self._choice(ids, body)
        return 200, {"choices": [choice]} | ({} if "usage" in self.lacks else {"usage": {"prompt_tokens": len(ids)}})

    def _chat(self, body: dict[str, Any]) -> tuple[int, ...]:
        said = {message["role"]: message["content"] for message in body["messages"]}
        own = self.model.codec
        codec = type(own)(own.tokenizer, own.name, own.stop_ids, body["chat_template_kwargs"]["enable_thinking"])
        ids, opening = (ask(said["user"], said.get("system")) for ask in (codec.prompt, codec.boundary))
        return ids if body["add_generation_prompt"] else ids[: len(ids) - len(opening)]

    def _ids(self, text: str) -> list[int]:
        tokenizer = self.model.codec.tokenizer
        return [token + self.moved for token in tokenizer(text, add_special_tokens=False)["input_ids"]]

    def _choice(self, ids: list[int], body: dict[str, Any]) -> dict[str, Any]:
        inner = self.model.language_model
        sampler = CausalLanguageModel(inner.model, "fake", inner.vocabulary_size, body["temperature"] or 1.0)
        stops = frozenset(body.get("stop_token_ids", ()))
        request = CompletionRequest(tuple(ids), (body.get("seed", 0),), body["max_tokens"])
        completion = next(HFEngine(sampler, stops or frozenset({-1})).complete([request]))
        tokens, logprobs = completion.tokens, completion.logprobs + self.shift
        if self.raw:
            states = inner.hidden_states(ids, [tokens])[0]
            logprobs = inner.logprobs(states).gather(1, torch.from_numpy(tokens)[:, None])[:, 0].numpy()
        if self.stray is not None:
            tokens = np.append(tokens[:-1], self.stray)
        if "stops" in self.lacks:
            tokens, logprobs = tokens[:1], logprobs[:1]
        choice: dict[str, Any] = {"index": 0, "text": "…"}
        texts = [f"token_id:{token}" if "as_ids" not in self.lacks else "?" for token in tokens]
        if "logprobs" not in self.lacks:
            choice["logprobs"] = {"tokens": texts, "token_logprobs": logprobs.tolist()}
        if "token_ids" not in self.lacks:
            choice["token_ids"] = tokens.tolist()
        if "prompt_ids" not in self.lacks:
            choice["prompt_token_ids"] = ids
        if body.get("prompt_logprobs") and "told" not in self.lacks:
            choice["prompt_logprobs"] = self._told(ids, body["prompt_logprobs"])
        return choice

    def _told(self, ids: list[int], count: int) -> list[Any]:
        inner = self.model.language_model
        logprobs = inner.logprobs(inner.hidden_states(ids[:1], [np.array(ids[1:])])[0])
        told: list[Any] = [None]
        for own, row in zip(ids[1:], logprobs, strict=True):
            best = row.topk(count).indices.tolist()
            tokens = best if "own" in self.lacks else {own, *best}
            told.append({str(token): {"logprob": float(row[token])} for token in tokens})
        return told


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: Fake

    def do_GET(self) -> None:
        self._answer(*(self._refused() or ((200, self.fake.models()) if self.path == "/v1/models" else (404, {}))))

    def do_POST(self) -> None:
        fake = self.fake
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with fake.lock:
            fake.at_once += 1
            fake.most_at_once = max(fake.most_at_once, fake.at_once)
        try:
            works = {"/v1/completions": fake.complete, "/tokenize": fake.tokenize}
            work = works.get(self.path)
            found = self._refused() or (work(body) if work else (404, {}))
        finally:
            with fake.lock:
                fake.at_once -= 1
        self._answer(*found)

    def _refused(self) -> tuple[int, Any] | None:
        given = self.headers.get("Authorization", "")
        if self.fake.key is None or given == f"Bearer {self.fake.key}":
            return None
        return 401, {"error": {"message": f"wrong key: {given.removeprefix('Bearer ')}"}}

    def _answer(self, status: int, body: Any) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except OSError:
            self.close_connection = True  # the client did not wait

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def served(model: LoadedModel, **behaviour: Any) -> Iterator[Fake]:
    """A fake endpoint over the model, on a free port, until the block ends."""
    fake = Fake(model, **behaviour)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": fake}))
    server.daemon_threads = True
    fake.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
