"""nuScenes keyframes: calibration, images, LiDAR, Occ3D labels, and the demo world in the same layout."""
