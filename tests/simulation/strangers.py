"""Clients with a right to be connected and with none to what they try.

A spy of another domain asks for ids that it cannot know, and wants to commit them; a compromised
sibling sends other bytes for ids of its relatives, and two packs under one name at once.
"""

from __future__ import annotations

import asyncio
import io
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import select

from holdfast_agent.crypto.records import sign_manifest
from holdfast_agent.jobs.enrol import Identity
from holdfast_contract.errors import HoldfastError
from holdfast_contract.format.refs import encode_full, refs_set_of
from holdfast_contract.ids import ZERO_HASH, ClientName
from holdfast_contract.protocol.control import (
    Accepted,
    Backup,
    Browse,
    Finished,
    Hello,
    JobState,
    Mode,
    Welcome,
    decode_to_agent,
    encode,
    hello_proof,
)
from holdfast_server.catalog import domains, schema
from holdfast_server.catalog.schema import CopyState
from tests.simulation.answering import Answer, Request, serve
from tests.simulation.links import Link
from tests.simulation.loop import loop_now
from tests.simulation.network import context_of
from tests.simulation.volume import TOP
from tests.support.samples import manifest_body, noise
from tests.support.uploads import domain_keys, pack_of

if TYPE_CHECKING:
    from tests.simulation.world import World

_PATIENCE_SECONDS = 40.0


class GaveUp(Exception):
    """The server, or the way to it, is gone."""


class Stranger(ABC):
    """An agent that says what it likes."""

    def __init__(self, world: World, name: str, identity: Identity) -> None:
        self.world = world
        self.name = ClientName(name)
        self.keys = domain_keys(self.name.domain)
        self.identity = identity
        self._link: Link | None = None
        self._token = ""

    async def visit(self) -> None:
        """Connect, get a job, do what it came for, and leave."""
        try:
            await asyncio.wait_for(self._visit(), _PATIENCE_SECONDS)
        except (GaveUp, HoldfastError, TimeoutError) as error:
            self.world.trace("stranger gave up", self.name, type(error).__name__)
        finally:
            if self._link is not None:
                self._link.broken()

    async def _visit(self) -> None:
        await self._connect()
        order = await self._order()
        await self._send(Accepted(job=order.job))
        session = msgspec.json.decode((await self._call("POST", f"/jobs/{order.job}/session")).body)
        await self.act(order, session)
        await self._send(Finished(job=order.job, state=JobState.CANCELLED))
        await asyncio.sleep(0.2)

    @abstractmethod
    async def act(self, order: Backup, session: dict[str, Any]) -> None:
        """Do what it came for."""

    # --- ways
    async def _connect(self) -> None:
        link = self._link = self.world.network.dial()
        challenge: Any = await self._heard()
        proof = hello_proof(challenge.nonce, self.identity.hash, self.name)
        hello = Hello(
            protocol=1,
            agent_version="0.1.0",
            client=str(self.name),
            identity=self.identity.hash,
            signature=self.identity.key.sign(proof),
            roots=[TOP],
            restore=Mode.IN_PLACE,
            restore_roots=[TOP],
            browse=Browse.NAMES,
            jobs=[],
        )
        await link.agent.send(encode(hello))
        welcome = await self._heard()
        if not isinstance(welcome, Welcome):
            raise GaveUp
        self._token = welcome.token

    async def _heard(self) -> Any:
        assert self._link is not None
        message = await self._link.agent.receive()
        if message is None:
            raise GaveUp
        return decode_to_agent(message)

    async def _send(self, message: Any) -> None:
        assert self._link is not None
        if not self._link.agent.is_open:
            raise GaveUp
        await self._link.agent.send(encode(message))

    async def _order(self) -> Backup:
        job = await self.world.order(self.name)
        if job is None:
            raise GaveUp
        while True:
            message = await self._heard()
            if isinstance(message, Backup):
                return message

    async def _call(self, method: str, path: str, body: bytes = b"") -> Answer:
        answer = await self._tried(method, path, body)
        if answer.status >= 300:
            raise GaveUp
        return answer

    async def _tried(
        self, method: str, path: str, body: bytes = b"", seconds: float = 0.0
    ) -> Answer:
        network = self.world.network
        if network.server is None or network.services is None:
            raise GaveUp
        headers = {"Authorization": f"Bearer {self._token}"}
        request = Request(method, f"/agent/v1{path}", headers, body, seconds)
        task = loop_now().create_task(
            serve(network.services, request, network.seen), context=context_of(network.server)
        )
        await asyncio.wait({task})
        if task.cancelled() or task.exception() is not None:
            raise GaveUp
        answer: Answer = task.result()
        self.world.trace("stranger", method, path.partition("?")[0][-40:], answer.status)
        return answer

    async def _known_ids(self, domain: str) -> list[bytes]:
        """Return ids of live chunks of a domain, by whatever leak."""

        def look() -> list[bytes]:
            catalog = self.world.server.catalog
            assert catalog is not None
            key = domains.get(catalog, domain).key
            query = select(schema.chunks.c.chunk_id).where(
                schema.chunks.c.domain_key == key, schema.chunks.c.state == CopyState.LIVE
            )
            with catalog.read() as tx:
                return sorted(tx.execute(query).scalars())

        found: list[bytes] | None = await self.world.try_on_server(look)
        if not found:
            raise GaveUp
        return found


