"""The command line as a user meets it: what it promises in CONTRACT.md, its exit statuses, and what survives a bad day.

A tiny random model in a folder stands for the language model and a file of vectors for the encoder, so that whole runs take seconds.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from icrl_lab import cli, doctor
from icrl_lab.errors import IcrlError, ModelError
from icrl_lab.studies import journal
from icrl_lab.studies.folder import RunFolder

pytest.importorskip("plotly")

EVIL = "<img src=x onerror=alert(1)>"
N = 40
STUDY = """
[task]
path = "t.csv"
text = "text"
target = "y"
id = "id"
modality = "text"

[encoder]
path = "v.npz"

[llm]
name = "./model"
dtype = "float32"

[study]
arms = ["random-projection", "ridge"]
controls = ["real", "noise"]
with_text = false
labels = "true"
shots = 4
seeds = 2
queries = 6
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a study file, its table, its vectors and its model."""
    from tests.conftest import tiny_llm
    from tests.families import family

    path = tmp_path_factory.mktemp("home")
    llm = tiny_llm("llama", tokenizer=family("digits"))
    llm.model.save_pretrained(path / "model")
    llm.tokenizer.save_pretrained(path / "model")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, 12)).astype(np.float32)
    ids = [f"m{i:02d}" for i in range(N)]
    np.savez(path / "v.npz", ids=np.array(ids), values=x)
    write_table(path / "t.csv", ids, x @ rng.standard_normal(12))
    (path / "s.toml").write_text(STUDY)
    return path


def write_table(path: Path, ids, y, more: str = "") -> None:
    rows = [f"{i},{'abcd'[k % 4] * 3}{k},{v:.4f},{'big' if v > 0 else 'small'}" for k, (i, v) in enumerate(zip(ids, y))]
    path.write_text("\n".join(["id,text,y,kind", *rows, more]) + "\n")


@pytest.fixture
def run(home, capsys, monkeypatch, tmp_path):
    """A function: arguments -> (exit status, standard output, standard error), with tmp_path as the current folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = cli.main([str(a) for a in arguments])
        except SystemExit as left:  # argparse's way
            status = left.code
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def variant(home: Path, name: str, *changes: tuple[str, str]) -> Path:
    """The study file with some of its text changed, beside the original."""
    text = STUDY
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (home / name).write_text(text)
    return home / name


def is_one_sentence(error: str) -> bool:
    """Nothing but one line of `icrl-lab: ...`, after what a run says once everything is loaded."""
    lines = [line for line in error.splitlines() if not re.match(r"Task\(|\d+ rows? left out", line)]
    return len(lines) == 1 and lines[0].startswith("icrl-lab: ") and "Traceback" not in error and "%|" not in error


# ---------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("command", ["demo", "run", "report", "bench", "doctor"])
def test_every_command_has_help_with_an_example(run, command):
    status, out, _ = run(command, "--help")
    assert status == 0 and f"Example: icrl-lab {command}" in " ".join(out.split())
    assert "--verbose" in out


def test_the_program_lists_its_commands_and_version(run):
    status, out, _ = run("--help")
    assert status == 0 and "Example: icrl-lab" in out
    assert all(command in out for command in ("demo", "run", "report", "bench", "doctor"))
    assert run("--version")[1].startswith("icrl-lab ")
    assert run()[0] == run("rnu")[0] == run("report")[0] == 2


@pytest.mark.parametrize("command", ["lab", "dash"])
@pytest.mark.parametrize("port", ["99999", "-1", "http"])
def test_a_port_that_is_none_is_status_2(run, command, port):
    status, out, err = run(command, f"--port={port}")
    assert status == 2 and not out and f"a whole number up to 65535, not {port!r}" in err


def test_a_bench_that_cannot_be_kept_says_so_and_what_can_be_known_before_it_is_measured(run, monkeypatch, tmp_path):
    from icrl_lab import bench

    measured = []
    monkeypatch.setattr(bench, "run", lambda *_, **__: measured.append(1) or {"rows": []})
    monkeypatch.setattr(bench, "table", lambda _: "the table")
    status, out, err = run("bench", "--json", tmp_path)
    assert status == 2 and is_one_sentence(err) and "is a folder" in err and not measured
    (tmp_path / "file").write_text("")
    status, out, err = run("bench", "--json", tmp_path / "file" / "b.json")
    assert status == 1 and is_one_sentence(err) and "cannot be written" in err and "own" not in err
    assert "the table" in out
    assert run("bench", "--json", tmp_path / "b.json")[0] == 0 and (tmp_path / "b.json").is_file()


