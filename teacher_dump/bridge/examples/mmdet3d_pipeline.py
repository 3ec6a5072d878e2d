"""A network of mmdet3d 1.0, such as FlashOCC's or BEVDet-Occ's, with its own test_pipeline and info files.

occ-dump teacher=process teacher.name=flashocc \
    "teacher.command=conda run --no-capture-output -n flashocc python mmdet3d_pipeline.py CONFIG WEIGHTS INFOS..."
"""

import sys

import occ_bridge
import projects.mmdet3d_plugin  # noqa: F401  # registers their classes
from mmcv import Config
from mmcv.parallel import MMDataParallel, collate
from mmcv.runner import load_checkpoint
from mmdet3d.datasets import build_dataset
from mmdet3d.models import build_model

config, (weights, *infos) = Config.fromfile(sys.argv[1]), sys.argv[2:]
model = build_model(config.model)
load_checkpoint(model, weights, map_location="cpu")
model = MMDataParallel(model.cuda().eval(), device_ids=[0])
datasets = [build_dataset(dict(config.data.test, ann_file=file)) for file in infos]
places = {info["token"]: (data, i) for data in datasets for i, info in enumerate(data.data_infos)}


@occ_bridge.serve(
    kind="classes", axes="XYZ", grid="occ3d", frame="ego", classes="occ3d", confidence=0.9, checkpoint=weights
)
def answer(keyframe):
    data, i = places[keyframe["token"]]
    return model(return_loss=False, rescale=True, **collate([data[i]], samples_per_gpu=1))[0]  # ids (200, 200, 16)
