"""The house rules as functions from source text to a list of complaints; test_house.py applies them.

Each takes a `Source` (or all of them) and gives sentences that name the file, the line, what was found and
what is right. No rule imports the code that it judges.
"""

from __future__ import annotations

import ast
import fnmatch
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80
MAX_NESTING = 3

ROOMS = {"mopd", "trainer", "data", "analysis", "diversity", "experiments", "benchmarks", "tests"}
# Which rooms a room may look down to; a room that is not named (tests, benchmarks) may look anywhere.
FLOORS = {room: {room, "mopd"} for room in ("mopd", "trainer", "data", "analysis", "diversity")}
# Libraries that may be imported through their door only, by the rooms of FLOORS and by experiments.
DOORS = {
    "ray": ["trainer/cluster.py"],
    "vllm": ["trainer/workers/sampler*.py"],
    "hydra": ["trainer/main.py", "trainer/config/*.py"],
    "omegaconf": ["trainer/main.py", "trainer/config/*.py"],
    "wandb": ["trainer/trackers/wandb.py"],
    "mlflow": ["trainer/trackers/mlflow.py"],
    "tensorboard": ["trainer/trackers/tensorboard.py"],
    "tensorboardX": ["trainer/trackers/tensorboard.py"],
    "torch.utils.tensorboard": ["trainer/trackers/tensorboard.py"],
}
BEHIND_DOORS = {*FLOORS, "experiments"}

Function = ast.FunctionDef | ast.AsyncFunctionDef
NESTING = (ast.For, ast.AsyncFor, ast.While, ast.If, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match)
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


@dataclass(frozen=True)
class Source:
    """A Python file: its path from the root of the project, with slashes, and its text."""

    path: str
    text: str

    @property
    def tree(self) -> ast.Module:
        """The parsed text."""
        return ast.parse(self.text, self.path)

    @property
    def room(self) -> str:
        """The room it lies in; the file's own name at the root."""
        return self.path.split("/")[0]

    @property
    def module(self) -> str:
        """Its dotted name; that of the package for an __init__.py."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def project_files(root: Path) -> list[str]:
    """Every file of the project: what git does not ignore, tracked or not; all where there is no git."""
    git = ["git", "-C", str(root)]
    try:
        top = subprocess.run([*git, "rev-parse", "--show-toplevel"], capture_output=True, text=True)
    except FileNotFoundError:
        top = None
    if top and top.returncode == 0 and Path(top.stdout.strip()) == root.resolve():
        command = [*git, "ls-files", "-coz", "--exclude-standard"]
        names = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split("\0")
        return sorted(name for name in names if name and (root / name).is_file())
    return sorted(_walk(root))


def _walk(root: Path) -> Iterator[str]:
    skipped = {"__pycache__", "outputs", "rollouts", "checkpoints", "runs", "build", "dist"}
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in skipped and (name == ".ci" or name[0] != ".")]
        yield from (Path(folder, name).relative_to(root).as_posix() for name in files)


def sources(root: Path) -> list[Source]:
    """Every Python file of the project."""
    paths = [name for name in project_files(root) if name.endswith(".py")]
    return [Source(path, (root / path).read_text(encoding="utf-8")) for path in paths]


# ------------------------------------------------------------------ imports


def imports(source: Source) -> Iterator[tuple[int, str]]:
    """Every import, wherever it stands, as (line, dotted name); `from a import b` gives a.b."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(source, node)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and (name := _dynamic_import(node)):
            yield node.lineno, name


