"""The agents' half of the authorisation matrix: agents with something under way, and who asks."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from holdfast_contract.ids import new_ulid
from holdfast_contract.protocol.control import Query, Refuse
from holdfast_server.catalog.schema import ObjectKind
from holdfast_server.repository.names import object_name
from tests.support.apiworld import ActedAgent, ApiWorld, serving
from tests.support.authorisation import (
    ABSENT,
    FOREIGN,
    OWN,
    SIBLING,
    Asked,
    Observed,
    Statements,
    api_token,
    enrol_token,
    observe,
)
from tests.support.samples import noise
from tests.support.uploads import Pod, Served, domain_keys

ENDED = "ended"
EVERYWHERE = (OWN, SIBLING, FOREIGN, ENDED, ABSENT)


@dataclass(frozen=True)
class Holding:
    """What an agent has under way; what it may name in requests."""

    where: str
    client: str
    job: str
    session: str
    query: str
    snapshot: str
    identity: str
    chunk: bytes
    pack: str
    refs: str
    manifest: str
    object: str
    offset: int

    def names(self) -> list[str | bytes]:
        values = [self.client, self.job, self.session, self.query, self.snapshot, self.identity]
        values += [self.pack, self.refs, self.manifest, self.object, self.chunk.hex()]
        return [*values, self.chunk, self.client.partition("/")[2]]


Ask = Callable[[Holding, Holding], Asked]
"""From the caller's own holding and that of the place asked for."""


@dataclass(frozen=True)
class Case:
    """How a route is asked, and what comes where the thing is not the caller's."""

    ask: Ask
    good: int = 200
    hidden: int = 404
    known: tuple[str, ...] = (OWN,)
    """Places of which the caller may know."""
    wheres: tuple[str, ...] = EVERYWHERE
    is_last: bool = False
    """Asked for its own, it is over: that is asked at the end."""


def case(path: str, good: int = 200, **more: Any) -> Case:
    """Ask for `path`, whose {names} are taken from the place; `data` and `json` likewise."""
    of_case = {
        name: more.pop(name) for name in ("hidden", "known", "wheres", "is_last") if name in more
    }

    def ask(own: Holding, there: Holding) -> Asked:
        found = {name: call(own, there) for name, call in more.items()}
        return Asked("/agent/v1" + path.format(own=own, t=there), **found)

    return Case(ask, good, **of_case)


def hexed(count: int = 1) -> str:
    return noise("nothing", 32 * count).hex()


STRANGERS = (
    "none",
    "unknown",
    "closed connection",
    "fenced",
    "revoked client",
    "forgotten client",
    "admin",
    "operator",
    "viewer",
    "newcomer",
)


