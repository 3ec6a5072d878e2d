"""What a student minimises: an objective of named, weighted terms, supervised and distilled alike.

`objective` says what a term is; `supervised` has those of labels and LiDAR, `multi_scale` that of labels at coarser
resolutions, `image_semantics` that of labels as cameras see them, `logits` those that listen to what teachers say of
voxels and columns, `jaccard`, `channelwise` and `affinity` those that compare whole regions, `termination` the one of
camera rays, `rendering` those of what was seen along rays (`contracted`: as published), `features` the one of BEV
features, `pseudo` those to which a teacher's classes are labels; `regions` chooses where, `confidence` how much each
frame counts.
docs/architecture.md has the recipe for another.
"""
