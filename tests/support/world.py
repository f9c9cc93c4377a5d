"""A world of real processes in one directory: a server, agents, the administrator's command.

Everything goes through the published interface: executables, their environment, files under the
server's directory, exit codes, JSON. Nothing of the product is imported.

    with World(tmp_path) as world:
        world.start_server()
        world.start_agent("shop/web-0", [source, target])
        done = world.backup("shop/web-0", source)
        world.json("restore", done["snapshot"], "--target", target)
        assert differences(source, under(target, source)) == []
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
POLL_SECONDS = 0.05
RUN_SECONDS_MAX = 240
LOG_BYTES_SHOWN = 12_000


def under(target: Path, source: Path) -> Path:
    """Return where a restore with `--target target` puts `source`."""
    return target / source.relative_to("/")


@dataclass
class Process:
    """One running executable; everything it prints goes to `log`."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    def stop(self, seconds: float = 15) -> int:
        """Send SIGTERM and return the exit status; -9 when it took longer than `seconds`."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.popen.returncode

    def kill(self) -> None:
        """Send SIGKILL and wait for the end."""
        self.popen.kill()
        self.popen.wait()


def log_tail(log: Path) -> str:
    """Return the last lines of a process's log."""
    return log.read_bytes()[-LOG_BYTES_SHOWN:].decode(errors="replace")


