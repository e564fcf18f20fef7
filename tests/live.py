"""Widgets in a real browser: JupyterLab, Notebook 7 or Voilà on a free port of this machine, and a headless Chromium
that looks at them.

A test asks for one of the fixtures `lab`, `notebook7` and `voila`, opens a notebook made of its cells, and uses
playwright's page:

    def test_a_key_switches_a_layer(lab):
        nb = lab.open(["from steel_seg.look.parts import StripView", "view = StripView((64, 400), ('image', 'labels'))",
        "view"])
        nb.page.locator(".steel-frame").press("2")
        nb.until("view.shown == ('image',)")  # asks the kernel
        nb.fine()  # no error in the console, nothing asked from any other machine

The browser is the one that STEEL_SEG_BROWSER names, else a Chromium or Chrome on the PATH, else the one that playwright
has installed. Without a browser the tests are skipped, but where CI is set they fail. Playwright keeps an event loop
running in this thread while the browser is open, which is one module of tests: what behaves differently with a loop
(`steel_seg.look.parts.Later`) is tested in other modules.
"""

import ast
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlparse

import pytest

NBS = Path(__file__).resolve().parents[1] / "nbs"
SCREEN = {"width": 1280, "height": 900}
ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
]
# Names of other machines lead nowhere, so that nothing can be fetched; that it was tried is still recorded.
ARGS += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"]
# What a front end itself reports as an error, by its whole text and the script it comes from, and why it is harmless.
KNOWN = {
    # Notebook 7 hears of a plugin's settings before it has read its own shortcuts; it reads them a moment later.
    ("Cannot read properties of undefined (reading 'schema')", "/static/notebook/notebook_core."),
}
NAMES = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"
ADVICE = (
    "no Chromium or Chrome: install one (Debian: apt install chromium; anywhere: playwright install chromium) or "
    "name one in STEEL_SEG_BROWSER"
)


def browser_path(playwright):
    "Where the browser is, or None."
    named = os.environ.get("STEEL_SEG_BROWSER")
    if named:
        assert shutil.which(named), f"STEEL_SEG_BROWSER={named}: there is no such program"
        return shutil.which(named)
    own = playwright.chromium.executable_path
    return next(filter(None, map(shutil.which, NAMES)), own if Path(own).is_file() else None)


class NoBrowser(RuntimeError):
    pass


