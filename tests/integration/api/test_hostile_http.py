"""Hostile input over HTTP, as bytes: refused in our words, bounded, and others are served."""

from __future__ import annotations

import asyncio
import gzip
import json
import struct
import tracemalloc
import zlib

import pytest
from aiohttp import WSMsgType

from holdfast_contract.limits import AGENT_MESSAGE_BYTES_MAX, JSON_BODY_BYTES_MAX, MIB
from holdfast_contract.protocol.control import Refuse, decode_to_agent
from holdfast_server.api import bodies
from holdfast_server.api import serving as serving_module
from holdfast_server.control import reception
from tests.support.apiworld import ActedAgent, ApiWorld
from tests.support.raw_http import Wire, asked, head

ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
JSON = "Content-Type: application/json"
CONTROL = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
)


async def is_served(world: ApiWorld) -> bool:
    """Tell whether somebody else is answered meanwhile."""
    status = await world.call("GET", "/v1/status")
    return bool(status["version"])


async def tokens(world: ApiWorld) -> int:
    """Return how many tokens there are: a refused request has made none."""
    return len((await world.call("GET", "/v1/tokens"))["items"])


# --- heads
NO_HTTP = {
    "not a request": b"GARBAGE\r\n\r\n",
    "an unknown method": head("FOO", "/healthz"),
    "another protocol": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "a space in a name": head("GET", "/healthz", "X Y: 1"),
    "a folded header": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: 1\r\n 2\r\n\r\n",
    "NUL in a header": head("GET", "/healthz", "X: a\0b"),
    "NUL in the path": head("GET", "/v1/do\0mains"),
    "a bare line feed": b"GET /healthz HTTP/1.1\nHost: x\n\n\r\n\r\n",
    "a header of 40 kB": head("GET", "/healthz", "X: " + "a" * 40_000),
    "a path of 20 kB": head("GET", "/" + "a" * 20_000),
    "1,000 headers": head("GET", "/healthz", *["X: a"] * 1000),
    "a negative length": head("POST", "/v1/jobs", "Content-Length: -5"),
    "a length beyond counting": head("POST", "/v1/jobs", "Content-Length: " + "9" * 30),
    "two lengths": head("POST", "/v1/jobs", "Content-Length: 5", "Content-Length: 6") + b"12345",
    "length and chunks": head(
        "POST", "/v1/tokens", "Content-Length: 5", "Transfer-Encoding: chunked"
    )
    + b"0\r\n\r\n",
    "chunks and length": head(
        "POST", "/v1/tokens", "Transfer-Encoding: chunked", "Content-Length: 5"
    )
    + b"0\r\n\r\n",
    "an unknown transfer": head("POST", "/v1/tokens", "Transfer-Encoding: xchunked") + b"0\r\n\r\n",
    "chunked twice": head("POST", "/v1/tokens", "Transfer-Encoding: chunked, chunked")
    + b"0\r\n\r\n",
}


