"""A network of one's own, in any torch and any Python from 3.7 on.

occ-dump teacher=process teacher.name=mine "teacher.command=conda run --no-capture-output -n mine python torch_model.py"
"""

import numpy as np
import occ_bridge
import torch
from my_project import build_model

model = build_model("mine.pth").cuda().eval()


@occ_bridge.serve(
    kind="logits", axes="XYZC", grid="occ3d", frame="ego", classes="occ3d", images=(256, 704), checkpoint="mine.pth"
)
def answer(keyframe):
    cameras = list(keyframe["cameras"].values())
    images = torch.from_numpy(np.stack([camera["image"] for camera in cameras])).cuda()  # uint8 (N, 256, 704, 3) RGB
    intrinsics = torch.tensor(np.stack([camera["image_intrinsics"] for camera in cameras])).cuda()
    with torch.no_grad():
        return model(images, intrinsics)[0]  # (200, 200, 16, 18)
