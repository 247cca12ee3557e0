"""The loop: every stop reason, every bad call, and what is kept whatever happens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sandlot.agent.budget import Budget
from sandlot.agent.control import Control
from sandlot.agent.prompts import load_profile
from sandlot.agent.resume import resume_rollout
from sandlot.agent.rollout import run_rollout
from sandlot.core.errors import ContextOverflow, DeathCause, InputError, ModelError, SandboxDied
from sandlot.core.events import (
    Event,
    MessageAdded,
    ModelDelta,
    ReplyReceived,
    RolloutContinued,
    RolloutStarted,
    RolloutStopped,
    ToolFinished,
    fold,
)
from sandlot.core.types import (
    EgressRecord,
    ImagePart,
    Message,
    Role,
    StopReason,
    Task,
    TextPart,
    ToolCall,
    Trajectory,
    Usage,
)
from sandlot.models.base import Completion, ToolSpec
from sandlot.models.scripted import ScriptedModel, bash, call, calls, edit, say, submit
from sandlot.sandbox.fake import FakeSandbox

TASK = Task("t1", "What is 2 + 2?", input_files={"a b.txt": b"two\r\n"})
ANSWER = edit("create", "/testbed/output/answer.txt", file_text="4\n")


def observations(trajectory: Trajectory) -> list[str]:
    return [message.text for message in trajectory.messages if message.role is Role.TOOL]


async def play(*replies: Any, **options: Any) -> Trajectory:
    sandbox = options.pop("sandbox", None) or FakeSandbox({"echo 4": "4\n"})
    return await run_rollout(TASK, model=ScriptedModel(*replies), sandbox=sandbox, **options)


async def test_a_submitted_answer_is_collected(tmp_path: Path) -> None:
    trajectory = await play(bash("echo 4"), ANSWER, submit(), output_dir=tmp_path / "out")
    assert trajectory.stop_reason is StopReason.SUBMITTED
    assert trajectory.answer == "4\n"
    assert [file.path for file in trajectory.files] == ["answer.txt"]
    assert (tmp_path / "out/answer.txt").read_bytes() == b"4\n"


async def test_input_files_are_uploaded_byte_for_byte() -> None:
    trajectory = await play(edit("view", "/testbed/input/a b.txt"), submit())
    assert "two" in observations(trajectory)[0]


async def test_an_input_file_that_leads_out_of_its_folder_is_refused() -> None:
    task = Task("t", "p", input_files={"../x": b""})
    with pytest.raises(InputError, match="must lie inside"):
        await run_rollout(task, model=ScriptedModel(), sandbox=FakeSandbox())


async def test_without_a_sandbox_one_reply_is_the_answer() -> None:
    model = ScriptedModel(say("4"))
    trajectory = await run_rollout(TASK, model=model)
    assert (trajectory.mode, trajectory.stop_reason) == ("llm", StopReason.ANSWERED)
    assert trajectory.answer == "4"
    assert model.requests[0].tools == ()


async def test_a_conversation_ends_with_a_reply_without_a_call() -> None:
    from dataclasses import replace

    profile = replace(load_profile("general"), conversation=True)
    trajectory = await play(bash("echo 4"), say("it is 4"), profile=profile)
    assert (trajectory.stop_reason, trajectory.answer) == (StopReason.ANSWERED, "it is 4")


async def test_turns_run_out_after_the_last_call_was_answered() -> None:
    trajectory = await play(bash("echo 4"), bash("echo 4"), budget=Budget(max_turns=2))
    assert trajectory.stop_reason is StopReason.MAX_TURNS
    assert "[turns left: 1]" in observations(trajectory)[0]
    assert "[turns left: 0]" in observations(trajectory)[1]


async def test_tokens_run_out_by_the_server_s_figures() -> None:
    reply = Completion(bash("echo 4"), Usage(prompt_tokens=90, completion_tokens=10))
    trajectory = await play(reply, reply, budget=Budget(max_tokens=150))
    assert trajectory.stop_reason is StopReason.TOKEN_BUDGET
    assert len(trajectory.turns) == 2


async def test_a_token_budget_without_token_figures_is_refused() -> None:
    trajectory = await play(bash("echo 4"), budget=Budget(max_tokens=150))
    assert trajectory.stop_reason is StopReason.TOKEN_BUDGET
    assert "reports no token counts" in trajectory.stop_detail


async def test_a_context_overflow_keeps_the_answer_file() -> None:
    trajectory = await play(ANSWER, ContextOverflow("too long"))
    assert (trajectory.stop_reason, trajectory.answer) == (StopReason.CONTEXT_FULL, "4\n")


async def test_a_context_that_usage_shows_to_be_full_ends_the_rollout() -> None:
    reply = Completion(bash("echo 4"), Usage(prompt_tokens=500, completion_tokens=12))
    trajectory = await play(reply, profile=load_profile("compact"))
    assert trajectory.stop_reason is StopReason.CONTEXT_FULL
    assert "500 + reply 12 = 512" in trajectory.stop_detail


async def test_waiting_is_not_working_time() -> None:
    now = [0.0]

    def slow(waiting_s: float) -> Any:
        def reply(_: object) -> Completion:
            now[0] += 10
            return Completion(bash("echo 4"), waiting_s=waiting_s)

        return reply

    trajectory = await play(
        slow(10), slow(0), slow(0), budget=Budget(time_limit_s=15), clock=lambda: now[0]
    )
    assert trajectory.stop_reason is StopReason.TIME_LIMIT
    assert len(trajectory.turns) == 3
    assert observations(trajectory)[-1] == "not run: time_limit"


async def test_replies_without_calls_are_reminded_then_end_the_rollout() -> None:
    trajectory = await play(say("a"), say("b"), say("c"), budget=Budget(reminders=2))
    assert trajectory.stop_reason is StopReason.NO_TOOL_CALL
    assert [message.role.value for message in trajectory.messages[2:]] == [
        "assistant", "user", "assistant", "user", "assistant"
    ]  # fmt: skip


async def test_a_call_starts_the_count_of_reminders_again() -> None:
    trajectory = await play(
        say("a"), bash("echo 4"), say("b"), submit(), budget=Budget(reminders=1)
    )
    assert trajectory.stop_reason is StopReason.SUBMITTED


async def test_an_empty_reply_is_reminded() -> None:
    trajectory = await play(say(""), submit())
    assert "called no tool" in trajectory.messages[3].text


async def test_a_reply_cut_by_length_is_told_so() -> None:
    trajectory = await play(Completion(say("so I"), finish_reason="length"), submit())
    assert "cut off" in trajectory.messages[3].text


async def test_a_call_of_the_client_s_tool_ends_the_rollout_after_our_own_calls() -> None:
    spec = ToolSpec("ask_user", "Ask.", {"type": "object", "properties": {}})
    reply = calls(bash("echo 4"), call("ask_user", {}))
    trajectory = await play(reply, client_tools=[spec])
    assert trajectory.stop_reason is StopReason.CLIENT_TOOL_CALL
    assert len(observations(trajectory)) == 1


async def test_provider_outage_is_a_stop_reason_not_a_wrong_answer() -> None:
    trajectory = await play(bash("echo 4"), ModelError("503 from provider"))
    assert trajectory.stop_reason is StopReason.MODEL_ERROR
    assert trajectory.stop_detail == "503 from provider"


async def test_a_dead_sandbox_ends_the_rollout_at_once() -> None:
    sandbox = FakeSandbox({"fill": SandboxDied(DeathCause.OUT_OF_MEMORY)})
    trajectory = await play(bash("fill"), sandbox=sandbox)
    assert trajectory.stop_reason is StopReason.SANDBOX_DIED
    assert "out_of_memory" in trajectory.stop_detail


async def test_a_sandbox_that_dies_at_its_start_is_a_stop_reason() -> None:
    sandbox = FakeSandbox()
    sandbox.die(DeathCause.START_FAILED)
    trajectory = await play(sandbox=sandbox)
    assert trajectory.stop_reason is StopReason.SANDBOX_DIED


async def test_cancellation_keeps_the_files_and_the_record(tmp_path: Path) -> None:
    reached, events = asyncio.Event(), list[Event]()

    async def hang(command: str) -> str:
        reached.set()
        await asyncio.sleep(60)
        return ""

    sandbox = FakeSandbox(hang)
    work = play(ANSWER, bash("sleep"), sandbox=sandbox, output_dir=tmp_path, sink=events.append)
    running = asyncio.create_task(work)
    await reached.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (tmp_path / "answer.txt").read_text() == "4\n"
    assert fold(events).stop_reason is StopReason.CANCELLED
    with pytest.raises(SandboxDied, match="closed"):
        await sandbox.read_file("/testbed/output/answer.txt")


async def test_stop_on_the_control_channel_ends_between_steps() -> None:
    control = Control()

    def stop(_: object) -> Message:
        control.stop("enough")
        return calls(bash("echo 4"), bash("echo 4"))

    trajectory = await play(stop, control=control)
    assert (trajectory.stop_reason, trajectory.stop_detail) == (StopReason.CANCELLED, "enough")
    assert observations(trajectory) == ["not run: cancelled"] * 2


async def test_a_message_on_the_control_channel_comes_before_the_next_turn() -> None:
    control = Control()
    control.message("in French")
    trajectory = await play(submit(), control=control)
    assert trajectory.messages[2] == Message.user("in French")


async def test_a_paused_rollout_waits_until_it_is_resumed() -> None:
    control = Control()
    control.pause()
    running = asyncio.create_task(play(submit(), control=control))
    await asyncio.sleep(0.01)
    assert not running.done()
    control.resume()
    assert (await running).stop_reason is StopReason.SUBMITTED


async def test_a_paused_rollout_can_be_stopped() -> None:
    control = Control()
    control.pause()
    running = asyncio.create_task(play(submit(), control=control))
    await asyncio.sleep(0.01)
    control.stop()
    assert (await running).stop_reason is StopReason.CANCELLED


# Calls as models really write them.


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (call("execute_bash", '{"command": "echo'), "not valid JSON"),
        (call("execute_bash", '["echo"]'), "must be one JSON object"),
        (call("execute_bash", "[" * 100_000), "not valid JSON"),
        (call("execute_bash", {}), "needs 'command'"),
        (call("execute_bash", ""), "needs 'command'"),
        (call("execute_bash", {"command": 4}), "must be of type string"),
        (call("execute_bash", {"cmd": "ls"}), "no parameter 'cmd'"),
        (call("execute_bash", '{"command": "\\ud800"}'), "half of a"),
        (call("execute_bash", {"command": "a\0b"}), "NUL"),
        (call("bash_execute", {"command": "ls"}), "have: execute_bash, str_replace_editor, submit"),
        (call("execute_bsh", {"command": "ls"}), "Did you mean execute_bash?"),
        (call("str_replace_editor", {"command": "undo", "path": "/a"}), "one of view, create"),
        (call("str_replace_editor", {"command": "view", "path": "/a", "view_range": "x"}),
         "a list of integers"),
    ],
)  # fmt: skip
async def test_a_bad_call_is_answered_so_that_the_model_can_go_on(
    reply: Message, told: str
) -> None:
    model = ScriptedModel(reply, submit())
    trajectory = await run_rollout(TASK, model=model, sandbox=FakeSandbox())
    assert trajectory.stop_reason is StopReason.SUBMITTED
    assert told in observations(trajectory)[0]
    assert not trajectory.turns[0].tool_results[0].ok
    for message in model.requests[-1].messages:
        assert all(isinstance(json.loads(item.arguments), dict) for item in message.tool_calls)


async def test_broken_arguments_are_kept_as_the_model_wrote_them() -> None:
    trajectory = await play(call("execute_bash", '{"command": '), submit())
    (sent,) = trajectory.turns[0].reply.tool_calls
    assert json.loads(sent.arguments) == {"invalid_arguments": '{"command": '}
    assert '{"command": ' in trajectory.turns[0].reply.extra["sandlot_raw_arguments"].values()


async def test_numbers_written_as_text_are_taken() -> None:
    reply = call("str_replace_editor", {"command": "view", "path": "/f", "view_range": ["1", 2.0]})
    trajectory = await play(reply, submit(), sandbox=FakeSandbox(files={"/f": "a\nb\nc\n"}))
    assert trajectory.turns[0].tool_results[0].ok


async def test_every_call_of_a_reply_is_answered_in_order() -> None:
    reply = calls(bash("echo 4"), call("nothing", {}), submit(), bash("echo 4"))
    trajectory = await play(reply)
    answered = [message.tool_call_id for message in trajectory.messages if message.tool_call_id]
    assert answered == [item.id for item in trajectory.turns[0].reply.tool_calls]
    assert observations(trajectory)[-1] == "not run: already submitted"
    assert trajectory.stop_reason is StopReason.SUBMITTED


async def test_calls_with_the_same_id_get_their_own() -> None:
    class Careless(ScriptedModel):
        async def complete(self, *args: Any, **kwargs: Any) -> Completion:
            completion = await super().complete(*args, **kwargs)
            same = [ToolCall("x", item.name, item.arguments) for item in
                    completion.message.tool_calls]  # fmt: skip
            return Completion(Message.assistant("", *same))

    model = Careless(calls(bash("echo 4"), submit()))
    trajectory = await run_rollout(TASK, model=model, sandbox=FakeSandbox({"echo 4": "4"}))
    ids = [item.id for item in trajectory.turns[0].reply.tool_calls]
    assert len(set(ids)) == 2


async def test_turns_left_are_told_once_a_turn() -> None:
    trajectory = await play(calls(bash("echo 4"), bash("echo 4")), submit())
    first, second, _ = observations(trajectory)
    assert "turns left" not in first
    assert second == "4\n[turns left: 99]"


async def test_messages_are_only_ever_appended() -> None:
    model = ScriptedModel(
        bash("echo 4"), say("hm"), call("execute_bash", "{"), calls(ANSWER, bash("x")), submit()
    )
    await run_rollout(TASK, model=model, sandbox=FakeSandbox({"echo 4": "4"}))
    for earlier, later in zip(model.requests, model.requests[1:], strict=False):
        assert later.messages[: len(earlier.messages)] == earlier.messages
        assert later.tools == earlier.tools


async def test_the_record_folds_to_the_trajectory_that_is_returned() -> None:
    events: list[Event] = []
    trajectory = await play(bash("echo 4"), say("x"), submit(), sink=events.append, stream=True)
    assert fold(events) == trajectory
    assert isinstance(events[0], RolloutStarted)
    assert isinstance(events[-1], RolloutStopped)
    assert any(isinstance(event, ModelDelta) for event in events)


async def test_egress_is_recorded_with_its_turn() -> None:
    sandbox = FakeSandbox({"echo 4": "4"})
    sandbox.egress_to_report = [EgressRecord("example.org", 443, "allowed")]
    trajectory = await play(bash("echo 4"), submit(), sandbox=sandbox)
    assert trajectory.egress == (EgressRecord("example.org", 443, "allowed", turn=0),)


async def test_a_prompt_of_one_megabyte_with_braces_arrives_whole() -> None:
    prompt = "{answer_file} {x} {{}} %s " * 40_000
    model = ScriptedModel(submit())
    await run_rollout(Task("t", prompt), model=model, sandbox=FakeSandbox())
    assert prompt in model.requests[0].messages[1].text


async def test_an_image_reaches_a_model_that_sees() -> None:
    png = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + b"\0\0\0\x02\0\0\0\x03"
    sandbox = FakeSandbox(files={"/a.png": png})
    trajectory = await play(edit("view", "/a.png"), submit(), sandbox=sandbox)
    parts = trajectory.turns[0].tool_results[0].message.parts
    assert ImagePart(png, "image/png") in parts
    assert "2 x 3 pixels" in parts[0].text  # type: ignore[union-attr]


# Going on.


async def test_a_finished_rollout_goes_on_in_its_kept_sandbox(tmp_path: Path) -> None:
    first = await play(ANSWER, submit(), keep_state=tmp_path / "state")
    events: list[Event] = []
    model = ScriptedModel(edit("view", "/testbed/output/answer.txt"), submit())
    second = await run_rollout(
        TASK, model=model, sandbox=FakeSandbox(), history=first, sink=events.append,
        continuation=[Message.user("look again")], restore_state=tmp_path / "state",
    )  # fmt: skip
    assert second.messages[: len(first.messages)] == first.messages
    assert second.messages[len(first.messages)] == Message.user("look again")
    assert "4" in observations(second)[2]
    assert [turn.index for turn in second.turns] == [0, 1, 2, 3]
    assert fold(events, first) == second
    assert any(isinstance(e, RolloutContinued) and e.how == "continue" for e in events)


async def test_without_a_kept_sandbox_the_model_is_told_that_files_are_gone(
    tmp_path: Path,
) -> None:
    first = await play(ANSWER, submit(), output_dir=tmp_path)
    model = ScriptedModel(edit("view", "/testbed/output/answer.txt"), submit())
    second = await run_rollout(
        TASK, model=model, sandbox=FakeSandbox(), history=first, output_dir=tmp_path,
        continuation=[Message.user("look again")],
    )  # fmt: skip
    told = second.messages[len(first.messages)].text
    assert "fresh" in told
    assert "your output files" in told
    assert told.endswith("look again")
    assert second.turns[2].tool_results[0].ok


def torn(trajectory: Trajectory, events: Sequence[Event], keep: type, count: int) -> Trajectory:
    """The fold of the events up to the `count`-th of one kind."""
    seen, kept = 0, []
    for event in events:
        kept.append(event)
        seen += isinstance(event, keep)
        if seen == count:
            break
    return fold(kept)


async def interrupted(keep: type, count: int, *replies: Any) -> Trajectory:
    events: list[Event] = []
    trajectory = await play(*replies, sink=events.append)
    return torn(trajectory, events, keep, count)


async def test_an_interrupted_rollout_goes_on_after_the_same_observations() -> None:
    history = await interrupted(ToolFinished, 1, bash("echo 4"), ANSWER, submit())
    events: list[Event] = []
    sandbox = FakeSandbox({"echo 4": "4\n"})
    model = ScriptedModel(ANSWER, submit())
    done = await resume_rollout(history, model=model, sandbox=sandbox, sink=events.append)
    assert done.stop_reason is StopReason.SUBMITTED
    assert sandbox.commands == ["echo 4"]
    assert [e.how for e in events if isinstance(e, RolloutContinued)] == ["resume"]
    assert observations(done)[1].endswith("[turns left: 98]")


async def test_an_observation_that_differs_starts_the_rollout_over() -> None:
    history = await interrupted(ToolFinished, 1, bash("echo 4"), ANSWER, submit())
    model = ScriptedModel(submit())
    events: list[Event] = []
    sandbox = FakeSandbox({"echo 4": "5\n"})
    done = await resume_rollout(history, model=model, sandbox=sandbox, sink=events.append)
    (again,) = [e for e in events if isinstance(e, RolloutContinued)]
    assert (again.how, again.detail) == ("restart", "turn 0: execute_bash gave something else")
    assert len(done.turns) == 1
    assert model.requests[0].messages == history.messages[:2]


async def test_starting_over_keeps_what_the_user_said_later() -> None:
    control = Control()
    control.message("in French")
    events: list[Event] = []
    await play(bash("echo 4"), say("hm"), submit(), control=control, sink=events.append)
    history = torn(fold(events), events, ReplyReceived, 3)
    model = ScriptedModel(submit())
    await resume_rollout(history, model=model, sandbox=FakeSandbox({"echo 4": "5"}))
    said = [m.text for m in model.requests[0].messages if m.role is Role.USER]
    assert said[1:] == ["in French"]


async def test_starting_over_takes_a_sandbox_without_the_traces_of_the_replay() -> None:
    history = await interrupted(ToolFinished, 2, ANSWER, bash("echo 4"), submit())
    model = ScriptedModel(edit("view", "/testbed/output/answer.txt"), submit())
    first = FakeSandbox({"echo 4": "5\n"})
    done = await resume_rollout(history, model=model, sandbox=first, spare=FakeSandbox)
    assert "does not exist" in observations(done)[0]
    assert (done.stop_reason, done.answer) == (StopReason.SUBMITTED, None)
    with pytest.raises(SandboxDied, match="closed"):
        await first.stat("/")


async def test_a_reply_without_all_its_results_gets_the_missing_ones() -> None:
    both = calls(bash("echo 4"), ANSWER)
    history = await interrupted(ToolFinished, 1, both, submit())
    model = ScriptedModel(submit())
    sandbox = FakeSandbox({"echo 4": "4\n"})
    done = await resume_rollout(history, model=model, sandbox=sandbox)
    assert len(done.turns[0].tool_results) == 2
    assert done.answer == "4\n"
    assert model.requests[0].messages[-1].text.endswith("[turns left: 99]")


async def test_a_submitted_but_unfinished_record_is_finished_without_the_model() -> None:
    history = await interrupted(ToolFinished, 2, ANSWER, submit())
    done = await resume_rollout(history, model=ScriptedModel(), sandbox=FakeSandbox())
    assert (done.stop_reason, done.answer) == (StopReason.SUBMITTED, "4\n")


async def test_a_record_that_ends_before_the_reminder_gets_it() -> None:
    history = await interrupted(ReplyReceived, 1, say("hm"), submit())
    model = ScriptedModel(submit())
    await resume_rollout(history, model=model, sandbox=FakeSandbox())
    assert "called no tool" in model.requests[0].messages[-1].text


async def test_a_record_of_prompts_alone_starts_over() -> None:
    history = await interrupted(MessageAdded, 1, submit())
    model = ScriptedModel(submit())
    done = await resume_rollout(history, model=model, sandbox=FakeSandbox())
    assert done.stop_reason is StopReason.SUBMITTED
    assert [m.role for m in model.requests[0].messages] == [Role.SYSTEM, Role.USER]


async def test_metadata_and_text_parts_survive() -> None:
    trajectory = await play(submit(), metadata={"arm": "full"}, rollout_id="r7")
    assert (trajectory.id, trajectory.metadata) == ("r7", {"arm": "full"})
    assert isinstance(trajectory.messages[0].parts[0], TextPart)


async def test_a_call_of_a_tool_that_nobody_offered_is_talk_where_there_is_no_computer() -> None:
    trajectory = await run_rollout(TASK, model=ScriptedModel(bash("echo 42", text="It is 42.")))
    assert trajectory.stop_reason is StopReason.ANSWERED
    assert trajectory.answer == "It is 42."


async def test_a_sandbox_that_dies_while_files_come_out_is_no_end_of_the_models() -> None:
    class DiesLate(FakeSandbox):
        async def read_file(self, path: str, *, limit_bytes: int | None = None) -> bytes:
            raise SandboxDied(DeathCause.KILLED, "gone")

    trajectory = await run_rollout(TASK, model=ScriptedModel(submit()), sandbox=DiesLate())
    assert trajectory.stop_reason is StopReason.SANDBOX_DIED
    assert "collection" in trajectory.stop_detail
