"""The house rules that no notebook can check of itself: sources, import order, light imports, no open merge."""

import ast
import json
import re
import subprocess
import sys

import pytest
from in_step import LIVE, ROOT, open_merges, without_live_views

NOTEBOOKS = sorted(p for p in (ROOT / "nbs").glob("*.ipynb"))
PACKAGE = ROOT / "steel_seg"
# Dotted name below steel_seg, such as "rle" or "look.tune", to its file.
MODULES = {
    ".".join(p.relative_to(PACKAGE).with_suffix("").parts): p
    for p in sorted(PACKAGE.rglob("*.py"))
    if not p.stem.startswith("_")
}


def source_of(path):
    "The notebook that a module says it is made from."
    return re.search(r"File to edit: (?:\.\./)+nbs/(\S+\.ipynb)", path.read_text(encoding="utf-8"))


def exports(nb):
    "The module that a notebook exports, or None."
    for cell in json.loads(nb.read_text(encoding="utf-8"))["cells"]:
        m = re.search(r"^#\|\s*default_exp ([\w.]+)", "".join(cell["source"]), re.M)
        if m:
            return m[1]


NUMBER = {exports(nb): int(nb.name[:2]) for nb in NOTEBOOKS if exports(nb)}


def own_module(parts):
    """The dotted name of the package's module that an import of steel_seg.PARTS reads, or None where it is only the
    package."""
    for end in (2, 1):
        name = ".".join(parts[:end])
        if name in MODULES:
            return name
    return None


def imported(path):
    "Names of the package's modules and of other top packages that a module imports, anywhere in it."
    own, others = set(), set()
    folder = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            paths = [a.name.split(".") for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            # nbdev writes `from steel_seg.x` as `from .x`, or `from ..x` in a sub-package.
            above = ["steel_seg", *folder[: len(folder) + 1 - node.level]] if node.level else []
            module = [*above, *(node.module.split(".") if node.module else [])]
            paths = [[*module, a.name] for a in node.names]
        else:
            continue
        for top, *rest in paths:
            if top == "steel_seg":
                own.add(own_module(rest))
            else:
                others.add(top)
    return own - {None}, others


def test_there_are_modules():
    assert len(MODULES) > 20 and set(NUMBER) == set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_module_has_its_notebook(name):
    found = source_of(MODULES[name])
    assert found and (ROOT / "nbs" / found[1]).is_file(), f"{name} has no notebook it comes from"
    assert exports(ROOT / "nbs" / found[1]) == name


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name):
    own, others = imported(MODULES[name])
    above = {o for o in own if NUMBER[o] >= NUMBER[name]}
    assert not above, f"{name} ({NUMBER[name]:02}) imports {above}, which stand at or above it"
    if NUMBER[name] // 10 in (0, 1, 2, 4, 5):
        assert "torch" not in others, f"{name} is on the numpy side and imports torch"
    if NUMBER[name] // 10 < 5:
        widgets = others & {"ipywidgets", "IPython", "anywidget"}
        assert not widgets, f"{name} stands below the widgets and imports {widgets}"
    assert not others & {"fastcore", "nbdev", "pytest", "hypothesis", "pycocotools"}, (
        f"{name} needs a tool of development at run time"
    )


@pytest.mark.parametrize("name", MODULES)
def test_module_says_what_it_is_for(name):
    doc = ast.get_docstring(ast.parse(MODULES[name].read_text(encoding="utf-8")))
    assert doc and len(doc.splitlines()) == 1, f"{name} has no one-line docstring"


def test_public_names_are_documented():
    bare = []
    for name, path in MODULES.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if (
                isinstance(node, (ast.FunctionDef, ast.ClassDef))
                and not node.name.startswith("_")
                and not ast.get_docstring(node)
            ):
                bare.append(f"{name}.{node.name}")
    assert not bare, f"no docstring: {bare}"


def test_no_open_merge():
    assert not list(open_merges(ROOT))


def test_open_merge_is_found(tmp_path):
    (tmp_path / "nbs").mkdir()
    (tmp_path / "nbs/a.ipynb").write_text(
        '{\n "cells": [\n<<<<<<< HEAD\n  {}\n=======\n  {"a": 1}\n>>>>>>> other\n ]\n}'
    )
    (tmp_path / "nbs/b.ipynb").write_text('{"cells": [')
    assert len(list(open_merges(tmp_path))) == 2


def test_no_saved_widget_state_and_no_error():
    for nb in NOTEBOOKS:
        content = json.loads(nb.read_text(encoding="utf-8"))
        assert "widgets" not in content["metadata"], f"{nb.name} carries widget state"
        assert "kernelspec" in content["metadata"], f"{nb.name} names no kernel: JupyterLab would ask for one"
        for cell in content["cells"]:
            assert not any(o["output_type"] == "error" for o in cell.get("outputs", [])), f"{nb.name}: a saved error"


def test_live_views_and_bars_are_taken_out_and_pictures_stay():
    outputs = [
        {"output_type": "display_data", "data": {LIVE: {}, "text/plain": "bar"}, "metadata": {}},
        {
            "output_type": "execute_result",
            "data": {LIVE: {}, "image/jpeg": "abc", "text/plain": "Tuner"},
            "metadata": {},
        },
        {"output_type": "stream", "name": "stderr", "text": "50%"},
        {"output_type": "stream", "name": "stdout", "text": "said"},
    ]
    text = json.dumps(
        {"cells": [{"cell_type": "code", "source": "x", "outputs": outputs}], "metadata": {"widgets": {}}}
    )
    nb = json.loads(without_live_views(text))
    assert (
        nb["cells"][0]["outputs"] == [{**outputs[1], "data": {"image/jpeg": "abc", "text/plain": "Tuner"}}, outputs[3]]
        and not nb["metadata"]
    )


@pytest.mark.parametrize("heavy", ["torch", "matplotlib", "ipywidgets"])
def test_decisions_import_light(heavy):
    "Everything right of the store runs on a laptop without torch, and scripts without a display."
    code = (
        "import sys, steel_seg.rle, steel_seg.metric, steel_seg.data, steel_seg.post, steel_seg.decide, "
        "steel_seg.submit, steel_seg.cli\n"
        f"sys.exit({heavy!r} in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr or f"{heavy} was loaded"
