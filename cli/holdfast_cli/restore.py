"""`holdfast restore`: through an agent, or here with the key alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from holdfast_cli.api import read_small_file
from holdfast_cli.backup import rate
from holdfast_cli.command import Session, command
from holdfast_cli.ending import exit_code, finish
from holdfast_cli.output import warn
from holdfast_cli.references import Part, resolve
from holdfast_cli.waiting import detached, follow, wait_all
from holdfast_contract.errors import UsageError
from holdfast_contract.protocol.control import Overwrite
from holdfast_contract.protocol.http import JobCreateRestore, JobRow, JobsCreated


def register(group: click.Group) -> None:
    """Add the commands of this module."""

    @command(
        group,
        "restore",
        example=(
            "holdfast restore shop/web-0@latest:/data/file --in-place\n"
            "holdfast restore 3fa1c2 --to shop/web-1 --target /restore --dry-run\n"
            "holdfast restore 3fa1c2 --local ./here --key-file shop.key"
        ),
        shown=("key_file",),
    )
    @click.argument("references", nargs=-1, required=True, metavar="REF[:PATH]...")
    @click.option("--in-place", is_flag=True, help="to the original paths")
    @click.option("--target", help="below this directory of the client")
    @click.option("--local", type=click.Path(path_type=Path), help="below this directory, here")
    @click.option("--to", multiple=True, metavar="CLIENT", help="client (default: its own)")
    @click.option("--include", multiple=True, help="gitignore pattern: only these")
    @click.option("--exclude", multiple=True, help="gitignore pattern: not these")
    @click.option("--strip", is_flag=True, help="drop the path before what is restored")
    @click.option(
        "--overwrite",
        type=click.Choice([mode.value for mode in Overwrite]),
        default=Overwrite.IF_CHANGED.value,
        show_default=True,
        help="what to do with files that exist",
    )
    @click.option("--delete", is_flag=True, help="remove what the snapshot does not have")
    @click.option("--special", is_flag=True, help="setuid bits and devices of another client too")
    @click.option("--dry-run", is_flag=True, help="only tell what would be done")
    @click.option("--verify", is_flag=True, help="read back what was written")
    @click.option("--limit-download", metavar="RATE", help="bytes per second, such as 5M")
    @click.option("--detach", is_flag=True, help="print the job's id and do not wait")
    @click.option("--yes", is_flag=True, help="do not ask before --delete")
    def restore(session: Session, **given: Any) -> int:
        """Restore snapshots or parts of them.

        Paths below --target are the snapshot's absolute ones: /data/a comes back as
        TARGET/data/a, with --strip as TARGET/a.
        """
        _check_places(given)
        parts = [resolve(session.api, text) for text in given["references"]]
        if given["local"] is not None:
            return _here(session, parts, given)
        request = _request(parts, given)
        if _asks(given):
            trial = msgspec.structs.replace(request, dry_run=True)
            tried = follow(session, session.api.send("POST", "/v1/jobs", JobsCreated, trial).jobs)
            if any(exit_code(row) not in (0, 3) for row in tried):
                return finish(session, tried)
            _confirm(tried)
        rows = session.api.send("POST", "/v1/jobs", JobsCreated, request).jobs
        return detached(session, rows) if given["detach"] else wait_all(session, rows)


def _check_places(given: dict[str, Any]) -> None:
    places = [given["in_place"], given["target"] is not None, given["local"] is not None]
    if sum(places) != 1:
        raise UsageError(
            "say where to: --in-place, --target DIR, or --local DIR", hint="see holdfast restore -h"
        )
    if given["target"] is not None and not given["target"].startswith("/"):
        raise UsageError("--target is an absolute path of the client")
    if given["local"] is not None and (given["to"] or given["detach"]):
        raise UsageError("--local restores here: it goes with neither --to nor --detach")


def _request(parts: list[Part], given: dict[str, Any]) -> JobCreateRestore:
    target = os.fsencode(given["target"]) if given["target"] else b""
    fields: dict[str, Any] = {}
    try:
        fields["target"] = target.decode()
    except UnicodeDecodeError:
        fields["target_b64"] = target
    return JobCreateRestore(
        items=[part.request() for part in parts],
        to=list(given["to"]),
        include=list(given["include"]),
        exclude=list(given["exclude"]),
        strip=given["strip"],
        overwrite=Overwrite(given["overwrite"]),
        delete=given["delete"],
        special=given["special"],
        dry_run=given["dry_run"],
        verify=given["verify"],
        limit_download=rate(given["limit_download"]),
        **fields,
    )


def _asks(given: dict[str, Any]) -> bool:
    wants = given["delete"] and not (given["yes"] or given["dry_run"])
    return bool(wants and sys.stdin.isatty())


def _confirm(tried: Sequence[JobRow]) -> None:
    """Show what --delete would remove, and ask.

    Raises:
        Abort: the answer is no.
    """
    for row in tried:
        deleted = (row.result or {}).get("deleted") or 0
        warn(f"{row.client or 'here'}: {deleted:,} entries would be removed")
    click.confirm("go on?", default=False, abort=True, err=True)


def _here(session: Session, parts: list[Part], given: dict[str, Any]) -> int:
    if session.key_file is None:
        raise UsageError("--local needs the domain's key", hint="--key-file FILE")
    from holdfast_cli.local import restore_here  # the engine is only needed here

    text = read_small_file(session.key_file, "the key file")
    if _asks(given):
        trial = restore_here(session, parts, {**given, "dry_run": True}, text)
        if exit_code(trial) not in (0, 3):
            return finish(session, [trial])
        _confirm([trial])
    return finish(session, [restore_here(session, parts, given, text)])
