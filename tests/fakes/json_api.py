"""A JSON API over real HTTP that answers by a table of routes and remembers what it was asked."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Routes = Mapping[tuple[str, str], tuple[int, Any]]
"""(method, path pattern) -> status and JSON body."""


@dataclass
class JsonApi:
    """A running server.

    Args:
        address: http://127.0.0.1:PORT.
        requests: (method, path with query, JSON body) of every request.
    """

    address: str
    requests: list[tuple[str, str, Any]] = field(default_factory=list)

    def bodies(self, method: str, path: str) -> list[Any]:
        """The bodies of the requests whose path matches."""
        return [body for m, p, body in self.requests if m == method and re.search(path, p)]


@contextmanager
def serve_json(routes: Routes) -> Iterator[JsonApi]:
    """Run the server on a free port of the loopback."""
    api = JsonApi("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def answer(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            api.requests.append((self.command, self.path, json.loads(raw) if raw else None))
            status, body = next(
                (
                    found
                    for (method, path), found in routes.items()
                    if method == self.command and re.search(path, self.path)
                ),
                (404, {"error": {"code": 404, "message": f"no route {self.command} {self.path}"}}),
            )
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = answer

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    api.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
