"""Examples for the warm start of `chain`: what a student and a teacher read, and what they should write next.

Each example lives in a world of its own, in which the right candidate of every entry is drawn anew. A teacher
can therefore only be better than the student by reading its peers; the weights cannot know the true candidate.

Most teachers read a flawed rollout of the student, as they do in training, and the label of each token is the
right one *after what was really written*: a result is that of the operands before it, also off the peers'
path. Without these examples a teacher copies its peer's tokens by position, and training on it makes the
student worse.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from chain import Problem, World, follow, sample_problem, sample_results
from chain_tokenizer import END, START

from mopd.contexts import ContextSettings, teacher_messages
from mopd.types import Peers

SETTINGS = ContextSettings()
GROUP_SIZE = 8
"""Attempts from which the peers of an example are taken."""
COMPETENCE_RANGE = (0.0, 0.6)
"""Peers answer as their world does with a probability from this range: stronger students are read as well."""
FLAWED_SHARE = 0.85
"""Share of teacher examples that read a flawed attempt of the student; the others read the right chain."""
DISTINCT_SHARE = 0.5
"""Share of two-success examples whose two texts must differ; in training they always do."""

Results = tuple[int, ...]


@dataclass(frozen=True)
class Mode:
    """Which peers a context shows. Example: `Mode("1S1F", 1, 1)` shows a success and a failure."""

    name: str
    successes: int
    failures: int


MODES = (
    Mode("none", 0, 0),
    Mode("1S", 1, 0),
    Mode("2S", 2, 0),
    Mode("1S1F", 1, 1),
    Mode("2S1F", 2, 1),
    Mode("1F", 0, 1),
)


@dataclass(frozen=True)
class Example:
    """A prompt with the text that is read after it, and the same text with the right result in every step."""

    question: str
    """The student's part of the prompt: its tokens are never a target."""
    context: str
    """The rest of the prompt: peers, instruction and the assistant's header."""
    read: str
    """The response that the model reads."""
    right: str
    """As `read`, but each result is the right one for the operands that `read` has before it."""


def render(content: str) -> str:
    """What the chat template makes of one user message and the header of the answer."""
    return f"{START}user\n{content}{END}\n{START}assistant\n"


def teacher_prompt(problem: Problem, peers: Peers) -> str:
    """The rendered prompt of the teacher; without peers it is the student's."""
    (message,) = teacher_messages([{"role": "user", "content": problem.text}], peers, SETTINGS)
    return render(str(message["content"]))


def choose_peers(
    problem: Problem, mode: Mode, successes: list[Results], failures: list[Results], distinct: bool
) -> Peers | None:
    """The first attempts that fill the slots of `mode`, or None where there are not enough.

    With `distinct` the second success must differ from the first, as the rule of training has it.
    """
    if len(successes) < mode.successes or len(failures) < mode.failures:
        return None
    others = [other for other in successes[1:] if not distinct or other != successes[0]]
    if mode.successes == 2 and not others:
        return None
    return Peers(
        primary=problem.response(successes[0]) if mode.successes else None,
        another=problem.response(others[0]) if mode.successes == 2 else None,
        failure=problem.response(failures[0]) if mode.failures else None,
    )


def student_example(rng: random.Random) -> Example:
    """A sample of the prior without any context: nothing says which candidate is right."""
    problem = sample_problem(rng)
    response = problem.response(sample_results(problem, rng))
    question = f"{START}user\n{problem.text}"
    return Example(question, render(problem.text)[len(question) :], response, response)


def teacher_example(mode: Mode, rng: random.Random) -> Example:
    """A rollout read with peers, in a world drawn until its attempts fill the slots of `mode`."""
    distinct = rng.random() < DISTINCT_SHARE
    while True:
        problem, world = sample_problem(rng), World(rng)
        competence = rng.uniform(*COMPETENCE_RANGE)
        right = follow(problem, world)
        attempts = [sample_results(problem, rng, world, competence) for _ in range(GROUP_SIZE)]
        successes = [attempt for attempt in attempts if attempt[-1] == right[-1]]
        failures = [attempt for attempt in attempts if attempt[-1] != right[-1]]
        peers = choose_peers(problem, mode, successes, failures, distinct)
        if peers is not None:
            break
    written = right
    if rng.random() < FLAWED_SHARE:
        while written == right:
            written = sample_results(problem, rng)
    labels = tuple(world[key] for key in problem.keys(written[:-1]))
    question = f"{START}user\n{problem.text}"
    context = teacher_prompt(problem, peers)[len(question) :]
    return Example(question, context, problem.response(written), problem.response(labels, written))


def draw_example(mode: Mode, rng: random.Random) -> Example:
    """One example of `mode`."""
    return student_example(rng) if mode.name == "none" else teacher_example(mode, rng)