# --------------------------------------------------------------------------------------- a whole run


@pytest.fixture(scope="module")
def finished(home):
    """A run whose table has three rows that cannot be used, one with markup for an id."""
    bad = f'"{EVIL}",abc,nan,big\nm00,again,0.5,big\nm77,,0.5,big'
    table = pd.read_csv(home / "t.csv")
    write_table(home / "bad.csv", table["id"], table["y"], bad)
    study = variant(
        home, "drop.toml", ("t.csv", "bad.csv"), ('modality = "text"', f'on_bad = "drop"\nproperty = "{EVIL}"')
    )
    assert cli.main(["run", str(study), "--out", str(home / "finished")]) == 0
    return home / "finished"


def test_a_run_folder_holds_what_the_contract_names(finished):
    names = {p.name for p in finished.iterdir()}
    assert {"manifest.json", "predictions.parquet", "summary.csv", "baselines.csv", "maps", "report.html"} <= names
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["finished"] and manifest["seeds"] == [0, 1] and manifest["tokens"]["computed"] > 0
    frame = pd.read_parquet(finished / "predictions.parquet")
    assert len(frame) == 2 * 2 * 2 * 6 and set(frame["status"]) == {"ok"}
    assert not list(finished.glob("**/*.part"))


def test_further_encoders_of_a_study_file_bring_their_slots(home, run):
    """From files beside the study, whatever the current folder: two slots of one kind, then one each of two columns of the same."""
    held = np.load(home / "v.npz")
    wide = pd.DataFrame(
        {"id": held["ids"], "a": held["values"][:, 0], "b": held["values"][:, 1], "c": held["values"][:, 2]}
    )
    wide.to_parquet(home / "w.parquet")
    also = "[{ path = 'w.parquet', options = { columns = ['a', 'c'] } }]"
    study = variant(home, "more.toml", ('path = "v.npz"', f'path = "v.npz"\nslots = 2\nalso = {also}'))
    status, _, err = run("run", study, "--out", home / "more")
    assert status == 0, err
    shown = json.loads((home / "more" / "prompts.json").read_text())
    one = json.dumps(shown)
    plain = variant(home, "plain.toml")
    assert run("run", plain, "--out", home / "plain")[0] == 0
    alone = json.dumps(json.loads((home / "plain" / "prompts.json").read_text()))
    assert one.count('"<slot>"') == 3 * alone.count('"<slot>"') > 0
    spaces = set(pd.read_parquet(home / "more" / "predictions.parquet")["encoder"])
    assert len(spaces) == 1 and " + " in spaces.pop()
    run("run", study, "--out", home / "more", "--resume")
    manifest = json.loads((home / "more" / "manifest.json").read_text())
    assert manifest["study"]["encoder"]["slots"] == 2 and manifest["study"]["encoder"]["also"][0]["options"] == {
        "columns": ["a", "c"]
    }


def test_items_without_a_usable_vector_in_a_file_are_left_out(home, run):
    held = np.load(home / "v.npz")
    values = held["values"].copy()
    values[5, 3] = np.nan
    np.savez(home / "holes.npz", ids=held["ids"][:-2], values=values[:-2])
    holes = ("v.npz", "holes.npz")
    status, _, err = run("run", variant(home, "holes.toml", holes), "--out", home / "holes")
    assert status == 3 and is_one_sentence(err)
    study = variant(home, "holes.toml", holes, ('modality = "text"', 'modality = "text"\non_bad = "drop"'))
    assert run("run", study, "--out", home / "holes")[0] == 0
    dropped = json.loads((home / "holes" / "manifest.json").read_text())["task"]["dropped"]
    assert len(dropped) == 3 and {d["id"] for d in dropped} == {"m05", f"m{N - 2}", f"m{N - 1}"}


def test_dropped_rows_are_counted_and_listed(finished):
    dropped = json.loads((finished / "manifest.json").read_text())["task"]["dropped"]
    assert [row["row"] for row in dropped] == [N, N + 1, N + 2]
    assert [row["column"] for row in dropped] == ["y", "id", "text"]
    assert len(RunFolder.read(finished).items) == N
    places = [f"row {N + i} (line {N + i + 1})" for i in (1, 2, 3)]
    assert [row["place"] for row in dropped] == places  # and so the report says it
    assert all(place in (finished / "report.html").read_text() for place in places)


