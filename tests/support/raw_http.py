"""Requests as bytes, for what no client library sends."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

SECONDS = 30.0
"""Longest wait for an answer on a machine that is busy."""


@dataclass(frozen=True)
class Answer:
    """One answer; `body` as its length says."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, Any]:
        """The problem document that it is."""
        assert self.headers["content-type"].startswith("application/problem+json"), self
        found: dict[str, Any] = json.loads(self.body)
        assert found["status"] == self.status
        return found


class Wire:
    """One connection over which anything can be sent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int) -> Wire:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def send(self, data: bytes) -> None:
        """Send bytes; what the other side no longer takes is dropped."""
        self.writer.write(data)
        try:
            await self.writer.drain()
        except ConnectionError:
            return

    async def answer(self) -> Answer:
        """Read one answer."""
        async with asyncio.timeout(SECONDS):
            head = await self.reader.readuntil(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")[:-2]
            pairs = [line.partition(":") for line in lines]
            headers = {name.lower(): value.strip() for name, _, value in pairs}
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return Answer(int(first.split(" ")[1]), headers, body)

    async def until_closed(self) -> bytes:
        """Read until the server closed the connection; return what came before."""
        async with asyncio.timeout(SECONDS):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            return


def head(method: str, path: str, *lines: str, token: str = "", host: str = "x") -> bytes:
    """Return a request's head."""
    first = [f"{method} {path} HTTP/1.1", f"Host: {host}"]
    first += [f"Authorization: Bearer {token}"] if token else []
    return ("\r\n".join([*first, *lines]) + "\r\n\r\n").encode("latin-1")


async def asked(port: int, data: bytes) -> Answer:
    """Send bytes over a connection of their own and return the first answer."""
    wire = await Wire.open(port)
    try:
        await wire.send(data)
        return await wire.answer()
    finally:
        await wire.close()
