"""The tutorial on Catalyst, in the environment that `make catalyst` makes."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from steel_seg.files import read_json

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv-catalyst/bin/python"


def cells():
    nb = json.loads((ROOT / "nbs/68_catalyst.ipynb").read_text(encoding="utf-8"))
    return ["".join(c["source"]) for c in nb["cells"] if c["cell_type"] == "code"]


def test_every_cell_is_left_to_its_own_environment():
    assert len(cells()) > 4 and all(c.startswith("#| catalyst\n") for c in cells())


def test_without_catalyst_one_sentence_says_what_to_do():
    with pytest.raises(ModuleNotFoundError, match="run `make catalyst`, then choose the kernel"):
        exec(cells()[0], {})


@pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-catalyst: make catalyst")
def test_our_pieces_train_under_catalyst(tmp_path):
    "The notebook's own cells, their assertions with them; what they leave is a net that the kit here opens."
    from steel_seg.model import load_model

    (tmp_path / "nbs").mkdir()
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = subprocess.run(
        [PYTHON, "-c", "\n".join(cells())], cwd=tmp_path / "nbs", env=env, capture_output=True, text=True
    )
    assert out.returncode == 0, out.stderr[-3000:]
    assert "upsample: " in out.stdout and "epoch " in out.stdout.splitlines()[-1]
    net = load_model(tmp_path / "runs/catalyst/net")
    best = read_json(tmp_path / "runs/catalyst/logs/checkpoints/model.storage.json")["storage"][0]
    assert net.spec["n_classes"] == 4 and f"Dice {best['metric']:.4f} over all pairs" in out.stdout
