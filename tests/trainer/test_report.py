"""The report shows what the run wrote down, all of it or an even part, and takes no text for markup."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
import zlib
from collections.abc import Sequence
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mopd.types import IntArray
from tests.trainer.report_runs import HOSTILE, pieces, run_in
from trainer import report
from trainer.recorded import recorded_in
from trainer.report import MOST_BYTES, distinct, main, report_at_end, write_report
from trainer.reporting.curves import curves_of, thinned, times_of
from trainer.reporting.groups import HASH, parts_of, spread
from trainer.reporting.page import SCRIPTS, TEMPLATE, embedded, escaped

MARKUP = (
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser|srcdoc|fetch\(|import\("
)
"""Ways to turn text into markup or script, or to reach the network."""
TEXTS = st.text(st.characters(codec=None), max_size=60) | st.sampled_from(HOSTILE)


class Reader(HTMLParser):
    """The elements of a page, as a browser would find them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inner: dict[str, str] = {}
        self.within = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self.within = dict(attributes).get("id") or tag

    def handle_endtag(self, tag: str) -> None:
        self.within = ""

    def handle_data(self, data: str) -> None:
        self.inner[self.within] = self.inner.get(self.within, "") + data


def read_back(file: Path) -> tuple[dict[str, Any], list[Any]]:
    """The data of a report, and its groups unpacked, with what is told by token, and their lists as `lists`."""
    inner = Reader(file.read_text(encoding="utf-8")).inner
    bodies = []
    for texts in json.loads(inner["groups"]):
        body, told, lists = [json.loads(zlib.decompress(base64.b64decode(one))) if one else None for one in texts]
        if told is not None:
            body["rollouts"] = [entry | by_token for entry, by_token in zip(body["rollouts"], told, strict=True)]
        bodies.append(body | ({} if lists is None else {"lists": lists}))
    return json.loads(inner["data"]), bodies


def lines_in(run: Path, step: int) -> list[dict[str, Any]]:
    with (run / "rollouts" / f"{step}.jsonl").open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


# ------------------------------------------------------------------ what is shown is what was written down


