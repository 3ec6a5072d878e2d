"""Upstream's checkpoint files (docs/formulas.md 9.5) under our names: bare, {state_dict, meta}, or of their average."""

from __future__ import annotations

from distill.networks.adapter import Adapter

PUBLISHED = Adapter(
    names={
        r"img_backbone": "encoder.backbone",
        r"img_neck\.lateral_convs\.(\d)\.conv": r"encoder.laterals.\1",
        r"img_neck\.fpn_convs\.0\.conv": "encoder.smooth",
        r"img_view_transformer": "lift",
        r"img_bev_encoder_backbone": "bev_encoder",
        # theirs begins with the upsampling
        **{rf"img_bev_encoder_neck\.up2\.{i}": f"bev_encoder.up2.{i - 1}" for i in (1, 2, 4)},
        r"img_bev_encoder_neck": "bev_encoder",
        r"occ_head\.final_conv\.conv": "head.conv",
        r"occ_head\.predicter": "head.predictor",
        r"pre_process_net\.layers\.0\.0": "pre_process",
        "cost_volumn_net": "cost_net",
    },
    layouts={},
    give="give the file that upstream published, or the epoch_N_ema.pth of a training of its own",
)
