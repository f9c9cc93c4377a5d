"""`holdfast browse`, `ls`, `find`, `diff`, `dump`: look before you restore.

With a key file the data is opened here; otherwise a connected agent of the domain answers, and its
pod decides what may be shown.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any, BinaryIO

import click

from holdfast_cli.answers import asked_bytes, asked_names, asked_rows, parsed
from holdfast_cli.api import check_client_known, path_argument
from holdfast_cli.command import Session, command
from holdfast_cli.output import moment, print_json_rows, say_lines, shown_name, shown_path, size
from holdfast_cli.references import Part, resolve, split_reference
from holdfast_contract.errors import Conflict, NotAtHand, UsageError
from holdfast_contract.limits import PATHS_MAX
from holdfast_contract.protocol.http import QueryCreate, SnapshotRow

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
    _add_lists(group)
    _add_searches(group)
    _add_dump(group)


def _add_lists(group: click.Group) -> None:
    @command(group, "browse", example="holdfast browse shop/web-0 /data")
    @click.argument("client")
    @click.argument("path", default="")
    def browse(session: Session, client: str, path: str) -> int:
        """List a directory of the live pod, within its roots."""
        query = QueryCreate(kind="browse", client=client, **path_argument(path))
        return _print_entries(session, asked_rows(session.api, query), long=True)

    @command(group, "ls", example="holdfast ls shop/web-0@latest:/data -l")
    @click.argument("reference", metavar="REF[:PATH]")
    @click.option("-l", "--long", is_flag=True, help="mode, owner, size and time too")
    @click.option("-R", "--recursive", is_flag=True, help="everything below, too")
    def ls(session: Session, reference: str, long: bool, recursive: bool) -> int:
        """List what a snapshot holds."""
        part = resolve(session.api, reference)
        text = session.key_text()
        if text is not None and recursive and not (long or session.as_json):
            from holdfast_cli.opening import names_here

            say_lines(names_here(session.api, text, part.item()))
            return 0
        if text is None and not (long or session.as_json):
            query = QueryCreate(kind="ls", items=[part.request()], recursive=recursive)
            names = asked_names(session.api, query)
            say_lines(shown_name(name, encoded) for name, encoded in names)
            return 0
        rows = _rows(session, "ls", [part], recursive=recursive)
        return _print_entries(session, rows, long=long)


def _add_searches(group: click.Group) -> None:
    @command(group, "find", example="holdfast find '*.conf' --client shop/web-0")
    @click.argument("pattern")
    @click.option("--client", "clients", multiple=True, help="only snapshots of this client")
    def find(session: Session, pattern: str, clients: tuple[str, ...]) -> int:
        """Find files by name in all snapshots.

        The pattern is for the name, or, with a slash in it, for the whole path.
        """
        rows = _found(session, pattern, clients)
        if session.as_json:
            print_json_rows(rows)
            return 0
        say_lines(f"{row['snapshot'][:12]}  {row['client']}  {shown_path(row)}" for row in rows)
        return 0

    @command(group, "diff", example="holdfast diff 3fa1c2 9be04d")
    @click.argument("one", metavar="REF")
    @click.argument("two", metavar="REF")
    def diff(session: Session, one: str, two: str) -> int:
        """Tell what differs between two snapshots.

        Marks: + added, - removed, M content, m metadata only, T another type.
        """
        parts = [resolve(session.api, one), resolve(session.api, two)]
        rows = _rows(session, "diff", parts)
        if session.as_json:
            print_json_rows(rows)
            return 0
        say_lines(f"{_MARKS.get(row['change'], '?')}  {shown_path(row)}" for row in rows)
        return 0


def _add_dump(group: click.Group) -> None:
    @command(group, "dump", example="holdfast dump 3fa1c2:/data/file --out file", prints_json=False)
    @click.argument("reference", metavar="REF:PATH")
    @click.option("--out", type=click.Path(path_type=Path), help="file to write; must not exist")
    def dump(session: Session, reference: str, out: Path | None) -> int:
        """Write one file's content to standard output.

        Needs the key file, or a pod that shows content (HOLDFAST_BROWSE=content).
        """
        if out is not None and out.exists():
            raise Conflict(f"{out} exists already", hint="name another file")
        if split_reference(reference)[1] == b"/":
            raise UsageError("say which file: REF:/path")
        pieces = _dumped(session, resolve(session.api, reference))
        if out is None:
            _copy(pieces, sys.stdout.buffer)
        else:
            _write_new(pieces, out)
        return 0


def _copy(pieces: Iterable[bytes], out: BinaryIO) -> None:
    for piece in pieces:
        out.write(piece)
    out.flush()


def _write_new(pieces: Iterator[bytes], out: Path) -> None:
    """Write a file that does not exist; nothing of it stays when the content does not come whole.

    Raises:
        Conflict: it exists.
        UsageError: it cannot be written.
    """
    first = list(islice(pieces, 1))  # what is refused is refused before a file is made
    try:
        with out.open("xb") as file:
            try:
                _copy(first, file)
                _copy(pieces, file)
            except BaseException:
                out.unlink(missing_ok=True)
                raise
    except FileExistsError as exc:
        raise Conflict(f"{out} exists already", hint="name another file") from exc
    except OSError as exc:
        raise UsageError(f"cannot write {out}: {exc.strerror}") from exc


# --- where answers come from
def _rows(
    session: Session, kind: str, parts: list[Part], *, recursive: bool = False, pattern: str = ""
) -> Iterator[dict[str, Any]]:
    text = session.key_text()
    if text is None:
        items = [part.request() for part in parts]
        query = QueryCreate(kind=kind, items=items, recursive=recursive, pattern=pattern)
        return asked_rows(session.api, query)
    from holdfast_cli.opening import answer_here  # ciphers, where they are needed

    return parsed(
        answer_here(
            session.api,
            text,
            kind,
            [part.item() for part in parts],
            recursive=recursive,
            pattern=pattern,
        )
    )


def _dumped(session: Session, part: Part) -> Iterator[bytes]:
    text = session.key_text()
    if text is None:
        return asked_bytes(session.api, QueryCreate(kind="dump", items=[part.request()]))
    from holdfast_cli.opening import answer_here

    return answer_here(session.api, text, "dump", [part.item()])


def _found(session: Session, pattern: str, clients: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield what is found in all snapshots that can be opened, one client's after the other's.

    Raises:
        NotFound: no such client.
        NotAtHand: not one snapshot can be opened.
    """
    for client in clients:
        check_client_known(session.api, client)
    rows = [row for client in clients or (None,) for row in _snapshots(session, client)]
    closed: NotAtHand | None = None
    has_opened = False
    for parts in _batches(_openable(session, rows)):
        try:
            yield from _rows(session, "find", parts, pattern=pattern)
            has_opened = True
        except NotAtHand as error:
            if clients:
                raise
            session.note(f"{parts[0].snapshot.domain} is left out: {error.message}")
            closed = error
    if closed is not None and not has_opened:
        raise closed


