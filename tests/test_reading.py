"""A reading comes back from its file as it was, or not at all."""

import json
import pickle

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from icrl_lab.errors import DataError
from icrl_lab.values import Reading

WORDS = ["ü", "<b>x</b>", "日本語 😀", "", " spaced ", 'a"b\\', "{item}", "&amp;", "c1ccccc1\n"]


def example(n: int = 4) -> Reading:
    """A reading with everything in it: numbers of all kinds, truths, words, scalars, an axis of its own, gaps."""
    rng = np.random.default_rng(0)
    data = xr.Dataset(
        {
            "share": (("seed", "query"), rng.standard_normal((3, n)), {"units": "log mol/L", "long_name": "a <i>share</i> é"}),
            "fine": (("query", "seed"), rng.standard_normal((n, 3)).astype("f4"), {"units": "days since birth"}),
            "alive": (("query",), rng.random(n) < 0.5, {"units": ""}),
            "count": (("query",), np.arange(n) * 2**40, {"units": "hours"}),
            "byte": (("query",), np.arange(n, dtype="u1") + 250, {"units": "1", "step": 3, "size": 0.1}),
            "half": (("query",), np.arange(n, dtype="f2") / 3),
            "name": (("query",), np.array([WORDS[-1 - i % len(WORDS)] for i in range(n)])),
            "one": ((), 2.5),
        },
        {"seed": [7, 2**33, 1], "query": [f"{WORDS[i % len(WORDS)]}{i}" for i in range(n)], "arm": "ot-embed", "part": ["a", "b"]},
    )  # fmt: skip
    data["share"][1, 2] = np.nan
    data["share"][0, 0] = np.inf
    data = data.assign_coords(text=("query", np.array([WORDS[i % len(WORDS)] for i in range(n)], object)))
    about = {
        "says": WORDS,
        "n": (3, n),
        "p": np.float32(0.25),
        "none": None,
        "nested": {"a": [np.int64(1), True]},
        "nan": float("nan"),
    }
    return Reading("pause", data, about)


def equal(a: Reading, b: Reading) -> bool:
    """Whether two readings say the same: every name, order, axis, value, unit and word."""
    if (a.question, a.names, json.dumps(dict(a.about))) != (b.question, b.names, json.dumps(dict(b.about))):
        return False
    return a.data.identical(b.data) and set(a.data.coords) == set(b.data.coords)


def test_a_reading_comes_back_as_it_was(tmp_path):
    reading = example()
    reading.save(tmp_path / "a.nc")
    again = Reading.load(tmp_path / "a.nc")
    assert equal(reading, again)
    assert again.names == ("share", "fine", "alive", "count", "byte", "half", "name", "one")
    assert again["alive"].dtype == bool and again["fine"].dtype == np.float32 and again["name"].dtype.kind == "U"
    assert again["fine"].attrs["units"] == "days since birth" and np.isnan(again["share"][1, 2])
    assert again["share"].dims == ("seed", "query") and again.data["part"].values.tolist() == ["a", "b"]
    assert again.about["says"] == WORDS and again.about["n"] == [3, 4] and again.about["nested"] == {"a": [1, True]}
    again.save(tmp_path / "b.nc")
    assert equal(Reading.load(tmp_path / "b.nc"), reading)
    assert xr.open_dataset(tmp_path / "a.nc", engine="scipy", decode_times=False)["fine"].shape == (
        4,
        3,
    )  # others read it, too
    assert [p.name for p in tmp_path.iterdir() if p.name not in ("a.nc", "b.nc")] == []


names = st.sampled_from(["alpha", "b2", "share_low", "p"])
text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6)
kinds = [np.float64, np.float32, np.int64, np.int32, np.uint8, np.bool_]


