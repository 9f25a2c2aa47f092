"""A run folder loses nothing that was finished and believes nothing that was damaged."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import statistics
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icrl_lab.errors import DataError, IcrlError, StudyError
from icrl_lab.studies import folder as folder_module
from icrl_lab.studies.folder import COLUMNS, RunFolder
from icrl_lab.studies.journal import Journal, pack, records, unpack
from icrl_lab.values import SlotMap, Step
from tests.timing import cheapest

MANIFEST = {
    "study": {"study": {"shots": [20], "arms": ["text"]}, "task": {"name": "freesolv"}},
    "inputs": {"data": "ab"},
}


def cell(arm: str = "text", seed: int = 0, n: int = 3) -> pd.DataFrame:
    rng = np.random.default_rng([seed, len(arm)])
    rows = {c: [f"{c}{i}" for i in range(n)] for c in COLUMNS}
    rows |= {"arm": [arm] * n, "seed": [seed] * n, "target": rng.normal(size=n), "prediction": rng.normal(size=n)}
    rows |= {"with_text": [False] * n, "item": [f"m{i}" for i in range(n)], "shot_items": [["a", "b"]] * n}
    return pd.DataFrame(rows)


def whole(path, arms=("text", "noise", "moments")) -> None:
    """A finished run with one map."""
    slot_map = SlotMap("ridge", "a", "b", (Step("linear", {"weight": np.arange(6.0).reshape(2, 3)}),), {"seed": 1})
    with RunFolder.open_for_writing(path, MANIFEST) as run:
        for arm in arms:
            run.put(f"{arm}/0", cell(arm))
        summary = pd.DataFrame({"arm": list(arms), "pearson": [0.1, 1 / 3, float("nan")][: len(arms)]})
        baselines = pd.DataFrame({"baseline": ["mean"], "rmse": [1.25]})
        items = pd.DataFrame({"id": ["m0"], "text": ["CCO"], "target": [0.5], "role": ["pool"]})
        run.finish({"seconds": 1.5}, summary, baselines, {"ridge x16/seed 0": slot_map}, items)


def test_what_is_put_is_what_is_read(tmp_path):
    whole(tmp_path / "run")
    record = RunFolder.read(tmp_path / "run")
    expected = pd.concat([cell(a) for a in sorted(("text", "noise", "moments"))], ignore_index=True)
    assert list(record.predictions.columns) == list(COLUMNS)
    for column in COLUMNS:
        assert [list(v) if column == "shot_items" else v for v in record.predictions[column]] == list(expected[column])
    assert record.summary["pearson"][1] == 1 / 3 and np.isnan(record.summary["pearson"][2])  # every digit of it
    assert record.manifest["seconds"] == 1.5 and record.manifest["study"] == MANIFEST["study"]
    assert record.items["text"].tolist() == ["CCO"]
    (name,) = record.maps
    assert record.load_map(name).recipe["seed"] == 1


def test_two_orders_of_computation_leave_the_same_bytes(tmp_path):
    whole(tmp_path / "a", ("text", "noise"))
    whole(tmp_path / "b", ("noise", "text"))
    assert (tmp_path / "a/predictions.parquet").read_bytes() == (tmp_path / "b/predictions.parquet").read_bytes()


def test_words_stay_words(tmp_path):
    with RunFolder.open_for_writing(tmp_path, MANIFEST) as run:
        run.put("a", cell())
        run.finish({}, pd.DataFrame({"arm": ["None", "1", "nan"], "order": ["NA", "true", "1e3"], "n": [1, 2, 3]}))
    summary = RunFolder.read(tmp_path).summary
    assert summary["arm"].tolist() == ["None", "1", "nan"] and summary["order"].tolist() == ["NA", "true", "1e3"]
    assert RunFolder.read(tmp_path).baselines.empty


@settings(max_examples=150, deadline=None)
@given(cut=st.integers(0, 10_000), flip=st.one_of(st.none(), st.integers(0, 10_000)))
def test_a_journal_cut_or_bitten_anywhere_yields_only_what_was_written(cut, flip):
    truth = {f"cell/{i}": pack(cell(seed=i)) for i in range(3)}
    global _JOURNAL_BYTES
    data = bytearray(_JOURNAL_BYTES)
    data = data[: cut % (len(data) + 1)]
    if flip is not None and data:
        data[flip % len(data)] ^= 0x10
    found = list(records(bytes(data)))
    assert all(truth[key] == table for key, table in found)
    whole_records = sum(end <= len(data) for end in _ENDS)
    assert len(found) >= whole_records - (flip is not None)  # one bite costs at most the one record it hits


def _journal_bytes(tmp) -> tuple[bytes, list[int]]:
    path, ends = tmp / "j", []
    journal = Journal(path)
    for i in range(3):
        journal.append(f"cell/{i}", cell(seed=i))
        ends.append(path.stat().st_size)
    journal.close()
    return path.read_bytes(), ends


@pytest.fixture(scope="module", autouse=True)
def _a_journal(tmp_path_factory):
    global _JOURNAL_BYTES, _ENDS
    _JOURNAL_BYTES, _ENDS = _journal_bytes(tmp_path_factory.mktemp("journal"))


def test_a_torn_journal_opens_resumes_and_keeps_what_follows(tmp_path):
    whole(tmp_path / "run")
    journal = tmp_path / "run" / "cells.journal"
    data = journal.read_bytes()
    for cut in (0, 1, 47, 48, 60, len(data) // 2, len(data) - 1):
        journal.write_bytes(data[:cut])
        with RunFolder.open_for_writing(tmp_path / "run", MANIFEST, resume=True) as run:
            left = run.finished()
            run.put("new/0", cell("new", 7))
        with RunFolder.open_for_writing(tmp_path / "run", MANIFEST, resume=True) as run:
            assert run.finished() == left | {"new/0"}
            arms = set(run.predictions()["arm"])
            assert arms == {key.split("/")[0] for key in left} | {"new"}


def test_files_cut_at_any_byte_are_an_error_or_the_truth(tmp_path):
    whole(tmp_path / "run")
    truth = RunFolder.read(tmp_path / "run")
    rng = np.random.default_rng(0)
    names = ["manifest.json", "predictions.parquet", "summary.csv", "baselines.csv", "items.parquet"]
    for name in names:
        file = tmp_path / "run" / name
        data = file.read_bytes()
        for cut in {0, 1, len(data) - 1, len(data) - 2, *rng.integers(0, len(data), 12).tolist()}:
            bitten = bytearray(data)
            bitten[cut % len(data)] ^= 1
            for wrong in (data[:cut], bytes(bitten), data[:cut] + b"\x00" + data[cut:]):
                file.write_bytes(wrong)
                try:
                    record = RunFolder.read(tmp_path / "run")
                except DataError as error:
                    assert name in str(error)
                else:  # only what changes no value passes: the manifest's last newline, say
                    assert name == "manifest.json" and record.manifest == truth.manifest
        file.write_bytes(data)
        file.unlink()
        with pytest.raises(DataError, match=name):
            RunFolder.read(tmp_path / "run")
        file.write_bytes(data)
    RunFolder.read(tmp_path / "run")


def test_a_damaged_map_is_refused_and_a_missing_one_named(tmp_path):
    whole(tmp_path / "run")
    record = RunFolder.read(tmp_path / "run")
    (file,) = (tmp_path / "run/maps").iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match="damaged"):
        record.load_map(record.maps[0])
    with pytest.raises(DataError, match="no slot map"):
        record.load_map("../../etc/passwd")


@pytest.mark.parametrize(
    "manifest", ["", "[]", "{}", "null", '{"sha256": 1}', "[" * 100_000, '{"sha256": "x", "files": {}}']
)
def test_a_foreign_manifest_is_a_data_error(tmp_path, manifest):
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(DataError, match=r"manifest\.json"):
        RunFolder.read(tmp_path)
    with pytest.raises(DataError, match=r"manifest\.json"):
        RunFolder.open_for_writing(tmp_path, MANIFEST, resume=True)


def test_reading_what_is_not_a_finished_run_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="no such run folder"):
        RunFolder.read(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file: not a folder"):
        RunFolder.read(tmp_path / "file")
    with pytest.raises(DataError, match="no such run folder"):
        RunFolder.read(tmp_path / "file" / "run")
    with pytest.raises(DataError, match="cannot be read: File name too long"):
        RunFolder.read(tmp_path / ("a" * 300))
    (tmp_path / "file").unlink()
    with pytest.raises(DataError, match="not a run folder"):
        RunFolder.read(tmp_path)
    with RunFolder.open_for_writing(tmp_path, MANIFEST) as run:
        run.put("a", cell())
    with pytest.raises(DataError, match="--resume"):
        RunFolder.read(tmp_path)


# ------------------------------------------------------------------------------------- who may write


def test_a_run_is_not_overwritten_and_a_foreign_folder_not_touched(tmp_path):
    whole(tmp_path / "run")
    with pytest.raises(StudyError, match=r"--resume.*--out"):
        RunFolder.open_for_writing(tmp_path / "run", MANIFEST)
    foreign = tmp_path / "home"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("x")
    for resume in (False, True):
        with pytest.raises(StudyError, match=r"thesis\.tex"):
            RunFolder.open_for_writing(foreign, MANIFEST, resume=resume)
    assert [p.name for p in foreign.iterdir()] == ["thesis.tex"]
    with pytest.raises(StudyError, match="is a file"):
        RunFolder.open_for_writing(foreign / "thesis.tex", MANIFEST)


@pytest.mark.parametrize(
    "key, value, says",
    [
        (
            "study",
            {"study": {"shots": [10], "arms": ["text"]}, "task": {"name": "freesolv"}},
            r"study\.study\.shots is \[20\] there and \[10\]",
        ),
        ("study", {"study": {"shots": [20], "arms": ["text"]}}, r"study\.task is .*freesolv.* and not set here"),
        ("inputs", {"data": "cd"}, "inputs.data"),
    ],
)
def test_another_study_does_not_resume(tmp_path, key, value, says):
    whole(tmp_path / "run")
    before = (tmp_path / "run/manifest.json").read_bytes()
    with pytest.raises(StudyError, match=says):
        RunFolder.open_for_writing(tmp_path / "run", {**MANIFEST, key: value}, resume=True)
    assert (tmp_path / "run/manifest.json").read_bytes() == before


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for place, says in (("file/run", "file is a file"), ("link", "is a link to"), ("link/run", "link is a link to")):
        with pytest.raises(StudyError, match=says):
            RunFolder.refuse(tmp_path / place)
    RunFolder.refuse(tmp_path / "new" / "and" / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link"]
    asked = []
    monkeypatch.setattr("os.access", lambda path, mode: asked.append(path))
    with pytest.raises(StudyError, match="nothing may be written in"):
        RunFolder.refuse(tmp_path / "new" / "run")
    assert asked == [tmp_path]


def test_a_folder_that_the_disk_will_not_make_is_refused_and_the_trial_leaves_nothing(tmp_path):
    with pytest.raises(StudyError, match=r"/proc/x.* cannot be made.*; choose another --out"):
        RunFolder.refuse("/proc/x/run")
    RunFolder.refuse(tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_a_run_that_kept_nothing_is_begun_anew_also_as_another_study(tmp_path):
    RunFolder.open_for_writing(tmp_path, MANIFEST).close()
    RunFolder.refuse(tmp_path)
    other = {**MANIFEST, "inputs": {"data": "cd"}}
    for resume in (False, True):
        with RunFolder.open_for_writing(tmp_path, other, resume=resume) as run:
            assert "resumed" not in run.manifest
            with pytest.raises(StudyError, match="in use"):
                RunFolder.refuse(tmp_path)
    with RunFolder.open_for_writing(tmp_path, other) as run:
        run.put("a", cell())
    with pytest.raises(StudyError, match="--resume"):
        RunFolder.refuse(tmp_path)
    RunFolder.refuse(tmp_path, resume=True)
    RunFolder.refuse(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_resume_of_nothing_starts_and_tuples_equal_lists(tmp_path):
    study = {"study": {"shots": (20, np.int64(5))}}
    with RunFolder.open_for_writing(tmp_path / "new", {"study": study}, resume=True) as run:
        run.put("a", cell())
    with RunFolder.open_for_writing(tmp_path / "new", {"study": study, "seconds": float("nan")}, resume=True) as run:
        assert run.manifest["resumed"] == 1
    assert "NaN" not in (tmp_path / "new/manifest.json").read_text()


def _hold(path, ready):
    run = RunFolder.open_for_writing(path, MANIFEST)
    run.put("text/0", cell())
    ready.set()
    for i in range(10_000):
        run.put(f"many/{i}", cell("many", i))
    time.sleep(60)


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "run", ready))
    process.start()
    try:
        assert ready.wait(20)
        for resume in (False, True):
            with pytest.raises(StudyError, match=f"in use by process {process.pid}"):
                RunFolder.open_for_writing(tmp_path / "run", MANIFEST, resume=resume)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    with RunFolder.open_for_writing(tmp_path / "run", MANIFEST, resume=True) as run:
        assert "text/0" in run.finished()
        frame = run.predictions()
        assert len(frame) == 3 * len(run.finished())


def test_the_same_process_is_refused_too_and_closing_frees(tmp_path):
    run = RunFolder.open_for_writing(tmp_path / "run", MANIFEST)
    with pytest.raises(StudyError, match="in use"):
        RunFolder.open_for_writing(tmp_path / "run", MANIFEST, resume=True)
    run.close()
    run.close()
    RunFolder.open_for_writing(tmp_path / "run", MANIFEST, resume=True).close()


def test_a_kill_before_the_manifest_leaves_a_folder_that_starts(tmp_path):
    (tmp_path / ".lock").write_text("999999")
    (tmp_path / ".manifest.json.999999.part").write_text('{"stu')
    RunFolder.open_for_writing(tmp_path, MANIFEST).close()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "cells.journal", "manifest.json"]


# ------------------------------------------------------------------------------------------- the disk


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path, monkeypatch):
    with RunFolder.open_for_writing(tmp_path, MANIFEST) as run:
        run.put("a", cell())
        before = (tmp_path / "cells.journal").read_bytes()
        real = os.write

        def half_then_full(file, data):
            if len(data) < 300:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(file, data[: len(data) // 2])

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", half_then_full)
            with pytest.raises(IcrlError, match="disk is full"):
                run.put("b", cell())
        assert run.finished() == {"a"} and (tmp_path / "cells.journal").read_bytes() == before
        run.put("c", cell())
    with RunFolder.open_for_writing(tmp_path, MANIFEST, resume=True) as run:
        assert run.finished() == {"a", "c"}


def test_a_full_disk_while_finishing_leaves_a_folder_that_resumes(tmp_path, monkeypatch):
    def full(path, table):
        raise OSError(errno.ENOSPC, "No space left on device")

    with RunFolder.open_for_writing(tmp_path, MANIFEST) as run:
        run.put("a", cell())
        with monkeypatch.context() as patch:
            patch.setattr(folder_module, "_write_table", full)
            with pytest.raises(IcrlError, match="disk is full"):
                run.finish({}, pd.DataFrame())
    with RunFolder.open_for_writing(tmp_path, MANIFEST, resume=True) as run:
        assert run.finished() == {"a"}
        run.finish({}, pd.DataFrame({"arm": ["x"]}))
    assert len(RunFolder.read(tmp_path).predictions) == 3


def test_a_put_costs_the_same_however_many_there_were_and_reading_grows_with_them_alone(tmp_path):
    rows, spent = cell(n=100), []
    with RunFolder.open_for_writing(tmp_path, MANIFEST) as run:
        for i in range(300):
            start = time.process_time()
            run.put(str(i), rows)
            spent.append(time.process_time() - start)
            if i == 29:
                few = cheapest(run.predictions, 3)
        first, last = (statistics.median(some) for some in (spent[:60], spent[-60:]))
        assert last < 3 * first and statistics.median(spent) < 0.05  # seconds; some 2 ms where nothing else runs
        assert len(run.predictions()) == 30_000
        assert cheapest(run.predictions, 3) < 30 * few  # of ten times as many; were it quadratic, 100 times


def test_cells_of_different_shapes_join(tmp_path):
    a, b = cell(), cell().assign(prediction=None, extra="x")
    both = unpack([pack(a), pack(b)])
    assert both["prediction"].isna().tolist() == [False] * 3 + [True] * 3
    assert both["extra"].isna().tolist() == [True] * 3 + [False] * 3


def test_names_of_maps_stay_inside_the_folder_and_do_not_collide(tmp_path):
    slot_map = SlotMap("ridge", "a", "b", (), {})
    names = ["../../evil", "a b", "a-b", "a/b", "", "é" * 300, "CON.txt"]
    with RunFolder.open_for_writing(tmp_path / "run", MANIFEST) as run:
        for name in names:
            run.put_map(name, slot_map)
        run.finish({}, pd.DataFrame({"arm": ["x"]}))
    assert len(RunFolder.read(tmp_path / "run").maps) == len(names)
    assert {p.name for p in tmp_path.iterdir()} == {"run"}


def test_the_manifest_is_json_that_names_every_file(tmp_path):
    whole(tmp_path / "run")
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    on_disk = {str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert set(manifest["files"]) == on_disk - {".lock", "cells.journal", "manifest.json"}
    shutil.copytree(tmp_path / "run", tmp_path / "moved")
    assert len(RunFolder.read(tmp_path / "moved").predictions) == 9  # a run folder may be moved


def test_two_threads_that_write_one_file_write_it_whole(tmp_path):
    from threading import Barrier, Thread

    from icrl_lab.files import atomic

    both, failed = Barrier(2), []

    def put(letter):
        try:
            with atomic(tmp_path / "a") as part:
                part.write_text(letter * 9)
                both.wait(5)
                assert part.read_text() == letter * 9
                both.wait(5)
        except Exception as error:
            failed.append(error)

    threads = [Thread(target=put, args=(letter,)) for letter in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and (tmp_path / "a").read_text() in ("a" * 9, "b" * 9)
    assert [f.name for f in tmp_path.iterdir()] == ["a"]
