"""Triton kernels without a GPU."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest


@pytest.fixture
def interpret() -> Callable[[str], None]:
    """`interpret(script)`: run assertions about Triton kernels in Triton's interpreter; skips without Triton.

    The interpreter is chosen when Triton is imported, hence a process of its own; it finds what the test finds.
    """
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}

    def run(script: str) -> None:
        script += '\nprint("ran to its end")'
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
        )
        assert done.stdout == "ran to its end\n", done.stderr

    return run
