"""Upstream's checkpoint files (docs/formulas.md 8.3); almost everything is called here as it is there."""

from __future__ import annotations

from distill.networks.adapter import Adapter

OFFICIAL = Adapter(
    # the offsets' convolution was once a sibling of the deformable one and is now its child
    names={"conv2_offset": "conv2.conv_offset"},
    # sparse convolutions, in the other layout of spconv: (kx, ky, kz, out, in) -> (out, kx, ky, kz, in)
    layouts={r".*\.weight": (3, 0, 1, 2, 4)},
    give="give the state_dict.pth that upstream published",
)
