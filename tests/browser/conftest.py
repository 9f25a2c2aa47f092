"""A real browser on real pages. Any request that leaves this machine fails the test, and so does a console error.

Needs Debian's chromium and `pip install "icrl-lab[browser]"`. Where they are missing the tests are left out, unless
ICRL_LAB_BROWSER=1 says that they must run.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MUST = os.environ.get("ICRL_LAB_BROWSER") == "1"
PICTURES = Path(os.environ.get("ICRL_LAB_PICTURES", "browser-failures"))
HERE = Path(__file__).parent
STUDY = """
[task]
name = "freesolv"
[llm]
name = "smollm2-135m"
dtype = "float32"
[study]
arms = ["text", "moments-vocab"]
controls = ["real", "noise"]
with_text = false
labels = "true"
shots = 6
seeds = 2
queries = 24
label_format = "letter"
slot_scale = 1.0
[probes]
questions = ["attention", "geometry", "patching", "lens"]
[probes.options.lens]
permutations = 4
[probes.options.patching]
queries = 3
depths = [0, 10, 20, 30]
draws = 2
verify = 2
"""


def pytest_collection_modifyitems(items):
    for item in items:
        if "browser" in Path(str(item.fspath)).parts:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def playwright():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        if MUST:
            raise
        pytest.skip('needs pip install "icrl-lab[browser]"')
    if CHROMIUM is None:
        if MUST:
            pytest.fail("no chromium on this machine")
        pytest.skip("needs chromium")
    with sync_playwright() as p:
        yield p


@pytest.fixture(scope="session")
def run(playwright, tmp_path_factory):
    """The folder of a small real study with readings."""
    room = tmp_path_factory.mktemp("browser")
    (room / "study.toml").write_text(STUDY)
    done = subprocess.run(
        [sys.executable, "-m", "icrl_lab.cli", "run", str(room / "study.toml"), "--out", str(room / "run")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return room / "run"


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def served(command, port, **environment):
    """A server, until the block ends; entered when it answers."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, **environment}, start_new_session=True,
    ) as server:  # fmt: skip
        for _ in range(480):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, "the server ended by itself"
            time.sleep(0.25)
        try:
            yield server
        finally:
            os.killpg(server.pid, signal.SIGTERM)


@pytest.fixture(scope="session")
def address(run):
    """The dashboard as `icrl-lab dash` serves it."""
    port = free_port()
    command = [sys.executable, "-m", "icrl_lab.cli", "dash", str(run), "--no-browser", "--port", str(port)]
    with served(command, port) as server:
        yield re.search(r"http://\S+", server.stdout.readline())[0]


@pytest.fixture(scope="session")
def app(playwright, tmp_path_factory):
    """A function (source of a cell) -> address of a page that shows the cell's last value."""
    from contextlib import ExitStack

    from icrl_lab.widgets import serve

    with ExitStack() as stack:

        def open_app(source):
            page, port = tmp_path_factory.mktemp("app") / "app.ipynb", free_port()
            notebook = serve.dashboard_notebook(Path("."))
            notebook["cells"][0]["source"] = f"import sys\nsys.path.insert(0, {str(HERE.parent.parent)!r})\n{source}"
            page.write_text(json.dumps(notebook), encoding="utf-8")
            command, more = serve.app(page, port, "t")
            stack.enter_context(served(command, port, **more))
            return f"http://127.0.0.1:{port}/?token=t"

        yield open_app


@pytest.fixture(scope="session")
def chromium(playwright):
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    yield browser
    browser.close()


@pytest.fixture
def page(chromium, request):
    """A page that notes requests and errors, and is photographed when its test fails."""
    page = chromium.new_page(viewport={"width": 1300, "height": 1800})
    page.set_default_navigation_timeout(120_000)
    page.set_default_timeout(60_000)
    outside, errors = [], []
    page.on(
        "request",
        lambda r: None if re.match(r"(https?|wss?)://127\.0\.0\.1[:/]|data:|blob:", r.url) else outside.append(r.url),
    )
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: errors.append(str(e)))
    yield page
    failed = getattr(request.node, "failed", False)
    if failed or outside or errors:
        PICTURES.mkdir(exist_ok=True)
        page.screenshot(path=PICTURES / f"{request.node.name}.png", full_page=True)
    page.close()
    assert not outside, f"requests that leave the machine: {outside}"
    assert not errors, f"console errors: {errors}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    if call.when == "call" and outcome.get_result().failed:
        item.failed = True
