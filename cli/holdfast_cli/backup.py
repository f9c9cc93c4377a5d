"""`holdfast backup`."""

from __future__ import annotations

import os

import click

from holdfast_cli.command import Session, command
from holdfast_cli.waiting import detached, wait_all
from holdfast_contract.protocol.http import JobCreateBackup, JobsCreated
from holdfast_contract.settings.kinds import parse_size


def register(group: click.Group) -> None:
    """Add the commands of this module."""

    @command(
        group,
        "backup",
        example="holdfast backup shop/web-0 --path /data --exclude '*.tmp' --tag before-upgrade",
    )
    @click.argument("clients", nargs=-1, required=True, metavar="CLIENT...")
    @click.option("--path", "paths", multiple=True, help="what to back up (default: all roots)")
    @click.option("--exclude", "excludes", multiple=True, help="gitignore pattern to leave out")
    @click.option("--tag", "tags", multiple=True, help="word to find the snapshot by")
    @click.option("--limit-upload", metavar="RATE", help="bytes per second, such as 5M")
    @click.option("--dry-run", is_flag=True, help="only tell what would be read and sent")
    @click.option("--detach", is_flag=True, help="print the job's id and do not wait")
    def backup(
        session: Session,
        *,
        clients: tuple[str, ...],
        paths: tuple[str, ...],
        excludes: tuple[str, ...],
        tags: tuple[str, ...],
        limit_upload: str | None,
        dry_run: bool,
        detach: bool,
    ) -> int:
        """Back up one or more clients now.

        Waits until it is done: exit 0 when complete, 3 when files were skipped and listed.
        A backup of a busy client queues.
        """
        utf8, raw = split_paths(paths)
        request = JobCreateBackup(
            clients=list(clients),
            paths=utf8,
            paths_b64=raw,
            excludes=list(excludes),
            tags=list(tags),
            limit_upload=rate(limit_upload),
            dry_run=dry_run,
        )
        rows = session.api.send("POST", "/v1/jobs", JobsCreated, request).jobs
        return detached(session, rows) if detach else wait_all(session, rows)


def split_paths(paths: tuple[str, ...]) -> tuple[list[str], list[bytes]]:
    """Return paths that are UTF-8 as text, the others as bytes."""
    utf8, raw = [], []
    for path in paths:
        try:
            path.encode()
            utf8.append(path)
        except UnicodeEncodeError:
            raw.append(os.fsencode(path))
    return utf8, raw


def rate(text: str | None) -> int:
    """Return bytes per second; 0 for none."""
    return parse_size(text) if text else 0
