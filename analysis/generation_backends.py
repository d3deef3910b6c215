"""Who writes strong responses: a server that speaks OpenAI's protocol, or weights on this machine.

A server may be OpenAI, OpenRouter, or one of your own (`vllm serve MODEL`, then `--backend openai --base-url
http://localhost:8000/v1`). The key is read from the environment alone, goes to the named server only, and into no
message.
"""

from __future__ import annotations

import http.client
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from json_lines import BadInput, brief

SERVERS = {
    "openai": ("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "openrouter": ("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
}
"""By backend: its address, and the variable that holds its key."""
HERE = ("localhost", "127.0.0.1", "::1")
LARGEST = 2**24
"""Bytes of an answer."""
LONGEST_WAIT_S = 60.0
FIRST_WAIT_S = 1.0
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""Answers after which it is worth to ask again."""

Messages = Sequence[Mapping[str, Any]]


class GaveUp(Exception):
    """A server did not answer one request, however often it was asked; the message says why."""


class Backend(Protocol):
    """Writes responses."""

    def answer(self, messages: Messages, seed: int) -> str:
        """A response to a conversation.

        Raises:
            GaveUp: there is none this time.
            BadInput: there will never be one.
        """

    def close(self) -> None:
        """Nothing more is asked: whoever waits to ask again gives up."""


@dataclass(frozen=True)
class Generation:
    """How responses are written."""

    temperature: float
    max_new_tokens: int


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows nobody elsewhere, for the key is meant for the server that was named."""

    def redirect_request(self, *arguments: Any, **others: Any) -> None:
        """Refuses."""


@dataclass(frozen=True)
class Server:
    """A server that speaks OpenAI's protocol."""

    base_url: str
    model: str
    generation: Generation
    key: str = field(repr=False)
    """Empty for none."""
    max_retries: int = 5
    timeout_s: float = 120.0
    closed: threading.Event = field(default_factory=threading.Event, repr=False)

    def answer(self, messages: Messages, seed: int) -> str:
        """See `Backend`."""
        body = {
            "model": self.model,
            "messages": [dict(message) for message in messages],
            "temperature": self.generation.temperature,
            "max_tokens": self.generation.max_new_tokens,
            "seed": seed,
        }
        for tried in range(self.max_retries + 1):
            try:
                return self.text_of(self.ask(body))
            except Again as refusal:
                if tried == self.max_retries:
                    raise GaveUp(f"asked {tried + 1} times: {refusal}") from None
                backoff = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**tried)
                wished = backoff if refusal.after_s is None else min(LONGEST_WAIT_S, refusal.after_s)
                if self.closed.wait(wished):
                    raise GaveUp(f"interrupted: {refusal}") from None
        raise AssertionError("the last try returns or raises")

    def close(self) -> None:
        """See `Backend`."""
        self.closed.set()

    def ask(self, body: Mapping[str, Any]) -> bytes:
        """One request.

        Raises:
            Again: it may go better next time.
            BadInput: it will not.
        """
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        url = f"{self.base_url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST")
        try:
            with urllib.request.build_opener(NoRedirect).open(request, timeout=self.timeout_s) as response:
                content: bytes = response.read(LARGEST + 1)
        except urllib.error.HTTPError as error:
            raise self.refused(error) from None
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            raise Again(f"{url} does not answer ({self.clean(str(error))})", None) from None
        if len(content) > LARGEST:
            raise Again(f"{url} answers with more than {LARGEST:,} bytes", None)
        return content

    def refused(self, error: urllib.error.HTTPError) -> Exception:
        """What an answer other than a success means."""
        with error:
            told = self.clean(error.read(1000).decode("utf-8", "replace").strip())
        if error.code in AGAIN:
            why = f"{self.base_url} answers {error.code} ({told[:200]})"
            return Again(why, seconds(error.headers.get("Retry-After")))
        hint = {401: "; is the key right?", 403: "; may this key use it?", 404: "; is the model's name right?"}
        return BadInput(f"{self.base_url} answers {error.code}{hint.get(error.code, '')} ({told[:200]})")

    def text_of(self, content: bytes) -> str:
        """The response in an answer.

        Raises:
            Again: it holds none.
        """
        try:
            text = json.loads(content)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            text = None
        if not isinstance(text, str):
            raise Again(f"{self.base_url} answers without a text ({self.clean(brief(content[:200]))})", None)
        return text

    def clean(self, text: str) -> str:
        """A text of the server's without the key, should it repeat it."""
        return text.replace(self.key, "...") if self.key else text


class Again(Exception):
    """A request that may go better next time."""

    def __init__(self, why: str, after_s: float | None) -> None:
        super().__init__(why)
        self.after_s = after_s
        """Seconds that the server asks to wait; None where it says nothing."""


def seconds(text: str | None) -> float | None:
    """The seconds in a header `Retry-After`; None where it is a date, or something else."""
    try:
        return max(0.0, float(text)) if text is not None else None
    except ValueError:
        return None


def server_of(
    backend: str,
    base_url: str | None,
    key_env: str | None,
    model: str,
    generation: Generation,
    retries: int,
    timeout_s: float,
) -> Server:
    """The server that the command line names.

    Raises:
        BadInput: the address is none, there is no key, or the key would be sent in clear.
    """
    default_url, default_env = SERVERS[backend]
    url, name = base_url or default_url, key_env or default_env
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadInput(f"--base-url {url}: is no address; one such as https://host/v1 is wanted")
    # A key is sent to an address of one's own only where it was asked for by name.
    needed = base_url is None or key_env is not None
    key = os.environ.get(name, "").strip() if needed else ""
    if needed and not key:
        raise BadInput(f"--api-key-env {name}: this variable is not set; export it, or name another one")
    if key and parts.scheme == "http" and parts.hostname not in HERE:
        raise BadInput(f"--base-url {url}: the key would be sent unencrypted; use https")
    return Server(url, model, generation, key, retries, timeout_s)


class Local:
    """Weights on this machine, through transformers."""

    def __init__(self, model: str, generation: Generation, device: str, dtype: str) -> None:
        """Loads them.

        Raises:
            BadInput: there are none, or no such device.
        """
        from teacher_model import DTYPES, TeacherModel, device_named, folder_of, load_tokenizer

        folder, on = folder_of(model), device_named(device)
        self.tokenizer = load_tokenizer(folder)
        kind = ("float32" if on.type == "cpu" else "bfloat16") if dtype == "auto" else dtype
        self.teacher = TeacherModel(folder, on, DTYPES[kind])
        self.generation = generation

    def answer(self, messages: Messages, seed: int) -> str:
        """See `Backend`."""
        import torch

        asked = self.tokenizer.apply_chat_template(
            [dict(message) for message in messages], add_generation_prompt=True, tokenize=False, enable_thinking=False
        )
        ids = self.tokenizer(asked, add_special_tokens=False, return_tensors="pt").to(self.teacher.device)
        torch.manual_seed(seed)
        warm = self.generation.temperature > 0
        sampling = {"temperature": self.generation.temperature, "top_p": 1.0, "top_k": 0} if warm else {}
        with torch.no_grad():
            tokens = self.teacher.model.generate(
                input_ids=ids["input_ids"],
                attention_mask=ids["attention_mask"],
                do_sample=warm,
                max_new_tokens=self.generation.max_new_tokens,
                pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
                **sampling,
            )
        text: str = self.tokenizer.decode(tokens[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        return text

    def close(self) -> None:
        """See `Backend`; nobody waits here."""
