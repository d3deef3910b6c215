"""A stronger model's answers: validated, kept once, asked for again after a failure, and the key goes nowhere else."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import generate_strong_success
import generation_backends
import pytest
from json_lines import BadInput

from tests.analysis.chain_rollouts import read, run, write

KEY = "sk-never-to-be-seen"
ROWS = [
    {"prompt_id": f"p{n}", "prompt": f"Which? {n}", "ground_truth": "B", "data_source": "sciknoweval",
     "difficulty_bucket": "hard", "prompt_messages": [{"role": "user", "content": f"Which? {n}"}], "response_text": "x"}
    for n in range(4)
]  # fmt: skip
RIGHT = "<reasoning>It must be.</reasoning><answer>B</answer>"
WRONG = "<reasoning>It must be.</reasoning><answer>C</answer>"


class Fake(ThreadingHTTPServer):
    """A server of OpenAI's protocol; `answers` gives status, headers and text of each request."""

    daemon_threads = True

    def __init__(self, answers):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.asked, self.headers = answers, [], []
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        """Nothing."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.asked)
            self.server.asked.append(body)
            self.server.headers.append(dict(self.headers) | {"path": self.path})
        status, headers, text = self.server.answers(number, body)
        content = (
            text if isinstance(text, bytes) else json.dumps({"choices": [{"message": {"content": text}}]}).encode()
        )
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def serve(monkeypatch):
    """Starts a fake server; waits between tries are short."""
    monkeypatch.setattr(generation_backends, "FIRST_WAIT_S", 0.001)
    monkeypatch.setenv("MY_KEY", KEY)
    started = []

    def start(answers):
        started.append(Fake(answers))
        return started[-1]

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.fixture
def generate(tmp_path):
    """Runs the command; returns its exit code, the rows and the output's path."""
    write(tmp_path / "c.jsonl", ROWS)
    out = tmp_path / "strong.jsonl"

    def generated(server, *options):
        base = ("--candidates", tmp_path / "c.jsonl", "--output", out, "--model", "big")
        code = run(generate_strong_success, *base, "--base-url", server.url, "--api-key-env", "MY_KEY", *options)
        return code, read(out) if out.exists() else [], out

    return generated


