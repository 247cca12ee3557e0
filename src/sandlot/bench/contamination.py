"""Whether a rollout saw a task's answer from elsewhere, or went where the answers lie.

A mark is a reason to distrust one item, not a proof: the report gives scores with and without the
marked ones. Ground truth and the data set's names stay on the host; `check_sandbox_view` holds
every upload and prompt to that before a sandbox is started.
"""

from __future__ import annotations

import importlib.util
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sandlot.bench.patterns import arguments_of
from sandlot.core.errors import ConfigError
from sandlot.core.types import EgressRecord, Message, Role, Task, Trajectory, Turn
from sandlot.tasks.base import TaskSet

_TELLING = 12  # characters of a normalised truth that do not turn up by chance
_SHINGLE = 5  # words in a row that count as one piece of a problem's text
_SIZEABLE = 0.3  # share of a problem's pieces that is more than a common phrase
_FEWEST_PIECES = 4
_FEWEST_WORDS = 4  # of a problem that can be told from any other text
_INPUT_BYTES = 64 * 1024 * 1024  # of an input folder that is read to know what was given


def marks(
    task: Task,
    trajectory: Trajectory,
    row: TaskSet | None,
    environ: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Why the item is to be distrusted, each reason once in a short text; nothing if it is not."""
    reasons = [
        *_egress_reasons(trajectory.egress, _leak_hosts(row, environ)),
        *_naming_reasons(trajectory.turns, task, row),
        *_seen_reasons(trajectory, task),
    ]
    return tuple(dict.fromkeys(reasons))


def check_sandbox_view(task: Task, row: TaskSet | None = None) -> None:
    """Refuse a task whose prompt or uploads tell what must stay on the host.

    A truth may stand in the documents of a task that asks for it: what is refused is a file that
    is an answer key (nothing but the truth under a telling name, or the truth as a field that
    says so), and the data set's name anywhere.

    Raises:
        ConfigError: names the task, the file and what was found in it.
    """
    names = _dataset_names(row)
    _refuse_name(task, "the prompt", task.prompt, names)
    for path, data in _uploads(task):
        text = data.decode("utf-8", "replace")
        _refuse_name(task, f"input file {path!r}", f"{path}\n{text}", names)
        if _is_answer_key(path, text, task.target):
            raise ConfigError(
                f"task {task.id}: input file {path!r} is an answer key: it holds the task's "
                "ground truth; keep that in the task's target, which stays on the host"
            )


def hub_hosts(environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The host of the data hub, as its own client library or HF_ENDPOINT names it."""
    addresses = [(environ or {}).get("HF_ENDPOINT", "")]
    if importlib.util.find_spec("huggingface_hub") is not None:
        from huggingface_hub import constants

        addresses.append(constants.ENDPOINT)
    hosts = (urlsplit(address).hostname for address in addresses)
    return tuple(dict.fromkeys(host for host in hosts if host))


# Where it went.


def _leak_hosts(row: TaskSet | None, environ: Mapping[str, str] | None) -> tuple[str, ...]:
    if row is None:
        return ()
    return (*row.leak_hosts, *(hub_hosts(environ) if row.source.kind == "hub" else ()))


def _egress_reasons(egress: Iterable[EgressRecord], hosts: Iterable[str]) -> Iterator[str]:
    """A refused request brought nothing and marks nothing."""
    known = tuple(host.lower() for host in hosts)
    for record in egress:
        host = record.host.rstrip(".").lower()
        if record.verdict == "allowed" and any(f".{host}".endswith(f".{leak}") for leak in known):
            yield f"reached {host}, a host of the data set"


# What it named.


def _dataset_names(row: TaskSet | None) -> tuple[str, ...]:
    """Words by which nobody would come to the data set by chance: `owner/name`, a long name."""
    dataset = row.source.dataset if row is not None else None
    if not dataset:
        return ()
    name = dataset.rpartition("/")[2]
    long_enough = len(name) >= 6 and re.search(r"[\d_-]|[a-z][A-Z]", name) is not None
    return (dataset, name) if long_enough else (dataset,)


def _naming_reasons(turns: Iterable[Turn], task: Task, row: TaskSet | None) -> Iterator[str]:
    given = "\n".join((task.prompt, *task.input_files))
    names = [name for name in _dataset_names(row) if not _said(name, given)]
    item = task.id if _is_telling_id(task.id) and not _said(task.id, given) else None
    for turn in turns:
        for call in turn.reply.tool_calls:
            text = "\n".join(_strings(arguments_of(turn, call)))
            yield from (
                f"a command names the data set ({name})" for name in names if _said(name, text)
            )
            if item is not None and _said(item, text):
                yield f"a command names the item ({item})"


_PLAIN_ID = re.compile(
    r"(?:task|item|sample|problem|question|example|test|case|id|data|file|doc|document|input|"
    r"output|step|part|run|line|row|page)?[-_ ]*\d+",
    re.IGNORECASE,
)


def _is_telling_id(text: str) -> bool:
    """An id that a model could only have from the data set: not `7`, `item-7` or a plain word."""
    mixed = any(char.isdigit() for char in text) and any(char.isalpha() for char in text)
    return len(text) >= 6 and mixed and _PLAIN_ID.fullmatch(text) is None


def _said(name: str, text: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text, re.IGNORECASE) is not None


# What it saw.


def _seen_reasons(trajectory: Trajectory, task: Task) -> Iterator[str]:
    """Observations that tell the truth before the model or its inputs did; the first of each."""
    truths = {truth for item in _truths(task.target) if (truth := _normal(item))}
    pieces = _pieces(task.prompt)
    given = _Given(task)
    by_call = {call.id: turn.index for turn in trajectory.turns for call in turn.reply.tool_calls}
    for message in trajectory.messages:
        if message.role is not Role.TOOL:
            given.add(message)
            continue
        turn = by_call.get(message.tool_call_id or "")
        seen = _normal(message.text) if truths else ""
        outside = _had_contact(trajectory.egress, turn) or not given.has_inputs
        for truth in sorted(truths):
            if reason := _reason(truth, seen, given, pieces, outside):
                truths.discard(truth)
                yield f"turn {turn}: {reason}" if turn is not None else reason


def _had_contact(egress: Iterable[EgressRecord], turn: int | None) -> bool:
    """Whether anything had come in over the network by the end of a turn."""
    return any(
        record.verdict == "allowed" and (turn is None or record.turn is None or record.turn <= turn)
        for record in egress
    )


class _Given:
    """All text that the model had or wrote itself. Nothing is read before it is asked for."""

    def __init__(self, task: Task) -> None:
        self.has_inputs = bool(task.input_files) or task.input_dir is not None
        self._task = task
        self._told = [task.prompt]
        self._own: list[Message] = []
        self._own_texts: list[str] = []
        self._inputs: list[str] | None = None

    def add(self, message: Message) -> None:
        if message.role is Role.ASSISTANT:
            self._own.append(message)
        else:
            self._told.append(message.text)

    def holds(self, truth: str) -> bool:
        texts = (*map(_normal, self._told), *self._written(), *self._read())
        return any(_holds(text, truth) for text in texts)

    def pieces(self, pieces: frozenset[str]) -> frozenset[str]:
        """Those pieces of a problem that the model wrote itself or found in its input files.

        The prompt, which holds all of them, does not count: a page that repeats it is the find.
        """
        found: set[str] = set()
        for text in (*self._written(), *self._read()):
            found |= _held(text, pieces)
        return frozenset(found)

    def _written(self) -> list[str]:
        for message in self._own[len(self._own_texts) :]:
            calls = (_loose_strings(call.arguments) for call in message.tool_calls)
            text = "\n".join((message.text, message.reasoning or "", *calls))
            self._own_texts.append(_normal(text))
        return self._own_texts

    def _read(self) -> list[str]:
        if self._inputs is None:
            files = (data.decode("utf-8", "replace") for _, data in _uploads(self._task))
            self._inputs = [_normal(text) for text in files]
        return self._inputs


def _reason(
    truth: str, seen: str, given: _Given, pieces: frozenset[str], outside: bool
) -> str | None:
    """Why an observation is suspect.

    Words in a row are telling by themselves, unless they were given, the model had written them,
    or they can only have been put together from its inputs (not `outside`). A short truth (`B`,
    `42`) and a long number, which a computation may print, are what many observations hold: they
    count beside a sizeable part of the problem's own text that the model did not print itself.
    """
    if not _holds(seen, truth):
        return None
    if outside and _is_telling(truth) and not given.holds(truth):
        return "an observation holds the ground truth"
    found = _held(seen, pieces)
    if not found or len(found) < max(min(_FEWEST_PIECES, len(pieces)), _SIZEABLE * len(pieces)):
        return None
    if found <= given.pieces(pieces):
        return None
    return "an observation holds the problem's text with its answer"


def _is_telling(truth: str) -> bool:
    """Whether it is long, and of words: a number or a formula may be found by computing."""
    words = [word for word in truth.split(" ") if len(word) >= 3 and word.isalpha()]
    return len(truth) >= _TELLING and len(words) >= 2


def _truths(target: Any) -> list[str]:
    """The texts of a ground truth; of a list every member, of an object its telling fields."""
    if isinstance(target, str):
        return [target]
    if isinstance(target, bool) or target is None:
        return []
    if isinstance(target, int | float):
        return [str(target)]
    if isinstance(target, Mapping):
        return [text for key in ("answer", "target", "value") for text in _truths(target.get(key))]
    if isinstance(target, Iterable):
        return [text for item in target for text in _truths(item)]
    return []


def _normal(text: str) -> str:
    """Lower case, marks of TeX and Markdown gone, every run of other signs one space."""
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
    plain = plain.lower()
    plain = re.sub(r"\\(?:boxed|text|mathrm|left|right|d?frac|,|;)|[`*_${}]", " ", plain)
    plain = re.sub(r"(?<=\d),(?=\d{3}\b)", "", plain)
    return " ".join(re.findall(r"[^\W_]+(?:\.\d+)?|[-+](?=\d)", plain))


def _holds(text: str, truth: str) -> bool:
    """Whether it stands there as whole words."""
    return f" {truth} " in f" {text} "


def _pieces(text: str) -> frozenset[str]:
    """A problem's runs of words; a short one is a single piece, a very short one has none."""
    normal = _normal(text)
    count = normal.count(" ") + 1
    if count >= _SHINGLE + _FEWEST_PIECES - 1:
        return _shingles(normal)
    return frozenset((normal,)) if count >= _FEWEST_WORDS else frozenset()


def _shingles(normal: str) -> frozenset[str]:
    words = normal.split(" ")
    return frozenset(
        " ".join(words[n : n + _SHINGLE]) for n in range(max(len(words) - _SHINGLE + 1, 0))
    )


def _held(normal: str, pieces: frozenset[str]) -> frozenset[str]:
    """The pieces that stand in a text."""
    if len(pieces) == 1:
        return frozenset(piece for piece in pieces if _holds(normal, piece))
    return _shingles(normal) & pieces if pieces else pieces


# What goes up.


def _uploads(task: Task) -> Iterator[tuple[str, bytes]]:
    """Input files by path; of a folder no more than can be read in reasonable time."""
    yield from task.input_files.items()
    if task.input_dir is None:
        return
    room = _INPUT_BYTES
    root = Path(task.input_dir)
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.stat().st_size <= room:
            data = path.read_bytes()
            room -= len(data)
            yield str(path.relative_to(root)), data


def _refuse_name(task: Task, where: str, text: str, names: Iterable[str]) -> None:
    for name in names:
        if "/" in name and _said(name, text):
            raise ConfigError(
                f"task {task.id}: {where} names the data set {name!r}; a model could look it up"
            )


_TRUTH_KEYS = frozenset(("ground_truth", "answer_key", "correct_answer", "target", "solution"))


_KEY_FILE = re.compile(r"answer|solution|truth|label|target|gold", re.IGNORECASE)


def _is_answer_key(path: str, text: str, target: Any) -> bool:
    """Whether a file is the truth, or a JSON or JSONL text has it under a key that says so."""
    truths = {_normal(item) for item in _truths(target)} - {""}
    if _KEY_FILE.search(path) and len(text) < 10_000 and _normal(text) in truths:
        return True
    if not truths or not any(key in text for key in _TRUTH_KEYS):
        return False
    for part in (text, *text.splitlines()[:10_000]):
        if part.lstrip()[:1] not in ("{", "["):
            continue
        try:
            value = json.loads(part)
        except (ValueError, RecursionError):
            continue
        if truths & {_normal(item) for item in _under_truth_keys(value)}:
            return True
    return False


def _under_truth_keys(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if str(key).lower() in _TRUTH_KEYS:
                yield from _truths(item)
            else:
                yield from _under_truth_keys(item)
    elif isinstance(value, list):
        for item in value:
            yield from _under_truth_keys(item)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _loose_strings(arguments: str) -> str:
    """The texts in a call's arguments, so that escapes of JSON do not hide what was written."""
    try:
        return "\n".join(_strings(json.loads(arguments)))
    except (ValueError, RecursionError):
        return arguments
