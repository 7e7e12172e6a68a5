"""Sampling with vLLM, in this process. Knows token ids and seeds; nothing of text, questions or trees."""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import count
from typing import Any, ClassVar

import numpy as np
import torch

from gradalign.engines.vllm_setup import start_engine
from gradalign.models.causal import CausalLanguageModel
from gradalign.types import Completion, CompletionRequest, GradalignError

_SEED_BITS = (1 << 63) - 1  # vLLM keeps seeds as signed integers of 64 bits
_TEMPERATURES = (0.01, 2.0)


class VLLMEngine:
    """The Engine over vLLM, which loads the model's files once more; completions come as they finish.

    Each completion is a request of its own with its own seed. All are handed over at once and vLLM schedules them; prefixes are
    cached. vLLM keeps state in the process, so the last engine made is the only one that runs; another starts anew when it is asked.
    """

    kind = "vllm"
    _last: ClassVar["weakref.ref[VLLMEngine] | None"] = None

    def __init__(self, model: CausalLanguageModel, stop_ids: frozenset[int], tensor_parallel: int = 1):
        least, most = _TEMPERATURES
        if not least <= model.temperature <= most:
            raise GradalignError(
                f"vLLM samples at temperatures from {least} to {most}, not {model.temperature}; change --temperature or use --engine hf"
            )
        self.model = model
        self.stop_ids = stop_ids
        self.tensor_parallel = tensor_parallel
        self._numbers = count()
        self._engine: Any = None
        self._asleep = False
        self._start()

    def complete(self, requests: Sequence[CompletionRequest]) -> Iterator[Completion]:
        """Sample every request's completions; what is in flight is aborted if the caller stops early."""
        self._wake()
        self._require_fit(requests)
        under_way: dict[str, tuple[int, int]] = {}
        try:
            for index, request in enumerate(requests):
                for replicate, seed in enumerate(request.seeds):
                    name = str(next(self._numbers))
                    self._add(name, request, seed)
                    under_way[name] = (index, replicate)
            while under_way:
                for output in self._step():
                    if output.finished and output.request_id in under_way:
                        yield self._completion(*under_way.pop(output.request_id), output.outputs[0])
        finally:
            if under_way and self._engine is not None:
                self._engine.abort_request(list(under_way))

    def rest(self) -> None:
        """On GPUs, move vLLM's weights to main memory and drop its cache until the next `complete`; on the CPU vLLM keeps both."""
        if self._engine is not None and self._on_gpu and not self._asleep:
            self._engine.reset_prefix_cache()
            self._engine.sleep(level=1)
            self._asleep = True

    def close(self) -> None:
        """Shut vLLM down and give back what it holds."""
        if self._engine is not None:
            self._engine = None
            self._shut_down()

    def _start(self) -> None:
        other = VLLMEngine._last() if VLLMEngine._last is not None else None
        if other is not None:
            other.close()
        self._engine = start_engine(self.model, self.tensor_parallel)
        self._shut_down = weakref.finalize(self, self._engine.engine_core.shutdown)
        self._shut_down.atexit = False
        self._on_gpu = self._engine.vllm_config.model_config.enable_sleep_mode  # asked for on GPUs alone
        self._asleep = False
        VLLMEngine._last = weakref.ref(self)

    def _wake(self) -> None:
        if self._engine is None:
            self._start()
        elif self._asleep:
            torch.cuda.empty_cache()  # what forward passes left in torch's cache is not free for vLLM
            self._engine.wake_up()
            self._asleep = False

    def _require_fit(self, requests: Sequence[CompletionRequest]) -> None:
        window = self._engine.vllm_config.model_config.max_model_len
        longest = max((len(request.prefix) + request.max_tokens for request in requests), default=0)
        if longest > window:
            raise GradalignError(
                f"prompt and rollout may take {longest:,} tokens, but vLLM has room for {window:,}; lower --max-tokens or use --engine hf"
            )

    def _add(self, name: str, request: CompletionRequest, seed: int) -> None:
        from vllm import SamplingParams  # pyright: ignore
        from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

        parameters = SamplingParams(
            seed=seed & _SEED_BITS,
            temperature=self.model.temperature,
            max_tokens=request.max_tokens,
            stop_token_ids=sorted(self.stop_ids),
            ignore_eos=True,  # what ends a rollout is in stop_token_ids
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._engine.add_request(name, {"type": "token", "prompt_token_ids": list(request.prefix)}, parameters)

    def _step(self) -> list[Any]:
        stance = nullcontext() if self._on_gpu else torch.compiler.set_stance("force_eager")
        try:
            with stance:  # on the CPU a compiler would be wanted for one small function of the sampler
                return self._engine.step()
        except BaseException as error:
            self.close()  # a step broken off leaves vLLM in an unknown state; the next call starts it anew
            if isinstance(error, torch.OutOfMemoryError):
                raise GradalignError(
                    f"vLLM ran out of memory while sampling from {self.model.name!r}; use --dtype bfloat16 or --engine hf"
                ) from error
            raise

    def _completion(self, request: int, replicate: int, output: Any) -> Completion:
        tokens = np.array(output.token_ids, dtype=np.int64)
        logprobs = np.array([step[token].logprob for token, step in zip(output.token_ids, output.logprobs, strict=True)])
        if output.finish_reason not in ("stop", "length") or not np.isfinite(logprobs).all():
            raise GradalignError(
                f"vLLM broke off a completion of {self.model.name!r} ({output.finish_reason}), or its logits are not numbers; "
                "try --dtype float32 or --engine hf"
            )
        return Completion(request, replicate, tokens, logprobs, "stop" if int(tokens[-1]) in self.stop_ids else "length")
