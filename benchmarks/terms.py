"""What the terms that listen to teachers cost: forward and backward of one made-up Occ3D keyframe, and peak memory.

python benchmarks/terms.py [--device cuda] [--threads 1] [NAME ...]

Names are those of conf/kd; each term is timed in the first one that has it as it is. Memory is what a term holds beside
what the network and the teacher say, its gradients included.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from networks import keyframe
from omegaconf import OmegaConf

from distill.bev import bev_log_probs
from distill.classes import OCC3D_CLASSES
from distill.frame import Frame, Told
from distill.grids import OCC3D
from distill.losses.objective import Lesson, Term
from distill.networks.prediction import FeatureMap, Occupancy
from distill.signals import SIGNALS
from distill.signals.bev import BevProbs
from distill.signals.features import FeatureCodes, Features
from distill.signals.seen import SeenVoxels
from distill.signals.voxels import LOG_PROBS, VoxelCodes
from distill.teaching.taught import Taught
from student.evaluation.cost import device_name, milliseconds, peak_bytes

CONF = Path(__file__).parent.parent / "conf"
WARMUP = 1
VISIBLE = 87_000  # voxels of mask_camera in a keyframe
TEACHER_CHANNELS, STUDENT_CHANNELS = 48, 128
FREE, NAMES, SHAPE = OCC3D_CLASSES.free, OCC3D_CLASSES.names, OCC3D.shape


def taught_keyframe(device: torch.device) -> Frame:
    """A labelled keyframe of flat ground with things on it, and a teacher who is right about nine voxels of ten."""
    random = torch.Generator().manual_seed(0)
    semantics = torch.full(SHAPE, FREE)
    semantics[..., 2] = NAMES.index("driveable_surface")
    things = torch.rand(SHAPE, generator=random) < 0.03
    semantics[things] = torch.randint(0, FREE, (int(things.sum()),), generator=random)
    x, y = (torch.arange(side) - side / 2 + 0.5 for side in SHAPE[:2])
    near = torch.hypot(x[:, None, None], y[None, :, None]).expand(SHAPE) + torch.arange(SHAPE[2]) * 4
    mask = near <= near.flatten().kthvalue(VISIBLE).values
    wrong = torch.rand(SHAPE, generator=random) < 0.1
    found = torch.where(wrong, torch.randint(0, FREE + 1, SHAPE, generator=random), semantics)
    scores = 6 * F.one_hot(found, len(NAMES)) + torch.rand(*SHAPE, len(NAMES), generator=random)
    log_probs_XYZC = scores.log_softmax(-1)
    levels = torch.from_numpy(LOG_PROBS)
    codes = (levels.numel() - 1 - torch.searchsorted(levels.flip(0), log_probs_XYZC).clamp_max(255)).byte()
    features = torch.randint(0, 256, (1, *SHAPE[:2], TEACHER_CHANNELS), dtype=torch.uint8, generator=random)
    signals = {
        "voxels": VoxelCodes(codes=codes[None], table=levels[None]),
        "bev": BevProbs(probs=bev_log_probs(log_probs_XYZC[None], FREE).exp()),
        "seen": SeenVoxels(seen=mask[None]),
        "features": FeatureCodes(codes=features, scales=torch.tensor([0.0, 0.01]).repeat(1, TEACHER_CHANNELS, 1)),
    }
    told = Told(taught=torch.tensor([True]), covered=torch.ones(1, *SHAPE, dtype=torch.bool), signals=signals)
    seen_by = keyframe(OmegaConf.create({"image_size": [256, 704], "lidar": False, "history": 0}), torch.device("cpu"))
    return Frame(
        **{name: getattr(seen_by, name) for name in ("images", "intrinsics", "cam2ego")},
        token=["a"],
        semantics=semantics.byte()[None],
        mask_camera=mask[None],
        mask_lidar=mask[None],
        labelled=torch.tensor([True]),
        teachers={"stored": told},
    ).to(device)


def listening_terms(names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The terms of these groups that differ, "kd.term", each with what it is built from."""
    seen: list[dict[str, Any]] = []
    for name in names:
        with initialize_config_module("conf", version_base="1.3"):
            config = compose("train", [f"kd={name}"])
        for term, node in OmegaConf.to_container(config.kd, resolve=True)["terms"].items():
            node |= {"frames": "all"} if "frames" in node else {}  # the keyframe has labels
            if node["weight"] and node not in seen:
                seen.append(node)
                yield f"{name}.{term}", node


def step(term: Term, frame: Frame, prediction: Occupancy) -> Callable[[], None]:
    """One forward and backward pass of a term, as if it were the only one."""
    signals = {name: SIGNALS[name](OCC3D, NAMES) for name in ("voxels", "bev", "seen")}
    answers = {"voxels": signals["voxels"], "columns": signals["bev"], "seen": signals["seen"]}
    answers["features"] = Features(OCC3D, NAMES, TEACHER_CHANNELS, 1)
    leaves = [prediction.voxel_logits_BXYZC, prediction.features["bev"].values, *term.parameters()]

    def run() -> None:
        teacher = Taught("stored", 1.0, frame.teachers["stored"], answers, frame, OCC3D, FREE)
        value = term(Lesson(frame, prediction, {"stored": teacher}, 0))
        torch.autograd.grad(value, leaves, allow_unused=True)

    return run


def main() -> None:
    """Print one line per term."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=sorted(file.stem for file in CONF.glob("kd/*.yaml")))
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--threads", default=1, type=int)
    parser.add_argument("--repeats", default=3, type=int)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{device_name(options.device)}, torch {torch.__version__}, {options.repeats} runs")
    print(f"{'term':40}{'ms':>8}{'MB':>8}")
    frame = taught_keyframe(options.device)
    logits, bev = torch.randn(1, *SHAPE, len(NAMES)), torch.randn(1, STUDENT_CHANNELS, *SHAPE[:2])
    student = [values.to(options.device).requires_grad_() for values in (logits, bev)]
    prediction = Occupancy(student[0], {"bev": FeatureMap(student[1], "grid", 1)})
    for name, node in listening_terms(options.names):
        term = instantiate(node).to(options.device)
        run = step(term, frame, prediction)
        memory = peak_bytes(run, options.device)
        times = milliseconds(run, options.device, WARMUP, options.repeats)
        print(f"{name:40}{statistics.median(times):8.0f}{memory / 1e6:8.0f}", flush=True)


if __name__ == "__main__":
    main()