class Spy(Stranger):
    """A client of another domain."""

    async def act(self, order: Backup, session: dict[str, Any]) -> None:
        wanted = (await self._known_ids("shop"))[:64]
        place = f"/sessions/{session['session']}"
        answer = await self._call("POST", f"{place}/have?epoch_min=1", b"".join(wanted))
        if answer.body.strip(b"\0"):
            self.world.violation("have told a client of ids in another domain")
        await self._call("PUT", f"{place}/refs/{session['refs']}", self._refs(wanted))
        manifest = self._manifest(order, wanted)
        await self._call("PUT", f"{place}/manifest/{session['manifest']}", manifest)
        commit = {
            "manifest": session["manifest"],
            "refs": session["refs"],
            "seq": order.head_seq + 1,
        }
        answer = await self._tried("POST", f"{place}/commit", msgspec.json.encode(commit))
        if answer.status < 300:
            self.world.violation("a snapshot stands on chunks of another domain")

    def _refs(self, wanted: list[bytes]) -> bytes:
        out = io.BytesIO()
        encode_full(self.keys.domain_id, wanted, len(wanted), refs_set_of(wanted), out.write)
        return out.getvalue()

    def _manifest(self, order: Backup, wanted: list[bytes]) -> bytes:
        body = manifest_body(
            domain=self.keys.domain_id,
            client=str(self.name),
            identity=self.identity.hash,
            seq=order.head_seq + 1,
            prev=order.head,
            parent=ZERO_HASH,
            known_seq=order.head_seq,
            known_hash=order.head,
            tree=(),
            report=(),
            refs_set=refs_set_of(wanted),
            refs_count=len(wanted),
            result="complete",
        )
        return sign_manifest(body, self.keys, self.identity.key)


class Sibling(Stranger):
    """A compromised client of the same domain."""

    visits = 0

    async def act(self, order: Backup, session: dict[str, Any]) -> None:
        self.visits += 1
        place = f"/sessions/{session['session']}"
        await self._displace(place, session["packs"][0])
        await self._two_at_once(place, session["packs"][1])

    async def _displace(self, place: str, ulid: str) -> None:
        """Send other bytes for chunks that relatives have stored."""
        wanted = (await self._known_ids("shop"))[:40]
        salt = f"{self.world.seed} {self.visits}"
        data = pack_of(self.keys.domain_id, wanted, epoch=2, salt=salt, size=60)
        await self._call("PUT", f"{place}/packs/{ulid}", data)

    async def _two_at_once(self, place: str, ulid: str) -> None:
        """Send two packs under one name, the first of them slowly."""
        rng = self.world.rng
        first, second = (
            pack_of(
                self.keys.domain_id,
                [noise(f"{self.world.seed} {self.visits} {n} {each}") for each in range(2)],
                epoch=2,
                size=rng.randint(40, 90),
            )
            for n in range(2)
        )
        path = f"{place}/packs/{ulid}"
        slow = loop_now().create_task(self._tried("PUT", path, first, rng.uniform(0.0, 0.01)))
        await asyncio.sleep(rng.uniform(0.0, 0.015))
        quick = loop_now().create_task(self._tried("PUT", path, second))
        done = await asyncio.gather(slow, quick, return_exceptions=True)
        good = [answer for answer in done if isinstance(answer, Answer) and answer.status < 300]
        if len(good) > 1:
            self.world.violation("two packs were taken under one name")