@pytest.mark.parametrize("name", NO_HTTP)
async def test_what_is_no_http_is_refused_in_our_words_and_ends_the_connection(
    world: ApiWorld, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    wire = await Wire.open(world.port)
    await wire.send(NO_HTTP[name])
    answer = await wire.answer()
    assert (answer.problem["code"], answer.status) == ("usage", 400)
    assert answer.headers["server"] == "Holdfast"
    assert answer.problem["request_id"] == answer.headers["request-id"]
    assert b"aaaa" not in answer.body
    # Whatever follows on that connection is not read as another request.
    await wire.send(head("GET", "/healthz"))
    assert b"HTTP/1.1 200" not in await wire.until_closed()
    await wire.close()
    assert caplog.text == ""
    assert await is_served(world)


async def test_a_header_of_ten_thousand_bytes_and_an_absolute_address_are_no_failure(
    world: ApiWorld,
) -> None:
    for data in (
        head("GET", "/healthz", "X: " + "a" * 10_000),
        head("GET", "http://elsewhere/healthz"),
        head("GET", "/healthz", "Range: bytes=0-1,5-6," + "1-2," * 1000 + "3-"),
    ):
        answer = await asked(world.port, data)
        assert (answer.status, json.loads(answer.body)) == (200, {"status": "ok"})
        assert "content-range" not in answer.headers


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "//healthz", 404),
        ("GET", "/v1/../healthz", 404),
        ("GET", "/v1/%2e%2e/healthz", 404),
        ("GET", "/v1%2fstatus", 404),
        ("GET", "/v1/status/", 404),
        ("GET", "/v1/status;x", 404),
        ("GET", "/V1/status", 404),
        ("GET", "/v1/clients/shop%2f..%2f/db-0", 400),
        ("GET", "/v1/clients/shop/..", 400),
        ("DELETE", "/v1/tokens/..%2f..", 404),
        ("OPTIONS", "*", 404),
        ("CONNECT", "elsewhere:80", 404),
        ("TRACE", "/v1/status", 405),
        ("DELETE", "/v1/snapshots/" + "ab" * 32, 405),
        ("DELETE", "/agent/v1/snapshots/" + "ab" * 32 + "/manifest", 405),
        ("DELETE", f"/agent/v1/sessions/{ULID}/packs/{ULID}", 405),
    ],
)
async def test_a_path_means_one_route_or_none(
    world: ApiWorld, method: str, path: str, status: int
) -> None:
    answer = await asked(world.port, head(method, path, token=world.token))
    assert answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_method_that_is_overridden_by_a_header_stays_what_it_is(world: ApiWorld) -> None:
    row = await world.call("POST", "/v1/tokens", json={"role": "admin"})
    for name in ("X-HTTP-Method-Override", "X-Method-Override", "X-HTTP-Method"):
        data = head("POST", f"/v1/tokens/{row['id']}", f"{name}: DELETE", token=world.token)
        assert (await asked(world.port, data)).status == 405
    assert await world.call("GET", "/v1/status", token=row["token"])


async def test_invented_methods_make_no_series_of_metrics(world: ApiWorld) -> None:
    for method in ("PROPFIND", "MKCOL", "PURGE", "SUBSCRIBE"):
        assert (await asked(world.port, head(method, "/v1/status"))).status == 405
    text = (await world.call("GET", "/metrics")).decode()
    assert 'method="other"' in text
    assert "PROPFIND" not in text


# --- one connection, many requests
async def test_requests_in_a_row_are_answered_in_their_order(world: ApiWorld) -> None:
    wire = await Wire.open(world.port)
    await wire.send(head("GET", "/healthz") * 50 + head("GET", "/v1/nothing"))
    for _ in range(50):
        assert (await wire.answer()).status == 200
    assert (await wire.answer()).status == 404
    await wire.close()


async def test_a_request_hidden_in_a_body_is_a_body(world: ApiWorld) -> None:
    hidden = head("POST", "/v1/tokens", token=world.token) + b'{"role": "admin"}'
    count = await tokens(world)
    for token in (world.token, ""):
        wire = await Wire.open(world.port)
        lines = (JSON, f"Content-Length: {len(hidden)}")
        await wire.send(head("POST", "/v1/jobs", *lines, token=token) + hidden)
        assert (await wire.answer()).status == (400 if token else 401)
        assert b"HTTP/1.1 201" not in await _rest(wire)
    assert await tokens(world) == count


async def _rest(wire: Wire) -> bytes:
    """Return what still comes when this side has nothing more to say."""
    wire.writer.write_eof()
    found = await wire.until_closed()
    await wire.close()
    return found


# --- bodies
def bomb(encoding: str) -> bytes:
    """Return 64 MiB of zeros, compressed."""
    plain = bytes(64 * MIB)
    if encoding == "gzip":
        return gzip.compress(plain)
    return zlib.compress(plain)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "x-gzip", "gzip, gzip", "?"])
