"""Processes with less: an ordinary user's, or one with a small file system of its own."""

from __future__ import annotations

import ctypes
import json
import os
import warnings
from collections.abc import Callable
from typing import Any

NOBODY = 12345
"""A user and group that own nothing and have no name."""
_CLONE_NEWNS = 0x20000
_MS_RDONLY, _MS_REMOUNT, _MS_REC, _MS_PRIVATE = 1, 32, 0x4000, 0x40000


def without_privilege(function: Callable[..., Any], *arguments: object) -> Any:
    """Return what `function` returns (JSON) in a process of an ordinary user.

    Run by an ordinary user, it is this one. An exception there fails the caller's test.
    """
    if os.geteuid() != 0:
        return json.loads(json.dumps(function(*arguments)))
    return _in_child(_drop, function, arguments)


def on_small_disk(function: Callable[..., Any], folder: str, *arguments: object) -> Any:
    """Return what `function(folder, ...)` returns where `folder` is a file system of 1 MiB.

    None where this process may not mount one: the caller has nothing to check then.
    """
    return _in_child(lambda: _mount(folder), function, (folder, *arguments))


def make_read_only(folder: str) -> None:
    """Make the small disk read-only."""
    _mount_call(None, folder, None, _MS_REMOUNT | _MS_RDONLY, None)


class _MayNot(Exception):
    """The kernel lets this process mount nothing."""


def _in_child(
    prepare: Callable[[], None], function: Callable[..., Any], arguments: tuple[object, ...]
) -> Any:
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.close(reader)
        _answer(writer, prepare, function, arguments)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    answer = json.loads(said)
    assert "error" not in answer, answer["error"]
    return answer["result"]


def _answer(
    writer: int,
    prepare: Callable[[], None],
    function: Callable[..., Any],
    arguments: tuple[object, ...],
) -> None:
    """Run in the child, which ends here: no test code behind the fork may go on."""
    try:
        prepare()
        answer = {"result": function(*arguments)}
        said = json.dumps(answer)
    except _MayNot:
        said = json.dumps({"result": None})
    except BaseException as exc:
        said = json.dumps({"error": f"{type(exc).__name__}: {exc}"})
    os.write(writer, said.encode())
    os._exit(0)


def _drop() -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def _mount(folder: str) -> None:
    """Mount a small tmpfs that only this process sees, and that ends with it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        raise _MayNot
    _mount_call(None, "/", None, _MS_REC | _MS_PRIVATE, None)
    _mount_call("tmpfs", folder, "tmpfs", 0, "size=1m")


def _mount_call(
    source: str | None, target: str, kind: str | None, flags: int, data: str | None
) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    texts = [text.encode() if text is not None else None for text in (source, target, kind, data)]
    if libc.mount(*texts[:3], ctypes.c_ulong(flags), texts[3]) != 0:
        raise _MayNot
