"""A receiver of webhooks: a real HTTP server whose answers the test decides."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cell_process import DEADLINE_S


class Receiver(ThreadingHTTPServer):
    """Keeps what it is sent; `verdict` says with which status a body is answered."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: list[tuple[str, str, bytes]] = []
        """Id, signature and body of each request that was answered 200."""
        self.refused = 0
        self.verdict: Callable[[Any], int] = lambda body: 200
        self.news = threading.Condition()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook?a=b"

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        with self.news:
            assert self.news.wait_for(condition, DEADLINE_S), f"{what}: {len(self.received)}"

    def ids(self) -> list[str]:
        """Of the events, in the order in which each came first."""
        return list(dict.fromkeys(id for id, _, _ in self.received))


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        status = self.server.verdict(json.loads(body))
        with self.server.news:
            if status == 200:
                id, signature = self.headers["x-webhook-id"], self.headers["x-signature"]
                self.server.received.append((id, signature, body))
            else:
                self.server.refused += 1
            self.server.news.notify_all()
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: it would go to stderr."""
