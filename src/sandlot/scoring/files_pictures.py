"""Pictures: raster images with their frames, QR codes in them, and SVG drawings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from sandlot.scoring.files_kinds import (
    BROKEN,
    MIB,
    Check,
    Finding,
    Kind,
    Refused,
    asked_words,
    colour_of,
    compare,
    hex_of,
    holds_texts,
    near_colour,
    within,
)

_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP")
_PIXELS = 40_000_000
_FRAMES = 1000
_ALL_PIXELS = 200_000_000
_ELEMENTS = 50_000
_OUTSIDE = re.compile(r"url\((?!\s*['\"]?\s*(?:#|data:))|@import", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Picture:
    """`first` is a Pillow image in RGB; `durations_s` and `prints` are of each frame.

    A print is a frame made small (32 x 32 greys), for comparing frames. `loop` is the number of
    times that an animation repeats: 0 for ever, None where the file says nothing.
    """

    format: str
    mode: str
    first: Any
    durations_s: tuple[float, ...]
    prints: tuple[bytes, ...]
    loop: int | None

    @property
    def size(self) -> tuple[int, int]:
        width, height = self.first.size
        return width, height


def read_picture(path: Path) -> Picture:
    from PIL import Image

    try:
        with Image.open(path, formats=_FORMATS) as image:
            width, height = image.size
            frames = getattr(image, "n_frames", 1) if width * height <= _PIXELS else 1
            _check_cost(width, height, frames)
            mode = image.mode
            image.load()
            first = image.convert("RGB")
            durations, prints = [], []
            for number in range(frames):
                image.seek(number)
                durations.append(float(image.info.get("duration", 0)) / 1000)
                prints.append(image.convert("L").resize((32, 32)).tobytes())
            loop = image.info.get("loop")
            kind = str(image.format)
    except (*BROKEN, Image.DecompressionBombError) as exc:
        raise Refused(f"no picture that can be read ({exc})") from exc
    return Picture(kind, mode, first, tuple(durations), tuple(prints), loop)


def _check_cost(width: int, height: int, frames: int) -> None:
    if width * height > _PIXELS:
        raise Refused(f"{width} x {height} pixels are beyond what is read ({_PIXELS:,})")
    if frames > _FRAMES or frames * width * height > _ALL_PIXELS:
        raise Refused(f"{frames} frames of {width} x {height} are beyond what is read")


def _format(picture: Picture, *, name: str) -> Finding:
    return Finding(picture.format == name, f"format: asked {name}, found {picture.format}")


def _size(picture: Picture, *, width: Any, height: Any) -> Finding:
    found = picture.size
    asked = f"{asked_words(width)} x {asked_words(height)}"
    fits = within(found[0], width) and within(found[1], height)
    return Finding(fits, f"size: asked {asked}, found {found[0]} x {found[1]} pixels")


def _mode(picture: Picture, *, any_of: list[str]) -> Finding:
    return Finding(picture.mode in any_of, f"mode: asked {any_of}, found {picture.mode}")


def _colour_at(
    picture: Picture, *, points: list[tuple[float, float, str]], tolerance: int = 12
) -> Finding:
    """Points are shares of width and height, so that they hold at any size."""
    width, height = picture.size
    wrong = []
    for x, y, asked in points:
        at = min(int(x * width), width - 1), min(int(y * height), height - 1)
        found = picture.first.getpixel(at)
        if not near_colour(found, asked, tolerance):
            wrong.append(f"{at}: asked {asked}, found {hex_of(found)}")
    said = "; ".join(wrong) if wrong else f"colours are right at {len(points)} points"
    return Finding(not wrong, said)


def _covers(
    picture: Picture, *, colour: str, share: tuple[float, float], tolerance: int = 12
) -> Finding:
    """The share of all pixels that are near a colour."""
    from PIL import ImageChops

    red, green, blue = (
        band.point([255 if abs(at - part) <= tolerance else 0 for at in range(256)])
        for band, part in zip(picture.first.split(), colour_of(colour), strict=True)
    )
    near = ImageChops.darker(ImageChops.darker(red, green), blue).histogram()[255]
    width, height = picture.size
    return compare(f"share of {colour}", near / (width * height), share)


def _colours(picture: Picture, *, count: Any) -> Finding:
    """Distinct colours, each channel in steps of 16."""
    small = picture.first.point([at // 16 * 16 for at in range(256)] * 3)
    found = small.getcolors(maxcolors=4096) or []
    return compare("distinct colours", len(found), count)


def _gradient(picture: Picture, *, first: int, last: int, tolerance: int = 4) -> Finding:
    """Grey values of the middle row rise evenly from the left edge to the right one."""
    width, height = picture.size
    row = [picture.first.convert("L").getpixel((x, height // 2)) for x in range(width)]
    step = (last - first) / max(1, width - 1)
    worst = max(abs(value - (first + step * x)) for x, value in enumerate(row))
    return Finding(worst <= tolerance, f"gradient: the worst pixel is off by {worst:.1f} of 255")


def _qr(picture: Picture, *, text: str) -> Finding:
    """Exactly one QR code that reads back as the asked text."""
    import zxingcpp

    found = [
        code.text
        for code in zxingcpp.read_barcodes(picture.first.convert("L"))
        if "qr" in str(code.format).lower().replace(" ", "")
    ]
    if not found:
        return Finding(False, f"QR code: asked {text!r}, found none that can be read")
    return Finding(found == [text], f"QR code: asked {text!r}, found {found}")


def _frames(picture: Picture, *, count: Any) -> Finding:
    return compare("frames", len(picture.prints), count)


def _duration(picture: Picture, *, seconds: Any) -> Finding:
    return compare("duration in seconds", round(sum(picture.durations_s), 3), seconds)


def _loops(picture: Picture, *, times: int) -> Finding:
    said = {None: "played once", 0: "for ever"}.get(picture.loop, f"{picture.loop}")
    return Finding(picture.loop == times, f"loop: asked {times} (0 is for ever), found {said}")


def _moves(picture: Picture, *, share: float = 0.5) -> Finding:
    return moving(picture.prints, share)


def moving(prints: tuple[bytes, ...], share: float) -> Finding:
    """Whether at least a share of the frames differ from the frame before."""
    changed = sum(1 for a, b in pairwise(prints) if _differ(a, b))
    pairs = len(prints) - 1
    said = f"movement: {changed} of {max(pairs, 0)} frames differ from the one before"
    return Finding(pairs > 0 and changed >= share * pairs, said)


def _differ(a: bytes, b: bytes) -> bool:
    return any(abs(x - y) > 6 for x, y in zip(a, b, strict=False))


# --- drawings --------------------------------------------------------------------------------


def read_svg(path: Path) -> Any:
    """The root element. Entities are refused, a document type is not: plotting tools write one."""
    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import parse

    try:
        root = parse(path).getroot()
    except (*BROKEN, DefusedXmlException) as exc:
        raise Refused(f"no SVG that can be read ({type(exc).__name__}: {exc})") from exc
    if _tag(root) != "svg":
        raise Refused(f"the outermost element is <{_tag(root)}>, not <svg>")
    for number, _ in enumerate(root.iter(), 1):
        if number > _ELEMENTS:
            raise Refused(f"more than {_ELEMENTS:,} elements")
    return root


def _tag(element: Any) -> str:
    return str(element.tag).rpartition("}")[2]


def _drawing_size(root: Any, *, width: float, height: float) -> Finding:
    """By width and height where they are plain numbers or pixels, else by the view box."""
    sides = [re.fullmatch(r"\s*([\d.]+)\s*(?:px)?\s*", root.get(n, "")) for n in SIDES]
    if sides[0] and sides[1]:
        found = (float(sides[0][1]), float(sides[1][1]))
    else:
        box = re.findall(r"-?[\d.]+(?:e-?\d+)?", root.get("viewBox", ""))
        found = (float(box[2]), float(box[3])) if len(box) == 4 else (0.0, 0.0)
    fits = abs(found[0] - width) < 0.5 and abs(found[1] - height) < 0.5
    return Finding(fits, f"size: asked {width:g} x {height:g}, found {found[0]:g} x {found[1]:g}")


SIDES = ("width", "height")


def _view_box(root: Any, *, box: str) -> Finding:
    found = " ".join(re.split(r"[\s,]+", root.get("viewBox", "").strip()))
    return Finding(found == box, f"view box: asked {box!r}, found {found!r}")


def _texts(root: Any, *, all_of: list[str]) -> Finding:
    """Text that stays text: of `text` elements and what is in them."""
    seen = " \n ".join("".join(one.itertext()) for one in root.iter() if _tag(one) == "text")
    return holds_texts("the text elements", seen, all_of)


def _matching(root: Any, tag: str, where: Mapping[str, str]) -> Iterator[Any]:
    for element in root.iter():
        if _tag(element) != tag:
            continue
        if all(wanted in element.get(name, "").split() for name, wanted in where.items()):
            yield element


def _count(root: Any, *, tag: str, count: Any, where: Mapping[str, str] | None = None) -> Finding:
    found = sum(1 for _ in _matching(root, tag, where or {}))
    kind = "".join(f"[{name}~={value}]" for name, value in (where or {}).items())
    return compare(f"<{tag}>{kind} elements", found, count)


def _attribute(
    root: Any, *, tag: str, name: str, values: list[Any], where: Mapping[str, str] | None = None
) -> Finding:
    """The values of an attribute, in the order of the document."""
    found = [element.get(name) for element in _matching(root, tag, where or {})]
    fits = len(found) == len(values) and all(
        _is(value, asked) for value, asked in zip(found, values, strict=True)
    )
    return Finding(fits, f"{name} of <{tag}>: asked {values}, found {found[: len(values) + 3]}")


def _is(found: str | None, asked: Any) -> bool:
    try:
        return found is not None and abs(float(found) - float(asked)) < 1e-6
    except ValueError:
        return bool(found == asked)


def _proportional(
    root: Any, *, tag: str, name: str, to: list[float], where: Mapping[str, str] | None = None
) -> Finding:
    """An attribute (a bar's height) is one factor times the asked values, to 2 % of the largest."""
    try:
        found = [float(one.get(name, "nan")) for one in _matching(root, tag, where or {})]
    except ValueError as exc:
        return Finding(False, f"{name} of <{tag}>: not a number ({exc})")
    if len(found) != len(to) or sum(found) <= 0:
        return Finding(False, f"{name} of <{tag}>: asked {len(to)} numbers, found {found[:12]}")
    factor = sum(found) / sum(to)
    off = max(abs(a - factor * b) for a, b in zip(found, to, strict=True)) / max(found)
    return Finding(off <= 0.02, f"{name} of <{tag}>: off from the data by {off:.1%} of the largest")


def _self_contained(root: Any) -> Finding:
    """Nothing that a viewer would have to fetch, and no script."""
    outside = []
    for element in root.iter():
        if _tag(element) == "script":
            outside.append("<script>")
        for name, value in element.attrib.items():
            link = name.rpartition("}")[2] in ("href", "src") and _tag(element) != "a"
            if (link and not value.startswith(("#", "data:"))) or _OUTSIDE.search(value):
                outside.append(f"{value:.60}")
        if _tag(element) == "style" and _OUTSIDE.search(element.text or ""):
            outside.append("a style sheet")
    return Finding(not outside, f"fetched from outside: {outside[:5] or 'nothing'}")


_PICTURE_CHECKS: dict[str, Check] = {
    "colour_at": _colour_at,
    "colours": _colours,
    "covers": _covers,
    "duration": _duration,
    "format": _format,
    "frames": _frames,
    "gradient": _gradient,
    "loops": _loops,
    "mode": _mode,
    "moves": _moves,
    "qr": _qr,
    "size": _size,
}
_SVG_CHECKS: dict[str, Check] = {
    "attribute": _attribute,
    "count": _count,
    "proportional": _proportional,
    "self_contained": _self_contained,
    "size": _drawing_size,
    "texts": _texts,
    "view_box": _view_box,
}

KINDS = {
    "picture": Kind(read_picture, _PICTURE_CHECKS, {"": "PIL", "qr": "zxingcpp"}),
    "svg": Kind(read_svg, _SVG_CHECKS, {"": "defusedxml"}, max_bytes=10 * MIB),
}
