"""A web server on this machine alone that serves a folder and notes every request."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Loopback:
    """A server: where it is, and the paths that were asked for."""

    url: str
    requests: list[str] = field(default_factory=list)


@contextmanager
def serving(folder: Path) -> Iterator[Loopback]:
    """Serve `folder` on the loopback interface."""
    found = Loopback("")

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            found.requests.append(self.path)
            super().do_GET()

        def log_message(self, format: str, *arguments: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
