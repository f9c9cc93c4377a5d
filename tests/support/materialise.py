"""Write a planned tree to disk through directory descriptors, so that no path is too long."""

from __future__ import annotations

import os
import random
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.generate import Kind, Node

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def materialise(plan: Node, top: Path) -> None:
    """Make `top`, which must not exist, and everything below it, as `plan` says.

    Raises:
        OSError: an entry cannot be made here, such as a device without privilege.
    """
    parent = os.open(top.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    making = _Making()
    try:
        making.entry(parent, os.fsencode(top.name), plan)
    finally:
        making.close()
        os.close(parent)


@dataclass
class _Making:
    """One materialisation: the first inode of each hard-link group stays open for the next name."""

    first: dict[str, int] = field(default_factory=dict)

    def close(self) -> None:
        for held in self.first.values():
            os.close(held)

    def entry(self, parent: int, name: bytes, node: Node) -> None:
        if node.link_group in self.first:
            held = f"/proc/self/fd/{self.first[node.link_group]}"
            os.link(held, os.fsdecode(name), dst_dir_fd=parent, follow_symlinks=True)
            return
        if node.kind is Kind.DIRECTORY:
            self._directory(parent, name, node)
        else:
            MAKERS[node.kind](parent, name, node)
        self._metadata(parent, name, node)
        if node.link_group:
            flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
            self.first[node.link_group] = os.open(name, flags, dir_fd=parent)

    def _directory(self, parent: int, name: bytes, node: Node) -> None:
        os.mkdir(name, 0o700, dir_fd=parent)
        here = os.open(name, DIRECTORY, dir_fd=parent)
        try:
            for child_name, child in node.children.items():
                self.entry(here, child_name, child)
        finally:
            os.close(here)

    def _metadata(self, parent: int, name: bytes, node: Node) -> None:
        """Set the rest; owner before mode and capabilities, which a change of owner clears."""
        if node.owner is not None:
            os.chown(name, *node.owner, dir_fd=parent, follow_symlinks=False)
        if node.kind is not Kind.SYMLINK:
            os.chmod(name, node.mode, dir_fd=parent)
        for key, value in node.xattrs.items():
            place = b"/proc/self/fd/%d/%s" % (parent, name)
            os.setxattr(place, key, value, follow_symlinks=False)
        times = (node.mtime_ns, node.mtime_ns)
        os.utime(name, ns=times, dir_fd=parent, follow_symlinks=False)


def _file(parent: int, name: bytes, node: Node) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    here = os.open(name, flags, 0o600, dir_fd=parent)
    try:
        for piece in node.pieces:
            content = piece.content()
            written = os.pwrite(here, content, piece.offset)
            assert written == len(content)
        os.ftruncate(here, node.size)
    finally:
        os.close(here)


def _symlink(parent: int, name: bytes, node: Node) -> None:
    os.symlink(node.target, name, dir_fd=parent)


def _fifo(parent: int, name: bytes, node: Node) -> None:
    os.mkfifo(name, node.mode, dir_fd=parent)


def _socket(parent: int, name: bytes, node: Node) -> None:
    # A socket's address has room for 107 bytes: bind under a short name, then give it its own.
    short = b".%d" % random.Random(name).randrange(2**32)
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(b"/proc/self/fd/%d/%s" % (parent, short))
    os.rename(short, name, src_dir_fd=parent, dst_dir_fd=parent)


def _device(parent: int, name: bytes, node: Node) -> None:
    kind = stat.S_IFCHR if node.kind is Kind.CHAR_DEVICE else stat.S_IFBLK
    os.mknod(name, node.mode | kind, os.makedev(*node.device), dir_fd=parent)


MAKERS: dict[Kind, Callable[[int, bytes, Node], None]] = {
    Kind.FILE: _file,
    Kind.SYMLINK: _symlink,
    Kind.FIFO: _fifo,
    Kind.SOCKET: _socket,
    Kind.CHAR_DEVICE: _device,
    Kind.BLOCK_DEVICE: _device,
}