def _absolute(source: Source, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = source.module.split(".")
    above = node.level - source.path.endswith("/__init__.py")
    return ".".join([*package[: len(package) - above], *([node.module] if node.module else [])])


def _dynamic_import(call: ast.Call) -> str | None:
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if function not in {"import_module", "__import__"} or not call.args:
        return None
    argument = call.args[0]
    return argument.value if isinstance(argument, ast.Constant) and isinstance(argument.value, str) else None


def _is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def check_floors(source: Source) -> Iterator[str]:
    """A room imports only itself and the rooms below it."""
    allowed = FLOORS.get(source.room)
    if allowed is None:
        return
    for line, name in imports(source):
        room = name.split(".")[0]
        if room in ROOMS - allowed:
            below = " and ".join(sorted(allowed))
            yield f"{source.path}:{line} imports {name}; {source.room}/ may look at {below} only"


def check_doors(source: Source) -> Iterator[str]:
    """A heavy library is imported through its door only; lazy imports count."""
    if source.room not in BEHIND_DOORS:
        return
    for line, name in imports(source):
        for library, doors in DOORS.items():
            if _is_in(name, library) and not any(fnmatch.fnmatch(source.path, door) for door in doors):
                yield f"{source.path}:{line} imports {name}; {library} has one door: {', '.join(doors)}"


def check_cycles(all_sources: list[Source]) -> list[str]:
    """No module of the project imports itself in a circle; imports inside functions count."""
    modules = {source.module for source in all_sources}
    graph = {source.module: set(_project_imports(source, modules)) for source in all_sources}
    complaints, done = [], set[str]()
    for start in sorted(graph):
        if start not in done and (cycle := _find_cycle(graph, start, done)):
            complaints.append("import cycle: " + " -> ".join(cycle))
    return complaints


def _project_imports(source: Source, modules: set[str]) -> Iterator[str]:
    for _, name in imports(source):
        while name and name not in modules:
            name = name.rpartition(".")[0]
        if name and name != source.module:
            yield name


def _find_cycle(graph: dict[str, set[str]], start: str, done: set[str]) -> list[str] | None:
    """Depth first from `start`; the first circle met, as a path that ends where it began."""
    path: list[str] = []
    todo: list[tuple[str, bool]] = [(start, False)]
    while todo:
        module, leaving = todo.pop()
        if leaving:
            path.pop()
            done.add(module)
        elif module in path:
            done.update(path)
            return [*path[path.index(module) :], module]
        elif module not in done:
            path.append(module)
            todo.append((module, True))
            todo.extend((name, False) for name in sorted(graph[module]))
    return None


# ------------------------------------------------------------------ sizes


def functions(tree: ast.Module) -> Iterator[Function]:
    """Every function and method, inner ones too."""
    for node in ast.walk(tree):
        if isinstance(node, Function):
            yield node


def check_sizes(source: Source) -> Iterator[str]:
    """No file over 400 lines, no function over 80."""
    lines = len(source.text.splitlines())
    if lines > MAX_FILE_LINES:
        yield f"{source.path} has {lines} lines, at most {MAX_FILE_LINES}: split it by what it knows"
    for function in functions(source.tree):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        if length > MAX_FUNCTION_LINES:
            where = f"{source.path}:{function.lineno} {function.name}"
            yield f"{where} has {length} lines, at most {MAX_FUNCTION_LINES}"


def check_nesting(source: Source) -> Iterator[str]:
    """No statement nested more than three deep.

    An elif is as deep as its if; an inner function or class begins anew.
    """
    todo: list[tuple[ast.AST, int]] = [(source.tree, 0)]
    while todo:
        node, depth = todo.pop()
        for child in ast.iter_child_nodes(node):
            deeper = depth
            if isinstance(child, SCOPES):
                deeper = 0
            elif isinstance(child, NESTING) and not _is_elif(node, child):
                deeper = depth + 1
            if isinstance(child, ast.stmt) and depth < deeper == MAX_NESTING + 1:
                kind = type(child).__name__.lower()
                yield f"{source.path}:{child.lineno} a {kind} is nested {deeper} deep; at most {MAX_NESTING}"
            todo.append((child, deeper))


def _is_elif(parent: ast.AST, child: ast.AST) -> bool:
    if not (isinstance(parent, ast.If) and isinstance(child, ast.If) and parent.orelse == [child]):
        return False
    return parent.col_offset == child.col_offset  # an `if` inside `else:` stands further to the right


# ------------------------------------------------------------------ docstrings


def check_docstrings(source: Source) -> Iterator[str]:
    """Every public module, class, function and method of mopd/ says what it is."""
    if source.room == "mopd":
        yield from _undocumented(source, source.tree, source.module)


def _undocumented(source: Source, node: ast.Module | ast.ClassDef | Function, name: str) -> Iterator[str]:
    if not ast.get_docstring(node):
        line = 1 if isinstance(node, ast.Module) else node.lineno
        yield f"{source.path}:{line} {name} has no docstring; all public names of mopd/ have one"
    if isinstance(node, Function):
        return
    for child in node.body:
        if isinstance(child, (ast.ClassDef, Function)) and not _is_private(child):
            yield from _undocumented(source, child, f"{name}.{child.name}")


def _is_private(node: ast.ClassDef | Function) -> bool:
    decorators = {ast.unparse(decorator).split("(")[0] for decorator in node.decorator_list}
    repeated = any(name.split(".")[-1] in {"overload", "setter", "override"} for name in decorators)
    return node.name.startswith("_") or repeated
