"""The machines: one server with its disk and its catalog, and pods with an agent each."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, BinaryIO, TypeVar

from sqlalchemy.engine import make_url

from holdfast_agent.config import AgentConfig
from holdfast_agent.crypto.keys import DomainKeys
from holdfast_agent.jobs.enrol import Identity
from holdfast_agent.runtime.service import Agent
from holdfast_agent.state.directory import StateDirectory
from holdfast_contract.errors import HoldfastError, StoreFailed
from holdfast_contract.ids import ClientName, new_ulid
from holdfast_contract.limits import MIB
from holdfast_contract.protocol.control import Browse, Mode
from holdfast_server.catalog.connection import Catalog, Tx, _engine
from holdfast_server.control.dispatcher import DispatchLimits
from holdfast_server.repository import Repository
from holdfast_server.runtime import make_services
from holdfast_server.stores.local import LocalStore
from tests.simulation.disk import SimDisk
from tests.simulation.loop import Machine, bury, crash, loop_now, pause
from tests.simulation.network import Network, context_of
from tests.simulation.volume import TOP, Volume, VolumeClock
from tests.support.filesystem import Crash
from tests.support.uploads import _empty_catalog

T = TypeVar("T")
Trace = Callable[..., None]
_STALL_SECONDS = 300.0
_SHARED: list[Any] = []
"""Dialect and compiled statements of the first engine: they are the same in every run."""


@dataclass
class Hazards:
    """Chances at each step of the catalog, and at each file that an agent writes."""

    crash: float = 0.0
    fails: float = 0.0


class Clock:
    """A machine's clock."""

    def __init__(self) -> None:
        self.ahead_ns = 0

    def monotonic(self) -> float:
        return loop_now().time()

    def now_ns(self) -> int:
        return 1_800_000_000_000_000_000 + round(self.monotonic() * 1e9) + self.ahead_ns


class SimCatalog(Catalog):
    """The real catalog; each transaction is a step at which its machine may stop."""

    machine: Machine
    step: Callable[[str], None]

    @contextmanager
    def read(self) -> Iterator[Tx]:
        self.step("read")
        with super().read() as tx:
            yield tx

    def write(self, work: Callable[[Tx], T]) -> T:
        self.step("before write")
        result = super().write(work)
        self.step("after write")
        return result


def _plain_savepoints(dialect: Any) -> None:
    """Have savepoints said without compiling a statement for each: a tenth of a run's time."""
    for name, words in (
        ("do_savepoint", "SAVEPOINT"),
        ("do_release_savepoint", "RELEASE SAVEPOINT"),
        ("do_rollback_to_savepoint", "ROLLBACK TO SAVEPOINT"),
    ):

        def say(connection: Any, savepoint: str, words: str = words) -> None:
            connection.exec_driver_sql(f"{words} {savepoint}").close()

        setattr(dialect, name, say)


def open_catalog_in(folder: Path, clock: Clock) -> SimCatalog:
    """Open a catalog that is of this version: migrations are tested elsewhere, and take time."""
    place = folder / "catalog.sqlite"
    if not place.exists():
        place.write_bytes(_empty_catalog())
    location = make_url("sqlite+pysqlite://").set(database=str(place))
    engines = [_engine(location, is_writer=True), _engine(location, is_writer=False)]
    for engine in engines:
        if not _SHARED:
            _plain_savepoints(engine.dialect)
            _SHARED.extend((engine.dialect, engine._compiled_cache))
        engine.dialect, engine._compiled_cache = _SHARED
        engine.pool._dialect = engine.dialect
    catalog = SimCatalog(engines[0], engines[1], clock)
    connection = engines[0].raw_connection()
    assert connection.driver_connection is not None
    connection.driver_connection.execute("PRAGMA synchronous = OFF").close()
    connection.close()
    return catalog


