"""Where a model comes from, what is measured when it is loaded, and that it runs no code of its own unless asked."""

import builtins
import copy
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Barrier, Thread

import numpy as np
import pytest
import torch

from icrl_lab import fetch, models
from icrl_lab.engine import products as room
from icrl_lab.engine.proof import plain
from icrl_lab.errors import ModelError, StudyError
from icrl_lab.models import fastest, reading
from icrl_lab.values import SLOT, Rendered


@pytest.mark.parametrize("cost, best", [({1: 4.0, 2: 3.0}, 2), ({1: 3.0, 2: 4.0}, 1)])
@pytest.mark.parametrize("burst", [None, range(0, 13), range(14, 29), range(25, 61)])
def test_a_burst_of_a_neighbour_chooses_no_number_of_threads(llama, monkeypatch, cost, best, burst):
    """A clock that a product moves on by what it costs with so many threads, and by ten times as much in a burst."""
    clock, products, threads = [0.0], [0], [1]

    def linear(x, w):
        products[0] += 1
        clock[0] += cost[threads[0]] * (10 if burst and products[0] in burst else 1)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    monkeypatch.setattr(room, "possible", lambda dtype: ("torch",))
    monkeypatch.setattr(torch, "set_num_threads", lambda n: threads.__setitem__(0, n))
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    chosen, measured = fastest.measure(llama.model, None)
    each = {n: seconds / 2 for n, seconds in measured["seconds by threads"].items()}  # up, and down
    assert chosen == best and each == pytest.approx(cost)
    assert fastest.measure(llama.model, 2)[0] == 2  # who says how many gets as many


@pytest.mark.parametrize("looks, best", [(0, 2), (1, 2), (2, 2), (3, 1)])
def test_one_thread_is_believed_to_be_the_fastest_when_it_was_so_thrice(llama, monkeypatch, looks, best):
    """A neighbour keeps a core busy for so many looks: two threads then take four times as long as they do alone."""
    seen, threads, clock = [0], [1], [0.0]

    def linear(x, w):
        clock[0] += 3.0 if threads[0] == 1 else 8.0 if seen[0] < looks else 2.0

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    monkeypatch.setattr(room, "possible", lambda dtype: ("torch",))
    monkeypatch.setattr(torch, "set_num_threads", lambda n: threads.__setitem__(0, n))
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: seen.__setitem__(0, seen[0] + 1))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    assert fastest.measure(llama.model)[0] == best
    assert seen[0] == min(looks, 2)


@pytest.mark.parametrize("gain, dtype", [(2.0, "float32"), (2.5, "bfloat16"), (4.2, "bfloat16")])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_bfloat16_is_taken_where_it_gains_more_than_half_its_width(monkeypatch, family, gain, dtype):
    """Half the width of a number makes a vector unit twice as fast at most; the least that was measured with AMX is 2.5."""
    import transformers as tf

    from tests.conftest import tiny_config

    rates = {"float32": 800.0, "bfloat16": 800.0 * gain}
    found = {"tokens/s": rates, "products": dict.fromkeys(rates, "torch"), "seconds by threads": {1: 1.0}}
    monkeypatch.setattr(
        reading, "read", lambda *given: (tf.AutoModelForCausalLM.from_config(tiny_config(family)), None)
    )
    monkeypatch.setattr(fastest, "measure", lambda model, threads: (1, found))
    assert models.load_llm("planted", device="cpu", prove=False).dtype == dtype
    assert models.load_llm("planted", device="cpu", dtype="float32", prove=False).dtype == "float32"


