"""The room of tasks: what a table becomes, what it is refused for, and that no item is on both sides of a split."""

from __future__ import annotations

import csv
import io
import logging
import math
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from icrl_lab.errors import DataError, StudyError
from icrl_lab.tasks import TASKS, load_task, split, synthetic_truth
from icrl_lab.tasks import bundled as bundled_module
from icrl_lab.tasks.layouts import TDC
from icrl_lab.tasks.molecules import canonical, scaffold
from icrl_lab.tasks.rows import number
from icrl_lab.values import Task
from tests.timing import cheapest

SMILES = ["CCO", "c1ccccc1", "CC(=O)O", "CCN", "c1ccncc1", "CCCC", "Cc1ccccc1", "C1CCCCC1", "CCCl", "O=C1CCCN1"]
TARGETS = [0.5, -1.25, 3.0, 1e-3, -7.125, 2.5, 0.0, 4.75, -0.1, 1.1]
ESOL = "measured log solubility in mols per litre"
FUZZ = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def frame(n: int = 10, **more) -> pd.DataFrame:
    return pd.DataFrame({"id": [f"m{i}" for i in range(n)], "smiles": SMILES[:n], "y": TARGETS[:n], **more})


def put(folder: Path, text: str | bytes, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def sides(task: Task) -> tuple[set[str], set[str]]:
    return {task.ids[p] for p in task.pool}, {task.ids[q] for q in task.queries}


def same(a: Task, b: Task) -> bool:
    """Equal in all but where they came from."""
    return (
        (a.ids, a.items, a.text, a.labels, a.options, a.modality)
        == (b.ids, b.items, b.text, b.labels, b.options, b.modality)
        and (a.targets is None or np.array_equal(a.targets, b.targets))
        and np.array_equal(a.pool, b.pool)
        and np.array_equal(a.queries, b.queries)
        and [(d.row, d.id, d.column) for d in a.dropped] == [(d.row, d.id, d.column) for d in b.dropped]
    )


# ------------------------------------------------------------------------------------------- splits


@given(
    n=st.integers(2, 40),
    seed=st.integers(0, 99),
    fraction=st.floats(0.01, 0.99),
    shuffle=st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_random_split_is_a_partition_that_depends_on_ids_alone(n, seed, fraction, shuffle):
    rows = [(f"i{k}", f"text {k}", float(k)) for k in range(n)]
    tasks = []
    for _ in range(2):
        table = pd.DataFrame(rows, columns=["id", "text", "y"])
        tasks.append(load_task(table, target="y", seed=seed, query_fraction=fraction, split="random"))
        shuffle.shuffle(rows)
    pool, queries = sides(tasks[0])
    assert pool & queries == set() and pool | queries == set(tasks[0].ids)
    assert len(queries) == min(max(round(fraction * n), 1), n - 1)
    first, second = (([t.ids[p] for p in t.pool], [t.ids[q] for q in t.queries]) for t in tasks)
    assert first == second  # the same sets, in the same order


def test_leaving_out_an_item_moves_no_other_item_past_another():
    whole = load_task(frame(), target="y")
    part = load_task(frame().drop(index=[3]), target="y")
    order = lambda t: [t.ids[p] for p in (*t.queries, *t.pool)]  # noqa: E731
    assert [i for i in order(whole) if i != "m3"] == order(part)


def test_the_seed_moves_the_split_and_is_the_only_thing_that_does():
    drawn = {tuple(load_task("synthetic", n=64, seed=0).queries)}
    task = load_task("synthetic", n=64)
    for seed in range(5):
        drawn.add(tuple(split(task, "random", seed).queries))
        assert same(split(task, "random", seed), split(split(task, "random", seed + 1), "random", seed))
    assert len(drawn) == 5


def test_neither_side_stands_in_the_order_of_the_table():
    """A study takes the first so many queries: they must be a random sample also of a table sorted by target."""
    table = pd.DataFrame({"text": [f"t{i}" for i in range(1000)], "y": range(1000)})
    task = load_task(table, target="y")
    for side in (task.pool, task.queries):
        assert abs(np.corrcoef(np.arange(len(side)), task.targets[side])[0, 1]) < 0.15


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("seed", [0, 1])
def test_scaffold_split_shares_no_scaffold(fraction, seed):
    smiles = [f"{'C' * k}{ring}" for k in range(1, 7) for ring in ("c1ccccc1", "c1ccncc1", "C1CCCC1", "N1CCOCC1", "")]
    smiles += ["c1ccc2ccccc2c1", "O=C1CCCN1", "c1ccsc1", "c1ccoc1"]
    rows = list(zip(smiles, np.linspace(-3, 3, len(smiles))))
    task = load_task(
        pd.DataFrame(rows, columns=["smiles", "y"]), target="y", split="scaffold", seed=seed, query_fraction=fraction
    )
    shells = [{scaffold(task.items[p]) for p in side} for side in (task.pool, task.queries)]
    assert shells[0] and shells[1] and not shells[0] & shells[1]
    assert len(task.pool) + len(task.queries) == len(task) and len(task.queries) >= round(fraction * len(task))
    random.Random(1).shuffle(rows)
    again = load_task(
        pd.DataFrame(rows, columns=["smiles", "y"]), target="y", split="scaffold", seed=seed, query_fraction=fraction
    )
    assert sides(again) == sides(task)
    loose = load_task(
        pd.DataFrame(rows, columns=["smiles", "y"]), target="y", split="random", seed=seed, query_fraction=fraction
    )
    shared = [{scaffold(loose.items[p]) for p in side} for side in (loose.pool, loose.queries)]
    assert shared[0] & shared[1]  # a random split of the same molecules does share


def test_scaffold_split_refuses_what_has_no_scaffolds_to_part():
    with pytest.raises(StudyError, match="needs molecules"):
        load_task("digits", split="scaffold")
    with pytest.raises(DataError, match="leaves no item for the pool"):
        load_task(pd.DataFrame({"smiles": ["CC", "CCC", "CCCC"], "y": [1, 2, 3]}), target="y", split="scaffold")


def test_given_split_takes_train_test_and_counts_valid():
    names = ["train", "Test", "valid", "train", "test", "val", "train", "validation", "TRAIN", "test"]
    for split_name in (None, "split"):
        task = load_task(frame(split=names), target="y", split=split_name)
        assert sides(task) == ({"m0", "m3", "m6", "m8"}, {"m1", "m4", "m9"})
        assert "3 validation" in task.split and len(task) == 10
    assert same(task, load_task(frame(fold=names), target="y", split="fold"))
    assert same(task, split(load_task(frame(), target="y"), dict(zip([f"m{i}" for i in range(10)], names))))
    assert load_task(frame(split=names), target="y", split="random").split == "random"
    assert load_task(frame(split=list("0123456789")), target="y").split == "random"  # no given split in that column


def test_given_split_with_an_unknown_side_names_the_row():
    names = ["train", "test", "tets"] + ["train"] * 7
    with pytest.raises(DataError, match=r"row 3 .*'split'.*'tets'"):
        load_task(frame(split=names), target="y")
    task = load_task(frame(split=names), target="y", on_bad="drop")
    assert [d.id for d in task.dropped] == ["m2"]
    with pytest.raises(DataError, match=r"no item for the queries"):
        load_task(frame(part=["train"] * 10), target="y", split="part")


def test_a_molecule_on_both_sides_stays_with_the_test_side_and_its_target():
    table = pd.DataFrame(
        {
            "id": ["a", "b", "c", "d", "e", "f"],
            "smiles": ["CCO", "OCC", "CCC", "C(C)O", "CCN", "CCC"],
            "y": [1.0, 5.0, 2.0, 9.0, 3.0, 4.0],
            "split": ["train", "test", "train", "test", "test", "valid"],
        }
    )
    task = load_task(table, target="y")
    values = dict(zip(task.ids, task.targets))
    assert values == {"b": 7.0, "c": 2.0, "e": 3.0}  # b and d averaged, a and f gone
    assert [d.id for d in task.dropped] == ["a", "d", "f"]
    assert sides(task) == ({"c"}, {"b", "e"})


@pytest.mark.parametrize(
    ("how", "fraction", "words"),
    [("scafold", 0.5, "did you mean 'scaffold'"), ("random", 1.0, "between 0 and 1"), ("random", 0, "0")],
)
def test_impossible_splits_are_study_errors(how, fraction, words):
    with pytest.raises(StudyError, match=words):
        split(load_task("synthetic", n=8), how, 0, fraction)


# ------------------------------------------------------------------------------------------ bundled


@pytest.mark.real
def test_freesolv_and_huuskonen_have_the_counts_of_their_cards():
    free = load_task("freesolv")
    assert (len(free), free.units, free.modality, len(free.dropped)) == (642, "kcal/mol", "molecule", 0)
    assert (free.targets.min(), free.targets.max()) == (-25.47, 3.43) and math.isclose(
        free.targets.mean(), -3.803, abs_tol=1e-3
    )
    huus = load_task("huuskonen")
    assert (len(huus), huus.units) == (1256, "log mol/L")
    unread = [d for d in huus.dropped if "same molecule" not in d.reason]
    assert (len(unread), len(huus.dropped)) == (18, 26) and len(huus) + len(huus.dropped) == 1282
    assert (len(huus.pool), len(huus.queries)) == (1003, 253)
    for task in (free, huus):
        assert len({canonical(s)[0] for s in task.items}) == len(task)
        assert "sha256" in task.source and "differs" not in task.source
    both = load_task("huuskonen", split="scaffold")
    assert not {scaffold(both.items[p]) for p in both.pool} & {scaffold(both.items[q]) for q in both.queries}


def test_a_changed_packaged_file_is_said(monkeypatch, caplog):
    monkeypatch.setitem(bundled_module.CHECKSUMS, "digits.csv.gz", "0" * 64)
    assert "differs" in load_task("digits").source and "differs" in caplog.text


def test_digits_are_images_whose_text_gives_the_pixels_back():
    task = load_task("digits")
    assert (len(task), task.kind, task.modality, task.options) == (1797, "classification", "image", tuple("0123456789"))
    for k in (0, 5, 1796):
        assert [float(p) for p in task.text[k].split()] == list(task.items[k]) and len(task.items[k]) == 64
    assert task.labels[:4] == ("0", "1", "2", "3")


def test_synthetic_truth_is_planted_with_the_noise_it_states_and_the_text_carries_nothing():
    exact = load_task("synthetic", n=50, d=3, noise=0.0, seed=4)
    np.testing.assert_allclose(np.array(exact.items) @ synthetic_truth(3, 4), exact.targets, rtol=0, atol=1e-12)
    task = load_task("synthetic", n=20_000, d=5, noise=0.7, seed=1)
    x, w = np.array(task.items), synthetic_truth(5, 1)
    assert math.isclose(np.linalg.norm(w), 1) and not np.allclose(w, synthetic_truth(5, 2))
    assert abs(np.std(task.targets - x @ w) - 0.7) < 0.02 and abs(np.corrcoef(task.targets - x @ w, x @ w)[0, 1]) < 0.03
    assert len(set(task.text)) == len(task)
    rank = np.argsort(np.argsort(task.text))
    assert abs(np.corrcoef(rank, task.targets)[0, 1]) < 0.03
    assert same(task, load_task("synthetic", n=20_000, d=5, noise=0.7, seed=1))
    assert load_task("synthetic", n=10, d=5, seed=1).items == load_task("synthetic", n=30, d=5, seed=1).items[:10]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: load_task("freesovl"), "did you mean 'freesolv'"),
        (lambda: load_task("synthetic", nois=1), "did you mean 'noise'"),
        (lambda: load_task("synthetic", n=1), "n >= 2"),
        (lambda: load_task("digits", target="y"), "its own columns"),
        (lambda: load_task(frame(), target="y", on_bad="dorp"), "did you mean 'drop'"),
        (lambda: load_task(frame(), target="y", label="id"), "give one of them"),
        (lambda: load_task(frame(), target="y", n=3), "no argument 'n'"),
        (lambda: load_task(frame(), target="y", modality="molecules"), "did you mean 'molecule'"),
        (lambda: load_task(frame(), text="y", target="y"), "'y' is both the item and its target"),
        (lambda: load_task(frame(), label="smiles"), "'smiles' is both the item and its label"),
        (
            lambda: load_task(frame(), target="y", on_bda="drop"),
            "no argument 'on_bda' for a table; did you mean 'on_bad'",
        ),
        (lambda: load_task("synthetic", on_bda="drop"), "no option 'on_bda'; did you mean 'on_bad'"),
        (lambda: load_task("synthetic", nothing=1), "no option 'nothing'; valid: d, n, noise"),
        (lambda: load_task(frame(), target="y", seed=1.5), r"seed must be a whole number of at least 0, not 1\.5"),
        (lambda: load_task(frame(), target="y", seed=-1), "not -1"),
        (lambda: load_task("synthetic", seed=True), "not True"),
    ],
)
def test_wrong_arguments_are_study_errors(call, words):
    with pytest.raises(StudyError, match=words):
        call()


