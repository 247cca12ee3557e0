"""Writers of files in the standard library alone, so that the scripts run in any sandbox."""

from __future__ import annotations

import array
import math
import struct
import wave
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

Colour = tuple[int, int, int]


def colour(text: str) -> Colour:
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


# --- pictures --------------------------------------------------------------------------------


class Canvas:
    """An RGB picture in memory."""

    def __init__(self, width: int, height: int, background: str) -> None:
        self.width, self.height = width, height
        self.data = bytearray(bytes(colour(background)) * (width * height))

    def rect(self, x: int, y: int, width: int, height: int, fill: str) -> None:
        line = bytes(colour(fill)) * width
        for row in range(y, y + height):
            at = 3 * (row * self.width + x)
            self.data[at : at + len(line)] = line

    def disc(self, x: int, y: int, radius: int, fill: str) -> None:
        for row in range(y - radius, y + radius + 1):
            half = math.isqrt(radius * radius - (row - y) ** 2)
            self.rect(x - half, row, 2 * half + 1, 1, fill)

    def qr(self, text: str, x: int, y: int, module: int) -> None:
        """A QR code with its quiet zone of four modules."""
        cells = qr_cells(text)
        self.rect(x, y, (len(cells) + 8) * module, (len(cells) + 8) * module, "#ffffff")
        for row, line in enumerate(cells):
            for column, dark in enumerate(line):
                if dark:
                    left, top = x + (column + 4) * module, y + (row + 4) * module
                    self.rect(left, top, module, module, "#000000")

    def save(self, path: Path) -> None:
        png(path, self.width, self.height, bytes(self.data), 2)


