"""The image store, its archives, its builder's plan and the host image: no network, no root."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import lzma
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from sandlot.core.errors import ImageError, SandboxUnavailable
from sandlot.sandbox.images import ImageStore, host_layers, unpack_plain
from sandlot.sandbox.images_build import (
    STRIP_HOOK,
    BuildHost,
    host_sources,
    host_suite,
    require_tools,
    run_process,
)
from waiting import becomes_true, comes_true

Member = tuple[str, bytes | str | None]  # a file's bytes, a link's target (str), a folder (None)

ROOTFS: tuple[Member, ...] = (
    ("usr/", None),
    ("usr/bin/", None),
    ("usr/bin/bash", b"#!"),
    ("bin", "usr/bin"),
    ("etc/hello", b"hello\n"),
)


def info_of(name: str, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def tar_bytes(*members: Member | tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            name, body = member
            if body is None:
                archive.addfile(info_of(name, type=tarfile.DIRTYPE, mode=0o755))
            elif isinstance(body, str):
                archive.addfile(info_of(name, type=tarfile.SYMTYPE, linkname=body))
            else:
                archive.addfile(info_of(name, size=len(body), mode=0o755), io.BytesIO(body))
    return buffer.getvalue()


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "cache", now=lambda: 1000.0)


@pytest.fixture
def rootfs_tar(tmp_path: Path) -> Path:
    path = tmp_path / "root.tar"
    path.write_bytes(tar_bytes(*ROOTFS))
    return path


async def import_members(store: ImageStore, *members: Member | tarfile.TarInfo) -> list[str]:
    """Import a root file system with these members; the names in the stored tar."""
    path = store.cache.parent / "given.tar"
    path.write_bytes(tar_bytes(*ROOTFS, *members))
    info = await store.import_(path, "given")
    with tarfile.open(store.tar(info.digest)) as archive:
        return archive.getnames()


# -- names and content ----------------------------------------------------------------------------


async def test_an_image_is_named_by_the_sha256_of_its_tar(
    store: ImageStore, rootfs_tar: Path
) -> None:
    info = await store.import_(rootfs_tar, "mine")
    assert hashlib.sha256(store.tar(info.digest).read_bytes()).hexdigest() == info.digest
    assert info.size_bytes == store.tar(info.digest).stat().st_size
    assert (info.created, info.origin) == (1000.0, "imported from root.tar")


async def test_equal_content_is_stored_once_under_two_names(
    store: ImageStore, rootfs_tar: Path
) -> None:
    first = await store.import_(rootfs_tar, "one")
    second = await store.import_(rootfs_tar, "two")
    assert first.digest == second.digest
    assert len(list((store.cache / "images").iterdir())) == 1
    assert [i.name for i in store.list()] == store.names() == ["one", "two"]


async def test_an_image_is_found_by_name_digest_and_the_start_of_a_digest(
    store: ImageStore, rootfs_tar: Path
) -> None:
    info = await store.import_(rootfs_tar, "mine")
    for asked in ("mine", info.digest, f"sha256:{info.digest}", info.digest[:12]):
        assert store.resolve(asked) == info


async def test_an_unknown_image_names_the_nearest_one(store: ImageStore, rootfs_tar: Path) -> None:
    await store.import_(rootfs_tar, "chemistry")
    with pytest.raises(ImageError, match=r"have: chemistry.*Did you mean 'chemistry'"):
        store.resolve("chemistri")


def test_an_image_that_was_never_built_says_how_to_build_it(store: ImageStore) -> None:
    with pytest.raises(ImageError, match="sandlot image build science"):
        store.resolve("science")


async def test_nothing_is_left_in_the_scratch_folder(store: ImageStore, rootfs_tar: Path) -> None:
    await store.import_(rootfs_tar, "mine")
    assert list((store.cache / "partial").iterdir()) == []


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "-rf", "x" * 65])
async def test_an_image_name_that_could_be_a_path_is_refused(
    store: ImageStore, rootfs_tar: Path, name: str
) -> None:
    with pytest.raises(ImageError, match="cannot be used"):
        await store.import_(rootfs_tar, name)


async def test_a_damaged_image_is_found_before_it_is_unpacked(
    store: ImageStore, rootfs_tar: Path
) -> None:
    info = await store.import_(rootfs_tar, "mine")
    await store.verify(info.digest)
    with store.tar(info.digest).open("r+b") as file:
        file.seek(700)
        file.write(b"x")
    with pytest.raises(ImageError, match=r"'mine' is damaged.*import it again"):
        await store.rootfs(info.digest, "single")


async def test_a_missing_tar_is_an_error_that_names_the_remedy(
    store: ImageStore, rootfs_tar: Path
) -> None:
    info = await store.import_(rootfs_tar, "base")
    store.tar(info.digest).unlink()
    with pytest.raises(ImageError, match=r"is missing\. Build it anew: sandlot image build base"):
        await store.verify(info.digest)


async def test_a_damaged_record_is_an_image_error(store: ImageStore, rootfs_tar: Path) -> None:
    info = await store.import_(rootfs_tar, "mine")
    (store.cache / "images" / info.digest / "info.json").write_text("{")
    with pytest.raises(ImageError, match=r"info\.json is damaged"):
        store.resolve("mine")


async def test_a_removed_name_leaves_the_image_to_its_other_name(
    store: ImageStore, rootfs_tar: Path
) -> None:
    info = await store.import_(rootfs_tar, "one")
    await store.import_(rootfs_tar, "two")
    tree = await store.rootfs(info.digest, "single")
    await store.remove("one")
    assert store.names() == ["two"]
    assert tree.is_dir()
    await store.remove("two")
    assert not tree.exists()
    assert list((store.cache / "images").iterdir()) == []
    assert list((store.cache / "rootfs").iterdir()) == []


# -- unpacking ------------------------------------------------------------------------------------


async def test_an_image_is_unpacked_once_for_each_id_map(
    store: ImageStore, rootfs_tar: Path
) -> None:
    info = await store.import_(rootfs_tar, "mine")
    calls: list[Path] = []

    async def unpack(tar: Path, target: Path) -> None:
        calls.append(target)
        await asyncio.sleep(0.02)
        await unpack_plain(tar, target)

    trees = await asyncio.gather(*(store.rootfs(info.digest, k, unpack) for k in "aaab"))
    assert sorted({tree.name for tree in trees}) == [f"{info.digest}-a", f"{info.digest}-b"]
    assert len(calls) == 2
    assert (trees[0] / "bin/bash").read_bytes() == b"#!"


async def test_two_processes_unpack_once(store: ImageStore, rootfs_tar: Path) -> None:
    info = await store.import_(rootfs_tar, "mine")
    program = (
        "import asyncio, sys; from pathlib import Path\n"
        "from sandlot.sandbox.images import ImageStore, unpack_plain\n"
        "async def unpack(tar, target):\n"
        "    print('unpacking'); await asyncio.sleep(0.2); await unpack_plain(tar, target)\n"
        "asyncio.run(ImageStore(Path(sys.argv[1])).rootfs(sys.argv[2], 'k', unpack))\n"
    )
    said: list[str] = []
    argv = [sys.executable, "-c", program, str(store.cache), info.digest]
    codes = await asyncio.gather(*(run_process(argv, said.append) for _ in range(3)))
    assert (codes, said) == ([0, 0, 0], ["unpacking"])


async def test_a_half_unpacked_folder_is_never_used(store: ImageStore, rootfs_tar: Path) -> None:
    """What kill -9 leaves behind: the folder is there, its stamp is not."""
    info = await store.import_(rootfs_tar, "mine")
    half = store.cache / "rootfs" / f"{info.digest}-single"
    (half / "etc").mkdir(parents=True)
    (half / "etc/torn").write_text("half")
    (half / "etc").chmod(0o500)
    tree = await store.rootfs(info.digest, "single")
    assert sorted(p.name for p in (tree / "etc").iterdir()) == ["hello"]


async def test_a_failed_unpack_is_tried_again(store: ImageStore, rootfs_tar: Path) -> None:
    info = await store.import_(rootfs_tar, "mine")

    async def fail(tar: Path, target: Path) -> None:
        (target / "torn").write_text("half")
        raise ImageError("broke")

    with pytest.raises(ImageError, match="broke"):
        await store.rootfs(info.digest, "single", fail)
    assert not (await store.rootfs(info.digest, "single") / "torn").exists()


async def test_a_full_disk_names_the_path_and_the_need(store: ImageStore, rootfs_tar: Path) -> None:
    info = await store.import_(rootfs_tar, "mine")

    async def fill(tar: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    async def fill_by_a_program(tar: Path, target: Path) -> None:
        raise SandboxUnavailable("tar: usr/x: Cannot write: No space left on device")

    for unpack in (fill, fill_by_a_program):
        with pytest.raises(ImageError, match=r"no space left on the disk of .*rootfs.* MiB needed"):
            await store.rootfs(info.digest, "single", unpack)
        assert list((store.cache / "rootfs").iterdir()) == []


async def test_unpacking_for_one_id_drops_set_id_bits(store: ImageStore) -> None:
    """Otherwise an image could lend its user's rights to everyone on the machine."""
    await import_members(store, info_of("usr/bin/su", mode=0o4755))
    tree = await store.rootfs(store.resolve("given").digest, "single")
    assert (tree / "usr/bin/su").stat().st_mode & 0o7777 == 0o755