@pytest.mark.real
def test_every_bundled_task_pickles_and_has_a_card():
    cards = (Path(__file__).parents[1] / "data" / "README.md").read_text(encoding="utf-8")
    for name in TASKS:
        task = load_task(name)
        assert same(task, pickle.loads(pickle.dumps(task))) and task.source and f"`{name}`" in cards
    for file, digest in bundled_module.CHECKSUMS.items():
        assert file in cards and digest in cards


# ------------------------------------------------------------------------------- the user's own tables


def test_csv_tsv_parquet_and_frame_give_equal_tasks(tmp_path):
    table = frame(extra=['quoted, "twice"'] * 10, split=["train"] * 6 + ["test"] * 4)
    table.loc[4, "smiles"] = "c1ccncc"  # one unreadable, one doubled, one missing
    table.loc[7, "smiles"] = "OCC"
    table.loc[8, "y"] = np.nan
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_csv(tmp_path / "a.tsv", sep="\t", index=False)
    table.to_csv(tmp_path / "a.tab", sep="\t", index=False, lineterminator="\r\n")
    table.to_parquet(tmp_path / "a.parquet")
    tasks = [load_task(s, target="y", on_bad="drop") for s in (table, *sorted(tmp_path.iterdir()))]
    assert len(tasks) == 5 and all(same(tasks[0], t) for t in tasks)
    assert [d.id for d in tasks[0].dropped] == ["m0", "m4", "m8"] and len(tasks[0]) == 7
    labels = [load_task(s, label="split", split="random", on_bad="drop") for s in (table, *sorted(tmp_path.iterdir()))]
    assert all(same(labels[0], t) for t in labels) and labels[0].options == ("test", "train")


