"""The main job on real files, as a newcomer would do it; compares every byte that comes back.

    make demo

Starts one server and two agents in a temporary directory, backs up a copy of this machine's
Python library and documentation beside a log that never stops growing, changes files, backs up
again, looks at what is stored, restores it in every way, compares content and metadata, and
cleans up.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.support.trees import Aspect, Tree, compare, scan

BIN = Path(sys.executable).parent
DOCUMENTATION = Path("/usr/share/doc")
DOCUMENTATION_FILES_MAX = 4000
GROWING = "access.log"
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST_")}


class DemoFailed(Exception):
    """Something did not come back as it was."""


@dataclass
class Row:
    """One line of the table at the end."""

    step: str
    files: int
    read: int
    new: int
    sent: int
    stored: int
    seconds: float


@dataclass
class Demo:
    """The temporary world."""

    top: Path
    env: dict[str, str] = field(default_factory=dict)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    agents: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    # --- processes
    def start(self, name: str, command: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        with open(self.top / f"{name}.log", "wb") as log:
            process = subprocess.Popen(command, env=CLEAN | env, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def start_server(self) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        data = self.top / "server"
        listen = ["--data", str(data), "--listen", f"127.0.0.1:{port}"]
        self.start("server", [str(BIN / "holdfast-server"), *listen], {})
        self.env = CLEAN | {"HOLDFAST_DATA": str(data), "HOME": str(self.top)}
        self.until(lambda: (data / "url").exists() and self.run("status").returncode == 0)

    def start_agent(self, client: str, root: Path) -> None:
        name = client.replace("/", "-")
        token, state = self.top / f"{name}.token", self.top / f"state-{name}"
        state.mkdir()
        self.holdfast("enrol-token", "create", "shop", "--client", client, "--out", str(token))
        writable = [root, self.top / f"restored-{name}", self.top / "shared"]
        settings = {
            "HOLDFAST_SERVER": (self.top / "server" / "url").read_text().strip(),
            "HOLDFAST_CA": str(self.top / "server" / "tls" / "ca.pem"),
            "HOLDFAST_STATE": str(state),
            "HOLDFAST_ROOTS": str(root),
            "HOLDFAST_RESTORE_ROOTS": ":".join(map(str, writable)),
            "HOLDFAST_KEY_FILE": str(self.top / "shop.key"),
            "HOLDFAST_ENROL_TOKEN_FILE": str(token),
        }
        self.agents[client] = self.start(name, [str(BIN / "holdfast-agent")], settings)
        self.until(lambda: any(r["name"] == client for r in self.json("clients")))

    def stop(self) -> None:
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(20)

    def until(self, probe: Any, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not probe():
            dead = [p.args for p in self.processes if p.poll() is not None]
            if dead or time.monotonic() > end:
                logs = "".join(p.read_text()[-1000:] for p in self.top.glob("*.log"))
                raise DemoFailed(f"something does not start: {logs}")
            time.sleep(0.1)

    # --- the command
    def run(self, *args: str, key: bool = False) -> subprocess.CompletedProcess[str]:
        env = self.env | ({"HOLDFAST_KEY_FILE": str(self.top / "shop.key")} if key else {})
        return subprocess.run(
            [str(BIN / "holdfast"), *args],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            check=False,
        )

    def holdfast(self, *args: str, key: bool = False, accept: tuple[int, ...] = (0,)) -> str:
        done = self.run(*args, key=key)
        if done.returncode not in accept:
            raise DemoFailed(
                f"holdfast {' '.join(args)}: exit {done.returncode}\n{done.stderr}{done.stdout}"
            )
        return done.stdout

    def json(self, *args: str, accept: tuple[int, ...] = (0,)) -> Any:
        text = self.holdfast(*args, "--json", accept=accept)
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return json.loads(text.strip().splitlines()[-1])

    def stored(self) -> int:
        store = self.top / "server" / "store"
        return sum(p.stat().st_size for p in store.rglob("*") if p.is_file())

    def backup(self, step: str, client: str) -> dict[str, Any]:
        """Back up; a file that keeps changing may be listed (exit 3), nothing else may."""
        before = self.stored()
        done: dict[str, Any] = self.json("backup", client, accept=(0, 3))
        odd = [s for s in done["skipped"] if not s["path"].endswith(GROWING)]
        if odd:
            raise DemoFailed(f"{step}: skipped {odd}")
        new = done["files_new"] + done["files_changed"]
        self.rows.append(
            Row(step, done["files"], done["bytes"], new, done["bytes_sent"],
                self.stored() - before, done["seconds"])
        )  # fmt: skip
        if done["skipped"]:
            say(f"  {GROWING} changed while it was read: stored as read, and told")
        return done

    def restore(self, step: str, *args: str) -> None:
        done = self.json("restore", *args)
        jobs = done.get("jobs", [done])
        for one in jobs:
            self.rows.append(Row(step, one["files"], one["bytes"], 0, 0, 0, one["seconds"]))


def say(text: str) -> None:
    """Tell the reader what happens."""
    print(text, flush=True)


@contextmanager
def growing(path: Path) -> Iterator[None]:
    """Append to `path` all the time, as a busy application does."""
    stop = threading.Event()

    def write() -> None:
        with open(path, "ab", buffering=0) as log:
            while not stop.wait(0.002):
                log.write(b"GET / 200 0.001\n" * 20)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def real_files(top: Path) -> tuple[Path, Path]:
    """Copy the machine's Python library and documentation: the originals are not to be touched."""
    library, documentation = top / "web-0", top / "web-1"
    leave_out = shutil.ignore_patterns("site-packages", "__pycache__", "test")
    shutil.copytree(sysconfig.get_path("stdlib"), library, symlinks=True, ignore=leave_out)
    documentation.mkdir()
    taken = 0
    for folder in sorted(DOCUMENTATION.iterdir()) if DOCUMENTATION.is_dir() else []:
        if taken < DOCUMENTATION_FILES_MAX and folder.is_dir() and not folder.is_symlink():
            shutil.copytree(folder, documentation / folder.name, symlinks=True)
            taken += sum(1 for _ in (documentation / folder.name).rglob("*"))
    (documentation / "README").write_text("documentation of this machine\n")
    return library, documentation


