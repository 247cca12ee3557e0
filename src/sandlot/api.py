"""The library's face: `run`, `arun`, `Sandbox`. The command line stands on `execute`."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from sandlot.core.codec import to_json
from sandlot.core.errors import ConfigError, ImageError, InputError, unknown_name
from sandlot.core.events import Event, EventSink, RolloutStopped, SandboxStarted
from sandlot.core.redact import Redactor, secret_values
from sandlot.core.store import Recorder, RunDirectory, slugify
from sandlot.core.types import Message, StopReason, Task, Trajectory, Usage
from sandlot.sandbox.policy import PROMISES, Credential, Limits, Mount, Network, Policy
from sandlot.settings import Settings, resolve

if TYPE_CHECKING:
    from sandlot.agent.budget import Budget
    from sandlot.agent.control import Control
    from sandlot.agent.prompts import Profile
    from sandlot.models.base import Model, Sampling
    from sandlot.models.registry import Fit
    from sandlot.sandbox.base import Sandbox as StartedSandbox

IMAGE_FALLBACKS = ("base", "host")
FINISHED = (StopReason.SUBMITTED, StopReason.ANSWERED)
_BACKENDS = "sandlot.sandboxes"
_LIMITS = {
    "memory": "memory_bytes",
    "cpus": "cpus",
    "processes": "processes",
    "disk": "disk_bytes",
    "open_files": "open_files",
    "file_size": "file_bytes",
    "wall_time": "wall_s",
    "timeout": "command_timeout_s",
}


@dataclass(frozen=True, slots=True)
class RefusedHost:
    """A host that the network policy turned away; `flag` is what would let it through."""

    host: str
    reason: str
    flag: str | None


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run gave.

    `answer` is None where the model left none. `files` are paths on this machine, inside
    `directory`. `usage` is the sum over all turns; a count is None where no turn reported it.
    """

    answer: str | None
    files: tuple[Path, ...]
    stop_reason: StopReason | None
    stop_detail: str
    trajectory: Trajectory
    directory: Path
    usage: Usage
    refused: tuple[RefusedHost, ...] = ()

    @property
    def cost_usd(self) -> float | None:
        return self.usage.cost_usd


def _ignore(*_: object) -> None:
    """For a watcher that does not care."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Who looks on. `note` gets progress lines; `opened` the run directory once it is there."""

    sinks: tuple[EventSink, ...] = ()
    note: Callable[[str], None] = _ignore
    opened: Callable[[RunDirectory], None] = _ignore
    control: Control | None = None
    stream: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """One thing to do: a fresh run, more messages to an old one, or the rest of a broken one.

    `prompt` is the task's for a fresh run, the new message for `continue`, unused for `resume`.
    `directory` is the old run's. `output` receives a copy of the files that were collected.
    """

    prompt: str = ""
    input: Path | None = None
    output: Path | None = None
    keep: bool = False
    how: Literal["run", "continue", "resume"] = "run"
    directory: RunDirectory | None = None


