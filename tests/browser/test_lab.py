"""JupyterLab as `icrl-lab lab` opens it: the tutorials are there, a cell is run, its widget is used."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from icrl_lab.widgets import serve
from tests.browser.conftest import free_port, served
from tests.browser.test_dashboard import lasso
from tests.browser.test_views import PAGES, changed, traits


@pytest.fixture(scope="module")
def lab(playwright, tmp_path_factory):
    """The address of JupyterLab, with its working copy of the tutorials and one page of our own."""
    room, port = tmp_path_factory.mktemp("lab"), free_port()
    notebook = serve.dashboard_notebook(Path("."))
    root = Path(__file__).parent.parent.parent
    notebook["cells"][0]["source"] = f"import sys\nsys.path.insert(0, {str(root)!r})\n{PAGES}pages.geometry(300)"
    (room / "page.ipynb").write_text(json.dumps(notebook))
    command = [sys.executable, "-m", "icrl_lab.cli", "lab", "--dir", str(room), "--no-browser", "--port", str(port)]
    # not the user's tabs
    own = {f"JUPYTERLAB_{name.upper()}_DIR": str(room / name) for name in ("settings", "workspaces")}
    with served(command, port, JUPYTER_TOKEN="t", **own):
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}?token=t", room
    shutil.rmtree(room, ignore_errors=True)


def run_first_cell(page):
    """JupyterLab drops a cell that is run before its kernel answers, which may be after the page calls it idle: its number stays empty."""
    prompt = page.locator(".jp-Notebook .jp-InputPrompt").first
    assert prompt.inner_text().strip() == "[ ]:"  # else the loop could not tell
    for _ in range(8):
        page.locator(".jp-Notebook .cm-content").first.click()
        page.keyboard.press("Shift+Enter")
        page.wait_for_timeout(4000)
        if prompt.inner_text().strip() != "[ ]:":
            return
    pytest.fail("the cell was not run in 32 seconds")


def test_a_cell_is_run_and_its_widget_used(page, lab):
    address, room = lab
    assert {p.name for p in serve.notebooks().glob("*.ipynb")} <= {p.name for p in room.glob("*.ipynb")}
    page.goto(address.format("page.ipynb"))
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']")
    run_first_cell(page)
    page.wait_for_selector(".icrl-field")
    page.wait_for_timeout(1000)
    before = traits(page)
    lasso(page, 1, 0.6)
    assert 60 < changed(page, before)["items"] < 160
    page.locator(".icrl-field").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")  # pins, and does not run a cell
    page.wait_for_function("JSON.parse(document.getElementById('traits').innerText).item === 'item0'")
