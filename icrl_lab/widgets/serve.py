"""Notebooks and dashboards as local servers: JupyterLab on a working copy, and a Voila app behind a token.

Both listen on loopback alone. Nothing of the package is ever written: what a user runs or edits is a copy.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import webbrowser
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from icrl_lab.errors import DataError, MissingExtra, StudyError

HOST = "127.0.0.1"
LEFT_OUT = ("@jupyter-notebook/lab-extension",)  # front ends that no dashboard uses
_HERE = Path(__file__).parent


def notebooks() -> Path:
    """The folder of the tutorials: in the installed package, else beside it in a checkout."""
    package = _HERE.parent
    for folder in (package / "notebooks", package.parent / "notebooks"):
        if any(folder.glob("*.ipynb")):
            return folder
    raise DataError("this installation has no notebooks; install the package again from its wheel or its checkout")


def working_copy(folder: str | os.PathLike) -> list[Path]:
    """Copy the tutorials into `folder`; what is there already is the user's, and stays. Returns what was copied."""
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise StudyError(f"{target} is a file, and notebooks need a folder; choose another --dir")
    target.mkdir(parents=True, exist_ok=True)
    made = []
    for source in sorted(notebooks().glob("*.ipynb")):
        if not (target / source.name).exists():
            shutil.copyfile(source, target / source.name)
            made.append(target / source.name)
    return made


def open_lab(folder: str | os.PathLike, *, browser: bool = True, port: int = 8888) -> int:
    """JupyterLab on a working copy of the tutorials; returns when it is stopped."""
    _need("jupyterlab", "jupyter")
    working_copy(folder)
    options = [f"--ServerApp.ip={HOST}", f"--port={port}", f"--ServerApp.root_dir={Path(folder).resolve()}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:  # in a container, where there is nobody else
        options.append("--allow-root")
    return _serve([sys.executable, "-m", "jupyterlab", *options, *([] if browser else ["--no-browser"])], {})


def find_run(folder: str | os.PathLike) -> Path:
    """A run folder: `folder` itself, or the latest finished run in it. DataError where there is none."""
    folder = Path(folder)
    if folder.is_file():
        raise DataError(
            f"{folder} is a file, and a dashboard shows a finished run; give the folder that icrl-lab run made (its --out)"
        )
    if (folder / "manifest.json").is_file():
        return folder
    runs = sorted(folder.glob("*/manifest.json"), key=lambda path: path.stat().st_mtime)
    finished = [path for path in runs if '"finished": true' in path.read_text(encoding="utf-8", errors="replace")]
    if not finished:
        raise DataError(f"{folder} holds no finished run; make one with: icrl-lab demo --out {folder / 'demo'}")
    return finished[-1].parent


def dashboard_notebook(run: Path, live: bool = False) -> dict:
    """The one-cell notebook that the app runs; `run` stands in it as a literal, never as code of its own."""
    asked = repr(str(run.resolve())) + (", live=True" if live else "")
    source = f"from icrl_lab.widgets.dashboard import Dashboard\nDashboard.of_run({asked})"
    cell: dict = {
        "cell_type": "code",
        "execution_count": None,
        "id": "dashboard",
        "metadata": {},
        "outputs": [],
        "source": source,
    }
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return {"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}


def open_dash(
    folder: str | os.PathLike, *, live: bool = False, browser: bool = True, port: int = 8866, theme: str = "light"
) -> int:
    """The dashboard of a run as an app; returns when it is stopped.

    live   with the run's model loaded, so that shots can be moved and the model be asked
    theme  light or dark

    The page asks for a token, which stands in the address that is printed.
    """
    from icrl_lab.studies import open_run

    _need("voila", "jupyter")
    run = find_run(folder)
    made = open_run(run)  # a damaged folder is said here, not in a browser
    if live and "task" not in made.manifest["study"]:
        raise DataError(f"{run} was not made from a study file, and does not say what to load; open it without --live")
    token = secrets.token_urlsafe(16)
    with tempfile.TemporaryDirectory(prefix="icrl-lab-dash-") as room:
        page = Path(room) / "dashboard.ipynb"
        page.write_text(json.dumps(dashboard_notebook(run, live)), encoding="utf-8")
        port = free_port(port)
        address = f"http://{HOST}:{port}/?token={token}"
        print(f"the dashboard of {run}: {address}", flush=True)
        return _serve(*app(page, port, token, theme=theme), opens=address if browser else "")


def free_port(first: int, tries: int = 50) -> int:
    """The first port from `first` on that nobody listens at: another dashboard may be open, and the address is told beforehand."""
    for port in range(first, min(first + tries, 65536)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was closed a moment ago is free
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise StudyError(f"no port from {first} on is free; choose another --port")


def app(page: Path, port: int, token: str, *, theme: str = "light") -> tuple[list[str], dict[str, str]]:
    """The command that serves the notebook `page` as a Voila app on loopback, and what to add to its environment.

    The token travels in the environment: everybody on this machine may read a command, and reach loopback. A page that is left ends its
    kernel, for which Voila wants a cookie that it never gives to who came with the token; the origin of such requests is still checked.
    """
    paths = [str(_HERE / "share"), *filter(None, [os.environ.get("JUPYTER_PATH")])]
    command = [
        *(sys.executable, "-m", "voila", str(page), f"--Voila.ip={HOST}", f"--port={port}", "--template=icrl"),
        *(f"--VoilaConfiguration.extension_denylist={name}" for name in LEFT_OUT),
        *(f"--VoilaConfiguration.theme={theme}", "--preheat_kernel=True", "--pool_size=1"),
        *(
            "--Voila.auto_token=True",
            "--Voila.port_retries=0",
            "--Voila.tornado_settings=disable_check_xsrf=True",
            "--show_tracebacks=False",
            "--no-browser",  # it would open the address without the token
        ),
    ]
    return command, {"JUPYTER_PATH": os.pathsep.join(paths), "JUPYTER_TOKEN": token}


def _serve(command: Sequence[str], environment: Mapping[str, str], opens: str = "") -> int:
    """Run a server until it ends, or until Ctrl-C or SIGTERM stops it, which is how it is meant to end.

    opens  the address to open in a browser once the server listens; "": none
    """
    with subprocess.Popen(command, env={**os.environ, **environment}) as server:
        if opens:
            threading.Thread(target=_open, args=(opens, server), daemon=True).start()
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            return server.wait()
        except KeyboardInterrupt:
            server.terminate()
            server.wait()
            return 0
        finally:
            signal.signal(signal.SIGTERM, before)


def _open(address: str, server: subprocess.Popen) -> None:
    port = urlsplit(address).port
    while server.poll() is None:
        try:
            socket.create_connection((HOST, port), 1).close()
        except OSError:
            time.sleep(0.2)
        else:
            webbrowser.open(address)
            return


def _need(module: str, extra: str) -> None:
    if find_spec(module) is None:
        raise MissingExtra(f'{module} is not installed: pip install "icrl-lab[{extra}]"')
