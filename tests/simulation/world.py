"""One seeded run: a storm over a small installation, then calm, then the oracle."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import tempfile
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import msgspec

from holdfast_agent.state.directory import StateDirectory
from holdfast_agent.state.identity import IdentityFiles
from holdfast_contract.errors import HoldfastError
from holdfast_contract.ids import ClientName
from holdfast_server.api.routes import Route
from holdfast_server.catalog import snapshots
from tests.simulation import loop as loops
from tests.simulation.answering import Answer, SimRequest
from tests.simulation.calling import Person
from tests.simulation.disk import DiskWeather
from tests.simulation.installation import ADMIN_TOKEN, Installation, installed
from tests.simulation.loop import SimLoop, Stuck
from tests.simulation.machines import Hazards, Pod, Server
from tests.simulation.network import Network, Weather, context_of
from tests.simulation.oracle import Oracle, Wrong
from tests.simulation.stand_ins import FORGED, FORGER, simulated
from tests.simulation.storm import Storm, theme_of
from tests.simulation.strangers import Sibling, Spy
from tests.support.filesystem import Crash
from tests.support.uploads import domain_keys

CALM_SECONDS: Final = 700.0
"""Virtual: no job may take longer to end once nothing goes wrong any more."""
PODS: Final = ("shop/web-0", "shop/web-1")
SPY: Final = "bank/spy-0"
SIBLING: Final = "shop/raw-0"
FINAL: Final = frozenset({"Completed", "CompletedWithSkips", "Failed", "Cancelled"})


@dataclass
class Facts:
    """What the world has seen and the oracle holds against the product."""

    acknowledged: dict[bytes, str] = field(default_factory=dict)
    """Snapshots whose commit the server acknowledged, and their client."""
    acknowledged_at: dict[bytes, float] = field(default_factory=dict)
    """Virtual time of the first acknowledgement."""
    packs: dict[str, bytes] = field(default_factory=dict)
    """ULID -> bytes of acknowledged packs."""
    jobs: dict[str, ClientName] = field(default_factory=dict)
    jobs_begun: dict[str, float] = field(default_factory=dict)
    unanswered_since: float = float("inf")
    """When the first order was given whose answer got lost."""
    violations: list[str] = field(default_factory=list)
    """What strangers got away with."""


class World:
    """All machines of one run, and what is done to them."""

    def __init__(
        self, seed: int, folder: Path, installation: Installation, *, keeps_trace: bool = False
    ) -> None:
        self.seed = seed
        self.installation = installation
        self.folder = folder
        self.rng = Random(seed)
        self.loop = SimLoop(self.rng)
        self.lines: list[str] = []
        self._keeps_trace = keeps_trace
        self._hash = hashlib.blake2b(digest_size=16)
        self.facts = Facts()
        self.network = Network(self.rng, self.trace)
        self.network.seen = self._seen
        (folder / "server").mkdir()
        self.server = Server(folder / "server", self.network, self.rng, self.trace)
        self.pods: list[Pod] = []
        self._beside: list[asyncio.Task[Any]] = []
        self.storm = Storm(self)
        self.admin = Person(self.network, "")

    def trace(self, *words: object) -> None:
        """Note what happens: equal seeds have equal traces."""
        line = f"{self.loop.now:.6f} {' '.join(map(str, words))}"
        self._hash.update(line.encode() + b"\n")
        if self._keeps_trace:
            self.lines.append(line)

    @property
    def digest(self) -> str:
        """Return the hash of the trace so far."""
        return self._hash.hexdigest()

    def _seen(self, route: Route, request: SimRequest, answer: Answer) -> None:
        """Note what the server has promised."""
        if answer.status >= 300 or not route.path.startswith("/agent/v1/sessions/"):
            return
        if route.path.endswith("/commit"):
            snapshot = bytes.fromhex(msgspec.json.decode(answer.body)["snapshot"])
            self.trace("acknowledged", snapshot.hex()[:12])
            self.facts.acknowledged[snapshot] = request.path
            self.facts.acknowledged_at.setdefault(snapshot, self.loop.now)
        elif "/manifest/" in route.path and self.rng.random() < self.storm.eagerness:
            self.storm.collect()
        elif "/packs/" in route.path:
            self.facts.packs[request.match_info["ulid"]] = request.body

    # --- the run
    def run(self) -> None:
        """Live through the storm and ask the oracle.

        Raises:
            Wrong, Stuck: something must not be.
        """
        loops.enter(self.loop)
        try:
            self.loop.run_until_complete(self._run())
            assert not self.loop.broken, self.loop.broken
        finally:
            self.loop.run_until_complete(self._end())
            loops.leave()
            self.loop.close()

    async def _run(self) -> None:
        await self._set_up()
        await self.storm.rage()
        await self._calm()
        await self._last_backups()
        await Oracle(self).check()

    async def _end(self) -> None:
        for pod in [*self.pods, self.forger]:
            await pod.crash()
        await self.server.crash(is_power_lost=False)
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    # --- set-up
    async def _set_up(self) -> None:
        self.installation.put_into(self.server)
        assert await self.server.start()
        self.admin.token = ADMIN_TOKEN
        self.pods = [self._pod(ClientName(name)) for name in PODS]
        for pod in self.pods:
            for _ in range(2):
                pod.volume.make_directory(pod.volume.new_path())
            for _ in range(self.rng.randint(4, 7)):
                pod.volume.write(pod.volume.new_path(), pod.volume.new_content())
            pod.start()
        self.forger = self._pod(ClientName(FORGER))
        for content in (FORGED + b" content", b"an honest file"):
            self.forger.volume.write(self.forger.volume.new_path(), content)
        identities = self.installation.identities
        self.spy = Spy(self, SPY, identities[ClientName(SPY)])
        self.sibling = Sibling(self, SIBLING, identities[ClientName(SIBLING)])

    def _pod(self, name: ClientName) -> Pod:
        identity = self.installation.identities[name]
        folder = self.folder / name.replace("/", "-")
        state = StateDirectory(folder)
        files = IdentityFiles(state)
        files.keys_or_new(identity.key.private_bytes)
        files.keep_record(identity.record)
        state.close()
        pod = Pod(
            name, folder, self.network, self.rng, self.trace,
            keys=domain_keys(name.domain), identity=identity,
        )  # fmt: skip
        pod.has_change_hints = theme_of(self.seed) == "hints"
        return pod

    async def on_server(self, call: Any, *args: Any) -> Any:
        """Run a call in a fiber of the server."""
        machine = self.server.machine

        async def ask() -> Any:
            return await self.loop.run_in_executor(None, call, *args)

        task = self.loop.create_task(ask(), context=context_of(machine))
        await asyncio.wait({task})
        if task.cancelled():
            raise Crash(machine.name)
        return task.result()

    def violation(self, what: str) -> None:
        """Note what somebody got away with."""
        self.trace("violation", what)
        self.facts.violations.append(what)

    async def try_on_server(self, call: Any, *args: Any) -> Any:
        """Run a call in a fiber of the server; None where the server is down, or fails or stops."""
        if not self.server.is_up:
            return None
        try:
            return await self.on_server(call, *args)
        except (HoldfastError, Crash) as error:
            self.trace("on server", type(error).__name__)
            return None

    # --- what the storm does
    def beside(self, work: Coroutine[Any, Any, Any]) -> None:
        """Have something go on while other things happen."""
        # In a context of its own: it does not stop with the machine that gave the occasion.
        self._beside.append(self.loop.create_task(work, context=Context()))

    async def order(self, name: ClientName) -> str | None:
        """Queue a backup; None where the server could not take the order."""
        value = {"kind": "backup", "clients": [str(name)]}
        begun = self.loop.time()
        answer = await self.admin.call("POST", "/v1/jobs", value)
        if answer is None or "jobs" not in answer:
            # It may be queued all the same.
            self.facts.unanswered_since = min(self.facts.unanswered_since, begun)
            return None
        job: str = answer["jobs"][0]["id"]
        self.trace("job", job, name)
        self.facts.jobs[job] = name
        self.facts.jobs_begun[job] = begun
        return job

    async def start_server(self) -> None:
        if not self.server.machine.is_down:
            return
        await self.server.crash(is_power_lost=self.rng.random() < 0.6)
        is_rolled_back = self.server.has_copies and self.rng.random() < 0.5
        if not (is_rolled_back and await self._start_rolled_back()):
            await self.server.start()

    async def _start_rolled_back(self) -> bool:
        """Start with an older catalog: it takes over what it lacks, or says that it cannot.

        False: it had to be given the newest one again, and is down.
        """
        self.server.roll_back()
        self.trace("catalog rolled back")
        if not await self.server.start():
            self.server.undo_roll_back()
            return False
        if self.server.repository is not None and self.server.repository.refusal:
            await asyncio.sleep(self.rng.uniform(0, 0.5))
        else:
            gone = await self.try_on_server(self._acknowledged_and_gone)
            if gone:
                self.violation("a catalog was rolled back, and nothing said so")
            if gone == []:
                return True
        await self.server.crash(is_power_lost=False)
        self.server.undo_roll_back()
        return False

    def _acknowledged_and_gone(self) -> list[bytes]:
        assert self.server.catalog is not None
        with self.server.catalog.read() as tx:
            return [s for s in self.facts.acknowledged if snapshots.durable(tx, s) is None]

    async def start_agent(self, pod: Pod) -> None:
        await pod.crash()
        pod.start()

    # --- the calm
    async def _calm(self) -> None:
        self.trace("calm")
        self.network.weather = Weather()
        self.server.disk.weather = DiskWeather()
        self.server.hazards = Hazards()
        for pod in self.pods:
            pod.hazards = Hazards()
            pod.volume.lock(set())
            pod.volume.races = 0.0
        self.storm.eagerness = 0.0
        while self._beside:
            await self._beside.pop()
        await asyncio.sleep(self.rng.uniform(0, 2))
        if theme_of(self.seed) == "disk":
            # What was not kept shows only now.
            await self.server.crash(is_power_lost=True)
        if self.server.machine.is_down:
            await self.start_server()
        for pod in self.pods:
            if not pod.is_up or pod.ended is None or pod.ended.done():
                await self.start_agent(pod)
        await self._cancel_for_absent()
        await self.until_jobs_end()

    async def _cancel_for_absent(self) -> None:
        """Cancel the jobs of clients that never come again.

        All that are listed: one whose order was taken, but not answered, is known to nobody else.
        """
        listed = await self.admin.call("GET", "/v1/jobs?limit=1000")
        for row in listed["items"]:
            if row["client"] not in PODS and row["state"] not in FINAL:
                await self.admin.call("POST", f"/v1/jobs/{row['id']}/cancel")

    async def until_jobs_end(self) -> None:
        """Wait until every job is over.

        Raises:
            Stuck: one is not after minutes of calm.
        """
        limit = self.loop.time() + CALM_SECONDS
        while True:
            listed = await self.admin.call("GET", "/v1/jobs?limit=1000")
            left = [row for row in listed["items"] if row["state"] not in FINAL]
            if not left:
                return
            if self.loop.time() > limit:
                raise Stuck(f"jobs that never end: {left}")
            await asyncio.sleep(1.0)

    async def _last_backups(self) -> None:
        """Back up volumes that nobody changes: every skip would be a lie."""
        asked = {}
        for pod in self.pods:
            job = await self.order(pod.name)
            assert job is not None
            asked[job] = pod
        await self.until_jobs_end()
        for job, pod in asked.items():
            row = await self.admin.call("GET", f"/v1/jobs/{job}")
            if row["state"] != "Completed" or row["snapshot"] is None:
                raise Wrong(f"the last backup of {pod.name} ended so: {row}")
            self.trace("last", pod.name, row["snapshot"][:12])


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    """Give a folder for what has to be real files."""
    home = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="holdfast-sim-", dir=home))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def world_of(seed: int, *, keeps_trace: bool = False) -> Iterator[World]:
    """Give a world of this seed."""
    installation = installed()
    with folder_in_memory() as folder, simulated(Random(seed ^ 0x5EED)):
        yield World(seed, folder, installation, keeps_trace=keeps_trace)


def run_seed(seed: int) -> str:
    """Run one seed; return the hash of its trace."""
    with world_of(seed) as world:
        world.run()
        return world.digest
