"""A TCP proxy on 127.0.0.1 that misbehaves as it is told."""

from __future__ import annotations

import collections
import contextlib
import socket
import struct
import threading
import time

UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class FaultyProxy:
    """Passes bytes between clients and a server.

    `fault` may be changed at any time:
        None            pass everything
        "reset"         break every connection off
        "503"           answer every request so
        "delay"         hold every piece back for a tenth of a second
        "freeze"        pass nothing, and break nothing off, as long as it is set
        ("freeze", b)   do so from the first piece that holds the bytes b
        ("cut", n)      pass n bytes of each answer and n of each request, then break off
        ("late", s)     hold every piece back for s seconds
        ("slow", n)     pass n bytes a second
    """

    def __init__(self, port: int) -> None:
        self.fault: object = None
        self._hits: collections.Counter[object] = collections.Counter()
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def num_hits(self, fault: object) -> int:
        """Return how many pieces went through while `fault` was set."""
        return self._hits[fault]

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._target)
        except OSError:
            return self._break(client)
        ends = (client, server)
        threading.Thread(target=self._pump, args=(server, client, ends), daemon=True).start()
        self._pump(client, server, ends)

    def _pump(self, source: socket.socket, target: socket.socket, ends) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                fault = self.fault
                self._hits[fault] += 1
                if isinstance(fault, tuple) and fault[0] == "freeze":
                    if fault[1] in piece:
                        self.fault = "freeze"
                    fault = None
                while self.fault == "freeze":
                    time.sleep(0.02)
                if fault == "delay":
                    fault = ("late", 0.1)
                if isinstance(fault, tuple) and fault[0] in ("late", "slow"):
                    time.sleep(fault[1] if fault[0] == "late" else len(piece) / fault[1])
                    fault = None
                if fault == "503" and source is ends[0]:
                    source.sendall(UNAVAILABLE)
                    break
                if fault == "reset":
                    break
                if isinstance(fault, tuple) and passed + len(piece) > fault[1]:
                    target.sendall(piece[: max(0, fault[1] - passed)])
                    break
                passed += len(piece)
                target.sendall(piece)
        for end in ends:
            self._break(end)

    def _break(self, end: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self.fault is not None:  # RST in place of an orderly end
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads from it
        end.close()