def expect(want: Tree, got: Path, what: str) -> None:
    """Compare a restored tree with what was there, without the file that kept growing."""
    found = compare(_settled(want), _settled(scan(got)), ignore={Aspect.ALLOCATION})
    if found:
        raise DemoFailed(f"{what}: {len(found)} differences\n" + "\n".join(found[:20]))
    say(f"  {what}: {len(want):,} entries equal, content and metadata")


def _settled(tree: Tree) -> Tree:
    return {path: facts for path, facts in tree.items() if path != GROWING.encode()}


def main_job(demo: Demo) -> None:
    """Everything, in the order of a first afternoon."""
    say("one server, two agents, one domain")
    demo.start_server()
    key = str(demo.top / "shop.key")
    demo.holdfast(
        "domain", "create", "shop", "--key-out", key,
        "--recovery-out", str(demo.top / "shop.recovery"),
    )  # fmt: skip
    library, documentation = real_files(demo.top)
    (library / GROWING).write_bytes(b"")
    os.utime(library, ns=(0, 1_600_000_000_123_456_789))
    demo.start_agent("shop/web-0", library)
    demo.start_agent("shop/web-1", documentation)

    say("first backups, while a log keeps growing")
    with growing(library / GROWING):
        first = demo.backup("first backup of the Python library", "shop/web-0")["snapshot"]
        demo.backup("first backup of the documentation", "shop/web-1")
        was = scan(library)
        say("files change; second backups")
        edit(library)
        second = demo.backup("second backup of the Python library", "shop/web-0")["snapshot"]
        demo.backup("second backup of the documentation", "shop/web-1")
    now = scan(library)
    look(demo, library, first, second)
    bring_back(demo, library, now, second)
    elsewhere(demo, library, was, first)


def _below(tree: Tree, folder: bytes) -> Tree:
    start = folder + b"/"
    below = {path.removeprefix(start): tree[path] for path in tree if path.startswith(start)}
    return {b".": tree[folder]} | below


def edit(library: Path) -> None:
    """Change a few files, add one, remove one, rename a folder."""
    (library / "this.py").write_text("print('changed')\n")
    (library / "new file.txt").write_text("added between the two backups\n")
    (library / "antigravity.py").unlink(missing_ok=True)
    (library / "json").rename(library / "json renamed")


