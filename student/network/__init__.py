"""The student: image encoder -> lift to BEV -> BEV encoder -> channel-to-height head.

The blocks that a teacher network shares live in `distill.network`; letters as there, and D depth bins.
"""
