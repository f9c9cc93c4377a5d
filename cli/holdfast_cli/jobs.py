"""`holdfast jobs`, `job show|wait|cancel|log`."""

from __future__ import annotations

from urllib.parse import quote

import click
import msgspec

from holdfast_cli.api import check_client_known
from holdfast_cli.command import Session, command, noun
from holdfast_cli.ending import exit_code, print_end
from holdfast_cli.forgotten import with_names
from holdfast_cli.output import facts, moment, print_json, say, size, table
from holdfast_cli.waiting import follow, wait_all
from holdfast_contract.protocol.control import JobState
from holdfast_contract.protocol.http import EventRow, JobRow
from holdfast_contract.text import printable


def register(group: click.Group) -> None:
    """Add the commands of this module."""

    @command(group, "jobs", example="holdfast jobs --client shop/web-0 --state Running")
    @click.option("--client", help="only jobs of this client")
    @click.option(
        "--state",
        type=click.Choice([state.value for state in JobState], case_sensitive=False),
        help="only jobs in this state",
    )
    @click.option(
        "--latest",
        type=click.IntRange(1),
        default=50,
        show_default=True,
        metavar="N",
        help="only the newest N",
    )
    def jobs(session: Session, client: str | None, state: str | None, latest: int) -> int:
        """List jobs, newest first."""
        query = {"client": client, "state": state}
        rows = list(session.api.rows("/v1/jobs", JobRow, most=latest, **query))
        if not rows:
            check_client_known(session.api, client)
        if session.as_json:
            print_json([_plain(row) for row in rows])
        elif rows:
            _print_rows(rows)
        else:
            say("no jobs")
        return 0

    job = noun(group, "job", text="One job.", example="holdfast job show 01K8Z3...")
    _add_looks(job)
    _add_cancel(job)


def _add_looks(job: click.Group) -> None:
    @command(job, "show", example="holdfast job show 01K8Z3...", shown=("key_file",))
    @click.argument("job_id", metavar="ID")
    def show(session: Session, job_id: str) -> int:
        """Show one job.

        Names of what was skipped are kept by the server for ten minutes; later they are opened
        with the key file, or by a connected agent.
        """
        row = with_names(session, session.api.get(_path(job_id), JobRow))
        if session.as_json:
            print_json(_plain(row))
        else:
            facts(_facts(row))
            if row.state.is_final:
                print_end(session, row)
        return 0

    @command(job, "wait", example="holdfast job wait 01K8Z3...", shown=("key_file",))
    @click.argument("job_id", metavar="ID")
    def wait(session: Session, job_id: str) -> int:
        """Wait for a job; exit by how it ended."""
        row = session.api.get(_path(job_id), JobRow)
        if not session.as_json:
            return wait_all(session, [row])
        row = with_names(session, follow(session, [row])[0])
        print_json(_plain(row))
        return exit_code(row)

    @command(job, "log", example="holdfast job log 01K8Z3...")
    @click.argument("job_id", metavar="ID")
    def log(session: Session, job_id: str) -> int:
        """Show a job's life: what happened, and when."""
        rows = list(session.api.rows(f"{_path(job_id)}/log", EventRow))
        if session.as_json:
            print_json(rows)
        else:
            for row in rows:
                say(f"{moment(row.time)}  {row.kind}  {printable(row.message)}")
        return 0


def _add_cancel(job: click.Group) -> None:
    @command(job, "cancel", example="holdfast job cancel 01K8Z3...")
    @click.argument("job_id", metavar="ID")
    def cancel(session: Session, job_id: str) -> int:
        """Cancel a job; a finished one stays as it is."""
        row = session.api.send("POST", f"{_path(job_id)}/cancel", JobRow)
        if session.as_json:
            print_json(_plain(row))
        else:
            say(f"{row.id} {row.state.value}" if row.state.is_final else f"{row.id} is cancelled")
        return 0


def _path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _plain(row: JobRow) -> dict[str, object]:
    """Return the row as JSON, without the sealed list that only a key opens."""
    fields = dict(msgspec.to_builtins(row))
    fields.pop("not_exact_sealed", None)
    return fields


def _print_rows(rows: list[JobRow]) -> None:
    table(
        ("ID", "KIND", "CLIENT", "STATE", "CREATED", "FILES", "SIZE", "SENT"),
        [
            (r.id, r.kind, r.client, r.state.value, moment(r.created), f"{r.progress.files:,}",
             size(r.progress.bytes), size(r.progress.bytes_sent))
            for r in rows
        ],
        right=(5, 6, 7),
    )  # fmt: skip


def _facts(row: JobRow) -> list[tuple[str, str]]:
    return [
        ("id", row.id),
        ("kind", row.kind),
        ("client", row.client),
        ("state", row.state.value),
        ("created", moment(row.created)),
        ("started", moment(row.started)),
        ("finished", moment(row.finished)),
        ("files", f"{row.progress.files:,}"),
        ("read", size(row.progress.bytes)),
        ("sent", size(row.progress.bytes_sent)),
    ]
