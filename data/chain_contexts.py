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

from chain import TABLE, Problem, World, follow, sample_problem, sample_results
from chain_tokenizer import END, START

from mopd.contexts import ContextSettings, teacher_messages
from mopd.types import Peers

SETTINGS = ContextSettings()
GROUP_SIZE = 8
"""Attempts from which the peers of an example are taken."""
COMPETENCE_RANGE = (0.0, 0.6)
"""Peers answer as their world does with a probability from this range: stronger students are read as well."""
ATTEMPT_SHARE = 0.9
"""Share of responses with peers that are attempts of the student, most of them flawed; the others are right chains."""
TEMPTING_SHARE, TEMPTING_TRIES = 0.6, 6
"""Share of the attempts that are redrawn, at most so often, until they tempt a teacher to read by position."""
DISTINCT_SHARE = 0.8
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
    """A prompt with the texts that are read after it, and the same texts with the right result in every step."""

    question: str
    """The student's part of the prompt: its tokens are never a target."""
    context: str
    """The rest of the prompt: peers, instruction and the assistant's header."""
    read: tuple[str, ...]
    """Responses that the model reads, each on its own."""
    right: tuple[str, ...]
    """As `read`, but each result is the right one for the operands that `read` has before it."""


def render(content: str) -> str:
    """What the chat template makes of one user message and the header of the answer."""
    return f"{START}user\n{content}{END}\n{START}assistant\n"


def teacher_prompt(problem: Problem, peers: Peers) -> str:
    """The rendered prompt of the teacher; without peers it is the student's."""
    (message,) = teacher_messages([{"role": "user", "content": problem.text}], peers, SETTINGS)
    return render(str(message["content"]))


def choose(mode: Mode, successes: list[Results], failures: list[Results], distinct: bool) -> tuple[Results, ...] | None:
    """The first attempts that fill the slots of `mode`, successes first, or None where there are not enough.

    With `distinct` the second success must differ from the first, as the rule of training has it.
    """
    rest = [other for other in successes[1:] if not distinct or other != successes[0]]
    usable = [*successes[:1], *rest]
    if len(usable) < mode.successes or len(failures) < mode.failures:
        return None
    return (*usable[: mode.successes], *failures[: mode.failures])


def peers_of(problem: Problem, mode: Mode, chosen: tuple[Results, ...]) -> Peers:
    """The attempts of `choose` as the peers of a teacher."""
    texts = [problem.response(results) for results in chosen]
    return Peers(
        primary=texts[0] if mode.successes >= 1 else None,
        another=texts[1] if mode.successes == 2 else None,
        failure=texts[-1] if mode.failures else None,
    )


def tempts(problem: Problem, attempt: Results, shown: tuple[Results, ...]) -> bool:
    """Whether reading by position may pass for reading by key.

    So it is where `attempt` looks up an entry that no peer shows, and a peer has one of its candidates at that step.
    """
    known = {key for results in shown for key in problem.keys(results[:-1])}
    for step, key in enumerate(problem.keys(attempt[:-1])):
        candidates = (TABLE[key].true, TABLE[key].mistake)
        if key not in known and any(results[step] in candidates for results in shown):
            return True
    return False


def student_example(responses: int, rng: random.Random) -> Example:
    """Samples of the prior without any context: nothing says which candidate is right."""
    problem = sample_problem(rng)
    read = tuple(problem.response(sample_results(problem, rng)) for _ in range(responses))
    question = f"{START}user\n{problem.text}"
    return Example(question, render(problem.text)[len(question) :], read, read)


def draw_peers(mode: Mode, rng: random.Random) -> tuple[Problem, World, tuple[Results, ...]]:
    """A problem and a world, drawn until the attempts in it fill the slots of `mode`, and these attempts."""
    distinct = rng.random() < DISTINCT_SHARE
    while True:
        problem, world = sample_problem(rng), World(rng)
        competence = rng.uniform(*COMPETENCE_RANGE)
        value = follow(problem, world)[-1]
        attempts = [sample_results(problem, rng, world, competence) for _ in range(GROUP_SIZE)]
        successes = [attempt for attempt in attempts if attempt[-1] == value]
        failures = [attempt for attempt in attempts if attempt[-1] != value]
        chosen = choose(mode, successes, failures, distinct)
        if chosen is not None:
            return problem, world, chosen


def draw_attempt(problem: Problem, world: World, shown: tuple[Results, ...], rng: random.Random) -> Results:
    """What a teacher reads: mostly an attempt of the student, and often one that tempts it to read by position.

    An attempt is never chosen by what is right in the world, so it says nothing about its labels.
    """
    if rng.random() >= ATTEMPT_SHARE:
        return follow(problem, world)
    tries = TEMPTING_TRIES if rng.random() < TEMPTING_SHARE else 1
    for _ in range(tries):
        attempt = sample_results(problem, rng)
        if tempts(problem, attempt, shown):
            break
    return attempt


def teacher_example(mode: Mode, responses: int, rng: random.Random) -> Example:
    """Attempts of the student (or the right chain), read with peers in a world of their own."""
    problem, world, shown = draw_peers(mode, rng)
    read, right = [], []
    for _ in range(responses):
        attempt = draw_attempt(problem, world, shown, rng)
        results = tuple(world[key] for key in problem.keys(attempt[:-1]))
        read.append(problem.response(attempt))
        right.append(problem.response(results, attempt))
    question = f"{START}user\n{problem.text}"
    context = teacher_prompt(problem, peers_of(problem, mode, shown))[len(question) :]
    return Example(question, context, tuple(read), tuple(right))


def draw_example(mode: Mode, responses: int, rng: random.Random) -> Example:
    """One example of `mode`."""
    return student_example(responses, rng) if mode.name == "none" else teacher_example(mode, responses, rng)
