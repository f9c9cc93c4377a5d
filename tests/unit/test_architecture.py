"""What the syntax tree tells: third-party homes, and that the server cannot decrypt."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
PACKAGES = {
    "holdfast_contract": TOP / "contract",
    "holdfast_agent": TOP / "agent",
    "holdfast_server": TOP / "server",
    "holdfast_cli": TOP / "cli",
}

# Whoever imports one of these is in one of the modules named, or below it.
HOMES = {
    "sqlalchemy": ("holdfast_server.catalog",),
    "alembic": ("holdfast_server.catalog",),
    "aiohttp": (
        "holdfast_server.api",
        "holdfast_server.control",
        "holdfast_server.runtime",
        "holdfast_agent.transport",
        "holdfast_agent.runtime",
    ),
    "cryptography": ("holdfast_agent.crypto", "holdfast_server.auth"),
    "zstandard": ("holdfast_agent.crypto",),
    "pyfastcdc": ("holdfast_agent.engine",),
    "prometheus_client": ("holdfast_server.api", "holdfast_server.runtime"),
    "click": ("holdfast_cli",),
    "rich": ("holdfast_cli",),
    "blake3": tuple(PACKAGES),
    "msgspec": tuple(PACKAGES),
}

# All that `server/auth` needs of cryptography: certificates, Ed25519, and their encodings.
SERVER_CRYPTOGRAPHY = (
    "cryptography.exceptions",
    "cryptography.x509",
    "cryptography.hazmat.primitives.asymmetric.ec",
    "cryptography.hazmat.primitives.asymmetric.ed25519",
    "cryptography.hazmat.primitives.hashes",
    "cryptography.hazmat.primitives.serialization",
)


def modules(package: str) -> Iterator[tuple[str, Path]]:
    top = PACKAGES[package]
    for path in sorted((top / package).rglob("*.py")):
        parts = path.relative_to(top).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(source: str) -> Iterator[str]:
    """Yield every name imported anywhere in `source`: `from a import b` gives `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            match node.args:
                case [ast.Constant(value=str(name)), *_]:
                    yield name
                case _:
                    yield f"<made at run time>: {ast.unparse(node)}"


def below(name: str, homes: tuple[str, ...]) -> bool:
    return any(name == home or name.startswith(home + ".") for home in homes)


def strays(module: str, source: str) -> list[str]:
    """Return the third-party imports that `module` makes outside their homes."""
    found = []
    for name in imports(source):
        library = name.partition(".")[0]
        if library in sys.stdlib_module_names or library in PACKAGES or library == "__future__":
            continue
        if not below(module, HOMES.get(library, ())):
            found.append(f"{module} imports {name}")
    return found


def decrypting(module: str, source: str) -> list[str]:
    """Return the imports of a server's or the contract's module that could open a chunk."""
    found = []
    for name in imports(source):
        library = name.partition(".")[0]
        allowed = library != "cryptography" or (
            module.startswith("holdfast_server.") and below(name, SERVER_CRYPTOGRAPHY)
        )
        if library in ("zstandard", "holdfast_agent", "holdfast_cli") or not allowed:
            found.append(f"{module} imports {name}")
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_each_third_party_library_is_imported_at_its_home_only(package: str) -> None:
    found = [line for name, path in modules(package) for line in strays(name, path.read_text())]
    assert found == []


@pytest.mark.parametrize("package", ["holdfast_server", "holdfast_contract"])
def test_no_aead_in_the_server(package: str) -> None:
    found = [line for name, path in modules(package) for line in decrypting(name, path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "from cryptography.hazmat.primitives.ciphers.aead import AESGCM",
        "from cryptography.hazmat.primitives import ciphers",
        "import cryptography.hazmat.primitives.ciphers",
        "from cryptography.hazmat.primitives.kdf.hkdf import HKDF",
        "from cryptography import fernet",
        "import zstandard",
        "def late():\n    from holdfast_agent.crypto import seal",
        "import importlib\nimportlib.import_module('zstandard')",
    ],
)
def test_a_planted_way_to_decrypt_is_found(line: str) -> None:
    module = "holdfast_server.auth.planted"
    assert decrypting(module, line) + strays(module, line)


def test_a_certificate_in_the_server_and_a_planted_one_in_its_api_differ() -> None:
    line = "from cryptography import x509"
    assert (
        decrypting("holdfast_server.auth.tls", line) + strays("holdfast_server.auth.tls", line)
        == []
    )
    assert strays("holdfast_server.api.tls", line) == [
        "holdfast_server.api.tls imports cryptography.x509"
    ]


def test_a_library_without_a_home_is_found() -> None:
    assert strays("holdfast_agent.engine.walk", "import requests")


def test_the_command_is_loaded_without_an_http_framework_or_a_database() -> None:
    script = (
        "import importlib, pkgutil, sys, holdfast_cli\n"
        "for found in pkgutil.walk_packages(holdfast_cli.__path__, 'holdfast_cli.'):\n"
        "    importlib.import_module(found.name)\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(done.stdout.split())
    assert "holdfast_cli" in loaded
    assert loaded & {"aiohttp", "sqlalchemy", "alembic", "holdfast_server"} == set()