def test_right_answers_are_kept_and_nothing_but_the_question_is_asked(serve, generate):
    server = serve(lambda number, body: (200, {}, RIGHT if "Which? 1" not in str(body) else WRONG))
    code, rows, out = generate(server, "--max-new-tokens", "77")
    assert code == 0
    assert sorted(row["prompt_id"] for row in rows) == ["p0", "p2", "p3"]
    assert all(
        row["validated_success"] and row["predicted_answer"] == "B" and row["response_text"] == RIGHT for row in rows
    )
    assert {row["generator_model"] for row in rows} == {row["source_model"] for row in rows} == {"big"}
    body = server.asked[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("big", 0.2, 77)
    assert body["messages"][0]["content"].startswith("Which? ")
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert server.headers[0]["path"] == "/v1/chat/completions"
    summary = json.loads(out.with_name("strong.jsonl.summary.json").read_text())
    assert (summary["prompts"], summary["validated"], summary["wrong"]) == (4, 3, 1)


def test_started_again_it_asks_for_what_is_missing(serve, generate):
    server = serve(lambda number, body: (200, {}, RIGHT if number < 2 else WRONG))
    _, first, out = generate(server, "--workers", "1")
    assert len(first) == 2
    out.write_text(out.read_text() + '{"half')
    server = serve(lambda number, body: (200, {}, RIGHT))
    code, rows, _ = generate(server)
    assert code == 0
    assert rows[:2] == first
    assert len(server.asked) == 2
    assert sorted(row["prompt_id"] for row in rows) == ["p0", "p1", "p2", "p3"]
    assert generate(server, "--model", "other")[0] == 2


@pytest.mark.parametrize("option", [("--temperature", "0.9"), ("--seed", "7"), ("--max-new-tokens", "9")])
def test_other_settings_are_refused_and_change_nothing(serve, generate, capsys, option):
    server = serve(lambda number, body: (200, {}, RIGHT if number < 2 else WRONG))
    _, first, out = generate(server, "--workers", "1")
    asked = len(server.asked)
    code, rows, _ = generate(server, *option)
    assert (code, rows, len(server.asked)) == (2, first, asked)
    assert f"was made with another {option[0]}; name another --output" in capsys.readouterr().err
    out.unlink()
    assert generate(server, *option)[0] == 0  # nothing is there that could be mixed
    assert generate(server, *option)[0] == 0


def test_answers_are_kept_when_another_prompt_of_the_same_moment_is_refused(monkeypatch):
    class Backend:
        def close(self):
            """Nothing."""

    class Ask:
        backend, together = Backend(), threading.Barrier(4)

        def __call__(self, row):
            self.together.wait(10)
            if row == 1:
                raise BadInput("never")
            return None, {"row": row}

    waited = generate_strong_success.wait

    def all_ended(waiting, **_):
        done, rest = waited(waiting)
        return sorted(done, key=lambda one: one.exception() is None), rest  # the refused one is looked at first

    monkeypatch.setattr(generate_strong_success, "wait", all_ended)
    answers = generate_strong_success.answered(Ask(), range(4), 4)
    assert sorted(next(answers)[1]["row"] for _ in range(3)) == [0, 2, 3]
    with pytest.raises(BadInput):
        next(answers)


def test_busy_servers_are_asked_again_and_wrong_answers_too(serve, generate):
    told = {0: (429, {"Retry-After": "0"}, b"{}"), 1: (503, {}, b"busy"), 2: (200, {}, b"no json"), 3: (200, {}, WRONG)}
    server = serve(lambda number, body: told.get(number, (200, {}, RIGHT)))
    code, rows, _ = generate(server, "--max-prompts", "1", "--samples-per-prompt", "2")
    assert code == 0
    assert rows[0]["judge_info"]["samples"] == 2
    assert len(server.asked) == 5
    assert server.asked[0]["seed"] != server.asked[-1]["seed"]


def test_a_server_that_never_answers_is_given_up(serve, generate, capsys):
    server = serve(lambda number, body: (500, {}, f"your key {KEY} broke me".encode()))
    code, rows, out = generate(server, "--max-retries", "1")
    assert (code, rows) == (1, [])
    assert len(server.asked) == 8
    tried = read(out.with_name("strong.jsonl.tried.jsonl"))
    assert {row["status"] for row in tried} == {"gave up"}
    assert "asked 2 times" in tried[0]["reason"]
    printed = capsys.readouterr()
    assert KEY not in printed.out + printed.err + "".join(path.read_text() for path in out.parent.iterdir())


def test_a_refusal_for_good_ends_it_and_the_key_is_not_told(serve, generate, capsys):
    server = serve(lambda number, body: (401, {}, f"bad key {KEY}".encode()))
    code, rows, _ = generate(server, "--workers", "1")
    assert (code, rows) == (2, [])
    told = capsys.readouterr().err
    assert "answers 401; is the key right?" in told
    assert KEY not in told
    assert len(server.asked) <= 2


def test_nobody_is_followed_elsewhere(serve, generate):
    other = serve(lambda number, body: (200, {}, RIGHT))
    server = serve(lambda number, body: (307, {"Location": f"{other.url}/chat/completions"}, b""))
    assert generate(server)[0] == 2
    assert not other.asked


def test_keys_are_read_from_the_environment_alone(serve, tmp_path, monkeypatch, capsys):
    server = serve(lambda number, body: (200, {}, RIGHT))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    base = ("--candidates", write(tmp_path / "c.jsonl", ROWS), "--output", tmp_path / "s.jsonl", "--model", "m")
    assert run(generate_strong_success, *base) == 2
    assert "OPENAI_API_KEY: this variable is not set" in capsys.readouterr().err
    assert (
        run(generate_strong_success, *base, "--base-url", "http://example.invalid/v1", "--api-key-env", "MY_KEY") == 2
    )
    assert "unencrypted" in capsys.readouterr().err
    assert run(generate_strong_success, *base, "--base-url", "ftp://x") == 2
    assert "is no address" in capsys.readouterr().err
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert run(generate_strong_success, *base, "--base-url", server.url) == 0
    assert "Authorization" not in server.headers[0]  # it was not named, and this is no server of OpenAI's


def test_what_cannot_be_validated_is_told(serve, tmp_path, capsys):
    server = serve(lambda number, body: (200, {}, RIGHT))
    for change, told in (
        ({"data_source": None}, "names no data_source"),
        ({"data_source": "sciknowevil"}, "did you mean 'sciknoweval'"),
        ({"ground_truth": None}, "has no ground_truth"),
    ):
        source = write(tmp_path / "c.jsonl", [ROWS[0] | change])
        base = ("--candidates", source, "--output", tmp_path / "s.jsonl", "--model", "m", "--base-url", server.url)
        assert run(generate_strong_success, *base) == 2
        assert told in " ".join(capsys.readouterr().err.split())
    assert not server.asked


def test_weights_on_this_machine_answer_too(root, tmp_path):
    rows = [
        {"prompt_id": "p", "prompt": "", "ground_truth": '{"steps": 3, "value": 9}', "data_source": "chain",
         "prompt_messages": [{"role": "user", "content": "calc 2 - 1 - 4 * 7"}]}
    ]  # fmt: skip
    out, model = tmp_path / "s.jsonl", root / "datasets/chain/model"
    base = ("--candidates", write(tmp_path / "c.jsonl", rows), "--output", out, "--model", model, "--backend", "local")
    options = ("--samples-per-prompt", "40", "--temperature", "1", "--max-new-tokens", "24", "--device", "cpu")
    assert run(generate_strong_success, *base, *options) == 0
    (row,) = read(out)
    assert row["response_text"].endswith("= 9")
    again = tmp_path / "again.jsonl"
    assert run(generate_strong_success, *base[:2], "--output", again, *base[4:], *options) == 0
    assert read(again) == [row]
