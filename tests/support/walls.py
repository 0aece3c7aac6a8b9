"""The walls between the parts of the package, read off the imports of one source file.

``violations(path, source)`` is the whole checker; ``tests/test_walls.py`` runs it over the tree and
proves on bad snippets that every wall can fail.
"""

import ast
from collections.abc import Iterator
from typing import NamedTuple

TORCH_FAMILY = frozenset({"torch", "pyro", "pyroapi", "accelerate", "geomloss", "torchvision"})
JAX_FAMILY = frozenset({"jax", "jaxlib", "numpyro", "optax", "ott", "equinox", "blackjax"})
# POT imports every array library it finds, so a module-level import of it is an import of both.
LOADS_BOTH = frozenset({"ot"})
HOSTS = frozenset({"pyro", "numpyro", "bayesdiv.pyro", "bayesdiv.numpyro"})
MAX_LINES = 400

# What a part may not import, at any depth of its code.
FORBIDDEN: dict[str, frozenset[str]] = {
    "bayesdiv/": frozenset({"bayesdiv.models", "bayesdiv.inference", "models", "inference"}),
    "bayesdiv/divergences/": HOSTS | {"bayesdiv.objectives", "bayesdiv.diagnostics"},
    "bayesdiv/objectives/": HOSTS,
    "bayesdiv/pyro/": frozenset({"numpyro", "bayesdiv.numpyro"}),
    "bayesdiv/numpyro/": frozenset({"pyro", "bayesdiv.pyro"}),
    "models/": frozenset({"bayesdiv.inference", "inference"}),
    "inference/": frozenset({"bayesdiv.models", "models"}),
}
# Nothing that is installed leans on what is not.
NOT_INSTALLED = frozenset({"tests", "examples", "benchmarks"})
# Parts that serve both backends: they load neither at import, and inside functions only if allowed.
SHARED = ("bayesdiv/divergences/", "bayesdiv/objectives/")
# The one torch loop: at the package's root, but torch's alone.
TRAINING = "bayesdiv/training.py"


class Import(NamedTuple):
    """One imported name, with ``in_function`` where the import waits for a call."""

    name: str
    line: int
    in_function: bool


def module_name(path: str) -> str:
    """The dotted name under which ``path``, relative to the repository's root, is installed."""
    parts = path.removesuffix(".py").split("/")
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(["bayesdiv", *parts] if parts[0] in ("models", "inference") else parts)


def imports_of(path: str, source: str) -> Iterator[Import]:
    """Every import of ``source``; ``from a import b`` counts as ``a.b``, relative ones resolved.

    ``importlib.import_module("a")`` counts too. Imports under ``if TYPE_CHECKING:`` load nothing,
    so they count as in a function: the walls between parts still see them.
    """
    package = module_name(path).split(".")
    if not path.endswith("__init__.py"):
        package = package[:-1]

    def visit(node: ast.AST, *, in_function: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, in_function)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(f"{prefix}.{alias.name}", node.lineno, in_function)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            if node.args and isinstance(node.args[0], ast.Constant):
                yield Import(str(node.args[0].value), node.lineno, in_function)
        deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            # Only the branch taken by a type checker is deferred; an else branch runs.
            typing_only = (
                isinstance(node, ast.If)
                and child in node.body
                and ast.unparse(node.test).endswith("TYPE_CHECKING")
            )
            yield from visit(child, in_function=in_function or deferred or typing_only)

    yield from visit(ast.parse(source), in_function=False)


def is_under(name: str, roots: frozenset[str]) -> bool:
    """Whether the dotted ``name`` is one of ``roots`` or lies inside one."""
    return any(name == root or name.startswith(root + ".") for root in roots)


def libraries_of(name: str) -> frozenset[str]:
    """``{"torch"}``, ``{"jax"}``, both or neither: the array libraries that importing loads."""
    torch_roots = TORCH_FAMILY | LOADS_BOTH | {"bayesdiv.pyro"}
    jax_roots = JAX_FAMILY | LOADS_BOTH | {"bayesdiv.numpyro"}
    found = {"torch"} if is_under(name, torch_roots) else set()
    return frozenset(found | ({"jax"} if is_under(name, jax_roots) else set()))


def is_shared(path: str) -> bool:
    """Whether ``path`` serves both backends: a shared part, or a file at the package's own root."""
    at_root = path.startswith("bayesdiv/") and path.count("/") == 1 and path != TRAINING
    return at_root or path.startswith(SHARED)


def violations(path: str, source: str, *, may_defer: bool = False) -> list[str]:
    """What ``source``, the text of the file at ``path``, does against the walls; empty if nothing.

    Parameters
    ----------
    path
        Relative to the repository's root, with forward slashes.
    source
        Python text.
    may_defer
        Whether the file is on the list of those that choose a backend inside a function.
    """
    found = []
    at_import: dict[str, Import] = {}
    deferred: dict[str, Import] = {}
    for entry in imports_of(path, source):
        for part, forbidden in FORBIDDEN.items():
            if path.startswith(part) and is_under(entry.name, forbidden):
                found.append(f"{path}:{entry.line}: {part} may not import {entry.name}")
        if is_under(entry.name, NOT_INSTALLED):
            found.append(f"{path}:{entry.line}: {entry.name} is not installed with the package")
        if entry.in_function and is_under(entry.name, LOADS_BOTH):
            continue
        for library in libraries_of(entry.name):
            (deferred if entry.in_function else at_import).setdefault(library, entry)

    if len(at_import) == 2:
        lines = " and ".join(str(entry.line) for entry in at_import.values())
        found.append(f"{path}: imports both torch and JAX when it is imported (lines {lines})")
    if is_shared(path):
        found += [
            f"{path}:{entry.line}: loads {library} at import; shared modules load neither"
            for library, entry in at_import.items()
        ]
    if not may_defer:
        found += [
            f"{path}:{entry.line}: imports {library} in a function; only the files listed in "
            "tests/test_walls.py may choose a backend there"
            for library, entry in deferred.items()
            if is_shared(path) or (at_import and library not in at_import) or len(deferred) == 2
        ]
    return found
