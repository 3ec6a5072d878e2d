"""Networks: what students are, and teachers that were trained here. Each maps a batch of frames to an `Occupancy`.

`camera` (images -> lift to BEV -> BEV encoder -> channel-to-height head), `temporal` (the same with a past) and
`fusion` (images and LiDAR) are made of `blocks`. Letters as there, and D depth bins.
"""
