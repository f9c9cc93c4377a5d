"""The generator: the same seed gives the same tree, and each kind and attribute really occurs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.generate import ACL_ACCESS, ACL_DEFAULT, PRIVILEGED, SPECIALS, plan_tree
from tests.support.materialise import materialise
from tests.support.mutate import EDITS, mutate
from tests.support.trees import Tree, differences, scan


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    top = tmp_path_factory.mktemp("complete") / "tree"
    materialise(plan_tree(1, complete=True), top)
    return scan(top)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=25)
def test_the_same_seed_gives_the_same_plan(seed: int) -> None:
    assert plan_tree(seed) == plan_tree(seed)


def test_different_seeds_give_different_plans() -> None:
    plans = [plan_tree(seed) for seed in range(20)]
    assert all(one != two for index, one in enumerate(plans) for two in plans[:index])


@pytest.mark.parametrize("seed", range(3))
def test_a_plan_materialises_to_equal_trees(tmp_path: Path, seed: int) -> None:
    for name in ("one", "two"):
        materialise(plan_tree(seed), tmp_path / name)
    assert differences(tmp_path / "one", tmp_path / "two") == []


def test_a_plan_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    materialise(plan_tree(4), tmp_path / "one")
    before = os.umask(0o077)
    try:
        materialise(plan_tree(4), tmp_path / "two")
    finally:
        os.umask(before)
    assert differences(tmp_path / "one", tmp_path / "two") == []


def test_every_planned_entry_is_on_disk_and_nothing_else(tmp_path: Path) -> None:
    plan = plan_tree(5, complete=True)
    materialise(plan, tmp_path / "tree")
    planned = {b"/".join(names) or b".": node for names, node in plan.walk()}
    found = scan(tmp_path / "tree")
    assert planned.keys() == found.keys()
    assert all(found[path].type == node.kind for path, node in planned.items())
    assert all(
        found[path].mtime_ns == node.mtime_ns
        for path, node in planned.items()
        if not node.link_group
    )
    assert all(found[path].size == node.size for path, node in planned.items())


def test_each_type_occurs(complete: Tree) -> None:
    wanted = {"file", "directory", "symlink", "fifo", "socket"}
    wanted |= {"char device", "block device"} if PRIVILEGED else set()
    assert {facts.type for facts in complete.values()} == wanted


def test_each_kind_of_name_occurs(complete: Tree) -> None:
    names = [path.rpartition(b"/")[2] for path in complete]
    assert max(map(len, names)) == 255
    assert max(map(len, complete)) > 4096
    assert any(b"\xff" in name for name in names)
    assert any(b"\n" in name for name in names)
    assert any(name.startswith(b"-") for name in names)
    assert max(path.count(b"/") for path in complete) >= 60


def test_each_kind_of_content_occurs(complete: Tree) -> None:
    files = [facts for facts in complete.values() if facts.type == "file"]
    assert any(facts.size == 0 for facts in files)
    assert any(facts.size > 2**32 for facts in files)
    assert any(facts.size > 0 and facts.data == () for facts in files), "nothing but a hole"
    assert any(facts.data and facts.data[0][0] > 0 for facts in files), "hole at the start"
    assert any(facts.data and facts.data[-1][1] < facts.size for facts in files), "hole at the end"
    zeros = next(facts for path, facts in complete.items() if path.endswith(b"allocated zeros"))
    assert zeros.data == ((0, zeros.size),)
    by_digest = [facts.digest for facts in files if facts.size > 1000 and facts.inode is None]
    assert len(set(by_digest)) < len(by_digest), "the same content under several names"


def test_each_kind_of_metadata_occurs(complete: Tree) -> None:
    modes = {facts.mode & 0o7000 for facts in complete.values()}
    assert {0o4000, 0o2000, 0o1000} <= modes
    assert any(facts.mtime_ns < 0 and facts.mtime_ns % 10**9 for facts in complete.values())
    assert any(facts.mtime_ns > 2**31 * 10**9 for facts in complete.values())
    keys = {(facts.type, key) for facts in complete.values() for key, _ in facts.xattrs}
    assert {("file", ACL_ACCESS), ("directory", ACL_ACCESS), ("directory", ACL_DEFAULT)} <= keys
    assert {("file", "user.1"), ("directory", "user.dir")} <= keys


def test_hard_links_cross_directories(complete: Tree) -> None:
    groups: dict[object, set[bytes]] = {}
    for path, facts in complete.items():
        if facts.inode is not None:
            groups.setdefault(facts.inode, set()).add(path.rpartition(b"/")[0])
    assert any(len(folders) > 1 for folders in groups.values())
    assert any(facts.inode is not None for facts in complete.values() if facts.type == "symlink")


def test_with_privilege_owners_devices_and_capabilities_occur(complete: Tree) -> None:
    own = (os.geteuid(), os.getegid())
    assert any(facts.owner != own for facts in complete.values()) == PRIVILEGED
    assert any(facts.device != (0, 0) for facts in complete.values()) == PRIVILEGED
    keys = {key for facts in complete.values() for key, _ in facts.xattrs}
    assert ("security.capability" in keys) == PRIVILEGED


def test_without_privilege_nothing_needs_it() -> None:
    for seed in range(30):
        nodes = [node for _, node in plan_tree(seed, privileged=False).walk()]
        assert all(node.owner is None and node.device == (0, 0) for node in nodes)


def test_each_special_case_occurs_in_a_few_seeds_and_no_tree_has_them_all() -> None:
    counts = [sum(1 for _ in plan_tree(seed).walk()) for seed in range(12)]
    assert min(counts) * 3 < max(counts)
    names = {name for seed in range(12) for names, _ in plan_tree(seed).walk() for name in names}
    assert {b"over 4 GiB", b"crowded", b"fifo", b"big", b"hard link 0", b"acl file"} <= names
    assert len(SPECIALS) == len(set(SPECIALS))


@pytest.mark.parametrize("only", EDITS)
def test_each_edit_changes_the_tree(tmp_path: Path, only: str) -> None:
    top = tmp_path / "tree"
    materialise(plan_tree(11, complete=True), top)
    before = scan(top)
    told = mutate(top, 3, edits=2, only=only, privileged=PRIVILEGED)
    assert len(told) == 2
    assert told[0].startswith(f"{only}:"), "the complete tree has something for each edit"
    after = scan(top)
    assert before != after


def test_the_same_seed_makes_the_same_edits(tmp_path: Path) -> None:
    told = []
    for name in ("one", "two"):
        materialise(plan_tree(12), tmp_path / name)
        told.append(mutate(tmp_path / name, 5, edits=20))
    assert told[0] == told[1]
    shape = [
        {
            path: (facts.type, facts.digest, facts.xattrs)
            for path, facts in scan(tmp_path / name).items()
        }
        for name in ("one", "two")
    ]
    assert shape[0] == shape[1]


def test_a_month_of_edits_uses_every_kind_and_ends(tmp_path: Path) -> None:
    materialise(plan_tree(13, entries=15), tmp_path / "tree")
    told = [line for day in range(30) for line in mutate(tmp_path / "tree", day)]
    assert len(told) == 30 * 12
    assert {line.partition(":")[0] for line in told} == set(EDITS) - (
        set() if PRIVILEGED else {"chown"}
    )
