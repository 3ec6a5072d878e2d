"""What terms cost: forward and backward of one made-up Occ3D keyframe, and peak memory.

python benchmarks/terms.py [--device cuda] [--threads 1] [GROUP=NAME ...]

Choices are those of conf/kd and conf/objective, such as `kd=balanced`; each term is timed in the first one that has it
as it is, of an objective those of weight 0, too. Terms along rays are timed each with the rendering that they share;
objective=opus takes minutes on a CPU, and must be asked for.
Memory is what a term holds beside what the network and the teacher say, its gradients included.
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
from rendering import seen

from distill.bev import bev_log_probs
from distill.classes import OCC3D_CLASSES
from distill.frame import Frame, Told
from distill.grids import OCC3D
from distill.losses.objective import Lesson, Term
from distill.networks.prediction import DepthBins, FeatureMap, Occupancy
from distill.point_sets import PointSet
from distill.signals.bev import Bev, BevProbs
from distill.signals.features import FeatureCodes, Features, VoxelFeatures
from distill.signals.seen import Seen, SeenVoxels
from distill.signals.voxels import LOG_PROBS, VoxelCodes, Voxels
from distill.teaching.taught import Taught
from student.evaluation.cost import device_name, milliseconds, peak_bytes

CONF = Path(__file__).parent.parent / "conf"
GROUPS = ("kd", "objective")
WARMUP = 1
VISIBLE = 87_000  # voxels of mask_camera in a keyframe
RAYS = 12_000  # six cameras, 2000 each
IMAGE_SIZE = (256, 704)
TEACHER_CHANNELS, TEACHER_VOXEL_CHANNELS = 48, 32
STUDENT_CHANNELS, STRIDE, DEPTH_BINS = 128, 16, 88  # as student=effnet_lite0 has them
VOXEL_CHANNELS, VOXEL_STRIDE, SCALES = 32, 2, (2, 4, 8)  # and student=monoocc
QUERIES, POINTS = 600, (1, 4, 16, 32, 64, 128)  # and student=opus_t
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
    signals = {
        "voxels": VoxelCodes(codes=codes[None], table=levels[None]),
        "bev": BevProbs(probs=bev_log_probs(log_probs_XYZC[None], FREE).exp()),
        "seen": SeenVoxels(seen=mask[None]),
        "features": feature_codes((*SHAPE[:2], TEACHER_CHANNELS), random),
        "voxel_features": feature_codes((*coarser(VOXEL_STRIDE), TEACHER_VOXEL_CHANNELS), random),
    }
    told = Told(taught=torch.tensor([True]), covered=torch.ones(1, *SHAPE, dtype=torch.bool), signals=signals)
    seen_by = keyframe(OmegaConf.create({"image_size": IMAGE_SIZE, "lidar": False, "history": 0}), torch.device("cpu"))
    depth = 50 * torch.rand(1, 6, *cells(), generator=random)
    return Frame(
        **{name: getattr(seen_by, name) for name in ("images", "intrinsics", "cam2ego")},
        token=["a"],
        depth=depth.where(torch.rand(depth.shape, generator=random) < 0.4, 0),  # of the cells that LiDAR reaches
        rays=seen(RAYS, 1),
        semantics=semantics.byte()[None],
        mask_camera=mask[None],
        mask_lidar=mask[None],
        labelled=torch.tensor([True]),
        teachers={"stored": told},
    ).to(device)


def feature_codes(shape: tuple[int, ...], random: torch.Generator) -> FeatureCodes:
    """Of a map (..., C), noise."""
    codes = torch.randint(0, 256, (1, *shape), dtype=torch.uint8, generator=random)
    return FeatureCodes(codes=codes, scales=torch.tensor([0.0, 0.01]).repeat(1, shape[-1], 1))


def coarser(scale: int) -> tuple[int, ...]:
    """Sides of the grid in voxels so many times as long."""
    return tuple(side // scale for side in SHAPE)


def cells() -> tuple[int, int]:
    """Rows and columns of the student's image features."""
    height, width = IMAGE_SIZE
    return height // STRIDE, width // STRIDE


