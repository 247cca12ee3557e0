"""Small layers that are made for a harness: the host's package settings, and the bare root."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sandlot.sandbox.host import BubblewrapHost
from sandlot.sandbox.hostconfig import HostConfig, apt_settings

if TYPE_CHECKING:
    from sandlot.sandbox.bubblewrap import RootFilesystem
    from sandlot.sandbox.images import HostImage


def config_layer(host: BubblewrapHost, config: HostConfig, below: str) -> Path:
    """A layer with the files of `config` that lie below a top folder (all of them for "")."""
    layer = host.lease_dir / f"config-{below or 'all'}"
    if layer.exists():
        return layer
    files = dict(config.files)
    files["/etc/apt/apt.conf.d/90sandlot"] = apt_settings(host.idmap.kind == "single")
    files["/etc/hosts"] = b"127.0.0.1 localhost sandlot\n::1 localhost\n"
    files["/etc/resolv.conf"] = b""
    files["/etc/hostname"] = b"sandlot\n"
    return _write_layer(host, layer, files, below)


def trusting_root(
    host: BubblewrapHost, root: RootFilesystem, name: str, files: Mapping[str, bytes]
) -> tuple[RootFilesystem, Path]:
    """The root with files of one sandbox on top, and the layer that holds them."""
    layer = host.lease_dir / name
    below = "etc" if "/etc" in root.overlays else ""
    if not layer.exists():
        _write_layer(host, layer, files, below)
    if below:
        overlays = {**root.overlays, "/etc": (*root.overlays["/etc"], layer)}
        return replace(root, overlays=overlays), layer
    return replace(root, lowers=(*root.lowers, layer)), layer


def _write_layer(host: BubblewrapHost, layer: Path, files: Mapping[str, bytes], below: str) -> Path:
    prefix = f"/{below}/" if below else "/"
    made = layer.with_name(layer.name + ".partial")
    made.mkdir(mode=0o755)
    for name, data in files.items():
        if name.startswith(prefix):
            target = made / name.removeprefix(prefix)
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            target.write_bytes(data)
            target.chmod(0o644)
    _give_to_inner_root(host, made)
    made.rename(layer)
    return layer


def host_skeleton(host: BubblewrapHost, plan: HostImage) -> Path:
    """The root below the host's own folders: empty folders and the links of a merged /usr."""
    layer = host.lease_dir / "skeleton"
    if layer.exists():
        return layer
    made = layer.with_name("skeleton.partial")
    made.mkdir(mode=0o755)
    for name in (*plan.empty_dirs, *plan.overlays, "/proc", "/dev", "/run", "/testbed"):
        folder = made / name.lstrip("/")
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        if name in ("/tmp", "/var/tmp"):
            folder.chmod(0o1777)
    for name, target in plan.symlinks.items():
        (made / name.lstrip("/")).symlink_to(target)
    _give_to_inner_root(host, made)
    made.rename(layer)
    return layer


def _give_to_inner_root(host: BubblewrapHost, folder: Path) -> None:
    """Inner root is the caller itself, save where root maps a shifted range."""
    if host.idmap.kind != "root":
        return
    for path, folders, names in os.walk(folder):
        for name in (".", *folders, *names):
            os.chown(Path(path, name), host.idmap.base, host.idmap.base, follow_symlinks=False)
