"""A day's random edits on a tree that lies on disk, in place, as applications make them.

`mutate` needs nothing but the tree: the same seed on equal trees makes the same edits. Times are
those the kernel gives: what is edited is as young as what a backup meets beside an application.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

from tests.support.day import DIRECTORY, Day, Names, remove_all, shown, write_new
from tests.support.generate import ACL_ACCESS, PRIVILEGED, acl


def mutate(
    top: Path, seed: int, *, edits: int = 12, only: str = "", privileged: bool = PRIVILEGED
) -> list[str]:
    """Make `edits` random edits below the directory `top` and return a line for each.

    `only` names the one kind of edit to make. An edit that finds nothing to act on becomes
    «add_file», so that the number of edits is always `edits`.
    """
    rng = random.Random(seed)
    day = Day(os.open(top, DIRECTORY), rng, privileged)
    try:
        return [_edit(day, EDITS[only or rng.choice(list(EDITS))]) for _ in range(edits)]
    finally:
        os.close(day.top)


def _edit(day: Day, edit: Edit) -> str:
    told = edit(day)
    if told is None:
        edit = add_file
        told = edit(day)
    return f"{edit.__name__}: {told}"


Edit = Callable[[Day], str | None]


# --- content --------------------------------------------------------------------------------------


def append(day: Day) -> str | None:
    if (names := day.choose(stat.S_ISREG)) is None:
        return None
    with day.opened(names) as file:
        os.pwrite(file, day.content(5000), os.fstat(file).st_size)
    return shown(names)


def overwrite(day: Day) -> str | None:
    if (names := day.choose(stat.S_ISREG)) is None:
        return None
    with day.opened(names) as file:
        os.pwrite(file, day.content(300), day.rng.randrange(os.fstat(file).st_size + 1))
    return shown(names)


def overwrite_with_the_old_time(day: Day) -> str | None:
    """Same size, same mtime, other content: only the change time tells."""
    found = [n for n, info in day.entries() if stat.S_ISREG(info.st_mode) and info.st_size]
    if not found:
        return None
    names = day.rng.choice(found)
    with day.opened(names) as file:
        info = os.fstat(file)
        at = day.rng.randrange(min(info.st_size, 1 << 20))
        os.pwrite(file, bytes([os.pread(file, 1, at)[0] ^ 0x55]), at)
        os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))
    return shown(names)


def truncate(day: Day) -> str | None:
    if (names := day.choose(stat.S_ISREG)) is None:
        return None
    with day.opened(names) as file:
        os.ftruncate(file, os.fstat(file).st_size // 2)
    return shown(names)


def grow_by_a_hole(day: Day) -> str | None:
    if (names := day.choose(stat.S_ISREG)) is None:
        return None
    with day.opened(names) as file:
        os.ftruncate(file, os.fstat(file).st_size + (1 << 20))
    return shown(names)


def rewrite_sparse(day: Day) -> str | None:
    if (names := day.choose(stat.S_ISREG)) is None:
        return None
    with day.opened(names) as file:
        os.ftruncate(file, 0)
        os.ftruncate(file, 3 << 20)
        os.pwrite(file, day.content(9000), 1 << 20)
    return shown(names)


def save_atomically(day: Day) -> str | None:
    """Write a temporary file and rename it over the old one, as editors do."""
    if (names := day.choose(stat.S_ISREG)) is None:
        return None
    with day.at(names[:-1]) as parent:
        fresh = day.new_name()
        write_new(parent, fresh, day.content(20_000))
        os.rename(fresh, names[-1], src_dir_fd=parent, dst_dir_fd=parent)
    return shown(names)


# --- metadata -------------------------------------------------------------------------------------


def touch(day: Day) -> str | None:
    if (names := day.choose(stat.S_ISREG, stat.S_ISDIR, stat.S_ISLNK, stat.S_ISFIFO)) is None:
        return None
    time_ns = day.rng.randrange(-(10**18), 2 * 10**18)
    with day.at(names[:-1]) as parent:
        os.utime(names[-1], ns=(time_ns, time_ns), dir_fd=parent, follow_symlinks=False)
    return shown(names)


def chmod(day: Day) -> str | None:
    if (names := day.choose(stat.S_ISREG, stat.S_ISDIR, stat.S_ISFIFO)) is None:
        return None
    with day.at(names[:-1]) as parent:
        info = os.stat(names[-1], dir_fd=parent, follow_symlinks=False)
        os.chmod(names[-1], stat.S_IMODE(info.st_mode) ^ 0o011, dir_fd=parent)
    return shown(names)


def chown(day: Day) -> str | None:
    names = day.choose(stat.S_ISREG, stat.S_ISDIR, stat.S_ISLNK) if day.privileged else None
    if names is None:
        return None
    owner = day.rng.randrange(2**31), day.rng.randrange(2**31)
    with day.at(names[:-1]) as parent:
        os.chown(names[-1], *owner, dir_fd=parent, follow_symlinks=False)
    return shown(names)


def set_xattr(day: Day) -> str | None:
    if (names := day.choose(stat.S_ISREG, stat.S_ISDIR)) is None:
        return None
    with day.at(names[:-1]) as parent:
        place = b"/proc/self/fd/%d/%s" % (parent, names[-1])
        os.setxattr(place, "user.edited", day.content(100))
    return shown(names)


def set_acl(day: Day) -> str | None:
    if (names := day.choose(stat.S_ISREG, stat.S_ISDIR)) is None:
        return None
    with day.at(names[:-1]) as parent:
        os.setxattr(b"/proc/self/fd/%d/%s" % (parent, names[-1]), ACL_ACCESS, acl(day.rng))
    return shown(names)


def remove_xattrs(day: Day) -> str | None:
    for names, info in day.entries():
        if not (stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)):
            continue
        with day.at(names[:-1]) as parent:
            place = b"/proc/self/fd/%d/%s" % (parent, names[-1])
            found = [key for key in os.listxattr(place) if key.startswith("user.")]
            for key in found:
                os.removexattr(place, key)
        if found:
            return shown(names)
    return None


# --- names ----------------------------------------------------------------------------------------


def _move(day: Day, names: Names | None, folder: Names) -> str | None:
    if names is None:
        return None
    fresh = day.new_name()
    with day.at(names[:-1]) as source, day.at(folder) as target:
        os.rename(names[-1], fresh, src_dir_fd=source, dst_dir_fd=target)
    return f"{shown(names)} -> {shown((*folder, fresh))}"


def rename_file(day: Day) -> str | None:
    names = day.choose(stat.S_ISREG, stat.S_ISLNK, stat.S_ISFIFO, stat.S_ISSOCK)
    return _move(day, names, names[:-1] if names else ())


def rename_directory(day: Day) -> str | None:
    names = day.choose(stat.S_ISDIR)
    return _move(day, names, names[:-1] if names else ())


def move_file(day: Day) -> str | None:
    return _move(day, day.choose(stat.S_ISREG), day.folder())


def move_directory(day: Day) -> str | None:
    names, folder = day.choose(stat.S_ISDIR), day.folder()
    return _move(day, names, () if names and folder[: len(names)] == names else folder)


def swap_names(day: Day) -> str | None:
    one, two = day.choose(stat.S_ISREG), day.choose(stat.S_ISREG)
    if one is None or two is None or one == two:
        return None
    fresh = day.new_name()
    with day.at(one[:-1]) as left, day.at(two[:-1]) as right:
        os.rename(one[-1], fresh, src_dir_fd=left, dst_dir_fd=left)
        os.rename(two[-1], one[-1], src_dir_fd=right, dst_dir_fd=left)
        os.rename(fresh, two[-1], src_dir_fd=left, dst_dir_fd=right)
    return f"{shown(one)} <-> {shown(two)}"


def hard_link(day: Day) -> str | None:
    names, folder = day.choose(stat.S_ISREG), day.folder()
    if names is None:
        return None
    fresh = day.new_name()
    with day.at(names[:-1]) as source, day.at(folder) as target:
        os.link(names[-1], fresh, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
    return f"{shown(names)} = {shown((*folder, fresh))}"


def add_file(day: Day) -> str | None:
    folder, fresh = day.folder(), day.new_name()
    with day.at(folder) as parent:
        write_new(parent, fresh, day.content(100_000))
    return shown((*folder, fresh))


def add_directory(day: Day) -> str | None:
    folder, fresh = day.folder(), day.new_name()
    with day.at(folder) as parent:
        os.mkdir(fresh, 0o755, dir_fd=parent)
    with day.at((*folder, fresh)) as here:
        for _ in range(3):
            write_new(here, day.new_name(), day.content(2000))
    return shown((*folder, fresh))


def remove(day: Day) -> str | None:
    """Remove one entry, a directory with all below it."""
    if (names := day.choose(*ANY)) is None:
        return None
    with day.at(names[:-1]) as parent:
        remove_all(parent, names[-1])
    return shown(names)


def replace(day: Day) -> str | None:
    """Put another kind of entry under the name of one that goes."""
    if (names := day.choose(*ANY)) is None:
        return None
    with day.at(names[:-1]) as parent:
        before = os.stat(names[-1], dir_fd=parent, follow_symlinks=False).st_mode
        remove_all(parent, names[-1])
        if not stat.S_ISDIR(before) and day.rng.random() < 0.5:
            os.mkdir(names[-1], 0o755, dir_fd=parent)
        elif not stat.S_ISLNK(before) and day.rng.random() < 0.5:
            os.symlink(b"another target", names[-1], dir_fd=parent)
        elif not stat.S_ISREG(before):
            write_new(parent, names[-1], day.content(500))
        else:
            os.mkfifo(names[-1], 0o600, dir_fd=parent)
    return shown(names)


def retarget_symlink(day: Day) -> str | None:
    if (names := day.choose(stat.S_ISLNK)) is None:
        return None
    with day.at(names[:-1]) as parent:
        os.unlink(names[-1], dir_fd=parent)
        os.symlink(b"target %d" % day.rng.randrange(10**9), names[-1], dir_fd=parent)
    return shown(names)


ANY = (stat.S_ISREG, stat.S_ISDIR, stat.S_ISLNK, stat.S_ISFIFO, stat.S_ISSOCK)
EDITS: dict[str, Edit] = {
    edit.__name__: edit
    for edit in (
        append,
        overwrite,
        overwrite_with_the_old_time,
        truncate,
        grow_by_a_hole,
        rewrite_sparse,
        save_atomically,
        touch,
        chmod,
        chown,
        set_xattr,
        set_acl,
        remove_xattrs,
        rename_file,
        rename_directory,
        move_file,
        move_directory,
        swap_names,
        hard_link,
        add_file,
        add_directory,
        remove,
        replace,
        retarget_symlink,
    )
}