def _batches(rows: Iterable[SnapshotRow]) -> Iterator[list[Part]]:
    """Yield parts that one answer can be about: one client's, and not too many."""
    for _, group in groupby(rows, key=lambda row: row.client):
        while parts := [Part(row) for row in islice(group, PATHS_MAX)]:
            yield parts


def _openable(session: Session, rows: list[SnapshotRow]) -> list[SnapshotRow]:
    """Return the rows by client; with a key at hand, only those of its domain."""
    text = session.key_text()
    if text is not None:
        from holdfast_cli.domain_keys import OpenedKey
        from holdfast_cli.domain_records import domain_of

        own = domain_of(session.api, OpenedKey.of_file(text).domain).name
        rows = [row for row in rows if row.domain == own]
    return sorted(rows, key=lambda row: row.client)


def _snapshots(session: Session, client: str | None) -> Iterator[SnapshotRow]:
    return session.api.rows("/v1/snapshots", SnapshotRow, client=client)


# --- printing
def _print_entries(session: Session, rows: Iterator[dict[str, Any]], *, long: bool) -> int:
    if session.as_json:
        print_json_rows(rows)
        return 0
    say_lines(map(_long if long else shown_path, rows))
    return 0


def _long(row: dict[str, Any]) -> str:
    target = row.get("target")
    arrow = f" -> {shown_name(target, row.get('target_b64'))}" if target else ""
    return (
        f"{_mode(row)} {row['uid']:>6} {row['gid']:>6} {size(row['size']):>10} "
        f"{moment(row['mtime'])}  {shown_path(row)}{arrow}"
    )


def _mode(row: dict[str, Any]) -> str:
    import stat

    letter = _LETTERS.get(row["type"], "-")
    return letter + stat.filemode(int(row["mode"]))[1:]
