"""A process of an ordinary user, and a folder that it can reach."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from typing import Any

NOBODY = 12345
"""A user and group that own nothing and have no name."""


def without_privilege(function: Callable[..., Any], *arguments: object) -> Any:
    """Return what `function` returns (JSON) in a process of an ordinary user.

    Run by an ordinary user, it is this one. An exception there fails the caller's test.
    """
    if os.geteuid() != 0:
        return json.loads(json.dumps(function(*arguments)))
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.close(reader)
        _answer(writer, function, arguments)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    answer = json.loads(said)
    assert "error" not in answer, answer["error"]
    return answer["result"]


def _answer(writer: int, function: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    """Run in the child, which ends here: no test code behind the fork may go on."""
    try:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        answer = {"result": function(*arguments)}
        said = json.dumps(answer)
    except BaseException as exc:
        said = json.dumps({"error": f"{type(exc).__name__}: {exc}"})
    os.write(writer, said.encode())
    os._exit(0)
