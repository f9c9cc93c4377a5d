"""One seeded run: a storm over a small installation, then calm, then the oracle."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Iterator
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
from tests.simulation.collector import Collector
from tests.simulation.disk import DiskWeather
from tests.simulation.installation import ADMIN_TOKEN, Installation, installed
from tests.simulation.loop import SimLoop, Stuck
from tests.simulation.machines import Clock, Hazards, Pod, Server
from tests.simulation.network import Network, Weather, context_of
from tests.simulation.oracle import Oracle, Wrong
from tests.simulation.stand_ins import FORGED, FORGER, simulated
from tests.simulation.strangers import Sibling, Spy
from tests.simulation.volume import VolumeClock
from tests.support.filesystem import Crash
from tests.support.uploads import domain_keys

CALM_SECONDS: Final = 700.0
"""Virtual: no job may take longer to end once nothing goes wrong any more."""
PODS: Final = ("shop/web-0", "shop/web-1")
SPY: Final = "bank/spy-0"
SIBLING: Final = "shop/raw-0"
FINAL: Final = frozenset({"Completed", "CompletedWithSkips", "Failed", "Cancelled"})
THEMES: Final = ("mixed", "mixed", "rollback", "collector", "strangers", "disk", "races")
"""What a seed is mostly about: rare meetings are rarer still where everything happens at once."""


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
        self.naps = [0.0, 0.01, 0.05, 0.2, 1.0, 5.0]
        """Longest times between two acts, virtual seconds."""
        self.eagerness = 0.0
        """Chance that something is collected just when a commit is about to be asked for."""
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
        elif "/manifest/" in route.path and self.rng.random() < self.eagerness:
            self._collect()
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
        await self._storm()
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

    # --- the storm
    async def _storm(self) -> None:
        rng = self.rng
        await self._back_up()
        acts = self._acts(theme_of(self.seed))
        for _ in range(rng.randint(4, 7) if theme_of(self.seed) != "hints" else 14):
            act = rng.choices(list(acts), list(acts.values()))[0]
            self.trace("act", act.__name__)
            found = act()
            if found is not None:
                await found
            await asyncio.sleep(rng.choice(self.naps) * rng.random())
            if not self.server.is_up and rng.random() < 0.7:
                await self._start_server()
            for pod in self.pods:
                if not pod.is_up and rng.random() < 0.5:
                    await self._start_agent(pod)

    def _acts(self, theme: str) -> dict[Callable[[], Any], float]:
        """Return what may be done with which weight, and set what a theme asks for."""
        acts: dict[Callable[[], Any], float] = {
            self._back_up: 5,
            self._applications_act: 5,
            self._crash_server: 2,
            self._crash_agent: 2,
            self._collect: 2,
            self._strangers_visit: 1,
            self._worsen: 1,
            self._turn_clocks: 1,
            self._keep_catalog: 1,
            self._lose_state: 0.5,
            self._lock_files: 1,
            self._forge: 0.2,
        }
        self.trace("theme", theme)
        if theme == "collector":
            acts |= {self._back_up: 10, self._crash_server: 0.5, self._worsen: 0}
            self.eagerness, self.naps = 0.7, [0.5, 3.0]
            self._worsen(0.1)
        elif theme == "strangers":
            acts |= {self._strangers_visit: 8, self._forge: 3, self._worsen: 0}
            self._worsen(0.0)
        elif theme == "disk":
            acts |= {self._crash_server: 5, self._worsen: 0}
            self.naps = [0.05, 0.5, 3.0]
            fails, sync_fails = self.rng.uniform(0, 0.02), self.rng.uniform(0, 0.4)
            self.server.disk.weather = DiskWeather(fails=fails, sync_fails=sync_fails)
        elif theme == "rollback":
            acts |= {self._keep_catalog: 6, self._crash_server: 5, self._collect: 0}
            self.naps = [0.5, 3.0]
            self._worsen(0.3)
        elif theme == "races":
            acts |= {self._applications_act: 8, self._lock_files: 4, self._worsen: 0}
            for pod in self.pods:
                pod.volume.races = self.rng.uniform(0, 0.6)
            self._worsen(0.2)
        elif theme == "hints":
            # Only from the third backup of one agent on they decide anything.
            acts |= {self._back_up: 14, self._applications_act: 9, self._crash_agent: 3}
            acts |= {
                self._cancel: 3,
                self._exchange_directories: 2,
                self._overflow: 2,
                self._pass_a_week: 1,
            }
            acts |= {self._worsen: 0}
            self.naps = [0.2, 1.0, 3.0]
            self._worsen(0.2)
        else:
            self._worsen()
        return acts

    def beside(self, work: Coroutine[Any, Any, Any]) -> None:
        """Have something go on while other things happen."""
        # In a context of its own: it does not stop with the machine that gave the occasion.
        self._beside.append(self.loop.create_task(work, context=Context()))

    async def _back_up(self) -> None:
        await self.order(self.rng.choice(self.pods).name)

    def _collect(self) -> None:
        async def collect() -> None:
            for _ in range(3):
                await asyncio.sleep(self.rng.uniform(0, 0.25))
                self.trace("collector", await self.try_on_server(self._collect_in_fiber))

        self.beside(collect())

    def _collect_in_fiber(self) -> str:
        repository, catalog = self.server.repository, self.server.catalog
        assert repository is not None and catalog is not None
        # Deletions are not in the journal yet: an older catalog could not know of them.
        self.server.forget_copies()
        return Collector(repository, catalog, self.rng, "shop").run()

    def _strangers_visit(self) -> None:
        for stranger in (self.spy, self.sibling):
            if self.rng.random() < 0.6:
                self.beside(stranger.visit())

    async def _keep_catalog(self) -> None:
        """Keep a copy of the catalog; some start may come to find it in place of the newer one."""
        self.server.keep_catalog()

    def _forge(self) -> None:
        """Have a compromised agent back up a file under another's content id."""
        self.beside(self._forged())

    async def _forged(self) -> None:
        if self.forger.is_up:
            return
        self.forger.start()
        await asyncio.sleep(0.3)
        job = await self.order(self.forger.name)
        if job is not None:
            await asyncio.sleep(self.rng.uniform(0.5, 5.0))
        await self.forger.crash()

    async def _lose_state(self) -> None:
        pod = self.rng.choice(self.pods)
        await pod.crash()
        pod.lose_state()

    async def _lock_files(self) -> None:
        """Make files unreadable, and have them backed up: their names go into a report."""
        for pod in self.pods:
            files = pod.volume.files()
            if files and self.rng.random() < 0.6:
                pod.volume.lock({self.rng.choice(files)})
                await self.order(pod.name)

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

    async def _applications_act(self) -> None:
        for pod in self.pods:
            for _ in range(self.rng.randint(0, 4)):
                self.trace("application", pod.name, pod.volume.act())
                await asyncio.sleep(self.rng.choice([0.0, 0.0, 0.003, 0.02, 0.3]))

    def _exchange_directories(self) -> None:
        for pod in self.pods:
            pod.volume.exchange_directories()

    async def _cancel(self) -> None:
        """Have a job cancelled that has just begun."""
        job = await self.order(self.rng.choice(self.pods).name)
        await asyncio.sleep(self.rng.uniform(0, 0.6))
        if job is not None:
            await self.admin.call("POST", f"/v1/jobs/{job}/cancel")

    def _pass_a_week(self) -> None:
        """Have the next backups be audits: all is read, and nothing was missed."""
        for pod in self.pods:
            pod.clock.ahead_ns += 8 * 86_400 * 1_000_000_000

    def _overflow(self) -> None:
        """Have more happen at once than a queue of events holds."""
        for pod in self.pods:
            for queue in pod.volume.queues:
                queue.overflow()
            for _ in range(self.rng.randint(1, 3)):
                self.trace("unheard", pod.name, pod.volume.act())

    async def _crash_server(self) -> None:
        await self.server.crash(is_power_lost=self.rng.random() < 0.6)

    async def _start_server(self) -> None:
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

    async def _crash_agent(self) -> None:
        await self.rng.choice(self.pods).crash()

    async def _start_agent(self, pod: Pod) -> None:
        await pod.crash()
        pod.start()

    def _turn_clocks(self) -> None:
        jump = self.rng.choice([-3600, -5, 5, 3600, 86_400 * 365, -86_400 * 365]) * 1_000_000_000
        clocks: list[Clock | VolumeClock] = [self.server.clock, *(pod.clock for pod in self.pods)]
        clock = self.rng.choice(clocks)
        clock.ahead_ns += jump

    def _worsen(self, how_much: float = 1.0) -> None:
        rng = self.rng

        def some(chance: float, most: float) -> float:
            return rng.uniform(0, most) if rng.random() < chance * how_much else 0.0

        self.network.weather = Weather(
            lost=some(0.5, 0.2),
            answer_lost=some(0.5, 0.2),
            doubled=some(0.5, 0.3),
            torn=some(0.3, 0.1),
            late=some(0.4, 0.1),
            breaks=some(0.4, 0.05),
        )
        self.server.disk.weather = DiskWeather(
            fails=some(0.4, 0.05),
            is_full=rng.random() < 0.1 * how_much,
            is_crammed=rng.random() < 0.05 * how_much,
            crash=some(0.4, 0.01),
        )
        self.server.hazards = Hazards(crash=some(0.4, 0.02), fails=some(0.3, 0.02))
        for pod in self.pods:
            pod.hazards = Hazards(crash=some(0.4, 0.1))

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
        self.eagerness = 0.0
        while self._beside:
            await self._beside.pop()
        await asyncio.sleep(self.rng.uniform(0, 2))
        if theme_of(self.seed) == "disk":
            # What was not kept shows only now.
            await self.server.crash(is_power_lost=True)
        if self.server.machine.is_down:
            await self._start_server()
        for pod in self.pods:
            if not pod.is_up or pod.ended is None or pod.ended.done():
                await self._start_agent(pod)
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


def theme_of(seed: int) -> str:
    """Return what a seed is about."""
    if seed % 8 == 6:
        return "hints"
    return THEMES[seed % len(THEMES)]


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
