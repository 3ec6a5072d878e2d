"""OPUS (Wang et al. 2024): occupancy as a set of points, refined layer by layer, in plain PyTorch.

Parameters are called nearly as upstream calls them; `weights.OFFICIAL` has the differences.
"""

from distill.networks.opus.network import OPUS

__all__ = ["OPUS"]
