"""The world outside a sandbox, on loopback: web servers that answer for names made up here."""

from __future__ import annotations

import functools
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sandlot.sandbox import egress
from sandlot.sandbox.credentials import CertificateAuthority, server_context
from sandlot.sandbox.egress_names import dial_address, resolve_on_host

HOSTS = ("api.example", "other.example")
_PUBLIC = "93.184.216.34"


@dataclass
class Outside:
    """Web servers for `HOSTS` over HTTP and HTTPS that serve the files of a folder."""

    folder: Path
    authority: CertificateAuthority
    ports: dict[int, int] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """The host and path of each request, and its headers (names in lower case)."""

    async def resolve(self, host: str, port: int) -> list[str]:
        return [_PUBLIC] if host in HOSTS else await resolve_on_host(host, port)

    async def dial(self, address: str, port: int) -> socket.socket:
        if address == _PUBLIC:
            return await dial_address("127.0.0.1", self.ports[port])
        return await dial_address(address, port)


class _Files(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    outside: Outside

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.outside.requests.append((f"{headers['host']}{self.path}", headers))
        super().do_GET()

    def log_message(self, *words: object) -> None:
        pass


@contextmanager
def serve_outside(folder: Path) -> Iterator[Outside]:
    """Web servers on loopback, with an authority that only this machine's bundle could name."""
    authority = CertificateAuthority(HOSTS, datetime.now(UTC))
    made = Outside(folder, authority)
    with ExitStack() as stack:
        made.ports = {
            80: stack.enter_context(_server(made, None)),
            443: stack.enter_context(_server(made, _contexts(authority))),
        }
        yield made


def _contexts(authority: CertificateAuthority) -> ssl.SSLContext:
    by_name = {host: server_context(*authority.issue(host)) for host in HOSTS}

    def choose(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        connection.context = by_name.get(name or "", by_name[HOSTS[0]])

    first = server_context(*authority.issue(HOSTS[0]))
    first.sni_callback = choose  # type: ignore[assignment]
    return first


@contextmanager
def _server(outside: Outside, tls: ssl.SSLContext | None) -> Iterator[int]:
    handler = functools.partial(
        type("Files", (_Files,), {"outside": outside}), directory=str(outside.folder)
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if tls is not None:
        server.socket = tls.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def lead_outside(outside: Outside, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the proxy of every new sandbox finds `HOSTS` on loopback.

    Their authority is in the CA bundle of the machine, as a company's would be.
    """
    bundle = state / "company.pem"
    bundle.write_bytes(outside.authority.certificate_pem)
    monkeypatch.setenv("GIT_SSL_CAINFO", str(bundle))
    proxy = functools.partial(egress.EgressProxy, resolve=outside.resolve, dial=outside.dial)
    monkeypatch.setattr(egress, "EgressProxy", proxy)