def test_every_rollout_comes_back_as_it_was_written(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run")
    data, bodies = read_back(write_report(run, pieces=pieces))
    lines = [line for step in (1, 2, 3) for line in lines_in(run, step)]
    shown = [
        (group["uid"], body, entry, told)
        for group, body in zip(data["groups"], bodies, strict=True)
        for entry, told in zip(group["rollouts"], body["rollouts"], strict=True)
    ]
    assert [entry["id"] for _, _, entry, _ in shown] == [line["rollout_id"] for line in lines]
    for line, (uid, body, entry, told) in zip(lines, shown, strict=True):
        assert (uid, body["truth"], entry["status"]) == (line["uid"], line["gts"], line["status"])
        assert (entry["score"], told["output"], told["feedback"]) == (line["score"], line["output"], line["feedback"])
        assert (told["peers"], told["fallbacks"]) == (line["peers"], line["fallbacks"])
        assert joined(told["teacher"], body) == line["teacher_prompt"]
        assert told.get("divergence") == line.get("divergence")
        if "divergence" in line:  # each token beside its own value
            assert "".join(told["pieces"]) == line["output"]
    assert not data["notes"]


def test_the_likeliest_tokens_of_both_sides_come_back(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", steps=1)
    _, bodies = read_back(write_report(run, pieces=pieces))
    assert ["lists" in body for body in bodies] == [True, True, False]
    with np.load(run / "rollouts/1.npz") as arrays:
        recorded, lengths, token_ids = recorded_in(arrays), arrays["lengths"], arrays["token_ids"]
    said = np.split(token_ids, np.cumsum(lengths)[:-1])
    for index, sides in recorded.items():
        lists = bodies[index // 4]["lists"]
        for side, kept in sides.items():
            shown = lists["rollouts"][index % 4][side]
            texts = [lists["table"][place] for place in shown["ids"]]
            assert texts == [chr(token) for token in kept.ids.ravel()]
            chances = np.asarray(shown["chances"]) / 1000
            assert np.allclose(chances, np.exp(kept.logprobs.astype(float)).ravel(), atol=6e-4)
            assert [place < 0 for place in shown["sampled"]] == [at % 6 == 5 for at in range(len(said[index]))]
            assert all(
                kept.ids[at, place] == said[index][at] for at, place in enumerate(shown["sampled"]) if place >= 0
            )


def test_lists_give_way_to_rollouts_where_room_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_in(tmp_path / "run", steps=6, groups=2)
    whole = write_report(run, pieces=pieces)
    _, bodies = read_back(whole)
    share = 0.1 * whole.stat().st_size / MOST_BYTES
    monkeypatch.setattr(report, "SHARES", {"tokens": share, "likeliest": share})
    data, fewer = read_back(write_report(run, pieces=pieces))
    assert len(bodies) == len(fewer) == 12
    assert all(group["rollouts"][0]["recorded"] for group in data["groups"])
    listed, told = (
        [sum(there(body) for body in found) for found in (bodies, fewer)]
        for there in (lambda body: "lists" in body, lambda body: "divergence" in body["rollouts"][0])
    )
    assert 0 < listed[1] <= told[1] < listed[0] == told[0] == 12
    assert data["notes"] == [
        f"no room for the divergences of {12 - told[1]} groups and the likeliest tokens of {12 - listed[1]} groups; "
        "--step N shows more of one step"
    ]


def test_a_method_without_a_teacher_shows_the_students_tokens_alone(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", steps=1, sides=("student",))
    lines = lines_in(run, 1)
    for line in lines:
        line.pop("divergence", None)
    (run / "rollouts/1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data, bodies = read_back(write_report(run, pieces=pieces))
    assert [entry["recorded"] for entry in data["groups"][0]["rollouts"]] == [True] * 4
    assert "divergence" not in bodies[0]["rollouts"][0]
    assert "".join(bodies[0]["rollouts"][0]["pieces"]) == lines[0]["output"]
    assert set(bodies[0]["lists"]["rollouts"][0]) == {"student"}
    assert data["scale"] is None


def joined(parts: Sequence[Any] | None, body: Any) -> str | None:
    """A teacher prompt out of its parts, as the page puts it together."""
    if parts is None:
        return None
    return "".join(
        part if isinstance(part, str) else (part[2] if len(part) > 2 else body["rollouts"][part[1]]["output"])
        for part in parts
    )


def test_the_peers_texts_are_marked_in_the_teacher_prompt(tmp_path: Path) -> None:
    data, bodies = read_back(write_report(run_in(tmp_path / "run"), pieces=pieces))
    told = bodies[0]["rollouts"][0]
    assert [part[:2] for part in told["teacher"] if not isinstance(part, str)] == [["primary", 1]]
    assert data["groups"][0]["rollouts"][1]["id"] == told["peers"][0]["rollout_id"]


@given(st.lists(TEXTS, min_size=3, max_size=3), st.text(max_size=40))
def test_the_parts_of_a_teacher_prompt_are_the_prompt(outputs: list[str], between: str) -> None:
    lines = [{"output": output} for output in outputs]
    prompt = between.join(outputs)
    peers = [{"slot": "primary", "rollout_id": str(index), "reason": ""} for index in (2, 0, 1)]
    parts = parts_of(prompt, peers, lines, {str(index): index for index in range(3)})
    assert joined(parts, {"rollouts": lines}) == prompt


@pytest.mark.parametrize("changed", [False, True])
def test_a_teacher_prompt_is_held_against_its_hash(tmp_path: Path, changed: bool) -> None:
    run = run_in(tmp_path / "run", steps=1)
    lines = lines_in(run, 1)
    lines[0][HASH] = hashlib.sha256(lines[0]["teacher_prompt"].encode("utf-8", "surrogatepass")).hexdigest()
    lines[0]["teacher_prompt"] += " " * changed
    (run / "rollouts/1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, bodies = read_back(write_report(run, pieces=pieces))
    assert bodies[0]["rollouts"][0]["hash"] == {"kept": lines[0][HASH], "same": not changed}


def test_a_long_run_is_shown_evenly_and_the_page_says_so(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", steps=9, texts=["short"])
    data, _ = read_back(write_report(run, rollouts=20, pieces=pieces))
    assert [group["uid"] for group in data["groups"]] == ["1-0", "3-0", "5-0", "7-0", "9-0"]
    assert data["notes"] == [
        "20 rollouts of 5 of 9 steps, the first groups of each; --rollouts 200 shows more, --step N one step"
    ]
    data, _ = read_back(write_report(run, steps=[4], pieces=pieces))
    assert [group["uid"] for group in data["groups"]] == ["4-0", "4-1", "4-2"]


def test_a_report_is_no_larger_than_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_in(tmp_path / "run", steps=6, groups=60)
    whole = write_report(run, pieces=pieces).stat().st_size
    monkeypatch.setattr(report, "MOST_BYTES", most := 150_000 + whole // 5)
    file = write_report(run, pieces=pieces)
    data, _ = read_back(file)
    assert file.stat().st_size <= most < whole
    assert {group["step"] for group in data["groups"]} == set(range(1, 7))
    assert "this is what a page has room for" in data["notes"][0]
    assert MOST_BYTES < 10_000_000


@pytest.mark.parametrize("count", [0, 1, 2, 3, 10, 97])
def test_the_first_of_many_lie_evenly_over_all(count: int) -> None:
    order = spread(count)
    assert sorted(order) == list(range(count))
    taken = sorted(order[: max(2, count // 3)])
    gaps = [later - earlier for earlier, later in pairwise(taken)]
    assert not gaps or max(gaps) <= 2 * (count / len(gaps)) + 1


# ------------------------------------------------------------------ curves and times


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300))
def test_a_thinned_curve_keeps_its_extremes_and_makes_nothing_up(values: list[float]) -> None:
    steps = list(range(5, 5 + len(values)))
    kept_steps, kept = thinned((steps, values), 40)
    assert len(kept) <= 40
    assert {min(values), max(values)} <= set(kept)
    assert (kept_steps[0], kept_steps[-1]) == (steps[0], steps[-1])
    assert all(values[step - 5] == value for step, value in zip(kept_steps, kept, strict=True))
    assert kept_steps == sorted(set(kept_steps))


def test_what_was_not_measured_is_no_point_of_a_curve() -> None:
    curves = curves_of([{"step": 0, "a": None, "b": 1}, {"step": 1, "a": 0.5, "b": float("inf"), "c": "x"}])
    assert curves == {"a": ([1], [0.5]), "b": ([0], [1])}


def test_times_add_up_however_many_steps_share_a_column() -> None:
    history = [{"step": step, "timing_s/step": 2.0, "timing_s/learn": 1.0 + step % 2} for step in range(1, 1001)]
    times = times_of(history)
    assert (times["total"], times["every"], len(times["columns"])) == ({"step": 2000.0, "learn": 1500.0}, 5, 200)
    assert sum(times["seconds"]["learn"]) * 5 == pytest.approx(1500)


def test_runs_are_named_by_as_much_of_their_path_as_tells_them_apart() -> None:
    assert distinct(["/x/a", "/x/b"]) == ["a", "b"]
    assert distinct(["/x/a", "/y/a"]) == ["x/a", "y/a"]
    assert len(set(distinct(["/x/a", "/x/a"]))) == 2


def test_a_run_beside_has_its_curves_and_settings(tmp_path: Path) -> None:
    run, other = run_in(tmp_path / "a"), run_in(tmp_path / "b", overrides=["actor_rollout_ref.actor.optim.lr=0.5"])
    assert main([str(run), "--beside", str(other), "--output", str(tmp_path / "r.html")]) == 0
    runs = read_back(tmp_path / "r.html")[0]["runs"]
    assert [entry["name"] for entry in runs] == ["a", "b"]
    assert runs[1]["curves"]["critic/rewards/mean"][0] == [0, 1, 2, 3]
    assert runs[1]["settings"]["actor_rollout_ref.actor.optim.lr"] == "0.5"


# ------------------------------------------------------------------ markup


@given(st.recursive(TEXTS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=20))
def test_data_cannot_leave_its_element(data: Any) -> None:
    text = embedded(data)
    assert json.loads(text) == data
    assert text.isascii()
    assert not set(text) & set("<>&")


@given(TEXTS)
def test_a_title_is_no_markup(text: str) -> None:
    assert re.fullmatch(r"([ !#$%(-;=?-~]|&#\d+;)*", escaped(text))


def test_the_page_is_self_contained_whatever_the_run_says(tmp_path: Path) -> None:
    run = run_in(tmp_path / "<b>&'\"run")
    page = Reader(write_report(run, pieces=pieces).read_text(encoding="utf-8"))
    tags = [tag for tag, _ in page.tags]
    assert (tags.count("script"), tags.count("style"), tags.count("meta")) == (3, 1, 4)
    assert not {"img", "link", "iframe", "object", "base", "form", "b", "i"} & set(tags)
    assert not [tag for tag, given in page.tags for name in given if name in ("src", "href") or name.startswith("on")]
    policy = next(given["content"] for _, given in page.tags if "http-equiv" in given)
    for name in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.inner[name].encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}';" in str(policy)
    assert str(policy).startswith("default-src 'none';")


def test_no_script_of_the_page_makes_markup_of_text() -> None:
    assert {file.name for file in TEMPLATE.glob("*.js")} == set(SCRIPTS)
    for name in SCRIPTS:
        found = re.findall(MARKUP, (TEMPLATE / name).read_text())
        assert not found, f"{name} uses {found}"


# ------------------------------------------------------------------ what may be missing


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nothing")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main([str(run_in(tmp_path / "run")), "--step", "77"]) == 2
    assert "--step 77" in capsys.readouterr().err
    assert main([str(tmp_path / "run"), "--output", str(tmp_path / "no/where.html")]) == 2
    assert "--output names another file" in capsys.readouterr().err


def test_a_broken_line_costs_its_step_and_no_more(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run")
    lines = (run / "rollouts/2.jsonl").read_text(encoding="utf-8").split("\n")
    (run / "rollouts/2.jsonl").write_text("\n".join([*lines[:5], lines[5][:40], *lines[6:]]), encoding="utf-8")
    (run / "rollouts/3.npz").unlink()
    data, bodies = read_back(write_report(run, pieces=pieces))
    assert {group["uid"] for group in data["groups"]} >= {"1-2", "2-0", "3-2"}
    assert any("2.jsonl, rollout 5" in note for note in data["notes"])
    last = bodies[[group["uid"] for group in data["groups"]].index("3-0")]
    assert "divergence" not in last["rollouts"][0]


def test_a_token_is_decoded_once_however_often_it_was_said(tmp_path: Path) -> None:
    asked: list[int] = []

    def counted(token_ids: IntArray) -> list[str]:
        asked.extend(token_ids.tolist())
        return pieces(token_ids)

    write_report(run_in(tmp_path / "run"), pieces=counted)
    assert len(asked) == len(set(asked)) > 10


def test_a_run_without_rollouts_or_tokenizer_has_a_report(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", texts=["plain"])
    data, bodies = read_back(write_report(run))
    assert bodies[0]["rollouts"][0]["pieces"] is None
    for file in (run / "rollouts").iterdir():
        file.unlink()
    data, bodies = read_back(write_report(run))
    assert (data["groups"], bodies, data["scale"]) == ([], [], None)


def test_a_report_that_fails_at_the_end_of_a_run_is_told_and_harms_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_in(tmp_path / "run")
    assert report_at_end(run, pieces) == run / "report.html"
    (run / "config.yaml").unlink()
    with caplog.at_level(logging.WARNING, "mopd"):
        assert report_at_end(run, pieces) is None
    assert "no report.html was written" in caplog.text
