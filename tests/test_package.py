"""What a user meets first: import, help, version."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import liverseg_tf as ls


def _run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_loads_nothing_heavy():
    loaded = _run(
        "import sys, liverseg_tf; print([m for m in ('tensorflow','keras','numpy','nibabel') if m in sys.modules])"
    )
    assert loaded.strip() == "[]"


def test_onednn_is_on_unless_the_user_turned_it_off():
    code = "import liverseg_tf, os; print(os.environ['TF_ENABLE_ONEDNN_OPTS'])"
    unset = "import os; os.environ.pop('TF_ENABLE_ONEDNN_OPTS', None); "
    off = "import os; os.environ['TF_ENABLE_ONEDNN_OPTS'] = '0'; "
    assert (_run(unset + code), _run(off + code)) == ("1\n", "0\n")


def test_help_loads_nothing_heavy():
    code = (
        "import sys\nfrom liverseg_tf.cli.main import main\nstatus = main(['--help'])\n"
        "print([m for m in ('tensorflow', 'keras', 'numpy', 'rich') if m in sys.modules], status)"
    )
    assert _run(code).splitlines()[-1] == "[] 0"


def test_every_public_name_resolves():
    for name in ls.__all__:
        assert getattr(ls, name) is not None


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        ls.nonsense  # noqa: B018


def test_public_functions_are_not_hidden_by_sub_packages():
    import liverseg_tf.evaluation
    import liverseg_tf.training  # noqa: F401

    assert callable(ls.evaluate)
    assert callable(ls.train)


def test_every_package_is_installed():
    import tomllib
    from pathlib import Path

    root = Path(__file__).resolve().parent.parent
    listed = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(p.parent.relative_to(root).parts) for p in (root / "liverseg_tf").rglob("__init__.py")}
    assert set(listed) == found | {"liverseg_tf.savedmodels"}


def test_an_editor_is_told_the_public_names_and_no_others():
    assert set(dir(ls)) == set(ls.__all__)
    assert {"Predictor", "train", "CTVolume"} <= set(dir(ls))


def _imported(node: ast.AST) -> list[str]:
    """The rooms (sub-packages, and modules at the top) that an import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[1] for alias in node.names if alias.name.startswith("liverseg_tf.")]
    if not isinstance(node, ast.ImportFrom):
        return []
    assert node.level == 0, "a relative import hides the room that it names"
    if node.module == "liverseg_tf":
        return [alias.name for alias in node.names if alias.name != "__version__"]
    return [node.module.split(".")[1]] if (node.module or "").startswith("liverseg_tf.") else []


def test_imports_run_one_way():
    """Late imports included. The order of the rooms in docs/architecture.md is that of the arrows."""
    package = Path(ls.__file__).parent
    imports = {}
    for path in package.rglob("*.py"):
        room = path.relative_to(package).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            imports.setdefault(room, set()).update(_imported(node))
    for room, others in imports.items():
        others.discard(room)
    assert len(imports) > 10
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the rooms
    table = (package.parent / "docs" / "architecture.md").read_text("utf-8").split("## The map")[1].split("\n## ")[0]
    rows = [re.findall(r"`(\w+)", line.split("|")[1]) for line in table.splitlines() if line.startswith("| `")]
    floor = {room: number for number, row in enumerate(rows) for room in row}
    rooms = {room for room in imports if not room.startswith("__")}
    assert rooms == set(floor)
    against = [f"{room} -> {other}" for room in rooms for other in imports[room] if floor[other] > floor[room]]
    assert not against


def _is_long(function: ast.FunctionDef) -> bool:
    """More than 60 lines of code, the docstring not counted, or more than 8 parameters."""
    first = function.body[1 if ast.get_docstring(function) and len(function.body) > 1 else 0]
    names = [one.arg for one in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return function.end_lineno - first.lineno >= 60 or len(set(names) - {"self", "cls"}) > 8


def test_a_long_function_has_a_reason():
    package = Path(ls.__file__).parent
    text = (package.parent / "docs" / "architecture.md").read_text("utf-8")
    reasons = text.split("| function | reason |")[1].split("\n\n")[0]
    long = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef) and _is_long(node):
                long.add(node.name)
    assert long
    assert not {name for name in long if not re.search(rf"\b{name}`", reasons)}


def test_the_architecture_names_files_that_exist():
    package = Path(ls.__file__).parent
    text = (package.parent / "docs" / "architecture.md").read_text("utf-8")
    named = set(re.findall(r"`([a-z][\w/]*\.(?:py|j2))`", text))
    assert len(named) > 30
    assert not {name for name in named if not [*package.glob(f"**/{name}"), *package.parent.glob(name)]}


def test_an_old_name_works_and_tells_the_new_one():
    from liverseg_tf.deprecation import LiverSegDeprecationWarning

    with pytest.warns(
        LiverSegDeprecationWarning, match="liverseg_tf.Variations will be removed in .* use TestTimeAugmentation"
    ):
        assert ls.Variations is ls.TestTimeAugmentation
    assert "Variations" not in dir(ls)
