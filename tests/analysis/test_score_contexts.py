"""Scores are those of the model on the prompts of training, whatever lies beside them in a batch; none is invented."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import build_context_variants
import build_target_responses
import numpy as np
import prepare_rollout_dataset
import pytest
import score_teacher_contexts
import torch
from teacher_model import Job, TeacherModel, batches, load_tokenizer

from tests.analysis.chain_rollouts import lines, read, run, write

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "datasets/chain/model"
COLUMNS = {
    "variant_id", "target_id", "condition", "target_type", "prompt_id", "response_id", "source_model", "teacher_model",
    "sections_used", "variant_spec", "teacher_seq_logprob", "teacher_avg_token_logprob", "teacher_score",
    "teacher_response_len", "teacher_prompt_len", "teacher_prompt_truncated", "reward", "success", "difficulty_bucket",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with contexts and targets of a few rollouts."""
    folder = tmp_path_factory.mktemp("data")
    source = write(folder / "in.jsonl", lines())
    assert run(prepare_rollout_dataset, "--input", source, "--output-dir", folder) == 0
    names = ("--candidates", folder / "candidate_responses.jsonl")
    evidence = ("--evidence", folder / "evidence_items.jsonl")
    assert run(build_context_variants, *names, *evidence, "--output", folder / "variants.jsonl") == 0
    assert run(build_target_responses, *names, "--output", folder / "targets.jsonl") == 0
    return folder


