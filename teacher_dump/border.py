"""The border to a teacher of anyone's: it is built from its configuration here, asked, and its answers are checked.

What is meant beyond doubt is taken as it is meant: other floating-point types, other devices, gradients. Whatever else
is no `TeacherPrediction` on the teacher's grid is refused with what was found and the likely fix.

Letters: B batch, X Y Z voxel axes, C classes, V voxels, G Gaussians.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from itertools import permutations
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from distill.classes import ClassSet
from distill.errors import InputError
from distill.frame import Frame
from distill.gaussians import Gaussians
from distill.grids import VoxelGrid
from distill.located import located
from distill.networks.prediction import FeatureKind
from distill.signals import GaussianKind, PointKind
from teacher_dump.teachers import Teacher, TeacherPrediction

# By how much the probabilities of a voxel may miss 1: bfloat16 needs a third of it, and the store's check allows for it
_SUM_TOLERANCE = 0.02
_GAUSSIAN_SHAPES = {"means_G3": (3,), "scales_G3": (3,), "rotations_G4": (4,), "opacities_G": (), "semantics_GS": (18,)}


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) > 0


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


def _is_size(value: Any) -> bool:
    return isinstance(value, Sequence | np.ndarray) and len(value) == 2 and all(map(_is_count, value))


# what a teacher may ask of a sample: whether its value is possible, and what would be
_INPUTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "image_size": (_is_size, "[H, W] in pixels"),
    "lidar": (_is_flag, "True or False"),
    "depth_stride": (lambda value: value is None or _is_count(value), "pixels per cell, or None"),
    "bicubic": (_is_flag, "True or False"),
    "calibration": (_is_flag, "True or False"),
    "history": (
        lambda value: _is_count(value) or (value == 0 and not _is_flag(value)),
        "a number of earlier keyframes, 0 for none",
    ),
}
_OPTIONAL = {"bicubic", "calibration", "history"}


def open_teacher(config: DictConfig) -> Teacher:
    """Build the teacher that a `teacher` node describes. Modules in the working folder can be imported.

    Raises:
        InputError: there is no such class, it does not take these arguments, or is no `Teacher`.
    """
    node = OmegaConf.to_container(config, resolve=True)
    assert isinstance(node, dict)
    where = f"teacher._target_={node['_target_']}"
    try:
        signature = inspect.signature(located(node["_target_"], where))
        if "name" not in signature.parameters:
            del node["name"]
        signature.bind(**{str(key): value for key, value in node.items() if not str(key).startswith("_")})
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {error}; arguments are given with +teacher.ARGUMENT=VALUE") from error
    teacher: Teacher = instantiate(OmegaConf.create({"teacher": node}).teacher)
    _check_members(teacher, where)
    return teacher


def place(teacher: Teacher, device: torch.device) -> Teacher:
    """The teacher on a device.

    Raises:
        InputError: its `to` does not return it.
    """
    placed = teacher.to(device)
    if not hasattr(placed, "predict"):
        raise InputError(f"{_name(teacher)}.to returns a {_name(placed)}: let it return the teacher itself")
    return placed


def ask(teacher: Teacher, frame: Frame, classes: ClassSet, device: torch.device) -> TeacherPrediction:
    """What the teacher says about a batch, checked; what it raises keeps its traceback.

    Returns:
        float32 on `device` without gradients; uniform where the teacher covers nothing.

    Raises:
        InputError: it is no `TeacherPrediction` of log-probabilities on the teacher's grid.
    """
    tokens = frame.token
    try:
        prediction = teacher.predict(copy.deepcopy(frame))  # in which it may change what it likes
    except Exception as error:
        error.add_note(f"raised by {_name(teacher)}.predict, keyframe {', '.join(tokens)}")
        raise
    if not isinstance(prediction, TeacherPrediction):
        raise InputError(
            f"{_name(teacher)}.predict returns a {_name(prediction)}: let it return a "
            "teacher_dump.teachers.TeacherPrediction"
        )
    try:
        shape = (len(tokens), *teacher.grid.shape, len(classes))
        voxel_BXYZC, covered_BXYZ = _voxels(prediction.voxel_log_probs_BXYZC, shape), None
        # copied, as is all of it: a teacher may answer again and again in the same memory while this is being written
        voxel_BXYZC = voxel_BXYZC.to(device, torch.float32, copy=True)
        if prediction.covered_BXYZ is not None:
            covered_BXYZ = _coverage(prediction.covered_BXYZ, shape[:4]).to(device, copy=True)
            voxel_BXYZC = voxel_BXYZC.masked_fill(~covered_BXYZ.unsqueeze(-1), -math.log(len(classes)))
        _check_values(voxel_BXYZC)
        gaussians = prediction.gaussians
        if gaussians is not None:
            gaussians = _gaussians(gaussians, len(tokens), device)
        if not isinstance(prediction.more, Mapping):
            raise InputError(
                f"more is a {_name(prediction.more)}: give a dict, name of a signal -> one item per keyframe"
            )
        more = {name: _copied(value, device) for name, value in prediction.more.items()}
    except InputError as error:
        raise InputError(f"{_name(teacher)}.predict, keyframe {', '.join(tokens)}: {error}") from error
    return TeacherPrediction(voxel_BXYZC, covered_BXYZ, gaussians, more)


def _check_members(teacher: Teacher, where: str) -> None:
    """Raise InputError unless the object has what a `Teacher` must have."""
    absent = [name for name in ("grid", "inputs", "checkpoint_sha256", "to", "predict") if not hasattr(teacher, name)]
    if absent:
        raise InputError(
            f"{where} makes a {_name(teacher)} without {', '.join(absent)}: see teacher_dump.teachers.Teacher"
        )
    kinds: dict[str, Any] = {"grid": VoxelGrid, "inputs": Mapping, "checkpoint_sha256": str}
    kinds |= {"gaussians": GaussianKind | None, "points": PointKind | None}
    kinds |= {"features": FeatureKind | None, "voxel_features": FeatureKind | None}
    kinds |= {"identity": Mapping | None}
    for name, kind in kinds.items():
        value = getattr(teacher, name, None)
        if not isinstance(value, kind):
            raise InputError(f"{where}: its {name} is a {_name(value)}: see teacher_dump.teachers.Teacher")
    for name in ("read", "file"):
        if not callable(getattr(teacher, name, callable)):
            raise InputError(f"{where}: its {name} is no method: see teacher_dump.teachers.Teacher")
    for name in {**teacher.inputs, **_INPUTS}:
        possible, words = _INPUTS.get(name, (None, ""))
        if possible is None:
            raise InputError(
                f"{where}: its inputs ask for {name!r}, which a sample cannot have: {', '.join(_INPUTS)} only"
            )
        if name not in teacher.inputs and name not in _OPTIONAL:
            raise InputError(f"{where}: its inputs lack {name!r}: {words}")
        if name in teacher.inputs and not possible(teacher.inputs[name]):
            raise InputError(f"{where}: its inputs ask for {name}={teacher.inputs[name]!r}: let it be {words}")


def _voxels(values: Any, shape: tuple[int, ...]) -> Tensor:
    """The voxels without gradients, if they are floating-point numbers of this shape."""
    what = "voxel_log_probs_BXYZC"
    tensor = _tensor(values, what)
    if not tensor.is_floating_point():
        raise InputError(
            f"{what} is {_dtype(tensor)}, so class ids rather than log-probabilities: give "
            f"torch.nn.functional.one_hot(ids, {shape[-1]}).float().log() if it knows nothing but these"
        )
    _check_shape(tensor, shape, what)
    return tensor.detach()


def _coverage(values: Any, shape: tuple[int, ...]) -> Tensor:
    what = "covered_BXYZ"
    tensor = _tensor(values, what)
    if tensor.dtype != torch.bool:
        raise InputError(f"{what} is {_dtype(tensor)}: give bool, for example weight > 0")
    _check_shape(tensor, shape, what)
    if not tensor.flatten(1).any(1).all():
        raise InputError(f"{what} is False everywhere: a teacher that has modelled nothing teaches nothing")
    return tensor


def _gaussians(values: Any, count: int, device: torch.device) -> list[Gaussians]:
    """The Gaussians of each keyframe, float32 on the device without gradients."""
    if not isinstance(values, list | tuple) or not all(isinstance(value, Gaussians) for value in values):
        raise InputError("gaussians must be a list of distill.gaussians.Gaussians, one per keyframe, or None")
    if len(values) != count:
        raise InputError(f"gaussians holds {len(values)} of them for {count} keyframes: one per keyframe")
    return [_checked(value, device) for value in values]


def _checked(gaussians: Gaussians, device: torch.device) -> Gaussians:
    tensors = {
        field.name: getattr(gaussians, field.name) for field in fields(gaussians) if field.name in _GAUSSIAN_SHAPES
    }
    for name, value in tensors.items():
        tensor = _tensor(value, f"gaussians.{name}")
        _check_shape(tensor, (len(gaussians.means_G3), *_GAUSSIAN_SHAPES[name]), f"gaussians.{name}")
        tensors[name] = tensor.detach().to(device, torch.float32, copy=True)
    return replace(gaussians, **tensors)


def _copied(value: Any, device: torch.device) -> Any:
    """The same, its tensors on the device without gradients."""
    if isinstance(value, Tensor):
        return value.detach().to(device, copy=True)
    if isinstance(value, list | tuple):
        return [_copied(item, device) for item in value]
    return copy.deepcopy(value)


def _check_values(voxel_BXYZC: Tensor) -> None:
    """Raise InputError unless each voxel holds log-probabilities of its classes; -inf is a probability of 0."""
    sum_BXYZ = voxel_BXYZC.exp().sum(-1)
    wrong_BXYZ = ~((sum_BXYZ - 1).abs() <= _SUM_TOLERANCE)  # of NaN, too
    if not wrong_BXYZ.any():
        return
    values_VC, sum_V = voxel_BXYZC[wrong_BXYZ], sum_BXYZ[wrong_BXYZ]
    if values_VC.isnan().any() or values_VC.isposinf().any():
        told = "NaN or infinity: check the checkpoint and what the teacher is given"
    elif values_VC.isneginf().all():
        told = "a probability of 0 for each class: where the teacher says nothing, let covered_BXYZ be False"
    elif (values_VC >= 0).all() and ((values_VC.sum(1) - 1).abs() <= _SUM_TOLERANCE).all():
        told = "probabilities, not their logarithms: take .log()"
    else:
        told = (
            f"no log-probabilities, as their exponentials sum to {float(sum_V.min()):.3g} .. {float(sum_V.max()):.3g} "
            "and not to 1: are they logits? Then take .log_softmax(-1)"
        )
    raise InputError(f"{len(sum_V)} of {sum_BXYZ.numel()} voxels hold {told}; nothing was written for it")


def _tensor(values: Any, what: str) -> Tensor:
    if not isinstance(values, Tensor):
        fix = "torch.from_numpy makes one of it" if isinstance(values, np.ndarray) else "give one"
        raise InputError(f"{what} is no torch.Tensor but a {_name(values)}: {fix}")
    return values


def _check_shape(tensor: Tensor, expected: tuple[int, ...], what: str) -> None:
    """Raise InputError with the likely fix unless the shape is as expected; the letters of `what` name its axes."""
    found = tuple(tensor.shape)
    if found == expected:
        return
    letters = what.rpartition("_")[2]
    orders = [order for order in permutations(range(len(expected))) if tuple(expected[axis] for axis in order) == found]
    if orders:
        names = ["".join(letters[axis] for axis in order) for order in orders]
        fixes = [f".permute{tuple(map(order.index, range(len(order))))}" for order in orders]
        told = f"are its axes {' or '.join(names)}? Then take {' or '.join(fixes)}"
    elif found == expected[1:]:
        told = f"the axis {letters[0]} is missing: take .unsqueeze(0)"
    elif len(found) == len(expected) and found[:-1] == expected[:-1]:
        told = f"{found[-1]} instead of {expected[-1]} along {letters[-1]}; a class that it does not know gets -inf"
    else:
        told = f"give the axes {', '.join(letters)}"
    raise InputError(f"{what} has the shape {found}, not {expected}: {told}")


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _name(value: Any) -> str:
    return type(value).__name__
