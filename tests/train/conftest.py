"""Where CI asks for the tests of training, none of them may skip: see `.ci/run`."""

from __future__ import annotations

import importlib
import os

if os.environ.get("SANDLOT_REQUIRE_TRAIN") == "1":
    for _name in ("torch", "transformers", "peft", "trl", "gguf"):
        importlib.import_module(_name)
