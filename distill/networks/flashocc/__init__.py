"""FlashOcc M0, M1 and M2 (Yu et al. 2023; docs/formulas.md 9.1): upstream's weights, or one's own.

`network` is where to begin: an image encoder, a lift to BEV, a BEV encoder and a head in a row. `convention` says in
what the networks that upstream trained differ from those that are trained here.
"""
