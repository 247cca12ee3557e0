"""Which capabilities a turn's action uses, told from its commands and its Python code.

The published counter is not to be had; its known words (external: pip, apt, curl, wget, requests;
files: cat, grep, find, open, glob; computation: scipy, range, while, itertools) are kept, but read
as commands, calls and imports, so that prose, comments and quoted text do not count. Code counts
where it is written (an editor's file, a here-document, `-c`), not where its file is run.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sandlot.agent.calls import raw_arguments
from sandlot.bench.shellwords import Command, commands_of, words
from sandlot.core.types import ToolCall, Turn

CAPABILITIES = ("external", "files", "computation")

_FETCHERS = words("curl wget aria2c lynx w3m yt-dlp gdown ftp sftp scp rsync telnet npx pipx")
_INSTALLERS: Mapping[str, frozenset[str]] = {
    "pip": frozenset(("install", "download")),
    "pip3": frozenset(("install", "download")),
    "uv": frozenset(("add", "sync", "tool")),
    "apt": frozenset(("install", "update", "upgrade", "download")),
    "apt-get": frozenset(("install", "update", "upgrade", "download", "build-dep")),
    "npm": frozenset(("install", "i", "ci", "add", "exec")),
    "yarn": frozenset(("add", "install")),
    "pnpm": frozenset(("add", "install", "i")),
    "conda": frozenset(("install", "create")),
    "mamba": frozenset(("install", "create")),
    "gem": frozenset(("install",)),
    "cargo": frozenset(("add", "install", "fetch")),
    "go": frozenset(("get", "install")),
    "git": frozenset(("clone", "fetch", "pull", "ls-remote")),
}
_FILE_PROGRAMS = words(
    "find ls tree less more stat file diff cmp cp mv tar unzip zip gunzip zcat xxd hexdump strings "
    "tac nl pdftotext pdfinfo rg ag touch mkdir rm split sqlite3 exiftool identify ffprobe"
)
_FILTERS = words("cat grep egrep fgrep head tail wc sed awk gawk cut sort uniq jq tr")
_CALCULATORS = words(
    "bc dc gp maxima octave sage Rscript R ghci julia factor expr seq z3 minizinc glpsol lp_solve"
)

_EXTERNAL_MODULES = words(
    "requests httpx aiohttp urllib3 bs4 rdkit Bio pubchempy selenium playwright wikipedia "
    "wikipediaapi arxiv chembl_webresource_client yfinance feedparser"
)
_EXTERNAL_CALLS = words(
    "urllib.request.urlopen urllib.request.urlretrieve urllib.request.Request "
    "http.client.HTTPSConnection http.client.HTTPConnection socket.create_connection"
)
_FILE_MODULES = words(
    "pathlib glob shutil pickle fileinput zipfile tarfile sqlite3 docx openpyxl pypdf PyPDF2 "
    "pdfplumber fitz h5py"
)
_FILE_CALLS = words(
    "open io.open json.load json.dump csv.reader csv.DictReader csv.writer csv.DictWriter "
    "yaml.safe_load tomllib.load os.listdir os.walk os.scandir os.makedirs os.mkdir os.remove "
    "os.rename os.stat Path numpy.load numpy.loadtxt numpy.save numpy.savez numpy.genfromtxt "
    "PIL.Image.open Image.open wave.open"
)
_FILE_CALL_ENDS = words("read_text write_text read_bytes write_bytes iterdir rglob")
_COMPUTING_MODULES = words(
    "scipy math cmath sympy mpmath itertools fractions decimal statistics networkx z3 ortools "
    "pulp cvxpy gmpy2 sklearn torch statsmodels numba"
)
_SHORT_NAMES = {"np": "numpy", "pd": "pandas", "plt": "matplotlib.pyplot", "sp": "sympy"}
_SHELL_CALLS = words(
    "os.system os.popen subprocess.run subprocess.call subprocess.check_call "
    "subprocess.check_output subprocess.Popen subprocess.getoutput"
)

# For code that does not parse (a part of a file, Python 2, a notebook's `!pip`).
_LOOSE: Mapping[str, re.Pattern[str]] = {
    "external": re.compile(
        r"\b(?:requests|httpx)\.\w+\(|\burlopen\(|\bBeautifulSoup\(|\b(?:import|from)\s+"
        r"(?:requests|httpx|bs4|rdkit|Bio)\b|^[ \t]*[!%][ \t]*pip[ \t]+install\b",
        re.MULTILINE,
    ),
    "files": re.compile(
        r"(?<![\w.])open\(|\bjson\.load\(|\bread_(?:csv|excel|json|parquet)\(|\bos\.path\b|"
        r"\bPath\(|\bglob\(|\bpickle\.load\(|\bnp\.load\(|\b(?:read|write)_(?:text|bytes)\("
    ),
    "computation": re.compile(
        r"\brange\(|^[ \t]*while\b|\bscipy\b|\bitertools\.|\bmath\.\w+\(|\bfsolve\(|\bsolve\(|"
        r"\bminimize\(|\bquad\(|\bodeint\(|\bsolve_ivp\(|\bnp\.linalg\b",
        re.MULTILINE,
    ),
}
_STRINGS = re.compile(
    r"'''.*?'''|\"\"\".*?\"\"\"|'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\"|#[^\n]*", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Code:
    """A piece of an action. `where` is the file it is written to, None where it runs at once."""

    language: str  # shell, python, javascript, or text for what is no code
    text: str
    where: str | None = None


def capabilities(turn: Turn) -> frozenset[str]:
    """Those of `CAPABILITIES` that the turn's action uses; several or none."""
    found: set[str] = set()
    for call in turn.reply.tool_calls:
        arguments = arguments_of(turn, call)
        if call.name == "str_replace_editor" and arguments.get("command") == "view":
            found.add("files")
        for code in code_of(call.name, arguments):
            found |= _used_by(code)
    return frozenset(found)


