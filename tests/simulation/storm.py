"""The storm of one world: what is done to its machines, and by whom, at random."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from tests.simulation.collector import Collector
from tests.simulation.disk import DiskWeather
from tests.simulation.machines import Clock, Hazards
from tests.simulation.network import Weather
from tests.simulation.volume import VolumeClock

if TYPE_CHECKING:
    from tests.simulation.world import World


THEMES: Final = ("mixed", "mixed", "rollback", "collector", "strangers", "disk", "races")
"""What a seed is mostly about: rare meetings are rarer still where everything happens at once."""


def theme_of(seed: int) -> str:
    """Return what a seed is about."""
    if seed % 8 == 6:
        return "hints"
    return THEMES[seed % len(THEMES)]


class Storm:
    """Acts upon one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.naps = [0.0, 0.01, 0.05, 0.2, 1.0, 5.0]
        """Longest times between two acts, virtual seconds."""
        self.eagerness = 0.0
        """Chance that something is collected just when a commit is about to be asked for."""

    async def rage(self) -> None:
        """Let it rage over the machines."""
        rng = self.world.rng
        await self._back_up()
        acts = self._acts(theme_of(self.world.seed))
        for _ in range(rng.randint(4, 7) if theme_of(self.world.seed) != "hints" else 14):
            act = rng.choices(list(acts), list(acts.values()))[0]
            self.world.trace("act", act.__name__)
            found = act()
            if found is not None:
                await found
            await asyncio.sleep(rng.choice(self.naps) * rng.random())
            if not self.world.server.is_up and rng.random() < 0.7:
                await self.world.start_server()
            for pod in self.world.pods:
                if not pod.is_up and rng.random() < 0.5:
                    await self.world.start_agent(pod)

    def _acts(self, theme: str) -> dict[Callable[[], Any], float]:
        """Return what may be done with which weight, and set what a theme asks for."""
        acts: dict[Callable[[], Any], float] = {
            self._back_up: 5,
            self._applications_act: 5,
            self._crash_server: 2,
            self._crash_agent: 2,
            self.collect: 2,
            self._strangers_visit: 1,
            self._worsen: 1,
            self._turn_clocks: 1,
            self._keep_catalog: 1,
            self._lose_state: 0.5,
            self._lock_files: 1,
            self._forge: 0.2,
        }
        self.world.trace("theme", theme)
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
            fails, sync_fails = self.world.rng.uniform(0, 0.02), self.world.rng.uniform(0, 0.4)
            self.world.server.disk.weather = DiskWeather(fails=fails, sync_fails=sync_fails)
        elif theme == "rollback":
            acts |= {self._keep_catalog: 6, self._crash_server: 5, self.collect: 0}
            self.naps = [0.5, 3.0]
            self._worsen(0.3)
        elif theme == "races":
            acts |= {self._applications_act: 8, self._lock_files: 4, self._worsen: 0}
            for pod in self.world.pods:
                pod.volume.races = self.world.rng.uniform(0, 0.6)
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

    async def _back_up(self) -> None:
        await self.world.order(self.world.rng.choice(self.world.pods).name)

    def collect(self) -> None:
        """Have a collector run beside all else."""

        async def collect() -> None:
            for _ in range(3):
                await asyncio.sleep(self.world.rng.uniform(0, 0.25))
                self.world.trace(
                    "collector", await self.world.try_on_server(self._collect_in_fiber)
                )

        self.world.beside(collect())

    def _collect_in_fiber(self) -> str:
        repository, catalog = self.world.server.repository, self.world.server.catalog
        assert repository is not None and catalog is not None
        # Deletions are not in the journal yet: an older catalog could not know of them.
        self.world.server.forget_copies()
        return Collector(repository, catalog, self.world.rng, "shop").run()

    def _strangers_visit(self) -> None:
        for stranger in (self.world.spy, self.world.sibling):
            if self.world.rng.random() < 0.6:
                self.world.beside(stranger.visit())

    async def _keep_catalog(self) -> None:
        """Keep a copy of the catalog; some start may come to find it in place of the newer one."""
        self.world.server.keep_catalog()

    def _forge(self) -> None:
        """Have a compromised agent back up a file under another's content id."""
        self.world.beside(self._forged())

    async def _forged(self) -> None:
        if self.world.forger.is_up:
            return
        self.world.forger.start()
        await asyncio.sleep(0.3)
        job = await self.world.order(self.world.forger.name)
        if job is not None:
            await asyncio.sleep(self.world.rng.uniform(0.5, 5.0))
        await self.world.forger.crash()

    async def _lose_state(self) -> None:
        pod = self.world.rng.choice(self.world.pods)
        await pod.crash()
        pod.lose_state()

    async def _lock_files(self) -> None:
        """Make files unreadable, and have them backed up: their names go into a report."""
        for pod in self.world.pods:
            files = pod.volume.files()
            if files and self.world.rng.random() < 0.6:
                pod.volume.lock({self.world.rng.choice(files)})
                await self.world.order(pod.name)

    async def _applications_act(self) -> None:
        for pod in self.world.pods:
            for _ in range(self.world.rng.randint(0, 4)):
                self.world.trace("application", pod.name, pod.volume.act())
                await asyncio.sleep(self.world.rng.choice([0.0, 0.0, 0.003, 0.02, 0.3]))

    def _exchange_directories(self) -> None:
        for pod in self.world.pods:
            pod.volume.exchange_directories()

    async def _cancel(self) -> None:
        """Have a job cancelled that has just begun."""
        job = await self.world.order(self.world.rng.choice(self.world.pods).name)
        await asyncio.sleep(self.world.rng.uniform(0, 0.6))
        if job is not None:
            await self.world.admin.call("POST", f"/v1/jobs/{job}/cancel")

    def _pass_a_week(self) -> None:
        """Have the next backups be audits: all is read, and nothing was missed."""
        for pod in self.world.pods:
            pod.clock.ahead_ns += 8 * 86_400 * 1_000_000_000

    def _overflow(self) -> None:
        """Have more happen at once than a queue of events holds."""
        for pod in self.world.pods:
            for queue in pod.volume.queues:
                queue.overflow()
            for _ in range(self.world.rng.randint(1, 3)):
                self.world.trace("unheard", pod.name, pod.volume.act())

    async def _crash_server(self) -> None:
        await self.world.server.crash(is_power_lost=self.world.rng.random() < 0.6)

    async def _crash_agent(self) -> None:
        await self.world.rng.choice(self.world.pods).crash()

    def _turn_clocks(self) -> None:
        jump = (
            self.world.rng.choice([-3600, -5, 5, 3600, 86_400 * 365, -86_400 * 365]) * 1_000_000_000
        )
        clocks: list[Clock | VolumeClock] = [
            self.world.server.clock,
            *(pod.clock for pod in self.world.pods),
        ]
        clock = self.world.rng.choice(clocks)
        clock.ahead_ns += jump

    def _worsen(self, how_much: float = 1.0) -> None:
        rng = self.world.rng

        def some(chance: float, most: float) -> float:
            return rng.uniform(0, most) if rng.random() < chance * how_much else 0.0

        self.world.network.weather = Weather(
            lost=some(0.5, 0.2),
            answer_lost=some(0.5, 0.2),
            doubled=some(0.5, 0.3),
            torn=some(0.3, 0.1),
            late=some(0.4, 0.1),
            breaks=some(0.4, 0.05),
        )
        self.world.server.disk.weather = DiskWeather(
            fails=some(0.4, 0.05),
            is_full=rng.random() < 0.1 * how_much,
            is_crammed=rng.random() < 0.05 * how_much,
            crash=some(0.4, 0.01),
        )
        self.world.server.hazards = Hazards(crash=some(0.4, 0.02), fails=some(0.3, 0.02))
        for pod in self.world.pods:
            pod.hazards = Hazards(crash=some(0.4, 0.1))
