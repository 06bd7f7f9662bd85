"""The house: which room may use which, drawn from the imports of the code, those inside functions too."""

import ast
from graphlib import CycleError, TopologicalSorter

import pytest

from koa_lib.profile import ROOT

TOP = "top"  # the modules of the package itself
# What a room may import beside itself; `cli` alone may import all.
ALLOWED = {
    TOP: {"data", "phantoms", "images"},
    "images": {TOP},
    "data": {TOP, "images"},
    "phantoms": {TOP, "images", "data"},
    "bench": {TOP, "images", "data", "phantoms", "grading"},  # timed is what a user calls
    "grading": {TOP, "images", "data"},  # lists of files are walked as cohorts are
    "paper": {TOP, "data"},
    "systems": {TOP, "images", "data", "phantoms"},
    "report": {TOP, "images", "data", "paper", "phantoms", "systems"},
}


def modules():
    """Dotted name of every module to the names of those that it imports."""
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
             for path in (ROOT / "koa_lib").rglob("*.py")}
    found = {}
    for name, path in files.items():
        used = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                used |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                used |= {one if one in files else node.module for one in inner}
        found[name] = {other for other in used & files.keys() if other not in ("koa_lib", name)}
    return found


def room(name):
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ALLOWED else TOP


def test_no_module_depends_on_itself_through_others():
    try:
        TopologicalSorter(modules()).prepare()
    except CycleError as error:
        pytest.fail(f"these modules import each other in a circle: {' -> '.join(error.args[1])}")


def test_rooms_use_only_what_lies_below_them():
    wrong = {f"{name} imports {other}" for name, used in modules().items() if name != "koa_lib.cli"
             for other in used if room(other) not in ALLOWED[room(name)] | {room(name)}}
    assert not wrong


def test_nothing_is_named_after_no_noun():
    assert not {name for name in modules() if name.split(".")[-1] in ("utils", "helpers", "common", "misc")}
