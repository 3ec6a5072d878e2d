"""Building blocks that students and network teachers share; `_target_`s of conf/student.

Letters: B batch, N cameras, C channels, H W rows and columns of an image map, X Y Z voxel axes (BEV maps are BCXY).
"""