def test_whole_numbers_and_bytes_are_the_texts_that_a_csv_has_whatever_pandas_made_of_them(tmp_path):
    text = "id,smiles,c,split\n5,CCO,0,train\n7,CCN,1,test\n9,CCC,,train\n,CCCC,1,test\n11,C,0,train\n13,CC,1,train\n"
    path = put(tmp_path, text)
    table = pd.read_csv(path)
    assert table["id"].dtype == table["c"].dtype == float
    table.to_parquet(tmp_path / "a.parquet")
    coded = table.assign(**{c: [s.encode() for s in table[c]] for c in ("smiles", "split")})
    coded.to_parquet(tmp_path / "b.parquet")
    wanted = load_task(path, label="c", on_bad="drop")
    assert wanted.ids == ("5", "7", "11", "13") and wanted.options == ("0", "1") and "given" in wanted.split
    for source in (table, coded, tmp_path / "a.parquet", tmp_path / "b.parquet"):
        assert same(load_task(source, label="c", on_bad="drop"), wanted)


def test_a_cell_that_is_no_text_is_named():
    for column, cell in (
        ("smiles", np.arange(2000)),
        ("smiles", ["CCO"]),
        ("id", b"\xff\xfe"),
        ("split", {"a": 1}),
        ("c", np.arange(2)),
    ):
        table = frame(c=list("ab") * 5, split=["train", "test"] * 5).astype(object)
        table.at[3, column] = cell
        with pytest.raises(
            DataError, match=rf"row 4 .*column '{column}': the \w+ is no text but {type(cell).__name__}"
        ):
            load_task(table, label="c")
        assert [d.row for d in load_task(table, label="c", on_bad="drop").dropped] == [3]


