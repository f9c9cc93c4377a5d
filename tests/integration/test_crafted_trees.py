"""Trees made to get out of a restore's target, each by the defect that let one out before.

The names of the cases are those of docs/security.md. Whoever crafts them holds the domain's key, as
a compromised sibling does: MAC, signature and ids are right, only what they say is not.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from holdfast_agent.jobs.outcome import Outcome
from holdfast_agent.restore.destination import local_scope
from holdfast_contract.errors import Damaged, HoldfastError
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.protocol.control import Overwrite
from tests.integration.test_hostile_restore import plant_outside, state_of
from tests.support.crafted import Crafter, Row
from tests.support.restore_bench import RestoreBench
from tests.support.samples import IDENTITY, noise

FILE, FOLDER, SYMLINK, FIFO, CHARACTER, BLOCK = 1, 2, 3, 4, 6, 7
SIBLING = "shop/db-1"
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
ROOT = os.geteuid() == 0

pytestmark = pytest.mark.timeout(120)


class Stage(RestoreBench):
    """A bench with a crafter and something outside that must stay as it is."""

    def set_up(self) -> None:
        (self.volume / "here").write_bytes(b"here")
        self.backed_up()
        (self.top / "mirror" / "d").mkdir(parents=True)
        (self.top / "mirror" / "d" / "evil").write_bytes(b"outside")
        (self.top / "mirror" / "evil").write_bytes(b"outside")
        plant_outside(self.top / "outside", self.top / "mirror")
        self.crafter = Crafter(self.repository)
        self.out.mkdir()

    @property
    def outside(self) -> Path:
        return self.top / "outside"

    def tree(self, rows: Sequence[Row], *ids: bytes, **changes: object) -> bytes:
        """Return a snapshot whose root has these entries."""
        return self.crafter.snapshot([self.crafter.page(rows, ids)], identity=IDENTITY, **changes)  # type: ignore[arg-type]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    made = Stage(tmp_path)
    made.set_up()
    return made


def ending(stage: Stage, snapshot: bytes, **options: object) -> tuple[str, list[str]]:
    """Restore as the agent does and return (state or code, reasons)."""
    try:
        outcome: Outcome = stage.restore(target=stage.out, snapshot=snapshot, **options)  # type: ignore[arg-type]
    except HoldfastError as error:
        return error.code, []
    finished = outcome.finished
    reasons = [row["reason"] for row in outcome.result.not_exact]
    return (finished.error.code if finished.error else finished.state.value), reasons


# --- names
NAMES = {
    "restic #1445: the name ..": b"..",
    "borg CVE-2026-62268: a name with ../": b"../outside/evil",
    "rclone CVE-2026-54572: an absolute name": b"/tmp/holdfast-evil",
    "tarfile CVE-2007-4559: a deep ../": b"d/../../outside/evil",
    "the name .": b".",
    "an empty name": b"",
    "a name with NUL": b"evil\0.txt",
    "a name of 256 bytes": b"n" * 256,
}


@pytest.mark.parametrize("case", NAMES)
@pytest.mark.parametrize("kind", [FILE, FOLDER, SYMLINK, FIFO])
def test_a_name_that_is_no_name_is_damage_and_nothing_is_made(
    stage: Stage, case: str, kind: int
) -> None:
    before = state_of(stage.top, with_ctime=False)
    row = Row(NAMES[case], kind, extra={"target": b"/etc"} if kind == SYMLINK else None)
    snapshot = stage.tree([row])
    for options in ({}, {"delete": True, "verify": True}):
        assert ending(stage, snapshot, **options)[0] == "damaged"
    assert not Path("/tmp/holdfast-evil").exists()
    assert state_of(stage.top, with_ctime=False) == before


# --- pages
def doubled(stage: Stage) -> bytes:
    return stage.tree([Row(b"x", SYMLINK, extra={"target": b"../outside"}), Row(b"x", FOLDER)])


def unsorted(stage: Stage) -> bytes:
    return stage.tree([Row(b"y", SYMLINK, extra={"target": b"../outside"}), Row(b"x", FOLDER)])


def doubled_over_pages(stage: Stage) -> bytes:
    """A symlink to outside, then in the next page a directory of its name with a file in it."""
    crafter = stage.crafter
    evil, content = crafter.file(b"evil", b"evil")
    folder, page = crafter.folder(b"x", [evil], content)
    first = crafter.page([Row(b"x", SYMLINK, extra={"target": os.fsencode(stage.outside)})])
    second = crafter.page([folder], [page])
    return crafter.snapshot([first, second], identity=IDENTITY)


def naming_itself(stage: Stage) -> bytes:
    return stage.tree([Row(b"x", FOLDER, flat=[-2, 0, 60])])


def page_in_a_hole(stage: Stage) -> bytes:
    return stage.tree([Row(b"x", FOLDER, flat=[-1, 0, 60])])


def page_out_of_its_chunk(stage: Stage) -> bytes:
    chunk, length = stage.crafter.page([Row(b"x")])
    return stage.tree([Row(b"x", FOLDER, flat=[0, 5, length])], chunk)


def content_as_page(stage: Stage) -> bytes:
    chunk = stage.crafter.chunk(ChunkType.CONTENT, b"x" * 100)
    return stage.tree([Row(b"x", FOLDER, flat=[0, 0, 100])], chunk)


def exponential(stage: Stage) -> bytes:
    """Each level names the one below twice: 2^40 directories in 40 small chunks."""
    chunk, length = stage.crafter.page([Row(b"f")])
    for _ in range(40):
        row = {"kind": FOLDER, "mode": 0o755, "flat": [0, 0, length]}
        chunk, length = stage.crafter.page([Row(b"a", **row), Row(b"b", **row)], [chunk])  # type: ignore[arg-type]
    return stage.crafter.snapshot([(chunk, length)], identity=IDENTITY, files=50, dirs=50)


def more_than_counted(stage: Stage) -> bytes:
    return stage.tree([Row(b"%03d" % n) for n in range(200)], files=3, dirs=0)


def more_bytes_than_counted(stage: Stage) -> bytes:
    row = Row(b"x", size=1 << 40, flat=[-1, 0, 1 << 40])
    return stage.tree([row], bytes=5)


def endless_hole_with_a_content_id(stage: Stage) -> bytes:
    """Hashing 2^62 zeros would never end, and no cancel would be heard."""
    size = 1 << 40
    return stage.tree([Row(b"x", size=size, flat=[-1, 0, size], content_id=noise("id"))])


def wrong_size(stage: Stage) -> bytes:
    row, chunk = stage.crafter.file(b"x", b"content", size=5000)
    return stage.tree([row], chunk)


def unknown_type(stage: Stage) -> bytes:
    return stage.tree([Row(b"x", 9)])


def unknown_flag(stage: Stage) -> bytes:
    return stage.tree([Row(b"x", flags=64)])


def wild_mode(stage: Stage) -> bytes:
    return stage.tree([Row(b"x", mode=0o170000)])


def linked_directory(stage: Stage) -> bytes:
    return stage.tree([Row(b"x", FOLDER, extra={"link": noise("g", 16)})])


PAGES: dict[str, Callable[[Stage], bytes]] = {
    "one name twice: a symlink and a directory": doubled,
    "names out of order": unsorted,
    "rsync CVE-2024-12087: a symlink, then a directory of its name": doubled_over_pages,
    "a page that names itself": naming_itself,
    "a page in a hole": page_in_a_hole,
    "a page beyond its chunk": page_out_of_its_chunk,
    "content for a page": content_as_page,
    "2^40 directories": exponential,
    "more entries than counted": more_than_counted,
    "more bytes than counted": more_bytes_than_counted,
    "a content id of a hole without end": endless_hole_with_a_content_id,
    "extents that do not add up": wrong_size,
    "an unknown type": unknown_type,
    "an unknown flag": unknown_flag,
    "a mode with a type in it": wild_mode,
    "a hard link to a directory": linked_directory,
}


@pytest.mark.parametrize("case", PAGES)
def test_a_page_that_cannot_be_is_damage_and_what_is_outside_stays(stage: Stage, case: str) -> None:
    before = state_of(stage.outside, with_ctime=False)
    snapshot = PAGES[case](stage)
    assert ending(stage, snapshot)[0] == "damaged"
    assert ending(stage, snapshot, delete=True, overwrite=Overwrite.ALWAYS)[0] == "damaged"
    assert state_of(stage.outside, with_ctime=False) == before
    assert not any(path.name == "evil" for path in stage.out.rglob("*"))


@pytest.mark.parametrize("case", ["2^40 directories", "a content id of a hole without end"])
def test_verify_and_questions_end_in_time_as_well(stage: Stage, case: str) -> None:
    snapshot = PAGES[case](stage)
    stage.repository.heads["shop/db-0"] = (1, snapshot)
    with pytest.raises(Damaged):
        stage.ask("find", b"/", pattern="*")
    with contextlib.suppress(Damaged):
        assert stage.verify().finished.error is not None


def test_a_tree_deeper_than_allowed_is_damage(stage: Stage) -> None:
    chunk, length = stage.crafter.page([Row(b"f")])
    for _ in range(4200):
        row = Row(b"d", FOLDER, 0o700, flat=[0, 0, length])
        chunk, length = stage.crafter.page([row], [chunk])
    snapshot = stage.crafter.snapshot([(chunk, length)], identity=IDENTITY, dirs=5000)
    assert ending(stage, snapshot, dry_run=True)[0] == "damaged"


# --- links
def test_a_file_below_a_symlink_that_stands_in_the_target_goes_nowhere(stage: Stage) -> None:
    """rsync CVE-2026-29518, tarfile CVE-2025-4517: the parent is a symlink to the outside."""
    evil, content = stage.crafter.file(b"evil", b"evil")
    folder, page = stage.crafter.folder(b"d", [evil], content)
    snapshot = stage.tree([folder], page)
    before = state_of(stage.outside, with_ctime=True)
    for overwrite in Overwrite:
        for delete in (False, True):
            (stage.out / "d").symlink_to(stage.outside / "d")
            ending(stage, snapshot, overwrite=overwrite, delete=delete, verify=True)
            assert state_of(stage.outside, with_ctime=True) == before
            if (stage.out / "d").is_symlink():
                (stage.out / "d").unlink()
            else:
                assert (stage.out / "d" / "evil").read_bytes() == b"evil"
                (stage.out / "d" / "evil").unlink()
                (stage.out / "d").rmdir()


def test_a_restored_symlink_is_never_followed_by_the_next_restore(stage: Stage) -> None:
    """tarfile CVE-2025-4330: a first snapshot brings the symlink, a second one what is below."""
    link = Row(b"d", SYMLINK, extra={"target": os.fsencode(stage.outside / "d")})
    assert ending(stage, stage.tree([link]))[0] == "Completed"
    assert (stage.out / "d").is_symlink()
    before = state_of(stage.outside, with_ctime=True)
    evil, content = stage.crafter.file(b"evil", b"evil")
    folder, page = stage.crafter.folder(b"d", [evil], content)
    ending(stage, stage.tree([folder], page), delete=True, overwrite=Overwrite.ALWAYS)
    assert state_of(stage.outside, with_ctime=True) == before
    assert (stage.out / "d" / "evil").read_bytes() == b"evil"


@pytest.mark.parametrize("first", [SYMLINK, FIFO])
def test_a_hard_link_group_that_begins_with_another_kind_links_nothing_of_outside(
    stage: Stage, first: int
) -> None:
    """tarfile CVE-2025-4138: a hard link to a symlink that leads out."""
    group = noise("group", 16)
    extra: dict[str, object] = {"link": group}
    if first == SYMLINK:
        extra["target"] = os.fsencode(stage.outside / "evil")
    file, content = stage.crafter.file(b"b", b"evil", extra={"link": group})
    snapshot = stage.tree([Row(b"a", first, extra=extra), file], content)
    before = state_of(stage.outside, with_ctime=True)
    _, reasons = ending(stage, snapshot)
    assert state_of(stage.outside, with_ctime=True) == before
    made = (stage.out / "b").lstat()
    assert stat.S_ISREG(made.st_mode) and made.st_nlink == 1 and reasons == ["link"]


def test_metadata_of_a_symlink_is_its_own_and_never_its_targets(stage: Stage) -> None:
    """rsync CVE-2026-43619: chmod and chown by path reach what the link points to."""
    link = Row(b"x", SYMLINK, 0o777, extra={"target": os.fsencode(stage.outside / "evil")})
    before = state_of(stage.outside, with_ctime=True)
    for _ in range(2):
        assert ending(stage, stage.tree([link]), overwrite=Overwrite.ALWAYS)[0] == "Completed"
    assert state_of(stage.outside, with_ctime=True) == before


# --- another client's
def test_another_clients_privileges_are_left_out_and_listed(stage: Stage) -> None:
    """rclone GHSA-945v: setuid, capabilities and devices arrive on another host."""
    tool, content = stage.crafter.file(b"tool", b"tool", mode=0o4755)
    able, other = stage.crafter.file(
        b"able", b"able", extra={"xattrs": [[b"security.capability", CAPABILITY]]}
    )
    tool.flat[0] = 1
    rows = [able, Row(b"disk", BLOCK, extra={"device": os.makedev(7, 0)}),
            Row(b"mem", CHARACTER, extra={"device": os.makedev(1, 1)}), tool]  # fmt: skip
    page = stage.crafter.page(rows, [other, content])
    snapshot = stage.crafter.snapshot([page], client=SIBLING)
    state, reasons = ending(stage, snapshot)
    assert (state, sorted(reasons)) == (
        "CompletedWithSkips", ["capability", "device", "device", "mode"],
    )  # fmt: skip
    assert sorted(os.listdir(stage.out)) == ["able", "tool"]
    assert stat.S_IMODE((stage.out / "tool").stat().st_mode) == 0o755
    assert os.listxattr(stage.out / "able") == []


def test_what_is_outside_the_manifests_paths_goes_nowhere_in_place(stage: Stage) -> None:
    """The manifest names the volume; its tree has another place beside it, and the root of all."""
    evil, content = stage.crafter.file(b"evil", b"evil")
    folder, page = stage.crafter.folder(b"holdfast-evil-dir", [evil], content)
    snapshot = stage.tree([folder], page)
    before = state_of(stage.top, with_ctime=False)
    outcome = stage.restore(snapshot=snapshot)
    assert outcome.finished.summary["created"] == 0
    assert not Path("/holdfast-evil-dir").exists()
    assert state_of(stage.top, with_ctime=False) == before


def test_a_local_restore_of_a_crafted_tree_stays_in_its_target(stage: Stage) -> None:
    before = state_of(stage.top, with_ctime=False)
    for snapshot in (stage.tree([Row(b"..", FOLDER)]), doubled_over_pages(stage)):
        outcome = stage.restore(target=stage.out, snapshot=snapshot, scope=local_scope())
        assert outcome.finished.error is not None
        for path in stage.out.iterdir():
            assert path.is_symlink()
            path.unlink()
    assert state_of(stage.outside, with_ctime=False).items() <= before.items()
