"""A progress bar on a terminal; the only module that imports rich."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from holdfast_contract.protocol.http import JobRow
from holdfast_contract.text import printable

_PATH_SHOWN_MAX = 40


class TerminalMeter:
    """One line for each job, drawn on standard error."""

    def __init__(self, rows: Sequence[JobRow]) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TextColumn("{task.fields[files]:,} files"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[current]}", markup=False),
            console=Console(stderr=True),
            transient=True,
        )
        self._tasks = {
            row.id: self._progress.add_task(
                f"{row.kind} {row.client}".strip(), total=None, files=0, current=""
            )
            for row in rows
        }

    def __enter__(self) -> TerminalMeter:
        """Begin to draw."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Clear the line."""
        self._progress.stop()

    def update(self, row: JobRow) -> None:
        """Draw the row's progress."""
        current = printable(row.current or row.state.value)
        if len(current) > _PATH_SHOWN_MAX:
            current = "..." + current[-_PATH_SHOWN_MAX + 3 :]
        self._progress.update(
            self._tasks[row.id],
            completed=row.progress.bytes,
            total=row.progress.bytes_total,
            files=row.progress.files,
            current=current,
        )
