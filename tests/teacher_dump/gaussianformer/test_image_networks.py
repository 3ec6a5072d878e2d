"""Backbone and necks against upstream's outputs, and deformable convolution against plain ones."""

import pytest
import torch
import torch.nn.functional as F

from teacher_dump.teachers.gaussianformer.backbone import ResNetDCN
from teacher_dump.teachers.gaussianformer.deform_conv import DeformConv2d
from teacher_dump.teachers.gaussianformer.necks import FPN, SecondFPN

CHANNELS = (256, 512, 1024, 2048)


@pytest.mark.parametrize(
    ("module", "prefix"),
    [
        (ResNetDCN, "img_backbone."),
        (ResNetDCN, "lifter.initialize_backbone.img_backbone."),
        (lambda: FPN(CHANNELS, 128), "img_neck."),
        (lambda: SecondFPN(CHANNELS, 128), "lifter.initialize_backbone.img_neck."),
    ],
)
def test_names_and_shapes_are_those_of_upstream(module, prefix, key_list):
    keys = key_list("prob/nuscenes_gs25600.py")
    state = module().state_dict()
    expected = {key.removeprefix(prefix): shape for key, shape in keys.items() if key.startswith(prefix)}
    assert {key: tuple(value.shape) for key, value in state.items()} == expected


def test_backbone_and_fpn_match_upstream(backbone_maps, maps, golden, thinned):
    upstream = golden("tiny_prob")
    for level, x_NCHW in enumerate(backbone_maps):
        expected = upstream[f"img_backbone.{level}"]
        torch.testing.assert_close(x_NCHW[:2, ::16, ::3, ::3], expected, rtol=1e-5, atol=2e-5)
    for level, x_NCHW in enumerate(maps):
        expected = upstream[f"img_neck.{level}"]
        torch.testing.assert_close(thinned(x_NCHW, expected), expected, rtol=1e-5, atol=1e-5)


def deform_conv(offset, mask_logit, channels=5):
    """A layer whose offsets (dy, dx) and mask logits do not depend on the image."""
    layer = DeformConv2d(channels)
    torch.nn.init.zeros_(layer.conv_offset.weight)
    bias = torch.tensor(offset).repeat(9)
    layer.conv_offset.bias.data = torch.cat([bias, torch.full((9,), mask_logit)])
    return layer.requires_grad_(False)


def some_image(height=6, width=7, channels=5):
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("mask_logit", "factor"), [(0.0, 0.5), (30.0, 1.0)])
def test_without_offsets_it_is_a_convolution(mask_logit, factor):
    layer, x = deform_conv([0.0, 0.0], mask_logit), some_image()
    torch.testing.assert_close(layer(x), factor * F.conv2d(x, layer.weight, padding=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("offset", [(1.0, 0.0), (0.0, -2.0), (0.25, 0.5), (-5.5, 3.25), (100.0, 0.0)])
def test_a_constant_offset_moves_the_image(offset):
    layer, x = deform_conv(list(offset), 30.0), some_image()
    # bilinear interpolation of the image with a wide border of zeros, then a plain convolution
    height, width = x.shape[2:]
    rows, columns = torch.meshgrid(torch.arange(-1, height + 1), torch.arange(-1, width + 1), indexing="ij")
    rows, columns = rows + offset[0], columns + offset[1]
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], -1).expand(2, -1, -1, -1)
    moved = F.grid_sample(x, grid, align_corners=False)
    torch.testing.assert_close(layer(x), F.conv2d(moved, layer.weight), rtol=1e-4, atol=1e-5)


def test_every_tap_has_its_own_offset():
    layer, x = deform_conv([0.0, 0.0], 30.0), some_image()
    # the tap left above the pixel samples where the tap to its right would
    layer.conv_offset.bias.data[1] = 1.0
    weight = layer.weight.clone()
    weight[:, :, 0, 1] += weight[:, :, 0, 0]
    weight[:, :, 0, 0] = 0
    torch.testing.assert_close(layer(x), F.conv2d(x, weight, padding=1), rtol=1e-4, atol=1e-5)
