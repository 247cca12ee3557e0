"""An adapter is held to the manifest beside it, before anything is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sandlot.agent.prompts import digest, load_profile
from sandlot.core.errors import ConfigError
from sandlot.models import adapters
from sandlot.models.adapters import (
    FileDigest,
    Manifest,
    Pin,
    adapter_at,
    file_digest,
    read_manifest,
    shipped_adapter,
)
from sandlot.models.local import local_files
from sandlot.models.registry import Fit, ModelSettings, build_model, profile_fit
from taught import taught_files, taught_spec

NOTHING = "0" * 64


def changed(manifest: Path, **fields: Any) -> None:
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | fields))


def test_a_manifest_reads_as_it_was_written(tmp_path: Path) -> None:
    made = Manifest(
        "taught",
        FileDigest("a.gguf", "a" * 64, 9_800_000),
        FileDigest("w.gguf", "b" * 64, 98_362_432),
        Pin("taught", "c" * 64),
        recipe=Pin("smollm2", "d" * 64),
        seed=7,
        versions={"torch": "2.13.0"},
        scores={"sandbox": {"mean": 0.9, "items": 200}},
    )
    path = tmp_path / "manifest.json"
    path.write_text(made.to_text())
    assert read_manifest(path) == made


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"name": "taught"}', "is damaged.*adapter"),
        ('{"name": 1}', "is damaged"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"manifest\.json {said}"):
        read_manifest(path)


def test_a_manifest_of_another_format_or_without_digests_is_refused(tmp_path: Path) -> None:
    taught_files(tmp_path)
    manifest = tmp_path / "manifest.json"
    changed(manifest, format=2)
    with pytest.raises(ConfigError, match="has format 2, this sandlot reads 1"):
        read_manifest(manifest)
    changed(manifest, format=1, profile={"name": "taught", "digest": None})
    with pytest.raises(ConfigError, match="is damaged"):
        read_manifest(manifest)


def test_a_taught_model_is_named_after_its_weights_and_its_adapter(tmp_path: Path) -> None:
    spec = taught_spec(tmp_path)
    assert build_model(spec, ModelSettings(tool_calls="fenced")).name == "local:w+taught"
    (tmp_path / "manifest.json").unlink()
    assert build_model(spec, ModelSettings()).name == "local:w+adapter"


def test_a_replaced_adapter_is_refused_with_the_way_out(tmp_path: Path) -> None:
    spec = taught_spec(tmp_path)
    (tmp_path / "adapter.gguf").write_bytes(b"GGUF of somebody else")
    with pytest.raises(ConfigError, match=r"not the one of its manifest.*-m local:.*w\.gguf\."):
        build_model(spec, ModelSettings())


def test_other_weights_than_those_trained_on_are_refused(tmp_path: Path) -> None:
    base = FileDigest("SmolLM2.Q4_1.gguf", NOTHING, 98_362_432)
    spec = taught_spec(tmp_path, base=base)
    with pytest.raises(ConfigError, match=r"trained on SmolLM2\.Q4_1\.gguf .*98362432 bytes"):
        build_model(spec, ModelSettings())


def test_without_a_manifest_nothing_is_held_to_anything(tmp_path: Path) -> None:
    spec = taught_spec(tmp_path, base=FileDigest("other.gguf", NOTHING, 1))
    (tmp_path / "manifest.json").unlink()
    build_model(spec, ModelSettings())
    assert profile_fit(spec) == Fit("compact")


def test_a_missing_adapter_is_named(tmp_path: Path) -> None:
    weights, _ = taught_files(tmp_path)
    with pytest.raises(ConfigError, match=r"adapter file .*none\.gguf cannot be read"):
        build_model(f"local:{weights}+{tmp_path}/elsewhere/none.gguf", ModelSettings())


def test_the_files_behind_a_name(tmp_path: Path) -> None:
    weights, adapter = taught_files(tmp_path)
    both = local_files(f"{weights}+{adapter}")
    assert (both.weights, both.untaught) == (weights, f"local:{weights}")
    assert both.adapter is not None
    assert both.adapter.path == adapter
    assert local_files(str(weights)).adapter is None
    base = local_files(f"base+{adapter}")
    assert (base.weights, base.adapter, base.untaught) == (None, both.adapter, "local:base")
    assert local_files("base").adapter is None


def test_a_file_whose_own_name_looks_like_a_pair_is_one_file(tmp_path: Path) -> None:
    odd = tmp_path / "a.gguf+b.gguf"
    odd.write_bytes(b"GGUF")
    files = local_files(str(odd))
    assert (files.weights, files.adapter) == (odd, None)


def test_the_shipped_adapter_is_what_local_stands_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "SHIPPED", tmp_path)
    assert shipped_adapter() is None
    assert profile_fit("local") == Fit("compact")
    _, adapter = taught_files(tmp_path)
    assert local_files("").adapter == adapter_at(adapter)
    fit = profile_fit("local")
    assert fit is not None
    assert fit.profile == "taught"
    assert fit.digest == digest(load_profile("taught"))
    assert fit.adapter == file_digest(adapter).sha256
    assert fit.untaught == "local:base"
    assert profile_fit("local:base") == profile_fit("local:/other.gguf") == Fit("compact")
    assert profile_fit("openai/local") is profile_fit(None) is None
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ConfigError, match=r"has no manifest\.json; reinstall"):
        shipped_adapter()


def test_a_file_is_digested_anew_once_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    first = file_digest(path)
    path.write_bytes(b"three")
    assert file_digest(path) != first
    assert file_digest(path).bytes == 5
    with pytest.raises(ConfigError, match="cannot be read"):
        file_digest(tmp_path / "none")


def test_what_the_package_ships_fits_its_own_profile() -> None:
    adapter = shipped_adapter()
    if adapter is None:
        pytest.skip("this version ships no adapter")
    assert adapter.manifest is not None
    assert adapter.manifest.adapter.sha256 == file_digest(adapter.path).sha256
    pinned = adapter.manifest.profile
    assert pinned.digest == digest(load_profile(pinned.name))
    assert adapter.path.stat().st_size <= 12_000_000
