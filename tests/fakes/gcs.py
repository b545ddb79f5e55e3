"""A Google Cloud Storage that speaks the real JSON API over HTTP and enforces `ifGenerationMatch`.

Only what google-cloud-storage sends for small objects: multipart upload, metadata, download, listing.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class FakeGcs:
    """Objects by (bucket, name), each with the generation of its last write."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], tuple[bytes, int]] = {}
        self.lock = threading.Lock()
        self._generation = 1_000

    def write(self, bucket: str, name: str, data: bytes, match: str | None) -> int | None:
        """The new generation, or None where the precondition fails."""
        with self.lock:
            found = self.objects.get((bucket, name))
            if match is not None and int(match) != (found[1] if found else 0):
                return None
            self._generation += 1
            self.objects[bucket, name] = (data, self._generation)
            return self._generation

    def describe(self, bucket: str, name: str) -> dict[str, str]:
        data, generation = self.objects[bucket, name]
        return {"bucket": bucket, "name": name, "generation": str(generation), "size": str(len(data))}


@contextmanager
def serve_gcs() -> Iterator[tuple[FakeGcs, str]]:
    """Run the fake on a free port of the loopback; yields it and its address."""
    fake = FakeGcs()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def reply(self, status: int, body: bytes, content_type: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def reply_json(self, value: object, status: int = 200) -> None:
            self.reply(status, json.dumps(value).encode())

        def do_POST(self) -> None:
            url = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            assert url.path.startswith("/upload/storage/v1/b/"), url.path
            assert query["uploadType"] == "multipart", query
            body = self.rfile.read(int(self.headers["Content-Length"]))
            header = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            metadata, media = BytesParser().parsebytes(header + body).get_payload()
            name = json.loads(metadata.get_payload())["name"]
            bucket = url.path.split("/")[5]
            if fake.write(bucket, name, media.get_payload(decode=True), query.get("ifGenerationMatch")) is None:
                self.reply_json({"error": {"code": 412, "message": "conditionNotMet"}}, 412)
            else:
                self.reply_json(fake.describe(bucket, name))

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            parts = url.path.removeprefix("/download").split("/")
            bucket, name = parts[4], unquote("/".join(parts[6:]))
            if not name:
                self.list(bucket, query)
            elif (bucket, name) not in fake.objects:
                self.reply_json({"error": {"code": 404, "message": "No such object"}}, 404)
            elif query.get("ifGenerationMatch", "") not in ("", str(fake.objects[bucket, name][1])):
                self.reply_json({"error": {"code": 412, "message": "conditionNotMet"}}, 412)
            elif query.get("alt") == "media":
                self.reply(200, fake.objects[bucket, name][0], "application/octet-stream")
            else:
                self.reply_json(fake.describe(bucket, name))

        def list(self, bucket: str, query: dict[str, str]) -> None:
            prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
            names = [n for b, n in fake.objects if b == bucket and n.startswith(prefix)]
            if delimiter:
                names = [n for n in names if delimiter not in n[len(prefix) :]]
            self.reply_json({"items": [fake.describe(bucket, name) for name in sorted(names)]})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield fake, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
