"""What a network costs on which hardware in which precision: parameters, operations, latency and memory."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate, chain, cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from distill.frame import Frame
from distill.networks.network import streamed

_SILENT = "99"  # of the profiler's library, which otherwise tells when it starts and stops


def network_cost(
    network: nn.Module, frame: Frame, device: torch.device, precision: torch.dtype, warmup: int, runs: int
) -> dict[str, Any]:
    """What one keyframe costs, the inputs being on the device already, and what a network remembers of its past.

    Args:
        network: in eval mode, on `device`.
        frame: a batch of one keyframe, on `device`.
        device: where it runs.
        precision: float32, or what autocast uses.
        warmup: passes ahead of those that are timed.
        runs: passes that are timed.

    Returns:
        JSON-ready: `parameters`; `gflop`, 1e9 floating-point operations (2 x multiply-add) of convolutions, matrix
        products and attention; `latency_ms` of one pass from start to end, `median` and `p95` over `runs`;
        `peak_memory_mb` (1e6 bytes), the weights and what one pass takes beside them (`peak_bytes`); `device`,
        `precision` and `image_size` (height, width).
    """

    answer = streamed(network, calls=1)
    # each call is about a keyframe that the last one did not see: its images are not remembered, those of its past are
    turns = cycle([frame, replace(frame, images=255 - frame.images)])

    @torch.inference_mode()
    def forward() -> None:
        with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
            answer(next(turns))

    forward()  # the past, too
    with FlopCounterMode(display=False) as counter:
        forward()
    working = peak_bytes(forward, device)
    times = milliseconds(forward, device, warmup, runs)
    weights = sum(tensor.nbytes for tensor in chain(network.parameters(), network.buffers()))
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "gflop": counter.get_total_flops() / 1e9,
        "latency_ms": {"median": float(np.median(times)), "p95": float(np.percentile(times, 95)), "runs": runs},
        "peak_memory_mb": (weights + working) / 1e6,
        "device": device_name(device),
        "precision": precision_name(precision, device),
        "image_size": list(frame.images.shape[-2:]),
    }


def milliseconds(call: Callable[[], object], device: torch.device, warmup: int, runs: int) -> list[float]:
    """Wall time of each of `runs` calls, one after the other and each waited for; `warmup` calls go ahead of them."""
    for _ in range(warmup):
        call()
    times = []
    for _ in range(runs):
        _wait_for(device)
        start = time.perf_counter()
        call()
        _wait_for(device)
        times.append(1e3 * (time.perf_counter() - start))
    return times


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The tensors that a call holds at most at one time beside those that were there before, as PyTorch counts them.

    Scratch space of the libraries behind PyTorch is not in it.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", _SILENT)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    assert profiled.profiler is not None and profiled.profiler.kineto_results is not None
    changes = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in changes), initial=0))


def device_name(device: torch.device) -> str:
    """The GPU, or the processor with the number of threads that PyTorch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()} ({torch.get_num_threads()} threads)"


def cpu_name() -> str:
    """The processor's name where Linux tells it, otherwise its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def precision_name(precision: torch.dtype, device: torch.device) -> str:
    """The dtype, and whether convolutions round their inputs to TF32, as cuDNN does by default since Ampere."""
    name = str(precision).removeprefix("torch.")
    if precision != torch.float32 or device.type != "cuda" or not torch.backends.cudnn.allow_tf32:
        return name
    return f"{name}, convolutions in TF32" if torch.cuda.get_device_capability(device) >= (8, 0) else name


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
