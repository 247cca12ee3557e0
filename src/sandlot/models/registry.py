"""From a model's written name to the model. Imports a provider's code only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path

from sandlot.core.errors import ConfigError, unknown_name
from sandlot.core.types import ToolCallForm
from sandlot.models.base import Model

ENTRY_POINTS = "sandlot.models"


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """What a model is built with, as resolved by the settings. Times in seconds.

    `base_url` is for the provider of the model that is built. A server named by it may need no
    key; a provider's own address does.
    """

    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    anthropic_api_key: str | None = field(default=None, repr=False)
    tool_calls: ToolCallForm = "auto"
    timeout_s: float = 600.0
    max_retries: int = 6


Builder = Callable[[str, ModelSettings], Model]
"""Builds a model from the part of its spec after the provider, and the settings."""


def build_model(spec: str, settings: ModelSettings) -> Model:
    """The model of `openai/NAME`, `anthropic/NAME`, `local[:base|PATH][+ADAPTER]`, `scripted:FILE`.

    Third parties add a provider by an entry point in the group `sandlot.models` that names a
    `Builder`; its models are then `PROVIDER/NAME` or `PROVIDER:NAME`.

    Raises:
        ConfigError: an unknown provider, a missing name, or no key for a provider that needs one.
        MissingExtra: the provider's library is not installed.
    """
    url = settings.base_url
    if url and not url.startswith(("http://", "https://")):
        raise ConfigError(f"base URL {url!r} must begin with http:// or https://")
    provider, name = _split(spec)
    builder = _BUILDERS.get(provider) or _plugged_in(provider)
    if builder is None:
        error = unknown_name("model provider", provider, known_providers())
        raise ConfigError(
            f"{error} A model is written PROVIDER/NAME, such as openai/{name or spec}."
        )
    return builder(name, settings)


@dataclass(frozen=True, slots=True)
class Fit:
    """The profile that suits a model.

    With a `digest` the model was taught with exactly that profile and works with no other;
    `adapter` is then the sha256 of what it learnt, and `untaught` names the model without it.
    """

    profile: str
    digest: str | None = None
    adapter: str | None = None
    untaught: str = ""


def profile_fit(spec: str | None) -> Fit | None:
    """The profile that suits a model by its written name; None where any does.

    Raises:
        ConfigError: a taught model whose manifest cannot be read.
    """
    provider, name = _split(spec or "")
    if provider != "local":
        return None
    from sandlot.models.local import local_files

    files = local_files(name)
    if files.adapter is None or files.adapter.manifest is None:
        return Fit("compact")
    manifest = files.adapter.manifest
    pinned = manifest.profile
    return Fit(pinned.name, pinned.digest, manifest.adapter.sha256, files.untaught)


def known_providers() -> tuple[str, ...]:
    plugged = {point.name for point in entry_points(group=ENTRY_POINTS)}
    return tuple(sorted(plugged | _BUILDERS.keys()))


def _split(spec: str) -> tuple[str, str]:
    """Provider and name, at the first slash or colon."""
    ends = [at for mark in "/:" if (at := spec.find(mark)) >= 0]
    if not ends:
        return spec, ""
    return spec[: min(ends)], spec[min(ends) + 1 :]


def _plugged_in(provider: str) -> Builder | None:
    for point in entry_points(group=ENTRY_POINTS, name=provider):
        builder: Builder = point.load()
        return builder
    return None


def _named(provider: str, name: str) -> str:
    if not name:
        raise ConfigError(f"model '{provider}' needs a name: write {provider}/NAME")
    return name


def _key(provider: str, key: str | None, variable: str, base_url: str | None) -> str | None:
    if key or base_url:
        return key or None
    raise ConfigError(
        f"no key for {provider}: set {variable}, "
        "or name a server of your own by --base-url (it may need none)"
    )


def _build_openai(name: str, settings: ModelSettings) -> Model:
    from sandlot.models.openai_chat import OpenAIChatModel

    return OpenAIChatModel(
        _named("openai", name),
        base_url=settings.base_url,
        api_key=_key("openai", settings.api_key, "OPENAI_API_KEY", settings.base_url),
        tool_calls=settings.tool_calls,
        timeout_s=settings.timeout_s,
        max_retries=settings.max_retries,
    )


def _build_anthropic(name: str, settings: ModelSettings) -> Model:
    from sandlot.models.anthropic import AnthropicModel

    key = settings.anthropic_api_key
    return AnthropicModel(
        _named("anthropic", name),
        base_url=settings.base_url,
        api_key=_key("anthropic", key, "ANTHROPIC_API_KEY", settings.base_url),
        timeout_s=settings.timeout_s,
        max_retries=settings.max_retries,
    )


def _build_local(name: str, settings: ModelSettings) -> Model:
    from sandlot.models.local import LocalModel, local_files

    files = local_files(name).checked()
    return LocalModel(files.weights, adapter=files.adapter, tool_calls=settings.tool_calls)


def _build_scripted(name: str, settings: ModelSettings) -> Model:
    from sandlot.models.scripted import ScriptedModel

    if not name:
        raise ConfigError("model 'scripted' needs a file: write scripted:FILE")
    return ScriptedModel.from_file(Path(name))


_BUILDERS: dict[str, Builder] = {
    "openai": _build_openai,
    "anthropic": _build_anthropic,
    "local": _build_local,
    "scripted": _build_scripted,
}
