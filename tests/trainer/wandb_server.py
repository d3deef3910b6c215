"""As much of wandb's server as one run needs: it keeps the run's history."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROJECT = {"id": "p", "name": "mopd", "entity": {"id": "e", "name": "me"}}


class Server(ThreadingHTTPServer):
    """Listens on the loopback interface."""

    daemon_threads = True

    def __init__(self, *, accepts: bool) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.accepts = accepts
        """Whether it knows the key."""
        self.history: list[dict[str, Any]] = []
        """What was told of every step, in the order of its arrival."""
        self.names: set[str] = set()
        """Ids of the runs that were begun."""
        self.configs: list[str] = []

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def told(self, query: str, values: dict[str, Any]) -> dict[str, Any]:
        """The answer to a GraphQL query."""
        named = re.match(r"\s*(?:query|mutation)\s+(\w+)", query)
        name = named[1] if named else ""
        if name == "RunResumeStatus":
            return {"model": {**PROJECT, "bucket": self.bucket(values["name"]) if self.history else None}}
        if name == "UpsertBucket":
            self.names.add(values["name"])
            self.configs.append(str(values["config"]))
            run = {"id": "r", "name": values["name"], "displayName": "x", "historyLineCount": 0, "project": PROJECT}
            return {"upsertBucket": {"bucket": run, "inserted": True}}
        if name == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.address}/file"} for name in values["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        if name == "CreateArtifact":
            kept = {"id": "a", "state": "COMMITTED", "artifactSequence": {"id": "s", "latestArtifact": None}}
            return {"createArtifact": {"artifact": kept}}
        if name == "Viewer":
            return {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        return {"project": None} if name == "ArtifactType" else {}

    def bucket(self, name: str) -> dict[str, Any]:
        """The run as one that goes on is told of it."""
        last = json.dumps(self.history[-1])
        counts = {"historyLineCount": len(self.history), "eventsLineCount": 0, "logLineCount": 0}
        tails = {"historyTail": json.dumps([last]), "eventsTail": "[]", "summaryMetrics": last}
        return {"id": "r", "name": name, "config": "{}", "wandbConfig": '{"t":1}', "tags": [], **counts, **tails}


class Answer(BaseHTTPRequestHandler):
    """Answers a request."""

    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200 if self.server.accepts else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer({})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("file_stream"):
            lines = asked.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.server.history += [json.loads(line) for line in lines]
            self.answer({})
        else:
            self.answer({"data": self.server.told(asked["query"], asked.get("variables") or {})})


@contextmanager
def wandb_server(*, accepts: bool = True) -> Iterator[Server]:
    """A server that runs meanwhile."""
    server = Server(accepts=accepts)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
