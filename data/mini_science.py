"""Multiple-choice questions of chemistry and physics, worked out from a small table of elements."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mini_problem import Problem, letter_options
from sources_base import CHOICE_REQUEST, Task
from sources_choice import LETTERS, SCIENCE_SYSTEM, choices


@dataclass(frozen=True)
class Element:
    """A line of the periodic table."""

    number: int
    symbol: str
    name: str
    mass: float
    """Standard atomic mass in g/mol."""


TABLE = """1 H hydrogen 1.008;2 He helium 4.003;3 Li lithium 6.94;4 Be beryllium 9.012;5 B boron 10.81;6 C carbon 12.011
7 N nitrogen 14.007;8 O oxygen 15.999;9 F fluorine 18.998;10 Ne neon 20.180;11 Na sodium 22.990;12 Mg magnesium 24.305
13 Al aluminium 26.982;14 Si silicon 28.085;15 P phosphorus 30.974;16 S sulfur 32.06;17 Cl chlorine 35.45
18 Ar argon 39.95;19 K potassium 39.098;20 Ca calcium 40.078;26 Fe iron 55.845;29 Cu copper 63.546;30 Zn zinc 65.38
35 Br bromine 79.904;47 Ag silver 107.868;53 I iodine 126.904"""
LINES = [line.split() for line in TABLE.replace("\n", ";").split(";")]
ELEMENTS = [Element(int(number), symbol, name, float(mass)) for number, symbol, name, mass in LINES]
BY_SYMBOL = {element.symbol: element for element in ELEMENTS}
COMPOUNDS = """
H2O CO2 NaCl CaCO3 H2SO4 HNO3 NH3 CH4 C2H6 C3H8 C2H4 C2H2 C6H6 C6H12O6 C2H6O CH4O NaOH KOH HCl HF HBr MgO CaO
Al2O3 Fe2O3 CuO ZnO SiO2 SO2 SO3 NO2 N2O P2O5 CaCl2 MgCl2 AlCl3 FeCl3 KBr KI NaF LiF AgCl AgNO3 CuSO4 Na2CO3
K2CO3 H3PO4 H2S CS2 CCl4 CHCl3 PCl3 PCl5 NaNO3 KNO3 ZnS FeS CaF2 MgSO4 Na2SO4 LiCl BeO B2O3 C3H6O C4H10 C5H12
C8H18
"""
IONS = {"Li": 1, "Na": 1, "K": 1, "Ag": 1, "Be": 2, "Mg": 2, "Ca": 2, "Zn": 2, "Cu": 2, "Fe": 3, "Al": 3} | {
    "F": -1, "Cl": -1, "Br": -1, "I": -1, "O": -2, "S": -2, "N": -3, "P": -3
}  # fmt: skip
"""The usual charge of common ions."""

Drawn = tuple[str, str, list[str], str]
"""Question, right option, wrong options, and the reason."""


def atoms(formula: str) -> dict[str, int]:
    """How many atoms of each element a formula without brackets has. Example: H2O has {H: 2, O: 1}."""
    return {symbol: int(count or 1) for symbol, count in re.findall(r"([A-Z][a-z]?)(\d*)", formula)}


def molar_mass(formula: str) -> float:
    """In g/mol."""
    return added(BY_SYMBOL[symbol].mass * count for symbol, count in atoms(formula).items())


def added(values: Iterable[float]) -> float:
    """Their sum, rounded at every step: `sum` does so before Python 3.12 only, and the rows are to be the same."""
    total = 0.0
    for value in values:
        total += value
    return total


def near(value: float, unit: str, rng: random.Random, digits: int = 2) -> tuple[str, list[str]]:
    """A quantity as text, and others that a slip might give."""
    slips = [2.0, 0.5, 1.5, 0.75, 1.25, 3.0, 0.1, 10.0]
    rng.shuffle(slips)
    right, *wrong = (f"{number:.{digits}f} {unit}" for number in [value, *(value * slip for slip in slips)])
    return right, wrong


def mass_of(rng: random.Random) -> Drawn:
    """Molar mass of a compound."""
    formula = rng.choice(COMPOUNDS.split())
    mass = molar_mass(formula)
    single = added(BY_SYMBOL[symbol].mass for symbol in atoms(formula))
    wrong = [single, *(mass + sign * BY_SYMBOL[symbol].mass for symbol in atoms(formula) for sign in (1, -1)), 2 * mass]
    texts = [f"{value:.2f} g/mol" for value in wrong if value > 0.5]
    rng.shuffle(texts)
    texts.append(f"{mass + 10:.2f} g/mol")
    return f"What is the molar mass of {formula}?", f"{mass:.2f} g/mol", texts, f"The atoms add up to {mass:.2f} g/mol."


def amount(rng: random.Random) -> Drawn:
    """Amount of substance in a mass."""
    formula, moles = rng.choice(COMPOUNDS.split()), rng.choice((0.25, 0.5, 1.5, 2.0, 2.5, 3.0, 4.0))
    grams = f"{moles * molar_mass(formula):.1f}"
    right, wrong = near(moles, "mol", rng)
    question = f"How many moles are in {grams} g of {formula}?"
    return question, right, wrong, f"{grams} / {molar_mass(formula):.2f} is about {moles}."


def share(rng: random.Random) -> Drawn:
    """Mass percentage of an element in a compound."""
    formula = rng.choice(COMPOUNDS.split())
    symbol = rng.choice(sorted(atoms(formula)))
    part = BY_SYMBOL[symbol].mass * atoms(formula)[symbol] / molar_mass(formula) * 100
    values = [100 - part, part / 2, part * 0.8, part * 1.1, part * 0.6, part / 3]
    texts = [f"{value:.1f} %" for value in values if 0 < value < 100]
    question = f"What percentage of the mass of {formula} is {BY_SYMBOL[symbol].name}?"
    return question, f"{part:.1f} %", texts, f"The share of {symbol} is {part:.1f} %."


def burning(rng: random.Random) -> Drawn:
    """Oxygen that a hydrocarbon needs: n C and m H take n + m/4."""
    formula = rng.choice(["CH4", "C2H6", "C3H8", "C4H10", "C5H12", "C8H18", "C2H4", "C2H2", "C6H6"])
    moles = rng.choice((1, 2, 3, 4, 6, 8))
    counts = atoms(formula)
    right, wrong = near(moles * (counts["C"] + counts["H"] / 4), "mol", rng)
    question = f"How many moles of O2 does the complete combustion of {moles} mol of {formula} take?"
    return question, right, wrong, "Each C takes one O2 and each H a quarter of one."


def electrons(rng: random.Random) -> Drawn:
    """Electrons of an ion."""
    symbol = rng.choice(sorted(IONS))
    charge, number = IONS[symbol], BY_SYMBOL[symbol].number
    shown = f"{abs(charge) if abs(charge) > 1 else ''}{'+' if charge > 0 else '-'}"
    others = [number, number + charge, number - charge + 1, number - charge - 1, number + 8, number + 3]
    question = f"How many electrons does the ion {symbol}{shown} have?"
    wrong = [str(other) for other in others if other != number - charge]
    return question, str(number - charge), wrong, f"{number} protons and a charge of {charge:+d}."


def identify(rng: random.Random) -> Drawn:
    """Which element has a property."""
    right, *others = rng.sample(ELEMENTS, 4)
    question = rng.choice(
        [
            f"Which element has the atomic number {right.number}?",
            f"Which element has the symbol {right.symbol}?",
            f"Which element has an atomic mass of about {right.mass:.1f} g/mol?",
        ]
    )
    return question, right.name, [other.name for other in others], f"It is {right.name}."


def mechanics(rng: random.Random) -> Drawn:
    """One formula of physics with numbers."""
    a, b = rng.randrange(2, 40), rng.randrange(2, 25)
    laws: list[tuple[str, float, str]] = [
        (f"What net force gives a mass of {a} kg an acceleration of {b} m/s^2?", a * b, "N"),
        (f"What is the kinetic energy of {a} kg moving at {b} m/s?", a * b * b / 2, "J"),
        (f"What voltage drives a current of {b} A through {a} ohm?", a * b, "V"),
        (f"What is the speed of a wave of {a} Hz and a wavelength of {b} m?", a * b, "m/s"),
        (f"What is the momentum of {a} kg moving at {b} m/s?", a * b, "kg m/s"),
        (f"What power turns {a * b} J in {b} s?", a, "W"),
    ]
    question, value, unit = rng.choice(laws)
    right, wrong = near(value, unit, rng, 1)
    return question, right, wrong, f"The formula gives {right}."


DRAWS: tuple[Callable[[random.Random], Drawn], ...] = (
    mass_of, amount, share, burning, electrons, identify, mechanics
)  # fmt: skip


def draw(rng: random.Random) -> Problem:
    """A question of any sort."""
    question, right, wrong, reason = rng.choice(DRAWS)(rng)
    options, place = letter_options(right, wrong, rng)
    prompt = choices(question, options) + CHOICE_REQUEST
    task = Task("mcq", "sciknoweval", question, prompt, LETTERS[place], system=SCIENCE_SYSTEM)
    return Problem(task, f"<reasoning>\n{reason}\n</reasoning>\n<answer>\n{LETTERS[place]}\n</answer>", question)
