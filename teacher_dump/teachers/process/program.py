"""A program that was written with `occ_bridge`: started, talked to by messages and shared memory, and ended.

Messages are JSON behind their length, over a Unix socket, whose address the program finds in its environment: its
standard output and error stay its own. Arrays lie in files that both sides map, in memory where the system has
/dev/shm.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from distill.errors import InputError
from teacher_dump.teachers.process import guard

BRIDGE = Path(__file__).parents[2] / "bridge"  # the folder of occ_bridge.py
_LENGTH = struct.Struct(">I")
_QUOTED = 4  # last lines of standard error
_KEPT = 1 << 14  # bytes of it
_PATIENCE = 5.0  # seconds that a program is given to end by itself
_CONNECTING = "asking for keyframes (occ_bridge.serve, occ_bridge.keyframes)"
_EVERY = 0.1  # seconds between looks whether it still runs
# what torchrun tells occ-dump is not for the program, which is one of its own
_OF_TORCHRUN = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
)


class Program:
    """A running program.

    Args:
        command: as for a shell, but that nothing is expanded.
        gpu: the number of the GPU that it shall see, of those that this process sees; None: the same as this one.
        timeout: seconds in which it has to connect, and to answer.

    Raises:
        InputError: there is no such program, or it ended, or did not connect in time.
    """

    def __init__(self, command: str, gpu: int | None, timeout: float) -> None:
        self.command, self.timeout = command, timeout
        words = _words(command)
        # a path short enough for a socket, which nobody else may read
        self._folder = Path(tempfile.mkdtemp(prefix="occ-bridge-", dir=_memory_folder()))
        self._said = b"\n"  # the end of its standard error
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(str(self._folder / "socket"))
        listening.listen(1)
        guarded = [sys.executable, "-S", "-E", guard.__file__, str(os.getpid()), str(self._folder), *words]
        self._process = subprocess.Popen(
            guarded,
            env=_environment(str(self._folder / "socket"), gpu),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for occ-dump, which ends it
        )
        self._echo = threading.Thread(target=self._pass_on, daemon=True)
        self._echo.start()
        with listening:
            self._socket = self._accepted(listening)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message; one that does not arrive is noticed when the answer is waited for."""
        content = json.dumps(message).encode()
        try:
            self._socket.sendall(_LENGTH.pack(len(content)) + content)
        except OSError:
            return

    def receive(self, waiting_for: str) -> dict[str, Any]:
        """The next message.

        Args:
            waiting_for: in words, for messages.

        Raises:
            InputError: the program ended, or did not answer in time; it runs no more.
        """
        deadline = time.monotonic() + self.timeout
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size, deadline, waiting_for))
        message: dict[str, Any] = json.loads(self._exactly(length, deadline, waiting_for))
        return message

    def share(self, name: str, size: int) -> Shared:
        """Memory that the program can map, too.

        Raises:
            InputError: there is not enough.
        """
        return Shared(self._folder / name, size)

    def close(self) -> None:
        """Let the program end, or end it, with all that it has started."""
        self._socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE)
        self._kill()

    def _kill(self) -> None:
        if self._process.poll() is None:  # otherwise the guard has ended the rest
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._echo.join(1)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _accepted(self, listening: socket.socket) -> socket.socket:
        deadline = time.monotonic() + self.timeout
        listening.settimeout(_EVERY)
        while True:
            try:
                return listening.accept()[0]
            except TimeoutError:
                if self._process.poll() is not None:
                    raise self._ended(f"before {_CONNECTING}") from None
                if time.monotonic() > deadline:
                    raise self._late(f"for {_CONNECTING}") from None

    def _exactly(self, count: int, deadline: float, waiting_for: str) -> bytes:
        content = bytearray()
        while len(content) < count:
            self._socket.settimeout(max(1e-3, deadline - time.monotonic()))
            try:
                part = self._socket.recv(count - len(content))
            except TimeoutError:
                raise self._late(f"for {waiting_for}") from None
            except OSError:
                part = b""
            if not part:
                raise self._ended(f"before {waiting_for}")
            content += part
        return bytes(content)

    def _ended(self, when: str) -> InputError:
        try:
            code = self._process.wait(_PATIENCE)
            how = f"ended with exit code {code}" if code < 128 else f"was ended by {_signal_name(code - 128)}"
        except subprocess.TimeoutExpired:
            how = "closed its connection"
        self._kill()
        return InputError(f"teacher.command={self.command}: it {how} {when}{self._last_lines()}")

    def _late(self, what: str) -> InputError:
        self._kill()
        return InputError(
            f"teacher.command={self.command}: waited {self.timeout:g} s {what} and ended it: see what it waits for, or "
            f"give it longer with teacher.timeout{self._last_lines()}"
        )

    def _last_lines(self) -> str:
        said = self._said.decode(errors="replace").splitlines()[1:]  # the first may have lost its beginning
        lines = [line.strip() for line in said if line.strip(" ~^")]  # without the marks of a traceback
        quoted = f". Its last lines: {' | '.join(lines[-_QUOTED:])}" if lines else ""
        return f"; what was dumped stays{quoted}"

    def _pass_on(self) -> None:
        """Show its standard error as it comes, and keep the end of it."""
        assert self._process.stderr is not None
        while said := os.read(self._process.stderr.fileno(), _KEPT):
            tqdm.write(said.decode(errors="replace"), file=sys.stderr, end="")  # above the progress bar
            self._said = (self._said + said)[-_KEPT:]


class Shared:
    """Memory that the program maps by the path of a file.

    Args:
        path: made.
        size: bytes.

    Raises:
        InputError: there is not enough memory.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size = path, size
        with open(path, "x+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)  # now, and not by a signal when it is written
            except OSError as error:
                raise InputError(
                    f"{path.parent}: no room for {size / 1e6:.0f} MB that occ-dump and the teacher share "
                    f"({error.strerror}): free some, or give a container more (docker run --shm-size)"
                ) from error
            self._mapped = mmap.mmap(file.fileno(), size)

    def described(self) -> dict[str, Any]:
        """What the program has to know."""
        return {"path": str(self.path), "size": self.size}

    def view(self, dtype: str, shape: tuple[int, ...], offset: int) -> np.ndarray:
        """An array in it, without a copy.

        Raises:
            ValueError: it does not lie in it.
        """
        return np.ndarray(shape, np.dtype(dtype), self._mapped, offset)


def _memory_folder() -> str | None:
    """Where files lie in memory; None: where temporary files lie, which the system keeps in memory while it can."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InputError(f"teacher.command={command}: {error}") from error
    if not words or shutil.which(words[0]) is None:
        raise InputError(
            f"teacher.command={command}: there is no program {words[0] if words else ''!r}: give the command as you "
            "would start it in this folder, such as 'conda run --no-capture-output -n ENVIRONMENT python my_teacher.py'"
        )
    return words


def _environment(address: str, gpu: int | None) -> dict[str, str]:
    """That of this process, with the bridge, the GPU of this rank, and nothing of torchrun's."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in _OF_TORCHRUN and not name.startswith("TORCHELASTIC_")
    }
    path = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = f"{BRIDGE}{os.pathsep}{path}" if path else str(BRIDGE)
    environment["PYTHONUNBUFFERED"] = "1"  # its prints come in the order of everything else
    environment["OCC_BRIDGE"] = address
    if gpu is not None:
        seen = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        environment["CUDA_VISIBLE_DEVICES"] = seen[gpu] if gpu < len(seen) else str(gpu)
    return environment


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