def look(demo: Demo, library: Path, first: str, second: str) -> None:
    """Look before restoring: the live pod, and what is stored."""
    say("look: the live pod, then what is stored")
    live = demo.holdfast("browse", "shop/web-0", str(library))
    rows = demo.json("ls", f"{second}:{library}")
    found = demo.holdfast("find", "new file*", "--client", "shop/web-0")
    changed = demo.holdfast("diff", first, second, key=True)
    if "new file.txt" not in live or "new file.txt" not in found or "antigravity" not in changed:
        raise DemoFailed(f"browse, find or diff miss a file\n{live}\n{found}\n{changed}")
    say(f"  browse: {len(live.splitlines())} lines; ls: {len(rows)} entries")
    say("  find 'new file*': " + found.strip().splitlines()[-1].strip())
    say(f"  diff of the two snapshots: {len(changed.splitlines())} lines")


def bring_back(demo: Demo, library: Path, now: Tree, snapshot: str) -> None:
    """Damage the original and restore it in place; restore it to another path."""
    say("restore to the original path, after damage")
    shutil.rmtree(library / "asyncio")
    (library / "this.py").write_text("ruined\n")
    (library / "stray").write_text("not in the snapshot\n")
    demo.restore("restore in place", snapshot, "--in-place", "--delete", "--yes")
    expect(now, library, "original path")
    say("restore to another path")
    target = demo.top / "restored-shop-web-0"
    demo.restore("restore to another path", snapshot, "--target", str(target))
    expect(now, Path(f"{target}{library}"), "another path")


def elsewhere(demo: Demo, library: Path, was: Tree, snapshot: str) -> None:
    """Restore to another client, to two at once, and without any agent."""
    say("restore to another client")
    other = demo.top / "restored-shop-web-1"
    demo.restore(
        "restore to another client", snapshot, "--to", "shop/web-1", "--target", str(other),
        "--special",
    )  # fmt: skip
    expect(was, Path(f"{other}{library}"), "another client")
    say("restore one folder to two clients at once")
    both = demo.top / "shared"
    demo.restore(
        "restore to two clients at once", f"{snapshot}:{library}/email", "--target", str(both),
        "--to", "shop/web-0", "--to", "shop/web-1", "--special",
    )  # fmt: skip
    expect(_below(was, b"email"), Path(f"{both}{library}/email"), "two clients at once")
    say("restore with the key alone, where no agent is left")
    for process in demo.agents.values():
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    local = demo.top / "local"
    started = time.monotonic()
    demo.holdfast(
        "restore", snapshot, "--local", str(local), "--key-file", str(demo.top / "shop.key")
    )
    seconds = time.monotonic() - started
    files = sum(facts.type != "directory" for facts in was.values())
    size = sum(facts.size for facts in was.values())
    demo.rows.append(Row("restore with --local", files, size, 0, 0, 0, seconds))
    expect(was, Path(f"{local}{library}"), "local")


def table(rows: list[Row]) -> None:
    """Print what was done, one line a step."""
    head = ("", "files", "read", "new", "sent", "stored", "seconds")
    lines = [
        (r.step, f"{r.files:,}", size(r.read), f"{r.new:,}", size(r.sent), size(r.stored),
         f"{r.seconds:.1f}")
        for r in rows
    ]  # fmt: skip
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    print()
    for line in [head, *lines]:
        cells = [
            line[0].ljust(widths[0]),
            *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)),
        ]
        print("  ".join(cells).rstrip())
    print(
        "\nread: size of the files; new: files that were new or changed; sent: bytes that left the"
        "\nagent; stored: growth of the server's store. A second backup sends only what changed."
    )


def size(count: int) -> str:
    """Return `count` bytes for a person."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def main() -> int:
    """Run the demo; 0 when all came back as it was."""
    with tempfile.TemporaryDirectory(prefix="holdfast-demo-") as folder:
        demo = Demo(Path(folder).resolve())
        try:
            main_job(demo)
        except DemoFailed as failure:
            print(f"FAILED: {failure}", file=sys.stderr)
            return 1
        finally:
            demo.stop()
        table(demo.rows)
        say("\nEverything came back as it was. The temporary files are removed.")
        return 0


if __name__ == "__main__":
    sys.exit(main())
