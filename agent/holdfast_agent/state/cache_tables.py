"""Tables of the tree cache, and the merging of its content index."""

from __future__ import annotations

import sqlite3
from itertools import islice
from typing import Final

from holdfast_agent.sorting import OpenSpool, RecordSorter

HEADER_KEY: Final = ("header",)
CONTENT_RECORD_BYTES: Final = 16
PAGE_COLUMNS: Final = "id, first, last, chunk, place, data, flags"

TABLES: Final = """
CREATE TABLE IF NOT EXISTS main.meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS main.pages (
    id INTEGER PRIMARY KEY, dir BLOB NOT NULL, first BLOB NOT NULL, last BLOB NOT NULL,
    chunk BLOB NOT NULL, place INTEGER NOT NULL, data BLOB NOT NULL, flags INTEGER NOT NULL);
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
    chunk BLOB NOT NULL, place INTEGER NOT NULL, data BLOB NOT NULL, flags INTEGER NOT NULL);
CREATE TABLE over.extra (page INTEGER, name BLOB, part INTEGER, ids BLOB);
CREATE TABLE over.dropped (id INTEGER PRIMARY KEY);
CREATE TABLE over.chunks (
    id BLOB PRIMARY KEY, total INTEGER NOT NULL, used INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE over.refs (number INTEGER PRIMARY KEY, ids BLOB NOT NULL);
CREATE TABLE over.contents (first BLOB, records BLOB);
"""


def merge_contents(
    db: sqlite3.Connection, runs_max: int, segment: int, open_spool: OpenSpool
) -> None:
    """Make one run of the content index of more than `runs_max`, without records of gone pages.

    Each backup that changes something adds a run, and a look-up asks every run.
    """
    (runs,) = db.execute("SELECT COUNT(DISTINCT run) FROM main.contents").fetchone()
    if runs <= runs_max:
        return
    width = CONTENT_RECORD_BYTES
    standing = {row for (row,) in db.execute("SELECT id FROM main.pages")}
    sorter = RecordSorter(width, open_spool)
    for (records,) in db.execute("SELECT records FROM main.contents"):
        split = (records[at : at + width] for at in range(0, len(records), width))
        sorter.add(record for record in split if int.from_bytes(record[12:], "big") in standing)
    db.execute("DELETE FROM main.contents")
    merged = sorter.sorted()
    while batch := list(islice(merged, segment)):
        db.execute("INSERT INTO main.contents VALUES (1,?,?)", (batch[0], b"".join(batch)))
    sorter.close()
