"""What a policy accepts and what it refuses, with the words of the refusal."""

from __future__ import annotations

import pytest

from sandlot.core.errors import ConfigError, PolicyNotEnforceable
from sandlot.sandbox.policy import (
    Credential,
    Enforcement,
    Limits,
    Mount,
    Network,
    NetworkMode,
    Policy,
    settle_enforcement,
)


@pytest.mark.parametrize("word", ["none", "packages", "open"])
def test_a_mode_is_one_word(word: str) -> None:
    assert Network.parse(word) == Network(NetworkMode(word))


def test_allowed_hosts_are_trimmed_and_lowered() -> None:
    network = Network.parse("allow: Example.org , *.Example.net,packages,")
    assert network.mode is NetworkMode.ALLOW
    assert network.hosts == ("example.org", "*.example.net", "packages")


def test_private_hosts_are_kept_beside_the_mode() -> None:
    assert Network.parse("packages", ("packages",)).private_hosts == ("packages",)


@pytest.mark.parametrize("text", ["", "some", "None", "none:example.org", "open:a.org"])
def test_an_unknown_network_is_told_what_there_is(text: str) -> None:
    with pytest.raises(ConfigError, match=r"not known.*none, packages, open, allow:HOST"):
        Network.parse(text)


@pytest.mark.parametrize("text", ["allow", "allow:", "allow: , ,"])
def test_an_empty_list_of_hosts_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="names no host"):
        Network.parse(text)


@pytest.mark.parametrize(
    "host",
    [
        "https://example.org",
        "example.org/path",
        "example.org:443",
        "10.0.0.1",
        "::1",
        "*",
        "*.",
        "a.*.org",
        "*.*.org",
    ],
)
def test_what_is_not_a_host_name_is_refused_by_name(host: str) -> None:
    with pytest.raises(ConfigError, match="is not a host name") as caught:
        Network.parse(f"allow:good.org,{host}")
    assert repr(host) in str(caught.value)


def test_private_hosts_are_checked_like_the_others() -> None:
    with pytest.raises(ConfigError, match=r"'192\.168\.0\.1' is not a host name"):
        Network.parse("none", ("192.168.0.1",))


@pytest.mark.parametrize("name", ["memory_bytes", "cpus", "processes", "disk_bytes", "open_files"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_limit_must_be_above_zero(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"must be above zero, found {value}"):
        Limits(**{name: value})


@pytest.mark.parametrize("name", ["memory_bytes", "cpus", "processes", "disk_bytes", "open_files"])
def test_a_limit_may_be_left_off(name: str) -> None:
    assert getattr(Limits(**{name: None}), name) is None


@pytest.mark.parametrize("seconds", [0, -0.5])
def test_a_command_needs_some_time(seconds: float) -> None:
    with pytest.raises(ConfigError, match="limit on command time"):
        Limits(command_timeout_s=seconds)


def test_a_policy_of_defaults_asks_for_nothing_and_reaches_only_packages() -> None:
    policy = Policy()
    assert policy.asked == frozenset()
    assert policy.network.mode is NetworkMode.PACKAGES
    assert policy.network.private_hosts == ()


_WORDS = {
    "memory_bytes": "memory",
    "cpus": "cpus",
    "processes": "processes",
    "disk_bytes": "disk",
    "open_files": "open files",
    "file_bytes": "file size",
    "wall_s": "wall time",
}


@pytest.mark.parametrize("name", _WORDS)
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_limit_of_nothing_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"the limit on {_WORDS[name]} must be above zero"):
        Limits(**{name: value})


def test_a_limit_under_which_no_shell_starts_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"limit on memory is too small .* 8,388,608 bytes, found 4,096"
    ):
        Limits(memory_bytes=4096)


def test_what_is_both_allowed_and_denied_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'a\.org' is both allowed and denied"):
        Network.parse("allow:a.org,b.org", denied_hosts=("a.org",))


@pytest.mark.parametrize(
    "network",
    [
        {"mode": NetworkMode.NONE},
        {"mode": NetworkMode.ALLOW, "hosts": ("b.org",)},
        {"mode": NetworkMode.OPEN, "denied_hosts": ("*.org",)},
    ],
)
def test_a_credential_that_no_request_could_carry_is_refused(network: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="credential"):
        Network(credentials=(Credential("a.org", "Bearer x"),), **network)  # type: ignore[arg-type]


def test_a_credential_does_not_show_its_secret() -> None:
    assert "hunter2" not in repr(Network(credentials=(Credential("a.org", "Bearer hunter2"),)))


@pytest.mark.parametrize("secret", ["", "two\nlines", "a\r\nheader: x"])
def test_a_secret_that_is_no_header_value_is_refused(secret: str) -> None:
    with pytest.raises(ConfigError, match="a secret of one line"):
        Credential("a.org", secret)


@pytest.mark.parametrize("target", ["data", "/", "", "/proc/x", "/dev", "/sys", "/a/../proc"])
def test_a_mount_over_what_the_sandbox_needs_is_refused(target: str) -> None:
    with pytest.raises(ConfigError, match="mount target"):
        Mount("/", target)


def test_a_mount_of_what_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="'/no/such/folder' is not a folder"):
        Mount("/no/such/folder", "/data")


def test_a_limit_that_was_asked_for_and_does_not_hold_is_refused_with_the_way_out() -> None:
    rows = [Enforcement("memory", "watchdog", False, "no group")]
    policy = Policy(asked=frozenset({"memory_bytes"}))
    with pytest.raises(PolicyNotEnforceable, match=r"memory .*no group.*--accept-unenforced"):
        settle_enforcement(policy, rows)


@pytest.mark.parametrize("word", ["memory", "all"])
def test_an_accepted_exception_is_marked_and_nothing_else_is(word: str) -> None:
    rows = [Enforcement("memory", "watchdog", False), Enforcement("disk", "tmpfs", True)]
    policy = Policy(asked=frozenset({"memory_bytes"}), accepted=frozenset({word}))
    memory, disk = settle_enforcement(policy, rows)
    assert memory.accepted
    assert not disk.accepted


def test_a_default_that_does_not_hold_falls_back_without_a_mark() -> None:
    (row,) = settle_enforcement(Policy(), [Enforcement("memory", "watchdog", False)])
    assert not row.accepted


def test_every_refused_limit_is_named_at_once() -> None:
    rows = [Enforcement(name, "none", False) for name in ("memory", "cpus", "disk")]
    policy = Policy(
        asked=frozenset({"memory_bytes", "cpus", "disk_bytes"}), accepted=frozenset({"disk"})
    )
    with pytest.raises(PolicyNotEnforceable, match=r"limit on memory, cpus was.*memory,cpus"):
        settle_enforcement(policy, rows)
