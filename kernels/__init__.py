"""Tensor in, tensor out: each op is a plain reference and faster twins, picked by device in `kernels.dispatch`."""
