"""`holdfast login`."""

from __future__ import annotations

from pathlib import Path

import click

from holdfast_cli.api import Api
from holdfast_cli.command import Session, command
from holdfast_cli.output import print_json, say
from holdfast_cli.settings import save_context
from holdfast_contract.protocol.http import StatusRow


def register(group: click.Group) -> None:
    """Add the commands of this module."""

    @command(
        group,
        "login",
        example="holdfast login --server https://backup:9440 --ca ca.pem --token-file my.token",
        shown=("server", "ca", "token_file"),
    )
    @click.option("--name", default="default", show_default=True, help="name of the context")
    def login(session: Session, name: str) -> int:
        """Remember a server and a token for later commands.

        The paths of the files are saved, not the secrets in them.
        """
        place = session.place
        status = Api(place).get("/v1/status", StatusRow)
        path: Path = save_context(session.environ, name, place)
        if session.as_json:
            print_json({"context": name, "server": place.server, "file": str(path)})
        else:
            say(f"context {name!r}: {place.server}, version {status.version}")
        return 0