@dataclass
class World:
    """At most one server, any number of agents; `close` ends them all.

    An agent keeps its state directory below `top` and may be stopped, killed and started again;
    the server keeps its directory and, from its first start, its port.
    """

    top: Path
    bin: Path = BIN
    url: str = ""
    server: Process | None = None
    agents: dict[str, Process] = field(default_factory=dict)
    keys: dict[str, Path] = field(default_factory=dict)
    """Key file by domain."""

    def __enter__(self) -> World:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def data(self) -> Path:
        """The server's directory."""
        return self.top / "server"

    @property
    def ca(self) -> Path:
        """The server's own authority, as file."""
        return self.data / "tls" / "ca.pem"

    def close(self) -> list[str]:
        """Stop everything; return a line for each process that did not end with 0 on SIGTERM."""
        running = [*self.agents.values(), *([self.server] if self.server else [])]
        ended = [process for process in running if process.popen.poll() is None]
        return [f"{p.name}: exit {status}" for p in ended if (status := p.stop()) != 0]

    def logs(self) -> dict[str, str]:
        """Return the last lines of every process that ever ran here, by name."""
        return {path.stem: log_tail(path) for path in sorted(self.top.glob("*.log"))}

    # --- server -----------------------------------------------------------------------------------

    def start_server(self, *options: object, **env: str) -> None:
        """Start the server, or start it again on the same directory and port; wait for its health.

        Options and variables of a former start do not carry over.
        """
        listen = self.url.removeprefix("https://") or "127.0.0.1:0"
        command = ["holdfast-server", "--data", self.data, "--listen", listen, *options]
        self.server = self._spawn("server", command, env)
        self.until(self.is_healthy, "the server answers /healthz with 200")

    def is_healthy(self) -> bool:
        """Say whether the server can serve.

        Raises:
            AssertionError: the process ended.
        """
        self._still_runs(self.server)
        if not self.url:
            place = self.data / "url"
            text = place.read_text().strip() if place.exists() else ""
            if not text or not self.ca.exists():
                return False
            self.url = text
        return self.get("/healthz") == 200

    def get(self, path: str) -> int:
        """Return the HTTP status of an open address of the server, 0 when it does not answer."""
        try:
            context = ssl.create_default_context(cafile=self.ca)
            with urllib.request.urlopen(self.url + path, timeout=5, context=context) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0

    def stop_server(self) -> int:
        """Send SIGTERM to the server and return its exit status."""
        assert self.server is not None, "no server was started"
        return self.server.stop()

    def kill_server(self) -> None:
        """Kill the server as a power cut would."""
        assert self.server is not None, "no server was started"
        self.server.kill()

    # --- agents -----------------------------------------------------------------------------------

    def domain(self, name: str) -> Path:
        """Return the domain's key file; the domain is created at the first call."""
        if name not in self.keys:
            key, recovery = self.top / f"{name}.key", self.top / f"{name}.recovery"
            self.cli("domain", "create", name, "--key-out", key, "--recovery-out", recovery)
            self.keys[name] = key
        return self.keys[name]

    def start_agent(
        self,
        client: str,
        roots: Sequence[Path],
        *,
        prefix: Sequence[str] = (),
        wait: bool = True,
        **env: str,
    ) -> Process:
        """Start `client`'s agent (DOMAIN/NAME) and wait until it is connected.

        At the first start it is enrolled; later ones go on with its state directory. `prefix` is a
        command that runs it, such as setpriv; `env` overrides any variable.
        """
        domain, _, name = client.partition("/")
        key, state = self.domain(domain), self.state(client)
        token = self.top / f"{domain}-{name}.token"
        if not state.exists():
            state.mkdir(parents=True)
            self.cli("enrol-token", "create", domain, "--client", client, "--out", token)
        settings = {
            "HOLDFAST_SERVER": self.url,
            "HOLDFAST_CA": str(self.ca),
            "HOLDFAST_STATE": str(state),
            "HOLDFAST_ROOTS": ":".join(map(str, roots)),
            "HOLDFAST_KEY_FILE": str(key),
            "HOLDFAST_ENROL_TOKEN_FILE": str(token),
        }
        agent = self._spawn(f"{domain}-{name}", ["holdfast-agent"], settings | env, prefix)
        self.agents[client] = agent
        if wait:
            self.until_connected(client)
        return agent

    def state(self, client: str) -> Path:
        """Return the state directory of a client's agent."""
        return self.top / "state" / client

    def client_state(self, client: str) -> str:
        """Return `connected`, `offline` or `revoked`, or `unknown` before it has enrolled."""
        rows = {row["name"]: row["state"] for row in self.json("clients")}
        return str(rows.get(client, "unknown"))

    def until_connected(self, client: str, seconds: float = 60) -> None:
        """Wait until the server shows the client as connected; its agent must stay alive."""

        def is_connected() -> bool:
            self._still_runs(self.agents[client])
            return self.client_state(client) == "connected"

        self.until(is_connected, f"{client} is connected", seconds=seconds)

    def stop_agent(self, client: str) -> int:
        """Send SIGTERM to a client's agent and return its exit status."""
        return self.agents[client].stop()

    def kill_agent(self, client: str) -> None:
        """Kill a client's agent as a lost node would."""
        self.agents[client].kill()

    # --- the administrator's command --------------------------------------------------------------

    def environment(self, **env: str) -> dict[str, str]:
        """Return what the administrator's command runs with: nothing of this shell's Holdfast."""
        settings = {
            "HOME": str(self.top),
            "XDG_CONFIG_HOME": str(self.top / "config"),
            "HOLDFAST_SERVER": self.url,
            "HOLDFAST_CA": str(self.ca),
            "HOLDFAST_TOKEN_FILE": str(self.data / "admin.token"),
        }
        return _clean() | settings | env

    def run(self, *args: object, **env: str) -> subprocess.CompletedProcess[bytes]:
        """Run `holdfast ARGS` to its end, whatever its exit status."""
        return subprocess.run(
            [str(self.bin / "holdfast"), *map(str, args)],
            env=self.environment(**env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=RUN_SECONDS_MAX,
            check=False,
        )

    def cli(self, *args: object, expect: int = 0, **env: str) -> str:
        """Run `holdfast ARGS` and return what it prints.

        Raises:
            AssertionError: another exit status than `expect`; with both outputs.
        """
        done = self.run(*args, **env)
        shown = f"holdfast {' '.join(map(str, args))}: exit {done.returncode}, expected {expect}"
        for part in (done.stdout, done.stderr):
            shown += "\n" + part[-3000:].decode(errors="replace")
        assert done.returncode == expect, shown
        return done.stdout.decode(errors="surrogateescape")

    def lines(self, *args: object, expect: int = 0, **env: str) -> list[dict[str, Any]]:
        """Run with `--json` and return every JSON line."""
        printed = self.cli(*args, "--json", expect=expect, **env)
        return [json.loads(line) for line in printed.splitlines()]

    def json(self, *args: object, expect: int = 0, **env: str) -> Any:
        """Run with `--json` and return the one document, or the last line: the summary."""
        printed = self.cli(*args, "--json", expect=expect, **env)
        try:
            return json.loads(printed)
        except json.JSONDecodeError:
            return json.loads(printed.splitlines()[-1])

    def backup(
        self, client: str, *paths: Path, options: Sequence[object] = (), expect: int = 0, **env: str
    ) -> dict[str, Any]:
        """Back up and return the summary; without `paths` all the client's roots."""
        chosen = [item for path in paths for item in ("--path", path)]
        summary = self.json("backup", client, *chosen, *options, expect=expect, **env)
        assert summary["type"] == "summary", summary
        return dict(summary)

    def restore(
        self, reference: str, *options: object, expect: int = 0, **env: str
    ) -> dict[str, Any]:
        """Restore and return the summary."""
        summary = self.json("restore", reference, *options, expect=expect, **env)
        assert summary["type"] == "summary", summary
        return dict(summary)

    def detached(self, client: str, *options: object) -> str:
        """Start a backup and return its job's id."""
        return str(self.json("backup", client, *options, "--detach")["job"])

    def job(self, job: str) -> dict[str, Any]:
        """Return what `job show` says."""
        return dict(self.json("job", "show", job))

    def wait(self, job: str) -> dict[str, Any]:
        """Wait for a job's end, whatever it is, and return what `job wait` says."""
        done = self.run("job", "wait", job, "--json")
        assert done.stdout.strip(), f"job wait: exit {done.returncode} {done.stderr[-2000:]!r}"
        return dict(json.loads(done.stdout.splitlines()[-1]))

    # --- waiting and starting ---------------------------------------------------------------------

    def until(self, probe: Callable[[], object], claim: str, *, seconds: float = 60) -> None:
        """Ask `probe` again and again until it is true.

        Raises:
            AssertionError: `claim` did not come true within `seconds`.
        """
        end = time.monotonic() + seconds
        while not probe():
            assert time.monotonic() < end, f"not within {seconds} s: {claim}"
            time.sleep(POLL_SECONDS)

    def _still_runs(self, process: Process | None) -> None:
        assert process is not None, "it was not started"
        status = process.popen.poll()
        assert status is None, f"{process.name} ended with {status}:\n{log_tail(process.log)}"

    def _spawn(
        self, name: str, command: Sequence[object], env: dict[str, str], prefix: Sequence[str] = ()
    ) -> Process:
        place = self.top / f"{name}.log"
        program, *options = map(str, command)
        with open(place, "ab") as log:
            popen = subprocess.Popen(
                [*prefix, str(self.bin / program), *options],
                env=_clean() | {"HOME": str(self.top)} | env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return Process(name, popen, place)


def _clean() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("HOLDFAST_")}
