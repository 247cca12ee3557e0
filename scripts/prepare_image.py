"""An image for sandboxes on this machine, built where that can be: demo and recipes want one.

    prepare_image.py

Its output is what to give as --image: `base`, or `host` where none can be built.
"""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SANDLOT = Path(sys.executable).with_name("sandlot")


def prepare_image() -> str:
    """`base`, built where this machine and this user can; else `host`, which needs no build."""
    if image_is_there("base"):
        return "base"
    missing = what_a_build_lacks()
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        step("mmdebstrap, which builds images (by apt-get)")
        install("mmdebstrap")
        missing = what_a_build_lacks()
    if missing:
        step(
            "no image can be built here, so the sandbox shows this machine's own programs\n"
            f"    (--image host). What brings it: {missing}"
        )
        return "host"
    step("sandbox image 'base', built once (about half a minute)")
    build = [SANDLOT, "image", "build", "base"]
    if subprocess.run(build, cwd=ROOT, check=False, stdout=sys.stderr).returncode:
        step("the image could not be built (see above); --image host is used instead")
        return "host"
    return "base"


def image_is_there(name: str) -> bool:
    listing = subprocess.run(
        [SANDLOT, "image", "list"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    return any(name in line.split() for line in listing.stdout.splitlines())


def what_a_build_lacks() -> str | None:
    """The one command that makes a build possible, or None where nothing lacks."""
    packages = [] if shutil.which("mmdebstrap") else ["mmdebstrap"]
    if os.geteuid() == 0:
        return f"apt-get install {' '.join(packages)}" if packages else None
    if not shutil.which("newuidmap"):
        packages.append("uidmap")
    steps = [f"sudo apt-get install {' '.join(packages)}"] if packages else []
    if not has_subordinate_ids():
        ids = "--add-subuids 100000-165535 --add-subgids 100000-165535"
        steps.append(f"sudo usermod {ids} {getpass.getuser()}")
    return " && ".join(steps) or None


def has_subordinate_ids() -> bool:
    owners = {getpass.getuser(), str(os.getuid())}
    try:
        lines = Path("/etc/subuid").read_text("utf-8").splitlines()
    except OSError:
        return False
    return any(line.split(":")[0] in owners for line in lines)


def install(package: str) -> None:
    """Install a Debian package; the lists are fetched first where the package is not in them."""
    command = ["apt-get", "install", "-y", "--no-install-recommends", package]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    known = subprocess.run(["apt-cache", "show", package], capture_output=True, check=False)
    if not known.stdout:
        subprocess.run(
            ["apt-get", "update"], check=False, env=environment, stdout=subprocess.DEVNULL
        )
    subprocess.run(command, check=False, env=environment, stdout=subprocess.DEVNULL)


def step(text: str) -> None:
    print(f"==> {text}", flush=True)


if __name__ == "__main__":
    with redirect_stdout(sys.stderr):
        image = prepare_image()
    print(image)
