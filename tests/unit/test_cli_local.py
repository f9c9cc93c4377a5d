"""`restore --local`: the whole restore here, told as one through an agent is."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from holdfast_agent.crypto.keys import KeyMaterial, format_key_file, new_key_material
from holdfast_agent.jobs.restore import run_restore
from holdfast_cli import local
from holdfast_contract.errors import Unreachable
from holdfast_contract.format.report import ReportRow
from tests.support.backup_bench import CLIENT
from tests.support.cli_api import Answer, Done, FakeHttp, run, snapshot
from tests.support.restore_bench import RestoreBench, under
from tests.support.samples import MATERIAL


class Here:
    """A bench whose snapshot the command restores; the repository stands in for the server."""

    def __init__(self, top: Path) -> None:
        self.bench = RestoreBench(top)
        self.key = top / "key"
        self.key.write_text(format_key_file(MATERIAL))
        self.target = top / "new" / "deep" / "target"

    def back_up(self) -> bytes:
        """Back the volume up."""
        return self.bench.backed_up()

    def restore(self, *words: object, key: Path | None = None, target: Path | None = None) -> Done:
        """Run `restore latest --local`."""
        head = self.bench.repository.head(CLIENT)[1]
        answers: dict[str, Answer] = {
            "GET /v1/snapshots/latest": snapshot(id=head.hex(), client=CLIENT)
        }
        place = ["--local", target or self.target, "--key-file", key or self.key]
        reference = next((word for word in words if str(word).startswith("latest")), "latest")
        rest = [word for word in words if word != reference]
        with patch.object(local, "source_of", lambda *_: self.bench.make_source(self.bench)):
            return run("restore", reference, *place, *rest, answers=answers)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    found = Here(tmp_path)
    volume = found.bench.volume
    (volume / "sub").mkdir()
    (volume / "a").write_bytes(b"content of a")
    (volume / "sub" / "b").write_bytes(os.urandom(2 << 20))
    found.back_up()
    yield found


def summary(done: Done) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.out.splitlines()[-1])
    return found


def test_everything_comes_back_below_a_new_directory(here: Here) -> None:
    done = here.restore("--json")
    assert done.code == 0, done.err
    for name in ("a", "sub/b"):
        restored = under(here.target, here.bench.volume / name)
        assert restored.read_bytes() == (here.bench.volume / name).read_bytes()
    told = summary(done)
    assert told["type"] == "summary"
    assert told["kind"] == "restore"
    assert told["job"] is None
    assert told["client"] == CLIENT
    assert told["state"] == "Completed"
    assert told["snapshot"] == here.bench.repository.head(CLIENT)[1].hex()
    assert told["files"] == 2
    assert told["not_exact"] == []
    for name in ("dirs", "bytes", "created", "overwritten", "deleted", "unchanged", "seconds"):
        assert name in told


def test_again_nothing_is_written_again(here: Here) -> None:
    here.restore()
    told = summary(here.restore("--json"))
    assert (told["created"], told["overwritten"]) == (0, 0)
    assert told["unchanged"] > 2


def test_a_person_reads_what_was_done(here: Here) -> None:
    lines = here.restore().out.splitlines()
    assert lines[0].startswith(f"restore of {CLIENT}: Completed, 2 files, 2.0 MiB in ")
    assert lines[1].startswith("  created ")
    assert len(lines) == 2


def test_a_part_without_its_prefix(here: Here) -> None:
    done = here.restore(f"latest:{here.bench.volume}/sub", "--strip", "--json")
    assert done.code == 0, done.err
    assert [path.name for path in here.target.iterdir()] == ["b"]


def test_include_exclude_and_dry_run_reach_the_restore(here: Here) -> None:
    done = here.restore("--dry-run", "--exclude", "b", "--json")
    told = summary(done)
    assert {row["path"].rpartition("/")[2] for row in told["plan"]} >= {"a", "sub"}
    assert not any(row["path"].endswith("/b") for row in told["plan"])
    assert not here.target.exists()
    assert not here.target.parent.exists()


def test_a_link_on_the_way_to_the_directory_is_the_persons_own(here: Here, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert here.restore(target=tmp_path / "link" / "x").code == 0
    assert under(tmp_path / "real" / "x", here.bench.volume / "a").exists()


def test_another_domains_key_ends_with_12_and_writes_nothing(here: Here, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text(format_key_file(new_key_material()))
    done = here.restore("--json", key=other)
    assert done.code == 12
    assert done.error()["code"] == "wrong-key"
    assert not here.target.parent.exists()


def test_a_key_of_the_same_domain_that_is_another_ends_with_12(here: Here, tmp_path: Path) -> None:
    other = tmp_path / "other"
    material = KeyMaterial(MATERIAL.domain_id, os.urandom(32), ((1, os.urandom(32)),))
    other.write_text(format_key_file(material))
    assert here.restore(key=other).code in (12, 13)
    assert not here.target.parent.exists()


def test_without_a_key_file_it_says_what_is_missing(here: Here) -> None:
    answers = {"GET /v1/snapshots/latest": snapshot()}
    done = run("restore", "latest", "--local", here.target, answers=answers)
    assert done.code == 2
    assert "--key-file FILE" in done.err


def test_a_path_that_the_snapshot_does_not_have_ends_with_10(here: Here) -> None:
    assert here.restore("latest:/nowhere").code == 10


def test_damage_ends_with_13_names_the_file_and_restores_the_rest(here: Here) -> None:
    chunks = {
        extent.chunk
        for found in here.bench.snapshot().walk()
        if found.path.endswith(b"/b")
        for extent in here.bench.snapshot().extents(found.entry)
    }
    here.bench.bad |= chunks
    done = here.restore("--json")
    assert done.code == 13
    assert done.error()["code"] == "damaged"
    told = summary(done)
    assert told["state"] == "Failed"
    assert [row["path"].rpartition("/")[2] for row in told["damaged"]] == ["b"]
    assert under(here.target, here.bench.volume / "a").read_bytes() == b"content of a"
    assert not under(here.target, here.bench.volume / "sub" / "b").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_with_130_and_leaves_no_half_file(
    here: Here, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    arrived = threading.Event()

    def break_off(count: int) -> None:
        """As the HTTP client does: the request under way breaks when the signal is handled."""
        os.kill(os.getpid(), number)
        assert arrived.wait(30)
        raise Unreachable("broken off")

    here.bench.before_fetch = break_off
    with patch.object(FakeHttp, "abort", lambda self: arrived.set()):
        done = here.restore("--json")
    assert done.code == 130
    assert summary(done)["state"] == "Cancelled"
    assert "what is restored already stays" in done.err
    assert signal.getsignal(number) is before
    assert [path for path in here.target.rglob("*") if path.is_file()] == []


def test_what_is_not_exact_ends_with_3_and_is_listed(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = run_restore

    def planted(*args: Any, **kwargs: Any) -> Any:
        import msgspec

        from holdfast_contract.protocol.control import JobState

        outcome = real(*args, **kwargs)
        finished = msgspec.structs.replace(
            outcome.finished, state=JobState.COMPLETED_WITH_SKIPS, not_exact_count=1
        )
        row = ReportRow(b"/a", "mode", "left out")
        names = [{"path": row.path.decode(), "reason": row.reason, "message": row.message}]
        result = msgspec.structs.replace(outcome.result, not_exact=names)
        return msgspec.structs.replace(outcome, finished=finished, result=result)

    monkeypatch.setattr(local, "run_restore", planted)
    assert summary(here.restore("--json"))["not_exact"][0]["path"] == "/a"
    done = here.restore()
    assert done.code == 3
    assert "  not exact: /a: left out\n" in done.out
