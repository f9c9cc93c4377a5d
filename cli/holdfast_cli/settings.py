"""Where the command finds its server: flag > environment > file > saved context > default."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from holdfast_contract.errors import NotFound, UsageError
from holdfast_contract.settings.files import choose_config_file
from holdfast_contract.settings.kinds import PATH, SERVER_URL, TEXT, optional
from holdfast_contract.settings.table import (
    LOG_FORMAT,
    LOG_LEVEL,
    Program,
    Setting,
    Settings,
    Source,
    load,
)

_T = TypeVar("_T")
VERSION = "0.1.0"

SERVER: Setting[str | None] = Setting("server", optional(SERVER_URL), None, "URL of the server")
CA: Setting[Path | None] = Setting(
    "ca", optional(PATH), None, "file with the server's CA certificate"
)
TOKEN_FILE: Setting[Path | None] = Setting(
    "token_file", optional(PATH), None, "file with an API token"
)
DATA: Setting[Path | None] = Setting(
    "data", optional(PATH), None, "data directory of a server on this host"
)
KEY_FILE: Setting[Path | None] = Setting(
    "key_file", optional(PATH), None, "a domain's key file, to open data locally"
)
CONTEXT: Setting[str | None] = Setting(
    "context", optional(TEXT), None, "a context saved by `holdfast login`"
)

CONNECTION: tuple[Setting[Any], ...] = (SERVER, CA, TOKEN_FILE, DATA, KEY_FILE, CONTEXT)


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
class _Bundle:
    """Server, CA and token that belong together: of a data directory, or of a saved context."""

    rank: int
    server: Callable[[], str | None]
    ca: Path | None
    token_file: Path | None
    is_this_host: bool = False


_NOTHING = _Bundle(99, lambda: None, None, None)
_RANKS = (Source.FLAG, Source.ENVIRONMENT, Source.FILE)


@dataclass(frozen=True)
class Loaded:
    """The settings of one run, with contexts looked up."""

    settings: Settings
    environ: Mapping[str, str]

    def place(self) -> Place:
        """Return the server to talk to.

        What is given more strongly wins (flag > environment > file > the current context), of two
        given alike the one that says it directly. A context's token goes to no other server.

        Raises:
            UsageError: nothing says which.
            NotFound: no context of that name.
        """
        bundle = self._bundle()
        server = self._direct(SERVER, bundle)
        if server is not None and not bundle.is_this_host:
            bundle = replace(bundle, ca=None, token_file=None, rank=_NOTHING.rank)
        server = server or bundle.server()
        token_file = self._direct(TOKEN_FILE, bundle) or bundle.token_file
        if server is None or token_file is None:
            raise UsageError(
                "which server? Neither flags, environment nor a saved context say it"
                if server is None
                else f"no token for {server}: --token-file FILE",
                hint="holdfast login --server URL --ca FILE --token-file FILE, or on the server's"
                " own host: export HOLDFAST_DATA=DIR",
            )
        ca = self._direct(CA, bundle) or bundle.ca
        return Place(server.rstrip("/"), ca, token_file, self.key_file)

    @property
    def key_file(self) -> Path | None:
        """The key file at hand, if any."""
        return self.settings[KEY_FILE]

    @property
    def log_level(self) -> str:
        """A key of `logs.LEVELS`."""
        return self.settings[LOG_LEVEL]

    @property
    def log_format(self) -> str:
        """`text` or `json`."""
        return self.settings[LOG_FORMAT]

    def _direct(self, setting: Setting[_T | None], bundle: _Bundle) -> _T | None:
        """Return the setting's own value unless the bundle was given more strongly."""
        return self.settings[setting] if self._rank(setting) <= bundle.rank else None

    def _rank(self, setting: Setting[Any]) -> int:
        source = self.settings.origin(setting).source
        return _RANKS.index(source) if source in _RANKS else len(_RANKS)

    def _bundle(self) -> _Bundle:
        """Return the data directory or the context, whichever was given more strongly."""
        data, name = self.settings[DATA], self.settings[CONTEXT]
        if data is not None and (name is None or self._rank(DATA) <= self._rank(CONTEXT)):
            ca, token = data / "tls" / "ca.pem", data / "admin.token"
            return _Bundle(self._rank(DATA), lambda: _url_of(data), ca, token, is_this_host=True)
        saved = read_context(self.environ, name)
        if not saved:
            return _NOTHING
        server, ca_file, token_file = map(saved.get, ("server", "ca", "token_file"))
        return _Bundle(
            self._rank(CONTEXT),
            lambda: server,
            _optional_path(ca_file),
            _optional_path(token_file),
        )


def load_settings(flags: Mapping[str, str], environ: Mapping[str, str]) -> Loaded:
    """Return the settings by precedence; `flags` maps names of settings to texts.

    Raises:
        UsageError: a value that cannot be read, or an unknown key in the file.
    """
    own = program(environ)
    given = {name: [text] for name, text in flags.items()}
    file = choose_config_file(flags=given, environ=environ, usual_path=own.config_path)
    return Loaded(load(own.table, flags=given, environ=environ, file=file), environ)


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
    text = "".join(f"{key} = {_quoted(value)}\n" for key, value in lines)
    path.write_text(text, encoding="utf-8")
    (folder / "current").write_text(name + "\n", encoding="utf-8")
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
        name = current.read_text(encoding="utf-8", errors="replace").strip()
    path = _context_file(environ, name)
    if not path.exists():
        raise NotFound(f"no saved context {name!r}", hint="holdfast login --name NAME saves one")
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise UsageError(f"{path} is not a saved context: {exc}") from exc
    return {"context": name, **{k: v for k, v in found.items() if isinstance(v, str)}}


def _context_file(environ: Mapping[str, str], name: str) -> Path:
    if not name or "/" in name or name.startswith(".") or name == "current":
        raise UsageError(f"not a context name: {name!r}")
    return config_directory(environ) / "contexts" / f"{name}.toml"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