def test_the_report_escapes_what_it_was_given(finished):
    html = (finished / "report.html").read_text()
    assert "<img src=x" not in html and html.count("&lt;img src=x onerror=alert(1)&gt;") >= 2


def test_a_report_is_rebuilt_to_the_byte_without_torch_and_without_the_model(finished, tmp_path):
    before = (finished / "report.html").read_bytes()
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    script = (
        "import sys\nfrom icrl_lab.cli import main\nstatus = main(['report', sys.argv[1]])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\nsys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "run"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0 and done.stderr == "" and done.stdout.strip().endswith("report.html")
    assert (tmp_path / "run" / "report.html").read_bytes() == before


def test_a_classification_runs_from_any_folder_into_a_named_default(home, run, tmp_path):
    study = variant(
        home, "classes.toml", ('target = "y"', 'label = "kind"'), ("shots = 4", 'shots = 4\nselection = "balanced"')
    )
    status, out, err = run("run", study)  # the current folder is another: paths start at the study file
    assert status == 0 and "accuracy" in out.splitlines()[0] and "majority" in out
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("classes-") and str(folder.name) in err
    assert "%|" not in err and "it/s" not in err  # no bars where the output is no terminal
    assert set(pd.read_parquet(folder / "predictions.parquet")["prediction"]) <= {"big", "small"}


# ----------------------------------------------------------------------------- 2: a bad file or argument


@pytest.mark.parametrize(
    "old, new, says",
    [
        ("shots = 4", "shot = 4", r"bad.toml, line 21: .*'shot'; did you mean 'shots'"),
        ('"ridge"', '"rigde"', r"line 17: .*'rigde'; did you mean 'ridge'"),
        ("shots = 4", "shots = 0", r"line 21: .*shots must be a whole number"),
        ("[study]", "[studdy]", r"did you mean 'study'"),
        ("seeds = 2", "seeds = ", r"not valid TOML"),
        ('controls = ["real", "noise"]', 'controls = ["reel"]', r"did you mean 'real'"),
        ("queries = 6", 'queries = 6\nselection = "nearest"', r"'ridge' fits one map to the shots"),
        ('"ridge"]', '{name = "ridge", budget = 300}]', r"budget of 300 labels, and the pool 20 items"),
        ("queries = 6", "queries = 6\nqueries_per_prompt = 3", r"set decode = 'greedy' or 'sample'"),
        ("shots = 4", "shots = 1", r"'ridge' is fitted on labels and needs two"),
    ],
)
def test_a_bad_study_file_is_status_2(home, run, tmp_path, old, new, says):
    status, out, err = run("run", variant(home, "bad.toml", (old, new)), "--out", "o")
    assert status == 2 and is_one_sentence(err) and re.search(says, err) and out == ""
    assert not (tmp_path / "o").exists()


def test_bad_arguments_are_status_2(home, run, finished, tmp_path):
    for arguments, says in (
        (("run", home / "s.toml", "--resume"), "--resume needs --out"),
        (("demo", "--resume"), "--resume needs --out"),
        (("run", home / "none.toml"), "none.toml: No such file"),
        (("run", home), "Is a directory"),
        (("run", home / "s.toml", "--out", home / "t.csv"), "is a file"),
        (("run", home / "s.toml", "--out", home / "model"), "holds no run"),
        (("run", home / "drop.toml", "--out", finished), "already holds a run; add --resume"),
    ):
        status, _, err = run(*arguments)
        assert status == 2 and is_one_sentence(err) and says in err
    status, _, err = run("run", home / "s.toml", "--out", finished, "--resume")
    assert status == 2 and is_one_sentence(err) and "holds another study: study.task." in err


def test_fewer_items_than_queries_are_said(home, run):
    for asked, said in ((1000, True), (20, False)):
        study = variant(
            home, "x.toml", ("queries = 6", f"queries = {asked}"), ('"random-projection", "ridge"', '"text"')
        )
        status, _, err = run("run", study, "--out", f"o{asked}")
        assert status == 0 and ("queries = 1000, and the task has 20 items to ask about" in err) == said


@pytest.mark.parametrize(
    "arm, says",
    [
        ("random-projection", r"shots, a smaller repeat, or a model"),
        ("text", r"shots, a smaller repeat, vectors instead of text, or a model"),
    ],
)
def test_too_long_a_prompt_counts_its_shots_once_and_advises_only_what_would_help(home, run, arm, says):
    arms = ('"random-projection", "ridge"', f'"{arm}"')
    status, _, err = run("run", variant(home, "x.toml", ("shots = 4", "shots = 20\nrepeat = 16"), arms), "--out", "o")
    assert status == 3 and is_one_sentence(err) and "it holds 20 shots 16 times (repeat = 16)" in err
    assert re.search(f"take fewer {says}", err)


# --------------------------------------------------------------------------------------- 3: bad data


def _row(row: str):
    return lambda home: (home / "x.csv").write_text((home / "t.csv").read_text().rstrip() + "\n" + row + "\n")


def _vectors(change):
    def make(home):
        held = np.load(home / "v.npz")
        np.savez(home / "x.npz", **change(held["ids"], held["values"]))

    return make


CSV, NPZ = ("t.csv", "x.csv"), ("v.npz", "x.npz")
SMILES = (('text = "text"', 'text = "smiles"'), ('modality = "text"', ""), ('id = "id"', ""), CSV)


@pytest.mark.parametrize(
    "make, changes, says",
    [
        (lambda home: (home / "x.csv").unlink(missing_ok=True), [CSV], r"x\.csv: no such file"),
        (lambda home: (home / "x.csv").write_text(""), [CSV], r"x\.csv is empty"),
        (lambda home: (home / "x.csv").write_text("id,text,y\n"), [CSV], r"a header and no rows"),
        (lambda home: (home / "x.csv").write_text("smiles,y\nCCO,1\nC1CC,2\nCCN,3\n"), SMILES, r"row 2 \(line 3\), column 'smiles'.*'C1CC'"),
        (_row(""), [CSV, ('target = "y"', 'target = "logS"')], r"no column 'logS'; .*y"),
        (_row("m99,zzz,nan,big"), [CSV], r"row 41 \(line 42\), column 'y': .*'nan'.*on_bad"),
        (_row("m99,zzz,high,big"), [CSV], r"row 41 .*'high' is not a number"),
        (_row("m03,zzz,1.5,big"), [CSV], r"row 41 .*the id 'm03' stands already in row 4"),
        (lambda home: write_table(home / "x.csv", [f"m{i:02d}" for i in range(N)], [1.5] * N), [CSV], r"1\.5 in all 40 rows"),
        (_row(""), [("shots = 4", "shots = 21")], r"20 items in its pool and the study asks for 21 shots"),
        (lambda home: None, [NPZ], r"x\.npz: no such file"),
        (_vectors(lambda ids, values: {"ids": ids[:30], "values": values[:30]}), [NPZ], r"10 of 40 items have no vector.*'m30'"),
        (_vectors(lambda ids, values: {"values": values}), [NPZ], r"x\.npz: it lacks the array 'ids', and has \['values'\]"),
        (_vectors(lambda ids, values: {"ids": ids, "values": values * np.nan}), [NPZ], r"vector of 'm00' has a NaN"),
        (lambda home: (home / "x.npz").write_bytes(b"PK\x03\x04 cut"), [NPZ], r"x\.npz cannot be read"),
        (_vectors(lambda ids, values: {"ids": ids, "values": values * 0}), [NPZ], r"the 20 vectors of 'file:x@\w+' in the pool .* all zero"),
        (lambda home: None, [('target = "y"', 'label = "y"')], r"'y': its 40 labels are 40 different numbers.*target = 'y'"),
        (lambda home: None, [('text = "text"', 'text = "id"'), ('id = "id"', ""), ('path = "v.npz"', 'name = "morgan"')], r"none of the 40 items in column 'id' of t\.csv can be read as a molecule \(item 'm\d\d' .*name the column"),
    ],
)  # fmt: skip
def test_bad_data_is_status_3(home, run, tmp_path, make, changes, says):
    for left in ("x.csv", "x.npz"):
        (home / left).unlink(missing_ok=True)
    make(home)
    status, out, err = run("run", variant(home, "x.toml", *changes), "--out", "o")
    assert status == 3 and is_one_sentence(err) and re.search(says, err) and out == ""
    assert not (tmp_path / "o").exists()


def test_a_prompt_longer_than_the_context_is_status_3_and_blocks_nothing(home, run):
    table = pd.read_csv(home / "t.csv")
    table.assign(text=[f"{'ab ' * 200}{i}" for i in range(N)]).to_csv(home / "x.csv", index=False)
    study = variant(home, "x.toml", CSV, ('"random-projection", "ridge"', '"random-projection", "text"'))
    status, _, err = run("run", study, "--out", "o")
    assert status == 3 and is_one_sentence(err)
    assert re.search(r"the prompt has \d+ tokens .* the model reads 512: it holds 4 shots", err)
    assert run("run", home / "s.toml", "--out", "o")[0] == 0  # the folder kept nothing, so another study may have it


def _long(home):
    """A table with two texts that are longer than the model's context, one of them of a query."""
    table = pd.read_csv(home / "t.csv")
    for row in (3, 30):
        table.loc[row, "text"] = f"{'ab ' * 600}{row}"
    table.to_csv(home / "x.csv", index=False)


def _refused(home):
    """An encoder that cannot take two items."""
    (home / "x.csv").write_bytes((home / "t.csv").read_bytes())


@pytest.mark.parametrize("make, arms, says", [(_long, '"text"', "has [0-9]+ tokens, and .* reads 512"), (_refused, '"ridge"', "cannot be featurised")])  # fmt: skip
def test_an_item_that_encoder_or_model_cannot_take_is_named_or_left_out(home, run, monkeypatch, make, arms, says):
    import icrl_lab.encoders
    from icrl_lab.errors import ItemError

    encode = icrl_lab.encoders.encode

    def picky(task, *args, **options):
        for name in ("m03", "m30") if make is _refused else ():
            if name in task.ids:
                raise ItemError(name, f"item {name!r} cannot be featurised")
        return encode(task, *args, **options)

    monkeypatch.setattr(icrl_lab.encoders, "encode", picky)
    make(home)
    arms = ('"random-projection", "ridge"', f'"random-projection", {arms}')
    status, _, err = run("run", variant(home, "x.toml", CSV, arms), "--out", "o")
    assert status == 3 and is_one_sentence(err) and re.search(f"'m03' {says}", err)
    drop = ('modality = "text"', 'modality = "text"\non_bad = "drop"')
    status, _, err = run("run", variant(home, "x.toml", CSV, arms, drop), "--out", "o")
    assert status == 0 and re.search(rf"2 rows left out .* the first: .*'m03' {says}", err)
    found = RunFolder.read("o")
    assert [(row["id"], row["row"]) for row in found.manifest["task"]["dropped"]] == [("m03", None), ("m30", None)]
    assert len(found.items) == N - 2 and not {"m03", "m30"} & set(found.items["id"])
    assert run("report", "o")[0] == 0
    assert run("run", variant(home, "x.toml", CSV, arms, drop), "--out", "o", "--resume")[0] == 0


def test_a_folder_that_is_no_finished_run_has_no_report(run, home, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "summary.csv").write_text("arm\n")
    for name in ("cut", "less"):
        shutil.copytree(finished, tmp_path / name)
    (tmp_path / "cut" / "prompts.json").write_bytes((finished / "prompts.json").read_bytes()[:-9])
    (tmp_path / "less" / "prompts.json").unlink()
    for folder, says in (
        (home / "model", "no manifest.json"),
        ("none", "no such run folder"),
        ("run", "summary.csv was changed"),
        ("cut", "prompts.json was changed or damaged"),
        ("less", "prompts.json is missing"),
    ):
        status, out, err = run("report", folder)
        assert status == 3 and is_one_sentence(err) and says in err and out == ""


# ---------------------------------------------------------------------- 4: a model that cannot be had


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _pickle(model: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def _less(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, model / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda model: shutil.rmtree(model), r"there is no model folder .*broken"),
        (lambda model: _cut(model / "model.safetensors"), r"cannot be had"),
        (lambda model: (model / "model.safetensors").write_bytes(b""), r"cannot be had"),
        (
            _pickle,
            r"the model folder .*broken has no model\.safetensors \(pytorch_model\.bin is a pickle, which is not read\)",
        ),
        (lambda model: (model / "model.safetensors").unlink(), r"has no model\.safetensors; save model and tokenizer"),
        (lambda model: (model / "config.json").unlink(), r"has no config\.json; save"),
        (_less, r"lacks 1 of the weights .*layers\.1\.mlp\.down_proj"),
        (lambda model: (model / "config.json").write_text("{"), r"config\.json"),
        (lambda model: (model / "tokenizer.json").unlink(), r"has no tokenizer\.json; save"),
    ],
)
def test_a_damaged_model_folder_is_status_4(home, run, tmp_path, damage, says):
    shutil.rmtree(home / "broken", ignore_errors=True)
    shutil.copytree(home / "model", home / "broken")
    damage(home / "broken")
    status, out, err = run("run", variant(home, "x.toml", ("./model", "./broken")), "--out", "o")
    assert status == 4 and is_one_sentence(err) and re.search(says, err) and out == ""
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("name", ["./x.pt", "./t.csv"])
def test_a_file_of_another_kind_is_neither_model_nor_encoder(home, run, name):
    (home / "x.pt").write_bytes(b"\x80\x02}q\x00.")
    for old, what in (
        ("./model", "is no model: one is a folder with safetensors"),
        ('path = "v.npz"', "is no encoder"),
    ):
        new = name if old == "./model" else f'name = "{name}"'
        status, _, err = run("run", variant(home, "x.toml", (old, new)), "--out", "o")
        assert status == 4 and is_one_sentence(err) and what in err and "pickled weights are not read" in err


