"""Requests that one or two calls of a small API answer, some with nested arguments."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mini_problem import Problem
from sources_base import Task

CITIES = ("Bern", "Oslo", "Lima", "Cairo", "Kyoto", "Perth", "Quito", "Riga", "Tunis", "Dakar")
PEOPLE = ("Ada", "Ben", "Chloe", "Dev", "Emma", "Farid", "Grace", "Hugo", "Ines", "Jun")
GOODS = ("tea", "rice", "soap", "bread", "milk", "lamps", "cups", "honey")
TOPICS = ("budget", "garden", "holiday", "roof", "choir", "school", "concert", "move")


@dataclass(frozen=True)
class Tool:
    """A function of an API."""

    name: str
    purpose: str
    parameters: Mapping[str, Any]
    """Names and, in words, types; nested as the arguments are."""
    result: str
    draw: Callable[[random.Random], tuple[str, dict[str, Any]]]
    """Draws a request in words and the arguments that it means."""


def forecast(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A weather forecast."""
    city, days = rng.choice(CITIES), rng.randrange(2, 8)
    return f"What will the weather in {city} be over the next {days} days?", {"city": city, "days": days}


def convert(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A conversion of money."""
    amount, (source, target) = rng.randrange(10, 500), rng.sample(("EUR", "USD", "CHF", "JPY"), 2)
    return f"How much is {amount} {source} in {target}?", {"amount": amount, "source": source, "target": target}


def event(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A meeting with guests."""
    topic, day, hour = rng.choice(TOPICS), rng.randrange(1, 29), rng.randrange(8, 19)
    guests = sorted(rng.sample(PEOPLE, 2))
    start = {"date": f"2026-05-{day:02d}", "hour": hour}
    request = f"Plan a meeting titled {topic} on {start['date']}, starting in hour {hour}, with {' and '.join(guests)}."
    return request, {"title": topic, "start": start, "guests": guests}


def order(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A purchase of two goods."""
    goods, city, number = rng.sample(GOODS, 2), rng.choice(CITIES), rng.randrange(1, 99)
    items = [{"name": name, "quantity": rng.randrange(1, 9)} for name in goods]
    wanted = " and ".join(f"{item['quantity']} {item['name']}" for item in items)
    address = {"city": city, "house": number}
    return f"Order {wanted} to house {number} in {city}.", {"items": items, "address": address}


def timer(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A timer with a label."""
    minutes, label = rng.randrange(2, 90), rng.choice(GOODS)
    return f"Set a timer labelled {label} to {minutes} minutes.", {"minutes": minutes, "label": label}


def note(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A note with a flag."""
    topic, name, urgent = rng.choice(TOPICS), rng.choice(PEOPLE), rng.random() < 0.5
    text = f"ask {name} about the {topic}"
    return f"Write {'an urgent' if urgent else 'a plain'} note: {text}.", {"text": text, "urgent": urgent}


TOOLS = (
    Tool("getForecast", "Weather of the next days.", {"city": "string", "days": "integer"}, "Array[string]", forecast),
    Tool(
        "convertMoney",
        "Converts an amount between currencies.",
        {"amount": "integer", "source": "string", "target": "string"},
        "number",
        convert,
    ),
    Tool(
        "createEvent",
        "Puts a meeting into the calendar.",
        {"title": "string", "start": {"date": "string", "hour": "integer"}, "guests": "Array[string]"},
        "Object{id}",
        event,
    ),
    Tool(
        "placeOrder",
        "Orders goods.",
        {"items": "Array[Object{name, quantity}]", "address": {"city": "string", "house": "integer"}},
        "Object{id}",
        order,
    ),
    Tool("setTimer", "Starts a timer.", {"minutes": "integer", "label": "string"}, "Object{id}", timer),
    Tool("addNote", "Keeps a note.", {"text": "string", "urgent": "boolean"}, "Object{id}", note),
)
TWICE = 0.25
"""How often a request needs two calls."""

PROMPT = """Your task is to answer the user's question using available tools.
You have access to the following tools:
Name: Desk
Documentation:
{tools}

Use the following format:
Thought: what to do next
Action: the name of one tool
Action Input: its input, as one JSON object

Begin!
Question: {question}"""


def document(tool: Tool) -> str:
    """What the prompt says of a tool."""
    return f"{tool.name}: {tool.purpose}\nParameters: {json.dumps(tool.parameters)}\nOutput: {tool.result}"


def draw(rng: random.Random) -> Problem:
    """A request with three tools to choose from."""
    tools = rng.sample(TOOLS, 3)
    wanted = [rng.choice(tools) for _ in range(2 if rng.random() < TWICE else 1)]
    drawn = [tool.draw(rng) for tool in wanted]
    question = " Then: ".join(request for request, _ in drawn)
    calls = [(tool.name, json.dumps(arguments)) for tool, (_, arguments) in zip(wanted, drawn, strict=True)]
    prompt = PROMPT.format(tools="\n".join(map(document, tools)), question=question)
    return Problem(Task("tooluse", "tooluse", question, prompt, truth(calls)), response(calls), question)


def truth(calls: Sequence[tuple[str, str]]) -> str:
    """The ground truth of calls (name, arguments as JSON)."""
    return json.dumps([{"Action": name, "Action_Input": arguments} for name, arguments in calls])


def response(calls: Sequence[tuple[str, str]]) -> str:
    """A response that makes the calls."""
    return "\n".join(f"Thought: I need {name}.\nAction: {name}\nAction Input: {arguments}" for name, arguments in calls)
