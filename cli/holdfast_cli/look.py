"""`holdfast browse`, `ls`, `find`, `diff`, `dump`: look before you restore.

With a key file the data is opened here; otherwise a connected agent of the domain answers, and its
pod decides what may be shown.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

import click
import msgspec

from holdfast_cli.api import path_argument
from holdfast_cli.command import Session, command
from holdfast_cli.opening import Interrupt, read_keys, source_of
from holdfast_cli.output import print_json, say, shown_path, size
from holdfast_cli.references import Part, resolve
from holdfast_contract.errors import Conflict, InvalidInput, error_from
from holdfast_contract.ids import new_ulid
from holdfast_contract.protocol.control import Browse, Query, RestoreItem
from holdfast_contract.protocol.http import QueryCreate, SnapshotRow

_LINE_BYTES_MAX = 1 << 20
_COPY_BYTES = 1 << 18
_LETTERS = {
    "directory": "d",
    "symlink": "l",
    "fifo": "p",
    "socket": "s",
    "char-device": "c",
    "block-device": "b",
}
_MARKS = {"added": "+", "removed": "-", "modified": "M", "metadata": "m", "type": "T"}


def register(group: click.Group) -> None:
    """Add the commands of this module."""

    @command(group, "browse", example="holdfast browse shop/web-0 /data")
    @click.argument("client")
    @click.argument("path", default="")
    def browse(session: Session, client: str, path: str) -> int:
        """List a directory of the live pod, within its roots."""
        query = QueryCreate(kind="browse", client=client, **path_argument(path))
        return _print_entries(session, _asked_rows(session, query), long=True)

    @command(group, "ls", example="holdfast ls shop/web-0@latest:/data -l")
    @click.argument("reference", metavar="REF[:PATH]")
    @click.option("-l", "--long", is_flag=True, help="mode, owner, size and time too")
    @click.option("-R", "--recursive", is_flag=True, help="everything below, too")
    def ls(session: Session, reference: str, long: bool, recursive: bool) -> int:
        """List what a snapshot holds."""
        part = resolve(session.api, reference)
        rows = _rows(session, "ls", [part], recursive=recursive)
        return _print_entries(session, rows, long=long)

    @command(group, "find", example="holdfast find '*.conf' --client shop/web-0")
    @click.argument("pattern")
    @click.option("--client", "clients", multiple=True, help="only snapshots of this client")
    def find(session: Session, pattern: str, clients: tuple[str, ...]) -> int:
        """Find files in all snapshots by a pattern for the name, or, with a slash, the path."""
        rows = _found(session, pattern, clients)
        if session.as_json:
            print_json(list(rows))
            return 0
        for row in rows:
            say(f"{row['snapshot'][:12]}  {row['client']}  {shown_path(row)}")
        return 0

    @command(group, "diff", example="holdfast diff 3fa1c2 9be04d")
    @click.argument("one", metavar="REF")
    @click.argument("two", metavar="REF")
    def diff(session: Session, one: str, two: str) -> int:
        """Tell what differs between two snapshots."""
        parts = [resolve(session.api, one), resolve(session.api, two)]
        rows = _rows(session, "diff", parts)
        if session.as_json:
            print_json(list(rows))
            return 0
        for row in rows:
            say(f"{_MARKS.get(row['change'], '?')}  {shown_path(row)}")
        return 0

    @command(group, "dump", example="holdfast dump 3fa1c2:/data/file --out file", prints_json=False)
    @click.argument("reference", metavar="REF:PATH")
    @click.option("--out", type=click.Path(path_type=Path), help="file to write; must not exist")
    def dump(session: Session, reference: str, out: Path | None) -> int:
        """Write one file's content to standard output or a file."""
        part = resolve(session.api, reference)
        pieces = _dumped(session, part)
        if out is None:
            _copy(pieces, sys.stdout.buffer)
            return 0
        first = next(pieces, b"")
        try:
            with out.open("xb") as file:
                file.write(first)
                _copy(pieces, file)
        except FileExistsError as exc:
            raise Conflict(f"{out} exists already") from exc
        return 0


