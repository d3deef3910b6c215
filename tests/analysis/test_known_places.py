"""Where the right next token is known: exactly on the embedded task, by the verifier's word elsewhere, else nowhere."""

import random

import pytest
from known_places import answer_places, chain_places, places_of

from data import chain


def test_chain_places_are_those_of_the_embedded_task():
    """Right is the true result of the operands as written; flawed, a prefix with a result that is not the true one."""
    draw = random.Random(0)
    for _ in range(200):
        problem = chain.sample_problem(draw)
        results = chain.sample_results(problem, draw)
        text = "\n" * draw.randrange(2) + problem.response(results)
        found = chain_places(problem.text, text)
        true = chain.true_results(problem)
        assert [place.right for place in found] == [str(chain.TABLE[key].true) for key in problem.keys(results[:-1])]
        assert [text[place.start : place.start + 1] for place in found] == [str(result) for result in results]
        assert [place.flawed for place in found] == [results[:step] != true[:step] for step in range(len(results))]
        assert {place.rule for place in found} == {"step"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1 + 2 = 3",
        "1 + 2 = 3 ; 3 + 3 = 6 ; 6 + 4 = 0 ; 0 + 1 = 1",
        "1 + 2 = 3 ; 4 + 3 = 7 ; 7 + 4 = 1",
        "x ; y ; z",
    ],
)
def test_what_is_no_chain_of_the_problem_has_no_place(text):
    """Too short, too long, of operands that are not carried on, of something else."""
    assert chain_places("calc 1 + 2 + 3 + 4", text) == []
    assert chain_places("no question", "1 + 2 = 3") == []


def test_a_wrong_choice_is_known_by_the_verifier():
    wrong = "<reasoning>B it is? No, C.</reasoning><answer>C</answer>"
    (place,) = answer_places("sciknoweval", wrong, "A", {})
    assert (place.written, place.right, place.flawed, place.rule) == ("C", "A", True, "answer")
    assert wrong[: place.start].endswith("<answer>")


def test_only_failures_with_an_answer_and_a_verifier_have_such_places():
    wrong, told = "<answer>C</answer>", {"ground_truth": "A", "extra": {}}
    assert places_of("sciknoweval", "q", wrong, success=False, **told)
    assert not places_of("sciknoweval", "q", wrong, success=True, **told)
    assert not places_of("sciknoweval", "q", wrong, success=None, **told)
    assert not places_of("nobody", "q", wrong, success=False, **told)
    assert not places_of("sciknoweval", "q", "no answer at all", success=False, **told)
    assert not places_of("livecodebench", "q", "print(1)", success=False, ground_truth="[]", extra={})
