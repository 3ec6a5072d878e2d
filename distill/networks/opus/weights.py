"""Upstream's checkpoint files (docs/formulas.md 10.6)."""

from __future__ import annotations

from distill.networks.adapter import Adapter

OFFICIAL = Adapter(
    names={
        r"pts_bbox_head\.transformer\.decoder\.decoder_layers": "decoder.layers",
        r"pts_bbox_head\.init_points\.weight": "decoder.init_points",
        r"pts_bbox_head\.(pc_range|scene_size|voxel_size|voxel_num)": r"\1",
        r"attention\.attn": "attention",
        r"ffn\.layers\.0\.0": "ffn.0",
        r"ffn\.layers\.1": "ffn.3",
        r"(lateral_convs|fpn_convs)\.(\d)\.conv": r"\1.\2",
    },
    layouts={},
    give="give the .pth that upstream published for this size",
)
