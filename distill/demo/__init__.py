"""The demo world: a seeded procedural town in nuScenes' on-disk layout, with Occ3D and SurroundOcc labels.

Reading order: `generate` (what is made and when), `keyframe` and `tables` (what is written), `scene` (what a scene
is), `town` and `traffic` (what stands and moves in it), `visibility`, `shading` and `voxels` (how it is seen).
"""

from distill.demo.generate import WorldConfig, ensure_world

__all__ = ["WorldConfig", "ensure_world"]
