"""The core: what is written comes back, a torn file stays readable, events fold to one story."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandlot.core.codec import from_json, to_json
from sandlot.core.errors import RecordError
from sandlot.core.events import (
    EgressSeen,
    Event,
    FilesCollected,
    MessageAdded,
    ModelCalled,
    ModelDelta,
    ReplyReceived,
    RolloutContinued,
    RolloutStarted,
    RolloutStopped,
    SandboxStarted,
    ToolFinished,
    ToolStarted,
    decode_event,
    encode_event,
    fold,
    unfold,
)
from sandlot.core.jsonl import JsonlWriter, read_jsonl
from sandlot.core.types import (
    CollectedFile,
    CommandMeter,
    EgressRecord,
    FilePart,
    ImagePart,
    Message,
    Role,
    SkippedFile,
    StopReason,
    Task,
    TextPart,
    TokenRecord,
    ToolCall,
    ToolResult,
    Trajectory,
    Turn,
    Usage,
)

# --- any event ----------------------------------------------------------------------------------

texts = st.text(st.characters(codec=None), max_size=12)  # lone surrogates too: models write them
numbers = st.integers(0, 2**53)
seconds = st.floats(0, 1e9)
flags = st.booleans()
json_values = st.recursive(
    st.none() | flags | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
json_objects = st.dictionaries(texts, json_values, max_size=3)


def optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


def tuples_of(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(strategy, max_size=3).map(tuple)


parts = (
    st.builds(TextPart, texts)
    | st.builds(ImagePart, st.binary(max_size=20), texts)
    | st.builds(FilePart, texts, optional(texts))
)
calls = st.builds(ToolCall, texts, texts, texts)
messages = st.builds(
    Message,
    st.sampled_from(Role),
    tuples_of(parts),
    tuples_of(calls),
    optional(texts),
    optional(texts),
    json_objects,
)
usages = st.builds(
    Usage, *[optional(numbers)] * 4, optional(st.floats(allow_nan=False, allow_infinity=False))
)
meters = st.builds(CommandMeter, optional(numbers), seconds, flags, numbers, numbers, flags, flags)
results = st.builds(ToolResult, calls, messages, flags, seconds, optional(meters))
tokens = st.builds(
    TokenRecord,
    tuples_of(numbers),
    tuples_of(numbers),
    optional(tuples_of(st.floats(-100, 0))),
)
turns = st.builds(
    Turn, numbers, messages, usages, texts, seconds, seconds, tuples_of(results), optional(tokens)
)
tasks = st.builds(
    Task,
    texts,
    texts,
    st.dictionaries(texts, st.binary(max_size=20), max_size=3),
    optional(texts),
    json_values,
    optional(texts),
    json_objects,
)
records = st.builds(EgressRecord, texts, numbers, texts, numbers, numbers, optional(numbers))
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(
        RolloutStarted, texts, tasks, st.sampled_from(["llm", "sandbox"]), texts, json_objects
    ),
    st.builds(SandboxStarted, texts, seconds, tuples_of(json_objects)),
    st.builds(MessageAdded, messages, texts),
    st.builds(ModelCalled, numbers),
    st.builds(ModelDelta, numbers, texts, texts),
    st.builds(ReplyReceived, turns),
    st.builds(ToolStarted, numbers, calls),
    st.builds(ToolFinished, numbers, results),
    st.builds(EgressSeen, records),
    st.builds(
        FilesCollected,
        tuples_of(st.builds(CollectedFile, texts, numbers, texts)),
        tuples_of(st.builds(SkippedFile, texts, texts)),
        optional(texts),
    ),
    st.builds(RolloutStopped, st.sampled_from(StopReason), texts, optional(seconds)),
    st.builds(RolloutContinued, st.sampled_from(["continue", "resume", "restart"]), texts),
)


# --- the codec ----------------------------------------------------------------------------------


@given(event=events)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_every_event_comes_back_from_its_line_as_it_was(event: Event) -> None:
    line = json.dumps(encode_event(event, 1.5), ensure_ascii=False)
    data = line.encode("utf-8", "surrogatepass")
    assert decode_event(json.loads(data.decode("utf-8", "surrogatepass"))) == event


@given(written=st.lists(events, max_size=4))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_a_file_of_events_comes_back_in_order(
    tmp_path_factory: pytest.TempPathFactory, written: list[Event]
) -> None:
    path = tmp_path_factory.mktemp("events") / "events.jsonl"
    writer = JsonlWriter(path)
    for event in written:
        writer.append(encode_event(event, 0))
    writer.close()
    assert [decode_event(record) for record in read_jsonl(path)] == written


def test_a_trajectory_comes_back_whole() -> None:
    trajectory = fold(story())
    assert from_json(Trajectory, json.loads(json.dumps(to_json(trajectory)))) == trajectory


def test_bytes_travel_as_base64() -> None:
    assert to_json(ImagePart(b"\x00\xff", "image/png"))["data"] == "AP8="


def test_a_field_of_a_newer_version_is_ignored() -> None:
    assert from_json(ToolCall, {"id": "1", "name": "n", "arguments": "", "mood": 3}) == ToolCall(
        "1", "n", ""
    )


def test_a_missing_field_with_a_default_takes_it() -> None:
    assert from_json(Usage, {"prompt_tokens": 3}) == Usage(prompt_tokens=3)


@pytest.mark.parametrize(
    ("cls", "data", "complaint"),
    [
        (ToolCall, {"id": "1", "name": "n"}, "ToolCall: .*arguments"),
        (ToolCall, [1], "ToolCall: expected an object, found list"),
        (Message, {"role": "queen"}, "Message: .*queen"),
        (Message, {"role": "user", "parts": [{"type": "smell"}]}, "Message: .*smell"),
        (ImagePart, {"data": "A", "media_type": "x"}, "ImagePart: "),
        (Turn, {"index": 0, "reply": 5}, "Turn: expected an object, found int"),
    ],
    ids=["missing", "not an object", "no such role", "no such part", "not base64", "nested"],
)
def test_data_that_does_not_fit_is_refused_with_the_name_of_the_class(
    cls: type, data: Any, complaint: str
) -> None:
    with pytest.raises(RecordError, match=complaint):
        from_json(cls, data)


def test_an_event_of_an_unknown_kind_is_passed_over() -> None:
    assert decode_event({"event": "moon_rose", "at": 1}) is None
    assert decode_event({}) is None


def test_a_mapping_key_that_is_no_text_becomes_text() -> None:
    @dataclass(frozen=True)
    class Tally:
        counts: dict[int, int]

    assert to_json(Tally({1: 2})) == {"counts": {"1": 2}}


# --- JSON lines ---------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def append(path: Path, *items: Any) -> None:
    writer = JsonlWriter(path)
    for item in items:
        writer.append(item)
    writer.sync()
    writer.close()


def test_each_record_is_one_line(path: Path) -> None:
    append(path, {"text": "two\nlines \u2028 €"}, {"n": 1})
    assert path.read_bytes().count(b"\n") == 2
    assert list(read_jsonl(path)) == [{"text": "two\nlines \u2028 €"}, {"n": 1}]


def test_a_file_cut_anywhere_gives_its_whole_records_and_can_be_continued(path: Path) -> None:
    append(path, {"n": 1}, {"n": 22}, {"n": 333})
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        kept = list(read_jsonl(path))
        assert kept == [{"n": 1}, {"n": 22}, {"n": 333}][: whole[:cut].count(b"\n")]
        append(path, {"n": 4})
        assert list(read_jsonl(path)) == [*kept, {"n": 4}]


def test_a_torn_tail_longer_than_one_look_back_is_cut_off(path: Path) -> None:
    append(path, {"n": 1})
    with path.open("ab") as file:
        file.write(b'{"text": "' + b"x" * 200_000)
    append(path, {"n": 2})
    assert list(read_jsonl(path)) == [{"n": 1}, {"n": 2}]


def test_a_broken_line_in_the_middle_is_named_by_its_number(path: Path) -> None:
    path.write_text('{"n": 1}\n{"n": \n{"n": 3}\n')
    reader = read_jsonl(path)
    assert next(reader) == {"n": 1}
    with pytest.raises(RecordError, match=r"events\.jsonl:2: not a JSON record"):
        next(reader)


def test_a_line_that_is_no_object_is_refused(path: Path) -> None:
    path.write_text("[1]\n")
    with pytest.raises(RecordError, match=r"events\.jsonl:1: expected an object"):
        list(read_jsonl(path))


def test_empty_lines_and_empty_files_hold_nothing(path: Path) -> None:
    path.write_text("\n\n")
    assert list(read_jsonl(path)) == []
    path.write_text("")
    assert list(read_jsonl(path)) == []


def test_a_file_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "no" / "events.jsonl"
    with pytest.raises(RecordError, match=r"events\.jsonl: cannot be opened"):
        JsonlWriter(missing)
    with pytest.raises(RecordError, match=r"events\.jsonl: cannot be read"):
        list(read_jsonl(missing))


def test_a_full_disk_is_told_with_the_file() -> None:
    writer = JsonlWriter(Path("/dev/full"))
    try:
        with pytest.raises(RecordError, match="/dev/full: cannot be written: No space left"):
            writer.append({"n": 1})
    finally:
        writer.close()


# --- the fold -----------------------------------------------------------------------------------

CALL = ToolCall("c1", "bash", '{"command": "ls"}')
RESULT = ToolResult(CALL, Message.tool("c1", TextPart("a.txt")), True, 0.1, CommandMeter(0, 0.1))
STARTED = RolloutStarted("r1", Task("t1", "List.", target=4), "sandbox", "some-model", {"seed": 3})


def turn(index: int, reply: Message) -> Turn:
    return Turn(index, reply, Usage(), "stop", 1.0, 0.0)


def story() -> list[Event]:
    """One turn with a call, one with an answer."""
    return [
        STARTED,
        SandboxStarted("fake", 0.1),
        MessageAdded(Message.user("List.")),
        ModelCalled(0),
        ModelDelta(0, "I"),
        ReplyReceived(turn(0, Message.assistant("I look.", CALL))),
        ToolStarted(0, CALL),
        ToolFinished(0, RESULT),
        EgressSeen(EgressRecord("example.org", 443, "allowed", turn=0)),
        ReplyReceived(turn(1, Message.assistant("One file."))),
        FilesCollected((CollectedFile("a.txt", 1, "00"),), (SkippedFile("b", "a device"),), "1"),
        RolloutStopped(StopReason.ANSWERED, "said it", 2.5),
    ]


def test_the_events_of_a_rollout_fold_to_its_trajectory() -> None:
    told = fold(story())
    assert (told.id, told.model, told.mode, told.metadata) == (
        "r1",
        "some-model",
        "sandbox",
        {"seed": 3},
    )
    assert [message.role for message in told.messages] == ["user", "assistant", "tool", "assistant"]
    assert [each.tool_results for each in told.turns] == [(RESULT,), ()]
    assert (told.stop_reason, told.stop_detail, told.duration_s) == (
        StopReason.ANSWERED,
        "said it",
        2.5,
    )
    assert (told.answer, told.files[0].path, told.skipped_files[0].path) == ("1", "a.txt", "b")
    assert told.egress[0].host == "example.org"


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_story_may_be_folded_in_two_steps(cut: int) -> None:
    whole = story()
    assert fold(whole[cut:], fold(whole[:cut])) == fold(whole)


@pytest.mark.parametrize("length", range(1, 13))
def test_a_trajectory_can_be_told_again_as_events_that_fold_to_it(length: int) -> None:
    told = fold(story()[:length])
    assert fold(unfold(told)) == told


def test_reminders_and_equal_replies_keep_their_places_when_told_again() -> None:
    same = ReplyReceived(turn(0, Message.assistant("I look.", CALL)))
    again = ReplyReceived(turn(1, Message.assistant("I look.", CALL)))
    reminder = MessageAdded(Message.user("Go on."), "reminder")
    events: list[Event] = [STARTED, MessageAdded(Message.user("List.")), same]
    events += [ToolFinished(0, RESULT), reminder, again, ToolFinished(1, RESULT)]
    assert list(unfold(fold(events))) == events


def test_a_trajectory_whose_messages_lack_a_reply_cannot_be_told_again() -> None:
    told = replace(fold(story()), messages=())
    with pytest.raises(RecordError, match="reply of turn 0"):
        list(unfold(told))


def test_an_interrupted_rollout_has_no_stop_reason() -> None:
    assert fold(story()[:-1]).stop_reason is None


def test_a_continued_rollout_keeps_its_turns_and_is_open_again() -> None:
    told = fold(
        [
            *story(),
            RolloutContinued("continue"),
            MessageAdded(Message.user("And now?"), "continuation"),
        ]
    )
    assert (told.stop_reason, told.stop_detail) == (None, "")
    assert len(told.turns) == 2
    assert told.messages[-1].text == "And now?"


def test_a_continued_rollout_ends_by_its_last_stop() -> None:
    told = fold(
        [*story(), RolloutContinued("continue"), RolloutStopped(StopReason.MAX_TURNS, "", 9.0)]
    )
    assert (told.stop_reason, told.duration_s) == (StopReason.MAX_TURNS, 9.0)


def test_a_resumed_rollout_keeps_what_was_recorded() -> None:
    interrupted = story()[:8]
    told = fold([*interrupted, RolloutContinued("resume", "1 turns repeated")])
    assert told == fold(interrupted)


def test_a_restarted_rollout_forgets_what_was_recorded_but_not_its_task() -> None:
    again = story()[2:]
    told = fold([*story()[:-2], RolloutContinued("restart", "another output"), *again])
    assert told == fold(story())


def test_a_story_without_its_beginning_is_refused() -> None:
    with pytest.raises(RecordError, match="must begin with a rollout_started event"):
        fold(story()[1:])


def test_no_events_are_no_trajectory() -> None:
    with pytest.raises(RecordError, match="holds no events"):
        fold([])