@pytest.fixture(scope="module")
def teacher():
    """The embedded model."""
    return TeacherModel(str(MODEL), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def tokenizer():
    """Its tokenizer."""
    return load_tokenizer(str(MODEL))


def asked(data, out, *options):
    files = ("--variants", data / "variants.jsonl", "--targets", data / "targets.jsonl")
    return (*files, "--output", out, "--model", MODEL, "--device", "cpu", *options)


def score(data, out, *options):
    """Scores, and returns the rows."""
    assert run(score_teacher_contexts, *asked(data, out, *options)) == 0
    return read(out)


def by_key(rows):
    return {(row["variant_id"], row["target_id"]): row for row in rows}


@pytest.fixture(scope="module")
def scores(data, tmp_path_factory):
    """All contexts on their own responses."""
    return score(data, tmp_path_factory.mktemp("scores") / "scores.jsonl", "--self-target-only")


def one_by_one(teacher, prompt, response, places=()):
    """Log-probs of a response by the plain forward pass, and those of all tokens at some places."""
    ids = torch.tensor([[*prompt, *response]])
    with torch.no_grad():
        spread = teacher.model(input_ids=ids).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
    return spread.gather(-1, torch.tensor(response)[:, None])[:, 0], [spread[place] for place in places]


def test_columns_and_rows(scores, data):
    assert len(scores) == len(read(data / "variants.jsonl")) == 24 * 19
    assert all(set(row) >= COLUMNS for row in scores)
    assert {row["target_type"] for row in scores} == {"self_response"}
    assert len(by_key(scores)) == len(scores)


def test_a_batch_says_what_each_row_says_alone(scores, data, teacher, tokenizer):
    """With the chat template, by the plain forward pass of one sequence."""
    found = by_key(scores)
    for variant in read(data / "variants.jsonl")[::7]:
        message = {"role": "user", "content": variant["assembled_context_text"]}
        text = tokenizer.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
        prompt, response = tokenizer.encode(text), tokenizer.encode(variant["response_text"])
        (row,) = [row for key, row in found.items() if key[0] == variant["variant_id"]]
        alone, _ = one_by_one(teacher, prompt, response)
        assert row["teacher_avg_token_logprob"] == pytest.approx(float(alone.mean()), abs=1e-5)
        assert row["teacher_seq_logprob"] == pytest.approx(float(alone.sum()), abs=1e-4)
        assert (row["teacher_prompt_len"], row["teacher_response_len"]) == (len(prompt), len(response))
        assert row["teacher_score"] == row["teacher_avg_token_logprob"]


def test_the_size_of_batches_changes_nothing(scores, data, tmp_path):
    small = score(data, tmp_path / "s.jsonl", "--self-target-only", "--max-batch-tokens", "1", "--max-examples", "60")
    found = by_key(scores)
    for key, row in by_key(small).items():
        assert row["teacher_score"] == pytest.approx(found[key]["teacher_score"], abs=1e-5)


def test_batches_hold_every_job_and_keep_the_budget():
    jobs = [Job(np.zeros(length, np.int32), np.zeros(2, np.int32)) for length in (3, 50, 7, 7, 1, 20, 9, 9, 9)]
    found = list(batches(jobs, 30))
    assert sorted(index for batch in found for index in batch) == list(range(len(jobs)))
    for batch in found:
        padded = len(batch) * max(jobs[index].length for index in batch)
        assert padded <= 30 or len(batch) == 1
    assert len(found) < len(jobs)


def test_a_model_that_bends_its_logits_is_read_as_it_speaks(teacher, tokenizer):
    prompt, response = tokenizer.encode("calc 1 + 1 + 1 + 1"), tokenizer.encode("1 + 1 = 2")
    job = Job(np.asarray(prompt, np.int32), np.asarray(response, np.int32))
    plain = teacher.read([job], [()])[0].logprobs
    bent = TeacherModel(str(MODEL), torch.device("cpu"), torch.float32)
    hook = bent.model.register_forward_hook(lambda module, given, out: out.__class__(logits=out.logits / 2))
    bent.plain = bent.is_plain()
    assert not bent.plain
    told = bent.read([job], [((2, response[2]),)])[0]
    hook.remove()
    _, spreads = one_by_one(teacher, prompt, response, range(len(response)))
    halved = torch.stack([(spread / 2).log_softmax(-1)[token] for spread, token in zip(spreads, response, strict=True)])
    assert torch.allclose(told.logprobs, halved, atol=1e-5)
    assert float(told.asked) == pytest.approx(float(halved[2]), abs=1e-5)
    assert not torch.allclose(plain, halved, atol=1e-2)


# ------------------------------------------------------------------ prompts of training


def test_a_response_is_never_cut_and_takes_its_room_from_the_peers(data, tmp_path, tokenizer):
    whole = by_key(score(data, tmp_path / "a.jsonl", "--self-target-only", "--condition-filter", "solution"))
    totals = sorted(row["teacher_prompt_len"] + row["teacher_response_len"] for row in whole.values())
    room, options = totals[-1] - 2, ("--self-target-only", "--condition-filter", "solution")
    tight = by_key(score(data, tmp_path / "b.jsonl", *options, "--max-model-len", room))
    assert whole.keys() == tight.keys()
    cut = [key for key, row in tight.items() if row["teacher_prompt_truncated"]]
    assert cut
    for key, row in tight.items():
        assert row["teacher_response_len"] == whole[key]["teacher_response_len"]
        assert row["teacher_prompt_len"] + row["teacher_response_len"] <= room
        assert row["teacher_prompt_truncated"] is (
            whole[key]["teacher_prompt_len"] + row["teacher_response_len"] > room
        )


def test_what_does_not_fit_has_no_row(data, tmp_path, capsys):
    assert score(data, tmp_path / "a.jsonl", "--self-target-only", "--max-model-len", "20") == []
    assert "exceed the limits" in " ".join(capsys.readouterr().err.split())
    bad = asked(data, tmp_path / "b.jsonl", "--max-reprompt-len", "30", "--truncation", "error")
    assert run(score_teacher_contexts, *bad) == 2
    assert "over actor_rollout_ref.actor.self_distillation.max_reprompt_len=30" in capsys.readouterr().err


# ------------------------------------------------------------------ what is scored


def test_an_empty_response_has_no_score(data, tmp_path):
    rows = [row | {"response_text": ""} for row in read(data / "variants.jsonl")[:3]]
    write(tmp_path / "variants.jsonl", rows)
    write(tmp_path / "targets.jsonl", read(data / "targets.jsonl"))
    for row in score(tmp_path, tmp_path / "s.jsonl", "--self-target-only"):
        assert row["teacher_score"] is row["teacher_seq_logprob"] is row["teacher_avg_token_logprob"] is None
        assert row["teacher_response_len"] == 0
        assert "off_path_probability" not in row


def test_equal_contexts_have_equal_scores(scores):
    by_condition = {}
    for row in scores:
        by_condition.setdefault(row["condition"], {})[row["response_id"]] = row["teacher_score"]
    assert by_condition["base"] == by_condition["base_raw"]
    assert by_condition["failure_only"] == by_condition["failure_solution"]
    assert by_condition["base"] != by_condition["base_reprompt"]


def test_targets_are_scored_under_every_context_of_their_prompt(data, tmp_path):
    rows = score(data, tmp_path / "s.jsonl", "--condition-filter", "base", "solution")
    targets = read(data / "targets.jsonl")
    per_prompt = {prompt: sum(target["prompt_id"] == prompt for target in targets) for prompt in
                  {row["prompt_id"] for row in rows}}  # fmt: skip
    assert len(rows) == sum(2 * 6 * (1 + count) for count in per_prompt.values())
    shown = [row for row in rows if row["target_in_context"]]
    assert shown
    assert {row["condition"] for row in shown} == {"solution"}
    some = score(data, tmp_path / "t.jsonl", "--condition-filter", "base", "--target-type-filter", "student_failure")
    assert {row["target_type"] for row in some} == {"student_failure"}
    assert all(row["success"] is False for row in some)


def test_published_rows_without_messages_are_scored_on_their_text(data, tmp_path):
    extra = {"prompt_messages", "peers", "context_settings", "response_text", "known_places"}
    rows = [{name: value for name, value in row.items() if name not in extra} for row in read(data / "variants.jsonl")]
    write(tmp_path / "variants.jsonl", rows)
    write(tmp_path / "targets.jsonl", read(data / "targets.jsonl"))
    found = score(tmp_path, tmp_path / "s.jsonl", "--self-target-only")
    sources = {row["source_response_id"] for row in read(data / "targets.jsonl")}
    assert {row["response_id"] for row in found} == sources


# ------------------------------------------------------------------ off the path


def test_off_path_is_the_probability_of_the_right_result_after_a_mistake(data, tmp_path, teacher, tokenizer):
    """By hand: 1 + 2 = 4 (wrong) ; 4 + 3 = 7 (right of what is written) ; 7 + 4 = 2 (wrong of what is written)."""
    text = "1 + 2 = 4 ; 4 + 3 = 7 ; 7 + 4 = 2"
    row = lines()[0] | {
        "input": "user\ncalc 1 + 2 + 3 + 4\nassistant\n",
        "output": text,
        "gts": '{"steps": 3, "value": 0}',
    }
    write(tmp_path / "in.jsonl", [row | {"rollout_id": f"{k}"} for k in range(2)])
    assert run(prepare_rollout_dataset, "--input", tmp_path / "in.jsonl", "--output-dir", tmp_path) == 0
    files = ("--candidates", tmp_path / "candidate_responses.jsonl", "--evidence", tmp_path / "evidence_items.jsonl")
    assert run(build_context_variants, *files, "--output", tmp_path / "variants.jsonl") == 0
    assert run(build_target_responses, *files[:2], "--output", tmp_path / "targets.jsonl") == 0
    found = score(tmp_path, tmp_path / "s.jsonl", "--self-target-only", "--condition-filter", "base")[0]
    message = [{"role": "user", "content": "calc 1 + 2 + 3 + 4"}]
    prompt = tokenizer.encode(tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False))
    response = tokenizer.encode(text)
    digits = [place for place, token in enumerate(response) if tokenizer.decode([token]) in list("0123456789")]
    results = digits[2::3]  # of operand, operand, result
    _, spreads = one_by_one(teacher, prompt, response, results)
    right = [float(spread[tokenizer.encode(digit)[0]].exp()) for spread, digit in zip(spreads, "371", strict=True)]
    assert [place["right"] for place in found["places"]] == ["3", "7", "1"]
    assert [place["flawed"] for place in found["places"]] == [False, True, True]
    assert [place["probability"] for place in found["places"]] == pytest.approx(right, abs=1e-5)
    assert found["off_path_probability"] == pytest.approx(right[1], abs=1e-5)
    assert found["on_path_probability"] == pytest.approx(right[0], abs=1e-5)
    likeliest = [
        tokenizer.decode([int(spread.argmax())]) == digit for spread, digit in zip(spreads, "371", strict=True)
    ]
    assert [place["likeliest"] for place in found["places"]] == likeliest
    assert found["off_path_correct"] is likeliest[1]


