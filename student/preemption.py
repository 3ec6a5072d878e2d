"""What a scheduler says before it takes the machine away, and when a run has to listen.

SIGUSR1, which is what a scheduler sends some minutes before a time limit (`sbatch --signal=USR1@300`), asks for a
checkpoint at once; SIGTERM for a checkpoint and the end. Signals are noted, and obeyed between two steps, where a
checkpoint holds everything; to a run that has just saved and computes nothing new, SIGTERM is the end at once.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from distill import ranks

PREEMPTED = 128 + signal.SIGTERM  # exit code, as a shell tells a process that SIGTERM has ended
_HEARD = (signal.SIGUSR1, signal.SIGTERM)


class Preemption:
    """Notes SIGUSR1 and SIGTERM for as long as it is entered; in the main thread."""

    def __init__(self) -> None:
        self._noted = 0
        self._saved = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Preemption:
        self._before = {number: signal.signal(number, self._note) for number in _HEARD}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self) -> int:
        """What any rank was asked since the last call, `PREEMPTED` for the end; 0: nothing. All ranks call it."""
        noted, self._noted = self._noted, 0
        return ranks.highest(noted)

    @contextmanager
    def saved(self) -> Iterator[None]:
        """A block that changes nothing of what was saved before it: SIGTERM ends the process in it.

        Raises:
            SystemExit: it came, now or just before.
        """
        self._saved = True
        try:
            if self._noted == PREEMPTED:
                raise SystemExit(PREEMPTED)
            yield
        finally:
            self._saved = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = max(self._noted, 128 + number)
        if self._saved and number == signal.SIGTERM:
            raise SystemExit(PREEMPTED)


def leave_signals_to_the_trainer(worker: int) -> None:
    """Let a loader's worker ignore what a scheduler sends to all processes of a job: it ends with its trainer.

    Args:
        worker: its number, which PyTorch gives.
    """
    for number in _HEARD:
        signal.signal(number, signal.SIG_IGN)
