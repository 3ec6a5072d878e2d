"""Write a checkpoint's EMA weights as one .safetensors file: python -m student.export RUN/best.pt OUT.safetensors."""

from __future__ import annotations

import argparse
from pathlib import Path

from distill.checkpoint import export, load_checkpoint
from distill.command import script


@script
def main() -> None:
    """Export the checkpoint named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="best.pt or last.pt of a run")
    parser.add_argument("output", type=Path, help="the .safetensors file to write")
    arguments = parser.parse_args()
    export(load_checkpoint(arguments.checkpoint, "ema"), arguments.output)


if __name__ == "__main__":
    main()