def arguments_of(turn: Turn, call: ToolCall) -> Mapping[str, Any]:
    """A call's arguments; none where they are no JSON object."""
    try:
        arguments = json.loads(raw_arguments(turn.reply, call))
    except (ValueError, RecursionError):
        return {}
    return arguments if isinstance(arguments, dict) else {}


def code_of(tool: str, arguments: Mapping[str, Any]) -> Iterator[Code]:
    """All code in a call: commands, and what they or the editor write or feed to interpreters."""
    if tool == "execute_bash":
        yield from shell_code(str(arguments.get("command", "")))
    elif tool == "str_replace_editor":
        path = str(arguments.get("path", ""))
        text = str(arguments.get("file_text") or arguments.get("new_str") or "")
        language = _language_of(path)
        if language == "shell":
            yield from shell_code(text)
        elif text:
            yield Code(language, text, path)


def shell_code(text: str, depth: int = 0) -> Iterator[Code]:
    """A shell text and the code inside it: here-documents, `python -c`, `sh -c`."""
    yield Code("shell", text)
    for command in commands_of(text) if depth < 4 else ():
        inner = _inner_code(command)
        if inner is None:
            continue
        if inner.language == "shell":
            yield from shell_code(inner.text, depth + 1)
        else:
            yield inner


@lru_cache(maxsize=128)
def python_uses(text: str) -> tuple[frozenset[str], tuple[str, ...]]:
    """The names that Python code calls or imports, dotted and in full, and the shell it starts.

    Raises:
        SyntaxError: it is not Python, or a part of a file.
    """
    reader = _Names()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the model's code: an escape such as "\\d"
        tree = ast.parse(text)
    reader.visit(tree)
    return frozenset(reader.names), tuple(reader.shell)


def _inner_code(command: Command) -> Code | None:
    python = re.fullmatch(r"(?:i?python|pypy)[\d.]*", command.name) is not None
    if python or command.name in ("bash", "sh", "zsh", "dash", "node"):
        language = "python" if python else "javascript" if command.name == "node" else "shell"
        for number, word in enumerate(command.arguments[:-1]):
            if re.fullmatch(r"-[A-Za-z]*c|-e", word):
                return Code(language, command.arguments[number + 1])
        return Code(language, command.heredoc) if command.heredoc is not None else None
    if command.heredoc is None or command.name not in ("cat", "tee"):
        return None
    paths = command.targets if command.name == "cat" else command.arguments
    where = next((path for path in paths if not path.startswith("-")), None)
    return Code(_language_of(where or ""), command.heredoc, where)


def _language_of(path: str) -> str:
    ending = path.rpartition(".")[2].lower()
    known = {
        "py": "python",
        "sh": "shell",
        "bash": "shell",
        "js": "javascript",
        "mjs": "javascript",
    }
    return known.get(ending, "text")


def _used_by(code: Code) -> set[str]:
    if code.language == "shell":
        return {name for command in commands_of(code.text) for name in _used_by_command(command)}
    if code.language == "python":
        return _used_by_python(code.text)
    return set()


def _used_by_command(command: Command) -> Iterator[str]:
    name, arguments = command.name, command.arguments
    fetches = any(word in _INSTALLERS.get(name, ()) for word in arguments[:3])
    if name in _FETCHERS or fetches or installs(command) is not None:
        yield "external"
    writes_script = name == "cat" and command.heredoc is not None
    if name in _FILE_PROGRAMS or (name in _FILTERS and not command.piped and not writes_script):
        yield "files"
    if name in _CALCULATORS:
        yield "computation"