def run(
    prompt: str,
    model: str | None = None,
    *,
    input: str | os.PathLike[str] | None = None,  # noqa: A002
    output: str | os.PathLike[str] | None = None,
    network: str | None = None,
    memory: str | int | None = None,
    max_turns: int | None = None,
    keep: bool = False,
    on_event: EventSink | None = None,
    **settings: Any,
) -> RunResult:
    """Give a model a computer and a task, and wait for what it leaves.

    Args:
        prompt: the task, in words.
        model: `openai/NAME` (any OpenAI-compatible server, with `base_url`), `anthropic/NAME`,
            `local`, `local:base`, `local:/path/model.gguf` or `scripted:FILE`.
        input: a folder of this machine that is copied into the sandbox.
        output: a folder that receives a copy of the produced files; files of the same name are
            replaced. It is made where it does not exist.
        network: `none`, `packages` (the default), `open` or `allow:HOST,…`.
        memory: ceiling of the sandbox, `2GiB` or a number of bytes; 4 GiB by default.
        max_turns: at most so many replies of the model; 100 by default.
        keep: store the sandbox in the run directory, for `sandlot shell` and `continue`.
        on_event: called with each event of the rollout as it happens.
        settings: any other setting by its name (`base_url`, `temperature`, `image`, `time_limit`,
            …), as in `sandlot.toml`. What is not given comes from the environment, the
            configuration files and the defaults, in this order.
    Returns:
        The result. That the model failed or the sandbox died is a stop reason, not an exception.
    Raises:
        ConfigError: a setting cannot be used; nothing was started.
        InputError: the input or output folder cannot be used; nothing was started.
        SandboxError, ImageError: no sandbox could be brought up.
        RuntimeError: called where an event loop runs; `await sandlot.arun(...)` there.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise RuntimeError(
            "sandlot.run() cannot be called where an event loop already runs (a notebook, an async "
            "function); write `await sandlot.arun(...)` there"
        )
    return asyncio.run(
        arun(
            prompt,
            model,
            input=input,
            output=output,
            network=network,
            memory=memory,
            max_turns=max_turns,
            keep=keep,
            on_event=on_event,
            **settings,
        )
    )


async def arun(
    prompt: str,
    model: str | None = None,
    *,
    input: str | os.PathLike[str] | None = None,  # noqa: A002
    output: str | os.PathLike[str] | None = None,
    network: str | None = None,
    memory: str | int | None = None,
    max_turns: int | None = None,
    keep: bool = False,
    on_event: EventSink | None = None,
    **settings: Any,
) -> RunResult:
    """`run` for use inside an event loop; the same arguments, result and errors.

    Cancelling the task ends the sandbox and keeps the files and the trajectory.
    """
    named = {"model": model, "network": network, "memory": memory, "max_turns": max_turns}
    job = Job(
        prompt,
        Path(input) if input is not None else None,
        Path(output) if output is not None else None,
        keep,
    )
    watch = Watch(sinks=(on_event,) if on_event is not None else ())
    return await execute(job, resolve({**settings, **named}), watch)


class Sandbox:
    """The computer alone, without a model.

    ```python
    async with sandlot.Sandbox.start(network="none") as box:
        print((await box.exec("python3 -c 'print(2**100)'")).stdout)
    ```
    """

    @classmethod
    @asynccontextmanager
    async def start(
        cls,
        *,
        network: str | None = None,
        memory: str | int | None = None,
        image: str | None = None,
        mounts: Mapping[str, str] | Sequence[Mount] = (),
        note: Callable[[str], None] = _ignore,
        **settings: Any,
    ) -> AsyncIterator[StartedSandbox]:
        """A started sandbox, closed at the end of the block with nothing left behind.

        Args:
            network, memory, image, settings: as for `run`.
            mounts: folders of this machine shown inside: a mapping of path here to path inside,
                which are read-only, or `Mount` objects.
            note: called with lines of progress while an image is built.
        Raises:
            ConfigError: a setting cannot be used.
            SandboxUnavailable: this machine cannot run such a sandbox, or not with that limit.
            ImageError: the image is missing and cannot be built.
        """
        named = {"network": network, "memory": memory, "image": image}
        settled = resolve({**settings, **named})
        policy = policy_of(settled, _as_mounts(mounts))
        settled, _ = await settle_backend(settled, os.environ, note)
        box, _ = await open_computer(settled, policy, os.environ, note)
        async with box:
            yield box


async def execute(
    job: Job,
    settings: Settings,
    watch: Watch = Watch(),
    *,
    environ: Mapping[str, str] | None = None,
    clock: Callable[[], float] = time.time,
) -> RunResult:
    """Do a job: check everything that is free to check, open the sandbox, run, collect, record."""
    environ = os.environ if environ is None else environ
    prepared = _prepare(job, settings, environ)
    settings = prepared.settings
    try:
        directory = _directory(job, settings, clock)
        watch.opened(directory)
        at_the_wall = [item.secret for item in prepared.policy.network.credentials]
        redactor = Redactor([*secrets_of(settings, environ), *at_the_wall])
        manifest = _manifest(job, settings, prepared, directory, clock)
        directory = directory.with_manifest(redactor.value(manifest))
        settings, why = await settle_backend(settings, environ, watch.note)
        box, image = await open_computer(settings, prepared.policy, environ, watch.note)
        prepared = replace(prepared, profile=relocated(prepared.profile, box))
        chosen = {"name": settings.backend, "why": why}
        manifest |= {"image": _image_record(settings, image, box), "backend": chosen}
        directory = directory.with_manifest(redactor.value(manifest))

        async def spare() -> StartedSandbox:
            return (await open_computer(settings, prepared.policy, environ, watch.note))[0]

        def record_walls(event: Event) -> None:
            """How each promise is kept is known once the sandbox runs."""
            if isinstance(event, SandboxStarted):
                walls = {"backend": event.backend, "promises": list(event.enforcement)}
                directory.with_manifest(redactor.value(manifest | {"sandbox": walls}))

        watch = replace(watch, sinks=(record_walls, *watch.sinks))
        with Recorder(directory.trajectory_path, redactor=redactor, clock=clock) as recorder:
            trajectory = await _roll(job, prepared, watch, directory, recorder, box, spare)
    finally:
        await prepared.model.close()
    return result_of(directory, trajectory, settings)


async def _roll(
    job: Job,
    prepared: _Prepared,
    watch: Watch,
    directory: RunDirectory,
    recorder: Recorder,
    box: StartedSandbox,
    spare: Callable[[], Awaitable[StartedSandbox]],
) -> Trajectory:
    """The rollout itself. However it ends, its end is recorded and its files reach `output`."""
    from sandlot.agent.resume import resume_rollout
    from sandlot.agent.rollout import run_rollout
    from sandlot.tools import default_tools

    directory.files.mkdir(exist_ok=True)
    kept = directory.state_path if directory.state_path.is_file() else None
    common: dict[str, Any] = {
        "model": prepared.model,
        "sandbox": box,
        "tools": default_tools(),
        "profile": prepared.profile,
        "budget": prepared.budget,
        "sampling": prepared.sampling,
        "sink": fan_out(recorder, *watch.sinks),
        "control": watch.control,
        "output_dir": directory.files,
        "keep_state": directory.state_path if job.keep else None,
        "stream": watch.stream,
    }
    try:
        if job.how == "resume":
            return await resume_rollout(directory.trajectory(), spare=spare, **common)
        if job.how == "continue":
            message = Message.user(job.prompt)
            history = directory.trajectory()
            return await run_rollout(
                history.task,
                history=history,
                continuation=(message,),
                restore_state=kept,
                **common,
            )
        return await run_rollout(prepared.task, rollout_id=directory.path.name, **common)
    except asyncio.CancelledError:
        if not recorder.stopped:
            recorder(RolloutStopped(StopReason.CANCELLED))
        raise
    finally:
        await box.close()
        if job.output is not None:
            copy_files(directory.files, job.output)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What could be made ready, and refused, before anything was started or paid for."""

    settings: Settings
    task: Task
    model: Model
    fit: Fit | None
    profile: Profile
    budget: Budget
    sampling: Sampling
    policy: Policy


