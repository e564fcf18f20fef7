"""Real data lies beside the repository, where it is at hand; the tests that need it are marked and skip without it."""
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_configure(config):
    config.addinivalue_line("markers", "real: needs the real data in ../shared/data")


def real_data(name):
    "The folder `name` of the real data, or a skip."
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"no real data at ../shared/data/{name}")
    return path
