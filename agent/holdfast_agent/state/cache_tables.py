"""Tables of the tree cache, and the merging of its content index."""

from __future__ import annotations

import sqlite3
from itertools import islice
from typing import Final

from holdfast_agent.sorting import OpenSpool, RecordSorter

HEADER_KEY: Final = ("header",)
CONTENT_RECORD_BYTES: Final = 16
_MERGED_TIMES: Final = 4
"""A run is merged with newer ones until it is more than so many times as long as they are."""
PAGE_COLUMNS: Final = "id, first, last, chunk, place, data, flags, digest, stale"
TABLES_VERSION: Final = 1
"""A cache of other tables is thrown away and made anew from the parent."""

TABLES: Final = """
CREATE TABLE IF NOT EXISTS main.meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS main.pages (
    id INTEGER PRIMARY KEY, dir BLOB NOT NULL, first BLOB NOT NULL, last BLOB NOT NULL,
    chunk BLOB NOT NULL, place INTEGER NOT NULL, data BLOB NOT NULL, flags INTEGER NOT NULL,
    digest BLOB NOT NULL, stale INTEGER NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS main.pages_by_name ON pages (dir, first);
CREATE TABLE IF NOT EXISTS main.extra (
    page INTEGER NOT NULL, name BLOB NOT NULL, part INTEGER NOT NULL, ids BLOB NOT NULL,
    PRIMARY KEY (page, name, part)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS main.chunks (
    id BLOB PRIMARY KEY, total INTEGER NOT NULL, used INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS main.refs (number INTEGER PRIMARY KEY, ids BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS main.contents (
    run INTEGER NOT NULL, first BLOB NOT NULL, records BLOB NOT NULL,
    PRIMARY KEY (run, first)) WITHOUT ROWID;
"""

OVERLAY_TABLES: Final = """
CREATE TABLE over.meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE over.pages (
    id INTEGER PRIMARY KEY, dir BLOB NOT NULL, first BLOB NOT NULL, last BLOB NOT NULL,
    chunk BLOB NOT NULL, place INTEGER NOT NULL, data BLOB NOT NULL, flags INTEGER NOT NULL,
    digest BLOB NOT NULL, stale INTEGER NOT NULL);
CREATE TABLE over.extra (page INTEGER, name BLOB, part INTEGER, ids BLOB);
CREATE TABLE over.dropped (id INTEGER PRIMARY KEY);
CREATE TABLE over.chunks (
    id BLOB PRIMARY KEY, total INTEGER NOT NULL, used INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE over.refs (number INTEGER PRIMARY KEY, ids BLOB NOT NULL);
CREATE TABLE over.contents (first BLOB, records BLOB);
"""


def merge_contents(db: sqlite3.Connection, segment: int, open_spool: OpenSpool) -> None:
    """Make one run of the newest runs of the content index, if they are about as long.

    Each backup that changes something adds a run, and a look-up asks every run: so there are as
    many as the logarithm of their length. What is merged with the oldest of all loses the records
    of pages that are gone.
    """
    query = "SELECT run, COUNT(*) FROM main.contents GROUP BY run ORDER BY run DESC"
    (newest, total), *others = db.execute(query).fetchall() or [(0, 0)]
    first = newest
    for run, length in others:
        if length > _MERGED_TIMES * total:
            break
        first, total = run, total + length
    if first == newest:
        return
    is_whole = first == others[-1][0]
    width = CONTENT_RECORD_BYTES
    standing = {row for (row,) in db.execute("SELECT id FROM main.pages")} if is_whole else None
    sorter = RecordSorter(width, open_spool)
    for (records,) in db.execute("SELECT records FROM main.contents WHERE run >= ?", (first,)):
        split = (records[at : at + width] for at in range(0, len(records), width))
        sorter.add(
            record
            for record in split
            if standing is None or int.from_bytes(record[12:], "big") in standing
        )
    db.execute("DELETE FROM main.contents WHERE run >= ?", (first,))
    merged = sorter.sorted()
    while batch := list(islice(merged, segment)):
        db.execute("INSERT INTO main.contents VALUES (?,?,?)", (first, batch[0], b"".join(batch)))
    sorter.close()