def _prepare(job: Job, settings: Settings, environ: Mapping[str, str]) -> _Prepared:
    from sandlot.agent.budget import Budget
    from sandlot.models.base import Sampling
    from sandlot.models.registry import profile_fit

    check_input(job.input)
    check_output(job.output)
    if not job.prompt.strip() and job.how != "resume":
        raise ConfigError("the prompt is empty; say what is to be done")
    check_backend(settings.backend)
    fit = profile_fit(settings.model)
    profile = _profile(settings, fit)
    check_fit(settings, fit, profile)
    settings = _with_profile(settings, profile)
    policy = replace(policy_of(settings, environ=environ), working_dir=profile.working_dir)
    return _Prepared(
        settings=settings,
        task=Task(
            id=slugify(job.prompt),
            prompt=job.prompt,
            input_dir=str(job.input.resolve()) if job.input is not None else None,
        ),
        fit=fit,
        profile=profile,
        budget=Budget(
            max_turns=settings.max_turns,
            max_tokens=settings.max_tokens,
            time_limit_s=settings.time_limit,
        ),
        sampling=Sampling(
            settings.temperature,
            settings.top_p,
            settings.seed,
            settings.reply_tokens,
            settings.extra_body,
        ),
        policy=policy,
        model=model_of(settings),
    )


def model_of(settings: Settings) -> Model:
    from sandlot.models.registry import ModelSettings, build_model

    if settings.model is None:
        raise ConfigError(
            "no model is named: pass -m openai/NAME (with --base-url for a server of your own), "
            "-m anthropic/NAME or -m local, or set SANDLOT_MODEL or `model` in sandlot.toml"
        )
    base_url = settings.base_url
    if settings.sources.get("base_url") == "OPENAI_BASE_URL" and not _speaks_openai(settings.model):
        base_url = None
    return build_model(
        settings.model,
        ModelSettings(
            base_url=base_url,
            api_key=settings.api_key,
            anthropic_api_key=settings.anthropic_api_key,
            tool_calls=cast(Any, settings.tool_calls),
            timeout_s=settings.model_timeout,
            max_retries=settings.max_retries,
        ),
    )


def _speaks_openai(model: str) -> bool:
    return model.startswith("openai/")


