"""An HTTP gateway on 127.0.0.1 that refuses what it is told to, before a real server."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Rule = Callable[[str, str, int], "int | None"]  # (method, path, bytes of the body)


class Gateway:
    """Passes requests on, but those for which `rule` returns a status: it answers them so.

    Args:
        port: The server's.
        rule: May be changed at any time.
        headers: What an answer of its own has besides.
    """

    def __init__(self, port: int, rule: Rule, headers: dict[str, str] | None = None) -> None:
        self.rule, self.headers = rule, headers or {}
        self.refused: list[tuple[str, str, int]] = []
        self.passed: list[tuple[str, str, int]] = []
        gateway = self

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_) -> None:
                pass  # of clients that are gone

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                gateway._handle(self, port)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = handle_any

            def log_message(self, *_) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        self.address = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Take no more requests."""
        self._server.shutdown()
        self._server.server_close()

    def _handle(self, request: BaseHTTPRequestHandler, port: int) -> None:
        body = request.rfile.read(int(request.headers.get("content-length") or 0))
        asked = (request.command, request.path, len(body))
        status = self.rule(*asked)
        if status is not None:
            self.refused.append(asked)
            page = b"<html><h1>%d</h1></html>" % status
            self._answer(request, status, {"Content-Type": "text/html", **self.headers}, page)
            return
        self.passed.append(asked)
        server = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        sent = {k: v for k, v in request.headers.items() if k.lower() not in ("host", "connection")}
        try:
            server.request(request.command, request.path, body, sent)
            answer = server.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException):  # it is away: so is the gateway
            request.close_connection = True
            return
        own = ("transfer-encoding", "connection", "content-length", "server", "date")
        headers = {k: v for k, v in answer.getheaders() if k.lower() not in own}
        self._answer(request, answer.status, headers, content)
        server.close()

    def _answer(self, request, status: int, headers: dict[str, str], content: bytes) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if request.command != "HEAD":
            with contextlib.suppress(OSError):
                request.wfile.write(content)