def test_byte_order_mark_crlf_quotes_blank_lines_and_spaces_change_nothing(tmp_path):
    plain = put(tmp_path, 'id,smiles,y\na,CCO,1.5\n"b, c",c1ccccc1,-2\nd,CCN,3\n', "plain.csv")
    odd = b'\xef\xbb\xbf id , smiles,y\r\n\r\na, CCO ,+1.5\r\n   \r\n"b, c","c1ccccc1", \xe2\x88\x922 \r\nd,CCN,"3.0"\r\n\r\n'
    task = load_task(put(tmp_path, odd, "odd.csv"), target="y")
    assert (
        same(load_task(plain, target="y"), task)
        and task.ids == ("a", "b, c", "d")
        and list(task.targets) == [1.5, -2, 3]
    )


def test_words_that_look_like_nothing_stay_words(tmp_path):
    path = put(tmp_path, "id,text,y\nNA,null,1\nnull,NaN,2\nNone,NA,3\n1e5,inf,4\n007,None,5\n")
    task = load_task(path, target="y")
    assert task.ids == ("NA", "null", "None", "1e5", "007") and task.items == ("null", "NaN", "NA", "inf", "None")
    with pytest.raises(DataError, match=r"row 2 \(line 3\), column 'smiles': 'NA' is not a valid SMILES"):
        load_task(put(tmp_path, "smiles,y\nCC,1\nNA,2\nCCC,3\n"), target="y")


def test_lines_are_counted_as_the_user_counts_them(tmp_path):
    path = put(tmp_path, 'note,smiles,y\n\n"two\nlines",CCO,1\n\nx,CCN,2\n"a\n\nb",C(C,3\nx,CCC,4\n')
    with pytest.raises(DataError, match=r"t\.csv, row 3 \(line 7\), column 'smiles': 'C\(C'"):
        load_task(path, target="y")
    table = frame().set_index(pd.Index(range(100, 110)))
    table["y"] = table["y"].astype(object)
    table.loc[104, "y"] = "about 3"
    with pytest.raises(DataError, match=r"row 5 \(index 104\), column 'y': the target 'about 3' is not a number"):
        load_task(table, target="y")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("smiles,y\nCCO,1\nC1CC,2\nCC,3\n", r"row 2 \(line 3\), column 'smiles': 'C1CC' is not a valid SMILES"),
        ("smiles,y\nCCO,1\nCN(C)(C)(C)C,2\nCC,3\n", r"column 'smiles': .*Explicit valence for atom # 1 N"),
        ("smiles,y\nCCO,1\nCC ethane,2\nCC,3\n", r"row 2 .*'smiles': 'CC ethane' has a space"),
        ("smiles,y\nCCO,1\n,2\nCC,3\n", r"row 2 .*'smiles': the item is missing"),
        ("smiles,y\nCCO,1\nCC,nan\nCCC,3\n", r"row 2 \(line 3\), column 'y': the target 'nan' is not finite"),
        ("smiles,y\nCCO,1\nCC,\nCCC,3\n", r"row 2 \(line 3\), column 'y': the target is missing"),
        ("smiles,y\nCCO,1\nCC,1e999\nCCC,3\n", r"row 2 .*'y': the target '1e999' is not finite"),
        ("smiles,y\nCCO,1\nCC,-inf\nCCC,3\n", r"row 2 .*'y': the target '-inf' is not finite"),
        ("smiles,y\nCCO,1\nCC,low\nCCC,3\n", r"row 2 .*'y': the target 'low' is not a number"),
        ('smiles,y\nCCO,1\nCC,"1,5"\nCCC,3\n', r"row 2 .*'y': '1,5' is not a number: its comma may be a decimal mark"),
        (
            'smiles,y\nCCO,1\nCC,"-1,660"\nCCC,3\n',
            r"'-1,660' is .* or stand between thousands \(leave it out\); correct it",
        ),
        (
            "id,smiles,y\na,CCO,1\nb,CC,2\na,CCC,3\n",
            r"row 3 \(line 4\), column 'id': the id 'a' stands already in row 1 \(line 2\)",
        ),
        ("id,smiles,y\na,CCO,1\n,CC,2\nc,CCC,3\n", r"row 2 .*'id': the id is missing"),
        ("smiles,y\nCCO,1\nCC,2,7\nCCC,3\n", r"row 2 \(line 3\): the row has 3 cells, the header 2"),
        ("smiles,y\nCCO,1\nCC\nCCC,3\n", r"row 2 \(line 3\): the row has 1 cell, the header 2"),
    ],
)
def test_a_bad_row_is_one_sentence_with_file_row_column_cause_and_remedy_or_is_dropped(tmp_path, text, words):
    path = put(tmp_path, text)
    with pytest.raises(DataError, match=words) as caught:
        load_task(path, target="y")
    assert (
        str(caught.value).startswith("t.csv, row")
        and 'on_bad="drop"' in str(caught.value)
        and "\n" not in str(caught.value)
    )
    task = load_task(path, target="y", on_bad="drop")
    assert len(task) == 2 and len(task.dropped) == 1
    assert task.dropped[0].row == (2 if "stands already" in words else 1) and task.dropped[0].reason in str(
        caught.value
    )


