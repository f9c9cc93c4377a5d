"""The server's settings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path

from holdfast_contract.errors import InvalidInput, UsageError
from holdfast_contract.settings.kinds import (
    DURATION,
    PATH,
    URL,
    Kind,
    bounded,
    integer,
    many,
    optional,
    simple,
)
from holdfast_contract.settings.table import LOG_FORMAT, LOG_LEVEL, Program, Setting, Settings

VERSION = "0.1.0"

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_TLS_NAME = re.compile(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]{0,250}[A-Za-z0-9_])?|[0-9A-Fa-f:.]+")


@dataclass(frozen=True)
class Address:
    """Where the server listens."""

    host: str
    """A name or an address, without brackets."""
    port: int
    """0: the kernel picks one."""

    def __str__(self) -> str:
        """Return `HOST:PORT`, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Return `HOST:PORT` or `[IPV6]:PORT` as an address; port 0 picks one.

    Raises:
        InvalidInput: it is neither.
    """
    host, colon, port = text.strip().rpartition(":")
    wrong = InvalidInput(f"not an address: {text[:120]!r}; expected HOST:PORT, such as [::1]:9440")
    if not colon or re.fullmatch(r"\d{1,5}", port, re.ASCII) is None or int(port) > 65_535:
        raise wrong
    if host.startswith("[") and host.endswith("]"):
        try:
            return Address(str(IPv6Address(host[1:-1])), int(port))
        except ValueError as exc:
            raise wrong from exc
    if _HOST.fullmatch(host) is None:
        raise wrong
    return Address(host, int(port))


def parse_tls_name(text: str) -> str:
    """Return a DNS name (also `*.example.org`) or an address for the server's certificate.

    Raises:
        InvalidInput: it can be neither.
    """
    if _TLS_NAME.fullmatch(text) is None or ".." in text:
        raise InvalidInput(f"neither a DNS name nor an address: {text[:120]!r}")
    return text


ADDRESS: Kind[Address] = simple("HOST:PORT", parse_address, plain=str)
TLS_NAME: Kind[str] = simple("NAME", parse_tls_name)

DATA = Setting("data", optional(PATH), None, "directory for everything that the server keeps")
LISTEN = Setting("listen", ADDRESS, Address("127.0.0.1", 9440), "where to answer; port 0 picks one")
STORE = Setting(
    "store",
    optional(URL),
    None,
    "where packs and manifests lie, such as file:/srv/holdfast",
    default_text="file:DIR/store",
)
CATALOG = Setting(
    "catalog",
    optional(URL),
    None,
    "the server's database, such as sqlite:/srv/catalog.sqlite",
    default_text="sqlite:DIR/catalog.sqlite",
)
TLS_NAMES: Setting[tuple[str, ...]] = Setting(
    "tls_name",
    many(TLS_NAME, separator=","),
    (),
    "name or address in the certificate, beside the listen address and this machine's own",
)
TLS_CERT = Setting("tls_cert", optional(PATH), None, "certificate chain (PEM) instead of its own")
TLS_KEY = Setting("tls_key", optional(PATH), None, "private key (PEM) of --tls-cert")
JOBS_RUNNING_MAX = Setting(
    "jobs_running_max", integer(1, 10_000), 16, "jobs of all clients that run at once; others queue"
)
STALL_TIMEOUT = Setting(
    "stall_timeout",
    bounded(DURATION, 5, 86_400),
    600,
    "a job without any progress for so long has failed; its total time does not matter",
)

PROGRAM = Program(
    name="holdfast-server",
    version=VERSION,
    summary="Keeps the backups of all clients, and never a key to them.",
    example="holdfast-server --data /var/lib/holdfast --listen 0.0.0.0:9440 --tls-name backup.lan",
    settings=(
        DATA,
        LISTEN,
        STORE,
        CATALOG,
        TLS_NAMES,
        TLS_CERT,
        TLS_KEY,
        JOBS_RUNNING_MAX,
        STALL_TIMEOUT,
    ),
    config_path="/etc/holdfast/server.toml",
)


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The settings of one start, checked against each other."""

    data: Path
    """Absolute."""
    listen: Address
    store: str
    """URL."""
    catalog: str
    """`sqlite:` and an absolute path."""
    tls_names: tuple[str, ...]
    tls_cert: Path | None
    """Given together with `tls_key`, or neither."""
    tls_key: Path | None
    log_level: str
    log_format: str
    jobs_running_max: int
    stall_timeout_seconds: int

    @property
    def catalog_path(self) -> Path:
        """The file of the catalog."""
        return Path(self.catalog.removeprefix("sqlite:"))


def server_config(settings: Settings) -> ServerConfig:
    """Return the settings of this start, defaults below the data directory filled in.

    Raises:
        UsageError: no data directory; half of a certificate; a catalog that is not supported.
    """
    data = settings[DATA]
    if data is None:
        raise UsageError(
            "no data directory is given", hint=f"example: {PROGRAM.name} --data /var/lib/holdfast"
        )
    data = data.absolute()
    cert, key = settings[TLS_CERT], settings[TLS_KEY]
    if (cert is None) != (key is None):
        raise UsageError("--tls-cert and --tls-key are given together, or not at all")
    return ServerConfig(
        data=data,
        listen=settings[LISTEN],
        store=settings[STORE] or f"file:{data}/store",
        catalog=_catalog(settings[CATALOG], data),
        tls_names=settings[TLS_NAMES],
        tls_cert=cert,
        tls_key=key,
        log_level=settings[LOG_LEVEL],
        log_format=settings[LOG_FORMAT],
        jobs_running_max=settings[JOBS_RUNNING_MAX],
        stall_timeout_seconds=settings[STALL_TIMEOUT],
    )


def _catalog(url: str | None, data: Path) -> str:
    if url is None or url == "sqlite:":
        return f"sqlite:{data}/catalog.sqlite"
    scheme, colon, path = url.partition(":")
    if colon and scheme != "sqlite":
        raise UsageError(
            f"catalogs of the kind {scheme[:20]!r} are not supported yet",
            hint="a file is written sqlite:/path",
        )
    # sqlite:///path is how SQLAlchemy writes the same.
    path = "/" + path.lstrip("/") if path.startswith("///") else path
    if not colon or not path.startswith("/") or path.startswith("//") or "\0" in path:
        raise UsageError(f"not a catalog URL: {url[:120]!r}", hint="a file is written sqlite:/path")
    return f"sqlite:{path}"
