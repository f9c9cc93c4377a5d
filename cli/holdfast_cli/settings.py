"""Where the command finds its server: flag > environment > file > saved context > default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from holdfast_contract.errors import NotFound, UsageError
from holdfast_contract.settings.files import choose_config_file
from holdfast_contract.settings.kinds import PATH, SERVER_URL, TEXT, optional
from holdfast_contract.settings.table import CONFIG, LOG_FORMAT, LOG_LEVEL, Program, Setting, load

VERSION = "0.1.0"

SERVER = Setting("server", optional(SERVER_URL), None, "URL of the server")
CA = Setting("ca", optional(PATH), None, "file with the server's CA certificate")
TOKEN_FILE = Setting("token_file", optional(PATH), None, "file with an API token")
DATA = Setting("data", optional(PATH), None, "data directory of a server on this host")
KEY_FILE = Setting("key_file", optional(PATH), None, "a domain's key file, to open data locally")
CONTEXT = Setting("context", optional(TEXT), None, "a context saved by `holdfast login`")

CONNECTION = (SERVER, CA, TOKEN_FILE, DATA, KEY_FILE, CONTEXT)


def program(environ: Mapping[str, str]) -> Program:
    """Return what the command can be told, for this user."""
    return Program(
        name="holdfast",
        version=VERSION,
        summary="Back up, browse and restore Kubernetes workloads.",
        example="holdfast backup shop/web-0",
        settings=CONNECTION,
        config_path=str(config_directory(environ) / "config.toml"),
    )


def config_directory(environ: Mapping[str, str]) -> Path:
    """Return the user's directory for the command's files."""
    home = environ.get("XDG_CONFIG_HOME") or f"{environ.get('HOME', '')}/.config"
    return Path(home) / "holdfast"


@dataclass(frozen=True)
class Place:
    """How to reach a server, and the key at hand."""

    server: str
    ca: Path | None
    token_file: Path
    key_file: Path | None


@dataclass(frozen=True)
class Loaded:
    """The settings of one run, with contexts looked up."""

    settings: Settings
    environ: Mapping[str, str]

    def place(self) -> Place:
        """Return the server to talk to.

        A value given more strongly wins (flag > environment > file > the saved current context);
        of two given alike, the one that says it directly. CA and token of a data directory or a
        context go with their server: they are not sent to another one.

        Raises:
            UsageError: nothing says which.
            NotFound: no context of that name.
        """
        found = min(self._ways(), key=lambda way: way[0], default=None)
        server = self.settings[SERVER]
        if found is None or (server is not None and self._rank(SERVER) < found[0]):
            found = (0, Way(server))
        way = found[1]
        token_file = self.settings[TOKEN_FILE] or way.token_file
        chosen = way.server or server
        if chosen is None or token_file is None:
            raise UsageError(
                "which server? Neither flags, environment nor a saved context say it",
                hint="holdfast login --server URL --ca FILE --token-file FILE, or on the server's"
                " own host: export HOLDFAST_DATA=DIR",
            )
        ca = self.settings[CA] or way.ca
        return Place(chosen.rstrip("/"), ca, token_file, self.key_file)
def _optional_path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _url_of(data: Path) -> str:
    try:
        return (data / "url").read_text(encoding="ascii").strip()
    except OSError as exc:
        raise UsageError(
            f"{data} is not the data directory of a running server: {exc.strerror}",
            hint="start it: holdfast-server --data DIR",
        ) from exc


# --- contexts: one small TOML file each, and the name of the current one
def save_context(environ: Mapping[str, str], name: str, place: Place) -> Path:
    """Save a context and make it the current one; return its file."""
    folder = config_directory(environ) / "contexts"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lines = [("server", place.server), ("token_file", str(place.token_file.absolute()))]
    if place.ca:
        lines.append(("ca", str(place.ca.absolute())))
    path = _context_file(environ, name)
    path.write_text("".join(f"{key} = {_quoted(value)}\n" for key, value in lines))
    (folder / "current").write_text(name + "\n")
    return path


def read_context(environ: Mapping[str, str], name: str | None) -> dict[str, str]:
    """Return a saved context, the current one without a name; empty when there is none.

    Raises:
        NotFound: no context of that name.
    """
    import tomllib  # only where neither flag nor environment said it

    current = config_directory(environ) / "contexts" / "current"
    if name is None:
        if not current.exists():
            return {}
        name = current.read_text().strip()
    path = _context_file(environ, name)
    if not path.exists():
        raise NotFound(f"no saved context {name!r}", hint="holdfast login --name NAME saves one")
    return {k: v for k, v in tomllib.loads(path.read_text()).items() if isinstance(v, str)}


def _context_file(environ: Mapping[str, str], name: str) -> Path:
    if not name or "/" in name or name.startswith(".") or name == "current":
        raise UsageError(f"not a context name: {name!r}")
    return config_directory(environ) / "contexts" / f"{name}.toml"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
