"""The students' tokenizer: bytes, and one token for every word of the tasks and fixed phrase of the prompts."""

import json
import re
from pathlib import Path

from chains import CLOSING, OPENING
from tasks import LETTERS, TASKS
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gradalign.contexts.render import INSTRUCTIONS

PAD, BEGIN, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PHRASES = (
    *INSTRUCTIONS.values(),
    *("system\n", "user\n", "assistant\n", "\n", "\n\n", "Start at", " (modulo 10). What is the total?"),
    *("The light is", ". Actions:", ". Is the light on?", "The ball is under", ". Swaps:", ". Where is the ball?"),
    *("A correct solution:", "A wrong solution:", "The reference solution:", "Key steps of a correct solution:"),
    *("Now solve it yourself.", "State its key steps in brief.", "The correct answer is", ":", "."),
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A fast tokenizer that gives each known word one token and spells all other text in bytes."""
    words = _words()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = dict.fromkeys([*alphabet, *map(_byte_form, words)])
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    longest_first = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(longest_first), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in (PAD, BEGIN, END)])
    return _wrapped(tokenizer)


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of one known token."""
    return tokenizer.get_vocab()[token]


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save with a class name that transformers 4 and 5 both know."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _words() -> list[str]:
    words = [OPENING, CLOSING, *PHRASES]
    for task in TASKS:
        words += [f" {word}" for word in (*task.states, *task.operations, *task.answers)]
    words += [f"\n{letter})" for letter in LETTERS]
    return list(dict.fromkeys(words))


def _byte_form(text: str) -> str:
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return "".join(piece for piece, _ in pieces)
