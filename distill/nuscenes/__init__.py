"""nuScenes keyframes: calibration, images, LiDAR, labels, and the demo world in the same layout."""
