"""For every test: no blocking call in an event loop, no skip in CI, Hypothesis profiles."""

from __future__ import annotations

import inspect
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx
from hypothesis import HealthCheck, settings

from tests.support.world import World

CI = bool(os.environ.get("CI"))
SLOW_MACHINE = [HealthCheck.too_slow, HealthCheck.data_too_large]

# Two shared cores have no steady speed: examples are bounded by number, never by time.
settings.register_profile("default", deadline=None, suppress_health_check=SLOW_MACHINE)
settings.register_profile(
    "ci", deadline=None, suppress_health_check=SLOW_MACHINE, derandomize=True, print_blob=True
)
settings.register_profile(
    "soak",
    deadline=None,
    suppress_health_check=SLOW_MACHINE,
    max_examples=5_000,
    print_blob=True,
)


def pytest_configure(config: pytest.Config) -> None:
    """Choose the Hypothesis profile, unless the command line did."""
    if not config.getoption("--hypothesis-profile", default=None):
        settings.load_profile("ci" if CI else "default")


@pytest.fixture(autouse=True)
def blocking_calls_fail(request: pytest.FixtureRequest) -> Iterator[None]:
    """Raise inside an asynchronous test when product code blocks its event loop."""
    function = getattr(request, "function", None)
    if not inspect.iscoroutinefunction(function) or request.node.get_closest_marker("blocking"):
        yield
        return
    with blockbuster_ctx(["holdfast_server", "holdfast_agent"]):
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One running server for all tests of a module, each with clients of its own."""
    yield from _running(tmp_path_factory.mktemp("world"))


@pytest.fixture
def own_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A running server for one test, which may kill or break it."""
    yield from _running(tmp_path_factory.mktemp("own"))


def _running(top: Path) -> Iterator[World]:
    world = World(top)
    try:
        world.start_server()
        yield world
    finally:
        unclean = world.close()
    assert unclean == [], "SIGTERM ends every process with 0"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the logs of a world's processes below a failure."""
    report = yield
    if report.failed:
        worlds = [
            value for value in getattr(item, "funcargs", {}).values() if isinstance(value, World)
        ]
        report.sections += [
            (f"log of {name}", text) for world in worlds for name, text in world.logs().items()
        ]
    return report


def _skipped(config: pytest.Config) -> int:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return len(reporter.stats.get("skipped", [])) if reporter else 0


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Make a skipped test fail the run in CI: what is needed and missing is a failure."""
    if CI and _skipped(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say why a run without a failed test failed."""
    if CI and (skipped := _skipped(terminalreporter.config)):
        terminalreporter.write_line(f"{skipped} skipped: in CI nothing may be skipped", red=True)
