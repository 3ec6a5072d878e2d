"""The whole networks as configured: upstream's names, and upstream's output from images to voxels."""

import pytest
import torch
from goldens import deterministic
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from distill.errors import InputError
from distill.grids import SURROUNDOCC
from distill.networks.adapter import constants
from teacher_dump.teachers.gaussianformer.attention import View

CONFIGS = {
    "gaussianformer2_25600": "prob/nuscenes_gs25600.py",
    "gaussianformer2_12800": "prob/nuscenes_gs12800.py",
    "gaussianformer2_6400": "prob/nuscenes_gs6400.py",
    "gaussianformer_25600_solid": "nuscenes_gs25600_solid.py",
    "gaussianformer_144000": "nuscenes_gs144000.py",
}
CASES = {
    "tiny_prob": ("gaussianformer2_25600", "lifter.lifted=400", "lifter.learned=200"),
    "tiny_prob_6400": ("gaussianformer2_6400", "lifter.lifted=400", "lifter.learned=240"),
    "tiny_v1": ("gaussianformer_25600_solid", "lifter.gaussians=600", "encoder.legacy=false"),
    "tiny_v1_old": ("gaussianformer_25600_solid", "lifter.gaussians=600"),
}
SIZE = (96, 160)


def build(teacher, *changes):
    overrides = [f"teacher={teacher}", "teacher.checkpoint=none.pth", *(f"teacher.network.{c}" for c in changes)]
    with initialize_config_module("conf", version_base="1.3"):
        return instantiate(compose("dump", overrides).teacher.network)


@pytest.fixture(scope="module", params=CASES)
def run(request, fill, golden, given_draws, images, lidar2img):
    """One case: the golden, the network, what it gives the encoder, and its Gaussians."""
    teacher, *changes = CASES[request.param]
    # the goldens were made by spconv on a CPU
    network = fill(build(teacher, *changes, "encoder.duplicates=sum"))
    given = {}
    network.encoder.register_forward_pre_hook(lambda _, arguments: given.update(encoder=arguments))
    with torch.inference_mode():
        gaussians = network(images, lidar2img, given_draws(request.param))
    return golden(request.param), network, given["encoder"], gaussians


@pytest.mark.parametrize("teacher", CONFIGS)
def test_names_and_shapes_are_those_of_upstream(teacher, key_list):
    with torch.device("meta"):
        network = build(teacher)
    state = network.state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == key_list(CONFIGS[teacher])
    never_trained = set(deterministic.KEPT) - {"num_batches_tracked"}
    assert constants(network).keys() == {key for key in state if key.rpartition(".")[2] in never_trained}


def test_blocks_one_after_the_other_match_upstream(run, thinned):
    upstream, network, (anchor_GK, feature_GC, maps, lidar2img_N44, image_size), _ = run
    torch.testing.assert_close(anchor_GK, upstream["lifter.representation"], rtol=0, atol=1e-4)
    view = View(maps, lidar2img_N44, image_size)
    refinements = (16, 33, 50, 67) if "enc.67.refine_anchor" in upstream else (3, 9, 15, 21)
    for number, layer in enumerate(refinements):
        with torch.inference_mode():
            anchor_GK, feature_GC = network.encoder.run_block(number, anchor_GK, feature_GC, view)
        # key points amplify what differs, block after block
        expected = upstream[f"enc.{layer - 1}.norm_full"][0]
        torch.testing.assert_close(thinned(feature_GC, expected), expected, rtol=0, atol=5e-4)


def test_gaussians_match_upstream(run):
    upstream, _, _, gaussians = run
    count = upstream["gaussian.means"].shape[1]
    torch.testing.assert_close(gaussians.means_G3[:count], upstream["gaussian.means"][0], rtol=0, atol=1e-3)
    torch.testing.assert_close(gaussians.scales_G3[:count], upstream["gaussian.scales"][0], rtol=0, atol=1e-3)
    # the empty Gaussian too
    torch.testing.assert_close(gaussians.means_G3, upstream["agg.in.means"][0], rtol=0, atol=1e-3)
    torch.testing.assert_close(gaussians.semantics_GS, upstream["agg.in.semantics"][0], rtol=1e-3, atol=1e-3)


def test_voxels_match_upstream(run):
    upstream, _, _, gaussians = run
    centres_V3 = torch.from_numpy(SURROUNDOCC.centres()).float().view(-1, 3)
    occupancy_VS = gaussians.occupancy(centres_V3)
    expected_VS = upstream["pred_occ.sub"].T
    torch.testing.assert_close(occupancy_VS[upstream["vox_idx"].long()], expected_VS, rtol=0, atol=1e-3)
    agreement = (occupancy_VS.argmax(1) == upstream["final_occ"]).double().mean()
    assert agreement >= 0.9999


def test_images_of_another_size_are_refused(run, lidar2img):
    _, network, _, _ = run
    with pytest.raises(InputError, match="images of 100 x 160 pixels"):
        network(torch.zeros(6, 3, 100, 160), lidar2img, None)


def test_the_baseline_has_scores_for_18_channels_and_neither_opacity_nor_an_empty_gaussian(fill, images, lidar2img):
    network = fill(build("gaussianformer_144000", "lifter.gaussians=300"))
    with torch.inference_mode():
        gaussians = network(images, lidar2img, None)
    assert gaussians.form == "additive" and gaussians.reach == 3.0
    assert gaussians.means_G3.shape == (300, 3) and gaussians.semantics_GS.shape == (300, 18)
    assert (gaussians.opacities_G == 1).all()
    assert gaussians.semantics_GS.isfinite().all() and (gaussians.semantics_GS < 0).any()
    assert gaussians.scales_G3.min() >= 0.08 and gaussians.scales_G3.max() <= 0.32
