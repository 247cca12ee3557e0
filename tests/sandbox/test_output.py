"""One output stream, over a pipe."""

from __future__ import annotations

import array
import fcntl
import os
import termios
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from sandlot.sandbox.output import OutputStream
from waiting import comes_true


class Pipe:
    """A stream and the end that a command would write to."""

    def __init__(
        self,
        spool_dir: Path,
        *,
        capture_bytes: int = 20,
        saved_bytes: int = 1000,
        flood_bytes: int = 10_000,
    ) -> None:
        self.floods = 0
        self.reading, self._writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.stream = OutputStream(
            self.reading,
            capture_bytes=capture_bytes,
            saved_bytes=saved_bytes,
            flood_bytes=flood_bytes,
            spool_dir=spool_dir,
            on_flood=self._flooded,
        )

    def _flooded(self) -> None:
        self.floods += 1

    def write(self, data: bytes) -> None:
        assert os.write(self._writing, data) == len(data)

    async def write_apart(self, *pieces: bytes) -> None:
        """Each piece is read before the next is written."""
        for piece in pieces:
            expected = self.stream.total + len(piece)
            self.write(piece)
            assert await comes_true(lambda e=expected: self.stream.total >= e, every_s=0.001)

    def end(self) -> None:
        if self._writing >= 0:
            os.close(self._writing)
            self._writing = -1

    def spooled(self) -> bytes:
        spool = self.stream.spool
        assert spool is not None
        spool.seek(0)
        return spool.read()

    def close(self) -> None:
        self.stream.close()
        self.end()


def waiting_bytes(fd: int) -> int:
    """What was written to a pipe and not read yet."""
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]


@pytest.fixture
async def make_pipe(tmp_path: Path) -> AsyncIterator[Callable[..., Pipe]]:
    made: list[Pipe] = []

    def make(**sizes: int) -> Pipe:
        made.append(Pipe(tmp_path, **sizes))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
async def pipe(make_pipe: Callable[..., Pipe]) -> Pipe:
    return make_pipe()


async def test_short_output_is_kept_whole(pipe: Pipe) -> None:
    await pipe.write_apart(b"one ", b"two")
    pipe.stream.finish()
    assert pipe.stream.text() == "one two"
    assert (pipe.stream.total, pipe.stream.truncated, pipe.stream.spool) == (7, False, None)


async def test_output_that_just_fits_is_not_cut(pipe: Pipe) -> None:
    await pipe.write_apart(b"0123456789", b"abcdefghij")
    pipe.stream.finish()
    assert pipe.stream.text() == "0123456789abcdefghij"
    assert not pipe.stream.truncated


@pytest.mark.parametrize("size", [1, 3, 7, 10, 19, 100], ids=lambda size: f"by-{size}")
async def test_long_output_keeps_its_first_and_last_half_and_counts_the_rest(
    pipe: Pipe, size: int
) -> None:
    whole = bytes(range(32, 127)) + b"end"
    await pipe.write_apart(*[whole[at : at + size] for at in range(0, len(whole), size)])
    pipe.stream.finish()
    head, tail = whole[:10].decode(), whole[-10:].decode()
    assert pipe.stream.text() == f"{head}\n[... {len(whole) - 20} bytes left out ...]\n{tail}"
    assert pipe.stream.total == len(whole)
    assert pipe.spooled() == whole


async def test_finish_takes_what_was_written_and_not_yet_read(pipe: Pipe) -> None:
    pipe.write(b"last words")
    pipe.stream.finish()
    assert pipe.stream.text() == "last words"


async def test_the_spool_ends_at_its_cap_while_counting_goes_on(
    make_pipe: Callable[..., Pipe],
) -> None:
    pipe = make_pipe(saved_bytes=30)
    await pipe.write_apart(b"a" * 25, b"b" * 25, b"c" * 25)
    pipe.stream.finish()
    assert pipe.spooled() == b"a" * 25 + b"b" * 5
    assert pipe.stream.total == 75


async def test_the_spool_has_no_name_in_its_folder(pipe: Pipe, tmp_path: Path) -> None:
    await pipe.write_apart(b"x" * 50)
    assert pipe.stream.spool is not None
    assert list(tmp_path.iterdir()) == []


async def test_a_released_stream_gives_its_spool_back(pipe: Pipe) -> None:
    await pipe.write_apart(b"x" * 50)
    spool = pipe.stream.spool
    pipe.stream.release()
    assert spool is not None
    assert spool.closed
    assert pipe.stream.spool is None


async def test_a_flood_is_told_once_when_its_border_is_passed(
    make_pipe: Callable[..., Pipe],
) -> None:
    pipe = make_pipe(flood_bytes=100)
    await pipe.write_apart(b"x" * 100)
    assert pipe.floods == 0
    await pipe.write_apart(b"x", b"x" * 100)
    assert pipe.floods == 1


async def test_what_a_background_child_writes_later_is_dropped_but_drained(pipe: Pipe) -> None:
    await pipe.write_apart(b"answer")
    pipe.stream.finish()
    for _ in range(3):
        pipe.write(b"late " * 1000)
    assert await comes_true(lambda: waiting_bytes(pipe.reading) == 0)
    assert pipe.stream.open
    assert (pipe.stream.text(), pipe.stream.total) == ("answer", 6)


async def test_the_descriptor_is_closed_when_the_last_writer_is_gone(pipe: Pipe) -> None:
    pipe.stream.finish()
    assert pipe.stream.open
    pipe.end()
    assert await comes_true(lambda: not pipe.stream.open)


async def test_a_stream_that_ends_before_finish_keeps_what_it_said(pipe: Pipe) -> None:
    pipe.write(b"said")
    pipe.end()
    assert await comes_true(lambda: not pipe.stream.open)
    pipe.stream.finish()
    assert pipe.stream.text() == "said"


async def test_a_character_cut_by_the_border_is_left_out_on_both_sides(pipe: Pipe) -> None:
    await pipe.write_apart("€".encode() * 20)  # three bytes each; a half holds three and a third
    pipe.stream.finish()
    assert pipe.stream.text() == "€€€\n[... 40 bytes left out ...]\n€€€"


async def test_a_character_that_arrives_in_two_reads_is_whole(pipe: Pipe) -> None:
    euro = "€".encode()
    await pipe.write_apart(euro[:1], euro[1:])
    pipe.stream.finish()
    assert pipe.stream.text() == "€"


async def test_a_character_across_head_and_tail_is_whole_when_nothing_is_left_out(
    pipe: Pipe,
) -> None:
    await pipe.write_apart(b"123456789" + "€".encode())
    pipe.stream.finish()
    assert pipe.stream.text() == "123456789€"


async def test_bytes_that_are_no_text_are_shown_as_replaced(pipe: Pipe) -> None:
    await pipe.write_apart(b"a\xff\x00b")
    pipe.stream.finish()
    assert pipe.stream.text() == "a\ufffd\x00b"


async def test_closing_twice_is_harmless(pipe: Pipe) -> None:
    pipe.stream.close()
    pipe.stream.close()
    assert not pipe.stream.open
