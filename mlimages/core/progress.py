"""Progress reports: functions take a `Progress` as an argument; the command line passes one that uses tqdm."""

from __future__ import annotations

import sys
from typing import NoReturn, Protocol
from weakref import WeakSet

from tqdm.auto import tqdm


class Progress(Protocol):
    """Receives the progress of a long operation."""

    def start(self, task_name: str, total: int | None, unit: str) -> None:
        """Start a stage of the operation: `total` items (None if unknown), counted in `unit`, such as "img"."""

    def advance(self, num_items: int = 1, **values: object) -> None:
        """Report that `num_items` more items are finished; show `values` with their names beside the progress bar."""

    def close(self) -> None:
        """End the stage that `start` began; another one may follow."""


class NoProgress:
    """Ignores all progress."""

    def start(self, task_name: str, total: int | None, unit: str) -> None: ...

    def advance(self, num_items: int = 1, **values: object) -> None: ...

    def close(self) -> None: ...


_BAR_FORMAT_WITH_VALUES = "{desc}: |{bar}| {n_fmt}/{total_fmt} {rate_noinv_fmt}{postfix}"
"""Format of a progress bar that shows values; it omits tqdm's times, since both do not fit into 80 columns."""


class TqdmProgress:
    """A tqdm progress bar, on standard error or in a notebook."""

    _bar: tqdm[NoReturn] | None = None

    def start(self, task_name: str, total: int | None, unit: str) -> None:
        self.close()
        _started.add(self)
        interval_s = 0.1 if sys.stderr.isatty() else 30  # in a log, one line every 30 s
        self._bar = tqdm(
            desc=task_name, total=total, unit=f" {unit}", dynamic_ncols=True, mininterval=interval_s, miniters=0
        )

    def advance(self, num_items: int = 1, **values: object) -> None:
        if self._bar is None:
            return
        if values:
            self._bar.bar_format = _BAR_FORMAT_WITH_VALUES
            text = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())
            self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(num_items)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


_started: WeakSet[TqdmProgress] = WeakSet()


def close_progress_bars() -> None:
    """Close all progress bars, so that the next message starts on a line of its own."""
    for progress in list(_started):
        progress.close()
