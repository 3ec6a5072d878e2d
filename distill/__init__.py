"""What both stages share: grids, classes, nuScenes data, the teacher store, losses, metrics, augmentation."""
