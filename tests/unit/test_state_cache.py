"""The tree cache: what is put is found, only after it was applied, and never half."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_agent.state import cache_tables
from holdfast_agent.state.cache import CacheHeader, TreeCache
from holdfast_agent.state.cache_tables import TABLES_VERSION
from holdfast_agent.state.directory import StateDirectory
from holdfast_agent.tree.known import KnownTreeLost, NewPage
from holdfast_agent.tree.page import decode_page, encode_page, encode_stat_part
from tests.support.samples import OWN_CHUNK, ids, noise, sample_entries


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDirectory]:
    opened = StateDirectory(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def cache(state: StateDirectory) -> Iterator[TreeCache]:
    opened = TreeCache(state)
    yield opened
    opened.close()


def header(name: str = "one") -> CacheHeader:
    return CacheHeader(
        domain=noise("domain", 16),
        lineage=noise("lineage", 16),
        dataset=noise("dataset", 16),
        snapshot=noise(name),
        agent_time_ns=5,
        refs_set=noise("set"),
        refs_count=3,
        refs_depth=0,
    )


def page(directory: bytes, first: bytes, content: str = "", extra: bytes = b"") -> NewPage:
    return NewPage(
        directory=directory,
        first=first,
        last=first + b"z",
        chunk=noise("tree chunk"),
        offset=7,
        data=b"page of " + directory + first,
        extra=((first, extra),) if extra else (),
        content_ids=(noise(content),) if content else (),
        has_links=content == "linked",
    )


def fill(cache: TreeCache, *pages: NewPage, name: str = "one", refs: int = 3) -> None:
    cache.begin()
    for one in pages:
        cache.put(one)
    cache.finish(header(name), ids(refs))
    cache.apply()


def data(cache: TreeCache, directory: bytes) -> list[bytes]:
    return [found.data for found in cache.pages(directory)]


def test_new_cache_describes_nothing(cache: TreeCache) -> None:
    assert cache.header() is None
    assert list(cache.pages(b"/")) == []
    assert cache.half_empty() == frozenset()


def test_pages_come_back_by_directory_in_order(cache: TreeCache) -> None:
    fill(cache, page(b"/b", b"n"), page(b"/a", b"x"), page(b"/a", b"m"))
    assert cache.header() == header()
    assert data(cache, b"/a") == [b"page of /am", b"page of /ax"]
    found = next(cache.pages(b"/b"))
    assert (found.first, found.last, found.offset) == (b"n", b"nz", 7)
    assert (found.chunk, found.has_extra, found.has_links) == (noise("tree chunk"), False, False)
    assert cache.page(found.row) == found
    assert cache.page(999) is None
    assert [directory for _, directory in cache.everything()] == [b"/a", b"/a", b"/b"]
    assert list(cache.refs()) == ids(3)


def test_below_names_the_subtree_and_no_neighbour(cache: TreeCache) -> None:
    names = (b"/", b"/a", b"/a/b", b"/a/b/c", b"/a.b", b"/a0", b"/ab")
    fill(cache, *(page(name, b"x") for name in names))
    assert sorted(found.data for found in cache.below(b"/a")) == [
        b"page of /a/b/cx",
        b"page of /a/bx",
        b"page of /ax",
    ]
    assert len(list(cache.below(b"/"))) == len(names)


def test_overlay_shows_only_once_it_is_applied(cache: TreeCache, state: StateDirectory) -> None:
    fill(cache, page(b"/a", b"x"))
    (old,) = cache.pages(b"/a")
    cache.begin()
    cache.drop(old.row)
    cache.put(page(b"/a", b"y"))
    assert data(cache, b"/a") == [b"page of /ax"]
    cache.close()
    other = TreeCache(state)
    assert data(other, b"/a") == [b"page of /ax"]
    assert other.pending() is None
    other.begin()
    other.drop(old.row)
    other.put(page(b"/a", b"y"))
    other.finish(header("two"), ids(1))
    other.apply()
    assert data(other, b"/a") == [b"page of /ay"]
    assert (other.header(), list(other.refs())) == (header("two"), ids(1))
    other.close()


def test_finished_overlay_outlives_the_process_and_can_be_applied(
    cache: TreeCache, state: StateDirectory
) -> None:
    cache.begin()
    cache.put(page(b"/a", b"x"))
    cache.finish(header(), ids(2))
    cache.close()
    later = TreeCache(state)
    assert later.header() is None
    assert later.pending() == header()
    later.apply()
    assert (later.header(), data(later, b"/a")) == (header(), [b"page of /ax"])
    assert later.pending() is None
    later.close()


def test_row_numbers_are_never_used_again(cache: TreeCache) -> None:
    fill(cache, page(b"/a", b"x"), page(b"/b", b"x"))
    rows = {found.row for found in cache.below(b"/")}
    fill(cache, page(b"/c", b"x"), name="two")
    assert len({found.row for found in cache.below(b"/")}) == 3
    assert rows < {found.row for found in cache.below(b"/")}


def test_content_is_found_by_its_id(cache: TreeCache) -> None:
    fill(cache, *(page(b"/a", b"%04d" % n, f"content {n}") for n in range(1000)))
    for number in (0, 1, 500, 999):
        (row,) = cache.rows_with_content(noise(f"content {number}"))
        found = cache.page(row)
        assert found is not None and found.first == b"%04d" % number
    assert cache.rows_with_content(noise("no content")) == []


def test_content_is_not_found_across_two_records(cache: TreeCache) -> None:
    first = bytes(4) + noise("first", 28)
    fill(cache, page(b"/a", b"x")._replace(content_ids=(first, noise("second"))))
    (row,) = cache.rows_with_content(first)
    across = first[4:12] + row.to_bytes(4, "big")
    assert cache.rows_with_content(across + bytes(20)) == []


def test_index_of_contents_is_merged_and_forgets_what_is_gone(cache: TreeCache) -> None:
    for number in range(12):
        cache.begin()
        for old in cache.pages(b"/d%d" % (number - 1)):
            cache.drop(old.row)
        cache.put(page(b"/d%d" % number, b"x", f"content {number}"))
        cache.finish(header(str(number)), ids(1))
        cache.apply()
    (row,) = cache.rows_with_content(noise("content 11"))
    assert cache.page(row) is not None
    (runs,) = cache._db.execute("SELECT COUNT(DISTINCT run) FROM main.contents").fetchone()
    assert runs <= 8
    standing = [n for n in range(12) if cache.rows_with_content(noise(f"content {n}"))]
    assert 11 in standing and 0 not in standing
    assert cache_tables.CONTENT_RECORD_BYTES == 16


def test_page_that_takes_a_number_is_found_by_what_was_found_under_it(cache: TreeCache) -> None:
    both = page(b"/a", b"x", "kept")._replace(content_ids=(noise("kept"), noise("gone")))
    fill(cache, both, page(b"/b", b"x", "other"))
    (old,) = cache.pages(b"/a")
    new = page(b"/a", b"y", "new")._replace(takes_row=old.row, stale=1)
    cache.begin()
    cache.drop(old.row)
    cache.put(new)
    cache.put(page(b"/c", b"x"))
    cache.finish(header("two"), ids(1))
    cache.apply()
    (found,) = cache.pages(b"/a")
    assert (found.row, found.data, found.stale) == (old.row, new.data, 1)
    assert cache.rows_with_content(noise("kept")) == [old.row]
    assert cache.rows_with_content(noise("new")) == [old.row]
    # A hint: who follows it does not find the content in the page.
    assert cache.rows_with_content(noise("gone")) == [old.row]
    assert len({known.row for known in cache.below(b"/")}) == 3


def test_index_of_contents_has_few_runs_however_many_backups_there_were(cache: TreeCache) -> None:
    fill(cache, *(page(b"/a", b"%05d" % n, f"first {n}") for n in range(3000)))
    runs = []
    for number in range(40):
        cache.begin()
        for n in range(10):
            cache.put(page(b"/d%02d" % number, b"%d" % n, f"content {number} {n}"))
        cache.finish(header(str(number)), ids(1))
        cache.apply()
        runs += cache._db.execute("SELECT COUNT(DISTINCT run) FROM main.contents").fetchone()
    # The first is much longer than all others together: it stays as it was.
    assert (max(runs), runs[-1]) == (2, 2)
    for number, n in ((0, 0), (17, 9), (39, 5)):
        (row,) = cache.rows_with_content(noise(f"content {number} {n}"))
        found = cache.page(row)
        assert found is not None and found.data == b"page of /d%02d%d" % (number, n)
    assert len(cache.rows_with_content(noise("first 7"))) == 1


def test_page_that_changed_on_the_disk_is_never_opened(
    cache: TreeCache, state: StateDirectory
) -> None:
    stats, contents = sample_entries()
    data = encode_page(encode_stat_part(stats), contents)
    fill(cache, page(b"/a", b"x")._replace(data=data, chunk=OWN_CHUNK, offset=5000))
    (found,) = cache.pages(b"/a")
    assert list(found.opened().stats) == stats == list(found.decoded().stats)
    cache.close()
    path = state.path / "cache.sqlite"
    # One bit of a content id: nothing about it shows that it is another.
    content_id = next(content.content_id for content in contents if content.content_id)
    stored = path.read_bytes()
    assert stored.count(content_id) == 1
    flipped = bytes([content_id[0] ^ 1]) + content_id[1:]
    path.write_bytes(stored.replace(content_id, flipped))
    changed = TreeCache(state)
    (found,) = changed.pages(b"/a")
    assert decode_page(found.data, OWN_CHUNK, 5000).stats == tuple(stats)
    for read in (found.opened, found.decoded):
        with pytest.raises(KnownTreeLost):
            read()
    changed.close()


@pytest.mark.parametrize("version", [0, 2])
def test_cache_of_other_tables_is_thrown_away(state: StateDirectory, version: int) -> None:
    cache = TreeCache(state)
    fill(cache, page(b"/a", b"x"))
    cache.close()
    with sqlite3.connect(state.path / "cache.sqlite") as db:
        assert db.execute("PRAGMA user_version").fetchone() == (TABLES_VERSION,)
        db.execute(f"PRAGMA user_version = {version}")
    db.close()
    later = TreeCache(state)
    assert (later.header(), data(later, b"/a")) == (None, [])
    fill(later, page(b"/a", b"y"))
    later.close()
    again = TreeCache(state)
    assert (again.header(), data(again, b"/a")) == (header(), [b"page of /ay"])
    again.close()


def test_ids_of_blocks_come_back_whole_however_long(cache: TreeCache) -> None:
    long = b"".join(ids(5000))
    fill(cache, page(b"/a", b"x", extra=long))
    (found,) = cache.pages(b"/a")
    assert found.has_extra
    assert cache.block_ids(found.row) == [(b"x", long)]
    cache.begin()
    cache.drop(found.row)
    cache.finish(header("two"), [])
    cache.apply()
    assert cache.block_ids(found.row) == []


def test_bundles_less_than_half_in_use_are_named(cache: TreeCache) -> None:
    half, less, gone, unknown = ids(4)
    cache.begin()
    cache.use({half: 100, less: 100, gone: 100}, {half: 100, less: 100, gone: 100})
    cache.finish(header(), [])
    cache.apply()
    assert cache.half_empty() == frozenset()
    cache.begin()
    cache.use({}, {half: -50, less: -51, gone: -100, unknown: 5})
    cache.finish(header("two"), [])
    cache.apply()
    assert cache.half_empty() == {less}


def test_promoted_overlay_is_the_parent_of_the_next_round_only(
    cache: TreeCache, state: StateDirectory
) -> None:
    fill(cache, page(b"/a", b"x"))
    cache.begin()
    cache.put(page(b"/b", b"x"))
    cache.finish(header("never committed"), ids(1))
    cache.promote()
    assert data(cache, b"/b") == [b"page of /bx"]
    cache.close()
    later = TreeCache(state)
    assert later.header() is None
    later.close()


def test_cache_file_that_is_none_is_thrown_away(state: StateDirectory) -> None:
    (state.path / "cache.sqlite").write_bytes(b"this is no database" * 1000)
    found = TreeCache(state)
    assert found.header() is None
    fill(found, page(b"/a", b"x"))
    assert found.header() == header()
    found.close()


def test_state_that_holds_no_database_has_no_cache(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (state.path / "cache.sqlite").mkdir()
    with pytest.raises(KnownTreeLost):
        TreeCache(state)


def test_write_that_fails_leaves_the_old_cache(cache: TreeCache) -> None:
    fill(cache, page(b"/a", b"x"))
    cache.begin()
    cache._db.execute("PRAGMA over.max_page_count = 1")
    for number in range(2000):
        cache.put(page(b"/b", b"%05d" % number))
    assert not cache.is_writable
    cache.finish(header("two"), ids(1))
    cache.apply()
    assert (cache.header(), data(cache, b"/b")) == (header(), [])


def test_cache_torn_while_it_is_read_is_lost_not_wrong(state: StateDirectory) -> None:
    cache = TreeCache(state)
    fill(cache, *(page(b"/a", b"%05d" % number) for number in range(3000)))
    cache.close()
    path = state.path / "cache.sqlite"
    content = bytearray(path.read_bytes())
    for start in range(20 * 4096, len(content), 4096):
        content[start : start + 100] = b"\xff" * 100
    path.write_bytes(content)
    torn = TreeCache(state)
    with pytest.raises(KnownTreeLost):
        list(torn.pages(b"/a"))
    torn.clear()
    assert (torn.header(), data(torn, b"/a")) == (None, [])
    torn.close()
