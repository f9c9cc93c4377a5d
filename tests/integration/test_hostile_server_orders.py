"""What a hostile server says, and what the real agent makes of it: refused, said, and it lives on.

Each row is one attack with its outcome. After each the same agent carries out an honest order, and
nothing outside of what its pod allows was made, changed or shown.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from holdfast_contract.ids import new_ulid
from holdfast_contract.limits import COUNT_MAX, MESSAGE_BYTES_MAX
from holdfast_contract.protocol import control
from holdfast_contract.protocol.control import Browse, JobState, Mode
from tests.support.fake_server import FakeServer, RealAgent
from tests.support.restore_bench import RestoreBench
from tests.support.samples import DOMAIN_RECORD

ROOT_PATHS = ("/etc", "/", "{volume}/../outside", "{volume}/./a", "volume", "", "{outside}")
packed = msgspec.msgpack.encode

# The tests look at the disk in the agent's own loop.
pytestmark = [pytest.mark.blocking, pytest.mark.timeout(120)]


@pytest.fixture
def bench(tmp_path: Path) -> RestoreBench:
    bench = RestoreBench(tmp_path)
    (bench.volume / "a").mkdir()
    (bench.volume / "a" / "one").write_bytes(b"one")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "canary-name").write_bytes(b"canary content")
    bench.backed_up()
    for place in (*(tmp_path / "state").glob("*.job"), *(tmp_path / "state").glob("*.refs")):
        place.unlink()  # That job has been told.
    return bench


@pytest.fixture
async def server(bench: RestoreBench) -> AsyncIterator[FakeServer]:
    async with FakeServer(bench.repository) as server:
        yield server


def listing(top: Path) -> set[str]:
    """Return everything that stands outside the agent's state and roots."""
    parts = ("state", "volume", "out")
    return {str(path) for path in top.rglob("*") if path.relative_to(top).parts[0] not in parts}