def test_several_bad_rows_name_the_first_and_count_all_and_drop_counts_exactly(tmp_path):
    path = put(tmp_path, "smiles,y\nCCO,1\nC(,2\nCC,x\nCCC,3\nQ,\nOCC,2\nCCCC,5\n")
    with pytest.raises(DataError, match=r"row 2 .*\(3 of 7 rows cannot be used\)"):
        load_task(path, target="y")
    task = load_task(path, target="y", on_bad="drop")
    assert [(d.row, d.column) for d in task.dropped] == [(1, "smiles"), (2, "y"), (4, "smiles"), (5, "smiles")]
    assert task.items == ("CCO", "CCC", "CCCC") and list(task.targets) == [1.5, 3, 5]


@pytest.mark.parametrize("on_bad", ["error", "drop"])
@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("t.csv", b"", r"t\.csv is empty"),
        ("t.csv", b"\n\n", r"t\.csv is empty"),
        ("t.csv", b"smiles,y\n", "a header and no rows"),
        ("t.csv", b"smiles,z\nCC,1\nCCC,2\n", r"no column 'y'; valid: smiles, z"),
        ("t.csv", b"smiles,yy\nCC,1\nCCC,2\n", r"no column 'y'; did you mean 'yy'"),
        ("t.csv", b"smiles,y,y\nCC,1,2\nCCC,2,3\n", "more than one column 'y'"),
        ("t.csv", b"smiles,y\nCC,1\nCCC,1.0\nC,1\n", r"column 'y': the target is 1\.0 in all 3 rows"),
        ("t.csv", b"smiles,y\nCC,1\n", "1 usable items, and a task needs at least 2"),
        ("t.csv", b"smiles,y\nCC,1\nC-C,2\n", "1 usable items.*the same molecule"),
        ("t.csv", b"smiles,y\nCC,1\nCC\xe9,2\n", r"line 3: byte 0xe9 is not UTF-8"),
        ("t.csv", "smiles,y\nCC,1\n".encode("utf-16"), "UTF-16"),
        ("t.csv", b"PAR1\x00\x01PAR1", "is a parquet file"),
        ("t.csv", b"PK\x03\x04rest", "Excel"),
        ("t.csv", b"<!DOCTYPE html><p>not found", "a web page"),
        ("t.csv", b"smiles\ty\nCC\t1\nCCC\t2\n", r"separated by tabs, not by commas; rename it to \.tsv"),
        ("t.csv", b"smiles;y\nCC;1\nCCC;2\n", "separated by semicolons"),
        ("t.tsv", b"smiles,y\nCC,1\nCCC,2\n", "separated by commas, not by tabs"),
        ("t.csv", b'smiles,y\nCC,1\n"CCC,2\nC,3\n', r"line 3: broken quotes"),
        ("t.csv", b"smiles,y\nCC,1\nC\0C,2\n", "line 3: a zero byte"),
        ("t.parquet", b"smiles,y\nCC,1\n", "not a parquet file"),
        ("t.parquet", b"PAR1 and nothing PAR1", "not a readable parquet file"),
        ("t.xlsx", b"PK\x03\x04rest", r"is a spreadsheet; export it as \.csv"),
        ("t.txt", b"smiles,y\nCC,1\n", r"must be named \.csv, \.tsv"),
        (
            "t.csv",
            b"smiles,y\nm1,1\nm2,2\nC1CC,3\n",
            r"'smiles': none of its 3 rows holds a molecule, the first \(row 1 .*'m1' is not",
        ),
    ],
)
def test_a_bad_file_is_one_sentence_with_its_name_whatever_on_bad_says(tmp_path, name, data, words, on_bad):
    with pytest.raises(DataError, match=words) as caught:
        load_task(put(tmp_path, data, name), target="y", on_bad=on_bad)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_missing_files_folders_and_strange_sources(tmp_path):
    with pytest.raises(DataError, match=r"gone\.csv: no such file"):
        load_task(tmp_path / "gone.csv", target="y")
    with pytest.raises(DataError, match="without the files train and test"):
        load_task(tmp_path, target="y")
    for source in ("a\0b.csv", 7, None, [1], {"smiles": ["CC"]}):
        with pytest.raises(DataError):
            load_task(source, target="y")


def test_nothing_left_after_dropping_is_an_error_that_says_why(tmp_path):
    path = put(tmp_path, "smiles,y\nC(,1\nC),2\nCC,none\n")
    with pytest.raises(DataError, match=r"0 usable items.*3 of 3 rows were left out, the first because 'C\(' is not"):
        load_task(path, target="y", on_bad="drop")