def test_off_path_is_absent_where_nothing_went_wrong_before(scores):
    some = [row for row in scores if "off_path_probability" in row]
    assert 0 < len(some) < len(scores)
    for row in scores:
        flawed = [place for place in row.get("places", []) if place["flawed"]]
        assert ("off_path_probability" in row) == ("off_path_correct" in row) == bool(flawed)
        assert all(0 <= place["probability"] <= 1 for place in row.get("places", []))


# ------------------------------------------------------------------ going on, and refusing to


def goes_on(out, before, scores, *options):
    """Whether a command that was ended goes on with what it had written, half a line aside."""
    out.write_text(before + '{"variant_id": "half a li')
    data, *flags = options
    after = score(data, out, *flags)
    assert out.read_text().startswith(before[: before.rfind("\n") + 1])
    assert len(after) == len(scores)
    assert by_key(after).keys() == by_key(scores).keys()
    for key, row in by_key(after).items():
        assert row["teacher_score"] == pytest.approx(by_key(scores)[key]["teacher_score"], abs=1e-5)


def test_an_interrupted_command_goes_on_where_it_was(data, scores, tmp_path, monkeypatch, capsys):
    out, options, reads = tmp_path / "s.jsonl", ("--self-target-only", "--max-batch-tokens", "4000"), []
    read_whole = TeacherModel.read

    def read_some(self, *arguments):
        reads.append(1)
        if len(reads) == 4:
            raise KeyboardInterrupt
        return read_whole(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TeacherModel, "read", read_some)
        assert run(score_teacher_contexts, *asked(data, out, *options)) == 130
    assert "goes on" in capsys.readouterr().err
    before = out.read_text()
    assert 0 < before.count("\n") < len(scores)
    goes_on(out, before, scores, data, *options)


