"""Notebooks clean, exports in step, README made from nbs/index.ipynb: checked on a copy, so that checking changes
nothing.

python tests/in_step.py            # say what is out of step, exit 1
python tests/in_step.py --write    # make README.md again (nbdev_export and nbdev_clean do the rest)
"""

import filecmp
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def readme(root):
    "README.md as nbconvert makes it from the index: one heading of its own, pictures found from the top folder."
    from nbconvert import MarkdownExporter

    text, _ = MarkdownExporter().from_filename(str(root / "nbs/index.ipynb"))
    # Links are written from nbs/, where the index lies, and read from the top folder.
    text = re.sub(r"\]\((?!https?:|#)([^)]+)\)", lambda m: f"]({posixpath.normpath('nbs/' + m[1])})", text)
    head = "<!-- Made from nbs/index.ipynb by `make export`: change it there. -->\n\n"
    return head + re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def open_merges(root):
    "Notebooks that hold a conflict mark or are not JSON; nbdev_test would pass over them in silence."
    for path in sorted(root.glob("nbs/**/*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        text = path.read_text(encoding="utf-8")
        if re.search(r'^\s*"?`?(<{7}|>{7}) ', text, re.M):
            yield f"{path.relative_to(root)}: an unresolved merge"
            continue
        try:
            json.loads(text)
        except ValueError as e:
            yield f"{path.relative_to(root)}: not valid JSON ({e})"


LIVE = "application/vnd.jupyter.widget-view+json"


def without_live_views(text):
    """A notebook's text without what only a kernel can show: a widget's live view (its still picture stays) and
    progress bars."""
    nb = json.loads(text)
    for cell in nb["cells"]:
        if "outputs" in cell:
            cell["outputs"] = [
                o
                for o in cell["outputs"]
                if o.get("name") != "stderr" and set(o.get("data", {"a"})) - {LIVE, "text/plain"}
            ]
            for o in cell["outputs"]:
                o.get("data", {}).pop(LIVE, None)
    nb["metadata"].pop("widgets", None)
    return json.dumps(nb, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def faults(root):
    "All that is out of step, a line each."
    found = list(open_merges(root))
    if found:
        return found
    with tempfile.TemporaryDirectory() as d:
        copy = Path(d) / root.name
        skip = shutil.ignore_patterns(".venv*", ".git", "runs", "__pycache__", ".ipynb_checkpoints", "*.egg-info")
        shutil.copytree(root, copy, ignore=skip)
        bin_ = Path(sys.executable).parent
        # The copy's own package must be read, not the installed one.
        env = {**os.environ, "PYTHONPATH": str(copy), "NO_ALBUMENTATIONS_UPDATE": "1"}
        for tool in ("nbdev_clean", "nbdev_export"):
            done = subprocess.run([bin_ / tool], cwd=copy, env=env, capture_output=True, text=True)
            if done.returncode:
                return [f"{tool} failed:\n{done.stdout}{done.stderr}"]
        for path in sorted(copy.glob("nbs/**/*.ipynb")):
            name = path.relative_to(copy)
            if not filecmp.cmp(path, root / name, shallow=False):
                found.append(f"{name}: not clean; run `make export`")
            elif LIVE in path.read_text(encoding="utf-8"):
                found.append(
                    f"{name}: holds a widget's live view, which is nothing without its kernel; run `make export`"
                )
        names = {p.relative_to(top / "steel_seg") for top in (copy, root) for p in (top / "steel_seg").rglob("*.py")}
        for name in sorted(names):
            old, new = root / "steel_seg" / name, copy / "steel_seg" / name
            if not old.exists() or not new.exists() or not filecmp.cmp(old, new, shallow=False):
                found.append(f"steel_seg/{name}: not what its notebook exports; run `make export`")
        if readme(root) != (root / "README.md").read_text(encoding="utf-8"):
            found.append("README.md: not what nbs/index.ipynb gives; run `make export`")
    return found


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        for path in (ROOT / "nbs").glob("*.ipynb"):
            text = path.read_text(encoding="utf-8")
            if LIVE in text:
                path.write_text(without_live_views(text), encoding="utf-8")
        (ROOT / "README.md").write_text(readme(ROOT), encoding="utf-8")
        sys.exit()
    found = faults(ROOT)
    print("\n".join(found) or "notebooks clean, exports and README in step")
    sys.exit(bool(found))
