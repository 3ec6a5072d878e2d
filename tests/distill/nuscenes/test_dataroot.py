"""The dataroot of a configuration."""

import pytest
from omegaconf import OmegaConf

from distill.errors import InputError
from distill.nuscenes.dataroot import open_dataroot


def test_a_dataroot_that_has_moved_names_the_setting(tmp_path):
    data = OmegaConf.create(
        {
            "root": str(tmp_path / "moved"),
            "layout": "nuscenes",
            "version": "v1.0-mini",
            "cache_dir": str(tmp_path),
            "world": None,
        }
    )
    with pytest.raises(InputError, match=r"no dataroot at .*moved: no such folder; say where .* data\.root="):
        open_dataroot(data)
