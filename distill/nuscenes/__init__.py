"""nuScenes keyframes: calibration, images, LiDAR, labels."""
