"""The two ends of the proxy's measurement, each a process of its own.

`peers.py serve` prints its port; past a TLS greeting, which the proxy insists on and every route
therefore sends, it answers `echo` and a newline with every byte back, `send N` with N bytes. An
HTTP request for `/length/N` or `/chunks/N` gets N bytes in that framing (chunks of 16 KiB).
`peers.py fetch PORT TUNNEL KIND COUNT` connects, opens a tunnel first if TUNNEL is `tunnel`, and
prints the milliseconds that it took as a JSON list: KIND `opens` (connect to first byte, COUNT
times), `pings` (one byte there and back on one connection, COUNT times), `bytes` (COUNT bytes),
`length` and `chunks` (COUNT bytes by plain HTTP).
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import threading
import time

_BUFFER = 1 << 18


def _answer(sock: socket.socket) -> None:
    with sock:
        header = _exactly(sock, 5)  # of a TLS record: kind, version, length
        if header == b"GET /":
            _answer_http(sock)
            return
        _exactly(sock, int.from_bytes(header[3:], "big"))
        words = _line(sock).split()
        if words[:1] == [b"send"]:
            left, block = int(words[1]), bytes(_BUFFER)
            while left > 0:
                left -= sock.send(block[:left])
            return
        while data := sock.recv(4096):
            sock.sendall(data)


def _answer_http(sock: socket.socket) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        head += sock.recv(4096)
    framing, _, size = head.split(b" ")[0].partition(b"/")
    if framing == b"length":
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: " + size + b"\r\n\r\n")
        block, end = bytes(_BUFFER), b""
    else:
        sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"4000\r\n" + bytes(0x4000) + b"\r\n"
        block, end = chunk * (_BUFFER // 0x4000), b"0\r\n\r\n"
    for _ in range(int(size) // _BUFFER):
        sock.sendall(block)
    sock.sendall(end)


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise ConnectionError("the other side closed early")
        data += piece
    return data


def _line(sock: socket.socket) -> bytes:
    text = b""
    while not text.endswith(b"\n"):
        text += _exactly(sock, 1)
    return text


def _greeting(name: str) -> bytes:
    """The first record that a TLS client sends; nothing ever answers it here."""
    outgoing = ssl.MemoryBIO()
    context = ssl.create_default_context()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


def serve() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            sock, _ = listener.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_answer, args=(sock,), daemon=True).start()


def _open(port: int, tunnel: bool, hello: bytes) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if tunnel:
        sock.sendall(b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n")
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(1)
        if b" 200 " not in head.split(b"\r\n")[0]:
            raise SystemExit(head.decode("latin-1"))
    sock.sendall(hello)
    return sock


def _opens(port: int, tunnel: bool, hello: bytes) -> float:
    began = time.perf_counter()
    with _open(port, tunnel, hello) as sock:
        sock.sendall(b"echo\nx")
        _exactly(sock, 1)
        return (time.perf_counter() - began) * 1e3


def _pings(port: int, tunnel: bool, hello: bytes, count: int) -> list[float]:
    took = []
    with _open(port, tunnel, hello) as sock:
        sock.sendall(b"echo\n")
        for _ in range(count):
            began = time.perf_counter()
            sock.sendall(b"x")
            _exactly(sock, 1)
            took.append((time.perf_counter() - began) * 1e3)
    return took


def _transfer(port: int, tunnel: bool, hello: bytes, count: int) -> float:
    with _open(port, tunnel, hello) as sock:
        began = time.perf_counter()
        sock.sendall(f"send {count}\n".encode())
        got, buffer = 0, bytearray(_BUFFER)
        while size := sock.recv_into(buffer):
            got += size
        if got != count:
            raise SystemExit(f"{got} of {count} bytes came")
        return (time.perf_counter() - began) * 1e3


def _request(port: int, tunnel: bool, framing: str, count: int) -> float:
    with socket.create_connection(("127.0.0.1", port)) as sock:
        began = time.perf_counter()
        target = f"http://example.org/{framing}/{count}" if tunnel else f"/{framing}/{count}"
        sock.sendall(f"GET {target} HTTP/1.1\r\nHost: example.org\r\n".encode())
        sock.sendall(b"Connection: close\r\n\r\n")
        got, buffer = 0, bytearray(_BUFFER)
        while size := sock.recv_into(buffer):
            got += size
        if got < count:
            raise SystemExit(f"{got} of {count} bytes came")
        return (time.perf_counter() - began) * 1e3


def fetch(port: int, tunnel: bool, kind: str, count: int) -> list[float]:
    hello = _greeting("example.org")
    if kind == "opens":
        return [_opens(port, tunnel, hello) for _ in range(count)]
    if kind == "pings":
        return _pings(port, tunnel, hello, count)
    if kind in ("length", "chunks"):
        return [_request(port, tunnel, kind, count)]
    return [_transfer(port, tunnel, hello, count)]


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        port, tunnel, kind, count = sys.argv[2:6]
        print(json.dumps(fetch(int(port), tunnel == "tunnel", kind, int(count))))