@pytest.mark.slow
def test_a_killed_command_goes_on_where_it_was(data, scores, tmp_path):
    out, script = tmp_path / "s.jsonl", ROOT / "analysis/score_teacher_contexts.py"
    options = ("--self-target-only", "--max-batch-tokens", "600")
    command = [sys.executable, str(script), *map(str, asked(data, out, *options))]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None and not (out.exists() and out.stat().st_size > 20_000):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = out.read_text()
    assert 0 < before.count("\n") < len(scores)
    goes_on(out, before, scores, data, *options)


def test_a_finished_command_has_nothing_to_do_and_more_is_added(data, tmp_path, capsys):
    out = tmp_path / "s.jsonl"
    first = score(data, out, "--self-target-only", "--max-examples", "10")
    assert score(data, out, "--self-target-only", "--max-examples", "10") == first
    assert "10 of them were there" in capsys.readouterr().out
    assert score(data, out, "--self-target-only", "--max-examples", "20")[:10] == first


def test_other_settings_contexts_or_weights_are_refused(data, tmp_path, capsys):
    out = tmp_path / "s.jsonl"
    few = ("--self-target-only", "--max-examples", "3")
    kept = score(data, out, *few)
    assert run(score_teacher_contexts, *asked(data, out, *few, "--max-model-len", "99")) == 2
    assert "was made with another max_model_len" in capsys.readouterr().err
    other = tmp_path / "model"
    subprocess.run(["cp", "-r", str(MODEL), str(other)], check=True)
    subprocess.run(["chmod", "-R", "u+w", str(other)], check=True)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(bytes(weights))
    assert run(score_teacher_contexts, *asked(data, out, *few), "--model", other) == 2
    assert "another model, weights" in capsys.readouterr().err
    write(out, [{"anything": 1}])
    assert run(score_teacher_contexts, *asked(data, out, *few)) == 2
    assert "is no score" in capsys.readouterr().err
    assert score(data, out, *few, "--max-model-len", "99", "--overwrite") == kept
    out.with_name("s.jsonl.settings.json").unlink()
    assert run(score_teacher_contexts, *asked(data, out, *few)) == 2
    assert read(out) == kept


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--condition-filter", "solutions"), "--condition-filter solutions: there is none"),
        (("--target-type-filter", "strong_success"), "--target-type-filter strong_success: there is none"),
        (("--device", "tpu9"), "--device tpu9"),
        (("--chat-template-kwargs", "{"), "is no JSON"),
        (("--chat-template-kwargs", "[]"), "an object is wanted"),
        (("--self-target-only", "--target-type-filter", "student_success"), "no pair of context and response is left"),
        (("--model", "/no/such/model"), "--model /no/such/model: there is no such folder"),
        (("--output", "/usr"), "--output /usr: is a folder; name a file"),
        (("--variants", "/no/such/file"), "cannot be read"),
    ],
)
def test_what_cannot_be_used_is_told(data, tmp_path, capsys, options, told):
    assert run(score_teacher_contexts, *asked(data, tmp_path / "s.jsonl"), *options) == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "s.jsonl").exists()