def _copy(pieces: Iterator[bytes], out: BinaryIO) -> None:
    for piece in pieces:
        out.write(piece)
    out.flush()


# --- where answers come from
def _rows(
    session: Session, kind: str, parts: list[Part], *, recursive: bool = False, pattern: str = ""
) -> Iterator[dict[str, Any]]:
    if session.key_file is not None:
        lines = _opened_here(session, kind, parts, recursive=recursive, pattern=pattern)
        return _parsed(lines)
    query = QueryCreate(
        kind=kind, items=[part.request() for part in parts], recursive=recursive, pattern=pattern
    )
    return _asked_rows(session, query)


def _opened_here(
    session: Session, kind: str, parts: list[Part], *, recursive: bool = False, pattern: str = ""
) -> Iterator[bytes]:
    from holdfast_agent.jobs.queries import answer_query  # only where data is opened here

    text = session.key_text()
    assert text is not None
    cancel = Interrupt()
    items = [
        RestoreItem(bytes.fromhex(part.snapshot.id), part.snapshot.client, part.path)
        for part in parts
    ]
    query = Query(query=new_ulid(), kind=kind, items=items, recursive=recursive, pattern=pattern)
    return answer_query(
        query,
        keys=read_keys(text),
        source=source_of(session.api, [part.snapshot.id for part in parts], cancel),
        roots=None,
        browse=Browse.CONTENT,
        cancel=cancel,
    )


def _asked_rows(session: Session, query: QueryCreate) -> Iterator[dict[str, Any]]:
    return _parsed(_asked_lines(session, query))


def _asked_lines(session: Session, query: QueryCreate) -> Iterator[bytes]:
    with session.api.ask(query) as stream:
        while line := stream.readline(_LINE_BYTES_MAX):
            yield line


def _parsed(lines: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """Yield rows up to the end mark.

    Raises:
        HoldfastError: the answer broke in the middle, or ends without its mark.
    """
    for line in lines:
        row = msgspec.json.decode(line)
        if row.get("type") == "end" and len(row) == 1:
            return
        if row.get("type") == "error" and "code" in row:
            raise error_from(row["code"], row.get("message", ""), hint=row.get("hint", ""))
        yield row
    raise InvalidInput("the answer is not complete")


def _dumped(session: Session, part: Part) -> Iterator[bytes]:
    if session.key_file is not None:
        yield from _opened_here(session, "dump", [part])
        return
    with session.api.ask(QueryCreate(kind="dump", items=[part.request()])) as stream:
        while piece := stream.read(_COPY_BYTES):
            yield piece


def _found(session: Session, pattern: str, clients: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield what is found, one client's snapshots after the other's."""
    names = clients or sorted({row.client for row in _snapshots(session, None)})
    for client in names:
        parts = [Part(row, b"/") for row in _snapshots(session, client)]
        if parts:
            with closing(_rows(session, "find", parts, pattern=pattern)) as rows:  # type: ignore[type-var]
                yield from rows


def _snapshots(session: Session, client: str | None) -> Iterator[SnapshotRow]:
    return session.api.rows("/v1/snapshots", SnapshotRow, client=client)


# --- printing
def _print_entries(session: Session, rows: Iterator[dict[str, Any]], *, long: bool) -> int:
    if session.as_json:
        print_json(list(rows))
        return 0
    for row in rows:
        say(_long(row) if long else shown_path(row))
    return 0


def _long(row: dict[str, Any]) -> str:
    mode = _mode(row)
    target = f" -> {shown_path({'path': row['target']})}" if row.get("target") else ""
    return (
        f"{mode} {row['uid']:>6} {row['gid']:>6} {size(row['size']):>10} "
        f"{row['mtime'][:19].replace('T', ' ')} {shown_path(row)}{target}"
    )


def _mode(row: dict[str, Any]) -> str:
    import stat

    letter = _LETTERS.get(row["type"], "-")
    return letter + stat.filemode(int(row["mode"]))[1:]
