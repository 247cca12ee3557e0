"""Sound, MIDI and video, decoded and measured."""

from __future__ import annotations

import array
import math
import sys
import wave
from collections.abc import Iterator
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
    compare,
    hex_of,
    near_colour,
    within,
)
from sandlot.scoring.files_pictures import moving

_MESSAGES = 200_000
_PIXELS = 4096 * 2304
_FRAMES = 3600
_SMALL = (32, 18)
"""Frames of a video are kept as RGB of this size: enough for colours and movement."""


@dataclass(frozen=True, slots=True)
class Sound:
    """16-bit PCM. `samples` holds the channels one after another within each frame."""

    rate: int
    channels: int
    samples: array.array[int]

    @property
    def duration_s(self) -> float:
        return len(self.samples) / self.channels / self.rate

    def channel(self, number: int) -> array.array[int]:
        return self.samples[number :: self.channels]


def read_sound(path: Path) -> Sound:
    try:
        with wave.open(str(path), "rb") as file:
            rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            data = file.readframes(file.getnframes())
    except (*BROKEN, wave.Error) as exc:
        raise Refused(f"no WAV file of plain PCM ({exc})") from exc
    if width != 2 or rate <= 0 or channels <= 0:
        raise Refused(f"{8 * width}-bit samples at {rate} Hz; 16-bit PCM is read")
    samples = array.array("h", data[: len(data) // (2 * channels) * 2 * channels])
    if sys.byteorder == "big":
        samples.byteswap()
    return Sound(rate, channels, samples)


def _sound_duration(sound: Sound, *, seconds: Any) -> Finding:
    return compare("duration in seconds", sound.duration_s, seconds)


def _rate(sound: Sound, *, hz: Any) -> Finding:
    return compare("sample rate", sound.rate, hz)


def _channels(sound: Sound, *, count: int) -> Finding:
    return compare("channels", sound.channels, count)


def _loud(sound: Sound, *, peak: tuple[float, float]) -> Finding:
    """The highest sample as a share of full scale."""
    found = max(map(abs, sound.samples), default=0) / 32768
    return compare("peak", found, peak)


def _pitch(
    sound: Sound, *, hz: float, channel: int = 0, span: tuple[float, float] | None = None
) -> Finding:
    """A tone by its energy: at least 60 % lies within 1 % of the asked frequency.

    `span` is the part to listen to, in seconds; at most one second from its middle is read.
    """
    samples = sound.channel(min(channel, sound.channels - 1))
    begin, end = span or (0.0, sound.duration_s)
    middle = (begin + end) / 2
    half = min(0.5, (end - begin) / 2)
    part = samples[
        max(0, int((middle - half) * sound.rate)) : max(0, int((middle + half) * sound.rate))
    ]
    share = max(_share_at(part, sound.rate, hz * (1 + at / 400)) for at in range(-4, 5))
    where = f"channel {channel}" + (f", {begin:g} to {end:g} s" if span else "")
    return Finding(share >= 0.6, f"{where}: {share:.0%} of the energy lies at {hz:g} Hz")


def _share_at(samples: array.array[int], rate: int, hz: float) -> float:
    """The share of the energy at one frequency (Goertzel's recurrence)."""
    energy = sum(value * value for value in samples)
    if not energy:
        return 0.0
    factor = 2 * math.cos(2 * math.pi * hz / rate)
    before = last = 0.0
    for value in samples:
        before, last = last, value + factor * last - before
    power = last * last + before * before - factor * last * before
    return 2 * power / (len(samples) * energy)


def _onsets(sound: Sound, *, count: Any, every_s: float | None = None) -> Finding:
    """How often sound begins after quiet, in steps of 10 ms, and at what distance."""
    step = max(1, sound.rate // 100)
    mono = sound.channel(0)
    levels = [max(map(abs, mono[at : at + step]), default=0) for at in range(0, len(mono), step)]
    begins = list(_rises(levels, max(levels, default=0)))
    found = compare("onsets", len(begins), count)
    if not found.passed or every_s is None:
        return found
    gaps = [(b - a) / 100 for a, b in pairwise(begins)]
    worst = max((abs(gap - every_s) for gap in gaps), default=0.0)
    return Finding(worst <= 0.03, f"onsets every {every_s:g} s: the worst is off by {worst:.2f} s")


def _rises(levels: list[int], highest: int) -> Iterator[int]:
    quiet = True
    for number, level in enumerate(levels):
        if quiet and level > 0.3 * highest > 0:
            quiet = False
            yield number
        elif level < 0.1 * highest:
            quiet = True


# --- MIDI ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Note:
    """Times in seconds, computed from every tempo event on the way. `program` None is drums."""

    start_s: float
    end_s: float
    pitch: int
    program: int | None


@dataclass(frozen=True, slots=True)
class Midi:
    notes: tuple[Note, ...]
    tempos_bpm: tuple[float, ...]

    @property
    def duration_s(self) -> float:
        """Until the last note has ended; silence after it is no music."""
        return max((note.end_s for note in self.notes), default=0.0)


def read_midi(path: Path) -> Midi:
    import mido

    try:
        file = mido.MidiFile(str(path))
        if sum(len(track) for track in file.tracks) > _MESSAGES:
            raise Refused(f"more than {_MESSAGES:,} messages")
        if file.ticks_per_beat <= 0:
            raise Refused("its division counts frames of film, not beats")
        return _played(file)
    except BROKEN as exc:
        raise Refused(f"no MIDI file that can be read ({exc})") from exc


def _played(file: Any) -> Midi:
    import mido

    now = 0.0
    tempo = 500_000
    tempos: list[float] = []
    program = [0] * 16
    sounding: dict[tuple[int, int], list[float]] = {}
    notes: list[Note] = []
    for message in mido.merge_tracks(file.tracks):
        now += mido.tick2second(message.time, file.ticks_per_beat, tempo)
        if message.type == "set_tempo":
            tempo = message.tempo
            tempos.append(round(mido.tempo2bpm(tempo), 3) if tempo else math.inf)
        elif message.type == "program_change":
            program[message.channel] = message.program
        elif message.type == "note_on" and message.velocity:
            sounding.setdefault((message.channel, message.note), []).append(now)
        elif message.type in ("note_on", "note_off"):
            begun = sounding.get((message.channel, message.note))
            if begun:
                voice = None if message.channel == 9 else program[message.channel]
                notes.append(Note(begun.pop(0), now, message.note, voice))
    notes.sort(key=lambda note: (note.start_s, note.pitch))
    return Midi(tuple(notes), tuple(tempos))


def _midi_duration(midi: Midi, *, seconds: Any) -> Finding:
    return compare("duration by its tempo events, in seconds", midi.duration_s, seconds)


def _note_count(midi: Midi, *, count: Any) -> Finding:
    return compare("notes that begin and end", len(midi.notes), count)


def _instruments(midi: Midi, *, count: Any = None, programs: list[int] | None = None) -> Finding:
    """Programs that play at least one note; channel 10 counts as drums."""
    used = {note.program for note in midi.notes}
    if programs is not None:
        absent = [one for one in programs if one not in used]
        return Finding(not absent, f"programs {programs} asked, without notes: {absent or 'none'}")
    return compare("instruments that play", len(used), count)


def _tempo(midi: Midi, *, bpm: float) -> Finding:
    found = sorted(set(midi.tempos_bpm)) or [120.0]
    fits = len(found) == 1 and abs(found[0] - bpm) < 0.05
    return Finding(fits, f"tempo: asked {bpm:g} a minute throughout, found {found[:5]}")


def _melody(midi: Midi, *, pitches: list[int], beats: list[float] | None = None) -> Finding:
    """The notes in order, and how long each lasts in beats of the first tempo (to a tenth)."""
    found = [note.pitch for note in midi.notes]
    if found != pitches:
        wrong = next(
            (n for n, (a, b) in enumerate(zip(found, pitches, strict=False)) if a != b),
            min(len(found), len(pitches)),
        )
        said = f"melody: {len(pitches)} notes asked, {len(found)} found"
        return Finding(False, f"{said}; they differ first at note {wrong + 1}")
    beat_s = 60 / (midi.tempos_bpm[0] if midi.tempos_bpm else 120.0)
    lasting = [(note.end_s - note.start_s) / beat_s for note in midi.notes]
    off = max((abs(a - b) for a, b in zip(lasting, beats or lasting, strict=False)), default=0.0)
    return Finding(off <= 0.1, f"melody: pitches are right, lengths are off by {off:.2f} beats")


# --- video -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Video:
    """`frames` are small RGB pictures (`_SMALL`), `times_s` when each is shown, from 0."""

    container: str
    codec: str
    width: int
    height: int
    duration_s: float
    times_s: tuple[float, ...]
    frames: tuple[bytes, ...]


def read_video(path: Path) -> Video:
    import av

    try:
        with av.open(str(path), mode="r", options={"protocol_whitelist": "file"}) as file:
            if not file.streams.video:
                raise Refused("no picture track")
            stream = file.streams.video[0]
            if not 0 < stream.width * stream.height <= _PIXELS:
                raise Refused(f"{stream.width} x {stream.height} pixels are beyond what is read")
            stream.thread_count = 1
            times, frames, last_s = _decoded(file, stream)
            codec = stream.codec_context.codec.canonical_name
            return Video(
                str(file.format.name), codec, stream.width, stream.height, last_s, times, frames
            )
    except (*BROKEN, av.error.FFmpegError) as exc:
        raise Refused(f"no video that can be read ({exc})") from exc


def _decoded(file: Any, stream: Any) -> tuple[tuple[float, ...], tuple[bytes, ...], float]:
    times: list[float] = []
    frames: list[bytes] = []
    end = 0.0
    for frame in file.decode(stream):
        if len(frames) >= _FRAMES:
            raise Refused(f"more than {_FRAMES:,} frames")
        if frame.time is None:
            raise Refused(f"frame {len(frames)} has no time")
        times.append(float(frame.time))
        frames.append(_small(frame))
        end = max(end, float(frame.time) + _lasting(frame, stream))
    if not frames:
        raise Refused("no frame that can be decoded")
    begin = times[0]
    return tuple(at - begin for at in times), tuple(frames), end - begin


def _lasting(frame: Any, stream: Any) -> float:
    """Seconds that a frame is shown: by itself, else by the rate of its track."""
    if frame.duration:
        return float(frame.duration * frame.time_base)
    return float(1 / stream.average_rate) if stream.average_rate else 0.0


def _small(frame: Any) -> bytes:
    width, height = _SMALL
    plane = frame.reformat(width=width, height=height, format="rgb24").planes[0]
    data, line = bytes(plane), plane.line_size
    return b"".join(data[row * line : row * line + 3 * width] for row in range(height))


def _container(video: Video, *, name: str) -> Finding:
    return Finding(name in video.container.split(","), f"container: found {video.container}")


def _codec(video: Video, *, any_of: list[str]) -> Finding:
    return Finding(video.codec in any_of, f"codec: asked {any_of}, found {video.codec}")


def _video_size(video: Video, *, width: int, height: int) -> Finding:
    fits = (video.width, video.height) == (width, height)
    said = f"asked {width} x {height}, found {video.width} x {video.height}"
    return Finding(fits, f"size: {said}")


def _video_duration(video: Video, *, seconds: Any) -> Finding:
    return compare("duration in seconds", video.duration_s, seconds)


def _fps(video: Video, *, rate: Any) -> Finding:
    found = len(video.frames) / video.duration_s if video.duration_s > 0 else 0.0
    return compare("frames a second", round(found, 2), rate)


def _video_moves(video: Video, *, share: float = 0.5) -> Finding:
    return moving(video.frames, share)


def _colour_when(
    video: Video, *, moments: list[tuple[float, float, float, str]], tolerance: int = 40
) -> Finding:
    """Moments are (second, share of width, share of height, colour)."""
    width, height = _SMALL
    wrong = []
    for second, x, y, asked in moments:
        number = max((n for n, at in enumerate(video.times_s) if at <= second), default=0)
        at = 3 * (int(y * height) * width + int(x * width))
        found = tuple(video.frames[number][at : at + 3])
        if not near_colour(found, asked, tolerance) or not within(second, [0, video.duration_s]):
            wrong.append(f"at {second:g} s: asked {asked}, found {hex_of(found)}")
    said = "; ".join(wrong) or f"colours are right at {len(moments)} moments"
    return Finding(not wrong, said)


_SOUND_CHECKS: dict[str, Check] = {
    "channels": _channels,
    "duration": _sound_duration,
    "loud": _loud,
    "onsets": _onsets,
    "pitch": _pitch,
    "rate": _rate,
}
_MIDI_CHECKS: dict[str, Check] = {
    "duration": _midi_duration,
    "instruments": _instruments,
    "melody": _melody,
    "notes": _note_count,
    "tempo": _tempo,
}
_VIDEO_CHECKS: dict[str, Check] = {
    "codec": _codec,
    "colour_when": _colour_when,
    "container": _container,
    "duration": _video_duration,
    "fps": _fps,
    "moves": _video_moves,
    "size": _video_size,
}

KINDS = {
    "sound": Kind(read_sound, _SOUND_CHECKS, {}),
    "midi": Kind(read_midi, _MIDI_CHECKS, {"": "mido"}, max_bytes=2 * MIB),
    "video": Kind(read_video, _VIDEO_CHECKS, {"": "av"}, max_bytes=200 * MIB),
}