@dataclass
class Matrix:
    """Asks everything once, and keeps what was answered."""

    served: Served
    token: str
    rows: dict[str, list[Case]]
    holdings: dict[str, Holding] = field(default_factory=dict)
    observed: dict[tuple[str, int, str, str], Observed] = field(default_factory=dict)
    """By route, number of the case, caller, where."""
    offers: dict[str, Observed] = field(default_factory=dict)
    finishes: dict[str, Observed] = field(default_factory=dict)
    refusals: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Code and words with which a hello was refused."""

    async def ask_all(self) -> None:
        self.statements = Statements(self.served.catalog)
        async with serving(self.served, self.token) as world:
            for name in ("shop", "mart"):
                await world.domain(name)
            agents = {
                where: await world.agent(name)
                for where, name in (
                    (OWN, "shop/db-0"),
                    (SIBLING, "shop/db-1"),
                    (FOREIGN, "mart/db-0"),
                )
            }
            tokens = await self.strangers(world)
            async with contextlib.AsyncExitStack() as stack:
                for where, agent in agents.items():
                    self.holdings[where] = await self.holding(world, where, agent, stack)
                self.holdings[ENDED] = await self.ended(world, agents[OWN])
                self.holdings[ABSENT] = self.absent()
                tokens["agent"] = agents[OWN].token
                await self.ask_rows(world, tokens)
            await self.enrol(world, agents[OWN], tokens)
            await self.greet(world, agents)

    async def strangers(self, world: ApiWorld) -> dict[str, str]:
        """Return tokens that count for no agent's route (any more)."""
        left = await world.agent("shop/left-0")
        await left.leave()
        fenced = await world.agent("shop/twice-0")
        older = fenced.token
        await world.connect(fenced.pod)
        revoked = await world.agent("shop/revoked-0")
        await world.call("POST", "/v1/clients/shop/revoked-0/revoke")
        forgotten = await world.agent("shop/forgotten-0")
        await world.call("DELETE", "/v1/clients/shop/forgotten-0")
        served = self.served
        return {
            "none": "",
            "unknown": "hfc_" + "A" * 43,
            "closed connection": left.token,
            "fenced": older,
            "revoked client": revoked.token,
            "forgotten client": forgotten.token,
            "admin": world.token,
            "operator": await world.run(api_token, served, "operator"),
            "viewer": await world.run(api_token, served, "viewer"),
            "newcomer": (await world.run(enrol_token, served, "shop"))[0],
        }

    async def holding(
        self, world: ApiWorld, where: str, agent: ActedAgent, stack: contextlib.AsyncExitStack
    ) -> Holding:
        pod = agent.pod
        chunks = sorted(noise(f"{pod.name} {number}") for number in range(3))
        snapshot = (await world.run(pod.backup, chunks)).hex()
        body = {"kind": "verify", "snapshot": snapshot}
        job = (await world.call("POST", "/v1/jobs", json=body))["jobs"][0]["id"]
        await world.until(lambda: world.services.live.get(job) is not None)
        opened = await agent.call("POST", f"/jobs/{job}/session")
        items = [{"snapshot": snapshot, "path": "/"}]
        asking = asyncio.create_task(
            world.call("POST", "/v1/queries", json={"kind": "ls", "items": items})
        )
        stack.push_async_callback(self.give_up, asking)
        query = (await agent.until(Query)).query
        snapshots = [bytes.fromhex(snapshot)]
        granted = await world.run(self.served.repository.open_grant, pod.name.domain, snapshots)
        [copy] = await world.run(granted.places, chunks[:1])
        return Holding(
            where=where,
            client=str(pod.name),
            job=job,
            session=opened["session"],
            query=query,
            snapshot=snapshot,
            identity=pod.identity.hex(),
            chunk=chunks[0],
            pack=opened["packs"][0],
            refs=opened["refs"],
            manifest=opened["manifest"],
            object=copy.object,
            offset=copy.offset,
        )

    async def give_up(self, asking: asyncio.Task[Any]) -> None:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    async def ended(self, world: ApiWorld, agent: ActedAgent) -> Holding:
        """Return a job of the caller that is over, with its closed session."""
        own, pod = self.holdings[OWN], agent.pod
        job = new_ulid(self.served.clock)
        opened = await world.run(pod.open, job)
        await world.run(self.served.repository.close_session, job)
        names = {"pack": opened.packs[0], "refs": opened.refs, "manifest": opened.manifest}
        return replace(own, where=ENDED, job=job, session=opened.id, **names)

    def absent(self) -> Holding:
        ulids = [new_ulid(self.served.clock) for _ in range(6)]
        domain = domain_keys("mart").domain_id
        return Holding(
            where=ABSENT,
            client="shop/none-0",
            job=ulids[0],
            session=ulids[1],
            query=ulids[2],
            snapshot=hexed(),
            identity=hexed(),
            chunk=noise("no chunk"),
            pack=ulids[3],
            refs=ulids[4],
            manifest=ulids[5],
            object=object_name(ObjectKind.PACK, domain, new_ulid(self.served.clock)),
            offset=0,
        )

    async def ask_rows(self, world: ApiWorld, tokens: dict[str, str]) -> None:
        rows = [
            (route, n, each) for route, cases in self.rows.items() for n, each in enumerate(cases)
        ]
        for caller in STRANGERS:
            for route, number, each in rows:
                await self.ask(world, (route, number), each, (caller, tokens[caller]))
        for is_last in (False, True):
            for route, number, each in rows:
                if each.is_last is is_last:
                    await self.ask(world, (route, number), each, ("agent", tokens["agent"]))

    async def ask(
        self, world: ApiWorld, row: tuple[str, int], each: Case, caller: tuple[str, str]
    ) -> None:
        method, (name, token) = row[0].partition(" ")[0], caller
        own = self.holdings[OWN]
        # Its own comes last: some of these requests can be sent once only.
        for where in sorted(each.wheres, key=lambda found: found == OWN):
            there = self.holdings[where]
            asked = each.ask(own, there)
            self.observed[(*row, name, where)] = await observe(
                world, self.statements, method, asked, token, there.names()
            )

    # --- the routes that take other proofs
    async def enrol(self, world: ApiWorld, agent: ActedAgent, tokens: dict[str, str]) -> None:
        run, served = world.run, self.served
        key = noise("newcomer")
        used = (await run(enrol_token, served, "shop"))[0]
        proofs = {
            "fresh": (await run(enrol_token, served, "shop"))[0],
            "expired": (await run(enrol_token, served, "shop", expired=True))[0],
            "revoked": (await run(enrol_token, served, "shop", revoked=True))[0],
            "unknown": "hfe_" + "A" * 43,
            "used by another key": used,
            "none": "",
            "agent": agent.token,
            "admin": world.token,
            "viewer": tokens["viewer"],
        }
        first = Pod(served, agent.client.parse("shop/first-0"), identity=bytes(32))
        body = {"client": "shop/first-0", "record": b64(first.identity_record())}
        await world.call("POST", "/agent/v1/enrol/finish", token=used, json=body)
        thief = Pod(served, agent.client.parse("shop/thief-0"), identity=bytes(32))
        for name, token in proofs.items():
            begin = {"client": "shop/thief-0", "sign_key": b64(key)}
            finish = {"client": "shop/thief-0", "record": b64(thief.identity_record())}
            self.offers[name] = await self.post(world, "begin", begin, token)
            if name != "fresh":
                self.finishes[name] = await self.post(world, "finish", finish, token)
        away = (await run(enrol_token, served, "mart"))[0]
        for name in ("shop/db-0", "shop/none-0"):
            begin = {"client": name, "sign_key": b64(key)}
            self.offers[f"of mart: {name}"] = await self.post(world, "begin", begin, away, name)

    async def post(
        self, world: ApiWorld, step: str, body: dict[str, str], token: str, name: str = ""
    ) -> Observed:
        asked = Asked(f"/agent/v1/enrol/{step}", json=body)
        return await observe(world, self.statements, "POST", asked, token, [name])

    async def greet(self, world: ApiWorld, agents: dict[str, ActedAgent]) -> None:
        """Say hello in every wrong way, and note how it is refused."""
        own = agents[OWN].pod
        far = agents[FOREIGN].pod
        revoked = self.served.pod_of(own.name.parse("shop/revoked-0"), await self.known(world))
        wrong: dict[str, tuple[Pod, dict[str, Any]]] = {
            "unknown client": (own, {"client": "shop/none-0"}),
            "sibling's name": (own, {"client": "shop/db-1"}),
            "foreign name": (own, {"client": "mart/db-0"}),
            "foreign identity": (own, {"identity": far.identity}),
            "unknown identity": (own, {"identity": noise("no identity")}),
            "wrong signature": (own, {"signature": bytes(64)}),
            "revoked": (revoked, {}),
            "no name": (own, {"client": "../etc"}),
        }
        for name, (pod, changes) in wrong.items():
            agent = ActedAgent(world, pod)
            world.agents.append(agent)
            await agent.open(**changes)
            told = await agent.until(Refuse)
            self.refusals[name] = (told.code, told.message)
            await agent.until_closed()

    async def known(self, world: ApiWorld) -> bytes:
        row = await world.call("GET", "/v1/clients/shop/revoked-0")
        return bytes.fromhex(row["identity"])


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
