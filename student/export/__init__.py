"""occ-export: a trained network as a file of its own, for other machines or without PyTorch.

`main` is the program, `graph` what of a network goes into an ONNX file, `onnx_file` writes it, `table` ships beside a
file that is told the geometry, and `runtime` asks such a file, with ONNX Runtime.
"""