def _profile(settings: Settings, fit: Fit | None) -> Profile:
    """The profile asked for; where none was, the one that suits the model."""
    from sandlot.agent.prompts import load_profile, load_prompt_file

    suits = "general" if fit is None else fit.profile
    profile = load_profile(settings.profile or suits)
    if settings.prompt_file is None:
        return profile
    return load_prompt_file(Path(settings.prompt_file), profile)


def check_fit(settings: Settings, fit: Fit | None, profile: Profile) -> None:
    """Hold a taught model to the prompts and the form of calls that it was taught with.

    Raises:
        ConfigError: the profile is another one, has changed since, or other calls are asked for.
    """
    from sandlot.agent.prompts import digest

    if fit is None or fit.digest is None:
        return
    taught = f"model {settings.model!r} was taught with the profile {fit.profile!r} and knows it"
    out = f"Use --profile {fit.profile}, or the untaught model: -m {fit.untaught}."
    if digest(profile) != fit.digest:
        if profile.name != fit.profile or settings.prompt_file is not None:
            asked = settings.prompt_file or profile.name
            raise ConfigError(f"{taught} alone, not {asked!r}. {out}")
        raise ConfigError(
            f"{taught} as it was (digest {fit.digest[:12]}…); it has changed since (now "
            f"{digest(profile)[:12]}…). Use the version of sandlot that the adapter was made "
            f"with, or the untaught model: -m {fit.untaught}."
        )
    if settings.asked("tool_calls") and settings.tool_calls != profile.tool_calls:
        raise ConfigError(
            f"{taught} alone, whose tool calls are {profile.tool_calls!r}, not "
            f"{settings.tool_calls!r}. Leave --tool-calls out, or use the untaught model: "
            f"-m {fit.untaught}."
        )


def _with_profile(settings: Settings, profile: Profile) -> Settings:
    """The profile's own words take the place of defaults, never of what was asked for."""
    words = {
        name: getattr(profile, name)
        for name in ("tool_calls", "max_turns")
        if not settings.asked(name)
    }
    return replace(settings, **words)


def policy_of(
    settings: Settings,
    mounts: tuple[Mount, ...] = (),
    environ: Mapping[str, str] | None = None,
) -> Policy:
    """The policy that the settings ask for; `environ` holds the secrets that they name.

    Raises:
        ConfigError: the network or a limit makes no sense, or a named secret is not there.
    """
    environ = os.environ if environ is None else environ
    asked = {limit for name, limit in _LIMITS.items() if settings.asked(name)}
    limits = Limits(
        memory_bytes=settings.memory,
        cpus=settings.cpus,
        processes=settings.processes,
        disk_bytes=settings.disk,
        open_files=settings.open_files,
        file_bytes=settings.file_size,
        wall_s=settings.wall_time,
        command_timeout_s=settings.timeout,
    )
    network = replace(
        Network.parse(settings.network, settings.private_hosts, settings.deny_hosts),
        max_bytes=settings.egress_bytes,
        max_connections=settings.egress_connections,
        credentials=tuple(read_credential(word, environ) for word in settings.credentials),
    )
    if settings.asked("network"):
        asked.add("network")
    for name in settings.accept_unenforced:
        if name not in (*PROMISES, "all"):
            raise unknown_name("promise", name, (*PROMISES, "all"))
    return Policy(
        limits=limits,
        network=network,
        mounts=mounts,
        asked=frozenset(asked),
        accepted=frozenset(settings.accept_unenforced),
    )


def read_credential(text: str, environ: Mapping[str, str]) -> Credential:
    """`HOST=VARIABLE` (a bearer token) or `HOST=HEADER:VARIABLE` (the header's whole value).

    The secret stands in the variable, so that it is in no command line, file or record.

    Raises:
        ConfigError: it reads otherwise, or the variable is empty.
    """
    host, equals, rest = text.partition("=")
    header, _, variable = rest.rpartition(":")
    if not equals or not host or not variable:
        raise ConfigError(f"credential {text!r} is not HOST=VARIABLE or HOST=HEADER:VARIABLE")
    secret = environ.get(variable)
    if not secret:
        raise ConfigError(f"the credential for {host} is to be in {variable}, which is not set")
    if header:
        return Credential(host.lower(), secret, header.lower())
    return Credential(host.lower(), f"Bearer {secret}")


