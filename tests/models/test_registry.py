"""From a model's written name to the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sandlot.core.errors import ConfigError
from sandlot.models.openai_chat import OpenAIChatModel
from sandlot.models.registry import ModelSettings, build_model, known_providers
from sandlot.models.scripted import ScriptedModel

SETTINGS = ModelSettings(api_key="sk-canary-0123456789")


def test_an_openai_name_may_hold_slashes_and_colons() -> None:
    model = build_model("openai/org/model:free", SETTINGS)
    assert isinstance(model, OpenAIChatModel)
    assert model.name == "org/model:free"


def test_a_script_is_named_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "hi"}\n')
    assert isinstance(build_model(f"scripted:{path}", SETTINGS), ScriptedModel)


@pytest.mark.parametrize("spec", ["opnai/gpt", "opnai", "gpt-5"])
def test_an_unknown_provider_is_an_error_that_lists_what_there_is(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"not known \(have: .*openai.*scripted"):
        build_model(spec, SETTINGS)


def test_a_bare_model_name_is_told_how_to_be_written() -> None:
    with pytest.raises(ConfigError, match="PROVIDER/NAME, such as openai/gpt-5"):
        build_model("gpt-5", SETTINGS)


def test_a_misspelt_provider_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'openai'"):
        build_model("opnai/gpt", SETTINGS)


@pytest.mark.parametrize("spec", ["openai", "openai/", "scripted:", "anthropic/"])
def test_a_provider_without_a_name_says_how_to_write_one(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"write \w+[/:]\w+"):
        build_model(spec, SETTINGS)


def test_a_missing_key_names_its_variable() -> None:
    with pytest.raises(ConfigError, match="set OPENAI_API_KEY"):
        build_model("openai/gpt", ModelSettings())
    pytest.importorskip("anthropic")
    with pytest.raises(ConfigError, match="set ANTHROPIC_API_KEY"):
        build_model("anthropic/claude", ModelSettings(api_key="of another provider"))


def test_a_server_of_ones_own_needs_no_key() -> None:
    settings = ModelSettings(base_url="http://127.0.0.1:1/v1")
    assert build_model("openai/x", settings).name == "x"


def test_a_base_url_without_a_scheme_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="must begin with http://"):
        build_model("openai/x", ModelSettings(base_url="localhost:8000/v1"))


def test_settings_do_not_show_their_keys() -> None:
    assert "canary" not in repr(SETTINGS)


def test_all_providers_are_known() -> None:
    assert {"openai", "anthropic", "local", "scripted"} <= set(known_providers())


def test_building_a_model_imports_no_sdk() -> None:
    """The openai SDK takes most of a second to import; `--help` and errors must not pay it."""
    code = (
        "import sys\n"
        "from sandlot.models.registry import ModelSettings, build_model\n"
        "build_model('openai/x', ModelSettings(api_key='k'))\n"
        "print([m for m in ('openai', 'anthropic', 'httpx2', 'pydantic') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