def test_hub_names_without_a_network_are_status_4(home, run):
    for old, new in (("./model", "nobody/no-such-model"), ('path = "v.npz"', 'name = "nobody/no-such-encoder"')):
        status, _, err = run("run", variant(home, "x.toml", (old, new)), "--out", "o")
        assert status == 4 and is_one_sentence(err) and "nobody/no-such" in err


def test_verbose_shows_the_traceback_and_keeps_the_status(home, run):
    status, _, err = run("run", variant(home, "x.toml", ("t.csv", "none.csv")), "--out", "o", "--verbose")
    assert status == 3 and "Traceback" in err and "DataError" in err


@pytest.mark.parametrize("command", [("dash",), ("lab", "--dir"), ("report",)])
def test_a_name_that_the_disk_refuses_is_no_error_of_our_own(home, run, command):
    status, _, err = run(*command, "a" * 300)
    assert status in (1, 3) and is_one_sentence(err) and "File name too long" in err and "own" not in err


def test_an_error_of_our_own_is_one_sentence_too(home, run, monkeypatch):
    monkeypatch.setattr("icrl_lab.report.write", lambda folder: {}["gone"])
    status, _, err = run("report", "x")
    assert status == 1 and is_one_sentence(err) and "KeyError: 'gone'" in err and "--verbose" in err


