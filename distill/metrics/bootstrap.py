"""Paired bootstrap: how far a gain over a control would move with other keyframes, and with other seeds of training.

Both sides are scored anew on the same keyframes drawn with replacement, by the sums of their counts: a score of sums,
such as mIoU, is no mean over keyframes (docs/formulas.md 3.7).

Letters: S seeds, K keyframes, N resamples, M scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from distill.errors import InputError

LEVEL = 0.95  # of the intervals
FEWEST = 6  # keyframes: mere chance lets all of 5 gain, or all lose, more often than 1 - LEVEL (2 * 0.5^5 > 0.05)

# counts of K keyframes, each (K, ...), and the scores of their sums: each (N, ...) -> (N, M)
Counts = Sequence[Tensor]
Score = Callable[..., Tensor]


class Gain(NamedTuple):
    """Scores of both sides and what lies between them, float64 (M,).

    Attributes:
        value_M, control_M: means over the seeds, of all keyframes.
        gain_M: mean over the seeds of the paired differences.
        low_M, high_M: ends of the percentile interval of `gain_M`; NaN with fewer than `FEWEST` keyframes.
    """

    value_M: Tensor
    control_M: Tensor
    gain_M: Tensor
    low_M: Tensor
    high_M: Tensor


def paired_bootstrap(pairs: Sequence[tuple[Counts, Counts]], score: Score, resamples: int, seed: int) -> Gain:
    """The gain over a control, with its interval over keyframes and, of several pairs, over seeds.

    Args:
        pairs: one for each seed of training: the counts of the arm and of its control, of the same keyframes in the
            same order.
        score: takes tensors like those of `Counts` with sums over resamples, float64, in front, and returns (N, M);
            NaN where a score does not exist, which its interval leaves out.
        resamples: N.
        seed: of the draws.

    Raises:
        InputError: not all counts are of the same number of keyframes, or there are none.
    """
    sizes = {len(counts) for pair in pairs for side in pair for counts in side}
    if len(sizes) != 1 or 0 in sizes:
        raise InputError(f"counts are of {sorted(sizes)} keyframes: a pair is compared on the same ones, one or more")
    (keyframes,) = sizes
    random = np.random.default_rng(seed)
    drawn_NK = random.multinomial(keyframes, [1 / keyframes] * keyframes, resamples)
    drawn_NS1 = random.integers(len(pairs), size=(resamples, len(pairs), 1))
    value_1SM, control_1SM = _scores(pairs, score, np.ones((1, keyframes)))
    own_NSM, base_NSM = _scores(pairs, score, drawn_NK)
    gain_NM = (own_NSM - base_NSM).take_along_dim(torch.from_numpy(drawn_NS1), 1).nanmean(1)
    ends = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low_M, high_M = gain_NM.nanquantile(ends, 0).where(torch.tensor(keyframes >= FEWEST), torch.nan)
    value_M, control_M, gain_M = (each.nanmean((0, 1)) for each in (value_1SM, control_1SM, value_1SM - control_1SM))
    return Gain(value_M, control_M, gain_M, low_M, high_M)


def _scores(pairs: Sequence[tuple[Counts, Counts]], score: Score, drawn_NK: np.ndarray) -> list[Tensor]:
    """Of all arms, and of all controls, (N, S, M): keyframes count as often as drawn; float64 adds integers exactly."""
    weights_NK = torch.from_numpy(drawn_NK).double()
    return [
        torch.stack([score(*(torch.tensordot(weights_NK, each.double(), 1) for each in counts)) for counts in side], 1)
        for side in zip(*pairs, strict=True)
    ]