class Server:
    """The server: crashes at any step, and is started again with what its disk remembers."""

    def __init__(self, folder: Path, network: Network, rng: Random, trace: Trace) -> None:
        self.folder = folder
        self.network = network
        self.rng = rng
        self.trace = trace
        self.clock = Clock()
        self.disk = SimDisk(rng, trace)
        self.disk.on_crash = self.stop_now
        self.hazards = Hazards()
        self.machine = Machine("server")
        self.machine.is_down = True
        self.catalog: SimCatalog | None = None
        self.repository: Repository | None = None
        self.services: Any = None
        self.starts = 0
        self.is_up = False
        self._before: list[Path] = []
        self._copies = 0

    # --- life
    async def start(self) -> bool:
        """Start; False: it could not, and is down."""
        assert self.machine.is_down and not self.machine.fibers
        self.starts += 1
        machine = self.machine = Machine(f"server {self.starts}")
        self.disk.machine = machine
        self.trace("server starts", self.starts)
        loop = loop_now()
        task = loop.create_task(self._boot(machine), context=context_of(machine))
        await asyncio.wait({task})
        if task.cancelled() or task.exception() is not None:
            error = None if task.cancelled() else task.exception()
            self.trace("server does not start", type(error).__name__)
            if not isinstance(error, (HoldfastError, Crash, type(None))):
                raise error
            self.stop_now(machine)
            await bury(machine)
            self._buried()
            return False
        return True

    async def _boot(self, machine: Machine) -> None:
        loop = loop_now()
        await loop.run_in_executor(None, self._open, machine)
        assert self.catalog is not None and self.repository is not None
        services = make_services(
            self.catalog,
            self.repository,
            self.clock,
            DispatchLimits(16, _STALL_SECONDS),
            self._random,
        )
        await services.life.load()
        machine.check()
        loop.create_task(services.dispatcher.run())
        self.services = services
        self.is_up = True
        self.network.up(machine, services)
        self.trace("server is up", self.repository.refusal)

    def _open(self, machine: Machine) -> None:
        store = LocalStore.open("/", self.disk, lambda: new_ulid(self.clock, self._random))
        catalog = open_catalog_in(self.folder, self.clock)
        catalog.machine, catalog.step = machine, self._step
        self.catalog = catalog
        self.repository = Repository(catalog, store, self.clock, self._random)
        self.repository.start()

    def _random(self, count: int) -> bytes:
        return self.rng.randbytes(count)

    def _step(self, name: str) -> None:
        machine = self.machine
        machine.check()
        if name != "read" or self.rng.random() < 0.4:
            # Not at every read: handing on costs more than most of them.
            pause(self.rng.uniform(0, 0.002))
        if name != "read" and self.hazards.crash and self.rng.random() < self.hazards.crash:
            self.trace("crash", name)
            self.stop_now(machine)
            raise Crash(name)
        if name == "before write" and self.rng.random() < self.hazards.fails:
            self.trace("catalog fails")
            raise StoreFailed("the catalog does not work: disk I/O error")

    def stop_now(self, machine: Machine) -> None:
        """Stop at this very moment."""
        if machine.is_down:
            return
        machine.is_down = True
        self.is_up = False
        self.network.down()
        loop_now().call_soon(crash, machine)

    async def crash(self, *, is_power_lost: bool) -> None:
        """Stop, if it runs, and forget what the disk had not kept."""
        self.stop_now(self.machine)
        await bury(self.machine)
        self._buried()
        self.trace("server is down", is_power_lost)
        if is_power_lost:
            self.disk.crash(self.rng)
        else:
            self.disk.stop()

    def _buried(self) -> None:
        if self.catalog is not None:
            self.catalog.close()
        if self.services is not None:
            self.services.workers.close()
        self.catalog = self.repository = self.services = None

    # --- what an administrator does to the catalog
    @property
    def has_copies(self) -> bool:
        """Whether there is a copy to roll back to."""
        return bool(self._before)

    def keep_catalog(self) -> None:
        """Keep a copy of the catalog as it is."""
        self._copies += 1
        target = self.folder / f"copy-{self._copies}"
        with sqlite3.connect(self.folder / "catalog.sqlite") as old, sqlite3.connect(target) as new:
            old.backup(new)
        old.close()
        new.close()
        self._before.append(target)

    def forget_copies(self) -> None:
        """Remove all copies."""
        for copy in self._before:
            copy.unlink()
        self._before.clear()

    def roll_back(self) -> None:
        """Replace the catalog by a copy; the replaced one is kept beside it."""
        assert self.catalog is None
        shutil.copy(self.flat_catalog(), self.folder / "newest")
        self._replace(self._before.pop(self.rng.randrange(len(self._before))))

    def undo_roll_back(self) -> None:
        """Put the newest catalog back."""
        self._replace(self.folder / "newest")

    def flat_catalog(self) -> Path:
        """Return the catalog's file with all that its write-ahead log had."""
        place = self.folder / "catalog.sqlite"
        connection = sqlite3.connect(place)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").close()
        connection.close()
        return place

    def _replace(self, by: Path) -> None:
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                (self.folder / f"catalog.sqlite{suffix}").unlink()
        shutil.copy(by, self.folder / "catalog.sqlite")