def test_a_model_with_soft_caps_is_compared_with_attention_that_has_them():
    import transformers as tf

    from tests.conftest import tiny_config

    model = tf.AutoModelForCausalLM.from_config(tiny_config("gemma2"))
    model.config._attn_implementation = "sdpa"  # the default of older transformers, which newer ones refuse
    assert models.wrap("gemma2", model, None, prove=False).model.config._attn_implementation == "eager"


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_revision_is_of_every_weight_and_of_its_place(monkeypatch, family, dtype):
    import transformers as tf

    from tests.conftest import tiny_config

    monkeypatch.setattr(models, "FACTORS", models.FACTORS[:100])  # so that a tiny table is several blocks and a rest
    model = tf.AutoModelForCausalLM.from_config(tiny_config(family)).to(dtype)
    revision = lambda: models.wrap("one", model, None, prove=False).revision  # noqa: E731
    first, table = revision(), model.get_input_embeddings().weight.data
    assert models.wrap("one", copy.deepcopy(model).float(), None, prove=False).revision == first
    assert revision() == first and len(first) == 12 and table.nbytes > 2 * models.FACTORS.nbytes
    for row, column in ((0, 0), (17, 5), (len(table) - 1, table.shape[1] - 1)):
        kept = table[row, column].clone()
        table[row, column] += 0.5
        assert revision() != first
        table[row, column] = kept
    table[[3, 4]] = table[[4, 3]]  # the same numbers elsewhere
    assert revision() != first
    table[[3, 4]] = table[[4, 3]]
    assert revision() == first
    list(model.parameters())[-1].data[-1] += 2
    assert revision() != first


def test_what_was_measured_and_chosen_at_load_stands_in_the_manifest_of_a_run(monkeypatch, tmp_path):
    from icrl_lab.studies import Study
    from tests.toy import PLAN, toy_llm, toy_task, toy_vectors

    toy, task = toy_llm(), toy_task()
    found = {
        "tokens/s": {"float32": 123.4, "bfloat16": 567.8},
        "products": {"float32": "torch", "bfloat16": "torch"},
        "seconds by threads": {1: 0.25, 3: 0.125},
    }
    monkeypatch.setattr(reading, "read", lambda *given: (toy.model, toy.tokenizer))
    monkeypatch.setattr(fastest, "measure", lambda model, threads: (3, found))
    llm = models.load_llm("planted", device="cpu")
    Study(task, toy_vectors(task), llm, **PLAN).run(tmp_path / "run", progress=False)
    said = json.loads((tmp_path / "run" / "manifest.json").read_text())["model"]
    measured = {**found, "seconds by threads": {"1": 0.25, "3": 0.125}}  # JSON has no other keys than strings
    assert said == {
        "name": "planted", "device": "cpu", "dtype": "bfloat16", "threads": 3, "proof": dict(llm.proof), "measured": measured,
    }  # fmt: skip
    assert set(said["proof"]) == {"own embedding", "slot moves logits", "attention row sum", "engine against plain"}


# ------------------------------------------------------------------------------------------ GGUF files


