"""How a voxel distribution becomes a BEV distribution: one rule, the same for teachers and students.

Letters: X Y Z voxel axes, C classes; `...` is any number of leading axes (batch, or B X Y).
"""

from __future__ import annotations

import torch

# Recorded in every store, so that a store made by another rule is recognised.
BEV_RULE = "noisy_or"

# Keeps exp() of a log-probability a normal number in float32.
_LOWEST = -80.0


def bev_log_probs(
    voxel_log_probs_XYZC: torch.Tensor, free: int, covered_XYZ: torch.Tensor | None = None
) -> torch.Tensor:
    """The noisy-or of each column (docs/formulas.md 4.4), renormalised over classes.

    P(k) = 1 - prod_z(1 - p_k(z)) for an occupied class k: it is somewhere in the column;
    P(free) = prod_z p_free(z): the whole column is empty.
    Voxels that are not covered are left out of the products; a column without any other is uniform.
    Values and gradients are finite for every p in [0, 1].

    Args:
        voxel_log_probs_XYZC: natural log-probabilities (..., Z, C), any float dtype; -inf is allowed.
        free: id of the free class.
        covered_XYZ: bool (..., Z), what is known; None: everything is.

    Returns:
        Natural log-probabilities (..., C), float32 (float64 for float64 input).
    """
    wide = torch.promote_types(voxel_log_probs_XYZC.dtype, torch.float32)
    log_probs_XYZC = voxel_log_probs_XYZC.to(wide).clamp(_LOWEST, 0.0)
    is_free_C = torch.arange(log_probs_XYZC.shape[-1], device=log_probs_XYZC.device) == free
    if covered_XYZ is not None:
        certainly_free_C = torch.where(is_free_C, 0.0, _LOWEST).to(wide)
        log_probs_XYZC = torch.where(covered_XYZ.unsqueeze(-1), log_probs_XYZC, certainly_free_C)
    log_free_XY = log_probs_XYZC[..., free].sum(-1)
    scores_XYC = torch.where(is_free_C, log_free_XY.unsqueeze(-1), _any(log_probs_XYZC.exp()).log())
    if covered_XYZ is not None:
        scores_XYC = scores_XYC * covered_XYZ.any(-1, keepdim=True)
    return scores_XYC.log_softmax(-1)


def _any(probs_XYZC: torch.Tensor) -> torch.Tensor:
    """1 - prod_z(1 - p(z)) over (..., Z, C), halves after halves by p + q - p q.

    No small p is lost in 1 - p, and no logarithm is taken of every voxel: they took most of the time.
    """
    while (height := probs_XYZC.shape[-2]) > 1:
        lower, upper, *middle = probs_XYZC.split(height // 2, -2)
        either = torch.addcmul(lower + upper, lower, upper, value=-1)
        probs_XYZC = torch.cat([either, *middle], -2) if middle else either
    return probs_XYZC.squeeze(-2)
