"""files: what is on disk after a crash, and JSON that any reader can read."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from steel_seg.files import read_json, sha256_file, versions, whole, write_json, write_text


def start(code, *args):
    "A Python process running `code`; returns when it has printed its first line."
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE)
    assert process.stdout.readline(), "the writer did not start"
    return process


def kill(process):
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL  # it was still at work
    process.stdout.close()


HALF = """
import sys, time
from steel_seg.files import whole
with whole(sys.argv[1]) as temp:
    if sys.argv[2] == "file": f = open(temp, "w")
    else: temp.mkdir(); f = open(temp/"a", "w")
    f.write("half of the n"); f.flush()
    print("half", flush=True); time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_killed_in_the_middle_of_a_write_the_old_one_stays(tmp_path, kind):
    target = tmp_path / "best"
    if kind == "folder":
        target.mkdir()
    old = target / "a" if kind == "folder" else target
    old.write_text("old")
    kill(start(HALF, target, kind))
    assert old.read_text() == "old"
    halves = [p for p in tmp_path.iterdir() if p != target]
    assert len(halves) == 1 and halves[0].name.startswith(".best.")  # the half is there, under a hidden name of its own
    write_text(old, "new")
    assert old.read_text() == "new"


AGAIN = """
import sys
from steel_seg.files import write_text
i = 0
while True:
    write_text(sys.argv[1], "ab"[i % 2]*300_000)
    if i == 0: print("first", flush=True)
    i += 1
"""


@pytest.mark.kill
def test_killed_at_any_moment_the_file_is_one_of_the_two(tmp_path):
    target = tmp_path / "state"
    for i in range(8):
        process = start(AGAIN, target)
        time.sleep(0.003 * i)
        kill(process)
        assert target.read_text() in ("a" * 300_000, "b" * 300_000)


def test_a_block_that_fails_or_writes_nothing_changes_nothing(tmp_path):
    target = write_text(tmp_path / "rule.json", "old")
    with pytest.raises(KeyboardInterrupt), whole(target) as temp:
        temp.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(FileNotFoundError), whole(target):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["rule.json"] and target.read_text() == "old"


def test_a_folder_is_replaced_as_one_thing(tmp_path):
    target = tmp_path / "deep" / "best"
    for names in (["a", "b"], ["b", "c"]):
        with whole(target) as temp:
            (temp / "sub").mkdir(parents=True)
            for name in names:
                (temp / "sub" / name).write_text(name)
        assert sorted(p.name for p in (target / "sub").iterdir()) == names
        assert [p.name for p in target.parent.iterdir()] == ["best"]
    with pytest.raises(RuntimeError), whole(target) as temp:
        temp.mkdir()
        (temp / "d").write_text("d")
        raise RuntimeError
    assert sorted(p.name for p in (target / "sub").iterdir()) == ["b", "c"] and [
        p.name for p in target.parent.iterdir()
    ] == ["best"]


def test_json_has_no_nan(tmp_path):
    facts = {
        "score": float("nan"),
        "all": np.array([1.0, np.nan, -np.inf]),
        "n": np.int64(3),
        4: (True, None),
        "path": tmp_path,
        "name": "Blech é",
    }
    path = write_json(tmp_path / "facts.json", facts)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    strict = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert (
        strict
        == read_json(path)
        == {"score": None, "all": [1, None, None], "n": 3, "4": [True, None], "path": str(tmp_path), "name": "Blech é"}
    )


@pytest.mark.parametrize("content", [b"", b"{", b"{'a': 1}", b"\xff\xfe{}", b'{"a": 1} x'])
def test_a_damaged_json_is_named(tmp_path, content):
    path = tmp_path / "rule.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="rule.json: not valid JSON"):
        read_json(path)


def test_a_missing_json_is_named_and_text_keeps_its_line_ends(tmp_path):
    with pytest.raises(ValueError, match="rule.json: no such file"):
        read_json(tmp_path / "rule.json")
    assert write_text(tmp_path / "a.csv", "x\ny\n").read_bytes() == b"x\ny\n"


def test_hash_and_versions(tmp_path):
    path = write_text(tmp_path / "a", "")
    assert sha256_file(path) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # of nothing at all
    assert versions()["numpy"] == np.__version__ and versions()["python"] == sys.version.split()[0]