async def test_nothing_that_arrives_is_inflated(world: ApiWorld, encoding: str) -> None:
    right = json.dumps({"role": "admin"}).encode()
    count = await tokens(world)
    for body in (right, gzip.compress(right), zlib.compress(right)):
        lines = (JSON, f"Content-Encoding: {encoding}", f"Content-Length: {len(body)}")
        answer = await asked(
            world.port, head("POST", "/v1/tokens", *lines, token=world.token) + body
        )
        assert (answer.status, answer.problem["code"]) == (400, "usage")
    assert await tokens(world) == count


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_compressed_bomb_takes_no_memory(world: ApiWorld, encoding: str) -> None:
    agent = await world.agent()
    data = await asyncio.to_thread(bomb, encoding)
    lines = (f"Content-Encoding: {encoding}", f"Content-Length: {len(data)}")
    paths = (f"/agent/v1/jobs/{ULID}/result", f"/agent/v1/sessions/{ULID}/packs/{ULID}")
    tracemalloc.start()
    try:
        for token in (agent.token, ""):
            for path in paths:
                await asked(world.port, head("PUT", path, *lines, token=token) + data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * MIB


DEEP = b'{"role":"admin","label":' + b"[" * 500_000 + b"]" * 500_000 + b"}"
WRONG_BODIES = {
    "deep": (DEEP, "invalid"),
    "deep and open": (b'{"a":' * 150_000, "invalid"),
    "a number beyond counting": (b'{"role":"admin","ttl_seconds":' + b"9" * 5000 + b"}", "invalid"),
    "infinite": (b'{"role":"admin","ttl_seconds":1e999999}', "invalid"),
    "no number": (b'{"role":"admin","ttl_seconds":NaN}', "invalid"),
    "not UTF-8": (b'{"role":"admin","label":"\xff\xfe"}', "invalid"),
    "half a pair": (b'{"role":"admin","label":"\\ud800"}', "invalid"),
    "unknown field": (b'{"role":"admin","is_root":true}', "invalid"),
    "two documents": (b'{"role":"admin"}{"role":"admin"}', "invalid"),
    "a mark before it": (b'\xef\xbb\xbf{"role":"admin"}', "invalid"),
    "another role": (b'{"role":"root"}', "invalid"),
    "a list": (b"[]", "invalid"),
    "nothing": (b"", "invalid"),
    "too long": (b'{"role":"admin","label":"' + b"a" * JSON_BODY_BYTES_MAX + b'"}', "too-large"),
}


@pytest.mark.parametrize("name", WRONG_BODIES)
async def test_a_body_that_is_no_such_request_makes_nothing(world: ApiWorld, name: str) -> None:
    body, code = WRONG_BODIES[name]
    count = await tokens(world)
    headers = {"Content-Type": "application/json"}
    problem = await world.refused("POST", "/v1/tokens", data=body, headers=headers)
    assert problem["code"] == code
    assert len(problem["detail"]) < 500
    assert await tokens(world) == count


async def test_of_two_equal_keys_the_last_one_counts_for_everybody(world: ApiWorld) -> None:
    headers = {"Content-Type": "application/json"}
    body = b'{"role":"admin","label":"first","label":"last"}'
    made_row = await world.call("POST", "/v1/tokens", data=body, headers=headers)
    listed = (await world.call("GET", "/v1/tokens"))["items"][-1]
    assert (made_row["label"], listed["label"]) == ("last", "last")
    # Each of them is looked at, so that nothing passes behind another one's back.
    for body in (b'{"role":"admin","role":"x"}', b'{"role":"x","role":"admin"}'):
        problem = await world.refused("POST", "/v1/tokens", data=body, headers=headers)
        assert problem["code"] == "invalid"


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "multipart/form-data", "a/b;c"])
async def test_another_content_type_than_json_is_refused(world: ApiWorld, kind: str) -> None:
    headers = {"Content-Type": kind}
    data = b'{"role":"admin"}'
    problem = await world.refused("POST", "/v1/tokens", data=data, headers=headers)
    assert problem["code"] == "usage"


