"""What of this machine's own package configuration enters a sandbox, as data.

Only known settings are copied, each one parsed and written anew: index and registry addresses,
package sources, CA certificates, two date checks of apt. Nothing is copied as a whole, so
comments, unknown keys, other sections and everything else of the home folder and environment stay
outside. User names, passwords, query strings and fragments are cut from every address. What
cannot be told apart: a token that is an ordinary part of an address's path.
"""

from __future__ import annotations

import configparser
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sandlot.sandbox.hostconfig_others import (
    CARGO_CONFIG,
    CONDARC,
    read_cargo,
    read_conda,
    read_go,
    read_uv_files,
)
from sandlot.sandbox.hostconfig_reader import (
    HOST_NAME,
    HostReader,
    Run,
    is_host_name,
    run_program,
)

CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
"""Where the CA bundle lies inside."""

CA_VARIABLES = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
    "CARGO_HTTP_CAINFO",
)
_CA_PLACES = (
    CA_BUNDLE,
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_NPMRC = "/etc/npmrc"
_APT_CHECKS = "/etc/apt/apt.conf.d/91host-date-checks"


@dataclass(frozen=True, slots=True)
class HostConfig:
    """Configuration for the inside.

    `files` and `apt_sources` map an absolute path inside to its content; `apt_sources` (with the
    keyrings that they name) fit only an image of the host's own release. `apt_checks` are the
    date checks that the host's apt has switched off; a file among `files` holds them already.
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    package_hosts: frozenset[str] = frozenset()
    apt_sources: Mapping[str, bytes] = field(default_factory=dict)
    apt_checks: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def ca_bundle(self) -> bytes:
        """The certificates (PEM) that this machine's clients trust; empty where none were found."""
        return self.files.get(CA_BUNDLE, b"")


def proxy_environment(port: int) -> dict[str, str]:
    """Variables that send clients inside to the egress proxy on their own loopback."""
    proxy = f"http://127.0.0.1:{port}"
    local = "localhost,127.0.0.1"
    lower = {"http_proxy": proxy, "https_proxy": proxy, "no_proxy": local}
    return lower | {name.upper(): value for name, value in lower.items()}


def apt_settings(single_id: bool, checks: Iterable[str] = ()) -> bytes:
    """A file for /etc/apt/apt.conf.d.

    `single_id` says that only one user id exists inside, so that apt cannot change to a user of
    its own. `checks` are `HostConfig.apt_checks`.
    """
    lines = ['APT::Sandbox::User "root";'] if single_id else []
    lines += [f'Acquire::{check} "false";' for check in checks]
    return "".join(line + "\n" for line in lines).encode()


def read_host(
    env: Mapping[str, str], home: Path, root: Path = Path("/"), *, run: Run | None = None
) -> HostConfig:
    """Read the configuration of pip, uv, apt, npm, conda, cargo, go and the CA bundle.

    `env` is also the environment of the programs that are asked (Python for pip's default index;
    npm, conda and go for theirs) unless `run` is given. A file that cannot be read is a warning.
    """
    host = HostReader(env, home, root, run or partial(run_program, env))
    bundle = _read_bundle(host)
    pip = _read_pip(host)
    uv = _read_uv(host, pip)
    npm = _read_npm(host)
    apt_sources = _read_apt_sources(host)
    apt_checks = _read_apt_checks(host)
    files = {
        CA_BUNDLE: bundle,
        "/etc/pip.conf": _pip_file(pip, CA_BUNDLE if bundle else None),
        _NPMRC: _npm_file(npm, CA_BUNDLE if bundle else None),
        CONDARC: read_conda(host, CA_BUNDLE if bundle else None),
        CARGO_CONFIG: read_cargo(host),
        _APT_CHECKS: apt_settings(False, apt_checks),
    }
    environment = dict.fromkeys(CA_VARIABLES, CA_BUNDLE) if bundle else {}
    environment |= uv | read_go(host)
    environment |= {"NPM_CONFIG_GLOBALCONFIG": _NPMRC} if files[_NPMRC] else {}
    return HostConfig(
        files={path: content for path, content in files.items() if content},
        environment=environment,
        package_hosts=frozenset(host.names),
        apt_sources=apt_sources,
        apt_checks=apt_checks,
        warnings=tuple(dict.fromkeys(host.warnings)),
    )


# CA bundle

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")


def _read_bundle(host: HostReader) -> bytes:
    """The certificates (and nothing else) of the bundles that this machine's clients use."""
    named = [host.path(host.env[name]) for name in CA_VARIABLES if host.env.get(name)]
    default = next((path for path in map(host.path, _CA_PLACES) if path.is_file()), None)
    paths = dict.fromkeys(path for path in [default, *named] if path is not None)
    found = (match for path in paths for match in _CERTIFICATE.findall(host.read(path)))
    return "".join(f"{block}\n" for block in dict.fromkeys(found)).encode()


# pip and uv

_PIP_KEYS = ("index-url", "extra-index-url", "trusted-host", "timeout")
_PipSettings = dict[str, list[str]]


def _read_pip(host: HostReader) -> _PipSettings:
    """pip's index settings, cleaned; notes pip's own default index where none is configured."""
    raw: dict[str, tuple[str, str]] = {}
    for path in _pip_paths(host):
        for key, value in _pip_file_values(host, path):
            raw[key] = (value, f"{path}: {key}")
    for key in (*_PIP_KEYS, "default-timeout"):
        name = "PIP_" + key.upper().replace("-", "_")
        if name in host.env:
            raw[_pip_key(key)] = (host.env[name], f"environment: {name}")
    settings = {key: _pip_values(host, key, *raw[key]) for key in _PIP_KEYS if key in raw}
    if not settings.get("index-url"):
        host.names |= _pip_default_hosts(host)
    elif settings["index-url"][0].split("/")[2] in (default := _pip_default_hosts(host)):
        host.names |= default  # the index's files lie on a host of their own
    return {key: values for key, values in settings.items() if values}


def _pip_key(key: str) -> str:
    return "timeout" if key == "default-timeout" else key


def _pip_paths(host: HostReader) -> list[Path]:
    """pip's configuration files, the later ones winning."""
    chosen = host.env.get("PIP_CONFIG_FILE", "")
    if chosen == "/dev/null":
        return []  # pip's own way to say: no files at all
    config = Path(host.env.get("XDG_CONFIG_HOME") or host.home / ".config")
    paths = [
        host.path("/etc/xdg/pip/pip.conf"),
        host.path("/etc/pip.conf"),
        host.home / ".pip/pip.conf",
        config / "pip/pip.conf",
    ]
    return [*paths, host.path(chosen)] if chosen else paths


def _pip_file_values(host: HostReader, path: Path) -> Iterator[tuple[str, str]]:
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read_string(host.read(path))
    except configparser.Error:
        host.warnings.append(f"{path}: not carried in (cannot be parsed)")
        return
    for section in ("global", "install"):
        if parser.has_section(section):
            for key, value in parser.items(section):
                name = _pip_key(key.replace("_", "-"))
                if name in _PIP_KEYS:
                    yield name, value or ""


def _pip_values(host: HostReader, key: str, value: str, where: str) -> list[str]:
    words = value.split()
    if key.endswith("url"):
        return [url for word in words if (url := host.url(word, where))]
    if key == "timeout":
        return [word for word in words if re.fullmatch(r"\d{1,6}(\.\d{1,3})?", word)][:1]
    return [
        word
        for word in words
        if HOST_NAME.fullmatch(word.partition(":")[0].lower())
        and re.fullmatch(r"[^:@/]+(:\d{1,5})?", word)
    ]


def _pip_file(settings: _PipSettings, bundle: str | None) -> bytes:
    lines = [f"{key} = {' '.join(values)}" for key, values in settings.items()]
    lines += [f"cert = {bundle}"] if bundle else []
    return "".join(f"{line}\n" for line in ["[global]", *lines]).encode() if lines else b""


# pip is asked for its default index: the environment of sandlot may lack pip, but Python carries
# a wheel of it.
_ASK_PIP = """
import glob, os, sys
try:
    import pip
except ImportError:
    import ensurepip
    bundled = os.path.join(os.path.dirname(ensurepip.__file__), "_bundled", "pip-*.whl")
    sys.path[:0] = (glob.glob(bundled) + glob.glob("/usr/share/python-wheels/pip-*.whl"))[:1]
from pip._internal.models.index import PyPI
print(PyPI.netloc, PyPI.file_storage_domain)
"""


def _pip_default_hosts(host: HostReader) -> set[str]:
    """pip's default index host and the host of that index's files."""
    for python in (sys.executable, "python3"):
        names = set(host.run([python, "-I", "-c", _ASK_PIP]).split())
        if names and all(map(is_host_name, names)):
            return names
    host.warnings.append("pip: its default index is not known, for no pip was found to ask")
    return set()


_UV_VARIABLES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL")


def _read_uv(host: HostReader, pip: _PipSettings) -> dict[str, str]:
    """uv's index variables, else its files; pip's index where uv has none of its own."""
    words = read_uv_files(host) | {
        name: (host.env[name], f"environment: {name}") for name in _UV_VARIABLES if name in host.env
    }
    found: dict[str, str] = {}
    for variable, (text, where) in words.items():
        cleaned = [index for word in text.split() if (index := _uv_index(host, word, where))]
        if cleaned:
            found[variable] = " ".join(cleaned)
    if not found.keys() & {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} and "index-url" in pip:
        found["UV_DEFAULT_INDEX"] = pip["index-url"][0]
    return found


def _uv_index(host: HostReader, word: str, where: str) -> str | None:
    """One `URL` or `NAME=URL`."""
    name = re.match(r"([A-Za-z0-9._-]+)=", word)
    url = host.url(word[name.end() :] if name else word, where)
    return f"{name[0]}{url}" if url and name else url


# npm

_NPM_KEY = re.compile(r"(?:@[A-Za-z0-9._~-]+:)?registry")


def _read_npm(host: HostReader) -> dict[str, str]:
    """npm's `registry` and `@scope:registry` settings, cleaned."""
    raw: dict[str, tuple[str, str]] = {}
    places = (host.path("/usr/etc/npmrc"), host.path(_NPMRC), host.home / ".npmrc")
    for path in places:
        for key, value in _npm_file_values(host.read(path)):
            raw[key] = (value, f"{path}: {key}")
    for name, value in host.env.items():
        if name.lower() == "npm_config_registry" and value:
            raw["registry"] = (value, f"environment: {name}")
    if "registry" not in raw:
        asked = host.run(["npm", "config", "get", "registry", "--logs-max=0"]).split()
        if asked and asked[-1].startswith("http"):
            raw["registry"] = (asked[-1], "npm config get registry")
    cleaned = {key: host.url(value, where) for key, (value, where) in raw.items()}
    return {key: url for key, url in cleaned.items() if url}


def _npm_file_values(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if _NPM_KEY.fullmatch(key.strip()):
            yield key.strip(), value.strip()


def _npm_file(settings: Mapping[str, str], bundle: str | None) -> bytes:
    if not settings:
        return b""
    lines = [f"{key}={url}" for key, url in settings.items()]
    lines += [f"cafile={bundle}"] if bundle else []
    return "".join(f"{line}\n" for line in lines).encode()


# apt

_APT_OPTIONS = frozenset({"arch", "signed-by", "trusted", "check-valid-until", "check-date"})
_APT_FIELDS = frozenset(
    {
        "types",
        "uris",
        "suites",
        "components",
        "architectures",
        "signed-by",
        "trusted",
        "check-valid-until",
        "check-date",
    }
)
_KEYRING = re.compile(r"/(?:etc/apt/(?:keyrings|trusted\.gpg\.d)|usr/share/keyrings)/[\w.+-]+")
_ONE_LINE = re.compile(r"(deb(?:-src)?)\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+([^#]+)")


def _read_apt_sources(host: HostReader) -> dict[str, bytes]:
    """The source lists, written anew, and the public keys that they name."""
    parts = host.path("/etc/apt/sources.list.d")
    paths = [host.path("/etc/apt/sources.list"), *sorted(parts.glob("*.list"))]
    written = {path: _one_line_sources(host, path) for path in paths}
    written |= {path: _deb822_sources(host, path) for path in sorted(parts.glob("*.sources"))}
    sources = {_inside(host, path): text for path, text in written.items() if text}
    keyrings = sorted({ring for text in sources.values() for ring in _KEYRING.findall(text)})
    keys = {ring: _key_bytes(host.path(ring)) for ring in keyrings}
    return {path: text.encode() for path, text in sources.items()} | {
        ring: key for ring, key in keys.items() if key
    }


def _inside(host: HostReader, path: Path) -> str:
    return "/" + path.relative_to(host.root).as_posix()


def _key_bytes(path: Path) -> bytes:
    """A keyring of public keys; one that holds a private key (in either form) stays outside."""
    try:
        data = path.read_bytes() if path.is_file() else b""
    except OSError:
        return b""
    # The first packet's tag (RFC 9580 section 4.2): 6 is a public key.
    tag = (data[0] & 0x3F if data[0] & 0x40 else data[0] >> 2 & 0xF) if data else 0
    public = data.startswith(b"-----BEGIN PGP PUBLIC KEY BLOCK-----") or tag == 6
    return data if public and b"PRIVATE KEY" not in data else b""


def _one_line_sources(host: HostReader, path: Path) -> str:
    lines: list[str] = []
    for line in host.read(path).splitlines():
        match = _ONE_LINE.match(line.strip())
        url = host.url(match[3], f"{path}: deb") if match else None
        if match and url:
            lines.append(" ".join([match[1], *_one_line_options(match[2]), url, match[4].strip()]))
    return "".join(f"{line}\n" for line in lines)


def _one_line_options(text: str | None) -> list[str]:
    words = [word for word in (text or "").split() if word.partition("=")[0] in _APT_OPTIONS]
    return [f"[{' '.join(words)}]"] if words else []


def _deb822_sources(host: HostReader, path: Path) -> str:
    stanzas = (_deb822_fields(text) for text in re.split(r"\n\s*\n", host.read(path)))
    written = (_deb822_stanza(host, path, fields) for fields in stanzas)
    return "\n".join(text for text in written if text)


def _deb822_fields(stanza: str) -> dict[str, str]:
    """Field name in lower case to its value, with the lines that continue it."""
    fields: dict[str, str] = {}
    name = ""
    for line in stanza.splitlines():
        if line.startswith("#"):
            continue
        if line[:1].isspace() and name:
            fields[name] += "\n" + line
        else:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
    return fields


def _deb822_stanza(host: HostReader, path: Path, fields: Mapping[str, str]) -> str:
    if fields.get("enabled", "yes").lower() in ("no", "false", "0", "off"):
        return ""
    words = fields.get("uris", "").split()
    urls = [url for word in words if (url := host.url(word, f"{path}: URIs"))]
    if not urls:
        return ""
    kept = {name: value for name, value in fields.items() if name in _APT_FIELDS}
    kept["uris"] = " ".join(urls)
    return "".join(f"{_APT_SPELLING.get(name, name.title())}: {kept[name]}\n" for name in kept)


_APT_SPELLING = {"uris": "URIs"}
_APT_COMMENT = re.compile(r"/\*.*?\*/|(?m:^\s*(?:#|//).*$)", re.DOTALL)
_APT_CHECK = re.compile(
    r"\b(Check-(?:Valid-Until|Date))\s+\"?(false|no|0|off)\"?\s*;", re.IGNORECASE
)


def _read_apt_checks(host: HostReader) -> tuple[str, ...]:
    """The date checks that are switched off; of apt's settings nothing else is looked at."""
    parts = host.path("/etc/apt/apt.conf.d")
    found: set[str] = set()
    for path in [host.path("/etc/apt/apt.conf"), *sorted(parts.glob("*"))]:
        text = _APT_COMMENT.sub("", host.read(path))
        found |= {match[1].title() for match in _APT_CHECK.finditer(text)}
    return tuple(sorted(found))
