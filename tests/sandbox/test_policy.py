"""What a policy accepts and what it refuses, with the words of the refusal."""

from __future__ import annotations

import pytest

from sandlot.core.errors import ConfigError
from sandlot.sandbox.policy import Limits, Network, NetworkMode, Policy


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
    with pytest.raises(ConfigError, match=f"limit {name} must be above zero, found {value}"):
        Limits(**{name: value})


@pytest.mark.parametrize("name", ["memory_bytes", "cpus", "processes", "disk_bytes", "open_files"])
def test_a_limit_may_be_left_off(name: str) -> None:
    assert getattr(Limits(**{name: None}), name) is None


@pytest.mark.parametrize("seconds", [0, -0.5])
def test_a_command_needs_some_time(seconds: float) -> None:
    with pytest.raises(ConfigError, match="command_timeout_s"):
        Limits(command_timeout_s=seconds)


def test_a_policy_of_defaults_asks_for_nothing_and_reaches_only_packages() -> None:
    policy = Policy()
    assert policy.asked == frozenset()
    assert policy.network.mode is NetworkMode.PACKAGES
    assert policy.network.private_hosts == ()
