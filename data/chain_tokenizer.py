"""The embedded model's tokenizer: byte-level BPE whose merges are learnt from the `chain` task's own texts.

Bytes are the alphabet, so any text can be encoded and comes back exactly. A run of words is one piece, so
that a phrase of the published teacher templates ends up as one token; a digit or an operator is always a
piece of its own. The spaces go with the operators, so a digit is the same token wherever it stands.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from chain import MODULUS, OPERATORS
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mopd.contexts import ContextSettings
from mopd.rewards.chain import WANTED_FORM

START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
MAX_LENGTH = 16384
"""Tokens; the model's number of positions."""

PIECES = r"\p{N}| ?\p{L}+(?: \p{L}+)*| ?[^\s\p{L}\p{N}]+(?:\n+| )?|\n+|\s+(?! )|\s+"
"""A digit; a run of words; other signs, with the space or line breaks after them; line breaks; white space."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

Word = tuple[str, ...]


def corpus() -> list[str]:
    """The texts whose phrases become tokens: expressions, chains, roles and the published templates."""
    settings = ContextSettings()
    signs = [f"{digit} {sign} " for sign in (*OPERATORS, "=", ";") for digit in range(MODULUS)]
    templates = [
        settings.reprompt_template,
        settings.solution_template,
        settings.another_solution_template,
        settings.failure_solution_template,
        settings.feedback_template,
    ]
    shown = [template.format_map(_Blank()) for template in templates]
    return ["calc 7", "system\n", "user\n", "assistant\n", WANTED_FORM, *signs, *shown]


class _Blank(dict[str, str]):
    """Fills every field of a template with nothing."""

    def __missing__(self, key: str) -> str:
        return ""


def learn_merges(words: Counter[Word]) -> list[tuple[str, str]]:
    """Byte-pair merges until every word is one token: the most frequent pair first, ties by alphabet."""
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        joined: Counter[Word] = Counter()
        for word, count in words.items():
            joined[join(word, best)] += count
        words = joined


def join(word: Word, pair: tuple[str, str]) -> Word:
    """`word` with every occurrence of `pair` joined, from left to right."""
    out: list[str] = []
    for piece in word:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return tuple(out)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, always the same, with a chat template that ignores arguments it does not know."""
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    words = Counter(tuple(piece) for text in corpus() for piece, _ in split.pre_tokenize_str(text))
    merges = learn_merges(words)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys([*alphabet, *map("".join, merges)]))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = split
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (PAD, START, END)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_LENGTH,
    )