def write_gguf(path: Path, model, tokenizer) -> Path:
    """A llama and its byte-level tokenizer as llama.cpp keeps them: its own names, rows of queries and keys in another order."""
    import gguf

    config, spec = model.config, json.loads(tokenizer.backend_tokenizer.to_str())
    out = gguf.GGUFWriter(path, "llama")
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_rope_freq_base(config.rope_parameters["rope_theta"])
    out.add_rope_dimension_count(config.head_dim)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_tokenizer_model("gpt2")
    out.add_token_list([token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])])
    out.add_token_merges([" ".join(pair) for pair in spec["model"]["merges"]])
    out.add_eos_token_id(tokenizer.eos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for key, weight in model.state_dict().items():
        name, values = names.get_name(key, try_suffixes=(".weight",)), weight.numpy()
        if name == "output.weight":  # tied to the embeddings
            continue
        if "attn_q" in name or "attn_k" in name:  # the halves that RoPE turns together, in turns
            pairs = values.reshape(-1, 2, config.head_dim // 2, config.hidden_size)
            values = pairs.swapaxes(1, 2).reshape(values.shape)
        out.add_tensor(name, np.ascontiguousarray(values))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def toy_gguf(folder: Path):
    """A toy model, and the file of it."""
    from tests.toy import toy_llm

    folder.mkdir(parents=True, exist_ok=True)
    toy = toy_llm()
    return toy, write_gguf(folder / "mine.gguf", toy.model, toy.tokenizer)


def test_a_gguf_file_of_the_users_own_is_the_model_it_was_written_from(tmp_path):
    toy, path = toy_gguf(tmp_path)
    llm = models.load_llm(str(path), device="cpu", dtype="float32", threads=1)
    assert llm.width == toy.width and llm.context == toy.context and llm.dtype == "float32" and llm.proof
    text = "CCO -> 57\n"
    assert llm.tokenizer(text)["input_ids"] == toy.tokenizer(text)["input_ids"]
    ids = np.random.default_rng(0).integers(0, 400, 40)
    vector = np.random.default_rng(1).standard_normal((1, toy.width)).astype(np.float32)
    for prompt in (Rendered(ids, vector[:0]), Rendered(np.where(np.arange(40) == 7, SLOT, ids), vector)):
        np.testing.assert_allclose(plain(llm, prompt), plain(toy, prompt), atol=1e-5)
    whole = path.read_bytes()
    for damaged in (whole[:-1000], whole[:100], b"rubbish", b""):
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match=r"mine\.gguf is damaged, or no GGUF file"):
            models.load_llm(str(path), device="cpu", threads=1)


@pytest.fixture
def embedded(tmp_path, monkeypatch):
    """An embedded model "toy" whose GGUF has been fetched, and the list of times at which a dense model was made of it."""
    toy, path = toy_gguf(tmp_path / "models" / "toy")
    made = []

    def slow(path, dtype):
        made.append(path)
        time.sleep(0.3)
        return toy.model, toy.tokenizer

    monkeypatch.setitem(fetch.EMBEDDED, "toy", fetch.Embedded((), path.name, "0" * 64, "none", 1))
    monkeypatch.setattr(fetch, "gguf", lambda name, *, progress=None: path)
    monkeypatch.setattr(reading, "_from_gguf", slow)
    return path.parent, made


def test_two_that_start_at_once_make_one_dense_copy_and_both_load_it(embedded):
    folder, made = embedded
    together = Barrier(2)

    def start(_):
        together.wait()
        dense = reading._dense_copy("toy", None)
        return dense, sorted(path.name for path in dense.iterdir()), (dense / "done").stat().st_mtime_ns

    with ThreadPoolExecutor(2) as pool:
        (one, held, time_of), (other, also, time_after) = pool.map(start, range(2))
    assert one == other == folder / "dense" and held == also and time_of == time_after and len(made) == 1
    assert {path.name for path in folder.iterdir()} == {"mine.gguf", "dense", "lock"}
    assert models.load_llm("toy", device="cpu", dtype="float32", threads=1).width == 48


def test_what_a_killed_process_left_of_a_dense_copy_is_made_anew(embedded):
    folder, made = embedded
    for left in ("dense", "dense.part"):
        (folder / left).mkdir()
        (folder / left / "config.json").write_text("{")
        (folder / left / "rubbish").write_text("")
    assert models.load_llm("toy", device="cpu", dtype="float32", threads=1).width == 48 and len(made) == 1
    assert {path.name for path in folder.iterdir()} == {"mine.gguf", "dense", "lock"}
    assert not (folder / "dense" / "rubbish").exists()
    models.load_llm("toy", device="cpu", dtype="float32", threads=1)
    assert len(made) == 1


# ------------------------------------------------------------------------------------- code beside weights


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A function that puts code beside a model and names it in its configurations, and the file that this code writes when it runs."""
    from transformers import dynamic_module_utils

    mark, asked = tmp_path / "it ran", []
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])  # transformers appends to it

    def plant(folder: Path, **changes) -> None:
        (folder / "foreign.py").write_text(
            "from pathlib import Path\n"
            "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
            f"Path({str(mark)!r}).write_text('')\n"
            "class Config(LlamaConfig): pass\n"
            "class Model(LlamaForCausalLM): config_class = Config\n"
            "class Tokenizer(PreTrainedTokenizerFast): pass\n"
            "def generate(): pass\n"
        )
        (folder / "custom_generate").mkdir()
        shutil.copy(folder / "foreign.py", folder / "custom_generate" / "generate.py")
        maps = {"AutoConfig": "foreign.Config", "AutoModelForCausalLM": "foreign.Model"}
        for name, named in (
            ("config.json", maps),
            ("tokenizer_config.json", {"AutoTokenizer": [None, "foreign.Tokenizer"]}),
        ):
            held = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
            (folder / name).write_text(json.dumps({**held, "auto_map": named, **changes}))

    monkeypatch.setattr(builtins, "input", lambda *question: asked.append(question) or "y")
    yield plant, mark
    assert not asked


def load(name, **given):
    return models.load_llm(str(name), device="cpu", dtype="float32", threads=1, **given)


def one_sentence(error) -> bool:
    return "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.fixture
def folder(tmp_path):
    """A folder of a toy model."""
    from tests.toy import toy_llm

    toy = toy_llm()
    toy.model.save_pretrained(tmp_path / "folder")
    toy.tokenizer.save_pretrained(tmp_path / "folder")
    return tmp_path / "folder"


def test_code_beside_the_weights_of_a_folder_runs_only_for_who_asks(folder, foreign):
    plant, mark = foreign
    plant(folder)
    llm = load(folder)
    assert type(llm.model).__module__.startswith("transformers.models.") and not mark.exists()
    assert type(load(folder, trust_remote_code=True).model).__name__ == "Model" and mark.exists()


def test_a_folder_that_needs_its_code_is_refused_unless_it_is_asked_for(folder, foreign):
    plant, mark = foreign
    plant(folder, model_type="nobody-knows", tokenizer_class="Tokenizer")
    with pytest.raises(
        ModelError, match="asks for Python code of its own; read it, and give trust_remote_code=True"
    ) as e:
        load(folder)
    assert one_sentence(e) and not mark.exists()
    load(folder, trust_remote_code=True)
    assert mark.exists()


@pytest.mark.parametrize("trust", [False, True])
def test_a_gguf_file_never_runs_the_code_beside_it(tmp_path, foreign, trust):
    plant, mark = foreign
    toy, path = toy_gguf(tmp_path / "folder")
    plant(path.parent)
    with pytest.raises(ModelError, match=r"mine\.gguf' asks for Python code, which a GGUF file never runs; move") as e:
        load(path, trust_remote_code=trust)
    assert one_sentence(e) and not mark.exists()
    settings = {
        "auto_map": {"AutoTokenizer": [None, "foreign.Tokenizer"]},
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (path.parent / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load(path, trust_remote_code=trust).width == toy.width and not mark.exists()


@pytest.mark.parametrize("name", ["smollm", "smolm2-135m", "gemma-3-27m"])
def test_a_misspelt_embedded_name_is_asked_of_no_hub(name, monkeypatch):
    monkeypatch.setattr(reading, "_from_folder", lambda *_: pytest.fail("a hub would have been asked"))
    with pytest.raises(StudyError, match=f"no model '{name}'; did you mean '(smollm2-135m|gemma-3-270m)'"):
        models.load_llm(name, device="cpu")


def test_a_folder_of_a_misspelt_name_is_a_folder(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert load(folder.rename("smollm")).width == load(Path("smollm")).width == 48


def test_a_folder_that_holds_a_gguf_file_says_so(tmp_path):
    _, path = toy_gguf(tmp_path)
    with pytest.raises(ModelError, match=r"has no model\.safetensors; give its file mine\.gguf as the name"):
        models.load_llm(str(path.parent), device="cpu")


@pytest.mark.parametrize("name", [None, 3, ["smollm2-135m"]])
def test_a_name_that_is_none_is_a_sentence(name):
    with pytest.raises(StudyError, match="load_llm takes the name of a model"):
        models.load_llm(name)


# ---------------------------------------------------------------------------------------- bars of a load


PLACES = [("llama", "digits"), ("gemma3", "unigram")]


def saved(folder: Path, name: str, tokenizer: str) -> Path:
    """The folder of a toy model of a family, with its tokenizer."""
    from tests.toy import toy_llm

    toy = toy_llm(name, tokenizer)
    with fetch.quiet():
        toy.model.save_pretrained(folder)
    toy.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def hub():
    """A function that serves a folder as each repository of a hub, and returns the hub's address."""
    servers = []

    def serve(folder: Path) -> str:
        class Hub(BaseHTTPRequestHandler):
            def do_GET(self):
                file = folder / self.path.rpartition("/resolve/main/")[2]
                there = "/resolve/main/" in self.path and file.is_file()
                data = file.read_bytes() if there else b""
                self.send_response(200 if there else 404)
                told = {"ETag": f"{len(data)}-{file.name}"} if there else {"X-Error-Code": "EntryNotFound"}
                for key, value in {**told, "Content-Length": str(len(data)), "X-Repo-Commit": "0" * 40}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(data)

            do_HEAD = do_GET

            def log_message(self, *line):
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Hub))
        Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


