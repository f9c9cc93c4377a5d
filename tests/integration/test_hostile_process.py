"""A real server under abuse by strangers, over TLS: others are served, its memory stays flat."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.support.api_process import resident_bytes
from tests.support.world import World

MIB = 1 << 20
HALF_OPEN = 200
HALF_OPEN_BYTES_MAX = 160 * MIB
"""For 200 connections, most of it TLS: a quarter of a MiB each where a handshake has begun."""
FLAT_BYTES_MAX = 32 * MIB
"""Beside caches that fill; 2,000 requests that each left their head would be more."""
GARBAGE = 400


def context_of(world: World) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=world.ca)


def address_of(world: World) -> tuple[str, int]:
    host, port = world.url.removeprefix("https://").split(":")
    return host, int(port)


def server_bytes(world: World) -> int:
    assert world.server is not None
    return resident_bytes(world.server.popen.pid)


@contextmanager
def secured(world: World) -> Iterator[ssl.SSLSocket]:
    """Open a TLS connection to the server inside the block."""
    host, port = address_of(world)
    with (
        socket.create_connection((host, port), timeout=60) as plain,
        context_of(world).wrap_socket(plain, server_hostname=host) as wire,
    ):
        yield wire


def half_open(world: World, stack: ExitStack, number: int) -> None:
    """Begin a connection and stop: before, inside or after the handshake, or inside a head."""
    host, port = address_of(world)
    plain = stack.enter_context(socket.create_connection((host, port), timeout=60))
    if number % 4 == 0:
        return
    if number % 4 == 1:
        plain.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01")
        return
    wire = stack.enter_context(context_of(world).wrap_socket(plain, server_hostname=host))
    if number % 4 == 3:
        wire.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 10_000)


def test_half_open_connections_hold_up_nobody_and_take_little(world: World) -> None:
    world.json("status")
    before = server_bytes(world)
    with ExitStack() as stack:
        for number in range(HALF_OPEN):
            half_open(world, stack, number)
        for _ in range(5):
            assert world.get("/healthz") == 200
        assert world.json("status")["version"]
        grown = server_bytes(world) - before
        assert grown < HALF_OPEN_BYTES_MAX, f"{grown / MIB:.0f} MiB"
    assert world.get("/healthz") == 200


NONSENSE = (
    b"\x00" * 400,
    b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000,
    b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"GET /v1/status HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer hfa_%s\r\n\r\n" % (b"A" * 43),
    b"PUT /agent/v1/jobs/x/result HTTP/1.1\r\nHost: x\r\nContent-Length: 67108864\r\n\r\n"
    + bytes(200_000),
)


def test_nonsense_of_strangers_leaves_nothing_in_memory(world: World) -> None:
    world.json("status")
    _nonsense(world, GARBAGE // 4)
    before = server_bytes(world)
    _nonsense(world, GARBAGE)
    grown = server_bytes(world) - before
    assert grown < FLAT_BYTES_MAX, f"{grown / MIB:.0f} MiB"
    assert world.json("status")["version"]
    log = world.logs()["server"]
    assert "Traceback" not in log
    assert "aaaa" not in log


def _nonsense(world: World, count: int) -> None:
    for number in range(count):
        with secured(world) as wire:
            try:
                wire.sendall(NONSENSE[number % len(NONSENSE)])
                first = wire.recv(4096)
            except (ConnectionError, ssl.SSLError):
                continue
            assert first[:12] in (b"", b"HTTP/1.0 400", b"HTTP/1.1 400", b"HTTP/1.1 401"), first


@pytest.mark.soak
def test_nonsense_of_strangers_for_long_leaves_nothing_in_memory(world: World) -> None:
    _nonsense(world, GARBAGE)
    before = server_bytes(world)
    _nonsense(world, 20_000)
    assert server_bytes(world) - before < FLAT_BYTES_MAX
