"""Credentials at the wall: secrets that the egress proxy adds, and the sandbox never holds.

A sandbox has a certificate authority of its own, whose key exists in this process's memory alone.
It may certify nothing but the hosts that have credentials, and nobody trusts it but the sandbox.
So the proxy can be the TLS server of such a host towards the inside, read the request, set the
secret and pass it on over TLS of its own. What this does not promise: a host that repeats what it
was sent tells the sandbox its secret, and whoever may use a secret may use it for anything that
the host lets it do.
"""

from __future__ import annotations

import hashlib
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import h11

from sandlot.core.errors import ConfigError, MissingExtra
from sandlot.sandbox.egress_http import CONNECTION_HEADERS
from sandlot.sandbox.egress_names import host_matches
from sandlot.sandbox.hostconfig import CA_BUNDLE, CA_VARIABLES, HostConfig
from sandlot.sandbox.policy import Credential, Network

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

_LIFE = timedelta(days=7)
_CLOCKS_DIFFER = timedelta(hours=1)
_CONTEXTS = 64
_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


@dataclass(frozen=True, slots=True)
class InsideTrust:
    """What makes the clients inside trust a wall: files by absolute path, and variables."""

    files: dict[str, bytes]
    environment: dict[str, str]


def inside_files_and_environment(ca_pem: bytes, machine_bundle: bytes) -> InsideTrust:
    """The trust of a sandbox with a wall: the machine's CA bundle (PEM) and the wall's own."""
    bundle = machine_bundle.rstrip(b"\n") + b"\n" if machine_bundle else b""
    return InsideTrust({CA_BUNDLE: bundle + ca_pem}, dict.fromkeys(CA_VARIABLES, CA_BUNDLE))


class CredentialWall:
    """The credentials of one sandbox and the certificate authority that lets them be added.

    `upstream` is the TLS context towards the real hosts; it must verify them.

    Raises:
        MissingExtra: the library for certificates is not installed.
        ConfigError: a header that no request can have, or that only the proxy may set.
    """

    def __init__(
        self, credentials: Sequence[Credential], now: datetime, upstream: ssl.SSLContext
    ) -> None:
        for item in credentials:
            _check_header(item)
        self._credentials = tuple(credentials)
        self._authority = CertificateAuthority([item.host for item in credentials], now)
        self._contexts: dict[str, ssl.SSLContext] = {}
        self.upstream = upstream

    @property
    def name(self) -> str:
        """A word of its own for this wall, fit for a file's name."""
        return hashlib.sha256(self.ca_pem).hexdigest()[:16]

    def trust(self, machine_bundle: bytes) -> InsideTrust:
        """See `inside_files_and_environment`."""
        return inside_files_and_environment(self.ca_pem, machine_bundle)

    def trusting(self, config: HostConfig) -> HostConfig:
        """A machine's configuration whose trust has this wall in it."""
        trust = self.trust(config.ca_bundle)
        return replace(
            config,
            files={**config.files, **trust.files},
            environment={**config.environment, **trust.environment},
        )

    @property
    def ca_pem(self) -> bytes:
        """The authority's certificate, for the sandbox to trust."""
        return self._authority.certificate_pem

    def guards(self, host: str) -> bool:
        return any(host_matches(host, item.host) for item in self._credentials)

    def headers(self, host: str) -> list[tuple[str, str]]:
        """The headers that requests for a host get, by name and value."""
        return [
            (item.header, item.secret)
            for item in self._credentials
            if host_matches(host, item.host)
        ]

    def server_context(self, host: str) -> ssl.SSLContext:
        """What the proxy needs to be the TLS server of a host; one certificate for each host."""
        if host not in self._contexts:
            if len(self._contexts) >= _CONTEXTS:  # a pattern lets the inside ask for any number
                self._contexts.clear()
            self._contexts[host] = server_context(*self._authority.issue(host))
        return self._contexts[host]


def wall_for(network: Network, config: HostConfig) -> CredentialWall | None:
    """What keeps the credentials of one sandbox (and of its forks); None where it has none.

    Raises:
        MissingExtra: there are some, and the library for certificates is not installed.
        ConfigError: one of them cannot be sent.
    """
    if not network.credentials:
        return None
    upstream = upstream_context(config.ca_bundle)
    return CredentialWall(network.credentials, datetime.now(UTC), upstream)


def _check_header(credential: Credential) -> None:
    try:
        name, value = credential.header.encode("ascii"), credential.secret.encode()
        h11.Request(method="GET", target="/", headers=[(b"host", b"x"), (name, value)])
        valid = name.lower() not in CONNECTION_HEADERS
    except (h11.LocalProtocolError, UnicodeEncodeError):
        valid = False
    if not valid:
        raise ConfigError(
            f"the credential for {credential.host!r} cannot be sent as header "
            f"{credential.header!r}; name one like authorization or x-api-key"
        )


def upstream_context(machine_bundle: bytes = b"") -> ssl.SSLContext:
    """A client's TLS context that verifies, by the system's certificates and a bundle (PEM)."""
    context = ssl.create_default_context()
    if machine_bundle:
        context.load_verify_locations(cadata=machine_bundle.decode("ascii"))
    context.set_alpn_protocols(["http/1.1"])
    return context


def server_context(chain_pem: bytes, key_pem: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # `ssl` loads keys from files only; this one is a piece of memory without a name.
    file = os.memfd_create("leaf", os.MFD_CLOEXEC)
    try:
        os.write(file, key_pem + chain_pem)
        context.load_cert_chain(f"/proc/self/fd/{file}")
    finally:
        os.close(file)
    return context


class CertificateAuthority:
    """A short-lived authority that can certify `hosts` (and names below them) and no others.

    Source: RFC 5280 sections 4.2.1.9 and 4.2.1.10 for the constraints.
    """

    def __init__(self, hosts: Sequence[str], now: datetime) -> None:
        try:
            from cryptography.hazmat.primitives.asymmetric import ec
        except ImportError as error:
            raise MissingExtra("a credential at the wall", "credentials") from error
        self._now = now
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = self._self_signed(hosts)
        self.certificate_pem = _pem(self._certificate)

    def issue(self, host: str) -> tuple[bytes, bytes]:
        """A new certificate (PEM) for one host, and its key (PEM)."""
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID

        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            self._builder(_name(host), key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=True)
            .add_extension(_usage("digital_signature"), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        )
        key_pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return _pem(self._sign(builder)), key_pem

    def _self_signed(self, hosts: Sequence[str]) -> x509.Certificate:
        from cryptography import x509

        names = dict.fromkeys(host.removeprefix("*.").lower() for host in hosts)
        builder = (
            self._builder(_name("sandlot sandbox"), self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
            .add_extension(
                x509.NameConstraints([x509.DNSName(name) for name in names], _every_address()),
                critical=True,
            )
        )
        return self._sign(builder)

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey
    ) -> x509.CertificateBuilder:
        from cryptography import x509

        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(_name("sandlot sandbox"))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - _CLOCKS_DIFFER)
            .not_valid_after(self._now + _LIFE)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(authority, critical=False)
        )

    def _sign(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        from cryptography.hazmat.primitives import hashes

        return builder.sign(self._key, hashes.SHA256())


def _name(common: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _usage(*allowed: str) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(**{name: name in allowed for name in _USAGES})


def _every_address() -> list[x509.GeneralName]:
    import ipaddress

    from cryptography import x509

    return [x509.IPAddress(ipaddress.ip_network(text)) for text in ("0.0.0.0/0", "::/0")]


def _pem(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return certificate.public_bytes(serialization.Encoding.PEM)
