"""Batches of frames, read by worker processes."""

from __future__ import annotations

import multiprocessing
import signal
from typing import Any

from torch.utils.data import DataLoader, Dataset

from distill.frame import stack

SCHEDULERS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)  # what they send, to all processes of a job


def frame_loader(dataset: Dataset, workers: int, **options: Any) -> DataLoader:
    """A loader of frames.

    Args:
        dataset: of frames. Where it is `remote`, workers are not forks of this process, in which what talks to object
            stores would wait for ever, but of one that has done nothing but the imports.
        workers: processes; 0: this one reads.
        options: others of `DataLoader`.
    """
    if workers and getattr(dataset, "remote", False):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", type(dataset).__module__])
        options["multiprocessing_context"] = context
    return DataLoader(dataset, num_workers=workers, collate_fn=stack, worker_init_fn=_leave_signals, **options)


def _leave_signals(worker: int) -> None:
    """To the process whose worker it is: it ends with that one."""
    for number in SCHEDULERS:
        signal.signal(number, signal.SIG_IGN)
