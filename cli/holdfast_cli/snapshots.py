"""`holdfast snapshots`, `snapshot show`, `verify`."""

from __future__ import annotations

import click

from holdfast_cli.api import check_client_known
from holdfast_cli.command import Session, command, noun
from holdfast_cli.output import facts, moment, print_json, say, short, size, table
from holdfast_cli.references import resolve
from holdfast_cli.waiting import detached, wait_all
from holdfast_contract.protocol.http import JobCreateVerify, JobsCreated, SnapshotRow


def register(group: click.Group) -> None:
    """Add the commands of this module."""

    @command(group, "snapshots", example="holdfast snapshots shop/web-0 --latest 3")
    @click.argument("client", required=False)
    @click.option("--since", help="received at or after this time (RFC 3339, or a date)")
    @click.option("--until", help="received at or before this time")
    @click.option("--tag", help="only those with this tag")
    @click.option("--latest", type=click.IntRange(1), help="only the newest N")
    def snapshots(
        session: Session,
        client: str | None,
        since: str | None,
        until: str | None,
        tag: str | None,
        latest: int | None,
    ) -> int:
        """List snapshots, oldest first."""
        rows = list(
            session.api.rows(
                "/v1/snapshots",
                SnapshotRow,
                client=client,
                since=since,
                until=until,
                tag=tag,
                latest=latest,
            )
        )
        if not rows:
            check_client_known(session.api, client)
        if session.as_json:
            print_json(rows)
        elif rows:
            _print_rows(rows)
        else:
            say("no snapshots")
        return 0

    @command(group, "verify", example="holdfast verify shop/web-0@latest")
    @click.argument("reference", metavar="REF")
    @click.option("--to", help="client whose agent does it (default: the snapshot's own)")
    @click.option("--detach", is_flag=True, help="print the job's id and do not wait")
    def verify(session: Session, reference: str, to: str | None, detach: bool) -> int:
        """Prove a snapshot: an agent opens every chunk.

        Compares all ids and the content of every file with what the snapshot says.
        """
        part = resolve(session.api, reference)
        request = JobCreateVerify(snapshot=part.snapshot.id, to=to)
        rows = session.api.send("POST", "/v1/jobs", JobsCreated, request).jobs
        return detached(session, rows) if detach else wait_all(session, rows)

    snapshot = noun(
        group, "snapshot", text="One snapshot.", example="holdfast snapshot show 3fa1c2"
    )

    @command(snapshot, "show", example="holdfast snapshot show 3fa1c2")
    @click.argument("reference", metavar="REF")
    def show(session: Session, reference: str) -> int:
        """Show one snapshot."""
        row = resolve(session.api, reference).snapshot
        if session.as_json:
            print_json(row)
        else:
            facts(_facts(row))
        return 0


def _print_rows(rows: list[SnapshotRow]) -> None:
    head = ("ID", "CLIENT", "TIME", "STATE", "FILES", "SIZE", "NEW", "TAGS", "PATHS")
    table(
        head,
        [
            (short(r.id), r.client, moment(r.time), r.state, f"{r.files:,}", size(r.bytes),
             size(r.bytes_new), " ".join(r.tags) or "-", " ".join(r.paths))
            for r in rows
        ],
        right=(4, 5, 6),
    )  # fmt: skip


def _facts(row: SnapshotRow) -> list[tuple[str, str]]:
    return [
        ("id", row.id),
        ("client", row.client),
        ("number", str(row.seq)),
        ("received", moment(row.time)),
        ("started", moment(row.started)),
        ("state", row.state),
        ("consistency", row.consistency),
        ("files", f"{row.files:,} in {row.dirs:,} directories"),
        ("size", f"{size(row.bytes)}, new {size(row.bytes_new)}"),
        ("chunks", f"{row.chunks:,}"),
        ("paths", " ".join(row.paths)),
        ("tags", " ".join(row.tags) or "-"),
        ("parent", row.parent or "-"),
        ("previous", row.prev or "-"),
    ]
