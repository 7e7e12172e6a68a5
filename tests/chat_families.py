"""Small real tokenizers with the special tokens and chat templates of model families, and what the tests ask of each."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from gradalign.models import ChatCodec

HERE = Path(__file__).parent / "chat_templates"
TEXT = """Reason step by step, then end with "Answer:" and the number. A correct solution: 12 + 30 = 42. Answer: 42
A wrong solution: the total is 41. Now solve it yourself. user assistant system model The correct answer is 42."""


@dataclass(frozen=True)
class Family:
    """A chat format: its template, special tokens, what ends a turn, and how the assistant's turn opens."""

    template: str
    special: tuple[str, ...]
    end: str
    opening: str
    bos: str | None = None
    thinking: bool = False
    system: bool = True


_IM = ("<|im_start|>", "<|im_end|>")
_QWEN = (*_IM, "<think>", "</think>")
_TURN = ("<bos>", "<start_of_turn>", "<end_of_turn>")
_HEADERS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_IM_OPENS = "<|im_start|>assistant\n"
FAMILIES = {
    "qwen3": Family("qwen3", _QWEN, "<|im_end|>", _IM_OPENS + "<think>\n\n</think>\n\n"),
    "qwen3 thinking": Family("qwen3", _QWEN, "<|im_end|>", _IM_OPENS, thinking=True),
    "smollm2": Family("smollm2", _IM, "<|im_end|>", _IM_OPENS),
    "chatml": Family("chatml", _IM, "<|im_end|>", _IM_OPENS),
    "llama3": Family(
        "llama3", _HEADERS, "<|eot_id|>", "<|start_header_id|>assistant<|end_header_id|>\n\n", bos="<|begin_of_text|>"
    ),
    "gemma3": Family("gemma3", _TURN, "<end_of_turn>", "<start_of_turn>model\n", bos="<bos>"),
    "gemma2": Family("gemma2", _TURN, "<end_of_turn>", "<start_of_turn>model\n", bos="<bos>", system=False),
}


@cache
def tokenizer_of(template: str, special: tuple[str, ...], bos: str | None = None) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on a little text; like the real ones it puts BOS before any text that it is given plainly."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(
        [TEXT], trainers.BpeTrainer(vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    )
    thoughts = [AddedToken(token, special=False, normalized=False) for token in special if "think" in token]
    inner.add_tokens(thoughts)
    inner.add_special_tokens([token for token in special if "think" not in token])
    if bos is not None:
        inner.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, inner.token_to_id(bos))])
    made = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=bos, clean_up_tokenization_spaces=False)
    made.chat_template = (HERE / f"{template}.jinja").read_text(encoding="utf-8")
    return made


def codec_of(family: Family) -> ChatCodec:
    """The family's codec."""
    tokenizer = tokenizer_of(family.template, family.special, family.bos)
    stop = tokenizer.convert_tokens_to_ids(family.end)
    return ChatCodec(tokenizer, family.template, frozenset({stop}), family.thinking)


def plain(template: str, special: tuple[str, ...] = _QWEN, thinking: bool = False, bos: str | None = None) -> ChatCodec:
    """A codec with one of the other templates."""
    return ChatCodec(tokenizer_of(template, special, bos), template, frozenset(), thinking)
