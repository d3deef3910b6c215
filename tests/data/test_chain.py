"""The embedded task and its shipped model: what the generator, the tokenizer and the weights promise."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import chain
import pyarrow.parquet as pq
import pytest
import torch
from chain_acceptance import Figures, Reading, acceptance, read_results
from chain_contexts import MODES, Mode, draw_example, render, teacher_prompt, tempts
from chain_tokenizer import END, START, build_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, Qwen3ForCausalLM
from warm_start import collate, noisy_weights, weighted_loss

from mopd.rewards.chain import verify
from mopd.types import Peers

SHIPPED = Path(__file__).parents[2] / "datasets" / "chain"
EXAMPLE = chain.Problem((7, 5, 3, 8), "+*-")
EXAMPLE_CHAIN = "7 + 5 = 2 ; 2 * 3 = 6 ; 6 - 8 = 8"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(SHIPPED / "model")


@pytest.fixture(scope="module")
def model() -> Qwen3ForCausalLM:
    return AutoModelForCausalLM.from_pretrained(SHIPPED / "model")


# The table and the problems


def test_the_table_has_every_entry_with_one_wrong_candidate_and_a_prior_in_range() -> None:
    assert len(chain.TABLE) == 300
    for (operator, a, b), entry in chain.TABLE.items():
        assert entry.true == eval(f"({a} {operator} {b}) % 10")
        assert entry.mistake != entry.true
        assert 0 <= entry.mistake <= 9
        assert 0.45 <= entry.prior <= 0.75


def test_the_table_does_not_depend_on_the_state_of_the_random_module() -> None:
    random.seed(1)
    assert chain.build_table() == chain.TABLE


def test_a_problem_is_worked_out_from_left_to_right() -> None:
    assert EXAMPLE.text == "calc 7 + 5 * 3 - 8"
    assert chain.true_results(EXAMPLE) == (2, 6, 8)
    assert EXAMPLE.response((2, 6, 8)) == EXAMPLE_CHAIN


def test_an_unknown_operator_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be one of \+ - \*; got '/'"):
        chain.true_result("/", 1, 2)


def test_samples_write_candidates_only_and_draw_them_with_the_prior() -> None:
    rng = random.Random(0)
    key = ("+", 7, 5)
    problem = chain.Problem((7, 5), "+")
    draws = [chain.sample_results(problem, rng)[0] for _ in range(4000)]
    entry = chain.TABLE[key]
    assert set(draws) == {entry.true, entry.mistake}
    assert abs(draws.count(entry.true) / 4000 - entry.prior) < 0.04


def test_full_competence_follows_the_world() -> None:
    rng = random.Random(0)
    for _ in range(50):
        problem, world = chain.sample_problem(rng), chain.World(rng)
        assert chain.sample_results(problem, rng, world, 1.0) == chain.follow(problem, world)


# The rows


def test_the_command_writes_the_committed_rows_and_the_same_bytes_twice(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        chain.write_splits(tmp_path / folder, 512, 96, 0)
    for name in ("train.parquet", "test.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        written, committed = pq.read_table(tmp_path / "a" / name), pq.read_table(SHIPPED / name)
        assert written.schema == committed.schema
        assert written.equals(committed)


def test_another_seed_draws_other_prompts() -> None:
    rows = [chain.build_splits(8, 8, seed)["test"] for seed in (0, 1)]
    assert rows[0] != rows[1]


def test_the_splits_share_no_prompt_and_repeat_none() -> None:
    texts = {
        split: [row["prompt"][0]["content"] for row in pq.read_table(SHIPPED / f"{split}.parquet").to_pylist()]
        for split in ("train", "test")
    }
    assert [len(texts["train"]), len(texts["test"])] == [512, 96]
    assert len(set(texts["train"]) | set(texts["test"])) == 608


def test_every_row_accepts_its_true_chain_and_no_other_value() -> None:
    for split in ("train", "test"):
        for row in pq.read_table(SHIPPED / f"{split}.parquet").to_pylist():
            words = row["prompt"][0]["content"].split()[1:]
            problem = chain.Problem(tuple(map(int, words[::2])), "".join(words[1::2]))
            results = chain.true_results(problem)
            truth = row["reward_model"]["ground_truth"]
            assert verify(problem.response(results), truth).success
            wrong = (*results[:-1], (results[-1] + 1) % 10)
            assert not verify(problem.response(wrong), truth).success
            assert row["data_source"] == "chain"
            assert row["extra_info"]["split"] == split


def test_more_problems_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 270000; got 270001"):
        chain.distinct_problems(270_001, 0)


# The tokenizer


def test_the_shipped_tokenizer_is_the_one_that_the_command_builds(tokenizer: PreTrainedTokenizerBase) -> None:
    built = build_tokenizer()
    assert built.get_vocab() == tokenizer.get_vocab()
    assert built.chat_template == tokenizer.chat_template
    texts = [EXAMPLE_CHAIN, "some other words 12 +- 3\n\n", teacher_prompt(EXAMPLE, Peers(EXAMPLE_CHAIN))]
    assert built(texts)["input_ids"] == tokenizer(texts)["input_ids"]


def test_any_text_comes_back_from_its_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    rng = random.Random(0)
    fixed = [
        "",
        " ",
        "\0",
        "\r\n\n \t",
        "  7  +  5",
        "naïve é e\u0301 😀👩‍👩‍👧 \ufeff ٣ 漢字",
        "x , y . can't",
    ]
    drawn = ["".join(chr(draw_code_point(rng)) for _ in range(rng.randrange(40))) for _ in range(500)]
    for text in fixed + drawn:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text


def draw_code_point(rng: random.Random) -> int:
    """Any code point but a surrogate, small ones more often."""
    code = rng.randrange(rng.choice((128, 0x800, 0x10000, 0x110000)))
    return 0xFFFD if 0xD800 <= code < 0xE000 else code


def test_digits_and_operators_are_tokens_of_their_own(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = [tokenizer.decode([index]) for index in tokenizer(EXAMPLE_CHAIN)["input_ids"]]
    assert tokens[:6] == ["7", " + ", "5", " = ", "2", " ; "]
    assert len(tokens) == 17
    for token in tokenizer.get_vocab():
        assert sum(letter in "0123456789+-*=" for letter in token) <= 1, token


def test_a_phrase_of_the_templates_is_a_token(tokenizer: PreTrainedTokenizerBase) -> None:
    phrases = [
        "Correct solution",
        "Another successful solution",
        "A known failed solution",
        "Correctly solve the original question",
    ]
    assert [len(tokenizer(phrase)["input_ids"]) for phrase in phrases] == [1, 1, 1, 1]


def test_the_chat_template_renders_roles_and_ignores_unknown_arguments(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": EXAMPLE.text}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    assert text == f"{START}system\ns{END}\n{START}user\n{EXAMPLE.text}{END}\n{START}assistant\n"
    assert render(EXAMPLE.text) == tokenizer.apply_chat_template(
        messages[1:], tokenize=False, add_generation_prompt=True
    )


def test_a_turn_ends_with_the_end_token_which_decoding_skips(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer(EXAMPLE_CHAIN + END)["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == EXAMPLE_CHAIN


# The examples of the warm start


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_the_labels_are_the_text_that_is_read_but_for_results(mode: Mode) -> None:
    rng = random.Random(0)
    differences = 0
    for _ in range(50):
        example = draw_example(mode, 4, rng)
        for read, right in zip(example.read, example.right, strict=True):
            differs = {place for place, (a, b) in enumerate(zip(read, right, strict=True)) if a != b}
            assert differs <= {8, 20, 32}
            differences += len(differs)
    assert (differences > 0) == (mode.name != "none")


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_a_context_shows_the_peers_of_its_mode(mode: Mode) -> None:
    context = draw_example(mode, 1, random.Random(0)).context
    assert ("\nCorrect solution:\n\n" in context) == (mode.successes >= 1)
    assert ("\nAnother successful solution:\n\n" in context) == (mode.successes == 2)
    assert ("\nA known failed solution" in context) == (mode.failures == 1)


def test_a_right_label_is_the_same_wherever_its_operands_are_written() -> None:
    rng = random.Random(0)
    for _ in range(50):
        example = draw_example(MODES[1], 8, rng)
        answers: dict[str, set[str]] = {}
        for step in (step for right in example.right for step in right.split(" ; ")):
            operands, result = step.split(" = ")
            answers.setdefault(operands, set()).add(result)
        assert all(len(results) == 1 for results in answers.values())


def test_responses_behind_one_prompt_do_not_see_each_other(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    example = draw_example(MODES[3], 3, random.Random(0))
    together = collate([example], tokenizer, 0.0)
    alone = [
        collate([replace(example, read=(read,), right=(right,))], tokenizer, 0.0)
        for read, right in zip(example.read, example.right, strict=True)
    ]
    # The prompt's last token has a target too, and it counts once for each response that is read alone.
    with torch.no_grad():
        first = weighted_loss(model, replace(alone[0], weights_T=alone[0].weights_T.cumsum(0).eq(1).float()))
        expected = sum(weighted_loss(model, batch) for batch in alone) - 2 * first
        assert torch.allclose(weighted_loss(model, together), expected, atol=1e-3)


def test_an_attempt_tempts_where_a_peer_has_a_candidate_of_an_entry_that_no_peer_shows() -> None:
    problem = chain.Problem((7, 5, 3), "+*")
    true, mistake = chain.TABLE["+", 7, 5].true, chain.TABLE["+", 7, 5].mistake
    entry = chain.TABLE["*", mistake, 3]
    other = next(digit for digit in range(10) if digit not in (entry.true, entry.mistake))
    for value in (entry.true, entry.mistake):
        assert tempts(problem, (mistake, 0), ((true, value),))
    assert not tempts(problem, (mistake, 0), ((true, other),))
    assert not tempts(problem, (mistake, 0), ((mistake, entry.true),))


def test_noise_on_the_weights_lasts_for_the_block_alone(model: Qwen3ForCausalLM) -> None:
    before = [parameter.clone() for parameter in model.parameters()]
    with noisy_weights(model, 0.01):
        shares = [float((a - b).detach().std()) for a, b in zip(before, model.parameters(), strict=True)]
    assert all(0.005 < share < 0.015 for share in shares)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_the_right_candidate_of_an_entry_changes_from_world_to_world() -> None:
    rng = random.Random(0)
    assert len({chain.World(rng)["+", 7, 5] for _ in range(100)}) == 2


# The shipped weights


def test_the_shipped_weights_are_small() -> None:
    assert sum(file.stat().st_size for file in (SHIPPED / "model").iterdir()) < 1_500_000


def test_the_shipped_weights_are_accepted_on_a_small_sample(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    figures = acceptance(model, tokenizer, prompts=192)
    assert figures.problems(slack=0.04) == []
    assert figures.well_formed > 0.97


def test_an_untrained_model_is_not_accepted(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    torch.manual_seed(0)
    untrained = Qwen3ForCausalLM(model.config).eval()
    assert acceptance(untrained, tokenizer, prompts=4).problems(slack=0.06)


def test_figures_without_any_position_are_a_problem() -> None:
    nothing = {mode.name: Reading(float("nan"), float("nan"), 0) for mode in MODES}
    assert len(Figures(0.25, 0.8, 1.0, 8, nothing, nothing).problems()) == 9


def test_a_response_of_another_problem_is_not_read() -> None:
    assert read_results(EXAMPLE, EXAMPLE_CHAIN) == (2, 6, 8)
    assert read_results(EXAMPLE, EXAMPLE_CHAIN.replace("5", "4")) is None
    assert read_results(EXAMPLE, "") is None


def test_the_settings_of_the_model_say_how_a_turn_ends(tokenizer: PreTrainedTokenizerBase) -> None:
    settings = json.loads((SHIPPED / "model" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == tokenizer.eos_token_id
