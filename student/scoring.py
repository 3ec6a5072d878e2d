"""Score a network on labelled frames, after every epoch."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader

from distill.classes import ClassSet
from distill.metrics import Confusion
from distill.networks.network import streamed


@torch.inference_mode()
def score_network(network: nn.Module, loader: DataLoader, classes: ClassSet, device: torch.device) -> Confusion:
    """Counts of `network` over `loader`, summed over all ranks; unlabelled frames are left out."""
    answer = streamed(network.eval(), calls=1)
    confusion = Confusion(classes)
    for frame in loader:
        semantics_BXYZ = answer(frame.to(device)).voxel_logits_BXYZC.argmax(-1).to(torch.uint8).cpu().numpy()
        for index, labelled in enumerate(frame.labelled):
            if labelled:
                labels, mask = frame.semantics[index], frame.mask_camera[index]
                confusion.update(semantics_BXYZ[index], labels.numpy(), mask.numpy())
    confusion.all_reduce()
    return confusion