# -- importing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
async def test_a_compressed_tar_becomes_the_same_image_as_a_plain_one(
    store: ImageStore, rootfs_tar: Path, tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    packed = tmp_path / "packed"
    packed.write_bytes(pack(rootfs_tar.read_bytes()))
    plain = await store.import_(rootfs_tar, "plain")
    assert (await store.import_(packed, "packed")).digest == plain.digest


async def test_a_folder_is_imported_with_its_links_as_links(
    store: ImageStore, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/bash").write_text("#!")
    (root / "bin").symlink_to("usr/bin")
    (root / "out").symlink_to("/etc/shadow")
    os.link(root / "usr/bin/bash", root / "usr/bin/rbash")
    os.mkfifo(root / "pipe")
    info = await store.import_(root, "folder")
    with tarfile.open(store.tar(info.digest)) as archive:
        assert archive.getmember("./out").linkname == "/etc/shadow"
        assert archive.getmember("./usr/bin/rbash").islnk()
        assert "./pipe" not in archive.getnames()


@pytest.mark.parametrize("name", ["/etc/cron.d/x", "../x", "etc/../../x", "a/b/../../../x"])
async def test_a_name_that_leads_out_of_the_image_is_refused(store: ImageStore, name: str) -> None:
    with pytest.raises(ImageError, match="hostile archive"):
        await import_members(store, (name, b"x"))
    assert store.names() == []


async def test_a_file_written_through_a_link_lands_inside(store: ImageStore) -> None:
    names = await import_members(
        store,
        ("out", "/tmp/elsewhere"),
        ("out/planted", b"x"),
        ("up", "../../../../etc"),
        ("up/planted", b"x"),
        ("bin/tool", b"x"),
    )
    assert {"./tmp/elsewhere/planted", "./etc/planted", "./usr/bin/tool"} <= set(names)
    assert not any(name.startswith(("./out/", "./up/", "./bin/")) for name in names)


async def test_a_circle_of_links_is_refused(store: ImageStore) -> None:
    with pytest.raises(ImageError, match="circle"):
        await import_members(store, ("a", "b"), ("b", "a"), ("a/x", b""))


async def test_a_hard_link_to_what_the_archive_lacks_is_refused(store: ImageStore) -> None:
    for target in ("../../etc/shadow", "/etc/shadow", "etc/nothing"):
        with pytest.raises(ImageError, match="hostile archive"):
            await import_members(store, info_of("x", type=tarfile.LNKTYPE, linkname=target))


async def test_devices_and_pipes_are_left_out(store: ImageStore) -> None:
    names = await import_members(
        store,
        info_of("dev/sda", type=tarfile.BLKTYPE, devmajor=8),
        info_of("dev/mem", type=tarfile.CHRTYPE, devmajor=1, devminor=1),
        info_of("dev/pipe", type=tarfile.FIFOTYPE),
    )
    assert [name for name in names if name.startswith("./dev/")] == []


async def test_ids_that_no_id_map_holds_become_nobody(store: ImageStore) -> None:
    await import_members(store, info_of("far", uid=2_000_000, gid=70_000))
    with tarfile.open(store.tar(store.resolve("given").digest)) as archive:
        far = archive.getmember("./far")
    assert (far.uid, far.gid) == (65534, 65534)


async def test_orders_to_overlayfs_do_not_come_in_with_an_archive(store: ImageStore) -> None:
    orders = {"SCHILY.xattr.user.overlay.redirect": "/etc"}
    await import_members(store, info_of("dir", type=tarfile.DIRTYPE, pax_headers=orders))
    with tarfile.open(store.tar(store.resolve("given").digest)) as archive:
        assert archive.getmember("./dir").pax_headers == {}


@pytest.mark.parametrize(
    "body", [b"", b"not an archive", gzip.compress(b"x" * 5000), b"\x1f\x8bnonsense"]
)
async def test_what_is_no_root_file_system_is_refused(
    store: ImageStore, tmp_path: Path, body: bytes
) -> None:
    (tmp_path / "odd").write_bytes(body)
    with pytest.raises(ImageError, match="odd"):
        await store.import_(tmp_path / "odd", "odd")
    assert store.list() == []


async def test_a_torn_archive_is_refused(
    store: ImageStore, rootfs_tar: Path, tmp_path: Path
) -> None:
    whole = gzip.compress(rootfs_tar.read_bytes())
    (tmp_path / "torn.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match="damaged"):
        await store.import_(tmp_path / "torn.tar.gz", "torn")


async def test_a_root_file_system_without_bash_is_refused(
    store: ImageStore, tmp_path: Path
) -> None:
    (tmp_path / "x.tar").write_bytes(tar_bytes(("bin/sh", b"#!")))
    with pytest.raises(ImageError, match="no bash"):
        await store.import_(tmp_path / "x.tar", "x")


async def test_a_path_that_is_not_there_is_an_image_error(
    store: ImageStore, tmp_path: Path
) -> None:
    with pytest.raises(ImageError, match=r"gone\.tar is not there"):
        await store.import_(tmp_path / "gone.tar", "gone")


# -- layers ---------------------------------------------------------------------------------------

LOWER = (*ROOTFS, ("data/old", b"1"), ("data/kept", b"2"), ("gone/x", b"3"), ("gone/y", b"4"))
UPPER: tuple[Member, ...] = (
    ("data/.wh.old", b""),
    ("data/new", b"5"),
    ("gone/z", b"6"),
    ("gone/.wh..wh..opq", b""),
    ("bin/tool", b"7"),
)


def write_oci_layout(folder: Path, *layers: bytes) -> None:
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(body: bytes) -> dict[str, str]:
        digest = hashlib.sha256(body).hexdigest()
        (blobs / digest).write_bytes(body)
        return {"digest": f"sha256:{digest}"}

    manifest = put(json.dumps({"layers": [put(layer) for layer in layers]}).encode())
    (folder / "index.json").write_text(json.dumps({"manifests": [manifest]}))


async def files_of(store: ImageStore, name: str) -> dict[str, bytes]:
    with tarfile.open(store.tar(store.resolve(name).digest)) as archive:
        found = {m.name: archive.extractfile(m) for m in archive if m.isreg()}
        return {name: body.read() for name, body in found.items() if body is not None}


FLATTENED = {
    "./usr/bin/bash": b"#!",
    "./usr/bin/tool": b"7",
    "./etc/hello": b"hello\n",
    "./data/kept": b"2",
    "./data/new": b"5",
    "./gone/z": b"6",
}


async def test_oci_layers_apply_in_order_with_whiteouts(store: ImageStore, tmp_path: Path) -> None:
    write_oci_layout(tmp_path / "oci", gzip.compress(tar_bytes(*LOWER)), tar_bytes(*UPPER))
    await store.import_(tmp_path / "oci", "oci")
    assert await files_of(store, "oci") == FLATTENED


async def test_a_docker_archive_is_flattened_like_its_layers(
    store: ImageStore, tmp_path: Path
) -> None:
    manifest = json.dumps([{"Layers": ["a/layer.tar", "b/layer.tar"]}]).encode()
    layers = (("a/layer.tar", tar_bytes(*LOWER)), ("b/layer.tar", tar_bytes(*UPPER)))
    (tmp_path / "saved.tar").write_bytes(tar_bytes(*layers, ("manifest.json", manifest)))
    await store.import_(tmp_path / "saved.tar", "saved")
    assert await files_of(store, "saved") == FLATTENED


async def test_a_damaged_oci_blob_is_refused(store: ImageStore, tmp_path: Path) -> None:
    write_oci_layout(tmp_path / "oci", tar_bytes(*LOWER))
    for blob in (tmp_path / "oci/blobs/sha256").iterdir():
        blob.write_bytes(blob.read_bytes() + b" ")
    with pytest.raises(ImageError, match=r"blob sha256:.* is damaged"):
        await store.import_(tmp_path / "oci", "oci")


@pytest.mark.parametrize("index", [b"{}", b"[]", b"{", b'{"manifests": [{"digest": "../x"}]}'])
async def test_a_malformed_oci_index_is_an_image_error(
    store: ImageStore, tmp_path: Path, index: bytes
) -> None:
    (tmp_path / "oci").mkdir()
    (tmp_path / "oci/index.json").write_bytes(index)
    with pytest.raises(ImageError):
        await store.import_(tmp_path / "oci", "oci")


# -- building -------------------------------------------------------------------------------------

SOURCES = """\
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

# A vendor that names its suite after the release
Types: deb
URIs: https://vendor.example/apt
Suites: bookworm
Components: main stable
Signed-By: /etc/apt/keyrings/vendor.gpg
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    root = tmp_path / "machine"
    (root / "etc/apt/sources.list.d").mkdir(parents=True)
    (root / "etc/os-release").write_text("ID=debian\nVERSION_CODENAME=bookworm\n")
    (root / "etc/apt/sources.list.d/debian.sources").write_text(SOURCES)
    return root


def found_all(name: str) -> str:
    return f"/usr/bin/{name}"


def test_only_the_distributions_own_sources_are_built_from(machine: Path) -> None:
    text = host_sources(machine, host_suite(machine))
    assert "mirror.example" in text
    assert "Suites: bookworm bookworm-updates\n" in text
    assert "vendor.example" not in text


def test_one_line_sources_are_read_with_their_options(machine: Path) -> None:
    (machine / "etc/apt/sources.list.d/debian.sources").unlink()
    (machine / "etc/apt/sources.list").write_text(
        "deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
        " http://mirror.example/debian bookworm main contrib # ours\n"
        "deb-src http://mirror.example/debian bookworm main\n"
        "#deb http://off.example/debian bookworm main\n"
    )
    assert host_sources(machine, "bookworm") == (
        "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm\n"
        "Components: main contrib\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    )


def test_a_mirror_with_its_own_key_serves_where_there_is_no_other(machine: Path) -> None:
    (machine / "etc/apt/sources.list.d/debian.sources").write_text(SOURCES.split("\n\n")[1])
    assert "vendor.example" in host_sources(machine, "bookworm")


def test_a_host_without_a_source_of_its_release_is_an_image_error(machine: Path) -> None:
    with pytest.raises(ImageError, match="no apt source of this machine offers 'trixie'"):
        host_sources(machine, "trixie")


def test_a_host_that_is_not_debian_is_told_what_else_it_can_do(machine: Path) -> None:
    (machine / "etc/os-release").write_text('ID=fedora\nVERSION_ID="41"\n')
    with pytest.raises(ImageError, match="sandlot image import"):
        host_suite(machine)


def test_a_missing_builder_names_one_command_for_root_and_one_for_a_user(machine: Path) -> None:
    for uid, command in ((0, ": apt-get install -y mmdebstrap"), (7, "mmdebstrap uidmap")):
        host = BuildHost(uid, "ann", machine, which=lambda _: None)
        with pytest.raises(ImageError, match=f"{command}$"):
            require_tools(host)


def test_a_user_without_ids_is_given_a_range_that_nobody_has(machine: Path) -> None:
    for name in ("subuid", "subgid"):
        (machine / "etc" / name).write_text("bob:100000:65536\n")
    with pytest.raises(ImageError, match=r"--add-subuids 165536-231071 --add-subgids .* ann$"):
        require_tools(BuildHost(1000, "ann", machine, which=found_all))
    require_tools(BuildHost(1001, "bob", machine, which=found_all))


class FakeBuild:
    """Plays mmdebstrap: writes a small tar where it was told to."""

    def __init__(self, *, code: int = 0, says: Sequence[str] = ("I: done",)) -> None:
        self.code, self.says, self.commands = code, says, list[list[str]]()

    async def __call__(self, argv: Sequence[str], say: Callable[[str], None]) -> int:
        if argv[0] == "apt-config":
            say('Acquire::Check-Date "false";')
            say('Dir::Cache "x";')
            return 0
        self.commands.append(list(argv))
        await asyncio.sleep(0.01)
        for line in self.says:
            say(line)
        Path(argv[-2]).write_bytes(tar_bytes(*ROOTFS))
        given = [a.removeprefix("--aptopt=") for a in argv if a.startswith("--aptopt=")]
        self.settings = Path(given[0]).read_text() if len(given) == 1 else "\n".join(given)
        return self.code


def building_store(tmp_path: Path, machine: Path, run: FakeBuild, uid: int = 0) -> ImageStore:
    (machine / "etc/subuid").write_text("ann:100000:65536\n")
    (machine / "etc/subgid").write_text("ann:100000:65536\n")
    host = BuildHost(uid, "ann", machine, which=found_all)
    return ImageStore(tmp_path / "cache", run=run, host=lambda: host)


async def test_a_build_is_stored_under_its_name_and_tells_its_stages(
    tmp_path: Path, machine: Path
) -> None:
    run, said = FakeBuild(says=["I: running apt-get update...", "noise"]), list[str]()
    store = building_store(tmp_path, machine, run)
    info = await store.build("base", said.append)
    assert store.resolve("base") == info
    assert "running apt-get update" in said
    assert "noise" not in said
    assert "python3-venv" in info.packages
    assert info.origin == "built from bookworm"


@pytest.mark.parametrize(("uid", "mode"), [(0, "--mode=root"), (1000, "--mode=unshare")])
async def test_a_build_uses_the_hosts_release_and_transport_settings(
    tmp_path: Path, machine: Path, uid: int, mode: str
) -> None:
    run = FakeBuild()
    await building_store(tmp_path, machine, run, uid).build("base", lambda _: None)
    assert mode in run.commands[0]
    assert "bookworm" in run.commands[0]
    assert 'Acquire::Check-Date "false";' in run.settings
    assert "Dir::Cache" not in run.settings


def test_stripping_an_image_takes_what_is_the_hosts_and_spares_the_builders_own(
    tmp_path: Path,
) -> None:
    """mmdebstrap's apt.conf lies in the image's /tmp; without it apt-get would work on the host."""
    root = tmp_path / "image"
    for name in (
        "etc/resolv.conf",
        "etc/hostname",
        "etc/machine-id",
        "etc/apt/auth.conf.d/corp",
        "tmp/mmdebstrap.apt.conf",
    ):
        _plant(root / name, "canary")
    source = root / "etc/apt/sources.list.d/0000host.sources"
    _plant(source, "URIs: https://ann:canary@mirror.example/debian\n")
    settings = 'Acquire::Check-Date "false";\nAcquire::http::Proxy "http://a:canary@proxy/";\n'
    _plant(root / "etc/apt/apt.conf.d/99mmdebstrap", settings)
    subprocess.run(["sh", "-c", STRIP_HOOK, "exec", str(root)], check=True)
    left = [p for p in root.rglob("*") if p.is_file() and "canary" in p.read_text()]
    assert left == [root / "tmp/mmdebstrap.apt.conf"]
    assert source.read_text() == "URIs: https://mirror.example/debian\n"
    kept = (root / "etc/apt/apt.conf.d/99sandlot").read_text()
    assert kept == 'Acquire::Check-Date "false";\n'


async def test_two_builds_at_once_become_one(tmp_path: Path, machine: Path) -> None:
    run = FakeBuild()
    store = building_store(tmp_path, machine, run)
    first, second = await asyncio.gather(*(store.build("base", lambda _: None) for _ in "ab"))
    assert first == second
    assert len(run.commands) == 1


async def test_a_failed_build_shows_what_apt_said_and_leaves_nothing(
    tmp_path: Path, machine: Path
) -> None:
    run = FakeBuild(code=1, says=["I: x", "E: Unable to locate package nonsense"])
    store = building_store(tmp_path, machine, run)
    with pytest.raises(ImageError, match="Unable to locate package nonsense"):
        await store.build("base", lambda _: None)
    assert store.list() == []
    assert list((store.cache / "partial").iterdir()) == []


async def test_a_cancelled_build_leaves_nothing_and_can_be_repeated(
    tmp_path: Path, machine: Path
) -> None:
    store = building_store(tmp_path, machine, FakeBuild())
    started = asyncio.Event()
    task = asyncio.ensure_future(store.build("base", lambda _: started.set()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert store.list() == []
    assert list((store.cache / "partial").iterdir()) == []
    assert (await store.build("base", lambda _: None)).name == "base"


async def test_only_known_images_can_be_built(store: ImageStore) -> None:
    with pytest.raises(ImageError, match="can be built: base, science"):
        await store.build("everything", lambda _: None)


async def test_ensure_builds_only_what_is_not_there(tmp_path: Path, machine: Path) -> None:
    run = FakeBuild()
    store = building_store(tmp_path, machine, run)
    first = await store.ensure("base", lambda _: None)
    assert await store.ensure("base", lambda _: None) == first
    assert len(run.commands) == 1


async def test_a_cancelled_program_ends_with_its_children() -> None:
    said: list[str] = []
    script = "sleep 60 & echo $!; wait"
    task = asyncio.ensure_future(run_process(["sh", "-c", script], said.append))
    while not said:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await comes_true(lambda: not _alive(int(said[0])))


def _alive(pid: int) -> bool:
    """A zombie that its new parent has not yet collected counts as ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


# -- the host as an image -------------------------------------------------------------------------


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A root with a canary in every place where credentials live, and harmless neighbours."""
    root = tmp_path / "host"
    for name in (
        "etc/shadow",
        "etc/shadow-",
        "etc/gshadow",
        "etc/ssh/ssh_host_rsa_key",
        "etc/ssl/private/site.pem",
        "etc/ssl/site.key",
        "etc/sudoers.d/ops",
        "etc/NetworkManager/system-connections/home",
        "etc/krb5.keytab",
        "etc/docker/config.json",
        "etc/kubernetes/admin.conf",
        "etc/pip.conf",
        "etc/wireguard/wg0.conf",
        "etc/wpa_supplicant/wpa.conf",
        "etc/apt/auth.conf.d/corp",
        "etc/machine-id",
        "usr/local/etc/npmrc",
    ):
        _plant(root / name, "canary")
    _plant(root / "etc/apt/sources.list", "deb https://ann:canary@mirror.example/debian x main\n")
    _plant(root / "etc/profile.d/corp.sh", "export CORP_API_TOKEN=canary-canary\n")
    _plant(root / "etc/own/only-mine", "canary")
    (root / "etc/own/only-mine").chmod(0o640)
    _plant(root / "etc/passwd", "root:x:0:0::/root:/bin/bash\n")
    _plant(root / "etc/nsswitch.conf", "passwd:         files systemd\n")
    _plant(root / "etc/ssl/certs/ca.pem", "-----BEGIN CERTIFICATE-----\n")
    (root / "usr/bin").mkdir(parents=True)
    (root / "home/ann").mkdir(parents=True)
    (root / "bin").symlink_to("usr/bin")
    (root / "lib64").mkdir()
    return root


def _plant(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o644)


def test_no_planted_secret_stays_visible_in_the_host_image(planted: Path) -> None:
    image = host_layers(planted)
    visible = [
        path
        for overlay in image.overlays
        for path in planted.joinpath(overlay[1:]).rglob("*")
        if path.is_file() and not _masked(f"/{path.relative_to(planted)}", image.masks)
    ]
    assert [path for path in visible if "canary" in path.read_text()] == []


def _masked(path: str, masks: Sequence[str]) -> bool:
    return any(path == mask or path.startswith(f"{mask}/") for mask in masks)


def test_what_programs_need_of_etc_stays_visible_in_the_host_image(planted: Path) -> None:
    masks = host_layers(planted).masks
    for path in ("/etc/passwd", "/etc/nsswitch.conf", "/etc/ssl/certs/ca.pem"):
        assert not _masked(path, masks)


def test_masks_name_only_what_exists(planted: Path) -> None:
    assert all((planted / mask[1:]).exists() for mask in host_layers(planted).masks)


def test_the_host_image_keeps_merged_folders_as_links_and_real_ones_as_overlays(
    planted: Path,
) -> None:
    image = host_layers(planted)
    assert image.symlinks == {"/bin": "usr/bin"}
    assert image.overlays == ("/usr", "/etc", "/lib64")


def test_personal_folders_are_absent_or_empty_in_the_host_image(planted: Path) -> None:
    image = host_layers(planted)
    assert {"/home", "/root", "/tmp", "/var", "/run"} <= set(image.empty_dirs)
    assert not {"/home", "/root", "/opt", "/var", "/boot"} & set(image.overlays)


def test_a_build_ends_with_a_harness_that_was_killed(tmp_path: Path) -> None:
    program = (
        "import asyncio; from sandlot.sandbox.images_build import run_process; "
        "asyncio.run(run_process(['sh', '-c', 'echo $$; sleep 300 & wait'], "
        "lambda line: print(line, flush=True)))"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as harness:
        assert harness.stdout is not None
        group = int(harness.stdout.readline())
        time.sleep(0.3)
        harness.kill()
    if not becomes_true(lambda: _ended(group)):
        os.killpg(group, signal.SIGKILL)
        pytest.fail("the build outlived its harness")


def _ended(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False
