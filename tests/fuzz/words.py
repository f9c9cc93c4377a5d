"""Targets of the protocol and the command line: messages, records, and what people type."""

from __future__ import annotations

from http.client import HTTPResponse
from typing import Any, cast

import msgspec

from holdfast_agent.crypto.keys import format_key_file, parse_key_file
from holdfast_agent.crypto.wraps import (
    format_recipient_file,
    format_recovery_file,
    parse_private_file,
    parse_recipient_file,
    parse_recovery_file,
)
from holdfast_agent.jobs.outcome import decode_outcome
from holdfast_agent.sources.rules import Rules
from holdfast_agent.transport.http import _problem as http_problem
from holdfast_cli.answers import parsed
from holdfast_cli.references import split_reference
from holdfast_contract.errors import HoldfastError
from holdfast_contract.ids import ClientName, check_domain_name
from holdfast_contract.protocol import control, http
from holdfast_contract.protocol.http import decode_json
from holdfast_contract.settings.files import choose_config_file
from holdfast_contract.settings.kinds import (
    duration_text,
    parse_absolute_path,
    parse_boolean,
    parse_duration,
    parse_server_url,
    parse_size,
    parse_text,
    size_text,
)
from holdfast_contract.text import printable
from holdfast_server.api.agent_jobs import _failure as failure_of_header
from holdfast_server.config import parse_address, parse_tls_name
from holdfast_server.control.orders import decode_spec
from holdfast_server.repository.snapshot_references import parse_moment
from holdfast_server.stores import check_object_name, check_store_url

RECORDS: dict[str, type[Any]] = {
    name: kind
    for name, kind in sorted(vars(http).items())
    if isinstance(kind, type)
    and issubclass(kind, msgspec.Struct)
    and kind.__module__ == http.__name__
    and kind.__struct_fields__
}
_NAMES = (b"a" * 120, b"a/b/c", "\u00e9".encode() * 40, b"\xff\xfe", b"x.log", b"a/" * 30 + b"a")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def to_agent(data: bytes) -> None:
    found = control.decode_to_agent(data)
    assert control.decode_to_agent(control.encode(found)) == found


def to_server(data: bytes) -> None:
    found = control.decode_to_server(data)
    assert control.decode_to_server(control.encode(found)) == found


def http_records(data: bytes) -> None:
    """Every record of the API; an error of one is no reason not to try the next."""
    for kind in RECORDS.values():
        try:
            found = decode_json(kind, data)
        except HoldfastError as error:
            assert "\n" not in error.message
            continue
        assert decode_json(kind, msgspec.json.encode(found)) == found


def specs(data: bytes) -> None:
    decode_spec(data)


def outcome(data: bytes) -> None:
    found = decode_outcome(data)
    assert decode_outcome(found.encode()) == found


class _Answer:
    """An answer of 300 or more, as far as the agent looks at it."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.status = 500 if data[:1] == b"{" else 404

    def read(self, length: int) -> bytes:
        return self._data[:length]


def problem(data: bytes) -> None:
    found = http_problem(cast("HTTPResponse", _Answer(data)))
    assert isinstance(found, HoldfastError)


def failure_header(data: bytes) -> None:
    failure_of_header(_text(data))


def answer_rows(data: bytes) -> None:
    for row in parsed(data.split(b"\n")):
        assert isinstance(row, dict)


def key_file(data: bytes) -> None:
    found = parse_key_file(data.decode("ascii", "replace"))
    assert parse_key_file(format_key_file(found)) == found


def recovery_file(data: bytes) -> None:
    found = parse_recovery_file(data.decode("ascii", "replace"))
    assert parse_recovery_file(format_recovery_file(found)) == found


def recipient_file(data: bytes) -> None:
    found = parse_recipient_file(data.decode("ascii", "replace"))
    assert parse_recipient_file(format_recipient_file(found)) == found


def private_file(data: bytes) -> None:
    assert len(parse_private_file(data.decode("ascii", "replace"))) == 32


def reference(data: bytes) -> None:
    name, path = split_reference(_text(data))
    assert path.startswith(b"/")
    client, at, moment = name.partition("@")
    if at:
        assert str(ClientName.parse(client)) == client
        parse_moment(moment)


def moment(data: bytes) -> None:
    found = parse_moment(_text(data))
    assert found.first_ns <= found.last_ns


def names(data: bytes) -> None:
    text = _text(data)
    for check in (ClientName.parse, check_domain_name, check_object_name):
        try:
            assert str(check(text)) == text
        except HoldfastError as error:
            assert "\n" not in error.message


def patterns(data: bytes) -> None:
    rules = Rules(_text(data).split("\n")[:8], b"/data")
    for name in _NAMES:
        rules.match_within(name, is_directory=False)


def sizes(data: bytes) -> None:
    found = parse_size(_text(data))
    assert parse_size(size_text(found)) == found


def durations(data: bytes) -> None:
    found = parse_duration(_text(data))
    assert parse_duration(duration_text(found)) == found


def settings(data: bytes) -> None:
    text = _text(data)
    for parse in (
        parse_absolute_path,
        parse_boolean,
        parse_server_url,
        parse_text,
        parse_address,
        parse_tls_name,
        check_store_url,
    ):
        try:
            parse(text)
        except HoldfastError as error:
            assert "\n" not in error.message


def config_file(data: bytes) -> None:
    found = choose_config_file(
        flags={"config": ["c"]}, environ={}, usual_path="", read=lambda p: data
    )
    assert found is not None


def shown(data: bytes) -> None:
    assert "\x1b" not in printable(_text(data))
