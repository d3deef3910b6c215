"""Rollout lines of the embedded task, drawn from a seed, and the commands that make a data set of them."""

import json
import random

SIGNS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


def chain(operands, signs, slips):
    """The response that works out an expression, `slips[i]` too much at step i; and its last result."""
    left, steps = operands[0], []
    for sign, operand, slip in zip(signs, operands[1:], slips, strict=True):
        value = (SIGNS[sign](left, operand) + slip) % 10
        steps.append(f"{left} {sign} {operand} = {value}")
        left = value
    return " ; ".join(steps), left


def lines(seed=0, prompts=4, attempts=6, step=1):
    """What a run of this project writes to `rollouts/<step>.jsonl`, as far as analysis reads it."""
    draw, found = random.Random(seed), []
    for number in range(prompts):
        operands, signs = [draw.randrange(10) for _ in range(4)], [draw.choice("+-*") for _ in range(3)]
        asked = f"calc {operands[0]} " + " ".join(f"{sign} {n}" for sign, n in zip(signs, operands[1:], strict=True))
        _, value = chain(operands, signs, (0, 0, 0))
        for attempt in range(attempts):
            slips = [draw.choice((0, 0, 1, 2)) for _ in signs]
            text, got = chain(operands, signs, slips if attempt else (0, 0, 0))
            right = got == value
            found.append(
                {
                    "input": f"user\n{asked}\nassistant\n",
                    "output": text,
                    "gts": json.dumps({"steps": 3, "value": value}),
                    "score": float(right),
                    "step": step,
                    "uid": f"{step}-{number}",
                    "prompt_id": str(number),
                    "rollout_id": f"{step}-{number}-{attempt}",
                    "data_source": "chain",
                    "success": right,
                    "status": "right" if right else "wrong",
                    "feedback": "" if right else f"attempt {attempt} is wrong",
                    "finish_reason": "stop",
                }
            )
    return found


def write(file, rows):
    """Writes rows as JSON Lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def read(file):
    """The rows of a file."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def run(command, *arguments):
    """The exit code of a command's `main`."""
    return command.main([str(argument) for argument in arguments])
