"""Keys and tokens of credentials out of whatever is written to disk.

Two means: values that the caller knows to be secret, and the shapes that well-known tokens have.
What looks like neither is kept: redaction lessens harm, it does not make a record public.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

REDACTED = "[redacted]"
SHORTEST_SECRET = 8
"""Shorter values are too likely to be ordinary words; replacing them would garble the record."""

_NAME = re.compile(r"(?i)(KEY|TOKEN|SECRET|PASSW(OR)?D|CREDENTIAL)S?($|_)")
_SHAPES = re.compile(
    r"""
      \b(?:sk|rk|pk)-[A-Za-z0-9_-]{16,}            # model providers
    | \bgh[pousr]_[A-Za-z0-9]{20,}                 # GitHub
    | \bgithub_pat_[A-Za-z0-9_]{20,}
    | \bglpat-[A-Za-z0-9_-]{16,}                   # GitLab
    | \bhf_[A-Za-z0-9]{20,}                        # model hubs
    | \bpypi-[A-Za-z0-9_-]{32,}                    # package uploads
    | \bnpm_[A-Za-z0-9]{30,}
    | \bxox[abeoprs]-[A-Za-z0-9-]{10,}             # Slack
    | \bAKIA[0-9A-Z]{16}\b                         # AWS
    | \bAIza[0-9A-Za-z_-]{35}                      # Google
    | \beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}   # JSON web tokens
    | (?<=-----BEGIN\ PRIVATE\ KEY-----)[^-]+
    | (?<=-----BEGIN\ RSA\ PRIVATE\ KEY-----)[^-]+
    | (?<=-----BEGIN\ OPENSSH\ PRIVATE\ KEY-----)[^-]+
    """,
    re.VERBOSE,
)
_BEARER = re.compile(r"(?i)\b(bearer|basic)(\s+)([A-Za-z0-9._~+/=-]{16,})")
_URL_PASSWORD = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://[^\s/:@]{0,256}:)([^\s/@]{1,256})@")


def secret_values(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The values of variables whose names say that they hold a credential."""
    return tuple(value for name, value in environ.items() if _NAME.search(name))


class Redactor:
    """Replaces secrets in text, and in every string of a JSON value."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = {secret for secret in secrets if len(secret) >= SHORTEST_SECRET}
        # A tool call's arguments are JSON text, in which a secret stands in its escaped form.
        known |= {json.dumps(secret)[1:-1] for secret in known}
        longest_first = sorted(known, key=lambda secret: (-len(secret), secret))
        self._known = re.compile("|".join(map(re.escape, longest_first))) if known else None

    def text(self, text: str) -> str:
        if self._known is not None:
            text = self._known.sub(REDACTED, text)
        text = _SHAPES.sub(REDACTED, text)
        text = _BEARER.sub(rf"\1\2{REDACTED}", text)
        return _URL_PASSWORD.sub(rf"\1{REDACTED}@", text)

    def value(self, value: Any) -> Any:
        """A copy of a JSON value with every string redacted; keys of objects are kept."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {key: self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        return value
