"""The `host` image: no build at all, the machine's own /usr and /etc shown through overlays.

A plan only: this module reads the host and returns data; a backend turns it into mounts.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

_OVERLAID = ("usr", "etc")
# Links into /usr on a merged system, real folders on an older one.
_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_EMPTY = (
    "/home",
    "/media",
    "/mnt",
    "/opt",
    "/root",
    "/run",
    "/srv",
    "/tmp",
    "/var",
    "/var/cache",
    "/var/lib",
    "/var/log",
    "/var/tmp",
)
_SCANNED = ("etc", "usr/local/etc", "usr/etc")
# Matched against the path below the scanned folder, whatever its mode.
_SECRET_NAMES = (
    "*.jks",
    "*.kdbx",
    "*.key",
    "*.keytab",
    "*.ovpn",
    "*.p12",
    "*.pfx",
    "*/.netrc",
    "*credential*",
    "*secret*",
    "NetworkManager/system-connections",
    "apt/auth.conf",
    "apt/auth.conf.d",
    "boto.cfg",
    "ceph",
    "chatscripts",
    "cloud",
    "containers/auth.json",
    "cups",
    "docker",
    "exports",
    "fstab",
    "gshadow*",
    "ipsec.*",
    "iscsi",
    "krb5*",
    "kubernetes",
    "ldap",
    "letsencrypt",
    "machine-id",
    "msmtprc",
    "my.cnf",
    "mysql",
    "netplan",
    "npmrc",
    "opasswd",
    "openvpn",
    "pip.conf",
    "polkit-1",
    "postgresql",
    "ppp",
    "rancher",
    "samba",
    "security/opasswd",
    "shadow*",
    "ssh",
    "ssl/private",
    "sssd",
    "subgid-",
    "subuid-",
    "sudo*",
    "swanctl",
    "vault*",
    "wireguard",
    "wpa_supplicant*",
    "xpra",
)
_SECRET_TEXT = re.compile(
    rb"://[^/\s:@'\"]*:[^/\s@'\"]+@"
    rb"|-----BEGIN [A-Z ]*PRIVATE KEY"
    rb"|_authToken\s*="
    rb"|(?im:^\s*(?:export\s+)?[\w.-]*(?:password|secret|token|api[_-]?key|access[_-]?key)"
    rb"[\w.-]*\s*[=:]\s*['\"]?[^\s'\"$]{8,})"
)
# Shipped by Debian with placeholder passwords; programs need it.
_HARMLESS = ("ssl/openssl.cnf",)
_SCAN_LIMIT_BYTES = 1 << 18

_NOTE = (
    "The host's programs and libraries (/usr) and its configuration (/etc) stay readable inside, "
    "except the files in /etc that hold or may hold credentials; /home, /root, /opt, /run, /tmp, "
    "/var and all else are absent, so that apt has no package database here; for an ordinary user "
    "the files that root owns cannot be changed inside either (pip install --user or a venv works)."
)


@dataclass(frozen=True, slots=True)
class HostImage:
    """How to show the host as an image; every path is absolute, as seen inside.

    Attributes:
        overlays: folders of the host that become a read-only lower layer each.
        symlinks: link path to its target, to be made in the new root.
        masks: files and folders below the overlays that must be hidden; all exist on the host.
        empty_dirs: folders to be made empty, parents first.
        note: what stays readable, for the user.
    """

    overlays: tuple[str, ...]
    symlinks: dict[str, str]
    masks: tuple[str, ...]
    empty_dirs: tuple[str, ...]
    note: str


def host_layers(root: Path = Path("/")) -> HostImage:
    """Plan the `host` image of the machine whose files lie under `root`."""
    symlinks = {f"/{name}": os.readlink(root / name) for name in _MERGED if _is_link(root / name)}
    folders = [n for n in (*_OVERLAID, *_MERGED) if (root / n).is_dir() and f"/{n}" not in symlinks]
    return HostImage(
        overlays=tuple(f"/{name}" for name in folders),
        symlinks=symlinks,
        masks=tuple(sorted(_masks(root))),
        empty_dirs=_EMPTY,
        note=_NOTE,
    )


def _is_link(path: Path) -> bool:
    return path.is_symlink()


def _masks(root: Path) -> Iterator[str]:
    for folder in _SCANNED:
        if (root / folder).is_dir():
            for relative in _secrets(root / folder, ""):
                yield f"/{folder}/{relative}"


def _secrets(top: Path, below: str) -> Iterator[str]:
    """Paths relative to `top` to be hidden; a hidden folder is named once, without its content."""
    try:
        entries = sorted(os.scandir(top / below), key=lambda entry: entry.name)
    except OSError:
        # Unreadable for this user: its parent's rule has already seen its mode.
        return
    for entry in entries:
        relative = f"{below}/{entry.name}" if below else entry.name
        # A link gives no access of its own: its target is absent inside or judged by itself.
        if entry.is_symlink():
            continue
        if _is_secret(entry, relative):
            yield relative
        elif entry.is_dir(follow_symlinks=False):
            yield from _secrets(top, relative)


def _is_secret(entry: os.DirEntry[str], relative: str) -> bool:
    try:
        info = entry.stat(follow_symlinks=False)
    except FileNotFoundError:  # a lock or a temporary file of another program
        return False
    others = stat.S_IROTH | stat.S_IXOTH if stat.S_ISDIR(info.st_mode) else stat.S_IROTH
    if info.st_mode & others != others:
        return True
    if any(fnmatchcase(relative, name) or fnmatchcase(entry.name, name) for name in _SECRET_NAMES):
        return True
    if relative in _HARMLESS or not stat.S_ISREG(info.st_mode):
        return False
    return _holds_secret(Path(entry.path))


def _holds_secret(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return _SECRET_TEXT.search(file.read(_SCAN_LIMIT_BYTES)) is not None
    except OSError:
        # It cannot be judged, so it is hidden.
        return True