async def settle_backend(
    settings: Settings, environ: Mapping[str, str], note: Callable[[str], None]
) -> tuple[Settings, str]:
    """Settings that name a backend in place of `auto`, and why it is that one.

    Raises:
        SandboxUnavailable: nothing that `auto` may take works on this machine.
    """
    from sandlot.sandbox.choose import AUTO, choose_here

    if settings.backend == "restricted" and not settings.asked("image"):
        settings = replace(settings, image="host")  # the only one that it can show
    if settings.backend != AUTO:
        return settings, "asked for"
    choice = await choose_here(settings.state_dir, environ, settings.engine)
    if choice.backend != "bubblewrap":
        note(f"backend {choice.backend} is used: {choice.why}")
    engine = choice.engine or settings.engine
    return replace(settings, backend=choice.backend, engine=engine), choice.why


def relocated(profile: Profile, box: StartedSandbox) -> Profile:
    """A backend without a root of its own has other paths; prompts must name the real ones."""
    move = getattr(box, "relocated", None)
    if move is None:
        return profile
    names = ("working_dir", "input_dir", "output_dir", "answer_file")
    return replace(profile, **{name: move(getattr(profile, name)) for name in names})


async def open_computer(
    settings: Settings,
    policy: Policy,
    environ: Mapping[str, str],
    note: Callable[[str], None],
) -> tuple[StartedSandbox, str]:
    """A sandbox that is not started yet, and the image that it has.

    The default image falls back to a smaller one, with a note; one that was asked for does not.
    """
    from sandlot.sandbox.registry import open_sandbox

    fallbacks = () if settings.asked("image") else IMAGE_FALLBACKS
    images = (settings.image, *(name for name in fallbacks if name != settings.image))
    for image, next_image in zip(images, (*images[1:], None), strict=True):
        try:
            box = await open_sandbox(
                settings.backend,
                policy=policy,
                image=image,
                cache=settings.cache_dir,
                state=settings.state_dir,
                environ=environ,
                progress=note,
                engine=settings.engine,
                runtime=settings.runtime,
            )
        except ImageError as exc:
            if next_image is None:
                raise
            note(f"image {image!r} is not to be had ({exc}); using {next_image!r} instead")
        else:
            return box, image
    raise AssertionError("unreachable: the last image either opened or raised")


def _image_record(settings: Settings, image: str, box: StartedSandbox) -> dict[str, Any]:
    """What the sandbox starts from; a container says itself which digest its engine has."""
    from sandlot.sandbox.images import ImageStore

    if image == "host" or settings.backend != "bubblewrap":
        return {"name": image, "digest": getattr(box, "image_digest", None)}
    resolved = ImageStore(settings.cache_dir).resolve(image)
    return {"name": image, "digest": resolved.digest}


def _directory(job: Job, settings: Settings, clock: Callable[[], float]) -> RunDirectory:
    if job.directory is not None:
        return job.directory
    now = datetime.fromtimestamp(clock()).astimezone()
    return RunDirectory.create(Path(settings.runs), job.prompt, now)


def _manifest(
    job: Job,
    settings: Settings,
    prepared: _Prepared,
    directory: RunDirectory,
    clock: Callable[[], float],
) -> dict[str, Any]:
    from sandlot import __version__
    from sandlot.agent.prompts import digest

    now = datetime.fromtimestamp(clock(), UTC).isoformat(timespec="seconds")
    before = directory.manifest
    continued = list(before.get("continued", ()))
    if before:
        continued.append(f"{job.how} {now}")
    return {
        "created": before.get("created", now),
        "continued": continued,
        "model": settings.model,
        **({"adapter": prepared.fit.adapter} if prepared.fit and prepared.fit.adapter else {}),
        "seed": settings.seed,
        "versions": {
            "sandlot": __version__,
            "python": platform.python_version(),
            "kernel": platform.release(),
        },
        "image": {"name": settings.image},
        "sampling": to_json(prepared.sampling),
        "profile": {
            "digest": digest(prepared.profile),
            **to_json(prepared.profile),
        },
        "policy": to_json(prepared.policy),
        "settings": settings.public(),
        "sources": dict(settings.sources),
    }


def secrets_of(settings: Settings, environ: Mapping[str, str]) -> list[str]:
    keys = (settings.api_key, settings.anthropic_api_key)
    return [*secret_values(environ), *(key for key in keys if key)]


def fan_out(*sinks: EventSink) -> EventSink:
    def sink(event: Event) -> None:
        for each in sinks:
            each(event)

    return sink


def _as_mounts(mounts: Mapping[str, str] | Sequence[Mount]) -> tuple[Mount, ...]:
    if isinstance(mounts, Mapping):
        return tuple(Mount(str(source), target) for source, target in mounts.items())
    return tuple(mounts)


