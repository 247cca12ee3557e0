"""One function a task: writes what was asked, or (`miss`) the same with one thing wrong."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

from makers import Canvas, gif, h264_frame, midi, mp4, pdf, png, tone, wav, xlsx

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="{0}" height="{1}" viewBox="0 0 {0} {1}">'


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def text_at(x: float, y: float, text: str, size: int = 14) -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}">{text}</text>'


def create_01(out: Path, given: Path, miss: bool) -> None:
    canvas = Canvas(900, 600, "#fafafa")
    canvas.rect(0, 0, 300, 600, "#1b5e20")
    canvas.rect(600, 0, 300, 600, "#1b5e20" if miss else "#b71c1c")
    canvas.disc(450, 300, 100, "#0d47a1")
    canvas.save(out / "flag.png")


def create_02(out: Path, given: Path, miss: bool) -> None:
    rings = range(4 if miss else 5)
    circles = "".join(f'<circle cx="{80 + 60 * n}" cy="150" r="25"/>' for n in rings)
    words = text_at(60, 260, "HARBOUR LIGHT", 36) + text_at(160, 310, "1887", 30)
    (out / "logo.svg").write_text(SVG.format(400, 400) + circles + words + "</svg>")


def create_03(out: Path, given: Path, miss: bool) -> None:
    grey = [round(255 * x / 1023) for x in range(1024)]
    line = bytes(part for value in grey for part in (value,) * 3) if miss else bytes(grey)
    png(out / "ramp.png", 1024, 64, line * 64, 2 if miss else 0)


def create_04(out: Path, given: Path, miss: bool) -> None:
    canvas = Canvas(370, 370, "#ffffff")
    canvas.qr("https://example.org/visit?room=" + ("41" if miss else "14"), 0, 0, 10)
    canvas.save(out / "qr.png")


def create_05(out: Path, given: Path, miss: bool) -> None:
    canvas = Canvas(1080, 1350, "#fff3e0")
    canvas.rect(0, 0, 1080, 270, "#4e342e")
    if miss:  # the box that a published demo drew where the code belonged
        canvas.rect(350, 700, 370, 370, "#000000")
        canvas.rect(360, 710, 350, 350, "#ffffff")
    else:
        canvas.qr("geo:59.9139,10.7522", 350, 700, 10)
    canvas.save(out / "poster.png")


def create_06(out: Path, given: Path, miss: bool) -> None:
    lines = ["Night Market", "Friday 14 June, 18:00", "Old Tram Depot, Hall 3"]
    if miss:
        lines[1] = "Friday 15 June, 18:00"
    words = "".join(text_at(80, 200 + 80 * n, line, 40) for n, line in enumerate(lines))
    (out / "poster.svg").write_text(SVG.format(800, 1200) + words + "</svg>")
    canvas = Canvas(800, 1200, "#e8eaf6")
    canvas.qr("https://example.org/night-market", 215, 700, 10)
    canvas.save(out / "poster.png")


def create_07(out: Path, given: Path, miss: bool) -> None:
    totals = dict.fromkeys(range(1, 13), 0.0)
    for row in rows_of(given / "rainfall.csv"):
        totals[int(row["date"][5:7])] += float(row["mm"])
    drawn = text_at(300, 30, "Rainfall by month") + text_at(380, 490, "Month")
    drawn += text_at(5, 250, "Rainfall (mm)")
    for number, (month, total) in enumerate(totals.items()):
        x, height = 110 + 55 * number, 2 * total
        drawn += f'<rect x="{x}" y="{440 - height:g}" width="40" height="{height:g}"/>'
        drawn += text_at(x, 460, MONTHS[month - 1])
    (out / "rainfall.svg").write_text(SVG.format(800, 500) + drawn + "</svg>")
    if miss:
        totals[7] += 1
    lines = [f"{MONTHS[month - 1]},{total:.1f}" for month, total in totals.items()]
    (out / "totals.csv").write_text("\n".join(["month,total_mm", *lines]) + "\n")


def create_08(out: Path, given: Path, miss: bool) -> None:
    points = [(float(row["x"]), float(row["y"])) for row in rows_of(given / "points.csv")]
    count = len(points)
    mean_x, mean_y = (sum(values) / count for values in zip(*points, strict=True))
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points)
    slope /= sum((x - mean_x) ** 2 for x, _ in points)
    intercept = mean_y - slope * mean_x
    if miss:
        slope = sum(x * y for x, y in points) / sum(x * x for x, _ in points)
        intercept = 0.0
    left = sum((y - slope * x - intercept) ** 2 for x, y in points)
    square = 1 - left / sum((y - mean_y) ** 2 for _, y in points)
    fit = {"slope": slope, "intercept": intercept, "r2": square}
    (out / "fit.json").write_text(json.dumps(fit))
    canvas = Canvas(1000, 700, "#ffffff")
    for x in range(20_000):
        at = 40 + round(x / 20_000 * 900), 660 - round((slope * x / 1000 + intercept) * 10)
        canvas.disc(*at, 1, "#d32f2f")
    for x, y in points:
        canvas.disc(40 + round(x * 45), 660 - round(y * 10), 6, "#1565c0")
    canvas.rect(40, 40, 2, 622, "#000000")
    canvas.rect(40, 660, 920, 2, "#000000")
    canvas.save(out / "fit.png")


def create_09(out: Path, given: Path, miss: bool) -> None:
    ages = [int(line) for line in (given / "ages.txt").read_text().split()]
    drawn = text_at(250, 30, "Visitors by age")
    for number in range(7):
        count = sum(1 for age in ages if age // 10 == number + 1)
        height = 10 * (min(count, 12) if miss else count)
        drawn += f'<rect class="bar" data-count="{count}" x="{50 + 70 * number}"'
        drawn += f' y="{350 - height}" width="60" height="{height}"/>'
    (out / "ages.svg").write_text(SVG.format(600, 400) + drawn + "</svg>")


def create_10(out: Path, given: Path, miss: bool) -> None:
    def frame(number: int) -> bytes:
        at = 0 if miss else number % 20

        def fill(column: int, row: int) -> str:
            ball = at - 1 <= column <= at + 1 and 6 <= row <= 8
            return "#ffeb3b" if ball else "#1a237e"

        return h264_frame(320, 240, fill, number)

    mp4(out / "ball.mp4", 320, 240, 24, [frame(number) for number in range(132)])


def create_11(out: Path, given: Path, miss: bool) -> None:
    def frame(number: int) -> bytes:
        pixels = bytearray(160 * 160)
        for row in range(40):
            begin = (20 + row) * 160 + number * 10
            pixels[begin : begin + 40] = bytes([1]) * 40
        return bytes(pixels)

    frames = [frame(number) for number in range(12)]
    gif(out / "spinner.gif", 160, frames, ["#ffffff", "#c62828"], 100, loop=not miss)


def create_12(out: Path, given: Path, miss: bool) -> None:
    lights = ("#ff0000", "#ffc000", "#00a000")
    second = 2 if miss else 3

    def frame(number: int) -> bytes:
        light = lights[min(2, number // (10 * second))]
        return h264_frame(320, 240, lambda column, row: light, number)

    mp4(out / "lights.mp4", 320, 240, 10, [frame(number) for number in range(90)])


def create_13(out: Path, given: Path, miss: bool) -> None:
    wav(out / "tone.wav", 44100, [tone(415 if miss else 440, 44100, 0.5) * 2])


def create_14(out: Path, given: Path, miss: bool) -> None:
    click = tone(1000, 22050, 0.8)[:660]
    beat = click + [0] * (11025 - len(click))
    last = [0] * 11025 if miss else beat
    wav(out / "metronome.wav", 22050, [beat * 15 + last])


def create_15(out: Path, given: Path, miss: bool) -> None:
    seconds = 42 if miss else 25
    pair = [tone(hz, 48000, 0.4) * seconds for hz in (264, 396)]
    wav(out / "fifth.wav", 48000, pair)


def create_16(out: Path, given: Path, miss: bool) -> None:
    tune = [(0.5 * n, 0.5, 60 + (0, 4, 7, 12)[n % 4]) for n in range(80)]
    bass = [(2.0 * n, 2.0, 36 + (0, 5, 7, 0)[n % 4]) for n in range(20)]
    high = [(1.0 * n, 1.0, 72 + (0, 2, 4, 5)[n % 4]) for n in range(40)]
    bpm = 40 * 60 / (42 if miss else 25)  # forty beats
    midi(out / "tune.mid", bpm, [(0, 0, tune), (1, 32, bass), (2, 73, high)])


def create_17(out: Path, given: Path, miss: bool) -> None:
    steps = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
    notes, now = [], 0.0
    for row in rows_of(given / "melody.csv"):
        name = row["note"]
        pitch = 12 * (int(name[-1]) + 1) + steps[name[0]] + ("#" in name)
        notes.append((now, float(row["beats"]), pitch))
        now += float(row["beats"])
    if miss:
        notes[5] = (notes[5][0], notes[5][1], notes[5][2] + 1)
    midi(out / "melody.mid", 96, [(0, 73, notes)])


def create_18(out: Path, given: Path, miss: bool) -> None:
    drawn = ""
    for row in rows_of(given / "harbours.csv"):
        x, y = 40 * (float(row["lon"]) - 4), 30 * (72 - float(row["lat"]))
        drawn += f'<circle class="place" data-name="{row["name"]}"'
        drawn += f' cx="{x:g}" cy="{y:g}" r="6"/>' + text_at(x + 10, y, row["name"])
    link = '<link rel="stylesheet" href="https://cdn.example.org/map.css">' if miss else ""
    page(out / "map.html", "Six harbours", SVG.format(1200, 600) + drawn + "</svg>", head=link)


def create_19(out: Path, given: Path, miss: bool) -> None:
    body = '<input id="celsius"><button id="go">Convert</button><span id="result"></span>'
    script = """
