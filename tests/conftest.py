"""What all tests share: real data where it is at hand, made runs, the order for several workers, `--fast`, `--long`."""

from collections import Counter
from pathlib import Path

import pytest
from live import browser, browser_home, lab, notebook7, servers, voila  # noqa: F401 (fixtures: a real browser)
from made import CASES, make_run

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

# Modules that one worker runs as a whole: their fixtures (a browser, a server, a trained net) are made once.
# Those that take longest come first, so that no worker is left with one of them at the end.
GROUPS = {
    "test_live": "browser",
    "test_live_widgets": "browser",
    "test_recipe": "recipe",
    "test_recipe_command": "recipe_command",
    "test_monitor": "monitor",
    "test_pipeline": "pipeline",
    "test_train": "train",
    "test_classify": "classify",
    "test_curves": "curves",
}
LEFT_OUT = {
    "browser": ("test_live", "test_live_widgets"),
    "training": (
        "test_recipe",
        "test_recipe_command",
        "test_classify",
        "test_train",
        "test_pipeline",
        "test_predict",
        "test_monitor",
        "test_pseudo",
    ),
    "net": ("test_model", "test_dataset", "test_loss", "test_optim"),
}


def pytest_addoption(parser):
    parser.addoption(
        "--fast", action="store_true", help="leave out what needs a browser, trains, kills or reads real data"
    )
    parser.addoption("--long", action="store_true", help="take the tests of many minutes too")


def pytest_configure(config):
    config.addinivalue_line("markers", "real: needs the real data in ../shared/data")
    config.addinivalue_line("markers", "kill: kills processes again and again")
    config.addinivalue_line("markers", "long: takes many minutes; left out without --long")
    config.left_out = Counter()


def _why_left_out(item, fast, long):
    "The reason why a test is left out, or None."
    if item.get_closest_marker("long") and not long:
        return "long"
    if not fast:
        return None
    for reason, modules in LEFT_OUT.items():
        if item.module.__name__ in modules:
            return reason
    for marker in ("real", "kill"):
        if item.get_closest_marker(marker):
            return marker
    return None


def pytest_collection_modifyitems(config, items):
    order = list(GROUPS)
    for item in items:
        module = item.module.__name__
        item.add_marker(pytest.mark.xdist_group(GROUPS.get(module, module)))
    items.sort(key=lambda item: order.index(m) if (m := item.module.__name__) in GROUPS else len(order))
    fast, long = config.getoption("--fast"), config.getoption("--long")
    reasons = [_why_left_out(item, fast, long) for item in items]
    config.left_out.update(reason for reason in reasons if reason)
    config.hook.pytest_deselected(items=[item for item, reason in zip(items, reasons) if reason])
    items[:] = [item for item, reason in zip(items, reasons) if not reason]
    if hasattr(config, "workeroutput"):
        config.workeroutput["left_out"] = dict(config.left_out)


def pytest_testnodedown(node):
    "A worker tells what it left out; each collects everything, so the last one's counts stand for all."
    node.config.left_out = Counter(getattr(node, "workeroutput", {}).get("left_out", {}))


def pytest_terminal_summary(terminalreporter, config):
    if config.left_out:
        counts = ", ".join(f"{n} {reason}" for reason, n in config.left_out.items())
        commands = "`make test-long` runs the long ones"
        if config.getoption("--fast"):
            commands = f"`make test` runs all but the long ones, {commands}"
        terminalreporter.write_line(f"left out: {counts}; {commands}")


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