def test_classification_orders_numbers_as_numbers_and_refuses_one_class(tmp_path):
    path = put(tmp_path, "text,c,one\na,10,x\nb,9,x\nc,10,x\nd,2,x\n")
    task = load_task(path, label="c")
    assert (task.kind, task.options, task.labels, task.property) == (
        "classification",
        ("2", "9", "10"),
        ("10", "9", "10", "2"),
        "c",
    )
    with pytest.raises(DataError, match=r"column 'one': the label is 'x' in all 4 rows"):
        load_task(path, label="one")
    with pytest.raises(DataError, match=r"row 2 \(line 3\), column 'c': the label is missing"):
        load_task(put(tmp_path, "text,c\na,x\nb,\nd,y\n"), label="c")
    with pytest.raises(
        DataError, match=r"row 1 .*'c': the label is 'x', but 'y' for the same item in row 3 \(line 4\)"
    ):
        load_task(put(tmp_path, "smiles,c\nCCO,x\nCC,y\nOCC,y\nC,x\n"), label="c")
    task = load_task(tmp_path / "t.csv", label="c", on_bad="drop")
    assert task.items == ("CC", "C") and [d.row for d in task.dropped] == [0, 2]


def test_a_measured_quantity_is_no_label_and_few_numbers_are_classes(tmp_path):
    """More numbers than half of the items, or most of them once, are measured; digits, words and a handful of numbers are classes."""

    def of(labels):
        rows = "".join(f"t{i},{label}\n" for i, label in enumerate(labels))
        return load_task(put(tmp_path, f"text,logS\n{rows}"), label="logS")

    once, twice = [f"{-i / 100}" for i in range(40)], [f"{i / 10}" for i in range(20)] * 2
    for labels in (once, twice[1:], [*once[:10], *["1.5"] * 60]):
        with pytest.raises(
            DataError, match=r"column 'logS': its \d+ labels are \d+ different numbers.*target = 'logS'"
        ):
            of(labels)
    for labels in (twice, [f"{i % 10}" for i in range(40)], [f"c{i}" for i in range(40)], ["0", "1", "2", "3", "4"]):
        assert set(of(labels).options) == set(labels)


def test_one_molecule_is_one_item_however_it_is_written():
    table = pd.DataFrame({"smiles": ["OCC", "CC", "CCO", "C(O)C"], "y": [0.1, 5, 0.2, 0.3]})
    task = load_task(table, target="y")
    assert task.ids == ("CC", "CCO") and task.targets[1] == math.fsum([0.1, 0.2, 0.3]) / 3
    assert [(d.row, d.column) for d in task.dropped] == [(0, "smiles"), (3, "smiles")]
    assert all("'CCO' in row 3" in d.reason and "averaged" in d.reason for d in task.dropped)
    again = load_task(table.iloc[::-1], target="y")
    assert dict(zip(again.ids, again.targets)) == dict(zip(task.ids, task.targets))
    words = load_task(table, target="y", modality="text")
    assert len(words) == 4 and words.modality == "text"


# ------------------------------------------------------------------------------------ published layouts


def test_esol_reads_as_published(tmp_path):
    head = f"Compound ID,ESOL predicted log solubility in mols per litre,Minimum Degree,{ESOL},smiles\n"
    rows = "Amigdalin,-0.974,1,-0.77,OCC3OC(O)C\nFenfuran,-2.885,1,-3.3,Cc1occc1\nCitral,-2.5,1,-2.06,CC(C)=CCCC(C)=CC(=O)\n"
    with pytest.raises(DataError, match=r"row 1 \(line 2\), column 'smiles': 'OCC3OC\(O\)C'"):
        load_task(put(tmp_path, head + rows, "delaney-processed.csv"))
    task = load_task(tmp_path / "delaney-processed.csv", on_bad="drop")
    assert (task.ids, task.units, task.property, task.modality) == (
        ("Fenfuran", "Citral"),
        "log mol/L",
        "aqueous solubility",
        "molecule",
    )
    assert list(task.targets) == [-3.3, -2.06] and task.name == "delaney-processed"
    twice = load_task(put(tmp_path, head + "a,0,1,1,CC\na,0,1,2,CCC\nb,0,1,3,C\n"))
    assert twice.ids == ("CC", "CCC", "C")  # published names may repeat


def test_lipophilicity_and_freesolv_read_as_published(tmp_path):
    path = put(tmp_path, "CMPD_CHEMBLID,exp,smiles\nCHEMBL1,3.54,CCO\nCHEMBL2,-1.18,CCN\n", "Lipophilicity.csv")
    task = load_task(path)
    assert (task.ids, task.units, list(task.targets)) == (("CHEMBL1", "CHEMBL2"), "logD", [3.54, -1.18])
    task = load_task(put(tmp_path, "iupac,smiles,expt,calc\nx,CCO,1,9\ny,CCN,2,8\n", "SAMPL.csv"))
    assert (task.units, list(task.targets)) == ("kcal/mol", [1, 2])


@pytest.mark.parametrize(
    ("file", "key"), [("caco2_wang", "caco2_wang"), ("Solubility_AqSolDB", "aqsoldb"), ("ld50_zhu", "ld50_zhu")]
)
@pytest.mark.parametrize("head", ["Drug_ID\tDrug\tY", "ID\tX\tY"])
def test_tdc_files_read_as_published(tmp_path, file, key, head):
    body = '7\tCCO\t-4.5\n7\tCCN\t-5.25\n8.0\t"c1ccccc1"\t-6\n'
    task = load_task(put(tmp_path, head + "\n" + body, f"{file}.tab"))
    assert (task.units, task.property, task.modality) == (*TDC[key], "molecule")
    assert task.ids == ("CCO", "CCN", "c1ccccc1") and list(task.targets) == [-4.5, -5.25, -6]
    as_csv = put(
        tmp_path,
        (
            head + "\tsplit\n" + "".join(f"{r}\t{s}\n" for r, s in zip(body.splitlines(), ("train", "test", "valid")))
        ).replace("\t", ","),
        f"{file}.csv",
    )
    task = load_task(as_csv)
    assert sides(task) == ({"CCO"}, {"CCN"}) and "1 validation" in task.split
    named = load_task(put(tmp_path, head + "\n" + body.replace("7\tCCN", "9\tCCN"), f"{file}.tab"))
    assert named.ids == ("7", "9", "8.0")
    with pytest.raises(
        DataError, match=r"row 2 \(line 3\), column .*'7' stands already"
    ):  # an id the caller names must be one
        load_task(put(tmp_path, head + "\n" + body, f"{file}.tab"), id=head.split("\t")[0])


