"""What a scheduler says before it takes the machine away, and when a run has to listen.

SIGUSR1 or SIGUSR2, which is what a scheduler sends some minutes before a time limit (`sbatch --signal=USR1@300`), asks
for a checkpoint at once; SIGTERM for a checkpoint and the end. Signals are noted, and obeyed between two steps, where a
checkpoint holds everything; to a run that has just saved and computes nothing new they are obeyed at once.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.util import Finalize
from types import FrameType
from typing import Any

from distill import ranks
from distill.loader import SAVE, ignore_save

PREEMPTED = 128 + signal.SIGTERM  # exit code, as a shell tells a process that SIGTERM has ended


class Preemption:
    """Notes what schedulers send for as long as it is entered; in the main thread.

    Whoever listened to SIGUSR1 or SIGUSR2 before, such as submitit, which has the job queued again, is told when a
    checkpoint holds everything.
    """

    def __init__(self) -> None:
        self._noted: set[signal.Signals] = set()
        self._heard: set[signal.Signals] = set()
        self._ends = self._saved = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Preemption:
        self._before = {number: signal.signal(number, self._note) for number in (*SAVE, signal.SIGTERM)}
        Finalize(None, _end_workers, exitpriority=0)  # before multiprocessing asks them by SIGTERM, and waits
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self) -> bool:
        """Whether any rank was asked for a checkpoint since the last call. All ranks call it."""
        self._heard, self._noted = self._noted, set()
        asked = ranks.highest(2 if signal.SIGTERM in self._heard else bool(self._heard))
        self._ends = asked == 2
        return bool(asked)

    def obey(self) -> None:
        """Do what else was `asked`, of which a checkpoint holds everything.

        Raises:
            SystemExit: it was the end.
        """
        if self._ends:
            raise SystemExit(PREEMPTED)
        heard, self._heard = self._heard, set()
        for number in heard:
            if callable(before := self._before[number]):
                before(number, None)

    @contextmanager
    def saved(self) -> Iterator[None]:
        """A block that changes nothing of what was saved before it: signals are obeyed in it.

        Raises:
            SystemExit: SIGTERM came, now or just before.
        """
        self._saved = True
        try:
            self._obey_alone()
            yield
        finally:
            self._saved = False

    def _obey_alone(self) -> None:
        self._heard, self._noted = self._noted, set()
        self._ends = signal.SIGTERM in self._heard
        self.obey()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted.add(signal.Signals(number))
        if self._saved:
            self._obey_alone()


def leave_signals_to_the_trainer(worker: int) -> None:
    """Let a loader's worker ignore what a scheduler sends to all processes of a job: `Preemption` ends it at the exit.

    Args:
        worker: its number, which PyTorch gives.
    """
    ignore_save(worker)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _end_workers() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # at which PyTorch would raise an error of its own
    for worker in multiprocessing.active_children():
        worker.kill()