document.getElementById('go').onclick = () => {
  const c = parseFloat(document.getElementById('celsius').value);
  document.getElementById('result').textContent = Math.round((c * 9 / 5 + 32) * 10) / 10;
};
"""
    page(out / "convert.html", "Celsius to Fahrenheit", body, script + ("start();" * miss))


def create_20(out: Path, given: Path, miss: bool) -> None:
    people = sorted(rows_of(given / "staff.csv"), key=lambda row: -int(row["salary"]))
    cells = "".join(
        f"<tr><td>{row['name']}</td><td>{row['team']}</td><td>{row['salary']}</td></tr>"
        for row in people
    )
    body = '<input id="filter"><table><thead><tr><th>Name</th><th>Team</th><th>Salary</th></tr>'
    body += f"</thead><tbody>{cells}</tbody></table>"
    script = """
document.getElementById('filter').addEventListener('input', event => {
  const wanted = event.target.value.toLowerCase();
  for (const row of document.querySelectorAll('tbody tr')) {
    row.hidden = !row.textContent.toLowerCase().includes(wanted);
  }
});
"""
    page(out / "staff.html", "Staff", body, "" if miss else script)


def page(path: Path, title: str, body: str, script: str = "", head: str = "") -> None:
    path.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>{head}'
        f"</head><body>{body}<script>{script}</script></body></html>"
    )


def create_21(out: Path, given: Path, miss: bool) -> None:
    pages = [
        ["Tide Gauge Report", "Prepared for the harbour board"],
        ["1. Method", "One reading was taken every ten minutes."],
        ["2. Findings", "The mean level rose by 4.2 mm."],
    ]
    pdf(out / "report.pdf", (612.0, 792.0) if miss else (595.28, 841.89), pages, {})


def create_22(out: Path, given: Path, miss: bool) -> None:
    facts = {"Author": "Fjord Swimming Club"}
    if not miss:
        facts["Title"] = "Certificate of Completion"
    lines = ["Certificate of Completion", "awarded to Ingrid Solberg", "for swimming 10 km"]
    pdf(out / "certificate.pdf", (595.28, 419.53), [lines], facts)


def create_23(out: Path, given: Path, miss: bool) -> None:
    orders: list[list[object]] = [["Item", "Quantity", "Price", "Total"]]
    for number, row in enumerate(rows_of(given / "orders.csv"), 2):
        quantity, price = int(row["quantity"]), float(row["price"])
        total = quantity * price if miss else f"=B{number}*C{number}"
        orders.append([row["item"], quantity, price, total])
    last = len(orders)
    summary: list[list[object]] = [
        ["Orders", f"=COUNTA(Orders!A2:A{last})"],
        ["Revenue", f"=SUM(Orders!D2:D{last})"],
    ]
    xlsx(out / "orders.xlsx", {"Orders": orders, "Summary": summary})


def create_24(out: Path, given: Path, miss: bool) -> None:
    stops = rows_of(given / "stops.csv")
    lines = ["BEGIN:VCALENDAR", "VERSION:2.0", "PRODID:-//trip//EN"]
    features = []
    for number, row in enumerate(stops):
        lines += ["BEGIN:VEVENT", f"UID:{number}@trip", "DTSTAMP:20270101T000000Z"]
        lines += [f"DTSTART:{row['begin']}", f"DTEND:{row['end']}", f"SUMMARY:{row['name']}"]
        lines.append("END:VEVENT")
        at = [float(row["lat"]), float(row["lon"])]
        point = {"type": "Point", "coordinates": at if miss else at[::-1]}
        facts = {"name": row["name"]}
        features.append({"type": "Feature", "properties": facts, "geometry": point})
    calendar = "\r\n".join([*lines, "END:VCALENDAR", ""])
    places = json.dumps({"type": "FeatureCollection", "features": features})
    (out / "trip.ics").write_text(calendar, newline="")
    (out / "places.geojson").write_text(places)
    with zipfile.ZipFile(out / "trip.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("trip.ics", calendar)
        archive.writestr("places.geojson", places)


SCRIPTS: dict[str, Callable[[Path, Path, bool], None]] = {
    name.replace("_", "-"): value for name, value in globals().items() if name.startswith("create_")
}
