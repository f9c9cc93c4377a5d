"""`holdfast status`, `doctor`, `version`, `completion`, `config show`."""

from __future__ import annotations

import click

from holdfast_cli.command import Session, all_connection_names, command, noun
from holdfast_cli.output import facts, moment, print_json, say, size
from holdfast_cli.settings import CONTEXT, VERSION, program, read_context
from holdfast_contract.protocol.http import DoctorRow, StatusRow

_SHELLS = ("bash", "zsh", "fish")


def register(group: click.Group) -> None:
    """Add the commands of this module."""

    @command(group, "status", example="holdfast status")
    def status(session: Session) -> int:
        """Show how the server is."""
        row = session.api.get("/v1/status", StatusRow)
        if session.as_json:
            print_json(row)
        else:
            facts(_facts(row))
        return 0

    @command(group, "doctor", example="holdfast doctor")
    def doctor(session: Session) -> int:
        """Check the server, its store and its catalog.

        Exits 1 when a check fails.
        """
        rows = list(session.api.rows("/v1/doctor", DoctorRow))
        if session.as_json:
            print_json(rows)
        else:
            for row in rows:
                say(f"{row.state:4}  {row.check}: {row.message}")
                if row.hint and row.state != "ok":
                    say(f"      {row.hint}")
        return 1 if any(row.state == "fail" for row in rows) else 0

    @command(group, "version", example="holdfast version")
    def version(session: Session) -> int:
        """Print the version."""
        if session.as_json:
            print_json({"version": VERSION})
        else:
            say(f"holdfast {VERSION}")
        return 0

    @command(group, "completion", example="source <(holdfast completion bash)", prints_json=False)
    @click.argument("shell", type=click.Choice(_SHELLS))
    def completion(session: Session, shell: str) -> int:
        """Print the shell completion script."""
        from click.shell_completion import get_completion_class

        maker = get_completion_class(shell)
        assert maker is not None
        say(maker(group, {}, "holdfast", "_HOLDFAST_COMPLETE").source())
        return 0

    config = noun(
        group, "config", text="The command's own settings.", example="holdfast config show"
    )

    @command(config, "show", example="holdfast config show", shown=all_connection_names())
    def show(session: Session) -> int:
        """Print every setting and where it came from."""
        from holdfast_contract.settings.show import show_json, show_text

        own, settings = program(session.environ), session.loaded.settings
        saved = read_context(session.environ, settings[CONTEXT])
        if session.as_json:
            print_json({**show_json(own, settings), "saved_context": saved or None})
        else:
            say(show_text(own, settings).rstrip())
            if saved:
                say("\nsaved context, for what is not set above:")
                facts(list(saved.items()))
        return 0


def _facts(row: StatusRow) -> list[tuple[str, str]]:
    return [
        ("version", row.version),
        ("started", moment(row.started)),
        ("clients", f"{row.clients:,}, connected {row.clients_connected:,}"),
        ("domains", f"{row.domains:,}"),
        ("snapshots", f"{row.snapshots:,}"),
        ("jobs", f"running {row.jobs_running:,}, queued {row.jobs_queued:,}"),
        *_stored(row),
    ]


def _stored(row: StatusRow) -> list[tuple[str, str]]:
    """Return what concerns the whole store; nothing where the token is limited to domains."""
    if row.stored_bytes is None:
        return []
    free, reserve = size(row.store_free_bytes or 0), size(row.store_reserve_bytes or 0)
    return [
        ("stored", f"{size(row.stored_bytes)} in {row.packs:,} packs, {row.chunks:,} chunks"),
        ("damaged", f"{row.damaged_chunks:,} chunks"),
        ("free", f"{free}, of which {reserve} are a reserve"),
    ]