class SimState(StateDirectory):
    """The agent's state directory; each change is a step at which its machine may stop."""

    machine: Machine
    step: Callable[[str], None]

    def __init__(self, path: Path, machine: Machine, step: Callable[[str], None]) -> None:
        self.machine = machine
        self.step = lambda name: None
        super().__init__(path)
        self.step = step

    def replace(self, name: str, write: Callable[[BinaryIO], None]) -> None:
        self.step("before state")
        super().replace(name, write)
        self.step("after state")

    def remove(self, name: str) -> None:
        self.step("before state")
        super().remove(name)
        self.step("after state")


class Pod:
    """A pod: a volume, an application that changes it, and an agent that may crash."""

    def __init__(
        self,
        name: str,
        folder: Path,
        network: Network,
        rng: Random,
        trace: Trace,
        *,
        keys: DomainKeys,
        identity: Identity,
    ) -> None:
        self.name = ClientName(name)
        self.network = network
        self.rng = rng
        self.trace = trace
        self.keys = keys
        self.identity = identity
        self.folder = folder
        self.clock = VolumeClock(lambda: loop_now().time())
        self.volume = self.clock.volume = Volume(rng, self.clock)
        self.hazards = Hazards()
        self.machine = Machine(name)
        self.machine.is_down = True
        self.state: SimState | None = None
        self.agent: Agent | None = None
        self.has_change_hints = False
        self.starts = 0
        self.ended: asyncio.Task[None] | None = None

    @property
    def is_up(self) -> bool:
        return not self.machine.is_down

    def start(self) -> None:
        """Start the agent."""
        self.starts += 1
        machine = self.machine = Machine(f"{self.name} {self.starts}")
        self.trace("agent starts", self.name)
        self.state = SimState(self.folder, machine, self._step)
        config = AgentConfig(
            server="https://server",
            ca=None,
            state=self.folder,
            roots=(TOP,),
            restore=Mode.IN_PLACE,
            restore_roots=(TOP,),
            browse=Browse.NAMES,
            key_file=self.folder / "none",
            client=str(self.name),
            enrol_token_file=None,
            workers=2,
            memory_max_bytes=96 * MIB,
            has_change_hints=self.has_change_hints,
        )
        context = context_of(machine)
        self.ended = loop_now().create_task(self._run(config, self.state), context=context)

    async def _run(self, config: AgentConfig, state: SimState) -> None:
        agent = self.agent = Agent(
            config,
            state,
            self.keys,
            self.identity,
            self.network,  # type: ignore[arg-type]  # comes in place of a TLS context
            self.clock,
            self.rng.uniform,
        )
        await agent.run(asyncio.Event())

    def _step(self, name: str) -> None:
        machine = self.machine
        machine.check()
        pause(self.rng.uniform(0, 0.001))
        if self.hazards.crash and self.rng.random() < self.hazards.crash:
            self.trace("crash", self.name, name)
            self.stop_now()
            raise Crash(name)

    def stop_now(self) -> None:
        """Stop at this very moment."""
        machine = self.machine
        if not machine.is_down:
            machine.is_down = True
            loop_now().call_soon(crash, machine)

    async def crash(self) -> None:
        """Stop, if it runs."""
        self.stop_now()
        await bury(self.machine)
        self.volume.queues.clear()
        self.trace("agent is down", self.name)
        if self.state is not None:
            self.state.close()
            self.state = self.agent = None

    def lose_state(self) -> None:
        """Lose memory, journal and cache, while the agent is down."""
        assert self.state is None
        for path in sorted(self.folder.iterdir()):
            if not path.name.startswith("identity"):
                path.unlink()
