"""Teachers' prompts are those of training, token for token, and what cannot be read or does not fit is told."""

from pathlib import Path

import numpy as np
import pytest
from json_lines import BadInput
from teacher_model import load_tokenizer
from teacher_prompts import TeacherPrompts

from mopd.contexts import ContextSettings
from mopd.types import Group, Peers, Prompt
from trainer.contexts import ContextBuilder, PeerRule
from trainer.prompts import Renderer


@pytest.fixture(scope="module")
def tokenizer():
    """That of the embedded model."""
    return load_tokenizer(str(Path(__file__).parents[2] / "datasets/chain/model"))


@pytest.mark.parametrize("limit", [10_000, 180, 130])
@pytest.mark.parametrize("truncation", ["peers", "right", "left"])
def test_prompts_are_those_of_training(tokenizer, limit, truncation):
    """Token for token what the trainer builds, cut or not."""
    settings, renderer = ContextSettings(), Renderer(tokenizer, {"enable_thinking": False})
    messages = ({"role": "system", "content": "S"}, {"role": "user", "content": "calc 1 + 2 + 3 + 4"})
    prompt = Prompt("1", messages, "chain", "")
    peers = Peers(primary="1 + 2 = 3 ; " * 20, another="3 + 3 = 6 ; " * 10, failure="1 + 2 = 9 ; 9 + 9 = 1")
    rule = PeerRule("random", 1.0, "none", "block", False, 1, 0)
    builder = ContextBuilder("peers", settings, rule, renderer, renderer, limit, truncation)
    group = Group("1", prompt, np.zeros(0, np.int32), ())
    view = builder.view_of(group, "r", peers)
    trained = builder.rendered(view)
    row = {
        "variant_id": "v", "condition": "c", "response_id": "r", "prompt_messages": list(prompt.messages),
        "peers": {"primary": peers.primary, "another": peers.another, "failure": peers.failure},
    }  # fmt: skip
    found = TeacherPrompts(tokenizer, {"enable_thinking": False}, limit, 10**6, truncation).of(row, 5)
    assert found.ids.tolist() == trained.prompt_ids.tolist()
    assert found.truncated is (limit <= 180)
    assert len(found.ids) <= limit


def row(**more):
    """A row of contexts."""
    return {"variant_id": "v", "condition": "c", "response_id": "r", "assembled_context_text": "calc", **more}


def test_a_prompt_that_cannot_be_cut_does_not_fit(tokenizer):
    tight = TeacherPrompts(tokenizer, {}, 30, 100, "peers")
    assert tight.of(row(prompt_messages=[{"role": "user", "content": "7 + " * 30}]), 1) is None
    closing = row(prompt_messages=[{"role": "user", "content": "7 + " * 14}], variant_spec={"force_reprompt": True})
    assert tight.of(closing, 1) is None
    assert tight.of(row(), 70) is not None
    assert tight.of(row(), 99) is None
    for side in ("right", "left"):
        assert TeacherPrompts(tokenizer, {}, 30, 100, side).of(row(), 100) is None  # no room at all is not all the room


def test_peers_that_would_be_cut_to_nothing_are_told_as_not_shown(tokenizer):
    asked = row(peers={"primary": "1 + 2 = 3 ; " * 30}, prompt_messages=[{"role": "user", "content": "calc 1 + 2"}])
    found = TeacherPrompts(tokenizer, {}, 30, 100, "peers").of(asked, 1)
    assert found.truncated
    assert found.view.peers.primary is None


@pytest.mark.parametrize("broken", [{"peers": {"nobody": 1}}, {"context_settings": {"summary_k": 0}}, {"peers": 3}])
def test_a_row_that_cannot_be_shown_is_named(tokenizer, broken):
    with pytest.raises(BadInput, match=r"v \(c\) cannot be shown"):
        TeacherPrompts(tokenizer, {}, 30, 100, "peers").of(row(**broken), 1)
