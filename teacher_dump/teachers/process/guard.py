"""Runs a command in a session of its own, and ends all of it when the process that asked for it is gone, however.

Usage: guard.py PARENT FOLDER COMMAND...; nothing but the standard library, so that it starts at once. PARENT is the
process that asks, FOLDER is removed in the end.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys

_EVERY = 0.2  # seconds


def main() -> None:
    """Exit with the code of the command, 128 and more for a signal, as shells do."""
    parent, folder, *command = sys.argv[1:]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: None)  # sent to all of the session by ourselves, below
    while child.poll() is None and os.getppid() == int(parent):
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_EVERY)
    shutil.rmtree(folder, ignore_errors=True)
    if child.returncode is None:
        os.killpg(0, signal.SIGKILL)
    os.killpg(0, signal.SIGTERM)  # what it has started, and left running
    sys.exit(child.returncode if child.returncode >= 0 else 128 - child.returncode)


if __name__ == "__main__":
    main()
