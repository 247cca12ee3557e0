"""What a trained model can be written as, and which of it suits a run. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from sandlot.core.errors import ConfigError, unknown_name
from sandlot.models.local import bundled_weights
from sandlot.train.config import TrainConfig

FORMS = ("adapter", "hf", "gguf")


def file_before(config: TrainConfig, form: str, base: Path | None = None) -> Path | None:
    """The GGUF file of the model before its training, or None for a form that needs none.

    Args:
        base: that file, where it was named; else it is the run's own.
    Raises:
        ConfigError: the form is not known or does not suit the run.
    """
    if form not in FORMS:
        raise unknown_name("form of a trained model", form, FORMS)
    if form == "adapter" and config.model.lora is None:
        raise ConfigError(
            "the run trained whole weights, not an adapter (model.lora); write --to hf or --to gguf"
        )
    return None if form == "hf" else base or base_of(config)


def base_of(config: TrainConfig) -> Path:
    """The GGUF file that a run began with.

    Raises:
        ConfigError: it began with something else.
    """
    if config.model.source == "local":
        return bundled_weights()
    path = Path(config.model.source)
    if path.suffix != ".gguf":
        raise ConfigError(
            f"the run began with {config.model.source}, which is no GGUF file; name one of the "
            "same model with --base FILE.gguf"
        )
    return path