def check_backend(name: str) -> None:
    """Refuse a backend that no installed package provides, with the nearest name."""
    from importlib.metadata import entry_points

    from sandlot.sandbox.choose import AUTO
    from sandlot.sandbox.registry import BUILT_IN

    known = {AUTO, *BUILT_IN, *(point.name for point in entry_points(group=_BACKENDS))}
    if name not in known:
        raise unknown_name("sandbox backend", name, known)


def check_input(path: Path | None) -> None:
    """Refuse an input folder that is missing, is a file, or holds what cannot be read."""
    if path is None:
        return
    if not path.exists():
        raise InputError(f"input folder {path} does not exist")
    if not path.is_dir():
        raise InputError(f"input {path} is a file; name the folder that holds it")

    def refuse(error: OSError) -> None:
        raise InputError(f"input folder {error.filename} cannot be read: {error.strerror}")

    for folder, _, names in os.walk(path, onerror=refuse):
        for name in names:
            file = os.path.join(folder, name)
            if not os.path.islink(file) and not os.access(file, os.R_OK):
                raise InputError(f"input file {file} cannot be read: Permission denied")


def check_output(path: Path | None) -> None:
    """Make the output folder and prove that a file can be written into it."""
    if path is None:
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(b"sandlot")
    except OSError as exc:
        raise InputError(f"output folder {path} cannot be written: {exc.strerror}") from exc


def copy_files(source: Path, target: Path) -> None:
    """Copy collected files, replacing those of the same name.

    Raises:
        InputError: the target is full or refuses; the message says where the files still lie.
    """
    try:
        for folder, _, names in os.walk(source):
            inside = target / os.path.relpath(folder, source)
            inside.mkdir(parents=True, exist_ok=True)
            for name in names:
                shutil.copyfile(os.path.join(folder, name), inside / name, follow_symlinks=False)
    except OSError as exc:
        raise InputError(
            f"output folder {target}: {exc.strerror or exc}; every file is still in {source}"
        ) from exc


def result_of(directory: RunDirectory, trajectory: Trajectory, settings: Settings) -> RunResult:
    return RunResult(
        answer=trajectory.answer,
        files=tuple(directory.files / file.path for file in trajectory.files),
        stop_reason=trajectory.stop_reason,
        stop_detail=trajectory.stop_detail,
        trajectory=trajectory,
        directory=directory.path,
        usage=total_usage(trajectory),
        refused=refused_hosts(trajectory, settings.network, settings.private_hosts),
    )


def total_usage(trajectory: Trajectory) -> Usage:
    """Sums over the turns that reported a count; None where none did."""

    def total(name: str) -> Any:
        counts = [getattr(turn.usage, name) for turn in trajectory.turns]
        known = [count for count in counts if count is not None]
        return sum(known) if known else None

    names = Usage.__dataclass_fields__
    return replace(Usage(), **{name: total(name) for name in names})


def refused_hosts(
    trajectory: Trajectory, network: str, private_hosts: Sequence[str] = ()
) -> tuple[RefusedHost, ...]:
    """Each refused host once, with the flag that would have let it through where one would."""
    refused: dict[str, RefusedHost] = {}
    for record in trajectory.egress:
        if record.verdict != "allowed" and record.host not in refused:
            flag = _flag_for(record.host, record.verdict, network, private_hosts)
            refused[record.host] = RefusedHost(record.host, record.verdict, flag)
    return tuple(refused.values())


def _flag_for(host: str, verdict: str, network: str, private_hosts: Sequence[str]) -> str | None:
    if verdict == "private address":
        return f"--private-hosts {','.join((*private_hosts, host))}"
    if verdict != "not allowed":
        return None
    already = {"packages": "packages,"}.get(network, "")
    if network.startswith("allow:"):
        already = network.removeprefix("allow:") + ","
    return f"--network allow:{already}{host}"


def resume_arguments(directory: RunDirectory, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for going on with a run: those given now, then those that its own user set."""
    manifest = directory.manifest
    sources = manifest.get("sources", {})
    recorded = {
        name: value for name, value in manifest.get("settings", {}).items() if name in sources
    }
    recorded["image"] = manifest.get("image", {}).get("name")
    given = {name: value for name, value in arguments.items() if value is not None}
    return {**recorded, **given}


__all__ = ["Job", "RefusedHost", "RunResult", "Sandbox", "Watch", "arun", "execute", "run"]