@st.composite
def readings(draw):
    sizes = {"seed": draw(st.integers(1, 3)), "query": draw(st.integers(1, 4))}
    held = {}
    for name in draw(st.lists(names, min_size=1, unique=True)):
        dims = draw(st.sampled_from([(), ("seed",), ("query",), ("seed", "query"), ("query", "seed")]))
        shape = tuple(sizes[d] for d in dims)
        if draw(st.booleans()):
            kind = draw(st.sampled_from(kinds))
            whole = np.dtype(kind).kind in "iu"
            elements = (
                st.integers(0 if kind is np.uint8 else -(2**31), 255 if kind is np.uint8 else 2**31 - 1)
                if whole
                else None
            )
            values = draw(arrays(kind, shape, elements=elements))
        else:
            values = draw(arrays(object, shape, elements=text))
        held[name] = (dims, values, {"units": draw(text), "long_name": draw(text)})
    coords = {"query": draw(st.lists(text, min_size=sizes["query"], max_size=sizes["query"], unique=True))}
    said = st.recursive(
        text | st.booleans() | st.none() | st.integers() | st.floats(), lambda c: st.lists(c, max_size=3), max_leaves=5
    )
    return Reading("order", xr.Dataset(held, coords), draw(st.dictionaries(text, said, max_size=3)))


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(reading=readings())
def test_any_reading_comes_back(reading, tmp_path):
    reading.save(tmp_path / "any.nc")
    assert equal(reading, Reading.load(tmp_path / "any.nc"))
    assert equal(reading, pickle.loads(pickle.dumps(reading)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("reading") / "whole.nc"
    example().save(path)
    return path.read_bytes()


def opened(path, content: bytes) -> bool:
    """Whether the bytes are opened at all; if they are, they must say what was saved."""
    path.write_bytes(content)
    try:
        found = Reading.load(path)
    except DataError as error:
        assert str(path) in str(error)
        return False
    assert equal(found, example())
    return True


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_that_is_cut_is_refused(saved, tmp_path, data):
    at = data.draw(st.integers(0, len(saved) - 1))
    opened(tmp_path / "cut.nc", saved[:at])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_refused_or_says_the_same(saved, tmp_path, data):
    content = bytearray(saved)
    for _ in range(data.draw(st.integers(1, 3))):
        # as often in the head, where the sizes stand, as anywhere
        content[data.draw(st.integers(0, 1500) | st.integers(0, len(saved) - 1))] ^= data.draw(st.integers(1, 255))
    opened(tmp_path / "bad.nc", bytes(content))


def test_a_damaged_number_is_seen(saved, tmp_path):
    """Every value lies under the seal: one changed bit of a number opens nothing."""
    value = example()["share"].values[2, 1]
    at = saved.index(np.array(value, ">f8").tobytes())
    for byte in range(8):
        content = bytearray(saved)
        content[at + byte] ^= 1
        assert not opened(tmp_path / "bit.nc", bytes(content))
    assert opened(tmp_path / "bit.nc", saved)


@pytest.mark.parametrize(
    "content",
    [b"", b"CDF", b"CDF\x01" + b"\0" * 28, b"CDF\x02\xff\xff\xff\xff" * 9, b"\x89HDF\r\n\x1a\n" * 9, b"{}" * 99],
)
def test_a_foreign_file_is_refused(tmp_path, content):
    assert not opened(tmp_path / "foreign.nc", content)
    xr.Dataset({"a": ("x", [1.0, 2.0])}).to_netcdf(tmp_path / "other.nc", engine="scipy")
    for path, words in (
        (tmp_path / "other.nc", "not a saved reading"),
        (tmp_path / "none.nc", "no such file"),
        (tmp_path, "not a saved"),
    ):
        with pytest.raises(DataError, match=words):
            Reading.load(path)


def test_a_reading_does_not_change(tmp_path):
    mine = np.arange(6.0)
    said = {"says": ["a"]}
    coords = {"query": list("abcdef"), "size": ("query", np.arange(6.0))}
    reading = Reading(
        "order", xr.Dataset({"a": ("query", mine), "w": ("query", np.array(list("uvwxyz"), object))}, coords), said
    )
    mine[0] = 99  # the caller's array stays the caller's
    said["says"].append("b")
    assert reading["a"][0] == 0 and reading.about["says"] == ["a"]
    for one in (reading, pickle.loads(pickle.dumps(reading))):
        for name in ("a", "w", "size"):
            with pytest.raises(ValueError, match="read-only"):
                one.data[name].values[0] = 7
        with pytest.raises(TypeError):
            one.about["says"] = []
        with pytest.raises(AttributeError):
            one.question = "other"


def test_what_no_file_can_hold_is_refused_when_it_is_made():
    for held, words in (
        ({"a": ("x", np.array([1, "b", None], object))}, "objects"),
        ({"a": ("x", np.array([1j]))}, "objects"),
        ({"a": ("x", np.array(["2000-01-01"], "M8[ns]"))}, "objects"),
        ({"a": ("x", [1.0], {"units": None})}, "attribute"),
        ({"größe": ("x", [1.0])}, "plain letters"),
        ({"a": (("x", "y"), np.zeros((2, 0)))}, "an axis is empty"),
    ):
        with pytest.raises(ValueError, match=words):
            Reading("order", xr.Dataset(held))
    with pytest.raises(TypeError, match="no JSON value"):
        Reading("order", xr.Dataset({"a": ("x", [1.0])}), {"model": object()})


def test_what_cannot_be_opened_again_is_not_kept(tmp_path):
    path = tmp_path / "kept.nc"
    example().save(path)
    before = path.read_bytes()
    for data in (
        xr.Dataset({"a": ("x", [1.0, 2.0], {"_FillValue": 1.0})}),  # 1 would come back as a gap
        xr.Dataset({"a": ("x", [2**60 + 1, 1])}),
    ):
        with pytest.raises(DataError):
            Reading("order", data).save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["kept.nc"]


def test_a_table_has_a_column_for_each_axis():
    reading = example()
    table = reading.to_dataframe()
    assert (
        list(table.columns[:2]) == ["seed", "query"] and len(table) == 12 and "share" in table and "fine" not in table
    )
    assert np.allclose(table["share"], reading["share"].values.ravel(), equal_nan=True)
    assert {"alive", "count", "byte", "half", "name"} <= set(reading.to_dataframe("alive"))
    assert reading.to_dataframe("one")["one"].tolist() == [2.5]
    with pytest.raises(DataError, match="did you mean 'share'"):
        reading["shar"]
    assert "share(3, 4)" in repr(reading)
