"""Batches of frames, read by worker processes."""

from __future__ import annotations

import multiprocessing
import signal
from typing import Any

from torch.utils.data import DataLoader, Dataset

from distill.frame import stack

SAVE = (signal.SIGUSR1, signal.SIGUSR2)  # what schedulers send to all processes of a job before its end


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
    return DataLoader(dataset, num_workers=workers, collate_fn=stack, **{"worker_init_fn": ignore_save} | options)


def ignore_save(worker: int) -> None:
    """Leave `SAVE` to the process whose worker this is."""
    for number in SAVE:
        signal.signal(number, signal.SIG_IGN)