def test_a_folder_of_train_valid_and_test_is_one_task(tmp_path):
    folder = tmp_path / "caco2_wang"
    folder.mkdir()
    put(folder, "Drug_ID,Drug,Y\na,CCO,1\nb,CCN,2\nc,CCC,4\n", "train_val.csv")
    put(folder, "Drug_ID,Drug,Y\nd,CCCl,3\nb2,NCC,9\n", "test.csv")
    task = load_task(folder)
    assert (
        sides(task) == ({"a", "c"}, {"d", "b2"})
        and task.targets[task.ids.index("b2")] == 9
        and task.units == "log cm/s"
    )
    put(folder, "Drug_ID,Drug,Y\nd,CCCl,3\ne,oops,4\n", "test.csv")
    with pytest.raises(DataError, match=r"test\.csv row 2 \(line 3\), column 'Drug': 'oops'"):
        load_task(folder)
    put(folder, "Drug_ID,Drug,Y\nd,CCCl,3\n", "test.csv")
    put(folder, "Drug_ID,Drug,Y\na,CCO,1\nb,CCN\nc,CCC,4\n", "train_val.csv")
    with pytest.raises(DataError, match=r"train_val\.csv row 2 \(line 3\): the row has 2 cells, the header 3"):
        load_task(folder)
    put(folder, "Drug_ID,Drug,Z\nd,CCCl,3\n", "test.csv")
    with pytest.raises(DataError, match="has columns"):
        load_task(folder)


def test_columns_that_nobody_named_are_asked_for(tmp_path):
    path = put(tmp_path, "name,value\na,1\nb,2\n")
    with pytest.raises(DataError, match=r"text=.*'name', 'value'"):
        load_task(path)
    with pytest.raises(DataError, match=r"target=.*label="):
        load_task(path, text="name")
    with pytest.raises(DataError, match="did you mean 'scaffold'"):
        load_task(path, text="name", target="value", split="scafold")
    assert load_task(path, text="name", target="value", units="V", property="voltage", name="cell").units == "V"


# ------------------------------------------------------------------------------------------- fuzzing


@given(
    value=st.floats(allow_nan=True, allow_infinity=True),
    style=st.sampled_from(["{!r}", "{:e}", "{:+.3f}", " {:.12g} "]),
)
@FUZZ
def test_numbers_are_read_as_python_writes_them(value, style):
    text = style.format(value)
    read, why = number(text)
    if math.isfinite(value) and math.isfinite(float(text)):
        assert read == float(text) and not why
        assert number(text.replace("-", "\u2212")) == (read, "")
    else:
        assert math.isnan(read) and "not finite" in why


@given(text=st.text(max_size=12))
@FUZZ
def test_no_text_is_taken_for_a_number_that_it_is_not(text):
    read, why = number(text)
    assert bool(why) == math.isnan(read)
    if not why:
        assert read == float(text.strip().replace("\u2212", "-")) and "_" not in text


def table_bytes() -> tuple[bytes, list[tuple[str, str, float]]]:
    rng = random.Random(5)
    rows = [(f"name {i}", SMILES[i], rng.uniform(-9, 9)) for i in range(10)]
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["id", "smiles", "y"])
    writer.writerows([(f'{i}, "{i}"', s, repr(y)) for i, s, y in rows])
    return out.getvalue().encode(), [(f'{i}, "{i}"', s, y) for i, s, y in rows]


def test_a_file_cut_at_any_byte_is_an_error_or_its_first_rows_and_a_doubtful_last_row_is_said(tmp_path, caplog):
    data, rows = table_bytes()
    read = 0
    for cut in range(len(data)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "icrl_lab"):
            try:
                task = load_task(put(tmp_path, data[:cut]), target="y")
            except DataError:
                continue
        read += 1
        whole = data[:cut].count(b"\r\n") - 1  # rows that stand in full
        got = list(zip(task.ids, task.items, task.targets))
        assert got[:whole] == rows[:whole] and len(got) in (whole, whole + 1)
        if data[:cut].endswith((b"\n", b"\r")):  # a line end, so the last number is whole
            assert got == rows[: len(got)] and "cut" not in caplog.text
        else:
            assert "may be cut" in caplog.text and "may be cut" in task.source
    assert read > 20


def test_a_parquet_file_cut_at_any_byte_is_an_error(tmp_path):
    path = tmp_path / "t.parquet"
    frame().to_parquet(path)
    data = path.read_bytes()
    for cut in range(0, len(data), 7):
        with pytest.raises(DataError):
            load_task(put(tmp_path, data[:cut], "t.parquet"), target="y")


