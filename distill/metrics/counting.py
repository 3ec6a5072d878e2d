"""Counting confusion matrices, fast.

Letters: X Y Z voxel axes, C classes (label, then prediction), G groups of voxels, V voxels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distill.classes import ClassSet
from distill.errors import InputError
from kernels.compiled import compiled

Array = Tensor | np.ndarray


def volumes_of_keyframe(device: torch.device, **volumes: Array) -> list[Tensor]:
    """The volumes of one keyframe on a device; `mask_XYZ` becomes bool.

    Raises:
        InputError: they differ in shape, or `prediction_XYZ` or `semantics_XYZ`, class ids, are not uint8.
    """
    tensors = {name: torch.as_tensor(volume, device=device) for name, volume in volumes.items()}
    if len({tensor.shape for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise InputError(f"volumes of one keyframe differ in shape: {shapes}; give all of them on one grid")
    for name in tensors.keys() & {"prediction_XYZ", "semantics_XYZ"}:
        if tensors[name].dtype != torch.uint8:
            raise InputError(f"{name} is {tensors[name].dtype}: give class ids as uint8 (of scores, the argmax)")
    return [tensor.bool() if name == "mask_XYZ" else tensor for name, tensor in tensors.items()]


def count_confusion(
    prediction: Tensor,
    semantics: Tensor,
    mask: Tensor,
    classes: ClassSet,
    group: Tensor | None = None,
    groups: int = 1,
) -> Tensor:
    """Confusion matrices of the voxels of one keyframe, one for each group of voxels.

    Voxels outside the mask, outside all groups, and with the label `classes.ignored` or one beyond the class set are
    not counted.

    Args:
        prediction, semantics: class ids, uint8, of one shape.
        mask: bool, the voxels to count.
        classes: the class set of both.
        group: uint8, the group of each voxel; one that is not below `groups` is in none. None: all are in group 0.
        groups: how many groups there are.

    Returns:
        int64 (G, C, C) on the device of the prediction.

    Raises:
        InputError: a counted voxel is predicted as a class beyond the class set.
    """
    group = torch.zeros_like(semantics) if group is None else group
    count = _count_cuda if prediction.device.type == "cuda" else _count_cpu
    beyond = len(classes)  # one row and one column for everything that is not a class
    counts_GCC = count(prediction, semantics, mask, group, groups, beyond + 1)[:, :beyond]
    if classes.ignored < beyond:
        counts_GCC[:, classes.ignored] = 0
    if counts_GCC[..., beyond].any():
        raise InputError(
            f"a prediction holds class {int(prediction[mask].max())}, but {classes.name} has {beyond} classes (0 to "
            f"{beyond - 1}): score it with its own class set"
        )
    return counts_GCC[..., :beyond].contiguous()


def _count_cuda(
    prediction: Tensor, semantics: Tensor, mask: Tensor, group: Tensor, groups: int, classes: int
) -> Tensor:
    counted = mask & (group < groups)
    label_V, prediction_V = (ids[counted].long().clamp(max=classes - 1) for ids in (semantics, prediction))
    pair_V = (group[counted].long() * classes + label_V) * classes + prediction_V
    return torch.bincount(pair_V, minlength=groups * classes * classes).view(groups, classes, classes)


def _count_cpu(prediction: Tensor, semantics: Tensor, mask: Tensor, group: Tensor, groups: int, classes: int) -> Tensor:
    counts_GCC = np.zeros((groups, classes, classes), dtype=np.int64)
    prediction_V, semantics_V, mask_V, group_V = (
        volume.contiguous().flatten().numpy() for volume in (prediction, semantics, mask, group)
    )
    _count(prediction_V, semantics_V, mask_V, group_V, counts_GCC)
    return torch.from_numpy(counts_GCC)


@compiled(nogil=True)
def _count(prediction_V, semantics_V, mask_V, group_V, counts_GCC):  # type: ignore[no-untyped-def]
    groups, classes, _ = counts_GCC.shape
    for v in range(len(prediction_V)):
        if mask_V[v] and group_V[v] < groups:
            label, prediction = min(semantics_V[v], classes - 1), min(prediction_V[v], classes - 1)
            counts_GCC[group_V[v], label, prediction] += 1
