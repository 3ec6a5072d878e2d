"""MonoOcc (Zheng et al. 2024): depth becomes voxels, these are completed to proposals, and only those look at images.

`proposals`, `pseudo` and `views` are upstream's parts; `attention`, `depth` and `network` are ours around them
(docs/formulas.md 11.1 to 11.6). Letters as in `blocks`, and G proposed voxels.
"""
