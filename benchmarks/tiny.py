"""What the benchmarks of a step and of rollouts run on: a small model of random weights, sums to work out, a reward."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

SPECIAL = ("<pad>", "<|im_start|>", "<|im_end|>")
CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] + '\\n' + message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHAPE: dict[str, Any] = {
    "vocab_size": 104,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
"""A Qwen3 of 3.2 million parameters."""
QUESTIONS = 512
"""Prompts of the data set; a step takes the next eight."""


def questions() -> list[str]:
    """Sums of two numbers under 100, always the same ones; about 70 tokens each with the chat template."""
    drawn = random.Random(0)
    return [
        f"What is {drawn.randint(0, 99)} + {drawn.randint(0, 99)}? Answer with a number and explain."
        for _ in range(QUESTIONS)
    ]


def parity(data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any]) -> float:
    """1 where the code points of a response add up to an odd number: half of all random responses are right."""
    return float(sum(map(ord, solution_str)) % 2)


def write_data(file: Path) -> None:
    """The questions as training parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "prompt": [{"role": "user", "content": question}],
            "data_source": "parity",
            "reward_model": {"style": "rule", "ground_truth": "odd"},
            "extra_info": {"index": str(number)},
        }
        for number, question in enumerate(questions())
    ]
    pq.write_table(pa.Table.from_pylist(rows), file)


def write_model(folder: Path) -> None:
    """A model of random weights with a tokenizer of single characters."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    vocabulary = {text: number for number, text in enumerate([*SPECIAL, *CHARACTERS])}
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex(r"(?:.|\n)"), "isolated")
    characters.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=characters,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = Qwen3Config(**SHAPE, bos_token_id=None, eos_token_id=2, pad_token_id=0)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
