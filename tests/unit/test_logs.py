"""Logs: one event, its fields, nothing that acts on a terminal, no secret."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from holdfast_contract.errors import NotFound
from holdfast_contract.logs import bind, bound_fields, configure_logs, get_logger, wants_colour

LOG = get_logger("holdfast.test")


@pytest.fixture(autouse=True)
def _root_logger_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def json_stream(level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    configure_logs(level=level, log_format="json", stream=stream)
    return stream


def text_stream(*, colour: bool = False) -> io.StringIO:
    stream = io.StringIO()
    configure_logs(level="info", log_format="text", stream=stream, colour=colour)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_json_line_has_time_level_event_and_fields() -> None:
    stream = json_stream()
    LOG.info("pack accepted", object="packs/ab/01", bytes=12, ratio=0.5, ok=True, none=None)
    (line,) = lines(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line.pop("time"))
    assert line == {
        "level": "info",
        "event": "pack accepted",
        "logger": "holdfast.test",
        "object": "packs/ab/01",
        "bytes": 12,
        "ratio": 0.5,
        "ok": True,
        "none": None,
    }


def test_the_time_is_the_record_s_in_utc() -> None:
    stream = json_stream()
    record = logging.LogRecord("x", logging.INFO, "x.py", 1, "x", None, None)
    record.created = 1_700_000_000.25
    logging.getLogger().handle(record)
    assert lines(stream)[0]["time"] == "2023-11-14T22:13:20.250000Z"


def test_events_below_the_level_are_dropped() -> None:
    stream = json_stream("warning")
    LOG.debug("a")
    LOG.info("b")
    LOG.warning("c")
    LOG.error("d")
    assert [line["event"] for line in lines(stream)] == ["c", "d"]


def test_bound_fields_are_added_inside_the_block_only() -> None:
    stream = json_stream()
    with bind(request_id="r1"), bind(job="j1", request_id="r2"):
        LOG.info("inside", job="j2")
    LOG.info("outside")
    inside, outside = lines(stream)
    assert (inside["request_id"], inside["job"]) == ("r2", "j2")
    assert "request_id" not in outside


async def test_tasks_do_not_see_each_other_s_bound_fields() -> None:
    stream = json_stream()
    meet = asyncio.Barrier(2)

    async def work(name: str) -> None:
        with bind(request_id=name):
            await meet.wait()
            LOG.info(name)

    await asyncio.gather(work("a"), work("b"))
    assert {line["event"]: line["request_id"] for line in lines(stream)} == {"a": "a", "b": "b"}


def test_a_thread_begins_without_fields_and_can_bind_its_parent_s() -> None:
    stream = json_stream()
    with bind(job="j1"):
        outer = bound_fields()

        def work() -> None:
            LOG.info("bare")
            with bind(**outer):
                LOG.info("bound")

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    bare, bound = lines(stream)
    assert "job" not in bare
    assert bound["job"] == "j1"


def test_records_of_libraries_come_in_the_same_form() -> None:
    stream = json_stream()
    with bind(request_id="r1"):
        logging.getLogger("somebody").warning("%d of %s", 3, "x")
    (line,) = lines(stream)
    assert (line["event"], line["request_id"], line["level"]) == ("3 of x", "r1", "warning")


def test_a_percent_sign_in_an_event_is_no_format() -> None:
    stream = json_stream()
    LOG.info("100 %s done %(x)d")
    assert lines(stream)[0]["event"] == "100 %s done %(x)d"


def test_a_field_cannot_replace_the_line_s_own_names() -> None:
    stream = json_stream()
    LOG.info("real", time="never", level="none", logger="me")
    (line,) = lines(stream)
    assert line["level"] == "info"
    assert (line["time_"], line["level_"], line["logger_"]) == ("never", "none", "me")


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_one_event_is_one_line_whatever_stands_in_it(log_format: str) -> None:
    stream = io.StringIO()
    configure_logs(level="info", log_format=log_format, stream=stream)
    evil = 'a\nlevel=error event="forged"\r\x1b[2J\x9b\u202e\udcff\u2028'
    LOG.info(evil, path=evil, names=[evil], **{"field\n": evil})
    printed = stream.getvalue()
    assert printed.endswith("\n")
    assert printed[:-1].isprintable()
    assert len(printed.splitlines()) == 1


TOKEN = "hfa_" + "A" * 43


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_secrets_are_masked_by_name_and_by_form(log_format: str) -> None:
    stream = io.StringIO()
    configure_logs(level="info", log_format=log_format, stream=stream)
    with bind(admin_token="geheim-1"):
        LOG.info(f"got {TOKEN}", authorization="geheim-2", header=f"Bearer {'x' * 3}geheim-3")
    LOG.info("nested", headers={"Authorization": "geheim-4", "x": TOKEN}, rows=[TOKEN])
    LOG.info("key", line="holdfast-key-1 00ff geheim-5", error=NotFound(f"no {TOKEN}"))
    try:
        raise ValueError(f"bad token {TOKEN}")
    except ValueError:
        LOG.exception("failed")
    printed = stream.getvalue()
    assert "geheim" not in printed
    assert TOKEN not in printed
    assert printed.count("***") >= 8


def test_values_of_other_types_are_rendered_without_loss_of_the_line() -> None:
    stream = json_stream()
    LOG.info("x", digest=b"\x00\xff", bad=float("nan"), items=(1, {2}), error=NotFound("no x"))
    (line,) = lines(stream)
    assert line["digest"] == "00ff"
    assert line["bad"] == "nan"
    assert line["items"] == [1, [2]]
    assert line["error"] == "not-found: no x"


def test_a_traceback_is_one_field_in_json_and_indented_in_text() -> None:
    for make_stream in (json_stream, text_stream):
        stream = make_stream()
        try:
            raise ValueError("one\ntwo")
        except ValueError:
            LOG.exception("failed")
        first, *rest = stream.getvalue().splitlines()
        assert "failed" in first
        assert all(row.startswith("    ") for row in rest)
        assert "ValueError: one" in stream.getvalue()


def test_text_quotes_what_holds_spaces() -> None:
    stream = text_stream()
    LOG.warning("store is filling", path="a b", free=3, empty="")
    line = stream.getvalue().rstrip("\n")
    assert line.endswith('WARNING  store is filling  path="a b"  free=3  empty=""')


def test_colour_is_used_only_where_asked_for() -> None:
    plain = text_stream()
    LOG.error("bad")
    assert "\x1b" not in plain.getvalue()
    coloured = text_stream(colour=True)
    LOG.error("bad")
    assert coloured.getvalue().startswith("\x1b[31m")
    assert coloured.getvalue().endswith("\x1b[0m\n")


def test_colour_is_wanted_on_a_terminal_without_no_color() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert wants_colour(Terminal(), {})
    assert wants_colour(Terminal(), {"NO_COLOR": ""})
    assert not wants_colour(Terminal(), {"NO_COLOR": "1"})
    assert not wants_colour(Terminal(), {"TERM": "dumb"})
    assert not wants_colour(io.StringIO(), {})


def test_configuring_twice_does_not_log_twice() -> None:
    json_stream()
    stream = json_stream()
    LOG.info("once")
    assert len(lines(stream)) == 1