LOADS = """
import sys
from huggingface_hub.utils import are_progress_bars_disabled
from icrl_lab.models import load_llm
for progress in (None, False, True):
    print(f"@{progress}@", file=sys.stderr, flush=True)
    load_llm(f"some/model-{progress}", device="cpu", dtype="float32", threads=1, prove=False, progress=progress)
    assert not are_progress_bars_disabled()
"""


def said_to(terminal: bool, env: dict[str, str]) -> str:
    """What the loads write to their standard error, a terminal or a pipe."""
    import pty
    import termios

    ours, theirs = pty.openpty() if terminal else os.pipe()
    if terminal:
        termios.tcsetwinsize(theirs, (24, 120))
    child = subprocess.Popen([sys.executable, "-c", LOADS], env=env, stderr=theirs)
    os.close(theirs)
    found = b""
    try:
        while part := os.read(ours, 4096):
            found += part
    except OSError:  # a terminal whose other side is gone
        pass
    os.close(ours)
    assert child.wait() == 0, found.decode()
    return found.decode()


@pytest.mark.parametrize(("model", "terminal"), list(zip(PLACES, [False, True])))
def test_a_model_that_comes_from_a_hub_shows_how_far_it_has_come(hub, tmp_path, model, terminal):
    where = {"HF_ENDPOINT": hub(saved(tmp_path / "model", *model)), "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}  # fmt: skip
    env = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_CACHE")}
    said = said_to(terminal, {**env, **where, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"})
    told = dict(zip(*[iter(said.split("@")[1:])] * 2))
    assert ("model.safetensors: 100%" in told["None"]) == terminal and "model.safetensors: 100%" in told["True"]
    assert not told["False"].strip() and (terminal or not told["None"].strip())
    assert "Loading weights" not in said


@pytest.mark.parametrize("model", PLACES)
def test_a_load_leaves_the_bars_of_the_process_as_they_were(tmp_path, capfd, model):
    import transformers as tf
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging

    from icrl_lab.bench.peers import write_model

    folder, before = saved(tmp_path / "model", *model), logging.is_progress_bar_enabled()
    for switch in (logging.enable_progress_bar, logging.disable_progress_bar):
        switch()
        bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
        for progress in (None, True, False):
            write_model(tmp_path, load(folder, progress=progress))
            with pytest.raises(ModelError):
                load(tmp_path / "nowhere", progress=progress)
            with pytest.raises(ModelError):
                load("nobody/nothing", progress=progress)
            assert (logging.is_progress_bar_enabled(), logging.get_verbosity()) == (bars, level)
            assert are_progress_bars_disabled() != bars
        assert "%|" not in capfd.readouterr().err  # what is here is loaded without bars
        tf.AutoModelForCausalLM.from_pretrained(folder)
        assert ("Loading weights" in capfd.readouterr().err) == bars
    (logging.enable_progress_bar if before else logging.disable_progress_bar)()


def test_no_thread_at_all_is_a_sentence(tmp_path):
    with pytest.raises(StudyError, match="threads is 0"):
        models.load_llm(str(tmp_path), threads=0)
