"""The blocks that students and network teachers share."""

import copy

import matplotlib.cbook
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models import FeatureListNet
from torch import nn

from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.grids import OCC3D
from distill.networks.blocks.bev_encoder import BEVEncoder
from distill.networks.blocks.encoder import ImageEncoder
from distill.networks.blocks.head import ChannelToHeight
from distill.networks.blocks.pretrained import Pretrained, classifier, normalisation

LITE0 = "tf_efficientnet_lite0"


def images(seed=0, height=64, width=96):
    return torch.randint(
        0, 256, (1, 2, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def begun(name, weights, levels, frozen_levels=0):
    """An encoder as training begins with it."""
    encoder = ImageEncoder(name, weights, levels, channels=8, frozen_levels=frozen_levels)
    encoder.load_pretrained()
    return encoder


def test_wheel_weights_recognise_a_photograph():
    network = classifier(LITE0)
    mean, std = normalisation(network, LITE0, "wheel")
    network.load_state_dict(Pretrained.of(network, network, "wheel").read())
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        photograph = Image.open(file).crop((0, 0, 512, 512)).resize((224, 224), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(photograph)).permute(2, 0, 1)
    with torch.inference_mode():
        scores = network.eval()(((pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1))[None])
    military_uniform, bow_tie, suit = 652, 457, 834
    assert scores[0].topk(3).indices.tolist() == [military_uniform, bow_tie, suit]


@pytest.mark.parametrize(("levels", "stride"), [([2], 8), ([3], 16), ([3, 4], 16), ([1, 2, 3], 4)])
def test_result_has_the_stride_of_the_finest_level(levels, stride):
    encoder = ImageEncoder(LITE0, "none", levels, channels=8, frozen_levels=0)
    assert encoder.stride == stride
    assert encoder(images()).shape == (1, 2, 8, 64 // stride, 96 // stride)


def test_a_resnet_serves_as_well():
    encoder = ImageEncoder("resnet18", "none", [3, 4], channels=8, frozen_levels=2)
    assert encoder(images()).shape == (1, 2, 8, 4, 6)
    assert not any(parameter.requires_grad for parameter in encoder.backbone["layer1"].parameters())
    assert all(parameter.requires_grad for parameter in encoder.backbone["layer2"].parameters())


def test_nothing_in_the_encoder_is_idle():
    encoder = begun(LITE0, "wheel", [3, 4])
    encoder(images()).square().mean().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_images_are_normalised_as_the_weights_expect():
    encoder = ImageEncoder("resnet18", "none", [3], channels=8, frozen_levels=0)
    torch.testing.assert_close(encoder.mean.flatten(), 255 * torch.tensor([0.485, 0.456, 0.406]))
    seen = []
    encoder.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    encoder(torch.full((1, 1, 3, 32, 32), 200, dtype=torch.uint8))
    torch.testing.assert_close(
        seen[0][0, :, 0, 0], (200 / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    )


def test_frozen_levels_stay_as_they_were():
    encoder = copy.deepcopy(begun(LITE0, "wheel", [3], frozen_levels=3))
    before = copy.deepcopy(encoder.state_dict())
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1, weight_decay=0.1)
    encoder.eval().train()
    encoder(images()).square().mean().backward()
    optimizer.step()
    changed = {name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])}
    frozen = ("mean", "std", "backbone.conv_stem", "backbone.bn1", *(f"backbone.blocks_{i}." for i in range(3)))
    # blocks_3 and blocks_4 make up the next level
    assert changed == {name for name in before if not name.startswith(frozen)}


def test_local_weights_are_loaded_from_both_formats(tmp_path):
    source = timm.create_model("resnet18")
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    for file in tmp_path.iterdir():
        encoder = begun("resnet18", str(file), [3, 4])
        assert torch.equal(encoder.backbone["conv1"].weight, source.conv1.weight)
        assert torch.equal(encoder.backbone["layer4"][1].conv2.weight, source.layer4[1].conv2.weight)


@pytest.mark.parametrize("name", ["resnet18", LITE0])
def test_a_backbone_is_taken_from_whatever_holds_it(tmp_path, name):
    source = timm.create_model(name)
    whole = source.state_dict()
    features = FeatureListNet(source, (0, 1, 2, 3, 4), flatten_sequential=name == LITE0).state_dict(keep_vars=True)
    used = {id(value) for value in features.values()}
    backbone = {key: value for key, value in source.state_dict(keep_vars=True).items() if id(value) in used}
    head = source.default_cfg["classifier"]
    wanted = ImageEncoder(name, "none", [3, 4], channels=8, frozen_levels=0).backbone.state_dict()
    wanted = {key: features[key] for key in wanted}
    files = {
        "without its classifier": {"meta": {}, "state_dict": {f"backbone.{k}": v.data for k, v in backbone.items()}},
        "of ten classes": whole | {f"{head}.weight": torch.zeros(10, 512), f"{head}.bias": torch.zeros(10)},
        "with a projection": {k: v.data for k, v in backbone.items()} | {f"{head}.0.weight": torch.zeros(3)},
        "of a detector": {f"img_backbone.{k}": v for k, v in whole.items()} | {"head.cls": torch.zeros(3)},
    }
    for content in files.values():
        torch.save(content, tmp_path / "weights.pth")
        encoder = begun(name, str(tmp_path / "weights.pth"), [3, 4])
        found = encoder.backbone.state_dict()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize(("levels", "frozen"), [([3, 5], 0), ([3], 6)])
def test_levels_that_a_network_has_not_are_refused(levels, frozen):
    with pytest.raises(InputError, match="resnet18 has 5 levels, 0 to 4"):
        ImageEncoder("resnet18", "none", levels, channels=8, frozen_levels=frozen)


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("resnet_fifty", "none", "no such model"),
        ("resnet18", "wheel", "holds tf_efficientnet_lite0"),
        ("resnet18", "missing.pth", "no such file"),
        ("resnet18", "text.pth", "not a file of PyTorch weights"),
        ("resnet18", "text.safetensors", "not a file of PyTorch weights"),
        ("resnet18", "deeper.pth", "state_dict, without the prefix 'backbone.': weights of another architecture"),
        ("resnet18", "list.pth", "no weights by name"),
        ("resnet18", "pkg://student/weights/demo_student.safetensors", "belongs to checkpoint="),
    ],
)
def test_weights_that_do_not_fit_are_refused(name, weights, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in ("text.pth", "text.safetensors"):
        (tmp_path / text).write_text("no weights at all")
    deeper = timm.create_model("resnet34").state_dict()
    torch.save({"state_dict": {f"backbone.{name}": value for name, value in deeper.items()}}, "deeper.pth")
    torch.save([1, 2], "list.pth")
    with pytest.raises(InputError, match=message):
        begun(name, weights, [3])


@pytest.mark.parametrize(("name", "weights"), [(LITE0, "wheel"), ("resnet18", "gone.pth")])
def test_building_opens_no_file_and_draws_the_same_random_numbers(name, weights):
    torch.manual_seed(0)
    expected = ImageEncoder(name, "none", [3], channels=8, frozen_levels=0).state_dict()
    after = torch.rand(1)
    torch.manual_seed(0)
    found = ImageEncoder(name, weights, [3], channels=8, frozen_levels=0).state_dict()
    assert torch.equal(torch.rand(1), after)
    assert all(torch.equal(found[key], expected[key]) for key in expected if key not in ("mean", "std"))


def test_bev_encoder_keeps_any_resolution_and_uses_every_level():
    encoder = BEVEncoder(in_channels=5, widths=[8, 12, 16], blocks=[1, 2], out_channels=7)
    bev_BCXY = encoder(torch.randn(2, 5, 13, 10))
    assert bev_BCXY.shape == (2, 7, 13, 10)
    bev_BCXY.square().mean().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_head_puts_shares_height_and_classes_where_they_belong():
    head = ChannelToHeight(in_channels=12, hidden_channels=3, bev_stride=2, grid=OCC3D, classes=OCC3D_CLASSES)
    head.conv = nn.Identity()
    with torch.no_grad():
        # hidden channel 0 of share (i, j) copies input channel 3 * (2 i + j)
        head.column.weight.copy_(torch.eye(12))
        head.column.bias.zero_()
        head.logits.weight.zero_()
        head.logits.weight[:, 0] = 1
        head.logits.bias.copy_(1000 * torch.arange(16 * 18))
    bev_BCXY = torch.randn(2, 12, 4, 5) * 10
    logits_BXYZC = head(bev_BCXY).detach()
    assert logits_BXYZC.shape == (2, 8, 10, 16, 18)
    height, class_id = torch.meshgrid(torch.arange(16), torch.arange(18), indexing="ij")
    for i in range(2):
        for j in range(2):
            hidden_BXY = nn.functional.softplus(bev_BCXY[:, 3 * (2 * i + j)])
            expected = hidden_BXY[..., None, None] + 1000 * (18 * height + class_id)
            torch.testing.assert_close(logits_BXYZC[:, i::2, j::2], expected)


def test_head_starts_from_the_class_frequencies():
    head = ChannelToHeight(in_channels=4, hidden_channels=4, bev_stride=1, grid=OCC3D, classes=OCC3D_CLASSES)
    nn.init.zeros_(head.logits.weight)
    probabilities = head(torch.randn(1, 4, 3, 3)).softmax(-1)
    frequencies = torch.tensor(OCC3D_CLASSES.frequencies, dtype=torch.float32)
    torch.testing.assert_close(probabilities, (frequencies / frequencies.sum()).expand_as(probabilities))
