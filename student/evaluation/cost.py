"""What a network costs on which hardware in which precision: parameters, operations, latency and memory."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from distill.memory import freed_memory_handed_back

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): the peak of resident memory begins anew


def network_cost(
    network: nn.Module, batch: dict[str, Any], device: torch.device, precision: torch.dtype, warmup: int, runs: int
) -> dict[str, Any]:
    """What one keyframe costs, the inputs being on the device already.

    Args:
        network: in eval mode, on `device`.
        batch: collated, of one keyframe, on `device`.
        device: where it runs.
        precision: float32, or what autocast uses.
        warmup: passes ahead of those that are timed.
        runs: passes that are timed.

    Returns:
        JSON-ready: `parameters`; `gflop`, 1e9 floating-point operations (2 x multiply-add) of convolutions, matrix
        products and attention; `latency_ms` of one pass from start to end, `median` and `p95` over `runs`;
        `peak_memory_mb` (1e6 bytes), the weights and what one pass takes beside them (`peak_bytes`), None where the
        system does not tell; `device`, `precision` and `image_size` (height, width).
    """

    @torch.inference_mode()
    def forward() -> None:
        with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
            network(batch)

    with FlopCounterMode(display=False) as counter:
        forward()
    working = peak_bytes(forward, device)
    times = milliseconds(forward, device, warmup, runs)
    weights = sum(tensor.nbytes for tensor in chain(network.parameters(), network.buffers()))
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "gflop": counter.get_total_flops() / 1e9,
        "latency_ms": {"median": float(np.median(times)), "p95": float(np.percentile(times, 95)), "runs": runs},
        "peak_memory_mb": None if working is None else (weights + working) / 1e6,
        "device": device_name(device),
        "precision": precision_name(precision, device),
        "image_size": list(batch["images"].shape[-2:]),
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


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Memory that a call takes at most beside what is there already.

    On CUDA the tensors, as PyTorch's allocator counts them. On a CPU the growth of the process's resident memory, which
    is the tensors, the scratch space of libraries and a few percent of chance; other threads of the process count too.
    None elsewhere than on Linux, and where the process may not reset its peak.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    if not sys.platform.startswith("linux"):
        return None
    with freed_memory_handed_back():  # a call that reuses what was freed before would seem to take nothing
        try:
            _CLEAR_REFS.write_text(_RESET_PEAK)
        except OSError:
            return None
        before = _resident("VmRSS")
        call()
        return _resident("VmHWM") - before


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


def _resident(field: str) -> int:
    """Resident memory of this process in bytes, now (VmRSS) or at most (VmHWM)."""
    lines = _STATUS.read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
