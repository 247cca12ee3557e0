"""Building a root file system with mmdebstrap from the apt sources that the host already uses."""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sandlot.core.errors import ImageError

_BASE = (
    "bash",
    "ca-certificates",
    "curl",
    "file",
    "git",
    "less",
    "procps",
    "python-is-python3",
    "python3",
    "python3-pip",
    "python3-venv",
    "unzip",
    "wget",
    "xz-utils",
)
_SCIENCE = (
    "build-essential",
    "ipython3",
    "python3-chardet",
    "python3-ipython",
    "python3-matplotlib",
    "python3-mpmath",
    "python3-numpy",
    "python3-requests",
    "python3-scipy",
    "python3-sympy",
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """`disk_bytes` is what a build needs at its peak: the tar and the unpacked tree."""

    name: str
    packages: tuple[str, ...]
    disk_bytes: int


RECIPES = {
    "base": Recipe("base", _BASE, 700 << 20),
    "science": Recipe("science", (*_BASE, *_SCIENCE), 3 << 30),
}


class Runner(Protocol):
    async def __call__(self, argv: Sequence[str], say: Callable[[str], None]) -> int:
        """Run to its end and return its exit code; each line it prints goes to `say`."""
        ...


# Waits beside a program: an end of its input without a word means that the harness is gone.
_WATCH = 'read -r _ || { kill -s TERM -- "-$1"; sleep 15; kill -s KILL -- "-$1"; } 2>/dev/null'


async def run_process(argv: Sequence[str], say: Callable[[str], None]) -> int:
    """Run a program in a process group of its own, which ends with the caller however that ends."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
        limit=1 << 20,
    )
    assert process.stdout is not None
    watcher = await asyncio.create_subprocess_exec(
        *("sh", "-c", _WATCH, "sh", str(process.pid)),
        stdin=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async for line in process.stdout:
            say(line.decode(errors="replace").rstrip())
        return await process.wait()
    except BaseException:
        await asyncio.shield(_end_group(process))
        raise
    finally:
        await asyncio.shield(watcher.communicate(b"ended\n"))


async def _end_group(process: asyncio.subprocess.Process) -> None:
    # mmdebstrap answers SIGTERM by unmounting and removing its scratch folder.
    for number, patience_s in ((signal.SIGTERM, 15.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, number)
            await asyncio.wait_for(process.communicate(), patience_s)
            return
        except ProcessLookupError:
            await process.wait()
            return
        except TimeoutError:
            continue


@dataclass(frozen=True, slots=True)
class BuildHost:
    """What a build must know of the machine that it runs on; `root` is where its files lie."""

    uid: int
    user: str
    root: Path = Path("/")
    which: Callable[[str], str | None] = field(default=shutil.which)

    @classmethod
    def current(cls) -> BuildHost:
        uid = os.getuid()
        try:
            return cls(uid, pwd.getpwuid(uid).pw_name)
        except KeyError:
            return cls(uid, str(uid))


async def build_tar(
    recipe: Recipe, work: Path, host: BuildHost, run: Runner, progress: Callable[[str], None]
) -> str:
    """Write `work`/image.tar and return the suite that it was built from.

    Raises:
        ImageError: a tool is missing, the host's sources cannot be used, or mmdebstrap failed.
    """
    require_tools(host)
    suite = host_suite(host.root)
    sources, apt = work / "host.sources", work / "apt.conf"
    sources.write_text(host_sources(host.root, suite))
    apt.write_text(await _apt_settings(host, run))
    said: list[str] = []

    def tell(line: str) -> None:
        said.append(line)
        if line.startswith("I: ") and not _INTERNAL.search(line):
            progress(line[3:].rstrip("."))

    command = build_command(recipe, suite, work, host)
    progress(f"building image {recipe.name!r} from {suite} ({len(recipe.packages)} packages)")
    if await run(command, tell) != 0:
        raise _build_failed(recipe, work, said)
    return suite


def _apt_options(work: Path, host: BuildHost) -> list[str]:
    """One file for root. Without root it is read under another id, for which a private home is
    closed, so the lines themselves; they were read from files that every user may read.
    """
    file = work / "apt.conf"
    return [str(file)] if host.uid == 0 else file.read_text().splitlines()


# Stages of mmdebstrap that tell a user nothing.
_INTERNAL = re.compile(r"tempdir|hook|skipping|architecture|success in|signed-by")


def build_command(recipe: Recipe, suite: str, work: Path, host: BuildHost) -> list[str]:
    """The mmdebstrap call. The fixed epoch makes equal packages give an equal tar."""
    excluded = ("man", "doc", "info", "locale", "lintian", "bug")
    # As root it mounts into its scratch folder: in a namespace of its own nothing stays mounted,
    # however it ends.
    return [
        *(("unshare", "--mount", "--") if host.uid == 0 else ()),
        "env",
        "SOURCE_DATE_EPOCH=1577836800",
        "mmdebstrap",
        f"--mode={'root' if host.uid == 0 else 'unshare'}",
        "--variant=minbase",
        "--format=tar",
        # Backends bring their own /dev, and nodes cannot be made in a user namespace.
        "--skip=output/dev",
        "--skip=check/empty",
        *(f"--aptopt={option}" for option in _apt_options(work, host)),
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in excluded),
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        f"--include={','.join(recipe.packages)}",
        f"--customize-hook={STRIP_HOOK}",
        suite,
        str(work / "image.tar"),
        str(work / "host.sources"),
    ]


_STRIP = r"""set -eu
root="$1"
# Host names, resolvers and ids of the building machine are nobody's business inside.
rm -f "$root/etc/resolv.conf" "$root/etc/hostname" "$root/var/lib/dbus/machine-id"
: > "$root/etc/machine-id"
# Names, passwords and options of the host's apt do not travel, only what its mirrors need.
find "$root/etc/apt" -type f \( -name '*.list' -o -name '*.sources' \) \
  -exec sed -i -E 's#://[^/[:space:]@]*@#://#g' {} +
rm -rf "$root/etc/apt/auth.conf" "$root"/etc/apt/auth.conf.d/*
conf="$root/etc/apt/apt.conf.d/99mmdebstrap"
if [ -e "$conf" ]; then
  grep -E '^Acquire::(Check-|Retries|Languages)' "$conf" \
    > "$root/etc/apt/apt.conf.d/99sandlot" || true
  rm -f "$conf"
fi
if [ -e "$root/usr/bin/python3" ] && [ -d "$root/usr/lib/python3/dist-packages/matplotlib" ]; then
  # Otherwise the first plot in every sandbox spends seconds on a list of fonts.
  HOME=/root chroot "$root" python3 -c 'import matplotlib.font_manager' || true
fi
# Not /tmp: mmdebstrap keeps its apt.conf there, and without it its last apt-get calls would clean
# the lists and the cache of the building machine instead of the image's.
rm -rf "$root"/var/log/*.log "$root"/var/log/apt/* "$root"/var/cache/debconf/*-old \
  "$root"/var/cache/ldconfig/aux-cache
"""
# In the command itself: inside a user namespace a file in the cache may be out of reach.
STRIP_HOOK = f"sh -s \"$1\" <<'STRIP'\n{_STRIP}STRIP\n"


def _build_failed(recipe: Recipe, work: Path, said: Sequence[str]) -> ImageError:
    text = "\n".join(said)
    if "No space left on device" in text:
        return ImageError(
            f"building image {recipe.name!r}: no space left on the disk of {work} or of the "
            f"temporary folder (about {recipe.disk_bytes >> 20} MiB needed)."
        )
    errors = [line for line in said if line.startswith(("E:", "Err:"))] or list(said)
    hint = ""
    if re.search(r"unshare|newuidmap|Operation not permitted", text):
        hint = (
            " User namespaces seem to be forbidden here: `sandlot doctor` names the remedy; "
            "`--image host` needs no build."
        )
    return ImageError(
        f"mmdebstrap could not build {recipe.name!r}: {' / '.join(errors[-4:])}{hint}"
    )


# -- what the host must have ----------------------------------------------------------------------


def require_tools(host: BuildHost) -> None:
    """Raise with the one command that brings what a build lacks here."""
    as_root = host.uid == 0
    needed = ["mmdebstrap"] if as_root else ["mmdebstrap", "newuidmap"]
    missing = [tool for tool in needed if host.which(tool) is None]
    if missing:
        packages = "mmdebstrap" if as_root else "mmdebstrap uidmap"
        sudo = "" if as_root else "sudo "
        raise ImageError(
            f"building an image needs {' and '.join(missing)}, not found on this machine. "
            f"Install: {sudo}apt-get install -y {packages}"
        )
    if not as_root and not all(_has_ids(host, name) for name in ("subuid", "subgid")):
        first = _first_free_id(host)
        span = f"{first}-{first + 65535}"
        raise ImageError(
            f"user {host.user} has no range of 65536 ids in /etc/subuid and /etc/subgid, which a "
            f"build without root needs. Run: sudo usermod --add-subuids {span} --add-subgids "
            f"{span} {shlex.quote(host.user)}"
        )


def _id_ranges(host: BuildHost, name: str) -> Iterator[tuple[str, int, int]]:
    try:
        lines = (host.root / "etc" / name).read_text().splitlines()
    except OSError:
        return
    for line in lines:
        if match := re.fullmatch(r"([^:]+):(\d+):(\d+)", line.strip()):
            yield match[1], int(match[2]), int(match[3])


def _has_ids(host: BuildHost, name: str) -> bool:
    owners = (host.user, str(host.uid))
    return any(who in owners and count >= 65536 for who, _, count in _id_ranges(host, name))


def _first_free_id(host: BuildHost) -> int:
    ends = [s + n for name in ("subuid", "subgid") for _, s, n in _id_ranges(host, name)]
    return max([100000, *ends])


# -- the host's apt -------------------------------------------------------------------------------

_COMPONENTS = {
    *("main", "contrib", "non-free", "non-free-firmware"),
    *("restricted", "universe", "multiverse"),
}
_ARCHIVE_KEYRING = re.compile(r"(?:debian|ubuntu)-archive-[\w-]*(?:keyring)?[\w.-]*")


@dataclass(frozen=True, slots=True)
class Source:
    """One apt source; `options` are deb822 fields such as Signed-By."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()

    def text(self) -> str:
        fields = [
            ("Types", "deb"),
            ("URIs", " ".join(self.uris)),
            ("Suites", " ".join(self.suites)),
            ("Components", " ".join(self.components)),
            *self.options,
        ]
        return "".join(f"{name}: {value}\n" for name, value in fields)


def host_suite(root: Path) -> str:
    """The code name of the Debian or Ubuntu release that the host runs.

    Raises:
        ImageError: it is neither.
    """
    try:
        text = (root / "etc/os-release").read_text()
    except OSError:
        text = ""
    match = re.search(r'^(?:UBUNTU_CODENAME|VERSION_CODENAME)="?([\w-]+)"?$', text, re.MULTILINE)
    if match is None or not re.search(r"^ID(?:_LIKE)?=.*\b(?:debian|ubuntu)\b", text, re.MULTILINE):
        raise ImageError(
            "images are built from the packages of a Debian or Ubuntu host, and this machine says "
            "to be neither (/etc/os-release). Import a root file system instead "
            "(sandlot image import FILE NAME) or use --image host."
        )
    ubuntu = re.search(r'^UBUNTU_CODENAME="?([\w-]+)"?$', text, re.MULTILINE)
    return (ubuntu or match)[1]


def host_sources(root: Path, suite: str) -> str:
    """The host's own archive sources as deb822 text; sources of third parties are left out.

    Raises:
        ImageError: the host has none for this suite.
    """
    kept = [s for source in read_sources(root) if (s := _of_archive(source, suite)) is not None]
    if not any(suite in source.suites for source in kept):
        raise ImageError(
            f"no apt source of this machine offers {suite!r} (looked in /etc/apt/sources.list and "
            "/etc/apt/sources.list.d). Add the distribution's own source, import a root file "
            "system (sandlot image import FILE NAME), or use --image host."
        )
    official = [source for source in kept if _is_official(source)]
    # A mirror that signs with its own key is used only where there is no other.
    chosen = official if any(suite in source.suites for source in official) else kept
    return "\n".join(source.text() for source in chosen)


def _of_archive(source: Source, suite: str) -> Source | None:
    wanted = (suite, f"{suite}-updates", f"{suite}-security", f"{suite}/updates")
    suites = tuple(name for name in source.suites if name.rstrip("/") in wanted)
    components = tuple(name for name in source.components if name in _COMPONENTS)
    if not suites or not components:
        return None
    return Source(source.uris, suites, components, source.options)


def _is_official(source: Source) -> bool:
    signed = dict(source.options).get("Signed-By")
    return signed is None or _ARCHIVE_KEYRING.search(signed) is not None


def read_sources(root: Path) -> list[Source]:
    """Every enabled binary source, in both of apt's formats."""
    apt = root / "etc/apt"
    parts = sorted((apt / "sources.list.d").glob("*")) if apt.is_dir() else []
    found: list[Source] = []
    for path in (apt / "sources.list", *parts):
        if path.suffix not in (".list", ".sources") or not path.is_file():
            continue
        text = path.read_text(errors="replace")
        found += _one_line(text) if path.suffix == ".list" else _deb822(text)
    return found


def _one_line(text: str) -> Iterator[Source]:
    for raw in text.splitlines():
        line = raw.split("#", 1)[0].strip()
        match = re.fullmatch(r"deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s*(.*)", line)
        if match:
            options = tuple(_one_line_options(match[1] or ""))
            yield Source((match[2],), (match[3],), tuple(match[4].split()), options)


def _one_line_options(text: str) -> Iterator[tuple[str, str]]:
    names = {"signed-by": "Signed-By", "trusted": "Trusted"}
    for option in text.split():
        name, _, value = option.partition("=")
        if name.lower() in names:
            yield names[name.lower()], value


def _deb822(text: str) -> Iterator[Source]:
    uncommented = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for block in re.split(r"\n[ \t]*\n", uncommented):
        fields = _fields(block)
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes") == "no":
            continue
        names = {"signed-by": "Signed-By", "trusted": "Trusted"}
        options = tuple((names[n], fields[n]) for n in names if n in fields)
        uris, suites, parts = (
            tuple(fields.get(n, "").split()) for n in ("uris", "suites", "components")
        )
        yield Source(uris, suites, parts, options)


def _fields(block: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    name = ""
    for line in block.splitlines():
        if line[:1] in (" ", "\t") and name:
            # A key given in the file itself spans lines; apt needs them as they are.
            fields[name] += f"\n{line}"
        elif ":" in line:
            head, _, value = line.partition(":")
            name = head.strip().lower()
            fields[name] = value.strip()
    return fields


_APT_KEEP = re.compile(
    r"Acquire::(?:Check-|Retries|ForceIPv|http|https|AllowInsecure|AllowWeak)|APT::Get::AllowUnauth"
)


async def _apt_settings(host: BuildHost, run: Runner) -> str:
    """The host's own transport settings (proxy, certificates, date checks) for the build's apt."""
    lines: list[str] = []
    if host.which("apt-config") is not None:
        await run(["apt-config", "dump"], lines.append)
    kept = dict.fromkeys(line for line in lines if _APT_KEEP.match(line))
    logins = [
        f'Dir::Etc::{key} "{path}";'
        for key, path in (
            ("netrc", host.root / "etc/apt/auth.conf"),
            ("netrcparts", host.root / "etc/apt/auth.conf.d"),
        )
        if path.exists() and os.access(path, os.R_OK)
    ]
    own = ['Acquire::Languages "none";', 'APT::Install-Recommends "false";']
    return "\n".join([*kept, *logins, *own]) + "\n"
