"""A server that is restarted, behind a gateway and a network that fail now and then."""

from __future__ import annotations

import random
import threading
from collections import Counter

from gateway import Gateway
from proxy import FaultyProxy
from support import Server

CONNECTIONS = ("reset", "delay", "freeze", ("cut", 300), ("cut", 9_000), ("cut", 100_000))
STATUSES = (500, 503, 429)
CALM_SECONDS, BAD_SECONDS, AWAY_SECONDS = (3.0, 12.0), (0.5, 3.0), (0.0, 5.0)


class Disturber:
    """Lets one thing after the other go wrong, as it is drawn, until it is stopped.

    Args:
        server: A running one.
        draw: Draws what, and for how long.
    """

    def __init__(self, server: Server, draw: random.Random) -> None:
        self._server, self._draw, self._stopped = server, draw, threading.Event()
        self._gateway = Gateway(server.port, lambda *_: None, {"Retry-After": "1"})
        self._proxy = FaultyProxy(self._gateway.port)
        self.address, self.done = self._proxy.address, Counter[str]()

    def run(self) -> None:
        """Disturb until `stop`; then all is as it should be."""
        while not self._stopped.wait(self._draw.uniform(*CALM_SECONDS)):
            kind = self._draw.choice(["connection", "status", "connection", "status", "restart"])
            getattr(self, f"_{kind}")()
        self._proxy.close()
        self._gateway.close()

    def stop(self) -> None:
        """Let no more go wrong."""
        self._stopped.set()

    def _last(self, seconds: tuple[float, float] = BAD_SECONDS) -> None:
        self._stopped.wait(self._draw.uniform(*seconds))

    def _connection(self) -> None:
        fault = self._draw.choice(CONNECTIONS)
        self.done[str(fault)] += 1
        self._proxy.fault = fault
        self._last()
        self._proxy.fault = None

    def _status(self) -> None:
        status = self._draw.choice(STATUSES)
        self.done[str(status)] += 1
        self._gateway.rule = lambda *_: status
        self._last()
        self._gateway.rule = lambda *_: None

    def _restart(self) -> None:
        self.done["restart"] += 1
        self._server.stop()
        self._last(AWAY_SECONDS)
        self._server.start()
