"""Word problems of arithmetic and algebra with one exact answer."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from fractions import Fraction

from mini_problem import Problem
from sources_maths import task

NAMES = ("Ada", "Ben", "Chloe", "Dev", "Emma", "Farid", "Grace", "Hugo", "Ines", "Jun")
THINGS = ("apples", "pencils", "stamps", "marbles", "tickets", "books", "shells", "coins")

Drawn = tuple[str, int | Fraction]
"""Question and answer."""


def shopping(rng: random.Random) -> Drawn:
    """What is left after buying."""
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    count, price, extra = rng.randrange(2, 13), rng.randrange(2, 16), rng.randrange(1, 60)
    question = f"{name} has {count * price + extra} euros and buys {count} {thing} for {price} euros each."
    return f"{question} How many euros are left?", extra


def sharing(rng: random.Random) -> Drawn:
    """Remainder of a fair division."""
    friends, each, left, thing = rng.randrange(3, 12), rng.randrange(4, 30), rng.randrange(0, 3), rng.choice(THINGS)
    total = friends * each + left
    return f"{total} {thing} are shared fairly among {friends} friends. How many does each get at most?", each


def travel(rng: random.Random) -> Drawn:
    """Distance at two speeds."""
    a, b, s, t = rng.randrange(20, 90, 5), rng.randrange(20, 90, 5), rng.randrange(1, 6), rng.randrange(1, 6)
    question = f"A train goes {a} km/h for {s} hours and then {b} km/h for {t} hours."
    return f"{question} What is its average speed in km/h?", Fraction(a * s + b * t, s + t)


def percentage(rng: random.Random) -> Drawn:
    """A price after a rise and a fall."""
    price, up, down = rng.randrange(100, 900, 100), rng.choice((10, 20, 25, 50)), rng.choice((10, 20, 25, 50))
    question = f"A price of {price} euros rises by {up} percent and then falls by {down} percent."
    return f"{question} What is it now, in euros?", Fraction(price * (100 + up) * (100 - down), 10_000)


def linear(rng: random.Random) -> Drawn:
    """One equation in x."""
    a, b, c, d = (
        rng.randrange(2, 12),
        rng.randrange(-20, 21),
        rng.choice((-5, -4, -3, -2, -1, 1)),
        rng.randrange(-20, 21),
    )
    return f"Solve for x: {a}x + ({b}) = ({c})x + ({d}).", Fraction(d - b, a - c)


def system(rng: random.Random) -> Drawn:
    """Two numbers from sum and difference."""
    low, gap = rng.randrange(-30, 60), rng.randrange(1, 50)
    question = f"Two numbers have the sum {2 * low + gap} and the difference {gap}. What is the larger one?"
    return question, low + gap


def quadratic(rng: random.Random) -> Drawn:
    """The larger root."""
    p, q = rng.sample(range(-12, 13), 2)
    return f"What is the larger root of x^2 + ({-p - q})x + ({p * q}) = 0?", max(p, q)


def divisors(rng: random.Random) -> Drawn:
    """Greatest common divisor or least common multiple."""
    unit = rng.randrange(2, 15)
    a, b = unit * rng.randrange(2, 15), unit * rng.randrange(2, 15)
    if rng.random() < 0.5:
        return f"What is the greatest common divisor of {a} and {b}?", math.gcd(a, b)
    return f"What is the least common multiple of {a} and {b}?", math.lcm(a, b)


def series(rng: random.Random) -> Drawn:
    """Sum of an arithmetic series."""
    first, step, count = rng.randrange(1, 15), rng.randrange(2, 9), rng.randrange(5, 20)
    shown = ", ".join(str(first + step * place) for place in range(3))
    question = f"What is the sum of the first {count} terms of the arithmetic sequence {shown}, ...?"
    return question, count * (2 * first + step * (count - 1)) // 2


def committee(rng: random.Random) -> Drawn:
    """Ways to choose."""
    people, seats = rng.randrange(5, 13), rng.randrange(2, 5)
    return f"In how many ways can {seats} of {people} people be chosen, if order does not count?", math.comb(
        people, seats
    )


def urn(rng: random.Random) -> Drawn:
    """Chance of two balls of one colour."""
    red, blue = rng.randrange(2, 9), rng.randrange(2, 9)
    total = red + blue
    question = f"An urn holds {red} red and {blue} blue balls; two are drawn without putting back."
    return f"{question} What is the probability that both are red?", Fraction(red * (red - 1), total * (total - 1))


def rest(rng: random.Random) -> Drawn:
    """A power modulo a small number."""
    base, exponent, modulus = rng.randrange(2, 13), rng.randrange(5, 60), rng.randrange(5, 20)
    return f"What is the remainder of {base}^{{{exponent}}} divided by {modulus}?", pow(base, exponent, modulus)


DRAWS: tuple[Callable[[random.Random], Drawn], ...] = (
    shopping, sharing, travel, percentage, linear, system, quadratic, divisors, series, committee, urn, rest
)  # fmt: skip


def latex(value: int | Fraction) -> str:
    """A number as published answers write it."""
    number = Fraction(value)
    if number.denominator == 1:
        return str(number.numerator)
    return f"{'-' * (number < 0)}\\frac{{{abs(number.numerator)}}}{{{number.denominator}}}"


def draw(rng: random.Random) -> Problem:
    """A problem of any sort."""
    question, answer = rng.choice(DRAWS)(rng)
    return Problem(task("math", question, latex(answer)), f"The answer is \\boxed{{{latex(answer)}}}.", question)
