"""A sandbox without a shell that understands the few commands of filing, for runs in tests."""

from __future__ import annotations

from sandlot.core.errors import DeathCause, SandboxFileError
from sandlot.sandbox.base import ExecResult
from sandlot.sandbox.fake import FakeSandbox


async def open_small_shell(commands: int | None = None) -> FakeSandbox:
    """`ls`, `pwd`, `cat FILE`, `grep -h WORD input/*` and `echo WORDS > FILE`; all else is 127.

    It dies at the command after so many `commands`.
    """

    async def answer(command: str) -> str | ExecResult:
        if commands is not None and len(box.commands) > commands:
            box.die(DeathCause.OUT_OF_MEMORY)
        match command.split():
            case ["pwd"]:
                return "/testbed\n"
            case ["ls"]:
                return "input\noutput\n"
            case ["ls", "input" | "output" as folder]:
                return "".join(f"{name}\n" for name, _ in await files(folder))
            case ["cat", name]:
                return await text(name)
            case ["grep", "-h", word, "input/*"]:
                lines = [line for _, each in await files("input") for line in each.splitlines()]
                return "".join(f"{line}\n" for line in lines if word in line)
            case ["echo", *words, ">", name]:
                await box.write_file(f"/testbed/{name}", f"{' '.join(words)}\n".encode())
                return ""
        return ExecResult(127, "", f"bash: {command[:20]}: command not found\n", 0.0)

    async def text(name: str) -> str:
        try:
            return (await box.read_file(f"/testbed/{name}", limit_bytes=4096)).decode()
        except SandboxFileError:
            return ""

    async def files(folder: str) -> list[tuple[str, str]]:
        names = [f"d{number}.txt" for number in range(10)] + ["answer.txt"]
        found = [(name, await text(f"{folder}/{name}")) for name in names]
        return [(name, each) for name, each in found if each]

    box = FakeSandbox(answer)
    return box
