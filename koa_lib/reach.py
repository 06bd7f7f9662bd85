"""What a result depends on beside its inputs: the code that a function reaches, and the libraries which that
code uses.

Found from the import graph, never listed by hand: a module counts with all that it imports, also inside
functions. Docstrings, comments and layout do not count.
"""

import ast
import hashlib
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
# Libraries whose version can change a number, by the name that code imports.
LIBRARIES = {"PIL": "pillow", "imagehash": "imagehash", "lightly": "lightly", "numpy": "numpy",
             "open_clip": "open_clip_torch", "openvino": "openvino", "pandas": "pandas", "pydicom": "pydicom",
             "scipy": "scipy",
             "skimage": "scikit-image", "sklearn": "scikit-learn", "statsmodels": "statsmodels",
             "timm": "timm", "tokenizers": "tokenizers", "torch": "torch", "torchvision": "torchvision",
             "transformers": "transformers", "xgboost": "xgboost"}


@dataclass(frozen=True)
class _Module:
    """A module's digest, the modules of the package that it imports, and the libraries."""

    digest: str
    inside: frozenset
    libraries: frozenset


def reached(*functions):
    """What some functions reach.

    Returns
    -------
    dict
        `code`, 12 hex digits over the syntax trees of all reached modules and the files of the package that
        they name; `libraries`, name to version of those that can change a number. A function from outside the
        package reaches nothing.
    """
    names = frozenset(name for name in map(_home, functions) if _file(PACKAGE, name))
    digest, libraries = _closure(PACKAGE, names)
    return {"code": digest, "libraries": {name: versions()[name] for name in libraries if name in versions()}}


@cache
def versions():
    """Versions of the installed libraries that can change a number."""
    found = {}
    for name in LIBRARIES.values():
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _home(function):
    while isinstance(function, partial):
        function = function.func
    return function.__module__


@cache
def _closure(package, names):
    found, waiting = {}, set(names)
    while waiting:
        name = waiting.pop()
        found[name] = _read(_file(package, name), package)
        waiting |= found[name].inside - found.keys()
    digest = hashlib.sha256("".join(f"{name}:{found[name].digest}\n" for name in sorted(found)).encode())
    return digest.hexdigest()[:12], sorted(set().union(*(module.libraries for module in found.values())))


def _file(package, name):
    # The file of a dotted name; None for what is no module of the package.
    first, *parts = name.split(".")
    path = package.joinpath(*parts)
    places = (path / "__init__.py", path.with_suffix(".py") if parts else path / "__init__.py")
    return next((place for place in places if first == package.name and place.is_file()), None)


@cache
def _read(path, package):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = set(_imported(tree, package))
    digest = hashlib.sha256(ast.dump(_without_docstrings(tree)).encode())
    for file in _named_files(tree, path.parent):
        digest.update(file.name.encode() + file.read_bytes())
    libraries = {LIBRARIES[name.split(".")[0]] for name in imported if name.split(".")[0] in LIBRARIES}
    return _Module(digest.hexdigest(), frozenset(name for name in imported if _file(package, name)),
                   frozenset(libraries))


def _imported(tree, package):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # `from koa_lib import stats` means a module, `from koa_lib.stats import interval` something
            # in one.
            within = [f"{node.module}.{alias.name}" for alias in node.names
                      if _file(package, f"{node.module}.{alias.name}")]
            yield from [node.module, *within]


def _without_docstrings(tree):
    for node in ast.walk(tree):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if documented and ast.get_docstring(node, False) is not None:
            node.body = node.body[1:]
    return tree


def _named_files(tree, folder):
    # Files, and folders of files, that lie beside a module and are named in it: weights, templates,
    # configurations.
    names = {node.value for node in ast.walk(tree)
             if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    there = {entry.name: entry for entry in folder.iterdir()}
    for name in sorted(names & there.keys()):
        place = there[name]
        files = (sorted(place.iterdir()) if place.is_dir() and not (place / "__init__.py").exists()
                 else [place])
        yield from (file for file in files if file.is_file() and file.suffix != ".py")