async def test_who_asks_before_sending_is_told_after_the_token_is_seen(world: ApiWorld) -> None:
    lines = (JSON, "Expect: 100-continue", "Content-Length: 16")
    answer = await asked(world.port, head("POST", "/v1/tokens", *lines))
    assert answer.status == 401
    wire = await Wire.open(world.port)
    await wire.send(head("POST", "/v1/tokens", *lines, token=world.token))
    assert (await wire.answer()).status == 100
    await wire.send(b'{"role":"admin"}')
    assert (await wire.answer()).status == 201
    await wire.close()
    odd = (JSON, "Expect: the-unexpected", "Content-Length: 16")
    answer = await asked(world.port, head("POST", "/v1/tokens", *odd, token=world.token))
    assert (answer.status, answer.problem["code"]) == (400, "usage")


async def test_broken_chunks_end_the_request_and_nothing_else(world: ApiWorld) -> None:
    start = head("POST", "/v1/tokens", JSON, "Transfer-Encoding: chunked", token=world.token)
    count = await tokens(world)
    for chunks in (b"zz\r\n", b"5\r\nabcdefgh\r\n", b"-1\r\n", b"FFFFFFFFFFFFFFFFFF\r\n"):
        answer = await asked(world.port, start + chunks)
        assert answer.status == 400
    wire = await Wire.open(world.port)
    await wire.send(start + b"10\r\n{")
    await wire.close()
    assert await tokens(world) == count


@pytest.mark.parametrize(
    "query",
    [
        "since=9999-12-31",
        "until=0001-01-01",
        "since=9999-12-31T23:59:59.999999999Z",
        "since=0001-01-01T00:00:00%2B23:59",
        "latest=2147483648",
        "after=4611686018427387904",
        "client=%00/%00",
        "tag=%F0%9F%92%A9",
    ],
)
async def test_numbers_and_times_at_their_ends_are_no_failure(world: ApiWorld, query: str) -> None:
    async with await world.request("GET", f"/v1/snapshots?{query}") as response:
        assert response.status in (200, 400)
    moment = query.partition("=")[2]
    async with await world.request("GET", f"/v1/snapshots/shop%2Fdb-0@{moment}") as response:
        assert response.status in (400, 404)


# --- slow ones, and many
async def test_a_head_that_drips_is_given_up_and_others_are_served(
    world: ApiWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_module, "HEAD_SECONDS", 0.5)
    wire = await Wire.open(world.port)
    drip = asyncio.create_task(_drip(wire, b"GET /healthz HTTP/1.1\r\nX: ", b"a"))
    assert await is_served(world)
    assert await wire.until_closed() == b""
    drip.cancel()
    await wire.close()


async def _drip(wire: Wire, first: bytes, then: bytes) -> None:
    await wire.send(first)
    while True:
        await wire.send(then)
        await asyncio.sleep(0.02)


async def test_a_small_body_that_drips_is_given_up(
    world: ApiWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies.read_body, "__defaults__", (0.5,))
    wire = await Wire.open(world.port)
    start = head("POST", "/v1/tokens", JSON, "Content-Length: 100000", token=world.token)
    drip = asyncio.create_task(_drip(wire, start, b" "))
    answer = await wire.answer()
    assert (answer.status, answer.problem["code"]) == (503, "unreachable")
    drip.cancel()
    await wire.close()


async def test_two_hundred_half_open_connections_hold_up_nobody(world: ApiWorld) -> None:
    starts = (
        b"",
        b"G",
        head("GET", "/healthz")[:-2],
        head("POST", "/v1/jobs", "Content-Length: 9"),
    )
    wires = [await Wire.open(world.port) for _ in range(200)]
    for number, wire in enumerate(wires):
        await wire.send(starts[number % len(starts)])
    for _ in range(5):
        assert await is_served(world)
    for wire in wires:
        await wire.close()


