"""Nothing that comes out of a row is run, imported or unpickled: by the syntax tree of the whole package."""

from __future__ import annotations

import ast
from pathlib import Path

from soak import say

import pgqueue
from pgqueue import Registry

PACKAGE = Path(pgqueue.__file__).parent
CALLS = {"eval", "exec", "compile", "__import__", "execfile"}
MODULES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle", "joblib", "yaml"}
IMPORTERS = {"import_module", "load_source", "run_path", "run_module", "resolve_name", "import_string"}
# What may, and why it is not about rows.
ALLOWED = {
    ("__init__.py", "import_module"): "public names are imported when first used, from a table in the file",
    ("testing/__init__.py", "import_module"): "the same",
    ("cli/applications.py", "import_module"): "--app, said by whoever starts the process",
    ("jobs/mail/rendering.py", "import_module"): "jinja2, where the extra is installed",
    ("resources.py", "import_module"): "a factory of the parent's registry, in its own child process",
    ("resources.py", "pickle"): "the same, where it has no name",
    ("resources.py", "loads"): "the same",
    ("worker/isolation.py", "pickle"): "an executor of the parent's registry, to its own child process",
    ("worker/isolated.py", "pickle"): "the child's side of it",
    ("worker/isolated.py", "loads"): "the same",
    (
        "worker/backends/remote_task.py",
        "import_module",
    ): "an executor of the worker's registry, on its cluster",
}


def found_in(tree):
    """What of the above a module's code does: imported modules, calls by name or attribute."""
    pickles = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name for alias in node.names if (name := alias.name.partition(".")[0]) in MODULES)
            pickles |= {alias.asname or alias.name for alias in node.names if alias.name in MODULES}
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").partition(".")[0]
            if module in MODULES:
                yield module
        elif isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Name) and function.id in CALLS | IMPORTERS:
                yield function.id
            elif isinstance(function, ast.Attribute):
                owner = function.value.id if isinstance(function.value, ast.Name) else ""
                if function.attr in IMPORTERS or (owner == "builtins" and function.attr in CALLS):
                    yield function.attr
                elif owner in pickles and function.attr in {"load", "loads", "Unpickler"}:
                    yield "loads"


def test_the_look_finds_what_it_looks_for():
    source = """
import pickle as p, yaml.nodes
from marshal import loads
eval("1"); builtins.exec("x"); p.loads(b""); importlib.import_module(row.type); __import__(row.type)
re.compile("x"); connection.execute("x"); json.loads("{}")
"""
    assert sorted(found_in(ast.parse(source))) == sorted(
        ["pickle", "yaml", "marshal", "eval", "exec", "loads", "import_module", "__import__"]
    )


def test_no_code_of_the_package_evaluates_unpickles_or_imports_by_name_save_where_it_is_said_why():
    modules = [path for path in PACKAGE.rglob("*.py") if "_migrations" not in path.parts]
    found = {
        (path.relative_to(PACKAGE).as_posix(), what)
        for path in modules
        for what in found_in(ast.parse(path.read_text()))
    }
    assert found - ALLOWED.keys() == set()
    assert ALLOWED.keys() - found == set()  # and none is allowed that is not needed any more
    left = len(found - ALLOWED.keys())
    say(f"{len(modules)} modules unpickle or import by name in {len(found)} places, {left} of them not explained")


def test_a_type_that_is_a_dotted_name_is_a_type_like_any_other_and_nobody_executes_it():
    registry = Registry()
    registry.register("known", lambda _job, _context: None)
    for name in ("os.system", "builtins.eval", "pgqueue.cli:main", "subprocess.run"):
        assert registry.get(name) is None
    assert [registration.type for registration in registry] == ["known"]
