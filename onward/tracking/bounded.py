"""Calls to a tracking server that end: one that is silent, or drips, holds nobody for ever.

MLflow's own time-out is for each piece that arrives, and each call is made four times: a server
that accepts and never answers costs eight minutes, and one that sends a byte a second all the time
there is. Files go another way: how long they may take is not known here.
"""

from __future__ import annotations

import http.client
import io
import logging
import socket
import threading
import time
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import MaxRetryError, ReadTimeoutError
from urllib3.response import BaseHTTPResponse
from urllib3.util.retry import Retry

from onward.tracking.translate import MAX_PAUSE_SECONDS
from onward.words.language import _
from onward.words.redact import redact

log = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
FIRST_SECONDS = 20.0  # until the server has answered once
CALL_SECONDS = 60.0
TELL_SECONDS = 3.0  # of waiting for the first answer

_call = threading.local()  # `ends`: when the call of this thread must be over


def _seconds_left() -> float:
    return getattr(_call, "ends", float("inf")) - time.monotonic()


class BoundedCalls(HTTPAdapter):
    """Makes requests to a server that are over in time, answer and tries again included.

    Args:
        server: Its address, to be shown.
        retries: How often a request is tried again.
    """

    def __init__(self, server: str, retries: Retry) -> None:
        self._server = redact(server)
        self._has_answered = self._is_told = False
        self._began: dict[int, float] = {}  # thread to when its call began
        super().__init__(max_retries=retries)

    @classmethod
    def mount(cls, session: requests.Session, server: str) -> BoundedCalls:
        """Let the calls of MLflow's `session` to the tracking server go through such an adapter."""
        usual = session.adapters["https://"].max_retries  # type: ignore[attr-defined]
        names = ("total", "connect", "read", "redirect", "status", "allowed_methods")
        more = ("status_forcelist", "backoff_factor", "respect_retry_after_header")
        calls = cls(server, _InTime(**{name: getattr(usual, name) for name in (*names, *more)}))
        for service in ("2.0/mlflow/", "3.0/mlflow/", "2.0/mlflow-artifacts/"):
            address = f"{server.rstrip('/')}/api/{service}"
            session.mount(str(requests.Request("GET", address).prepare().url), calls)
        return calls

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make connections whose answers end in time."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        """Return the same for a proxy."""
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = _POOLS
        return manager

    def send(  # type: ignore[override]
        self, request: requests.PreparedRequest, stream: bool = False, timeout: Any = None,
        **options: Any,
    ) -> requests.Response:  # fmt: skip
        """Send a request, and read the whole answer, but of a file."""
        if request.method == "PUT" or (stream and request.method == "GET"):
            return super().send(request, stream, timeout, **options)
        seconds = CALL_SECONDS if self._has_answered else FIRST_SECONDS
        if isinstance(timeout, int | float):
            seconds = min(seconds, timeout)
        teller = None
        if not (self._has_answered or self._is_told):
            teller = threading.Timer(TELL_SECONDS, self._tell)
            teller.daemon = True
            teller.start()
        thread = threading.get_ident()
        self._began[thread] = time.monotonic()
        _call.ends = time.monotonic() + seconds
        try:
            limits = (min(CONNECT_SECONDS, seconds), seconds)
            response = super().send(request, stream, limits, **options)
            _ = response.content  # here, where the time is limited
            self._has_answered = True
            return response
        finally:
            _call.ends = float("inf")
            self._began.pop(thread, None)
            if teller is not None:
                teller.cancel()

    def silent_seconds(self) -> float:
        """Return for how long the oldest call under way has been waiting."""
        began = list(self._began.values())
        return time.monotonic() - min(began) if began else 0.0

    def _tell(self) -> None:
        self._is_told = True
        log.warning(_("Waiting for the server at %s …"), self._server)


class _InTime(Retry):
    """Tries nothing again once the time of the call is over, and never waits for longer."""

    def increment(self, method: str | None = None, url: str | None = None, *args: Any,
                  **kwargs: Any) -> _InTime:  # fmt: skip
        error, pool = kwargs.get("error"), kwargs.get("_pool")
        is_over = isinstance(error, ReadTimeoutError) or _seconds_left() <= 0
        if is_over and pool is not None:
            raise MaxRetryError(pool, url or "", error)
        return super().increment(method, url, *args, **kwargs)

    def get_backoff_time(self) -> float:
        return max(0.0, min(super().get_backoff_time(), _seconds_left()))

    def get_retry_after(self, response: BaseHTTPResponse) -> float | None:
        asked = super().get_retry_after(response)
        return None if asked is None else max(0.0, min(asked, _seconds_left(), MAX_PAUSE_SECONDS))


class _UntilEnd(io.RawIOBase):
    """Reads from a socket until the call's time is over, however little comes at a time."""

    def __init__(self, raw: Any, connection: socket.socket, ends: float) -> None:
        self._raw, self._connection, self._ends = raw, connection, ends

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._ends - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._connection.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        ends = getattr(_call, "ends", float("inf"))
        if ends < float("inf"):
            self.fp = io.BufferedReader(_UntilEnd(self.fp.detach(), sock, ends))


class _Plain(HTTPConnection):
    response_class = _Answer


class _Secure(HTTPSConnection):
    response_class = _Answer


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _Plain


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _Secure


_POOLS = {"http": _PlainPool, "https": _SecurePool}
