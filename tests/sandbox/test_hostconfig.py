"""What of a host's package configuration enters a sandbox, from made-up hosts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from sandlot.sandbox.hostconfig import (
    CA_BUNDLE,
    HostConfig,
    apt_settings,
    proxy_environment,
    read_host,
)

CANARY = "c4n4ry"
CERTIFICATE = "-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----"


def no_program(argv: Sequence[str]) -> str:
    return ""


def pip_and_npm(argv: Sequence[str]) -> str:
    if argv[0] == "npm":
        return "npm warn something\nhttps://npm.example/\n"
    return "default.example files.example\n"


def read(
    tmp_path: Path,
    files: Mapping[str, str | bytes] | None = None,
    env: Mapping[str, str] | None = None,
    run: object = no_program,
) -> HostConfig:
    for name, content in (files or {}).items():
        path = tmp_path / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_host(env or {}, tmp_path / "home/me", tmp_path, run=run)  # type: ignore[arg-type]


def everything(host: HostConfig) -> str:
    """Every byte of a configuration."""
    return repr(host)


def test_empty_host_gives_nothing_but_a_warning(tmp_path: Path) -> None:
    host = read(tmp_path)
    assert (host.files, host.environment, host.package_hosts) == ({}, {}, frozenset())
    assert host.warnings == ("pip: its default index is not known, for no pip was found to ask",)


def test_default_index_is_asked_of_pip_and_registry_of_npm(tmp_path: Path) -> None:
    host = read(tmp_path, run=pip_and_npm)
    assert host.package_hosts == {"default.example", "files.example", "npm.example"}
    assert host.files == {"/etc/npmrc": b"registry=https://npm.example/\n"}
    assert host.environment == {"NPM_CONFIG_GLOBALCONFIG": "/etc/npmrc"}


def test_installed_pip_tells_its_default_index(tmp_path: Path) -> None:
    """Without a handed-in runner the real pip (or the wheel in Python) is asked."""
    host = read_host({"PATH": str(tmp_path)}, tmp_path, tmp_path)
    pip_hosts = [name for name in host.package_hosts if "." in name]
    assert len(pip_hosts) >= 2


def test_pip_files_are_merged_with_the_later_ones_winning(tmp_path: Path) -> None:
    host = read(
        tmp_path,
        {
            "/etc/pip.conf": "[global]\nindex-url = https://one.example/simple\ntimeout = 9\n",
            "/home/me/.pip/pip.conf": "[global]\nindex_url = https://two.example/simple\n",
            "/home/me/.config/pip/pip.conf": (
                "[global]\nextra-index-url =\n  https://x.example/s\n  file:///srv/wheels\n"
                "find-links = /srv/wheels\ntrusted-host = x.example y.example:80\n"
            ),
        },
        {"PIP_DEFAULT_TIMEOUT": "60"},
        pip_and_npm,
    )
    assert host.files["/etc/pip.conf"].decode() == (
        "[global]\nindex-url = https://two.example/simple\n"
        "extra-index-url = https://x.example/s\n"
        "trusted-host = x.example y.example:80\ntimeout = 60\n"
    )
    assert {"two.example", "x.example"} <= host.package_hosts
    assert "default.example" not in host.package_hosts
    assert any("extra-index-url: dropped" in warning for warning in host.warnings)


def test_default_index_named_by_hand_brings_the_host_of_its_files(tmp_path: Path) -> None:
    host = read(tmp_path, env={"PIP_INDEX_URL": "https://default.example/simple"}, run=pip_and_npm)
    assert "files.example" in host.package_hosts


def test_pip_config_file_is_read_last_and_null_device_means_none(tmp_path: Path) -> None:
    files = {
        "/etc/pip.conf": "[global]\nindex-url = https://one.example/s\n",
        "/srv/my.conf": "[install]\nindex-url = https://mine.example/s\n",
    }
    mine = read(tmp_path, files, {"PIP_CONFIG_FILE": "/srv/my.conf"}, pip_and_npm)
    none = read(tmp_path, files, {"PIP_CONFIG_FILE": "/dev/null"}, pip_and_npm)
    assert b"mine.example" in mine.files["/etc/pip.conf"]
    assert "/etc/pip.conf" not in none.files


def test_uv_variables_enter_and_pip_s_index_serves_uv_where_it_has_none(tmp_path: Path) -> None:
    own = read(tmp_path, env={"UV_INDEX": "a=https://u:p@a.example/s file:///x https://b.example"})
    assert own.environment == {"UV_INDEX": "a=https://a.example/s https://b.example"}
    assert own.package_hosts == {"a.example", "b.example"}
    pips = read(tmp_path, env={"PIP_INDEX_URL": "https://one.example/s"})
    assert pips.environment == {"UV_DEFAULT_INDEX": "https://one.example/s"}


@pytest.mark.parametrize(
    "url",
    [
        f"https://{CANARY}@h.example/s",
        f"https://me:{CANARY}@h.example/s",
        f"https://me:{CANARY}%40@h.example/s",
        f"https://h.example/s?token={CANARY}",
        f"https://h.example/s#{CANARY}",
        f"https://me:a/{CANARY}@h.example/s",
        f"https://me/{CANARY}@h.example/s",
        f"https://me:{CANARY}@10.0.0.1/s",
        f"https://me:{CANARY}@[::1]/s",
        f"https://me:{CANARY}@h.example:port/s",
        f"https://[{CANARY}/s",
        f"file:///{CANARY}",
        f"git+ssh://{CANARY}@h.example/s",
        f"https://h.example\\@{CANARY}/s",
    ],
)
def test_secret_in_an_address_never_enters_and_is_warned_of(tmp_path: Path, url: str) -> None:
    host = read(
        tmp_path,
        {
            "/etc/pip.conf": f"[global]\nindex-url = {url}\nextra-index-url = {url}\n",
            "/home/me/.npmrc": f"registry={url}\n",
            "/etc/apt/sources.list": f"deb {url} stable main\n",
            "/etc/apt/sources.list.d/a.sources": f"Types: deb\nURIs: {url}\nSuites: x\n",
        },
        {"UV_INDEX_URL": url, "NPM_CONFIG_REGISTRY": url},
    )
    assert CANARY not in everything(host)
    for place in ("pip.conf: index-url", "NPM_CONFIG_REGISTRY", "sources.list: deb", "URIs", "UV_"):
        assert any(place in warning for warning in host.warnings), place


def test_canaries_of_environment_home_and_config_never_enter(tmp_path: Path) -> None:
    pem = f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----\n"
    host = read(
        tmp_path,
        {
            "/etc/ssl/certs/ca-certificates.crt": f"# {CANARY}\n{pem}{CERTIFICATE}\n",
            "/etc/pip.conf": (
                f"# {CANARY}\n[global]\nindex-url = https://h.example/s\npassword = {CANARY}\n"
                f"proxy = http://{CANARY}@proxy.example\nclient-cert = /home/{CANARY}.pem\n"
                f"trusted-host = {CANARY}@h.example\ntimeout = {CANARY}\n[search]\nx = {CANARY}\n"
            ),
            "/home/me/.npmrc": (
                f"//h.example/:_authToken={CANARY}\n_auth={CANARY}\n_password={CANARY}\n"
                f"//h.example/:registry={CANARY}\nemail={CANARY}\nregistry=https://h.example/\n"
                f"@{'a'}:registry=https://u:{CANARY}@s.example/\n"
            ),
            "/home/me/.netrc": f"machine h.example login me password {CANARY}\n",
            "/home/me/.ssh/id": CANARY,
            "/etc/apt/apt.conf": f'Acquire::http::Proxy "http://{CANARY}@p.example";\n',
            "/etc/apt/apt.conf.d/1": f'Acquire::Check-Date "false"; // {CANARY}\n',
            "/etc/apt/auth.conf": f"machine h.example login me password {CANARY}\n",
            "/etc/apt/sources.list": (
                f"# deb http://{CANARY}.example x main\n"
                f"deb [signed-by=/usr/share/keyrings/k.gpg own={CANARY}] http://h.example s main"
                f" # {CANARY}\n"
            ),
            "/etc/apt/sources.list.d/b.sources": (
                f"# {CANARY}\nTypes: deb\nURIs: http://h.example/d\nSuites: s\nX-Own: {CANARY}\n"
            ),
            "/usr/share/keyrings/k.gpg": b"-----BEGIN PGP PRIVATE KEY BLOCK-----" + CANARY.encode(),
        },
        {
            "TOKEN": CANARY,
            "HTTPS_PROXY": f"http://{CANARY}@proxy.example",
            "PIP_PASSWORD": CANARY,
            "PIP_TRUSTED_HOST": f"{CANARY}@h.example",
            "npm_config__authToken": CANARY,
        },
    )
    assert CANARY not in everything(host)
    assert host.package_hosts == {"h.example", "s.example"}
    assert host.files[CA_BUNDLE].decode() == CERTIFICATE + "\n"
    assert host.apt_checks == ("Check-Date",)


def test_npm_registry_and_scopes_enter(tmp_path: Path) -> None:
    host = read(
        tmp_path,
        {
            "/home/me/.npmrc": "@team:registry = https://t.example/npm/\nregistry=https://r.example\n"
        },
    )
    assert host.files["/etc/npmrc"] == (
        b"@team:registry=https://t.example/npm/\nregistry=https://r.example\n"
    )
    assert host.package_hosts == {"t.example", "r.example"}


def test_certificates_of_all_bundles_in_use_are_joined_once(tmp_path: Path) -> None:
    other = CERTIFICATE.replace("QUJD", "REVG")
    host = read(
        tmp_path,
        {
            "/etc/ssl/certs/ca-certificates.crt": CERTIFICATE,
            "/srv/own.pem": f"{CERTIFICATE}\n{other}\n",
        },
        {"SSL_CERT_FILE": "/srv/own.pem"},
    )
    assert host.files[CA_BUNDLE].decode() == f"{CERTIFICATE}\n{other}\n"
    assert host.environment["REQUESTS_CA_BUNDLE"] == CA_BUNDLE
    assert host.environment["GIT_SSL_CAINFO"] == CA_BUNDLE
    assert b"cert = " + CA_BUNDLE.encode() in host.files["/etc/pip.conf"]


def test_apt_sources_of_both_forms_are_written_anew(tmp_path: Path) -> None:
    key = bytes([0x99]) + b"public"
    host = read(
        tmp_path,
        {
            "/etc/apt/sources.list": (
                "deb cdrom:[x]/ s main\ndeb file:/srv/repo ./\n"
                "deb-src [arch=amd64 signed-by=/etc/apt/keyrings/t.gpg] https://t.example/d s a b\n"
            ),
            "/etc/apt/sources.list.d/d.sources": (
                "Types: deb\nURIs: http://m.example/d\n https://n.example/d\nSuites: s s-updates\n"
                "Components: main\n\nEnabled: no\nTypes: deb\nURIs: http://off.example/\n"
            ),
            "/etc/apt/sources.list.d/old.sources.disabled": "URIs: http://gone.example/\n",
            "/etc/apt/keyrings/t.gpg": key,
        },
    )
    assert host.apt_sources == {
        "/etc/apt/sources.list": (
            b"deb-src [arch=amd64 signed-by=/etc/apt/keyrings/t.gpg] https://t.example/d s a b\n"
        ),
        "/etc/apt/sources.list.d/d.sources": (
            b"Types: deb\nURIs: http://m.example/d https://n.example/d\n"
            b"Suites: s s-updates\nComponents: main\n"
        ),
        "/etc/apt/keyrings/t.gpg": key,
    }
    assert host.package_hosts == {"t.example", "m.example", "n.example"}


@pytest.mark.parametrize(
    ("text", "checks"),
    [
        ('Acquire::Check-Valid-Until "false";\nAcquire::Check-Date "no";\n',
         ("Check-Date", "Check-Valid-Until")),
        ('Acquire { Check-Date "false"; };', ("Check-Date",)),
        ('Acquire::Check-Date "true";', ()),
        ('# Acquire::Check-Date "false";\n// Acquire::Check-Date "false";', ()),
        ('/* Acquire::Check-Date "false"; */', ()),
    ],
)  # fmt: skip
def test_date_checks_that_are_off_stay_off(
    tmp_path: Path, text: str, checks: tuple[str, ...]
) -> None:
    host = read(tmp_path, {"/etc/apt/apt.conf.d/99x": text})
    assert host.apt_checks == checks
    assert b"".join(host.files.values()) == apt_settings(False, checks)


def test_apt_settings_keep_root_where_no_other_user_exists() -> None:
    assert apt_settings(False) == b""
    assert apt_settings(True, ("Check-Date",)) == (
        b'APT::Sandbox::User "root";\nAcquire::Check-Date "false";\n'
    )


def test_port_that_the_proxy_does_not_dial_is_warned_of(tmp_path: Path) -> None:
    host = read(tmp_path, env={"PIP_INDEX_URL": "http://h.example:3141/s"})
    assert "environment: PIP_INDEX_URL: port 3141 cannot be reached from inside" in host.warnings


def test_broken_pip_file_and_a_folder_in_its_place_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "home/me/.npmrc").mkdir(parents=True)
    host = read(tmp_path, {"/etc/pip.conf": "no section\n"})
    assert host.files == {}
    assert any("cannot be parsed" in warning for warning in host.warnings)


def test_proxy_variables_point_to_loopback_in_both_spellings() -> None:
    variables = proxy_environment(3128)
    assert variables["http_proxy"] == variables["HTTPS_PROXY"] == "http://127.0.0.1:3128"
    assert variables["NO_PROXY"] == variables["no_proxy"] == "localhost,127.0.0.1"
    assert len(variables) == 6


# uv's files, conda, cargo and go


def test_uv_files_set_what_its_variables_would(tmp_path: Path) -> None:
    files = {
        "/etc/uv/uv.toml": 'index-url = "https://old.example/s"\n',
        "/home/me/.config/uv/uv.toml": (
            '[[index]]\nname = "a"\nurl = "https://u:p@a.example/s"\n'
            '[[index]]\nurl = "https://b.example/s"\ndefault = true\n'
            f'[[index]]\nurl = "https://c.example/s?token={CANARY}"\n'
        ),
    }
    host = read(tmp_path, files)
    assert host.environment == {
        "UV_DEFAULT_INDEX": "https://b.example/s",
        "UV_INDEX": "a=https://a.example/s https://c.example/s",
    }
    assert CANARY not in everything(host)
    assert "old.example" not in host.package_hosts
    mine = read(tmp_path, env={"UV_DEFAULT_INDEX": "https://d.example/s"})
    assert mine.environment["UV_DEFAULT_INDEX"] == "https://d.example/s"


def test_conda_is_asked_and_its_files_come_after(tmp_path: Path) -> None:
    def conda(argv: Sequence[str]) -> str:
        if argv[0] != "conda":
            return ""
        return (
            "channel_alias: https://alias.example\nchannels:\n  - defaults\n"
            "default_channels:\n  - https://d.example/pkgs/main\n  - https://d.example/pkgs/r\n"
        )

    own = (
        "channels:\n  - team\n  - https://me:word@t.example/t/x\n  - 'file:///srv'\n"
        f"proxy_servers:\n  https: http://{CANARY}@p.example\nother: [{CANARY}]\n"
    )
    host = read(tmp_path, {"/home/me/.condarc": own}, run=conda)
    assert host.files["/etc/conda/.condarc"].decode() == (
        "channel_alias: https://alias.example\nchannels:\n  - team\n"
        "  - https://t.example/t/x\n"
        "default_channels:\n  - https://d.example/pkgs/main\n  - https://d.example/pkgs/r\n"
    )
    assert host.package_hosts == {"alias.example", "d.example", "t.example"}
    assert CANARY not in everything(host)


def test_cargo_registries_enter_and_its_cache_names_the_default_one(tmp_path: Path) -> None:
    host = read(
        tmp_path,
        {
            "/home/me/.cargo/config.toml": (
                f'[source.main]\nreplace-with = "mirror"\ntoken = "{CANARY}"\n'
                '[source.mirror]\nregistry = "sparse+https://m.example/index/"\n'
                f'[registries.team]\nindex = "https://{CANARY}@t.example/git"\n'
                f'[registry]\ntoken = "{CANARY}"\n[env]\nA = "{CANARY}"\n'
            ),
            "/home/me/.cargo/credentials.toml": CANARY,
            "/home/me/.cargo/registry/index/i.example-0123456789abcdef/config.json": (
                '{"dl": "https://files.example/{crate}/download", "api": "https://x.example"}'
            ),
        },
    )
    assert host.files["/.cargo/config.toml"].decode() == (
        '[source.main]\nreplace-with = "mirror"\n'
        '[source.mirror]\nregistry = "sparse+https://m.example/index/"\n'
        '[registries.team]\nindex = "https://t.example/git"\n'
    )
    assert host.package_hosts == {"m.example", "t.example", "i.example", "files.example"}
    assert CANARY not in everything(host)


def test_go_is_asked_for_its_proxies(tmp_path: Path) -> None:
    def go(argv: Sequence[str]) -> str:
        return "https://p.example,direct\nsum.example\n" if argv[0] == "go" else ""

    host = read(tmp_path, run=go)
    assert host.environment == {"GOPROXY": "https://p.example,direct", "GOSUMDB": "sum.example"}
    assert host.package_hosts == {"p.example", "sum.example"}
    env = {"GOPROXY": f"https://me:{CANARY}@q.example|off", "GOSUMDB": "off"}
    own = read(tmp_path, env=env, run=go)
    assert own.environment == {"GOPROXY": "https://q.example|off", "GOSUMDB": "off"}
    assert own.package_hosts == {"q.example"}


def test_broken_files_of_uv_and_cargo_do_no_harm(tmp_path: Path) -> None:
    files = {
        "/etc/uv/uv.toml": "= no",
        "/home/me/.cargo/config.toml": "[source]\nx = 1\n[registries]\ny = []\n",
        "/home/me/.cargo/registry/index/i.example-0123456789abcdef/config.json": "[",
        "/home/me/.condarc": "channels: [\n - \n",
    }
    host = read(tmp_path, files)
    assert (host.files, host.environment) == ({}, {})
    assert any("uv.toml: not carried in" in warning for warning in host.warnings)