def test_rows_that_are_none_are_told_by_their_line(data, tmp_path, capsys):
    rows = read(data / "variants.jsonl")[:3]
    del rows[1]["variant_spec"]
    write(tmp_path / "variants.jsonl", rows)
    write(tmp_path / "targets.jsonl", read(data / "targets.jsonl"))
    assert run(score_teacher_contexts, *asked(tmp_path, tmp_path / "s.jsonl")) == 2
    assert "variants.jsonl, line 2: has no `variant_spec`" in capsys.readouterr().err
    rows = read(data / "variants.jsonl")[3:4]
    write(tmp_path / "variants.jsonl", [rows[0] | {"peers": {"nobody": "x"}}])
    assert run(score_teacher_contexts, *asked(tmp_path, tmp_path / "s.jsonl")) == 2
    assert "cannot be shown" in capsys.readouterr().err
    for place in ("x", {}, {"start": "0", "written": "", "right": ""}):
        write(tmp_path / "variants.jsonl", [rows[0] | {"known_places": [place]}])
        assert run(score_teacher_contexts, *asked(tmp_path, tmp_path / "s.jsonl", "--self-target-only")) == 2
        assert "known_places of target" in capsys.readouterr().err


def test_scores_are_numbers_or_null(scores):
    assert all(json.dumps(row, allow_nan=False) for row in scores)
    assert all(math.isfinite(row["teacher_score"]) and row["teacher_score"] < 0 for row in scores)


def test_any_text_can_be_scored(data, tmp_path):
    texts = ["half a \ud800 surrogate", "a\u2028b\x00c\r\n", "<|im_end|>", " "]
    rows = [row | {"response_text": text} for row, text in zip(read(data / "variants.jsonl"), texts, strict=False)]
    rows[3]["prompt_messages"] = [{"role": "user", "content": "\udfff?"}]
    write(tmp_path / "variants.jsonl", rows)
    write(tmp_path / "targets.jsonl", read(data / "targets.jsonl"))
    found = score(tmp_path, tmp_path / "s.jsonl", "--self-target-only")
    assert len(found) == 4
    assert all(row["teacher_score"] < 0 for row in found)
