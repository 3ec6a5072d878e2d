"""GaussianFormer (Huang et al. 2024) and GaussianFormer-2 (Huang et al. 2025) in plain PyTorch.

Modules, parameters and buffers carry upstream's names, so that its checkpoints load strictly.
"""
