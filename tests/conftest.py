"""Real data lies beside the repository, where it is at hand; the tests that need it are marked and skip without it."""

from pathlib import Path

import pytest
from made import CASES, make_run

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_configure(config):
    config.addinivalue_line("markers", "real: needs the real data in ../shared/data")


def real_data(name):
    "The folder `name` of the real data, or a skip."
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"no real data at ../shared/data/{name}")
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return {name: make_run(tmp_path_factory.mktemp("run") / "run", **case) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def one_thread():
    "torch on one thread: nets this small only wait for a second, and bits are promised for one number of threads."
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
