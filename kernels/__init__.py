"""Tensor in, tensor out: each op is a torch reference and a Triton kernel, picked by device."""
