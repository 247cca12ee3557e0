"""What a server's refusal means, and how to say it without giving a secret away.

Servers of the same protocol name the same trouble differently, so some of it must be told from
the text: vLLM, SGLang, llama.cpp and Ollama have no error code for a context that is full or for
tools that they do not know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sandlot.core.errors import ConfigError, ContextOverflow, ModelError
from sandlot.models.retry import TransientError, is_passing, retry_after_s

_TEXT_CHARS = 600
_KEY_LIKE = re.compile(r"\b(?:sk|pk|rk|key|gsk|hf)[-_][A-Za-z0-9*_.\-]{6,}")
_BEARER = re.compile(r"(?i)\bbearer\s+\S+")
_CONTEXT = re.compile(r"(?i)context[ _-]?(length|window|size)|prompt is too long|num_ctx")
_TOO_LONG = re.compile(
    r"(?i)exceed|maximum|longer than|larger than|greater than|too (long|large|many)|overflow|limit"
)
_CONTEXT_CODES = frozenset(
    ("context_length_exceeded", "exceed_context_size_error", "context_window_exceeded")
)
_NO_TOOLS = re.compile(
    r"""(?ix)
    (tool|function)s?[ _-]?(call(s|ing)?|use|choice|param(eter)?s?)?\W[^.]{0,60}
        (not\ (be\ )?support|unsupported|not\ enabled|not\ available|not\ implemented
         |requires\ --|require\ --)
    | (not\ support|unsupported|cannot\ use|can't\ use|n't\ support)[^.]{0,60}\b(tool|function)s?\b
    | support(s|ing)?\ (tool|function)[ -](use|call)
    | --enable-auto-tool-choice | --jinja
    """
)
_NO_IMAGES = re.compile(r"(?i)image|multimodal|multi-modal|vision|mmproj")


class Refusal(Exception):
    """A server's answer that is no reply: its status, its text (secrets taken out), its code."""

    def __init__(
        self, status: int | None, text: str, code: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def is_about_context(self) -> bool:
        if self.code in _CONTEXT_CODES:
            return True
        if self.status in (401, 403, 429):
            return False
        return bool(_CONTEXT.search(self.text) and _TOO_LONG.search(self.text))

    @property
    def is_about_tools(self) -> bool:
        return self.status not in (401, 403, 429) and bool(_NO_TOOLS.search(self.text))

    @property
    def is_about_images(self) -> bool:
        return self.status in (400, 404, 415, 422, 500, 501) and bool(_NO_IMAGES.search(self.text))


def usable_key(api_key: str | None, variable: str) -> str | None:
    """The key without surrounding white space (a file's newline); None for an empty one.

    Raises:
        ConfigError: a key that no HTTP header can carry; the HTTP client would print it whole.
    """
    key = (api_key or "").strip()
    if not all("!" <= character <= "~" for character in key):
        raise ConfigError(f"the key in {variable} holds spaces or characters that no key has")
    return key or None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Whom we ask, for error messages: the model, the URL, the key and the variable it is in."""

    model: str
    base_url: str
    api_key: str | None
    key_variable: str

    @property
    def shown_url(self) -> str:
        """The base URL without user name, password and query."""
        parts = urlsplit(self.base_url)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}".rstrip("/")

    @property
    def is_loopback(self) -> bool:
        """Whether the server is on this machine, where no proxy is of use."""
        host = urlsplit(self.base_url).hostname or ""
        return host in ("localhost", "::1") or host.startswith("127.")

    def redact(self, text: str) -> str:
        """`text` without the key, without anything that looks like one, and of bounded length."""
        if self.api_key and len(self.api_key) >= 4:
            text = text.replace(self.api_key, "[key]")
        text = _BEARER.sub("Bearer [key]", _KEY_LIKE.sub("[key]", text))
        secret = urlsplit(self.base_url).password
        if secret:
            text = text.replace(secret, "[password]")
        return text if len(text) <= _TEXT_CHARS else text[:_TEXT_CHARS] + "…"

    def refusal(self, status: int | None, body: bytes, headers: Mapping[str, str]) -> Refusal:
        """Read an error body in any of the shapes that servers use."""
        text, code = _read_error(body)
        return Refusal(status, self.redact(text), code, retry_after_s(headers))

    def unreachable(self, reason: str) -> TransientError:
        return TransientError(
            f"the model server at {self.shown_url} cannot be reached "
            f"({self.redact(reason)}). Is it running, and is the base URL right?"
        )

    def to_error(self, refusal: Refusal) -> ModelError:
        """The typed error of a refusal, in words that say what to do."""
        status, said = refusal.status, refusal.text or "no text"
        if refusal.is_about_context:
            return ContextOverflow(
                f"{self.model!r}: the conversation is longer than the context holds ({said})",
                status=status,
            )
        if status in (401, 403):
            return ModelError(self._about_key(refusal), status=status)
        if status == 404:
            return ModelError(
                f"model {self.model!r} was not found at {self.shown_url} ({said}). Check the name "
                "of the model and that the base URL is complete (it often ends in /v1).",
                status=status,
            )
        where = f"{self.shown_url} answered {status if status is not None else 'with an error'}"
        if refusal.code == "insufficient_quota":
            return ModelError(f"{where}: the account has no quota left ({said})", status=status)
        if status is None or is_passing(status):
            after = refusal.retry_after_s
            return TransientError(f"{where}: {said}", status=status, retry_after_s=after)
        return ModelError(f"{where} to a request for {self.model!r}: {said}", status=status)

    def _about_key(self, refusal: Refusal) -> str:
        found = (
            f"the key from {self.key_variable} was refused"
            if self.api_key
            else f"a key is needed and none was given (set {self.key_variable})"
        )
        return f"{self.shown_url} answered {refusal.status}: {found}. It said: {refusal.text}"


def _read_error(body: bytes) -> tuple[str, str]:
    """(text, code) of an error body: JSON of several shapes, or plain text."""
    plain = body.decode("utf-8", "replace").strip()
    try:
        data = json.loads(plain)
    except ValueError:
        return plain, ""
    error = data.get("error", data) if isinstance(data, dict) else data
    if not isinstance(error, dict):
        return str(error), ""
    text = error.get("message") or error.get("detail") or error.get("error") or plain
    return (text if isinstance(text, str) else json.dumps(text)), _error_code(error)


def _error_code(error: Mapping[str, Any]) -> str:
    for name in ("code", "type"):
        value = error.get(name)
        if isinstance(value, str) and value:
            return value
    return ""