def installs(command: Command) -> tuple[str, tuple[str, ...]] | None:
    """The installer (pip, apt, npm) and the packages that a command asks it for."""
    name, arguments = command.name, list(command.arguments)
    if re.fullmatch(r"python[\d.]*", name) and arguments[:2] == ["-m", "pip"]:
        name, arguments = "pip", arguments[2:]
    elif name == "uv" and arguments[:1] == ["pip"]:
        name, arguments = "pip", arguments[1:]
    kind = {"uv": "pip", "apt": "apt", "apt-get": "apt", "npm": "npm"}.get(name)
    kind = "pip" if re.fullmatch(r"pip[\d.]*", name) else kind
    verbs = {"install", "add"} | ({"i"} if kind == "npm" else set())
    at = next((n for n, word in enumerate(arguments) if not word.startswith("-")), None)
    if kind is None or at is None or arguments[at] not in verbs:
        return None
    return kind, tuple(_packages(arguments[at + 1 :]))


_TAKES_VALUE = words(
    "-r --requirement -c --constraint -i --index-url --extra-index-url -t --target -o -f "
    "--find-links --prefix --root --timeout"
)


def _packages(words: list[str]) -> Iterator[str]:
    skip = False
    for word in words:
        if skip or word.startswith("-"):
            skip = not skip and word in _TAKES_VALUE
            continue
        plain = re.split(r"[\[<>=!~;]", word, maxsplit=1)[0]
        plain = plain if word.startswith("@") else plain.split("@", 1)[0]
        if plain and "/" not in plain.removeprefix("@") and not plain.startswith("."):
            yield plain


def _used_by_python(text: str) -> set[str]:
    try:
        names, shell = python_uses(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        bare = _STRINGS.sub("''", text)
        return {name for name, pattern in _LOOSE.items() if pattern.search(bare)}
    found = {name for each in names for name in _used_by_name(each)}
    for line in shell:
        found |= {use for code in shell_code(line) for use in _used_by(code)}
    return found


def _used_by_name(name: str) -> Iterator[str]:
    top, last = name.split(".", 1)[0], name.rpartition(".")[2]
    if top in _EXTERNAL_MODULES or name in _EXTERNAL_CALLS:
        yield "external"
    table = top == "pandas" and last.startswith(("read_", "to_"))
    known = name in _FILE_CALLS or top in _FILE_MODULES or name.startswith("os.path.")
    if known or table or last in _FILE_CALL_ENDS:
        yield "files"
    elif top in _COMPUTING_MODULES or name in ("range", "while", "**", "pow", "numpy.()"):
        yield "computation"


class _Names(ast.NodeVisitor):
    """Collects what code calls and imports, aliases resolved: `np.load` is `numpy.load`."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.shell: list[str] = []
        self._aliases = dict(_SHORT_NAMES)

    def visit_Import(self, node: ast.Import) -> None:
        for item in node.names:
            self._aliases[item.asname or item.name.split(".")[0]] = (
                item.name if item.asname else item.name.split(".")[0]
            )
            self._imported(item.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.module is None or node.level:
            return
        for item in node.names:
            self._aliases[item.asname or item.name] = f"{node.module}.{item.name}"
        self._imported(node.module)

    def visit_Call(self, node: ast.Call) -> None:
        name = self._dotted(node.func)
        if name is not None:
            self.names.add(name)
            if name.startswith("numpy.") and name not in _FILE_CALLS:
                self.names.add("numpy.()")
            if name in _SHELL_CALLS:
                self.shell.extend(_shell_words(node))
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        self.names.add("while")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if isinstance(node.op, ast.Pow) or (_is_number(node.left) and _is_number(node.right)):
            self.names.add("**")
        self.generic_visit(node)

    def _imported(self, module: str) -> None:
        """An import alone shows use of what has to be brought in, not of the library's own."""
        if module.split(".", 1)[0] in _EXTERNAL_MODULES:
            self.names.add(module)

    def _dotted(self, node: ast.expr) -> str | None:
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if isinstance(node, ast.Name):
            parts.append(self._aliases.get(node.id, node.id))
        elif not parts:
            return None
        else:
            parts.append("")  # a method of some value: `Path(x).read_text`
        return ".".join(reversed(parts))


def _is_number(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        return _is_number(node.left) and _is_number(node.right)
    if isinstance(node, ast.UnaryOp):
        return _is_number(node.operand)
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float | complex)


def _shell_words(node: ast.Call) -> Iterator[str]:
    """The command that a call of the `subprocess` kind starts, where it is written out."""
    first = node.args[0] if node.args else None
    if isinstance(first, ast.Constant) and isinstance(first.value, str):
        yield first.value
    elif isinstance(first, ast.List):
        words = []
        for item in first.elts:
            fixed = isinstance(item, ast.Constant) and isinstance(item.value, str)
            words.append(str(item.value) if fixed and isinstance(item, ast.Constant) else "_")
        if words[:1] == ["_"]:  # sys.executable
            words[0] = "python"
        yield " ".join(word if re.fullmatch(r"[\w./=:-]+", word) else "_" for word in words)