@given(
    data=st.one_of(st.binary(max_size=60), st.text('CcNO()=[]1,;"\t\r\n .-5eé\ufeff', max_size=80).map(str.encode)),
    head=st.sampled_from([b"", b"smiles,y\n", b"smiles\ty\r\n", b"text,y\n", b"\xef\xbb\xbfid,smiles,y\n", b"PAR1"]),
    suffix=st.sampled_from([".csv", ".tsv", ".parquet"]),
    on_bad=st.sampled_from(["error", "drop"]),
)
@FUZZ
def test_any_bytes_are_a_data_error_or_a_task_whose_cells_stand_in_the_file(tmp_path, data, head, suffix, on_bad):
    path = put(tmp_path, head + data, "fuzz" + suffix)
    try:
        task = load_task(path, target="y", on_bad=on_bad)
    except DataError as error:
        assert str(error) and "\n" not in str(error)
        return
    text = (head + data).decode("utf-8-sig")
    assert len(task) >= 2 and len(set(task.ids)) == len(task) and not set(task.pool) & set(task.queries)
    assert all(item in text.replace('""', '"') for item in task.items)
    assert task.modality == "text" or all(canonical(s)[0] for s in task.items)


CELL = st.one_of(
    st.none(), st.text(max_size=6), st.floats(), st.integers(), st.booleans(), st.sampled_from(SMILES), st.decimals()
)


@given(
    cells=st.lists(st.tuples(CELL, CELL, CELL), max_size=8),
    on_bad=st.sampled_from(["error", "drop"]),
    kind=st.sampled_from(["target", "label"]),
)
@FUZZ
def test_any_frame_is_a_data_error_or_a_task_and_every_row_is_accounted_for(cells, on_bad, kind):
    table = pd.DataFrame(cells, columns=["id", "smiles", "y"], dtype=object)
    try:
        task = load_task(table, on_bad=on_bad, **{kind: "y"})
    except DataError:
        return
    assert len(task) + len(task.dropped) == len(table)
    assert len({d.row for d in task.dropped}) == len(task.dropped)


# ----------------------------------------------------------------------------------------- the room


def test_thousands_of_rows_are_fast_and_every_one_is_there(tmp_path):
    def rows(n):
        return "text,y\n" + "".join(f"sentence {i},{i / 7}\n" for i in range(n))

    n = 20_000
    tenth, path = put(tmp_path, rows(n // 10), "tenth.csv"), put(tmp_path, rows(n))
    few = cheapest(lambda: load_task(tenth, target="y"), 3)
    assert (
        cheapest(lambda: load_task(path, target="y"), 3) < 30 * few
    )  # of ten times as many; were it quadratic, 100 times
    task = load_task(path, target="y")
    assert len(task) == n and task.targets[-1] == (n - 1) / 7


def test_importing_the_room_is_light():
    code = "import sys, icrl_lab.tasks; print(sorted({'torch', 'rdkit', 'pandas', 'sklearn', 'pyarrow', 'datamol'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


# ------------------------------------------------------------------- an item that a later room cannot take


@pytest.mark.parametrize("classes", [False, True])
@given(gone=st.lists(st.integers(0, 19), min_size=1, max_size=12, unique=True))
@settings(max_examples=40, deadline=None)
def test_a_task_without_items_keeps_what_the_others_are_and_on_which_side(classes, gone):
    from tests.toy import toy_task

    whole = task = toy_task(20, classes=classes)
    for i in gone:
        task = task.without(f"item{i}", "text", f"why {i}")
    assert [(d.id, d.row, d.column, d.reason) for d in task.dropped] == [
        (f"item{i}", None, "text", f"why {i}") for i in gone
    ]
    of = whole.ids.index
    assert task.ids == tuple(name for name in whole.ids if of(name) not in gone)
    for what in ("items", "text", *(("labels",) if classes else ("targets",))):
        assert list(getattr(task, what)) == [getattr(whole, what)[of(name)] for name in task.ids]
    for side in ("pool", "queries"):
        assert [task.ids[p] for p in getattr(task, side)] == [
            whole.ids[p] for p in getattr(whole, side) if p not in gone
        ]
    assert (task.options, task.kind, task.units) == (whole.options, whole.kind, whole.units)


@pytest.mark.parametrize("options", [{"n": 1e3}, {"n": "20"}, {"d": 2.5}, {"noise": "x"}])
def test_a_synthetic_task_of_what_is_no_number_is_a_sentence(options):
    with pytest.raises(StudyError, match="synthetic"):
        load_task("synthetic", **options)


def test_a_query_fraction_that_is_no_number_is_a_sentence():
    with pytest.raises(StudyError, match="query_fraction"):
        load_task("synthetic", query_fraction="0.5")
    with pytest.raises(StudyError, match="query_fraction"):  # also where the split is given
        load_task(frame(split=["train", "test"] * 5), target="y", query_fraction=7)


def test_a_row_left_out_is_told_as_the_user_counts(tmp_path):
    """Also in a folder: the file and the line, not the place in what was read of it."""
    for side, lines in (("train", "CCO,1\nCCN,2\nC1CC,3\nCCC,4"), ("test", "CO,1\nCN,2\nxx,0")):
        (tmp_path / f"{side}.csv").write_text(f"smiles,y\n{lines}\n")
    task = load_task(tmp_path, target="y", on_bad="drop")
    assert {d.place for d in task.dropped} == {"train.csv row 3 (line 4)", "test.csv row 3 (line 4)"}
    assert task.without(task.ids[0], "", "why").dropped[-1].place == ""
