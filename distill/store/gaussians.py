"""Gaussians as rows of rounded numbers.

A row holds mean (m), scales (m), quaternion (w, x, y, z), opacity and 18 semantics as `distill.gaussians.Gaussians` has
them, for any zarr reader to see. They are rounded as far as the voxels rendered from them permit, and what was rounded
compresses; `MAX_ERRORS` bounds what is lost.

KL(teacher || rendered from the store) stays below `MAX_MEAN_KL`, in the mean over the voxels of a keyframe. That is no
theorem but measured, on the flattest Gaussians a teacher can make, and `occ-dump` checks it. It cannot hold for those
that are so flat that det="upstream" divides by rounding errors (docs/formulas.md 7.4).

Letters: G Gaussians, K = 29 numbers of a row, S = 18 semantic channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from distill.gaussians import Gaussians
from distill.store.codec import round_bits

COLUMNS = (
    *("mean_x", "mean_y", "mean_z", "scale_1", "scale_2", "scale_3"),
    *("rotation_w", "rotation_x", "rotation_y", "rotation_z", "opacity"),
    *(f"semantics_{channel}" for channel in range(18)),
)
_MEAN, _SCALE, _ROTATION, _OPACITY, _SEMANTICS = slice(0, 3), slice(3, 6), slice(6, 10), 10, slice(11, 29)

# of a value v as decoded
MAX_ERRORS = {
    "mean": "2^-12 m along each axis",
    "scale": "2^-8 v",
    "rotation": "2.5e-4 rad",
    "opacity": "2^-7 v",
    "semantics, probabilistic": "2^-7.5 sqrt(v) or 2^-23, before they are normalised",
    "semantics, additive": "2^-6",
}
# KL(teacher || rendered from the store), mean over the voxels of a keyframe, nats, at T = 1.
MAX_MEAN_KL = 1e-4

_MEAN_STEP, _ROTATION_STEP, _SCORE_STEP = 2.0**-11, 2.0**-13, 2.0**-5
_SCALE_BITS, _OPACITY_BITS = 8, 7


@dataclass(frozen=True)
class GaussianKind:
    """What the Gaussians of all keyframes have in common.

    Attributes:
        count: how many a keyframe has at most.
        form, reach, det: see `Gaussians`.
    """

    count: int
    form: Literal["probabilistic", "additive"]
    reach: float
    det: Literal["upstream", "stable"]


def encode_gaussians(gaussians: Gaussians, kind: GaussianKind) -> np.ndarray:
    """The rows of a keyframe, float32 (kind.count, K), rounded; rows of NaN fill it up.

    Raises:
        ValueError: the Gaussians are of another kind, or not all numbers.
    """
    found = GaussianKind(len(gaussians.means_G3), gaussians.form, gaussians.reach, gaussians.det)
    if found.count > kind.count or (found.form, found.reach, found.det) != (kind.form, kind.reach, kind.det):
        raise ValueError(f"the Gaussians are of the kind {found}, not of the announced {kind}")
    fields = (gaussians.means_G3, gaussians.scales_G3, gaussians.rotations_G4, gaussians.opacities_G.unsqueeze(1))
    values_GK = torch.cat((*fields, gaussians.semantics_GS), 1).cpu().numpy()
    if not np.isfinite(values_GK).all():
        raise ValueError("a Gaussian is not all numbers")
    rows_GK = np.full((kind.count, len(COLUMNS)), np.nan, np.float32)
    rows_GK[: found.count] = _rounded(values_GK, kind.form)
    return rows_GK


def decode_gaussians(rows_GK: np.ndarray, kind: GaussianKind) -> Gaussians:
    """The Gaussians in rows of `encode_gaussians`, on the CPU; quaternions and probabilities are normalised."""
    rows_GK = rows_GK[~np.isnan(rows_GK[:, 0])]
    rotations_G4, semantics_GS = rows_GK[:, _ROTATION], rows_GK[:, _SEMANTICS]
    rotations_G4 = rotations_G4 / np.linalg.norm(rotations_G4, axis=1, keepdims=True)
    if kind.form == "probabilistic":
        semantics_GS = semantics_GS / semantics_GS.sum(1, keepdims=True)
    return Gaussians(
        _tensor(rows_GK[:, _MEAN]),
        _tensor(rows_GK[:, _SCALE]),
        _tensor(rotations_G4),
        _tensor(rows_GK[:, _OPACITY]),
        _tensor(semantics_GS),
        kind.form,
        kind.reach,
        kind.det,
    )


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def _rounded(values_GK: np.ndarray, form: str) -> np.ndarray:
    rounded_GK = np.empty_like(values_GK)
    rounded_GK[:, _MEAN] = _to_steps(values_GK[:, _MEAN], _MEAN_STEP)
    rounded_GK[:, _SCALE] = round_bits(values_GK[:, _SCALE], _SCALE_BITS)
    rounded_GK[:, _ROTATION] = _to_steps(values_GK[:, _ROTATION], _ROTATION_STEP)
    rounded_GK[:, _OPACITY] = round_bits(values_GK[:, _OPACITY], _OPACITY_BITS)
    semantics_GS = values_GK[:, _SEMANTICS]
    step = _probability_step(semantics_GS) if form == "probabilistic" else _SCORE_STEP
    rounded_GK[:, _SEMANTICS] = _to_steps(semantics_GS, step)
    return rounded_GK


def _probability_step(probs: np.ndarray) -> np.ndarray:
    """2^-7 sqrt(p), but a power of two: so the roots, and the KL divergence, err alike for all p."""
    return np.exp2(np.round(np.log2(np.maximum(probs, 2.0**-30)) / 2) - 7)


def _to_steps(values: np.ndarray, step: np.ndarray | float) -> np.ndarray:
    """The nearest multiples of a step that is a power of two: exact in float32."""
    return np.round(values / step) * step + 0.0  # no -0, whose sign would not compress
