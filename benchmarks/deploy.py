"""What a student costs on this processor, by PyTorch and as an ONNX file: latency, memory, size, one run side by side.

python benchmarks/deploy.py [NAME ...] [--threads 1 2] [--rounds 10] [--compile]

Networks of conf/student with random weights, batch 1, six cameras, and a past that is remembered. All take turns, call
by call, so that a machine that is busy for a while is so for all of them. Memory is that of a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

NAMES = ("effnet_lite0", "effnet_lite0_small", "effnet_lite0_2f", "demo", "demo_2f", "flashocc_m0", "flashocc_m1")
RUNTIMES = ("eager", "compiled", "onnxruntime", "table", "int8", "openvino")  # the middle three: ONNX Runtime
FILES = {"onnxruntime": [], "table": ["onnx.pool=table"], "int8": ["onnx=int8"]}
WARMUP = 2
Call = Callable[[], object]
Key = TypeVar("Key")


def eager(name: str, threads: int, compiled: bool = False) -> Call:
    """PyTorch as occ-eval runs it."""
    import torch
    from networks import keyframe, load

    from distill.networks.network import streamed

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network, inputs = load(name)
    batch = keyframe(inputs, torch.device("cpu"))
    answer = streamed(network.eval(), calls=1)
    if compiled:
        network.forward = torch.compile(network.forward)  # type: ignore[method-assign]

    @torch.inference_mode()
    def call() -> object:
        torch.set_num_threads(threads)
        return answer(batch).voxel_logits_BXYZC.argmax(-1).to(torch.uint8)

    return call


def onnxruntime(file: Path, threads: int) -> Call:
    """ONNX Runtime, without PyTorch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    feeds = dict(np.load(file.with_suffix(".npz")))
    names = [each.name for each in session.get_outputs() if each.name != "logits"]
    return lambda: session.run(names, feeds)


def openvino(file: Path, threads: int) -> Call:
    """OpenVINO in float32; by default it may compute in bfloat16 where the processor can."""
    import openvino

    config = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.compile_model(str(file), "CPU", config)
    feeds = dict(np.load(file.with_suffix(".npz")))
    return lambda: compiled(feeds)


def call_of(name: str, runtime: str, threads: int, folder: Path) -> Call:
    """What is measured."""
    if runtime in ("eager", "compiled"):
        return eager(name, threads, compiled=runtime == "compiled")
    if runtime == "openvino":
        return openvino(folder / f"{name}-onnxruntime.onnx", threads)
    return onnxruntime(folder / f"{name}-{runtime}.onnx", threads)


def export(name: str, overrides: list[str], file: Path) -> None:
    """Write the ONNX file of a network with random weights, and inputs for it beside it."""
    import torch
    from hydra import compose, initialize_config_module
    from hydra.utils import instantiate
    from networks import keyframe, load
    from omegaconf import OmegaConf

    from distill.checkpoint import Checkpoint
    from student.export.int8 import TrainingFrames
    from student.export.onnx_file import write_onnx

    with initialize_config_module("conf", version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("common", ["+grid=occ3d", f"+student={name}"]), resolve=True)
        settings = compose("export", overrides).onnx
    torch.manual_seed(0)
    state = instantiate(config["student"]["network"]).state_dict()
    frames = None if settings.int8 is None else TrainingFrames([keyframe(load(name)[1], torch.device("cpu"))], [])
    write_onnx(Checkpoint(file, "", config, "ema", state, {}), settings, file, frames)
    np.savez(file.with_suffix(".npz"), **feeds(name, file))


def feeds(name: str, file: Path) -> dict[str, np.ndarray]:
    """The inputs that `eager` has, for an ONNX file: the second keyframe, the first is remembered."""
    import torch
    from networks import keyframe, load

    from student.export.runtime import OnnxFile
    from student.export.table import geometry

    onnx = OnnxFile(file)
    torch.manual_seed(0)
    _, inputs = load(name)
    frame = keyframe(inputs, torch.device("cpu"))
    given = {key: getattr(frame, key).contiguous().numpy() for key in ("images", "intrinsics", "cam2ego")}
    given |= geometry(given["intrinsics"], given["cam2ego"], onnx.facts["lift"])
    if onnx.facts["history"]:
        given["past"] = np.zeros((1, *onnx.inputs["past"][1:]), np.float32)
        given["ego2present"] = np.eye(4, dtype=np.float32)[None, None]
        given["remembered"] = np.ones((1, 1), bool)
    return {key: value for key, value in given.items() if key in onnx.inputs}


def peak_megabytes(name: str, runtime: str, threads: int, folder: Path) -> float:
    """Peak resident memory of a process that imports, loads and answers three times, and does nothing else."""
    command = [sys.executable, __file__, "--alone", json.dumps([name, runtime, threads, str(folder)])]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def alone(name: str, runtime: str, threads: int, folder: str) -> None:
    """What `peak_megabytes` starts."""
    call = call_of(name, runtime, threads, Path(folder))
    for _ in range(1 + WARMUP):
        call()
    status = Path("/proc/self/status").read_text()  # ru_maxrss would be that of the process that started this one
    print(int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6)


def in_turns(calls: dict[Key, Call], rounds: int) -> dict[Key, list[float]]:
    """Milliseconds of each call in each round."""
    times: dict[Key, list[float]] = {key: [] for key in calls}
    for turn in range(WARMUP + rounds):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            if turn >= WARMUP:
                times[key].append(1e3 * (time.perf_counter() - start))
    return times


def rows_of(name: str, options: argparse.Namespace, folder: Path) -> list[str]:
    """The lines of one network."""
    for runtime, override in FILES.items():
        export(name, override, folder / f"{name}-{runtime}.onnx")
    runtimes = [each for each in RUNTIMES if each != "compiled" or options.compile]
    runtimes = [each for each in runtimes if each != "openvino" or find_spec("openvino")]
    calls = {(each, n): call_of(name, each, n, folder) for each in runtimes for n in options.threads}
    times = in_turns(calls, options.rounds)
    lines = []
    for (runtime, threads), found in times.items():
        median, p95 = np.percentile(found, (50, 95))
        gain = np.median(times["eager", threads]) / median
        memory, file = peak_megabytes(name, runtime, threads, folder), folder / f"{name}-{runtime}.onnx"
        size = f"{file.stat().st_size / 1e6:10.1f}" if runtime in FILES else ""
        lines.append(f"{name:20}{runtime:20}{threads:8}{median:10.0f}{p95:10.0f}{gain:8.2f}{memory:10.0f}{size}")
    return lines


def main() -> None:
    """Print one line per network, runtime and number of threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--threads", nargs="+", default=[1, 2], type=int)
    parser.add_argument("--rounds", default=10, type=int)
    parser.add_argument("--compile", action="store_true", help="torch.compile, too; wants a C++ compiler")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        alone(*json.loads(options.alone))
        return
    numbers = f"{'threads':>8}{'ms':>10}{'p95 ms':>10}{'x eager':>8}{'peak MB':>10}{'file MB':>10}"
    print(f"{'network':20}{'runtime':20}{numbers}")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.names:
            print(*rows_of(name, options, Path(folder)), sep="\n", flush=True)


if __name__ == "__main__":
    main()
