"""The server's settings: each by itself, and checked against each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast_contract.errors import UsageError
from holdfast_contract.settings.arguments import read_invocation
from holdfast_server.config import PROGRAM, Address, ServerConfig, server_config
from holdfast_server.stores import check_store_url


def config(*argv: str, toml: str = "", **environ: str) -> ServerConfig:
    invocation = read_invocation(PROGRAM, argv, environ, lambda path: toml.encode())
    return server_config(invocation.settings)


def test_defaults_lie_below_the_data_directory() -> None:
    found = config("--data", "/srv/holdfast")
    assert found.data == Path("/srv/holdfast")
    assert found.listen == Address("127.0.0.1", 9440)
    assert found.store == "file:/srv/holdfast/store"
    assert found.catalog_path == Path("/srv/holdfast/catalog.sqlite")
    assert found.tls_names == ()
    assert (found.tls_cert, found.tls_key) == (None, None)
    assert (found.jobs_running_max, found.stall_timeout_seconds) == (16, 600)
    assert (found.log_level, found.log_format) == ("info", "text")


def test_a_relative_data_directory_is_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = config(HOLDFAST_DATA="../x")
    assert found.data.is_absolute()
    assert check_store_url(found.store) == f"{found.data}/store"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:0", Address("127.0.0.1", 0)),
        ("[::1]:9440", Address("::1", 9440)),
        ("[::]:65535", Address("::", 65_535)),
        ("backup.example.org:1", Address("backup.example.org", 1)),
        ("0.0.0.0:9440", Address("0.0.0.0", 9440)),
    ],
)
def test_an_address_is_host_and_port(text: str, address: Address) -> None:
    assert config("--data", "/d", "--listen", text).listen == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    ["9440", ":9440", "host", "host:", "host:65536", "host:-1", "::1:9440", "[::1]", "[x]:1",
     "[127.0.0.1]:1", "ho st:1", "-a:1", "host:٣", "https://host:1"],
)  # fmt: skip
def test_what_is_no_address_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError, match="flag --listen: not an address"):
        config("--data", "/d", f"--listen={text}")


def test_names_for_the_certificate_repeat_or_stand_in_one_text() -> None:
    names = ("backup.lan", "::1", "10.0.0.1", "*.example.org")
    flags = [part for name in names for part in ("--tls-name", name)]
    assert config("--data", "/d", *flags).tls_names == names
    assert config(HOLDFAST_DATA="/d", HOLDFAST_TLS_NAME=",".join(names)).tls_names == names
    assert config("--data", "/d", toml=f"tls_name = {list(names)}").tls_names == names


@pytest.mark.parametrize("name", ["a b", "a/b", "ä.example", "https://x", "a..b", "-a", "*.*.a"])
def test_what_can_stand_in_no_certificate_is_wrong_usage(name: str) -> None:
    with pytest.raises(UsageError, match="neither a DNS name nor an address"):
        config("--data", "/d", f"--tls-name={name}")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no data directory is given"),
        (["--data", "/d", "--tls-cert", "/c"], "given together"),
        (["--data", "/d", "--tls-key", "/k"], "given together"),
        (["--data", "/d", "--catalog", "postgresql://u:geheim@h/d"], "not supported yet"),
        (["--data", "/d", "--catalog", "sqlite:relative.db"], "not a catalog URL"),
        (["--data", "/d", "--catalog", "/file"], "not a catalog URL"),
        (["--data", "/d", "--catalog", "sqlite://host/x"], "not a catalog URL"),
        (["--data", "/d", "--jobs-running-max", "0"], "out of bounds"),
        (["--data", "/d", "--stall-timeout", "1s"], "out of bounds"),
        (["--data", "/d", "--token", "hfa_x"], "unrecognized arguments"),
    ],
)
def test_wrong_combinations_are_wrong_usage(argv: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        config(*argv)
    assert message in caught.value.message
    assert "geheim" not in caught.value.message + caught.value.hint


def test_a_catalog_may_be_written_in_three_ways() -> None:
    for url in ("sqlite:/x/c.db", "sqlite:///x/c.db", "sqlite:////x/c.db"):
        assert config("--data", "/d", "--catalog", url).catalog_path == Path("/x/c.db")
    assert config("--data", "/d", "--catalog", "sqlite:").catalog_path == Path("/d/catalog.sqlite")


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:/srv/store", "/srv/store"),
        ("file:///srv/store", "/srv/store"),
        ("file:/srv/a b%20c", "/srv/a b%20c"),
        ("file:/", "/"),
    ],
)
def test_a_store_url_names_an_absolute_path_literally(url: str, path: str) -> None:
    assert check_store_url(url) == path


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://bucket", "'s3' are not supported yet"),
        ("sftp://host/x", "'sftp' are not supported yet"),
        ("/srv/store", "no URL"),
        ("store", "no URL"),
        ("file:store", "not an absolute path"),
        ("file://host/store", "not an absolute path"),
        ("file:", "not an absolute path"),
    ],
)
def test_other_stores_are_wrong_usage(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_store_url(url)
