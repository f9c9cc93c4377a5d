"""A hostile server or store behind the data routes, against the real agent: each lie has its end.

Each row says what the server does, with which kind of job it meets it, and the code with which the
job has to fail. Nothing forged may reach a file, and the agent works on afterwards.
"""

from __future__ import annotations

import asyncio
import os
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from holdfast_contract.ids import new_ulid
from holdfast_contract.limits import AVOIDED_IDS_MAX, MIB
from holdfast_contract.protocol import control
from holdfast_contract.protocol.control import JobState
from tests.support.fake_server import CLIENT, FakeServer, RealAgent
from tests.support.lies import BACKUP, CONTENT, LIES, VERIFY, Stage, bomb
from tests.support.restore_bench import RestoreBench
from tests.support.samples import (
    noise,
)

# The tests look at the disk in the agent's own loop.
pytestmark = [pytest.mark.blocking, pytest.mark.timeout(120)]


@pytest.fixture
def bench(tmp_path: Path) -> RestoreBench:
    bench = RestoreBench(tmp_path)
    (bench.volume / "one").write_bytes(CONTENT)
    (bench.volume / "large").write_bytes(noise("large", 700_000))
    bench.backed_up()
    for place in (*(tmp_path / "state").glob("*.job"), *(tmp_path / "state").glob("*.refs")):
        place.unlink()
    return bench


def order_of(stage: Stage, kind: str) -> Any:
    bench = stage.bench
    if kind == BACKUP:
        (bench.volume / "new").write_bytes(noise(new_ulid(), 5000))
        return bench.order(**stage.order)
    snapshot = stage.order.pop("snapshot", stage.head)
    if kind == VERIFY:
        item = control.RestoreItem(snapshot, CLIENT, b"/")
        return control.Verify(job=new_ulid(), item=item)
    return bench.restore_order(target=bench.out, snapshot=snapshot, **stage.order)


@pytest.fixture
async def stage(bench: RestoreBench) -> AsyncIterator[Stage]:
    async with FakeServer(bench.repository) as server:
        yield Stage(server, bench)


@pytest.mark.parametrize("lie", LIES)
async def test_a_lie_fails_its_job_with_its_code_and_nothing_of_it_is_taken(
    stage: Stage, lie: str, caplog: pytest.LogCaptureFixture
) -> None:
    attack, kind, code = LIES[lie]
    caplog.set_level("INFO", "holdfast_agent")
    memory = (stage.bench.state_path / "memory").read_bytes() if kind == BACKUP else b""
    attack(stage)
    async with RealAgent(stage.server, stage.bench.top) as agent:
        finished = await stage.server.ends(order_of(stage, kind))
        assert (finished.state, finished.error and finished.error.code) == (
            JobState.FAILED,
            code,
        ), finished.error
        said = [r.getMessage() for r in caplog.records]
        assert any("job fails" in text or "job ends" in text for text in said), said
        assert not [r for r in caplog.records if r.exc_info], "a defect of the agent"
        if stage.bench.out.exists():
            for path in stage.bench.out.rglob("*"):
                if path.is_file():
                    assert path.read_bytes() in (CONTENT, noise("large", 700_000)), path
        if kind == BACKUP:
            assert (stage.bench.state_path / "memory").read_bytes() == memory
        stage.server.lies.clear()
        done = await stage.server.ends(stage.bench.order())
        assert done.state is JobState.COMPLETED, done.error
        assert agent.is_alive


async def test_a_chunk_that_bombs_takes_no_memory(stage: Stage) -> None:
    bomb(stage)
    async with RealAgent(stage.server, stage.bench.top):
        order = order_of(stage, VERIFY)
        tracemalloc.start()
        try:
            finished = await stage.server.ends(order)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert finished.error is not None and finished.error.code == "damaged"
    assert peak < 64 * MIB


async def test_ids_of_damaged_chunks_end_where_no_memory_would_hold_more(stage: Stage) -> None:
    """An ascending list without end: the backup goes on with a part of it."""
    asked = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        first = int(request.query["after"] or "0", 16) + 1
        asked += 1
        ids = (number.to_bytes(32, "big") for number in range(first, first + 65_536))
        return web.Response(body=b"".join(ids))

    stage.server.lies["damaged"] = answer
    async with RealAgent(stage.server, stage.bench.top):
        finished = await stage.server.ends(stage.bench.order(damaged=1 << 60))
        assert finished.state is JobState.COMPLETED, finished.error
    assert asked == AVOIDED_IDS_MAX // 65_536


async def test_a_stream_that_is_cut_is_asked_for_again_until_a_cancel(stage: Stage) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = 100
        await response.prepare(request)
        assert request.transport is not None
        request.transport.abort()
        return response

    stage.server.lies["chunks"] = answer
    order = stage.bench.restore_order(target=stage.bench.out)
    async with RealAgent(stage.server, stage.bench.top):
        await stage.server.send(order)
        await stage.server.until(lambda: stage.server.calls.count("chunks") >= 3, "it tries again")
        await is_cancelled(stage, order)


async def test_a_stream_that_never_comes_ends_by_a_cancel(stage: Stage) -> None:
    gate = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        await gate.wait()
        return web.Response()

    stage.server.lies["chunks"] = answer
    order = stage.bench.restore_order(target=stage.bench.out)
    async with RealAgent(stage.server, stage.bench.top):
        await stage.server.send(order)
        await stage.server.until(lambda: "chunks" in stage.server.calls, "it asks")
        await is_cancelled(stage, order)
    gate.set()


async def is_cancelled(stage: Stage, order: control.Restore) -> None:
    await stage.server.send(control.Cancel(job=order.job))
    await stage.server.until(lambda: order.job in stage.server.ended, "the job ends")
    assert stage.server.ended[order.job].state is JobState.CANCELLED
    assert not any(path.is_file() for path in stage.bench.out.rglob("*"))


async def test_a_job_under_an_absurd_rate_is_freed_by_the_next_setting(stage: Stage) -> None:
    stage.server.settings = control.AgentSettings(limit_upload=1, limit_download=1)
    order = stage.bench.restore_order(target=stage.bench.out)
    async with RealAgent(stage.server, stage.bench.top):
        await stage.server.send(order)
        await stage.server.until(lambda: "chunks" in stage.server.calls, "it waits for bytes")
        await stage.server.send(control.NewSettings(settings=control.AgentSettings()))
        await stage.server.until(lambda: order.job in stage.server.ended, "the job ends")
        assert stage.server.ended[order.job].state is JobState.COMPLETED
    assert os.path.exists(stage.bench.out)
