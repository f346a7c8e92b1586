"""A receiver of webhooks on loopback, in a thread: it keeps what comes, and answers as a test wants."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "a-secret-that-nobody-has-seen-0123456789"


@dataclass(frozen=True)
class Received:
    """One request as it came."""

    path: str
    headers: Mapping[str, str]
    raw: bytes

    @property
    def body(self) -> dict[str, Any]:
        return json.loads(self.raw)

    @property
    def is_signed(self) -> bool:
        """Whether the signature is right, by the few lines that docs/webhooks.md tells receivers to write."""
        signed = self.headers["RecCocktail-Timestamp"].encode() + b"." + self.raw
        wanted = "sha256=" + hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
        return hmac.compare_digest(wanted, self.headers["RecCocktail-Signature"])


Answering = Callable[[Received], "int | tuple[int, Mapping[str, str], bytes]"]


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever sent it did not wait for the answer."""


class Receiver:
    """`answer` may be replaced: (request) → a status code, or that with headers and a body. Whoever signs uses the `secret`."""

    secret = SECRET

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.answer: Answering = lambda request: 204
        self._server = _Quiet(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), name="receiver", daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [each.body for each in self.received]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                if len(raw) < int(self.headers["Content-Length"]):  # whoever sent it is gone
                    return
                request = Received(self.path, dict(self.headers), raw)
                receiver.received.append(request)
                found = receiver.answer(request)
                code, headers, body = (found, {}, b"") if isinstance(found, int) else found
                self.send_response(code)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                receiver.received.append(Received(f"GET {self.path}", dict(self.headers), b""))
                self.send_error(405)

            def log_message(self, *args: Any) -> None:
                pass

        return Handler
