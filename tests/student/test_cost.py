"""What is reported as a network's cost, on networks whose cost is known."""

from __future__ import annotations

import importlib.util
import platform
import time
from pathlib import Path

import opus
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from distill.frame import Frame
from student.evaluation.cost import cpu_name, milliseconds, network_cost, peak_bytes, precision_name

CPU = torch.device("cpu")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MEGABYTE = 1_000_000


class Known(nn.Module):
    """Two matrix products, and memory that is held and memory that is only passed through."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 100, bias=False), nn.Linear(100, 10, bias=False)
        self.register_buffer("ballast", torch.ones(5 * MEGABYTE // 4))
        self.dtypes = []

    def forward(self, frame):
        for _ in range(2):
            torch.ones(20 * MEGABYTE // 4)
        found = self.second(self.first(frame.images.float()))
        self.dtypes.append(found.dtype)
        assert torch.is_inference_mode_enabled()
        return found


FRAME = Frame(images=torch.ones(1, 6, 3, 32, 64))


def test_known_network():
    network = Known().eval()
    found = network_cost(network, FRAME, CPU, torch.float32, warmup=1, runs=5)
    assert found["parameters"] == 64 * 100 + 100 * 10
    assert found["gflop"] == pytest.approx(2 * 6 * 3 * 32 * (64 * 100 + 100 * 10) / 1e9)
    assert found["precision"] == "float32"
    assert found["image_size"] == [32, 64]
    assert 0 < found["latency_ms"]["median"] <= found["latency_ms"]["p95"]
    assert found["latency_ms"]["runs"] == 5
    assert found["device"] == f"{cpu_name()} ({torch.get_num_threads()} threads)"
    assert set(network.dtypes) == {torch.float32}


def test_the_precision_that_is_named_is_the_one_that_runs():
    network = Known().eval()
    assert network_cost(network, FRAME, CPU, torch.bfloat16, warmup=1, runs=1)["precision"] == "bfloat16"
    assert set(network.dtypes) == {torch.bfloat16}


def test_peak_memory_is_the_weights_and_the_largest_moment_of_a_pass():
    found = network_cost(Known().eval(), FRAME, CPU, torch.float32, warmup=1, runs=1)
    # the buffer, 20 of the 40 MB that pass through, and small tensors
    assert found["peak_memory_mb"] == pytest.approx(5 + 20, abs=0.2)


@pytest.mark.parametrize("size", [8, 64])
def test_peak_of_one_call(size):
    def call():
        before = torch.ones(size * MEGABYTE // 8)
        return torch.cat([before, before])

    assert peak_bytes(call, CPU) == size * MEGABYTE * 3 // 2


def test_every_run_but_the_first_ones_is_timed_by_itself():
    sleeps = iter([0.9, 0.0, 0.3, 0.0])
    times = milliseconds(lambda: time.sleep(next(sleeps)), CPU, warmup=1, runs=3)
    assert next(sleeps, None) is None
    assert len(times) == 3
    assert 300 <= times[1] < 900
    assert times[0] + times[2] < 300


class Paced(nn.Module):
    """Pass after pass takes 1, 2, ... 101, 1, 2, ... ms of a clock that stands still otherwise."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.passes, self.seconds = 0, 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.seconds)

    def forward(self, frame):
        self.seconds += (self.passes % 101 + 1) / 1000
        self.passes += 1


def test_median_and_p95(monkeypatch):
    found = network_cost(Paced(monkeypatch), FRAME, CPU, torch.float32, warmup=1, runs=101)
    assert found["latency_ms"] == {"median": pytest.approx(51), "p95": pytest.approx(96), "runs": 101}


@pytest.mark.parametrize("threads", [1, 3])
def test_a_cpu_is_told_with_the_threads_that_compute(threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = network_cost(Known().eval(), FRAME, CPU, torch.float32, warmup=0, runs=1)["device"]
    finally:
        torch.set_num_threads(before)
    name, told = found.rsplit(" (", 1)
    assert told == f"{threads} threads)"
    cpuinfo = Path("/proc/cpuinfo")
    known = cpuinfo.read_text() if cpuinfo.exists() else ""
    assert name and name in known + platform.machine()


def test_half_precision_has_its_name():
    assert precision_name(torch.float16, CPU) == "float16"


def test_the_keyframe_is_a_new_one_to_a_network_that_remembers_images():
    """Its own image features are counted, those of its past are not."""
    network, frame = opus.small().eval(), opus.batch(1)
    with torch.inference_mode(), FlopCounterMode(display=False) as both:
        network(frame)
    with torch.inference_mode(), FlopCounterMode(display=False) as past:
        network.image_features(frame.past[0].images, frame.channels[0])
    found = network_cost(network, frame, CPU, torch.float32, warmup=0, runs=1)
    assert found["gflop"] == pytest.approx((both.get_total_flops() - past.get_total_flops()) / 1e9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_known_network_on_a_gpu():
    device = torch.device("cuda")
    network = Known().eval().to(device)
    found = network_cost(network, FRAME.to(device), device, torch.float32, warmup=1, runs=3)
    assert found["peak_memory_mb"] == pytest.approx(5, abs=2)
    assert found["device"] == torch.cuda.get_device_name()
    assert peak_bytes(lambda: torch.ones(64 * MEGABYTE // 4, device=device), device) == pytest.approx(
        64 * MEGABYTE, rel=0.05
    )


def test_the_benchmark_prints_what_a_network_costs():
    spec = importlib.util.spec_from_file_location("networks", BENCHMARKS / "networks.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    for student, size in (("demo", (1.65, 9.3)), ("demo_2f", (1.69, 9.9))):  # of a step, the past being remembered
        subject = benchmark.Subject(student, CPU)
        subject.run(0, 1, train=True)
        name, millions, gflop, *measured = subject.row().split()
        assert name == student
        assert (float(millions), float(gflop)) == pytest.approx(size, abs=0.1)
        assert len(measured) == 4  # median, p95, MB, training
