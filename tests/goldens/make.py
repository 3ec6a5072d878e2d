"""Makes the goldens beside it from `../shared/fixtures`: `python tests/goldens/make.py`, from the root of the checkout.

The fixtures hold what upstream's own code (GaussianFormer, huang-yh/GaussianFormer) returned on a CPU for the weights,
images and cameras of `deterministic.py`; nothing of them comes from nuScenes. A golden is the part of them that a
mistake cannot miss: of features and logits every 11th column (each is a sum over all columns of the layer before), of
the voxels that upstream's outputs were kept for every 4th, and everything else whole. Names are the fixtures':

gaussianformer_images.npz      the same for every case
    img_backbone.{0..3}        maps of the backbone, [:2, ::16, ::3, ::3]
    img_neck.{0..3}            maps of the FPN (6, 12 of 128 channels, H, W)
    lifter.secondfpn           features of the lifter's network, [:2, ::16]
    lifter.logits              its depth logits (1, 6, 12, 20, 12 of 129 bins)
    lifter.rand_uniform        what upstream drew for every pixel
    lifter.fps_in, .fps_idx    the points it lifted, and those that farthest point sampling chose
gaussianformer_{case}.npz      tiny_prob, tiny_prob_6400 (GaussianFormer-2); tiny_v1, tiny_v1_old (GaussianFormer, of
                               today and before commit 803e459, with which its weights were trained)
    lifter.representation      anchors that the encoder starts from
    enc.{layer}.{operation}    outputs of the first blocks (1, rows ::4, 12 of 128 or 24 of 256 columns)
    enc.{layer}.norm_full      features after every block (1, rows, 12 of 128 columns)
    enc.{layer}.refine_anchor  anchors after the first blocks and the last
    gaussian.*                 Gaussians that the last anchors say
    agg.in.*                   what goes into the splat: those, the empty one, their inverse covariances
    vox_idx                    voxels of the three below
    pred_occ.sub               scores of the 18 classes, by class
    agg.{logits,bin}.sub       mixture and occupied probability of the probabilistic splat
    sum.logits.sub             sums of the additive splat of the same Gaussians
    final_occ                  classes of all 640 000 voxels
gaussianformer_keys.json.xz    {config: {name of a parameter or buffer: shape}} of upstream's five configs
"""

import json
import lzma
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
FIXTURES = HERE.parents[2] / "shared/fixtures/gaussianformer"
COLUMNS, VOXELS = 11, 4
IMAGES = ("img_backbone", "img_neck", "lifter.secondfpn", "lifter.logits", "lifter.rand_uniform", "lifter.fps")
SPLAT = ("pred_occ.sub", "agg.logits.sub", "agg.bin.sub", "sum.logits.sub")
WHOLE = ("lifter.representation", "agg.in.", "gaussian.", "final_occ")
FIRST_LAYERS = {"tiny_prob": 16, "tiny_prob_6400": 16, "tiny_v1": 9, "tiny_v1_old": 9}


def images(fixture: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    golden = {name: array for name, array in fixture.items() if name.startswith(IMAGES)}
    golden |= {name: array[:, ::COLUMNS] for name, array in golden.items() if name.startswith("img_neck")}
    return golden | {"lifter.logits": golden["lifter.logits"][..., ::COLUMNS]}


def stages(fixture: dict[str, np.ndarray], first_layers: int) -> dict[str, np.ndarray]:
    golden = {name: array for name, array in fixture.items() if name.startswith(WHOLE)}
    refined = [name for name in fixture if name.endswith("refine_anchor")]
    for name in (name for name in fixture if name.startswith("enc.") and name != "enc.anchor_embed_last"):
        first = int(name.split(".")[1]) <= first_layers
        if name in refined and (first or name == refined[-1]):
            golden[name] = fixture[name]
        elif name.endswith("norm_full") or (first and name not in refined):
            golden[name] = fixture[name][..., ::COLUMNS]
    golden["vox_idx"] = fixture["vox_idx"][::VOXELS]
    for name in fixture.keys() & SPLAT:
        golden[name] = fixture[name][:, ::VOXELS] if name == "pred_occ.sub" else fixture[name][::VOXELS]
    return golden


def save(name: str, golden: dict[str, np.ndarray]) -> None:
    np.savez_compressed(HERE / f"gaussianformer_{name}.npz", **dict(sorted(golden.items())))


def main() -> None:
    fixtures = {case: dict(np.load(FIXTURES / f"ref_{case}.npz")) for case in FIRST_LAYERS}
    save("images", images(fixtures["tiny_prob"]))
    for case, fixture in fixtures.items():
        save(case, stages(fixture, FIRST_LAYERS[case]))
    configs = json.loads((FIXTURES / "state_dict_keys.json").read_text())
    shapes = {config: {key: shape for key, (shape, _) in keys.items()} for config, keys in configs.items()}
    (HERE / "gaussianformer_keys.json.xz").write_bytes(lzma.compress(json.dumps(shapes).encode()))


if __name__ == "__main__":
    main()