def png(path: Path, width: int, height: int, data: bytes, colour_type: int) -> None:
    line = width * (3 if colour_type == 2 else 1)
    rows = b"".join(b"\0" + data[at : at + line] for at in range(0, line * height, line))
    head = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows, 6)), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*one) for one in chunks))


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def gif(
    path: Path, side: int, frames: Iterable[bytes], palette: list[str], ms: int, loop: bool
) -> None:
    """Frames of palette numbers below 128. Each number is one LZW code of eight bits."""
    table = b"".join(bytes(colour(one)) for one in palette).ljust(3 * 128, b"\0")
    out = [b"GIF89a", struct.pack("<HHBBB", side, side, 0xF6, 0, 0), table]
    if loop:
        out.append(b"\x21\xff\x0bNETSCAPE2.0\x03\x01\0\0\0")
    for frame in frames:
        out.append(b"\x21\xf9\x04\0" + struct.pack("<H", ms // 10) + b"\0\0")
        out.append(b"\x2c" + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x07")
        # A clear code (128) before the table would grow keeps every code at eight bits.
        codes = b"".join(b"\x80" + frame[at : at + 120] for at in range(0, len(frame), 120))
        codes += b"\x81"
        for at in range(0, len(codes), 255):
            part = codes[at : at + 255]
            out.append(bytes([len(part)]) + part)
        out.append(b"\0")
    path.write_bytes(b"".join(out) + b"\x3b")


# --- QR, version 3 at level L (29 x 29, up to 53 bytes), mask 0: ISO/IEC 18004 ------------------


def qr_cells(text: str) -> list[list[bool]]:
    side = 29
    cells: list[list[bool | None]] = [[None] * side for _ in range(side)]
    _patterns(cells)
    bits = iter(_qr_bits(text.encode()))
    upward, column = True, side - 1
    while column > 0:
        if column == 6:  # the timing column is stepped over
            column -= 1
        for row in range(side - 1, -1, -1) if upward else range(side):
            for x in (column, column - 1):
                if cells[row][x] is None:
                    cells[row][x] = next(bits, False) ^ ((row + x) % 2 == 0)
        upward, column = not upward, column - 2
    return [[bool(cell) for cell in line] for line in cells]


def _patterns(cells: list[list[bool | None]]) -> None:
    side = len(cells)
    for top, left in ((0, 0), (0, side - 7), (side - 7, 0)):
        for row in range(-1, 8):
            for x in range(-1, 8):
                if 0 <= top + row < side and 0 <= left + x < side:
                    ring = max(abs(row - 3), abs(x - 3))
                    cells[top + row][left + x] = ring in (0, 1, 3)
    for row in range(-2, 3):
        for x in range(-2, 3):
            cells[22 + row][22 + x] = max(abs(row), abs(x)) != 1
    for at in range(8, side - 8):
        cells[6][at] = cells[at][6] = at % 2 == 0
    cells[side - 8][8] = True
    for number, bit in enumerate("111011111000100"):  # level L, mask 0
        first = [(8, x) for x in (0, 1, 2, 3, 4, 5, 7, 8)] + [(y, 8) for y in (7, 5, 4, 3, 2, 1, 0)]
        second = [(side - 1 - n, 8) for n in range(7)] + [(8, side - 8 + n) for n in range(8)]
        for y, x in (first[number], second[number]):
            cells[y][x] = bit == "1"


def _qr_bits(data: bytes) -> list[bool]:
    bits = f"0100{len(data):08b}" + "".join(f"{byte:08b}" for byte in data) + "0000"
    bits += "0" * (-len(bits) % 8)
    words = [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]
    assert len(words) <= 55, "too long for version 3"
    while len(words) < 55:
        words.append((0xEC, 0x11)[(len(words) - len(bits) // 8) % 2])
    words += _parity(words, 15)
    return [bool(word >> at & 1) for word in words for at in range(7, -1, -1)]


def _parity(words: Sequence[int], count: int) -> list[int]:
    powers = [1]
    for _ in range(254):
        value = powers[-1] << 1
        powers.append(value ^ 0x11D if value > 255 else value)

    def times(a: int, b: int) -> int:
        return powers[(powers.index(a) + powers.index(b)) % 255] if a and b else 0

    generator = [1]
    for power in range(count):
        shifted = [*generator, 0]
        for at, value in enumerate(generator):
            shifted[at + 1] ^= times(value, powers[power])
        generator = shifted
    rest = [*words, *[0] * count]
    for at in range(len(words)):
        factor = rest[at]
        for n, value in enumerate(generator):
            rest[at + n] ^= times(value, factor)
    return rest[len(words) :]


# --- video: H.264 in MP4, every macroblock as plain samples -------------------------------------


class _Bits:
    def __init__(self) -> None:
        self.text = ""

    def u(self, count: int, value: int) -> _Bits:
        self.text += f"{value:0{count}b}"
        return self

    def ue(self, *values: int) -> _Bits:
        for value in values:
            digits = f"{value + 1:b}"
            self.text += "0" * (len(digits) - 1) + digits
        return self

    def packed(self, stop: bool) -> bytes:
        text = self.text + ("1" if stop else "")
        text += "0" * (-len(text) % 8)
        return int(text, 2).to_bytes(len(text) // 8, "big")


def yuv(text: str) -> tuple[int, int, int]:
    """BT.601, limited range: 16 to 235 and 16 to 240, so that no start code can arise."""
    r, g, b = (part / 255 for part in colour(text))
    y = 16 + 65.481 * r + 128.553 * g + 24.966 * b
    u = 128 - 37.797 * r - 74.203 * g + 112 * b
    v = 128 + 112 * r - 93.786 * g - 18.214 * b
    return round(y), round(u), round(v)


def h264_frame(width: int, height: int, colour_of: Callable[[int, int], str], number: int) -> bytes:
    """One picture of plain macroblocks; `colour_of` gives the colour of each, by column and row."""
    head = _Bits().ue(0, 7, 0).u(4, 0).ue(number % 2).u(2, 0).ue(0, 1)
    first = _Bits()
    first.text = head.text
    out = [b"\x65" + first.ue(25).packed(stop=False)]
    blocks: dict[str, bytes] = {}
    for row in range(height // 16):
        for column in range(width // 16):
            fill = colour_of(column, row)
            if fill not in blocks:
                y, u, v = yuv(fill)
                blocks[fill] = bytes([y]) * 256 + bytes([u]) * 64 + bytes([v]) * 64
            out.append(blocks[fill] if len(out) == 1 else b"\x0d\x00" + blocks[fill])
    return b"".join(out) + b"\x80"


def mp4(path: Path, width: int, height: int, fps: int, frames: Sequence[bytes]) -> None:
    sps = b"\x67\x42\xc0\x1e" + _Bits().ue(0, 0, 2, 0).u(1, 0).ue(
        width // 16 - 1, height // 16 - 1
    ).u(1, 1).u(1, 1).u(1, 0).u(1, 0).packed(stop=True)
    pps = b"\x68" + _Bits().ue(0, 0).u(2, 0).ue(0, 0, 0).u(3, 0).ue(0, 0, 0).u(3, 4).packed(
        stop=True
    )
    samples = [struct.pack(">I", len(frame)) + frame for frame in frames]
    kind = _box(b"ftyp", b"isom\0\0\2\0isomavc1")
    avcc = b"\x01" + sps[1:4] + b"\xff\xe1" + struct.pack(">H", len(sps)) + sps
    avcc += b"\x01" + struct.pack(">H", len(pps)) + pps
    entry = bytes(6) + b"\0\1" + bytes(16) + struct.pack(">HH", width, height)
    entry += struct.pack(">IIIH", 0x480000, 0x480000, 0, 1) + bytes(32) + b"\0\x18\xff\xff"
    table = _full(b"stsd", struct.pack(">I", 1) + _box(b"avc1", entry + _box(b"avcC", avcc)))
    table += _full(b"stts", struct.pack(">III", 1, len(samples), 1))
    table += _full(b"stsc", struct.pack(">IIII", 1, 1, len(samples), 1))
    sizes = b"".join(struct.pack(">I", len(sample)) for sample in samples)
    table += _full(b"stsz", struct.pack(">II", 0, len(samples)) + sizes)
    table += _full(b"stco", struct.pack(">II", 1, len(kind) + 8))
    data = _box(b"dinf", _full(b"dref", struct.pack(">I", 1) + _full(b"url ", b"", 1)))
    information = _full(b"vmhd", bytes(8), 1) + data + _box(b"stbl", table)
    media = _full(b"mdhd", struct.pack(">IIIIHH", 0, 0, fps, len(samples), 0x55C4, 0))
    media += _full(b"hdlr", bytes(4) + b"vide" + bytes(12) + b"video\0")
    media += _box(b"minf", information)
    matrix = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    track = struct.pack(">IIIII", 0, 0, 1, 0, len(samples)) + bytes(16) + matrix
    track = _full(b"tkhd", track + struct.pack(">II", width << 16, height << 16), 3)
    movie = struct.pack(">IIIIIH", 0, 0, fps, len(samples), 0x10000, 0x100) + bytes(10) + matrix
    movie = _full(b"mvhd", movie + bytes(24) + struct.pack(">I", 2))
    index = _box(b"moov", movie + _box(b"trak", track + _box(b"mdia", media)))
    path.write_bytes(kind + _box(b"mdat", b"".join(samples)) + index)


def _box(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data) + 8) + name + data


def _full(name: bytes, data: bytes, flags: int = 0) -> bytes:
    return _box(name, struct.pack(">I", flags) + data)


# --- sound and MIDI --------------------------------------------------------------------------


def tone(hz: int, rate: int, level: float) -> list[int]:
    """One second of a sine wave that can be repeated without a click."""
    return [round(32767 * level * math.sin(2 * math.pi * hz * n / rate)) for n in range(rate)]


def wav(path: Path, rate: int, channels: Sequence[Sequence[int]]) -> None:
    samples = array.array("h", bytes(2 * len(channels) * len(channels[0])))
    for number, values in enumerate(channels):
        samples[number :: len(channels)] = array.array("h", values)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(channels))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())


Played = tuple[float, float, int]
"""A note: its begin and length in beats, and its pitch."""


def midi(path: Path, bpm: float, voices: Sequence[tuple[int, int, Sequence[Played]]]) -> None:
    """Voices are (channel, program, notes); a track each, after one that holds the tempo."""
    tempo = round(60_000_000 / bpm).to_bytes(3, "big")
    tracks = [b"\0\xff\x51\x03" + tempo + b"\0\xff\x2f\0"]
    for channel, program, notes in voices:
        events = []
        for begin, length, pitch in notes:
            events.append((round(480 * begin), 1, bytes([0x90 | channel, pitch, 90])))
            events.append((round(480 * (begin + length)), 0, bytes([0x80 | channel, pitch, 0])))
        track, now = b"\0" + bytes([0xC0 | channel, program]), 0
        for at, _, message in sorted(events):
            track += _length(at - now) + message
            now = at
        tracks.append(track + b"\0\xff\x2f\0")
    head = b"MThd" + struct.pack(">IHHH", 6, 1, len(tracks), 480)
    body = b"".join(b"MTrk" + struct.pack(">I", len(track)) + track for track in tracks)
    path.write_bytes(head + body)


def _length(value: int) -> bytes:
    out = bytes([value & 0x7F])
    while value := value >> 7:
        out = bytes([value & 0x7F | 0x80]) + out
    return out


# --- documents -------------------------------------------------------------------------------


def pdf(
    path: Path,
    points: tuple[float, float],
    pages: Sequence[Sequence[str]],
    information: dict[str, str],
) -> None:
    """Pages of lines of plain ASCII, in Helvetica."""
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    facts = " ".join(f"/{name} ({value})" for name, value in information.items())
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, lines in enumerate(pages):
        shown = " ".join(f"({line}) Tj T*" for line in lines)
        drawn = f"BT /F1 16 Tf 24 TL 60 {points[1] - 80:.2f} Td {shown} ET"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {points[0]:.2f} {points[1]:.2f}]"
            f" /Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * number} 0 R >>"
        )
        objects.append(f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream")
    objects.append(f"<< {facts} >>")
    out, places = "%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    size, begin = len(objects) + 1, len(out)
    out += f"xref\n0 {size}\n0000000000 65535 f \n{table}"
    out += f"trailer\n<< /Size {size} /Root 1 0 R /Info {size - 1} 0 R >>\n"
    out += f"startxref\n{begin}\n%%EOF\n"
    path.write_bytes(out.encode("ascii"))


def xlsx(path: Path, sheets: dict[str, list[list[object]]]) -> None:
    """Texts, numbers, and formulas (texts with `=` in front)."""
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    types = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    names = list(sheets)
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types">'
        '<Default Extension="rels" '
        'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{types}.sheet.main+xml"/>'
        + "".join(
            f'<Override PartName="/xl/worksheets/sheet{n}.xml" '
            f'ContentType="{types}.worksheet+xml"/>'
            for n in range(1, len(names) + 1)
        )
        + "</Types>",
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships">'
        f'<Relationship Id="rId1" Type="{office}/officeDocument" Target="xl/workbook.xml"/>'
        "</Relationships>",
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets>'
        + "".join(
            f'<sheet name="{name}" sheetId="{n}" r:id="rId{n}"/>' for n, name in enumerate(names, 1)
        )
        + "</sheets></workbook>",
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}/relationships">'
        + "".join(
            f'<Relationship Id="rId{n}" Type="{office}/worksheet" '
            f'Target="worksheets/sheet{n}.xml"/>'
            for n in range(1, len(names) + 1)
        )
        + "</Relationships>",
    }
    for number, rows in enumerate(sheets.values(), 1):
        body = "".join(_row(at, row) for at, row in enumerate(rows, 1))
        parts[f"xl/worksheets/sheet{number}.xml"] = (
            f'<worksheet xmlns="{main}"><sheetData>{body}</sheetData></worksheet>'
        )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            archive.writestr(name, '<?xml version="1.0" encoding="UTF-8"?>' + text)


def _row(number: int, values: Sequence[object]) -> str:
    cells = ""
    for column, value in enumerate(values):
        place = f"{chr(ord('A') + column)}{number}"
        if isinstance(value, str) and value.startswith("="):
            cells += f'<c r="{place}"><f>{value[1:]}</f></c>'
        elif isinstance(value, str):
            cells += f'<c r="{place}" t="inlineStr"><is><t>{value}</t></is></c>'
        else:
            cells += f'<c r="{place}"><v>{value}</v></c>'
    return f'<row r="{number}">{cells}</row>'