async def test_beyond_the_connections_that_wait_the_oldest_goes_first(
    world: ApiWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_module, "WAITING_MAX", 8)
    wires = [await Wire.open(world.port) for _ in range(12)]
    for wire in wires[:4]:
        assert await wire.until_closed() == b""
    for wire in wires[4:]:
        await wire.send(head("GET", "/healthz"))
        assert (await wire.answer()).status == 200
    # Those that have asked wait no longer, and ones that left take no room.
    patient = await Wire.open(world.port)
    for _ in range(20):
        await (await Wire.open(world.port)).close()
        assert await is_served(world)
    await patient.send(head("GET", "/healthz"))
    assert (await patient.answer()).status == 200
    for wire in [*wires, patient]:
        await wire.close()


def test_a_thousand_agents_that_come_back_at_once_find_room() -> None:
    assert serving_module.WAITING_MAX > 1000
    assert reception.UNPROVEN_MAX > 1000


# --- the control channel before its proof
def frame(payload: bytes, *, opcode: int = 2, fin: bool = True, length: int = -1) -> bytes:
    """Return a masked WebSocket frame whose length may be a lie."""
    length = len(payload) if length < 0 else length
    first = bytes([(0x80 if fin else 0) | opcode])
    if length < 126:
        first += bytes([0x80 | length])
    elif length < 1 << 16:
        first += b"\xfe" + struct.pack(">H", length)
    else:
        first += b"\xff" + struct.pack(">Q", length)
    return first + bytes(4) + payload


ABUSES = {
    "a frame of 2^62 bytes": frame(b"x", length=1 << 62),
    "a message that is too long": frame(bytes(AGENT_MESSAGE_BYTES_MAX + 1)),
    "fragments that are too long": frame(bytes(60_000), fin=False)
    + frame(bytes(60_000), opcode=0, fin=False) * 5,
    "a ping that is too long": frame(bytes(126), opcode=9),
    "a ping in fragments": frame(b"x", opcode=9, fin=False),
    "a reserved opcode": frame(b"x", opcode=5),
    "a rest without a begin": frame(b"x", opcode=0),
    "text": frame(b"hello", opcode=1),
    "no UTF-8": frame(b"\xff", opcode=1),
    "not in the vocabulary": frame(b"\x81\xa1t\xa4exec"),
    "deep": frame(b"\x91" * 100_000),
    "compressed": bytes([0xC2, 0x81]) + bytes(4) + b"x",
    "a close that lies": frame(b"\x00", opcode=8),
}


@pytest.mark.parametrize("name", ABUSES)
async def test_abuse_before_the_proof_ends_that_connection_only(world: ApiWorld, name: str) -> None:
    agent = await world.agent()
    wire = await Wire.open(world.port)
    await wire.send(head("GET", "/agent/v1/control", *CONTROL))
    assert (await wire.answer()).status == 101
    await wire.send(ABUSES[name])
    await wire.until_closed()
    await wire.close()
    assert not agent.is_closed
    assert (await agent.call("GET", "/domain")).startswith(b"HFDM")
    await world.until(lambda: not world.services.reception._unproven)


async def test_who_never_says_hello_is_sent_away(
    world: ApiWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reception, "HELLO_SECONDS", 0.2)
    async with world.http.ws_connect("/agent/v1/control") as socket:
        await socket.receive()
        refusal = decode_to_agent((await socket.receive(timeout=20)).data)
        assert isinstance(refusal, Refuse)
        assert refusal.code == "not-authenticated"
        assert (await socket.receive(timeout=20)).type in (WSMsgType.CLOSE, WSMsgType.CLOSED)
    await world.until_event("refused", "")


async def test_beyond_the_channels_without_a_proof_the_oldest_goes_first(
    world: ApiWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reception, "UNPROVEN_MAX", 4)
    mute = [await world.http.ws_connect("/agent/v1/control") for _ in range(6)]
    for socket in mute[:2]:
        await socket.receive(timeout=20)
        assert (await socket.receive(timeout=20)).type is WSMsgType.CLOSE
    agent = ActedAgent(world, await world.pod())
    world.agents.append(agent)
    await agent.connect()
    for socket in mute:
        await socket.close()
