"""Targets over the files of a model: its configuration, weights, tokenizer, generation settings and chat template, and GGUF files."""

import io
import json
import struct
import tempfile
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fuzz.making import changed, deep, mutated, written
from fuzz.target import Target
from gradalign.builtin import builtin_path
from gradalign.models import LoadOptions, load_model
from gradalign.models.spelling import spelling_of

_SMALL = builtin_path("students") / "small"


def _instead(name: str) -> Callable[[bytes, Path], None]:
    """Load the small student with the case in the place of one of its files."""

    def read(case: bytes, folder: Path) -> None:
        model = folder / "model"
        model.mkdir()
        for file in _SMALL.iterdir():
            if file.name != name:
                (model / file.name).symlink_to(file)
        (model / name).write_bytes(case)
        _loaded(str(model))

    return read


def _loaded(name: str) -> None:
    """Loaded and asked for a prompt and one forward pass; what transformers prints and warns of is not looked at."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        found = load_model(name, LoadOptions(device="cpu"))
        prompt = found.codec.prompt("What is 2+2?")
        found.codec.text(prompt)


def _gguf(case: bytes, folder: Path) -> None:
    path = folder / "model.gguf"
    path.write_bytes(case)
    _loaded(str(path))


@cache
def tiny_gguf() -> bytes:
    """A whole GGUF file of a llama of one layer with a byte-level tokenizer of a few tokens."""
    import gguf
    import numpy as np

    tokens = ["<unk>", "<s>", "</s>", *(chr(97 + i) for i in range(26)), "Ġ"]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "tiny.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_context_length(64)
        writer.add_embedding_length(8)
        writer.add_block_count(1)
        writer.add_feed_forward_length(8)
        writer.add_head_count(2)
        writer.add_head_count_kv(2)
        writer.add_rope_dimension_count(4)
        writer.add_rope_freq_base(10000.0)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_vocab_size(len(tokens))
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(tokens)
        writer.add_token_merges(["a b"])
        writer.add_token_types([3, 3, 3, *[1] * (len(tokens) - 3)])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
        writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
        random = np.random.default_rng(0)
        shapes = {"token_embd": (len(tokens), 8), "output_norm": (8,), "output": (len(tokens), 8)}
        shapes |= {
            f"blk.0.{name}": (8, 8) for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
        }
        shapes |= {f"blk.0.{name}": (8,) for name in ("attn_norm", "ffn_norm")}
        for name, shape in shapes.items():
            writer.add_tensor(f"{name}.weight", random.normal(size=shape).astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def _gguf_head(content: bytes) -> int:
    """Where the tensors' data begins, roughly: all before it is header and metadata."""
    return content.find(b"blk.0.ffn_norm.weight") + 64


@cache
def _safetensors() -> tuple[dict[str, Any], bytes]:
    content = (_SMALL / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _with_length(header: Any) -> bytes:
    text = written(header)
    return struct.pack("<Q", len(text)) + text


def _weights(case: bytes, folder: Path) -> None:
    """The case is all before the tensors' data."""
    _instead("model.safetensors")(case + _safetensors()[1], folder)


def _small_file(name: str) -> bytes:
    return (_SMALL / name).read_bytes()


def _json_target(name: str, share: float) -> Target:
    return Target(name, _whole_cases(name), _instead(name), share, [_small_file(name)], guided=False)


def _whole_cases(name: str) -> st.SearchStrategy[bytes]:
    whole = _small_file(name)
    return st.one_of(changed([json.loads(whole)]), changed([json.loads(whole)]), mutated([whole]), deep())


def _spelled(case: bytes, folder: Path) -> None:
    """The case is a tokenizer.json whose tokens are spelled, as they are when two tokenizers are aligned."""
    _instead("tokenizer.json")(case, folder)
    spelling = spelling_of(load_model(str(folder / "model"), LoadOptions(device="cpu")).codec)
    spelling.write([b"12 + 3", b"\xff", b""])


@cache
def _adapter() -> Path:
    """A whole adapter over the small student, as peft saves it."""
    import peft
    from transformers import AutoModelForCausalLM

    place = Path(tempfile.mkdtemp(prefix="gradalign-fuzz-adapter-"))
    chosen = peft.LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"])
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(_SMALL), chosen).save_pretrained(place)
    return place


def _adapted(name: str) -> Callable[[bytes, Path], None]:
    """Load the small student under an adapter with the case in the place of one of its files."""

    def read(case: bytes, folder: Path) -> None:
        place = folder / "adapter"
        place.mkdir()
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (place / file).write_bytes(case if file == name else (_adapter() / file).read_bytes())
        _loaded(str(place))

    return read


def _adapter_cases(name: str) -> st.SearchStrategy[bytes]:
    whole = (_adapter() / name).read_bytes()
    documents = changed([json.loads(whole)]) if name.endswith(".json") else mutated([whole], 2)
    return st.one_of(documents, mutated([whole]), deep())


def _head() -> bytes:
    content = (_SMALL / "model.safetensors").read_bytes()
    return content[: 8 + struct.unpack("<Q", content[:8])[0]]


def _gguf_cases() -> st.SearchStrategy[bytes]:
    content = tiny_gguf()
    at = _gguf_head(content)
    return st.one_of(mutated([content[:at]], 3).map(lambda head: head + content[at:]), mutated([content], 3))


TARGETS = [
    _json_target("config.json", 1.2),
    _json_target("generation_config.json", 0.8),
    _json_target("tokenizer_config.json", 0.8),
    _json_target("tokenizer.json", 0.8),
    Target("spelling", _whole_cases("tokenizer.json"), _spelled, 0.8, [_small_file("tokenizer.json")], guided=False),
    *(
        Target(name, st.deferred(lambda name=name: _adapter_cases(name)), _adapted(name), 0.8, guided=False)
        for name in ("adapter_config.json", "adapter_model.safetensors")
    ),
    Target(
        "safetensors", st.one_of(changed([_safetensors()[0]], _with_length), mutated([_head()], 3)), _weights, 1.2, guided=False
    ),
    Target("gguf", st.deferred(_gguf_cases), _gguf, 1.0, guided=False),
]
