"""Which picture some bytes are, from their first bytes alone; nothing is decoded."""

from __future__ import annotations

import struct
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """Pixel sizes are 0 where the header does not tell."""

    name: str
    media_type: str
    width: int = 0
    height: int = 0


def image_format(data: bytes) -> ImageFormat | None:
    """PNG, JPEG, GIF or WebP by magic bytes, or None."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return ImageFormat("PNG", "image/png", *_unpack(">II", data, 16))
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return ImageFormat("GIF", "image/gif", *_unpack("<HH", data, 6))
    if data.startswith(b"\xff\xd8\xff"):
        return ImageFormat("JPEG", "image/jpeg", *_jpeg_size(data))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ImageFormat("WebP", "image/webp", *_webp_size(data))
    return None


def _unpack(form: str, data: bytes, at: int) -> tuple[int, int]:
    if len(data) < at + struct.calcsize(form):
        return 0, 0
    width, height = struct.unpack_from(form, data, at)
    return width, height


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """From the first start-of-frame segment (ITU T.81, B.2.2)."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = _unpack(">HH", data, at + 5)
            return width, height
        at += 1 if marker == 0xFF else 2 + length
    return 0, 0


def _webp_size(data: bytes) -> tuple[int, int]:
    """Lossy, lossless and extended headers (RFC 9649, section 2)."""
    chunk = data[12:16]
    if chunk == b"VP8 ":
        width, height = _unpack("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if chunk == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8X" and len(data) >= 30:
        width = int.from_bytes(data[24:27], "little") + 1
        return width, int.from_bytes(data[27:30], "little") + 1
    return 0, 0
