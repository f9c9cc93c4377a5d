"""The command without a server: an API that answers from a table, and a way to run commands."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qsl, urlsplit

import msgspec

from holdfast_agent.transport.http import Body, Reply
from holdfast_cli import command as command_module
from holdfast_cli import program
from holdfast_cli.api import Api
from holdfast_cli.command import Session
from holdfast_cli.settings import load_settings
from holdfast_contract.errors import NotFound
from holdfast_contract.protocol.control import JobState
from holdfast_contract.protocol.http import (
    ClientRow,
    ErrorRow,
    JobRow,
    Listing,
    ProgressRow,
    SnapshotRow,
)

TIME = "2026-01-31T12:00:00.000000Z"
Answer = object
"""JSON-like values and records are answered as they are, exceptions raised, callables called with
the query and the request body; a list of one route's answers is given out one by one, the last
one again and again."""


@dataclass
class Asked:
    """One request."""

    method: str
    path: str
    query: dict[str, str]
    body: Any


class _Stream:
    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, size: int) -> bytes:
        return self._file.read(size)

    def read_some(self, size: int) -> bytes:
        return self._file.read1(size)


@dataclass
class FakeHttp:
    """In place of the HTTP client."""

    answers: dict[str, Answer]
    asked: list[Asked] = field(default_factory=list)
    is_aborted: bool = False

    def call(self, method: str, path: str, *, body: Body | None = None) -> Reply:
        parts = urlsplit(path)
        sent = json.loads(b"".join(map(bytes, body.parts()))) if body else None
        asked = Asked(method, parts.path, dict(parse_qsl(parts.query)), sent)
        self.asked.append(asked)
        name = f"{method} {parts.path}"
        if name not in self.answers:
            raise NotFound(f"nothing at {name}")
        return Reply(200, {}, _bytes(self._next(name, asked)))

    def _next(self, name: str, asked: Asked) -> object:
        answer = self.answers[name]
        if isinstance(answer, Turns):
            answer = answer.next()
        if callable(answer):
            answer = answer(asked)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    @contextmanager
    def stream(self, method: str, path: str, *, body: Body | None = None) -> Iterator[_Stream]:
        yield _Stream(self.call(method, path, body=body).body)

    def abort(self) -> None:
        self.is_aborted = True


class Turns:
    """Answers given one after the other; the last one stays."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)

    def next(self) -> Answer:
        """Return the next answer."""
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def _bytes(answer: object) -> bytes:
    return answer if isinstance(answer, bytes) else msgspec.json.encode(answer)


class FakeApi(Api):
    """The command's API over a table from `METHOD /path` to an answer."""

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        self.fake = FakeHttp(dict(answers))
        self.http = self.fake  # type: ignore[assignment]
        self._body_of = Body.json

    def asked(self, name: str) -> list[Asked]:
        """Return the requests of one route."""
        return [one for one in self.fake.asked if f"{one.method} {one.path}" == name]


def session_of(
    answers: Mapping[str, Answer], *, flags: Mapping[str, str] | None = None, **switches: bool
) -> Session:
    """Return a run of the command against a table of answers."""
    given = {"as_json": False, "quiet": False, "verbose": False, "no_progress": False}
    session = Session(load_settings(flags or {}, {}), {}, **(given | switches))
    session.__dict__["api"] = FakeApi(answers)
    return session


def listing(*rows: object) -> Listing:
    """Return the one page of a list."""
    return Listing(items=list(rows))


def job(**changes: Any) -> JobRow:
    """Return a job's row."""
    fields: dict[str, Any] = {
        "id": "01JQ0000000000000000000001",
        "kind": "backup",
        "client": "shop/web-0",
        "state": JobState.RUNNING,
        "created": TIME,
        "started": TIME,
        "finished": None,
        "progress": ProgressRow(),
        "error": None,
    }
    return JobRow(**(fields | changes))


def ended(state: JobState = JobState.COMPLETED, **changes: Any) -> JobRow:
    """Return the row of a finished job; of a failed one with an error."""
    error = ErrorRow(code="damaged", message="a pack is damaged", exit=13)
    given: dict[str, Any] = {"error": error} if state is JobState.FAILED else {}
    return job(state=state, finished=TIME, **(given | changes))


def client(**changes: Any) -> ClientRow:
    """Return a client's row."""
    fields: dict[str, Any] = {
        "name": "shop/web-0",
        "domain": "shop",
        "state": "connected",
        "last_seen": TIME,
        "version": "0.1.0",
        "roots": ["/data"],
        "last_snapshot": None,
    }
    return ClientRow(**(fields | changes))


def snapshot(**changes: Any) -> SnapshotRow:
    """Return a snapshot's row."""
    fields: dict[str, Any] = {
        "id": "ab" * 32,
        "client": "shop/web-0",
        "domain": "shop",
        "seq": 1,
        "time": TIME,
        "started": TIME,
        "state": "complete",
        "consistency": "crash",
        "files": 2,
        "bytes": 3,
        "bytes_new": 3,
        "tags": [],
        "paths": ["/data"],
        "pinned": False,
    }
    return SnapshotRow(**(fields | changes))


def rows_answer(*rows: object) -> Callable[[Asked], bytes]:
    """Return the streamed answer of a query: rows, then the mark of the end."""
    lines = [msgspec.json.encode(row) for row in (*rows, {"type": "end"})]
    return lambda _: b"\n".join(lines) + b"\n"


# --- running the command
@dataclass
class Done:
    """What a run printed."""

    code: int
    out: str
    err: str
    api: FakeApi

    def json(self) -> Any:
        """Return the one document on standard output."""
        return json.loads(self.out)

    def error(self) -> dict[str, Any]:
        """Return the one error document on standard error."""
        found: dict[str, Any] = json.loads(self.err)
        return found


class Output(io.TextIOWrapper):
    """Takes text and bytes, as standard output does."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", errors="surrogateescape")

    def text(self) -> str:
        """Return what was written."""
        self.flush()
        data = self.buffer.getvalue()  # type: ignore[attr-defined]
        return str(data.decode("utf-8", "surrogateescape"))


def run(*words: object, answers: Mapping[str, Answer] | None = None, **environ: str) -> Done:
    """Run the command as a script would: no terminal, no variables but these."""
    api = FakeApi(answers or {})
    out, err = Output(), Output()
    place = {"HOLDFAST_SERVER": "https://backup:9440", "HOLDFAST_TOKEN_FILE": "token"}
    given = (place if answers is not None else {}) | {"HOME": "/nonexistent"} | environ
    with (
        patch.object(sys, "argv", ["holdfast", *map(str, words)]),
        patch.object(sys, "stdin", io.StringIO()),
        patch.dict(os.environ, given, clear=True),
        patch.object(command_module, "Api", lambda place: api),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        logging_as_before(),
    ):
        code = program.run()
    return Done(code, out.text(), err.text(), api)


@contextmanager
def logging_as_before() -> Iterator[None]:
    """Take back that a command sends logs to its own standard error."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = before
        root.setLevel(level)