@contextmanager
def open_browser(home):
    """A browser with nothing in it, as playwright's BrowserContext; what it caches it keeps in the folder `home`.
    Raises `NoBrowser`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = browser_path(playwright)
        if not path:
            raise NoBrowser(ADVICE)
        context = playwright.chromium.launch_persistent_context(
            home, executable_path=path, args=ARGS, viewport=SCREEN, service_workers="block"
        )
        context.set_default_timeout(20_000)
        yield context
        context.close()


class Server:
    """A Jupyter server on `root`: `kind` is "lab", "notebook" or "voila". It reads and writes no settings but those in
    `state`."""

    def __init__(self, kind, root, state, env=None):
        self.root, self.log = Path(root), Path(state) / "log"
        for name in (
            "data/kernels/python3",
            "config/labconfig",
            "settings/@jupyterlab/docmanager-extension",
            "settings/@jupyterlab/notebook-extension",
        ):
            (Path(state) / name).mkdir(parents=True)

        def write(name, value):
            return (Path(state) / name).write_text(json.dumps(value), encoding="utf-8")

        # The kernel is this Python, whatever kernels the machine knows.
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        write(
            "data/kernels/python3/kernel.json",
            {"argv": argv, "display_name": "Python 3", "language": "python", "metadata": {"debugger": False}},
        )
        write(
            "config/labconfig/page_config.json",
            {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}},
        )
        write("settings/@jupyterlab/docmanager-extension/plugin.jupyterlab-settings", {"autosave": False})
        write(
            "settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings", {"windowingMode": "none"}
        )  # cells out of sight are there as well
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        common = [
            "--expose-app-in-browser",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
            "--ServerApp.disable_check_xsrf=True",
            f"--ServerApp.root_dir={root}",
            "--allow-root",
        ]
        says = {
            "lab": ["jupyterlab", *common],
            "notebook": ["notebook", *common],
            "voila": ["voila", str(root), "--show_tracebacks=True"],
        }[kind]
        name = "Voila" if kind == "voila" else "ServerApp"
        says += [
            f"--{name}.ip=127.0.0.1",
            f"--{name}.port={self.port}",
            f"--{name}.port_retries=0",
            f"--{name}.open_browser=False",
            "--IdentityProvider.token=",
        ]
        home = {
            f"JUPYTER_{k}": str(Path(state) / v)
            for k, v in {"CONFIG_DIR": "config", "DATA_DIR": "data", "RUNTIME_DIR": "runtime"}.items()
        }
        home |= {
            "JUPYTERLAB_SETTINGS_DIR": str(Path(state) / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(Path(state) / "workspaces"),
            "IPYTHONDIR": str(Path(state) / "ipython"),
            "JUPYTER_PREFER_ENV_PATH": "0",
        }
        if kind == "voila":  # as `make app` has it
            home |= {"JUPYTER_PATH": str(NBS), "JUPYTER_CONFIG_PATH": str(NBS / "voila")}
        drop = {"JUPYTER_PATH", "JUPYTER_CONFIG_PATH", "JUPYTER_TOKEN"}
        full = {
            **{k: v for k, v in os.environ.items() if k not in drop},
            **home,
            "PYTHONPATH": str(NBS.parent),
            "OMP_NUM_THREADS": "1",
            **(env or {}),
        }
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen([sys.executable, "-m", *says], stdout=log, stderr=log, env=full)
        self._wait()

    def _wait(self, seconds=60):
        end = time.monotonic() + seconds
        while True:
            try:
                return urllib.request.urlopen(f"{self.url}/static/favicon.ico", timeout=5).close()
            except urllib.error.HTTPError:
                return  # it answers
            except OSError:
                if self.process.poll() is not None or time.monotonic() > end:
                    self.close()
                    raise RuntimeError(
                        f"the server did not start:\n{self.log.read_text(errors='replace')[-3000:]}"
                    ) from None
                time.sleep(0.05)

    def close(self):
        self.process.terminate()  # which ends its kernels too
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class FrontEnd:
    'A server and the browser that looks at it; `kind` is "lab", "notebook" or "voila".'

    def __init__(self, kind, server, context):
        self.kind, self.server, self.context, self.opened = kind, server, context, []

    def open(
        self,
        cells,  # source of each code cell, run in their order
        name="",  # of the notebook's file, without its ending
        timeout=60,  # seconds for all of it
    ):
        "Write a notebook, open it, run all of it, and wait until its widgets are there. Raises where a cell does."
        path = self.server.root / f"{name or uuid.uuid4().hex[:8]}.ipynb"
        made = [
            {
                "id": f"cell{i}",
                "cell_type": "code",
                "source": source,
                "metadata": {},
                "outputs": [],
                "execution_count": None,
            }
            for i, source in enumerate(cells)
        ]
        spec = {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "language_info": {"name": "python"},
        }
        path.write_text(
            json.dumps({"cells": made, "metadata": spec, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8"
        )
        return self.look(path, timeout=timeout)

    def look(
        self,
        path,  # of a notebook below the server's root
        run=True,  # all its cells; Voilà always does
        timeout=60,
    ):
        "Open a notebook that is there."
        nb = Opened(self, Path(path), run, 1000 * timeout)
        self.opened.append(nb)
        return nb

    def close(self):
        "Close all its pages and end their kernels."
        while self.opened:
            self.opened.pop().close()


class Opened:
    "A notebook in the browser: `page` (playwright's), `errors` and `fetched` since it was opened."

    def __init__(self, front, path, run, timeout):
        self.front, self.path, self.page = front, path, front.context.new_page()
        self.errors, self.fetched = [], []  # of the console and the page; addresses on other machines
        self.page.on("console", lambda m: m.type == "error" and self._error(m.text, m.location.get("url", "")))
        self.page.on("pageerror", lambda e: self._error(e.message, e.stack or ""))
        self.page.on("dialog", lambda d: (self.errors.append(f"{d.type}: {d.message}"), d.dismiss()))
        for event in ("request", "websocket"):
            self.page.on(event, lambda r: self._request(r.url))
        name = quote(path.relative_to(front.server.root).as_posix())
        self.page.goto(
            front.server.url
            + {"lab": f"/lab/tree/{name}?reset", "notebook": f"/notebooks/{name}", "voila": f"/voila/render/{name}"}[
                front.kind
            ],
            timeout=timeout,
        )
        if front.kind == "voila":
            self.page.wait_for_function(_VOILA_READY, timeout=timeout)
            self.kernel = self.page.evaluate(
                "JSON.parse(document.getElementById('jupyter-config-data').textContent).kernelId"
            )
            assert "Traceback" not in self.page.locator("body").inner_text(), self.page.locator("body").inner_text()[
                -3000:
            ]
        else:
            self.page.wait_for_function(
                "window.jupyterapp?.shell?.currentWidget?.content?.widgets?.length && "
                "jupyterapp.shell.currentWidget.sessionContext?.session?.kernel",
                timeout=timeout,
            )
            self.kernel = self.page.evaluate(_LAB_READY)
            if run:
                self.run_all(timeout)
        self.page.add_script_tag(content=_WATCH)

    def _error(self, text, where):
        if not any(text == known and script in where for known, script in KNOWN):
            self.errors.append(f"{text} ({where})")

    def _request(self, url):
        at = urlparse(url)
        if at.scheme not in ("data", "blob") and at.hostname not in ("127.0.0.1", "localhost"):
            self.fetched.append(url)

    def run_all(self, timeout=60_000):
        "Run all cells and wait until the kernel has and all their widgets are drawn."
        failed = self.page.evaluate(_RUN_ALL)
        if failed:
            raise RuntimeError(f"{self.path.name}: {failed}")
        self.page.wait_for_function("!document.body.innerText.includes('Loading widget')", timeout=timeout)

    def run(self, code):
        "Run code in the notebook's kernel, not in a cell; returns what it prints and raises where it does."
        assert self.front.kind != "voila", "Voilà takes no code: ask the page"
        done = self.page.evaluate(_RUN, [self.kernel, code])
        if done["error"]:
            raise RuntimeError(done["error"])
        return done["text"]

    def value(self, expression):
        "The value of an expression in the notebook's kernel: numbers, text, and lists, tuples or dicts of them."
        return ast.literal_eval(self.run(f"print(repr({expression}))"))

    def until(self, expression, seconds=10):
        "Wait until an expression is true in the notebook's kernel."
        end = time.monotonic() + seconds
        while not self.value(f"bool({expression})"):
            assert time.monotonic() < end, f"{expression} did not become true in {seconds} s"
            time.sleep(0.02)

    def slider(self, label):
        "The handle of a slider of ipywidgets, by the text before it: to be focused, and moved with arrow keys."
        return (
            self.page.locator(".widget-slider", has=self.page.get_by_text(label, exact=True))
            .locator(".noUi-handle")
            .first
        )

    def menu(self, command, **args):
        "Carry out one of JupyterLab's or Notebook's own commands, such as docmanager:save."
        self.page.evaluate(
            "([command, args]) => jupyterapp.commands.execute(command, args).then(() => null)", [command, args]
        )

    def shot(self, path, selector=None):
        "A picture of the page, or of one element of it, as PNG."
        where = self.page.locator(selector).first if selector else self.page
        where.screenshot(path=str(path))
        return path

    def fine(self):
        "Nothing went wrong in the browser and nothing was asked from another machine."
        assert not self.errors, self.errors
        assert not self.fetched, self.fetched

    def latency(
        self,
        press,  # a key, as playwright calls it, given to what has the focus
        changed,  # selector of an element whose text changes
        image=None,  # selector of a picture that changes
        within=20000,  # ms to wait for the text: a machine may be busy
        after=1000,  # ms to wait for the picture after the text
        quiet=60,  # ms of rest at the end, so that presses do not overlap
    ) -> dict:
        """Press a key; `text` and `image` are the ms, on the page's clock, from its keydown to the changed text and to
        the changed picture, unpacked; None where there was no change."""
        self.page.evaluate("([text, image]) => steelWatch(text, image)", [changed, image])
        self.page.keyboard.press(press)
        return self.page.evaluate("waits => steelFirst(...waits)", [within, after, quiet])

    def drag(
        self,
        keys,  # keys that are pressed one after another
        changed,
        image=None,
        gap=5,  # ms between them
        quiet=700,  # ms without any change that mean it has come to rest
    ) -> dict:
        """Press keys faster than any can be answered; `settle` is the ms from the last keydown to the last change of
        text or picture, `changes` how often either changed."""
        self.page.evaluate("([text, image]) => steelWatch(text, image)", [changed, image])
        for key in keys:
            self.page.keyboard.press(key)
            time.sleep(gap / 1000)
        return self.page.evaluate("quiet => steelRest(quiet)", quiet)

    def close(self):
        self.page.close()
        if self.front.kind != "voila":  # Voilà's end with its server
            request = urllib.request.Request(f"{self.front.server.url}/api/kernels/{self.kernel}", method="DELETE")
            urllib.request.urlopen(request, timeout=20).close()


_LAB_READY = """async () => {
  const s = jupyterapp.shell.currentWidget.sessionContext;
  await s.ready; await s.session.kernel.info;
  jupyterapp.shell.collapseLeft?.(); // room for a notebook
  return s.session.kernel.id;
}"""

# The first error of any cell, or null. Outputs are read from the notebook, not from the screen.
_RUN_ALL = """async () => {
  await jupyterapp.commands.execute("notebook:run-all-cells");
  const { content, sessionContext } = jupyterapp.shell.currentWidget;
  while (sessionContext.session.kernel.status !== "idle") await new Promise(f => setTimeout(f, 20));
  for (const cell of content.model.cells) for (const out of cell.toJSON().outputs ??
    []) if (out.output_type === "error") return out.traceback.join("\\n").replace(/\\x1b\\[[0-9;]*m/g, "");
  return null;
}"""

# Voilà draws what the kernel has run already; each widget stands where a script of its own was.
_VOILA_READY = """() => document.readyState === "complete"
  && document.getElementById("jupyter-config-data") && !document.getElementById("loading")?.offsetParent
  && [...document.querySelectorAll("script[type='application/vnd.jupyter.widget-view+json']")].every(s =>
    s.parentElement.querySelector(".jupyter-widgets, .lm-Widget"))"""

# A second line to the kernel, spoken by hand, so that it is the same under every front end.
_RUN = """([kernel, code]) => new Promise((resolve, reject) => {
  const session = crypto.randomUUID(), id = crypto.randomUUID(),
    origin = location.origin.replace("http", "ws"),
    line = new WebSocket(`${origin}/api/kernels/${kernel}/channels?session_id=${session}`);
  let text = "", error = "", replied = false, idle = false;
  setTimeout(() => { line.close(); reject(new Error("no answer from the kernel in 60 s")) }, 60000);
  line.onerror = () => reject(new Error("no line to the kernel"));
  line.onopen = () => line.send(JSON.stringify({ channel: "shell", header: { msg_id: id, session, username: "",
    msg_type: "execute_request", version: "5.3", date: new Date().toISOString() }, parent_header: {}, metadata: {},
    content: { code, silent: false, store_history: false, user_expressions: {}, allow_stdin: false,
      stop_on_error: false }, buffers: [] }));
  line.onmessage = async ({ data }) => {
    if (typeof data !== "string") return; // widgets' own traffic, with buffers
    const m = JSON.parse(data);
    if (m.parent_header?.msg_id !== id) return;
    if (m.msg_type === "stream") text += m.content.text;
    if (m.msg_type === "error") error = m.content.traceback.join("\\n").replace(/\\x1b\\[[0-9;]*m/g, "");
    if (m.msg_type === "execute_reply") replied = true;
    if (m.msg_type === "status" && m.content.execution_state === "idle") idle = true;
    if (replied && idle) { line.close(); resolve({ text, error }) }
  };
})"""

# When was the key pressed, when did the text change, when was the new picture there? Elements may be replaced, so they
# are looked up at each change.
_WATCH = """
{
  const one = s => s ? document.querySelector(s) : null, pause = ms => new Promise(f => setTimeout(f, ms));
  let w = null;
  document.addEventListener("keydown", () => { if (w) w.pressed = performance.now() }, true);
  window.steelWatch = (text, image) => {
    w?.observer.disconnect();
    const mine = w = { pressed: null, text: null, image: null, last: null, changes: 0, wants: !!image, had: one(text)
      .textContent, src: one(image)?.src };
    const look = () => {
      const now = one(text)?.textContent, img = one(image);
      if (now !== mine.had) { mine.had = now; mine.changes++; mine.last = performance.now(); mine.text ??= mine.last }
      if (img && img.src !== mine.src) {
        const src = mine.src = img.src;
        img.decode().then(() => { if (img.src === src) { mine.changes++; mine.last = performance.now();
          mine.image ??= mine.last } }, () => {});
      }
    };
    mine.observer = new MutationObserver(look);
    mine.observer.observe(document.body, { subtree: true, childList: true, characterData: true, attributes: true,
      attributeFilter: ["src"] });
  };
  const since = at => at === null ? null : at - w.pressed;
  window.steelFirst = async (within, after, quiet) => {
    const start = performance.now();
    while (w.text === null && performance.now() - start < within) await pause(4);
    while (w.wants && w.image === null && performance.now() - (w.text ?? start) < after) await pause(4);
    await pause(quiet);
    w.observer.disconnect();
    return { text: since(w.text), image: since(w.image) };
  };
  window.steelRest = async quiet => {
    while (performance.now() - Math.max(w.pressed, w.last) < quiet) await pause(10);
    w.observer.disconnect();
    return { settle: since(w.last), changes: w.changes };
  };
}
"""


@pytest.fixture(scope="session")
def browser_home(tmp_path_factory):
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def browser(browser_home):
    "Playwright's BrowserContext, for a module of tests."
    try:
        with open_browser(browser_home) as context:
            yield context
    except NoBrowser as e:
        pytest.fail(str(e)) if os.environ.get("CI") else pytest.skip(str(e))


@pytest.fixture(scope="session")
def servers(tmp_path_factory):
    "Servers by kind, started when they are first asked for, for the whole session."
    started = {}

    def server(kind):
        if kind not in started:
            started[kind] = Server(kind, tmp_path_factory.mktemp(kind), tmp_path_factory.mktemp(f"{kind}_state"))
        return started[kind]

    yield server
    for one in started.values():
        one.close()


def _front_end(kind):
    @pytest.fixture(scope="module")
    def front(browser, servers):  # the browser first: without one no server is started
        end = FrontEnd(kind, servers(kind), browser)
        yield end
        end.close()

    return front


lab, notebook7, voila = map(_front_end, ("lab", "notebook", "voila"))