def standing(top: Path) -> dict[str, tuple[int, ...]]:
    """Return what stands anywhere but in the agent's state."""
    found = {path: path.lstat() for path in top.rglob("*") if "state" not in path.parts}
    return {
        str(path): (info.st_mode, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
        for path, info in found.items()
    }


async def lives_on(server: FakeServer, bench: RestoreBench, agent: RealAgent) -> None:
    """Show that the agent still works after an attack."""
    done = await server.ends(bench.order())
    assert done.state in (JobState.COMPLETED, JobState.COMPLETED_WITH_SKIPS), done.error
    assert agent.is_alive


# --- frames
def order_with_job(job: str) -> bytes:
    return packed({"t": "verify", "job": job, "item": [bytes(32), "c", b"/"]})


FRAMES: dict[str, bytes | str] = {
    "an unknown kind": packed({"t": "run", "command": "id"}),
    "a hook": packed({"t": "backup", "hook": "sh -c id"}),
    "an unknown field": packed({"t": "cancel", "job": new_ulid(), "url": "http://x/"}),
    "a text frame": '{"t": "cancel"}',
    "no MessagePack": b"\xc1\xff\x00",
    "an empty frame": b"",
    "a deep nest": b"\x91" * 50_000,
    "a map that says four billion": b"\xdf\xff\xff\xff\xff",
    "a frame beyond the limit": bytes(MESSAGE_BYTES_MAX + 1),
    "a message of the other side": packed({"t": "accepted", "job": new_ulid()}),
    "a wrong type": packed({"t": "cancel", "job": 5}),
    "a negative rate": packed({"t": "settings", "settings": {"limit_upload": -1}}),
    "a rate beyond 63 bits": packed({"t": "settings", "settings": {"limit_upload": 1 << 63}}),
    "a job id that is a path": order_with_job("../../../../../../tmp/evil"),
    "a job id with a slash": order_with_job("../outside/" + "X" * 15),
    "a job id with NUL": order_with_job("01ARZ3NDEKTSV4RRFFQ69G5FA\0"),
    "a job id with a line's end": order_with_job("01ARZ3NDEKTSV4RRFFQ69G5FA\n"),
    "a query outside the vocabulary": packed({"t": "query", "query": new_ulid(), "kind": "exec"}),
    "a query id that is a path": packed(
        {"t": "query", "query": "../../v1/tokens/AAAAAAAAAA", "kind": "browse"}
    ),
    "a restore of nothing": packed({"t": "restore", "job": new_ulid(), "items": []}),
}


@pytest.mark.parametrize("attack", FRAMES)
async def test_a_frame_outside_the_vocabulary_ends_the_connection_and_nothing_else(
    bench: RestoreBench, server: FakeServer, attack: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = listing(bench.top)
    async with RealAgent(server, bench.top) as agent:
        await server.send_frame(FRAMES[attack])
        await server.until(lambda: server.welcomes == 2, "the agent dials again")
        await lives_on(server, bench, agent)
    assert listing(bench.top) == before
    assert {path.name for path in (bench.top / "state").iterdir() if "evil" in path.name} == set()
    assert any("no connection" in r.getMessage() or "disconnected" in r.getMessage()
               for r in caplog.records)  # fmt: skip


TIMELESS: dict[str, control.ToAgent] = {
    "a second welcome": control.Welcome(
        client="shop/other", token="t", settings=control.AgentSettings(), heartbeat_seconds=-1.0
    ),
    "a second challenge": control.Challenge(
        nonce=bytes(32), protocol_min=9, protocol_max=9, server_version="x"
    ),
    "a cancel of an unknown job": control.Cancel(job=new_ulid()),
    "the end of an unknown job": control.FinishedSeen(job=new_ulid()),
    "a cancel of an unknown query": control.CancelQuery(query=new_ulid()),
    "absurd rates": control.NewSettings(
        settings=control.AgentSettings(limit_upload=COUNT_MAX, limit_download=COUNT_MAX)
    ),
}


@pytest.mark.parametrize("attack", TIMELESS)
async def test_a_message_at_the_wrong_time_changes_nothing(
    bench: RestoreBench, server: FakeServer, attack: str
) -> None:
    async with RealAgent(server, bench.top) as agent:
        await server.send(TIMELESS[attack])
        await lives_on(server, bench, agent)
        assert server.welcomes == 1


# --- orders
def places(bench: RestoreBench, path: str) -> bytes:
    return path.format(volume=bench.volume, outside=bench.top / "outside").encode()


BACKUPS: dict[str, tuple[dict[str, Any], str]] = {
    "the system's files": ({"paths": ["/etc"]}, "outside-roots"),
    "everything": ({"paths": ["/"]}, "outside-roots"),
    "a sibling directory": ({"paths": ["{outside}"]}, "outside-roots"),
    "a name that begins like the root": ({"paths": ["{volume}-too"]}, "outside-roots"),
    "one path of two outside": ({"paths": ["{volume}", "/etc"]}, "outside-roots"),
    "..": ({"paths": ["{volume}/../outside"]}, "invalid"),
    ".": ({"paths": ["{volume}/./a"]}, "invalid"),
    "a relative path": ({"paths": ["volume"]}, "invalid"),
    "an empty path": ({"paths": [""]}, "invalid"),
    "NUL": ({"paths": ["{volume}/a\0/etc"]}, "invalid"),
    "slashes": ({"paths": ["//etc///"]}, "outside-roots"),
    "an exclude that is none": ({"excludes": ["["]}, "invalid"),
    "an exclude of two lines": ({"excludes": ["a\n/etc"]}, "invalid"),
    "an exclude that ends in nothing": ({"excludes": ["a\\"]}, "invalid"),
    "a dry run of the system": ({"paths": ["/etc"], "dry_run": True}, "outside-roots"),
}


@pytest.mark.parametrize("attack", BACKUPS)
async def test_a_backup_of_what_is_not_allowed_is_refused_before_anything_is_sent(
    bench: RestoreBench, server: FakeServer, attack: str, caplog: pytest.LogCaptureFixture
) -> None:
    changes, code = BACKUPS[attack]
    if "paths" in changes:
        changes = {**changes, "paths": [places(bench, path) for path in changes["paths"]]}
    async with RealAgent(server, bench.top) as agent:
        finished = await server.ends(bench.order(**changes))
        assert (finished.state, finished.error and finished.error.code) == (JobState.FAILED, code)
        assert "put" not in server.calls and "have" not in server.calls
        assert any(
            getattr(r, "code", code) == code for r in caplog.records if "fails" in r.getMessage()
        )
        await lives_on(server, bench, agent)


RESTORES: dict[str, tuple[dict[str, Any], str, Mode]] = {
    "to the system": ({"target": "/etc/x"}, "outside-roots", Mode.IN_PLACE),
    "to a sibling directory": ({"target": "{outside}"}, "outside-roots", Mode.IN_PLACE),
    "to ..": ({"target": "{volume}/../outside"}, "invalid", Mode.IN_PLACE),
    "to a relative path": ({"target": "out"}, "invalid", Mode.IN_PLACE),
    "to NUL": ({"target": "{volume}/a\0b"}, "invalid", Mode.IN_PLACE),
    "through a symlink": ({"target": "{volume}/way/x"}, "refused", Mode.IN_PLACE),
    "of ..": ({"path": "/../etc"}, "invalid", Mode.IN_PLACE),
    "of a relative path": ({"path": "etc"}, "invalid", Mode.IN_PLACE),
    "in place where only a target is allowed": ({}, "refused", Mode.ALTERNATE),
    "in place where nothing is allowed": ({}, "refused", Mode.NEVER),
    "to a target where nothing is allowed": ({"target": "{volume}/x"}, "refused", Mode.NEVER),
    "as a dry run where nothing is allowed": ({"dry_run": True}, "refused", Mode.NEVER),
    "in place, stripped": ({"strip": True}, "invalid", Mode.IN_PLACE),
    "with an include that is none": ({"include": ["["]}, "invalid", Mode.IN_PLACE),
    "deleting outside": (
        {"target": "{outside}", "delete": True, "overwrite": control.Overwrite.ALWAYS},
        "outside-roots",
        Mode.IN_PLACE,
    ),
}


@pytest.mark.parametrize("attack", RESTORES)
async def test_a_restore_that_is_not_allowed_is_refused_before_anything_is_written(
    bench: RestoreBench, server: FakeServer, attack: str
) -> None:
    changes, code, mode = RESTORES[attack]
    (bench.volume / "way").symlink_to(bench.top / "outside")
    before = standing(bench.top)
    target = changes.get("target")
    fields = {name: value for name, value in changes.items() if name not in ("target", "path")}
    order = bench.restore_order([places(bench, changes.get("path", "/"))], **fields)
    if target:
        order = msgspec.structs.replace(order, target=places(bench, target))
    async with RealAgent(server, bench.top, restore=mode) as agent:
        finished = await server.ends(order)
        assert (finished.state, finished.error and finished.error.code) == (JobState.FAILED, code)
        assert standing(bench.top) == before
        await lives_on(server, bench, agent)


async def test_a_restore_root_that_became_a_symlink_after_the_start_leads_nowhere(
    bench: RestoreBench, server: FakeServer
) -> None:
    """The application owns the directory above the root and puts a symlink in its place."""
    outside = bench.top / "outside"
    before = listing(bench.top)
    async with RealAgent(server, bench.top) as agent:
        bench.out.symlink_to(outside)
        order = bench.restore_order(target=bench.out)
        finished = await server.ends(order)
        assert finished.error is not None and finished.error.code == "refused"
        assert listing(bench.top) == before
        await lives_on(server, bench, agent)


# --- questions
QUERIES: dict[str, tuple[dict[str, Any], str, Browse]] = {
    "of the system": ({"kind": "browse", "path": "/etc"}, "outside-roots", Browse.NAMES),
    "of a sibling": ({"kind": "browse", "path": "{outside}"}, "outside-roots", Browse.NAMES),
    "of ..": ({"kind": "browse", "path": "{volume}/.."}, "invalid", Browse.NAMES),
    "of NUL": ({"kind": "browse", "path": "{volume}/\0"}, "invalid", Browse.NAMES),
    "of a relative path": ({"kind": "browse", "path": "etc"}, "invalid", Browse.NAMES),
    "of what is behind a symlink": ({"kind": "browse", "path": "{volume}/way/x"}, "not-found",
                                    Browse.NAMES),
    "where nothing is shown": ({"kind": "browse", "path": "{volume}"}, "not-at-hand", Browse.NEVER),
    "ls where nothing is shown": ({"kind": "ls", "items": True}, "not-at-hand", Browse.NEVER),
    "find where nothing is shown": (
        {"kind": "find", "items": True, "pattern": "*"}, "not-at-hand", Browse.NEVER,
    ),
    "dump where names are shown": ({"kind": "dump", "items": True}, "not-at-hand", Browse.NAMES),
    "ls of no snapshot": ({"kind": "ls"}, "invalid", Browse.NAMES),
    "diff of one": ({"kind": "diff", "items": True}, "invalid", Browse.NAMES),
    "an empty pattern": (
        {"kind": "find", "items": True, "pattern": " "}, "invalid", Browse.NAMES,
    ),
    "a blob that is none": ({"kind": "report", "blob": bytes(100)}, "damaged", Browse.NAMES),
    "a blob of nothing": ({"kind": "report", "blob": b"\1"}, "damaged", Browse.NAMES),
}  # fmt: skip


@pytest.mark.parametrize("attack", QUERIES)
async def test_a_question_that_the_pod_does_not_answer_is_refused_without_a_name(
    bench: RestoreBench, server: FakeServer, attack: str
) -> None:
    fields, code, browse = QUERIES[attack]
    fields = dict(fields)
    (bench.volume / "way").symlink_to(bench.top / "outside")
    if "path" in fields:
        fields["path"] = places(bench, fields["path"])
    if fields.pop("items", None):
        fields["items"] = [control.RestoreItem(bench.repository.head("shop/db-0")[1], "c", b"/")]
    async with RealAgent(server, bench.top, browse=browse) as agent:
        answer = await server.answer(control.Query(query=new_ulid(), **fields))
        assert answer.error == code
        assert b"canary" not in answer.body and b"one" not in answer.body
        await lives_on(server, bench, agent)


async def test_a_pod_that_shows_nothing_tells_no_name_in_plans_skips_or_progress(
    bench: RestoreBench, server: FakeServer
) -> None:
    (bench.volume / "a" / "one").unlink()
    os.mkfifo(bench.volume / "a" / "one")
    async with RealAgent(server, bench.top, browse=Browse.NEVER):
        order = bench.restore_order(dry_run=True)
        finished = await server.ends(order)
        assert finished.error is None and finished.summary["overwritten"] == 2
        assert server.results[order.job]["plan"] == []
        assert all(message.current == b"" for message in server.progress)


# --- floods
async def test_floods_of_orders_and_questions_are_bounded_and_the_agent_lives_on(
    bench: RestoreBench, server: FakeServer
) -> None:
    gate = asyncio.Event()
    peak = 0

    async def waiting(request: web.Request) -> web.StreamResponse:
        nonlocal peak
        peak = max(peak, threading.active_count())
        await gate.wait()
        return web.Response(body=DOMAIN_RECORD)

    server.lies["domain"] = waiting
    before = threading.active_count()
    async with RealAgent(server, bench.top) as agent:
        orders = [bench.order() for _ in range(1500)]
        for order in orders:
            await server.send(order)
            await server.send(control.Cancel(job=new_ulid()))
            await server.send(control.Query(query=new_ulid(), kind="browse", path=b"/etc"))
        await server.until(
            lambda: sum(one.job in server.ended for one in orders) >= 1500 - 16, "most are refused"
        )
        refused = [server.ended[one.job] for one in orders if one.job in server.ended]
        assert {one.error and one.error.code for one in refused} == {"too-many"}
        assert peak - before < 100
        assert len(list((bench.top / "state").glob("*.job"))) <= 16
        for order in orders:
            await server.send(control.Cancel(job=order.job))
        gate.set()
        await server.until(lambda: all(one.job in server.ended for one in orders), "all have ended")
        del server.lies["domain"]
        await lives_on(server, bench, agent)


# --- where it dials
async def test_no_redirect_is_followed_on_any_way(
    bench: RestoreBench, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    """aiohttp would follow: a server could have the agent call anything in its network."""
    called: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        called.append(f"{request.path} {request.headers.get('Authorization')}")
        return web.Response()

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", elsewhere)
    async with TestServer(app) as other:
        honest = server._control
        for status in (301, 302, 303, 307, 308):

            async def redirect(request: web.Request, status: int = status) -> web.StreamResponse:
                where = str(other.make_url("/metadata"))
                return web.Response(status=status, headers={"Location": where})

            server.lies["control"] = redirect
            asked = server.calls.count("control")
            async with RealAgent(server, bench.top) as agent:
                await server.until(partial(dialled, server, asked + 2), "it dials again")
                server.lies["control"] = honest
                for route in ("domain", "manifest", "chunks"):
                    server.lies[route] = redirect
                    finished = await server.ends(bench.restore_order(target=bench.out))
                    assert finished.error is not None and finished.error.code == "invalid"
                    del server.lies[route]
                await lives_on(server, bench, agent)
            server.ended.clear()
    assert called == []
    assert any("no connection" in record.getMessage() for record in caplog.records)


async def test_a_server_with_another_authoritys_certificate_learns_nothing(
    bench: RestoreBench, tmp_path: Path
) -> None:
    (tmp_path / "good").mkdir()
    (tmp_path / "evil").mkdir()
    good, evil = certified(tmp_path / "good"), certified(tmp_path / "evil")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*evil[1:])
    async with FakeServer(bench.repository, context) as server:
        trusting = ssl.create_default_context(cafile=str(good[0]))
        tried = asyncio.Event()
        loop = asyncio.get_running_loop()

        class Noting(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                if "no connection" in record.getMessage():
                    loop.call_soon_threadsafe(tried.set)

        handler = Noting()
        logger = logging.getLogger("holdfast_agent")
        logger.addHandler(handler)
        try:
            async with RealAgent(server, bench.top, context=trusting) as agent:
                await asyncio.wait_for(tried.wait(), 60)
                assert agent.is_alive
        finally:
            logger.removeHandler(handler)
        assert server.calls == [] and server.hellos == []


def dialled(server: FakeServer, times: int) -> bool:
    return server.calls.count("control") >= times


def certified(folder: Path) -> tuple[Path, Path, Path]:
    """Return (authority, certificate, key) for this machine, of an authority of its own."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, folder.name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2120, 1, 1, tzinfo=UTC))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, SHA256())
    )
    pem, private = folder / "ca.pem", folder / "key.pem"
    pem.write_bytes(certificate.public_bytes(Encoding.PEM))
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return pem, pem, private
