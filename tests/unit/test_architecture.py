"""What the syntax tree tells: third-party homes, and that the server cannot decrypt."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
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

# Everybody may import these: hashing and typed records are the format itself.
OPEN = {"blake3", "msgspec"}

# All that `server/auth` needs of cryptography: certificates, Ed25519, and their encodings.
SERVER_CRYPTOGRAPHY = (
    "cryptography.exceptions",
    "cryptography.x509",
    "cryptography.hazmat.primitives.asymmetric.ec",
    "cryptography.hazmat.primitives.asymmetric.ed25519",
    "cryptography.hazmat.primitives.hashes",
    "cryptography.hazmat.primitives.serialization",
)
DYNAMIC = ("import_module", "__import__")


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
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(DYNAMIC):
            match node.args:
                case [ast.Constant(value=str(name)), *_]:
                    yield name
                case _:
                    yield f"<made at run time>: {ast.unparse(node)}"


def below(name: str, homes: tuple[str, ...]) -> bool:
    return any(name == home or name.startswith(home + ".") for home in homes)


def governed() -> set[str]:
    """Return the third-party libraries that a contract of import-linter gives a home."""
    settings = tomllib.loads((TOP / "pyproject.toml").read_text())
    keys = ("protected_modules", "forbidden_modules")
    contracts = settings["tool"]["importlinter"]["contracts"]
    return {name for contract in contracts for key in keys for name in contract.get(key, ())}


def homeless(source: str) -> list[str]:
    """Return the third-party imports of a module that no contract of import-linter speaks of."""
    known = governed() | OPEN | PACKAGES.keys() | sys.stdlib_module_names
    return [name for name in imports(source) if name.partition(".")[0] not in known]


def decrypting(module: str, source: str) -> list[str]:
    """Return the imports of a server's or the contract's module that could open a chunk."""
    found = []
    for name in imports(source):
        library = name.partition(".")[0]
        allowed = library != "cryptography" or (
            module.startswith("holdfast_server.") and below(name, SERVER_CRYPTOGRAPHY)
        )
        opens = library in ("zstandard", "holdfast_agent", "holdfast_cli", "<made at run time>")
        if opens or not allowed:
            found.append(f"{module} imports {name}")
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_each_third_party_library_has_a_home(package: str) -> None:
    found = [(name, homeless(path.read_text())) for name, path in modules(package)]
    assert [(name, lines) for name, lines in found if lines] == []


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
    assert decrypting(module, line)


def test_certificates_and_signatures_do_not_count_as_decrypting() -> None:
    source = (
        "from cryptography import x509\n"
        "from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey\n"
    )
    assert decrypting("holdfast_server.auth.planted", source) == []
    assert decrypting("holdfast_contract.planted", source) != []


@pytest.mark.parametrize(
    "line", ["import requests", "__import__('requests')", "from yaml import load"]
)
def test_a_library_without_a_home_is_found(line: str) -> None:
    assert homeless(line)


def loaded_by(script: str) -> set[str]:
    """Return the names of modules that a Python of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    return set(done.stdout.split())


def test_the_command_is_loaded_without_an_http_framework_or_a_database() -> None:
    script = (
        "import importlib, pkgutil, sys, holdfast_cli\n"
        "for found in pkgutil.walk_packages(holdfast_cli.__path__, 'holdfast_cli.'):\n"
        "    importlib.import_module(found.name)\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    loaded = loaded_by(script)
    assert "holdfast_cli" in loaded
    assert loaded & {"aiohttp", "sqlalchemy", "alembic", "holdfast_server"} == set()


def test_an_agent_that_idles_has_not_loaded_what_only_a_job_or_a_flag_needs() -> None:
    script = (
        "import os, sys\n"
        "import holdfast_agent.main as main, holdfast_agent.runtime.start\n"
        "main.read_invocation(main.PROGRAM, [], {})\n"
        "print(*sorted(sys.modules))"
    )
    loaded = loaded_by(script)
    assert "holdfast_agent.runtime.workshop" in loaded
    jobs = {"sqlite3", "zstandard", "pyfastcdc", "holdfast_agent.engine.walk", "ctypes"}
    assert loaded & (jobs | {"argparse", "tempfile", "shutil", "http.client"}) == set()
