"""The two ends of the proxy's measurement, each a process of its own.

`peers.py serve` prints its port and answers `echo\n` with every byte back, `send N\n` with N bytes.
`peers.py fetch PORT TUNNEL KIND COUNT` connects, opens a tunnel first if TUNNEL is `tunnel`, and
prints the milliseconds that it took as a JSON list: KIND `opens` (connect to first byte, COUNT
times), `pings` (one byte there and back on one connection, COUNT times), `bytes` (COUNT bytes).
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time

_BUFFER = 1 << 18


def _answer(sock: socket.socket) -> None:
    with sock, sock.makefile("rb", buffering=0) as lines:
        words = lines.readline().split()
        if words[:1] == [b"send"]:
            left, block = int(words[1]), bytes(_BUFFER)
            while left > 0:
                left -= sock.send(block[:left])
            return
        while data := sock.recv(4096):
            sock.sendall(data)


def serve() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            sock, _ = listener.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_answer, args=(sock,), daemon=True).start()


def _open(port: int, tunnel: bool) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if tunnel:
        sock.sendall(b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n")
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(1)
        if b" 200 " not in head.split(b"\r\n")[0]:
            raise SystemExit(head.decode("latin-1"))
    return sock


def _opens(port: int, tunnel: bool) -> float:
    began = time.perf_counter()
    with _open(port, tunnel) as sock:
        sock.sendall(b"echo\nx")
        sock.recv(1)
        return (time.perf_counter() - began) * 1e3


def _pings(port: int, tunnel: bool, count: int) -> list[float]:
    took = []
    with _open(port, tunnel) as sock:
        sock.sendall(b"echo\n")
        for _ in range(count):
            began = time.perf_counter()
            sock.sendall(b"x")
            sock.recv(1)
            took.append((time.perf_counter() - began) * 1e3)
    return took


def _transfer(port: int, tunnel: bool, count: int) -> float:
    with _open(port, tunnel) as sock:
        began = time.perf_counter()
        sock.sendall(f"send {count}\n".encode())
        got, buffer = 0, bytearray(_BUFFER)
        while size := sock.recv_into(buffer):
            got += size
        if got != count:
            raise SystemExit(f"{got} of {count} bytes came")
        return (time.perf_counter() - began) * 1e3


def fetch(port: int, tunnel: bool, kind: str, count: int) -> list[float]:
    if kind == "opens":
        return [_opens(port, tunnel) for _ in range(count)]
    if kind == "pings":
        return _pings(port, tunnel, count)
    return [_transfer(port, tunnel, count)]


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        port, tunnel, kind, count = sys.argv[2:6]
        print(json.dumps(fetch(int(port), tunnel == "tunnel", kind, int(count))))
