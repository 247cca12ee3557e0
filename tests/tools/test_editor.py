"""The editor keeps every byte that it was not asked to change."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandlot.core.types import ImagePart
from sandlot.sandbox.fake import FakeSandbox
from sandlot.tools.base import Observation, ToolContext
from sandlot.tools.editor import StrReplaceEditor

TEXT = st.text(st.sampled_from("ab \t\r\n\ufeffé漢\x85\u2028\x0c"), max_size=60)


async def edit(box: FakeSandbox, command: str, path: str, **arguments: object) -> Observation:
    await box.start()
    context = ToolContext(box, observation_chars=int(str(arguments.pop("chars", 16_000))))
    return await StrReplaceEditor().run({"command": command, "path": path, **arguments}, context)


def told(observation: Observation) -> str:
    return "".join(getattr(part, "text", "") for part in observation.parts)


async def content(box: FakeSandbox, path: str) -> bytes:
    return await box.read_file(path)


@given(TEXT)
def test_a_created_file_holds_exactly_the_text(text: str) -> None:
    async def check() -> None:
        box = FakeSandbox()
        assert (await edit(box, "create", "/f", file_text=text)).ok
        assert await content(box, "/f") == text.encode()

    anyio.run(check)


@given(TEXT, TEXT)
def test_a_replacement_keeps_all_other_bytes(before: str, after: str) -> None:
    async def check() -> None:
        box = FakeSandbox(files={"/f": before + "<OLD>" + after})
        assert (await edit(box, "str_replace", "/f", old_str="<OLD>", new_str="<NEW>")).ok
        assert await content(box, "/f") == (before + "<NEW>" + after).encode()

    anyio.run(check)


@given(TEXT, st.integers(0, 12))
def test_an_insertion_keeps_all_other_bytes(text: str, line: int) -> None:
    async def check() -> None:
        box = FakeSandbox(files={"/f": text})
        observation = await edit(box, "insert", "/f", insert_line=line, new_str="<NEW>")
        after = (await content(box, "/f")).decode()
        if not observation.ok:
            assert after == text
            return
        ends = ("", "\n", "\r\n", "\r")
        added = [chunk for end in ends for chunk in (f"<NEW>{end}", f"{end}<NEW>")]
        assert any(after.replace(chunk, "", 1) == text for chunk in added)

    anyio.run(check)


@pytest.mark.parametrize(
    ("before", "line", "new", "after"),
    [
        (b"a\nb\n", 1, "x", b"a\nx\nb\n"),
        (b"a\nb\n", 0, "x\n", b"x\na\nb\n"),
        (b"a\nb\n", 2, "x", b"a\nb\nx\n"),
        (b"a\nb", 2, "x", b"a\nb\nx"),
        (b"a\r\nb\r\n", 1, "x\ny", b"a\r\nx\r\ny\r\nb\r\n"),
        (b"", 0, "x", b"x\n"),
        (b"\xef\xbb\xbfa\n", 1, "\tx", b"\xef\xbb\xbfa\n\tx\n"),
    ],
)
async def test_lines_are_inserted_after_the_given_one(
    before: bytes, line: int, new: str, after: bytes
) -> None:
    box = FakeSandbox(files={"/f": before})
    observation = await edit(box, "insert", "/f", insert_line=line, new_str=new)
    assert observation.ok
    assert await content(box, "/f") == after


async def test_an_insertion_outside_of_the_file_says_which_lines_it_has() -> None:
    box = FakeSandbox(files={"/f": "a\nb\n"})
    observation = await edit(box, "insert", "/f", insert_line=3, new_str="x")
    assert "give 0 to 2" in told(observation)


async def test_plain_newlines_match_a_crlf_file_and_stay_crlf() -> None:
    box = FakeSandbox(files={"/f": b"one\r\ntwo\r\nthree\r\n"})
    await edit(box, "str_replace", "/f", old_str="one\ntwo", new_str="1\n2")
    assert await content(box, "/f") == b"1\r\n2\r\nthree\r\n"


async def test_text_that_occurs_twice_is_not_replaced_and_the_lines_are_named() -> None:
    box = FakeSandbox(files={"/f": "x\ny\nx\n"})
    observation = await edit(box, "str_replace", "/f", old_str="x", new_str="z")
    assert not observation.ok
    assert "2 times" in told(observation)
    assert "lines 1, 3" in told(observation)
    assert await content(box, "/f") == b"x\ny\nx\n"


async def test_text_that_does_not_occur_gets_the_nearest_line() -> None:
    box = FakeSandbox(files={"/f": "def f():\n\treturn 1\n"})
    observation = await edit(box, "str_replace", "/f", old_str="    return 1\n    x", new_str="")
    assert "much like line 2" in told(observation)


async def test_a_replacement_shows_the_changed_lines() -> None:
    box = FakeSandbox(files={"/f": "".join(f"line {n}\n" for n in range(1, 31))})
    observation = await edit(box, "str_replace", "/f", old_str="line 20\n", new_str="new\n")
    assert "    20\tnew" in told(observation)
    assert "\tline 2\n" not in told(observation)


async def test_a_left_out_new_text_deletes() -> None:
    box = FakeSandbox(files={"/f": "a-b"})
    await edit(box, "str_replace", "/f", old_str="-")
    assert await content(box, "/f") == b"ab"


async def test_create_refuses_what_exists_a_broken_link_too() -> None:
    box = FakeSandbox(files={"/f": "a"})
    box.link("/l", "/nowhere")
    for path in ("/f", "/l", "/testbed"):
        assert "exists already" in told(await edit(box, "create", path, file_text="b"))
    assert await content(box, "/f") == b"a"


async def test_bytes_that_are_not_utf_8_are_refused_with_advice() -> None:
    box = FakeSandbox(files={"/f": b"caf\xe9"})
    for command in ("view", "str_replace", "insert"):
        observation = await edit(
            box, command, "/f", old_str="c", new_str="d", insert_line=0
        )  # fmt: skip
        assert "iconv" in told(observation)
    assert await content(box, "/f") == b"caf\xe9"


async def test_a_view_numbers_the_lines_of_the_range() -> None:
    box = FakeSandbox(files={"/f": "a\nb\nc\nd\n"})
    assert told(await edit(box, "view", "/f", view_range=[2, 3])) == "     2\tb\n     3\tc"
    assert told(await edit(box, "view", "/f", view_range=[3, -1])) == "     3\tc\n     4\td"
    assert "lines 1 to 4" in told(await edit(box, "view", "/f", view_range=[5, 9]))
    assert "two numbers" in told(await edit(box, "view", "/f", view_range=[1]))


async def test_a_long_file_is_capped_with_advice() -> None:
    box = FakeSandbox(files={"/f": "word\n" * 10_000})
    text = told(await edit(box, "view", "/f", chars=1000))
    assert len(text) <= 1000
    assert "10000 lines: use view_range" in text


async def test_control_characters_are_made_visible() -> None:
    box = FakeSandbox(files={"/f": "\x1b[31mred\x1b[0m \x07[b]"})
    assert told(await edit(box, "view", "/f")) == "     1\tred \\x07[b]"


async def test_a_folder_shows_two_levels_without_hidden_entries() -> None:
    box = FakeSandbox(
        files={"/d/a.txt": "12", "/d/.git/x": "", "/d/sub/b": "", "/d/sub/deep/c": ""}
    )
    assert told(await edit(box, "view", "/d")) == (
        "/d:\na.txt (2 bytes)\nsub/\n  b (0 bytes)\n  deep/"
    )
    box.link("/to-d", "/d")
    assert "a.txt" in told(await edit(box, "view", "/to-d"))


@pytest.mark.parametrize(
    ("data", "facts"),
    [
        (b"GIF89a\x05\0\x06\0", "GIF image, 5 x 6"),
        (b"\xff\xd8\xff\xe0\0\4\0\0\xff\xc0\0\x11\x08\0\x07\0\x09\3", "JPEG image, 9 x 7"),
        (b"RIFF\0\0\0\0WEBPVP8X" + bytes(8) + b"\x09\0\0\x04\0\0", "WebP image, 10 x 5"),
        (b"\x89PNG\r\n\x1a\n", "PNG image, size unknown"),
    ],
)
async def test_an_image_is_described_to_a_model_that_cannot_see(data: bytes, facts: str) -> None:
    observation = await edit(FakeSandbox(files={"/i": data}), "view", "/i")
    assert facts in told(observation)
    assert "cannot see pictures" in told(observation)
    assert not any(isinstance(part, ImagePart) for part in observation.parts)


async def test_what_is_no_file_gives_an_error_that_the_model_can_read() -> None:
    box = FakeSandbox(files={"/f": "a"})
    box.special("/pipe", "fifo")
    for path in ("/pipe", "/missing", "/f/x", "/" + "n" * 300):
        observation = await edit(box, "view", path)
        assert not observation.ok
        assert told(observation).startswith("Error: ")


@pytest.mark.parametrize(
    ("command", "needs"),
    [("create", "file_text"), ("str_replace", "old_str"), ("insert", "insert_line")],
)
async def test_a_missing_parameter_of_a_command_is_named(command: str, needs: str) -> None:
    box = FakeSandbox(files={"/f": "a"})
    path = "/new" if command == "create" else "/f"
    assert needs in told(await edit(box, command, path))


async def test_any_path_is_taken() -> None:
    for path in ("/-rf", '/it\'s "here"', "/a\nb", "relative/p"):
        box = FakeSandbox()
        assert (await edit(box, "create", path, file_text="x")).ok
        assert (await edit(box, "view", path)).ok
