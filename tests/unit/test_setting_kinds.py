"""How text becomes a value, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_contract.errors import InvalidInput
from holdfast_contract.settings import (
    parse_duration,
    parse_server_url,
    parse_size,
)
from holdfast_contract.settings.kinds import duration_text, masked_url, parse_boolean, size_text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1048576", 1 << 20),
        ("800K", 800 << 10),
        ("5M", 5 << 20),
        ("5m", 5 << 20),
        ("5MiB", 5 << 20),
        ("3G", 3 << 30),
        ("2T", 2 << 40),
    ],
)
def test_sizes_are_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "5MB", "5B", "1.5M", "-1", "5 M", "٣M", "1e6", "5Mi"])
def test_sizes_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="not a size"):
        parse_size(text)


@given(st.integers(0, 1 << 60))
def test_a_size_reads_back_as_itself(size: int) -> None:
    assert parse_size(size_text(size)) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("30s", 30), ("30m", 1800), ("1h", 3600), ("7d", 604_800), ("2w", 1_209_600)],
)
def test_durations_are_seconds_unless_a_unit_says_otherwise(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "1h30m", "-1h", "1.5h", "1y", "1M"])
def test_durations_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="not a duration"):
        parse_duration(text)


@given(st.integers(0, 1 << 36))
def test_a_duration_reads_back_as_itself(seconds: int) -> None:
    assert parse_duration(duration_text(seconds)) == seconds


def test_booleans_are_words_for_true_and_false() -> None:
    assert [parse_boolean(text) for text in ("true", "YES", "on", "1")] == [True] * 4
    assert [parse_boolean(text) for text in ("false", "No", "off", "0")] == [False] * 4
    with pytest.raises(InvalidInput):
        parse_boolean("maybe")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://backup.example:9440", "https://backup.example:9440"),
        ("https://backup.example/", "https://backup.example"),
        ("https://[::1]:9440", "https://[::1]:9440"),
        ("http://127.0.0.1:9440", "http://127.0.0.1:9440"),
        ("http://localhost:1", "http://localhost:1"),
        ("http://[::1]:1", "http://[::1]:1"),
    ],
)
def test_a_server_url_is_https_or_this_machine(text: str, url: str) -> None:
    assert parse_server_url(text) == url


@pytest.mark.parametrize(
    "text",
    [
        "backup.example:9440",
        "http://backup.example:9440",
        "http://127.0.0.1.example:1",
        "ftp://127.0.0.1",
        "https://",
        "https://host/path",
        "https://host?x=1",
        "https://host:0",
        "https://host:99999",
        "https://[::1",
        "https://user:geheim@host",
        "http://localhost@evil.example",
    ],
)
def test_other_server_urls_are_refused_without_quoting_a_password(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_server_url(text)
    assert "geheim" not in caught.value.message


def test_masking_leaves_urls_without_secrets_alone() -> None:
    for url in ("file:/srv/a@b", "sqlite:/x/catalog.db", "s3://bucket/prefix", "sftp://me@host/x"):
        assert masked_url(url) == url
