"""Errors and wrong usage: exit codes, words, and nothing done."""

from __future__ import annotations

import pytest

from holdfast_contract import errors
from tests.support.cli_api import (
    run,
    snapshot,
)

ERRORS = [kind for _, kind in sorted(errors.error_classes().items())]


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_ends_with_its_exit_code_and_its_words(
    kind: type[errors.HoldfastError],
) -> None:
    answers = {"GET /v1/status": kind("it went wrong", hint="do this", object="packs/1")}
    told = run("status", answers=answers)
    assert told.code == kind.exit_code
    assert (told.out, told.err) == ("", "holdfast: it went wrong\n  do this\n")
    found = run("status", "--json", answers=answers)
    assert found.code == kind.exit_code
    assert found.out == ""
    assert found.error() == {
        "type": "error",
        "code": kind.code,
        "message": "it went wrong",
        "hint": "do this",
        "exit": kind.exit_code,
        "details": {"object": "packs/1"},
    }


def test_an_error_from_elsewhere_cannot_act_on_the_terminal() -> None:
    answers = {"GET /v1/status": errors.Refused("no\x1b[31m\nreally", hint="\x07")}
    assert run("status", answers=answers).err == "holdfast: no\\x1b[31m\\x0areally\n  \\x07\n"


def test_candidates_of_a_reference_are_shown() -> None:
    wrong = errors.Ambiguous("latest of which?", hint="CLIENT@latest", candidates=["a", "b"])
    answers = {"GET /v1/snapshots/latest": wrong}
    done = run("snapshot", "show", "latest", answers=answers)
    assert done.code == 10
    assert done.err == "holdfast: latest of which?\n    a\n    b\n  CLIENT@latest\n"
    done = run("snapshot", "show", "latest", "--json", answers=answers)
    assert done.error()["details"] == {"candidates": ["a", "b"]}


def test_a_defect_is_told_as_one_and_not_with_a_traceback() -> None:
    done = run("status", answers={"GET /v1/status": ValueError("what")})
    assert done.code == 1
    assert done.err.startswith("holdfast: a defect of the command: ValueError: what\n")
    with pytest.raises(ValueError, match="what"):
        run("status", "--log-level", "debug", answers={"GET /v1/status": ValueError("what")})


def test_ctrl_c_ends_with_130() -> None:
    assert run("status", answers={"GET /v1/status": KeyboardInterrupt()}).code == 130


def test_an_answer_of_another_program_is_an_error_and_no_crash() -> None:
    for answer in (b"<html>", {"items": [{}], "next": ""}, {"items": 3}):
        done = run("clients", answers={"GET /v1/clients": answer})
        assert done.code == 2
        assert "the server's answer is malformed" in done.err


def test_without_a_server_it_says_how_to_name_one() -> None:
    done = run("clients")
    assert done.code == 2
    assert "HOLDFAST_DATA" in done.err
    assert "holdfast login" in done.err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["backup"], "CLIENT"),
        (["backup", "shop/web-0", "--limit-upload", "fast"], "not a size"),
        (["restore", "latest"], "--in-place"),
        (["restore", "latest", "--in-place", "--target", "/x"], "--in-place"),
        (["restore", "latest", "--target", "x"], "absolute"),
        (["restore", "latest", "--local", "x", "--detach"], "--detach"),
        (["restore", "latest", "--local", "x", "--to", "a/b"], "--to"),
        (["restore", "latest", "--in-place", "--overwrite", "maybe"], "--overwrite"),
        (["jobs", "--state", "Sleeping"], "--state"),
        (["snapshots", "--latest", "0"], "--latest"),
        (["client", "set", "shop/web-0"], "nothing to set"),
        (["client", "show", "web-0"], "DOMAIN/NAME"),
        (["token", "create", "--role", "admin"], "--out"),
        (["token", "create", "--role", "owner", "--out", "x"], "owner"),
        (["domain", "create", "shop", "--key-out", "x"], "recovered"),
        (["domain", "create", "Shop", "--key-out", "x", "--no-recovery"], "Shop"),
        (
            ["domain", "create", "s", "--key-out", "x", "--no-recovery", "--recovery-out", "y"],
            "--no-recovery",
        ),
        (["key", "recipients", "remove", "abcdef"], "key file"),
        (["events", "more"], "more"),
        (["nothing"], "nothing"),
        (["--log-level", "loud", "clients"], "loud"),
    ],
)
def test_wrong_usage_ends_with_2_and_changes_nothing(words: list[str], part: str) -> None:
    answers = {"GET /v1/snapshots/latest": snapshot()}
    done = run(*words, answers=answers)
    assert done.code == 2
    assert part in done.err
    assert all(asked.method == "GET" for asked in done.api.fake.asked)
    assert run(*words, "--json", answers=answers).error()["exit"] == 2