# ---------------------------------------------------------------------------------- 130 and worse days

LONG = (
    ("seeds = 2", "seeds = 8\ndraws = 4"),
    ('"random-projection", "ridge"', '"text", "random-projection", "ridge"'),
)
START = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from icrl_lab.cli import main; sys.exit(main())"


def cells_in(folder: Path) -> list[str]:
    file = folder / "cells.journal"
    return [key for key, _ in journal.records(file.read_bytes())] if file.exists() else []


def started(folder: Path, *arguments) -> subprocess.Popen:
    """A process of its own in the middle of a run: it has finished some cells more than the folder held before."""
    before, environment = len(cells_in(folder)), {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", START, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    limit = time.monotonic() + 120
    while len(cells_in(folder)) < before + 3:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < limit
        time.sleep(0.005)
    return process


@pytest.mark.slow
def test_a_run_survives_ctrl_c_and_kill_9_and_ends_as_if_nothing_had_happened(home, run, tmp_path):
    study, folder = variant(home, "long.toml", *LONG), tmp_path / "o"
    process = started(folder, "run", study, "--out", folder)
    status, _, err = run("run", study, "--out", folder)
    assert status == 2 and is_one_sentence(err) and f"in use by process {process.pid}" in err
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and "Traceback" not in err and "%|" not in err
    assert err.splitlines()[-1] == f"icrl-lab: stopped; every finished cell is kept in {folder}, go on with --resume"
    kept = cells_in(folder)
    assert 3 <= len(kept) < 8 * 5
    status, _, err = run("report", folder)
    assert status == 3 and is_one_sentence(err) and "unfinished" in err and "--resume" in err

    process = started(folder, "run", study, "--out", folder, "--resume")
    process.kill()
    process.communicate()
    more = cells_in(folder)
    assert more[: len(kept)] == kept and len(kept) < len(more) < 8 * 5

    status, out, _ = run("run", study, "--out", folder, "--resume")
    every = cells_in(folder)
    assert status == 0 and every[: len(more)] == more and len(every) == len(set(every)) == 8 * 5  # nothing twice
    assert run("run", study, "--out", "whole")[:2] == (0, out)  # the same table, to the last digit it shows
    one, other = (
        pd.read_parquet(f / "predictions.parquet").drop(columns="seconds") for f in (folder, tmp_path / "whole")
    )
    pd.testing.assert_frame_equal(one, other, rtol=1e-4, atol=1e-5)
    both = folder, tmp_path / "whole"
    files, whole = (json.loads((f / "manifest.json").read_text())["files"] for f in both)
    assert {n: d for n, d in files.items() if n.startswith("maps/")} == {
        n: d for n, d in whole.items() if n.startswith("maps/")
    }


def test_a_finished_run_is_resumed_without_computing(home, run, finished, monkeypatch):
    before = json.loads((finished / "manifest.json").read_text())
    monkeypatch.setattr("icrl_lab.studies.Study.compute", None)
    assert run("run", home / "drop.toml", "--out", finished, "--resume")[0] == 0
    after = json.loads((finished / "manifest.json").read_text())
    assert after["seconds"] == before["seconds"] and after["tokens"] == before["tokens"]
    assert after["files"]["predictions.parquet"] == before["files"]["predictions.parquet"]


def test_a_changed_table_does_not_resume(home, run):
    (home / "x.csv").write_text((home / "t.csv").read_text())
    study = variant(home, "x.toml", CSV, ("seeds = 2", "seeds = 1"))
    assert run("run", study, "--out", "o")[0] == 0
    (home / "x.csv").write_text((home / "t.csv").read_text().replace("aaa0,", "aab0,"))  # the text of one item
    status, _, err = run("run", study, "--out", "o", "--resume")
    assert status == 2 and is_one_sentence(err) and "inputs.task" in err


@pytest.fixture(params=["120k", "400k"])
def small_disk(request, tmp_path):
    """A disk that fills up: among the cells, or once the report is written. Needs the right to mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", disk], capture_output=True)
    if made.returncode:
        pytest.skip("a disk cannot be mounted here; test_folder.py has a full disk by other means")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_is_one_sentence_and_loses_nothing(home, run, small_disk):
    folder = small_disk / "o"
    status, _, err = run("run", variant(home, "full.toml", ("seeds = 2", "seeds = 10")), "--out", folder)
    assert status == 1 and is_one_sentence(err) and "the disk is full" in err and "--resume" in err
    kept = cells_in(folder)
    assert kept
    subprocess.run(["mount", "-o", "remount,size=50m", small_disk], check=True)
    assert run("run", home / "full.toml", "--out", folder, "--resume")[0] == 0
    every = cells_in(folder)
    assert every[: len(kept)] == kept and len(set(every)) == len(every) == 10 * 4
    assert (folder / "report.html").exists() and not list(folder.glob("**/*.part"))


# -------------------------------------------------------------------------------------------- doctor


def test_a_terminal_sees_a_bar_with_the_time_left(home, run, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run("run", home / "s.toml", "--out", "o")[0] == 0
    assert re.search(r"t: 100%\|.*\| 8/8 \[\d\d:\d\d<\d\d:\d\d.*ridge noise, seed 1", terminal.getvalue())


@pytest.fixture
def light(monkeypatch):
    """The doctor without what is heavy: an encoder and a model."""
    monkeypatch.setattr(doctor, "_encoder", lambda: "an encoder")
    monkeypatch.setattr(doctor, "_model", lambda: "a model")


def test_doctor_says_what_is_there_line_by_line_and_as_json(run, light):
    status, out, _ = run("doctor")
    assert status == 0 and re.search(r"^ok  torch: \d", out, re.M) and "ok  model: a model" in out
    status, out, _ = run("doctor", "--json")
    found = json.loads(out)
    assert status == 0 and {"name", "ok", "needed", "says"} == set(found[0])
    assert {"python", "torch", "rdkit", "data", "encoder", "model"} <= {check["name"] for check in found}
    assert all(check["ok"] is True for check in found if check["needed"])


def test_a_refused_probe_does_not_hide_what_is_finished(home, run):
    (home / "asked.toml").write_text(STUDY + '\n[probes]\nquestions = ["lens"]\nqueries = 5\n')
    status, out, err = run("run", home / "asked.toml", "--out", "refused")
    assert (
        status == 2
        and "random-projection" in out
        and "1 of 1 questions could not be asked; lens" in err.splitlines()[-1]
    )
    assert "run folder refused; report" in err and Path("refused/report.html").is_file()


@pytest.mark.parametrize("variable, below", [("XDG_CACHE_HOME", "icrl_lab"), ("ICRL_LAB_CACHE", "")])
def test_the_cache_is_where_the_environment_says_and_an_empty_word_says_nothing(monkeypatch, tmp_path, variable, below):
    from icrl_lab.files import cache_dir

    for name in ("ICRL_LAB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "icrl_lab"
    monkeypatch.setenv(variable, str(tmp_path / "here"))
    assert cache_dir("a") == tmp_path / "here" / below / "a" and cache_dir("a").is_dir()
    monkeypatch.setenv(variable, "~/there")
    assert cache_dir() == tmp_path / "there" / below


def test_a_cache_that_cannot_be_made_is_a_problem_of_the_machine(monkeypatch, tmp_path):
    from icrl_lab.files import cache_dir

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ICRL_LAB_CACHE", str(tmp_path / "file"))
    with pytest.raises(IcrlError, match=r"cache folder .*file/models cannot be made .*set ICRL_LAB_CACHE") as error:
        cache_dir("models")
    assert error.value.exit_status == 1


def test_doctor_says_that_there_can_be_no_cache(run, light, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ICRL_LAB_CACHE", str(tmp_path / "file"))
    status, out, err = run("doctor")
    assert (
        status == 1
        and err == ""
        and re.search(r"NO  cache: the cache folder .*file cannot be made .*set ICRL_LAB_CACHE", out)
    )


def test_doctor_fails_where_the_main_job_would(run, light, monkeypatch):
    for error, says in (
        (ModelError("the model cannot be had"), "NO  model: the model cannot"),
        (RuntimeError("a\nb"), "NO  model: RuntimeError: a b"),
    ):

        def broken(error=error):
            raise error

        monkeypatch.setattr(doctor, "_model", broken)
        status, out, err = run("doctor")
        assert status == 1 and says in out and err == ""
        assert json.loads(run("doctor", "--json")[1])[-1]["ok"] is False


def test_doctor_repeats_the_statistics(run, monkeypatch):
    from icrl_lab.stats import simulate

    few = {"SCENARIOS": simulate.SCENARIOS[:1], "HARD": (), "SEEDS": (3,), "ITEMS": (32,)}
    for name, value in few.items():
        monkeypatch.setattr(simulate, name, value)
    monkeypatch.setattr(simulate, "power_table", lambda items, studies: [{"seeds": 5, "items": 64, "r = 0.3": 0.5}])
    real = simulate.report
    monkeypatch.setattr(simulate, "report", lambda: real(studies=2))
    status, out, _ = run("doctor", "--statistics")
    lines = out.splitlines()
    assert lines[0].startswith("ok  coverage rmse, typical: ") and "3 seeds x 32 items, limits 0.92 to 1.00" in lines[0]
    assert "power at r = 0.3" in lines[-1] and "0.500" in lines[-1] and "not bound" in lines[-1]
    monkeypatch.setattr(simulate, "report", lambda: ({**row, "ok": row["what"] != "coverage mae"} for row in real(2)))
    status, out, _ = run("doctor", "--statistics")
    assert status == 1 and len(re.findall("^NO  ", out, re.M)) == 1 and "NO  coverage mae" in out
    found = json.loads(run("doctor", "--statistics", "--json")[1])
    assert [check["needed"] for check in found][-2:] == [True, False]


def test_a_run_is_opened_with_its_model_again(home, run, tmp_path):
    """Live: loaded as its study file would, and the same; what has changed since is refused."""
    import icrl_lab as lab

    assert run("run", home / "s.toml", "--out", "out")[0] == 0
    again = lab.open_run("out", live=True, progress=False)
    assert again.study is not None and lab.open_run("out").study is None
    cell = again.study.cells()[1]
    row = again.predictions[again.predictions["arm"] == cell.arm.label]
    row = row[(row["control"] == cell.control) & (row["seed"] == cell.seed) & (row["with_text"] == cell.with_text)]
    now = again.study.compute(cell).set_index("item")["prediction"]
    then = row[row["labels"] == cell.labels].set_index("item")["prediction"]
    assert np.allclose(now.loc[then.index].astype(float), then.astype(float), atol=1e-4) and len(then)
    shutil.copytree(home, tmp_path / "mine")
    assert run("run", "mine/s.toml", "--out", "out2")[0] == 0
    held = np.load("mine/v.npz")
    np.savez("mine/v.npz", ids=held["ids"], values=held["values"] * 2)
    with pytest.raises(lab.IcrlError, match="its vectors, encoder differ"):
        lab.open_run("out2", live=True, progress=False)
    lab.Study(again.study.task, again.study.vectors, again.study.llm, arms=["text"], seeds=1, shots=3).run(
        "py", progress=False
    )
    with pytest.raises(lab.IcrlError, match="started in Python"):
        lab.open_run("py", live=True, progress=False)
    status, _, error = run("dash", "py", "--live", "--no-browser")
    assert status == 3 and is_one_sentence(error)