def student(device: torch.device) -> Occupancy:
    """What a network says, noise that takes gradients."""
    logits = torch.randn(1, *SHAPE, len(NAMES), device=device)
    logits[..., FREE] += 6  # most of the world
    bev = torch.randn(1, STUDENT_CHANNELS, *SHAPE[:2], device=device)
    image = torch.randn(1, 6, STUDENT_CHANNELS, *cells(), device=device)
    bins = torch.randn(1, 6, DEPTH_BINS, *cells(), device=device)
    voxels = torch.randn(1, VOXEL_CHANNELS, *coarser(VOXEL_STRIDE), device=device)
    proposals = {scale: torch.randn(1, *coarser(scale), 2, device=device) for scale in SCALES}
    points = tuple(point_set(count, device) for count in POINTS)
    for values in (logits, bev, image, bins, voxels, *proposals.values()):
        values.requires_grad_()
    features = {
        "bev": FeatureMap(bev, "grid", 1),
        "image": FeatureMap(image, "image", STRIDE),
        "voxels": FeatureMap(voxels, "grid", VOXEL_STRIDE),
    }
    return Occupancy(logits, features, DepthBins(bins, 1.0, 45.0, STRIDE), proposals=proposals, points=points)


def point_set(points: int, device: torch.device) -> PointSet:
    """So many of each query, anywhere in the grid, with scores of the occupied classes, all with gradients."""
    lower, upper = (torch.tensor(corner, device=device) for corner in (OCC3D.lower, OCC3D.upper))
    places = lower + (upper - lower) * torch.rand(1, QUERIES, points, 3, device=device)
    scores = torch.randn(1, QUERIES, points, len(NAMES) - 1, device=device)
    return places.requires_grad_(), scores.requires_grad_()


def terms_of(choices: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The terms of these choices that differ, "name.term", each with what it is built from."""
    told: list[dict[str, Any]] = []
    for choice in choices:
        group, name = choice.split("=")
        with initialize_config_module("conf", version_base="1.3"):
            config = compose("train", [choice])
        for term, node in OmegaConf.to_container(config[group], resolve=True)["terms"].items():
            listens = group == "kd"
            node |= {"frames": "all"} if "frames" in node else {}  # the keyframe has labels
            node |= {} if listens else {"weight": 1.0}
            if node["weight"] and node not in told:
                told.append(node)
                yield f"{name}.{term}", node


def step(term: Term, frame: Frame, prediction: Occupancy) -> Callable[[], None]:
    """One forward and backward pass of a term, as if it were the only one."""
    answers = {"voxels": Voxels(OCC3D, NAMES), "columns": Bev(OCC3D, NAMES), "seen": Seen(OCC3D, NAMES)}
    answers["features"] = Features(OCC3D, NAMES, TEACHER_CHANNELS, 1)
    answers["voxel_features"] = VoxelFeatures(OCC3D, NAMES, TEACHER_VOXEL_CHANNELS, VOXEL_STRIDE)
    said = [*(each.values for each in prediction.features.values()), *prediction.proposals.values()]
    said += [part for points in prediction.points for part in points if part is not None]
    leaves = [prediction.voxel_logits_BXYZC, *said, prediction.depth.logits_BNDHW, *term.parameters()]

    def run() -> None:
        teacher = Taught("stored", 1.0, frame.teachers["stored"], answers, frame, OCC3D, FREE)
        value = term(Lesson(frame, prediction, {"stored": teacher}, 0))
        torch.autograd.grad(value, leaves, allow_unused=True)

    return run


def main() -> None:
    """Print one line per term."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = sorted(f"{file.parent.name}={file.stem}" for group in GROUPS for file in CONF.glob(f"{group}/*.yaml"))
    every.remove("objective=opus")
    parser.add_argument("choices", nargs="*", default=every)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--threads", default=1, type=int)
    parser.add_argument("--repeats", default=3, type=int)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{device_name(options.device)}, torch {torch.__version__}, {options.repeats} runs")
    print(f"{'term':40}{'ms':>8}{'MB':>8}")
    frame, prediction = taught_keyframe(options.device), student(options.device)
    for name, node in terms_of(options.choices):
        term = instantiate(node).to(options.device)
        run = step(term, frame, prediction)
        memory = peak_bytes(run, options.device)
        times = milliseconds(run, options.device, WARMUP, options.repeats)
        print(f"{name:40}{statistics.median(times):8.0f}{memory / 1e6:8.0f}", flush=True)


if __name__ == "__main__":
    main()
