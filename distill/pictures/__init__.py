"""Pictures of keyframes: voxels from above and from behind, voxels and Gaussians over camera images, panels of all."""
