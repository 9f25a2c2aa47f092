"""A study file is one frozen value, or one sentence that names the key, the line and the nearest valid name."""

from __future__ import annotations

import pickle
import tomllib
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from icrl_lab.errors import StudyError
from icrl_lab.studies import toml
from icrl_lab.studies.sections import Arm, EncoderSpec
from icrl_lab.studies.spec import StudySpec

CONTRACT = """
[task]                         # bundled: name = "freesolv" | "huuskonen" | ...
path = "esol.csv"              # or a table: csv, tsv, parquet
text = "smiles"                # column with the item
target = "logS"                # regression; or label = "class" for classification
units = "log mol/L"
property = "aqueous solubility"
on_bad = "error"               # or "drop": unusable rows are left out, counted and listed

[encoder]
name = "minimol"               # chemnet, morgan, rdkit-descriptors, a hub name, or path = "vectors.npz" | ".parquet" with ids

[llm]
name = "smollm2-135m"          # or a hub name, or a folder
dtype = "auto"

[study]
arms = ["text", "pca-text", "zero-pad", "random-projection",   # the paper's names ot-embed and ot-pca are
        "moments-text", "moments-pca", "moments-vocab", "ridge"]  # aliases of moments-text and moments-pca
controls = ["real", "shuffled", "noise", "shared", "dummy", "zero", "back-translated"]
with_text = [false, true]
labels = ["true", "permuted"]
shots = [20]
selection = "quantile"         # random, balanced, nearest, farthest, diverse
order = "random"               # ascending, descending, near-first, near-last, ...
draws = 1                      # mixed draws of map and order
layout = "arrow"               # or "question", "paper", a template of the user's
label_format = "digit"         # "two-digit", "as-written"
slot_scale = 0.5               # norm of a slot relative to the tokens'
seeds = 5                      # a count or a list
queries = 100
"""
SMALL = '[task]\nname = "freesolv"\n'


def study(**keys) -> StudySpec:
    return StudySpec.from_dict({"task": {"name": "freesolv"}, "study": keys})


def wrong(tmp_path, text: str) -> str:
    file = tmp_path / "study.toml"
    file.write_text(text)
    with pytest.raises(StudyError) as caught:
        StudySpec.read(file)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(file), "study.toml")


# ------------------------------------------------------------------------------------------- reading


def test_the_study_file_of_the_contract_is_its_own_defaults(tmp_path):
    (tmp_path / "study.toml").write_text(CONTRACT)
    spec = StudySpec.read(tmp_path / "study.toml")
    assert spec.task.path == str(tmp_path / "esol.csv") and spec.task.units == "log mol/L"
    (tmp_path / "small.toml").write_text(SMALL)
    small = StudySpec.read(tmp_path / "small.toml")
    assert small.study == spec.study and small.llm == spec.llm and small.encoder == spec.encoder
    assert small.study.seeds == (0, 1, 2, 3, 4) and [a.slot_scale for a in small.study.arms] == [0.5] * 8


def test_one_value_is_an_axis_of_one():
    a = study(shots=10, selection="random", order="given", controls="real", with_text=True, labels="true", seeds=2)
    b = study(
        shots=[10],
        selection=["random"],
        order=["given"],
        controls=["real"],
        with_text=[True],
        labels=["true"],
        seeds=[0, 1],
    )
    assert a == b and a.hash == b.hash and a.study.shots == (10,)


def test_arms_in_every_way_they_are_written():
    arms = study(
        arms=["text", "ot-embed", "moments-vocab x16", {"name": "moments-vocab", "draws": 4, "as": "four"},
              {"name": "random-projection", "width": 128, "activation": "relu", "slot_scale": 2},
              {"name": "ridge", "budget": 300}, {"name": "pca-text", "dims": 5}, Arm("ot-free", draws=2)],
        draws=3,
        slot_scale=0.25,
    ).study.arms  # fmt: skip
    assert [a.name for a in arms] == [
        "text",
        "moments-text",
        *["moments-vocab"] * 2,
        "random-projection",
        "ridge",
        "pca-text",
        "ot-free",
    ]
    assert [a.draws for a in arms] == [3, 3, 16, 4, 3, 3, 3, 2]
    assert [a.slot_scale for a in arms[:5]] == [0.25, 0.25, 0.25, 0.25, 2.0]
    assert [a.label for a in arms[1:4]] == ["moments-text", "moments-vocab x16", "four"]
    assert dict(arms[4].options) == {"width": 128, "activation": "relu"} and dict(arms[5].options) == {"budget": 300}
    assert len({a.label for a in arms}) == len(arms)
    assert [a.has_slots for a in arms[:2]] == [False, True]


def test_a_spec_is_a_frozen_value_that_travels():
    spec = study(arms=["text", {"name": "random-projection", "width": 8}])
    assert pickle.loads(pickle.dumps(spec)) == spec and hash(spec) == hash(pickle.loads(pickle.dumps(spec)))
    with pytest.raises(FrozenInstanceError):
        spec.study.draws = 2
    with pytest.raises(TypeError):
        spec.study.arms[1].options["width"] = 9


NAMES = st.sampled_from(["text", "moments-vocab", "ridge", "random-projection x4", "ot-pca"])
STUDIES = st.fixed_dictionaries(
    {},
    optional={
        "arms": st.lists(NAMES, min_size=1, unique=True),
        "controls": st.lists(st.sampled_from(["real", "noise", "dummy"]), min_size=1, unique=True),
        "with_text": st.lists(st.booleans(), min_size=1, unique=True),
        "shots": st.lists(st.integers(1, 500), min_size=1, unique=True),
        "seeds": st.one_of(st.integers(1, 50), st.lists(st.integers(0, 1000), min_size=1, unique=True)),
        "slot_scale": st.floats(1e-6, 1e5),
        "layout": st.sampled_from(["arrow", "<{item}>\t= \"{label}\" \x7f é😀\\", "question"]),
        "markers": st.sampled_from(["rep", ["[", "\n]"]]),
        "point": st.sampled_from(["mean", "median", "mode"]),
        "queries": st.integers(1, 10_000),
    },
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(keys=STUDIES, units=st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=0))
def test_dict_and_toml_read_back_equal(keys, units):
    task = {"path": "/data/x.csv", **({"units": units} if units.strip() else {})}
    spec = StudySpec.from_dict({"task": task, "study": keys})
    for again in (StudySpec.from_dict(spec.to_dict()), StudySpec.from_dict(tomllib.loads(spec.to_toml()))):
        assert again == spec and again.hash == spec.hash


def test_the_hash_tells_studies_apart_and_nothing_else():
    base = study()
    assert base.hash == study(shots=20, seeds=[0, 1, 2, 3, 4]).hash
    others = [study(shots=10), study(seeds=4), study(arms=["text"]), study(slot_scale=0.4), study(arms=["ridge x2"]),
              study(arms=[{"name": "ridge", "budget": 9}]), study(arms=[{"name": "ridge", "budget": 8}])]  # fmt: skip
    assert len({s.hash for s in [base, *others]}) == len(others) + 1
    assert replace(base, llm=replace(base.llm, dtype="float16")).hash != base.hash


def test_paths_start_at_the_study_file_and_nowhere_else(tmp_path, monkeypatch):
    for folder in ("here/org/model", "here/mine", "here/smollm2-135m", "away/org/other"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "away")
    text = '[task]\npath = "../data.csv"\n[encoder]\npath = "v.npz"\n[llm]\nname = "{}"\n'
    for name, resolved in {
        "org/model": str(tmp_path / "here/org/model"),
        "org/other": "org/other",  # a hub name, though a folder of that name lies where the user happens to be
        "./model": str(tmp_path / "here/model"),
        "mine": str(tmp_path / "here/mine"),
        "smollm2-135m": "smollm2-135m",  # a name of the lab's own, whatever lies beside the study file
        "model.gguf": str(tmp_path / "here/model.gguf"),
        "/abs/model": "/abs/model",
    }.items():
        (tmp_path / "here/study.toml").write_text(text.format(name))
        spec = StudySpec.read("../here/study.toml")
        assert spec.llm.name == resolved
        assert spec.task.path == str(tmp_path / "data.csv") and spec.encoder.path == str(tmp_path / "here/v.npz")
        assert spec.encoder.name is None


@pytest.mark.parametrize("section, name", [("llm", "org/other"), ("encoder", "org/other"), ("encoder", "other")])
def test_a_folder_that_lies_where_the_user_happens_to_be_is_not_loaded_for_a_hub_name(
    tmp_path, monkeypatch, section, name
):
    from icrl_lab.studies import load

    (tmp_path / "here").mkdir()
    (tmp_path / "away" / name).mkdir(parents=True)
    (tmp_path / "here/study.toml").write_text(f'[task]\nname = "synthetic"\n[{section}]\nname = "{name}"\n')
    monkeypatch.chdir(tmp_path / "away")
    with pytest.raises(
        StudyError, match=rf"\[{section}\] name = '{name}' is a hub name .* lies in .*away, which would be loaded"
    ):
        load(StudySpec.read("../here/study.toml"))


def test_a_windows_file_with_a_mark_and_other_line_ends_reads_the_same(tmp_path):
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbf" + (SMALL + "[study]\nshots = 3\n").replace("\n", "\r\n").encode())
    assert StudySpec.read(tmp_path / "a.toml").study.shots == (3,)


# -------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "line, says",
    [
        ('selction = "random"', "[study] has no key 'selction'; did you mean 'selection'?"),
        ('selection = "quantil"', "in [study], selection has an unknown name 'quantil'; did you mean 'quantile'?"),
        ('controls = ["real", "shufled"]', "controls has an unknown name 'shufled'; did you mean 'shuffled'?"),
        ('arms = ["text", "moment-vocab"]', "arms has an unknown name 'moment-vocab'; did you mean 'moments-vocab'?"),
        ('layout = "arow"', "layout has an unknown name 'arow'; did you mean 'arrow'?"),
        ('layout = "{item} = {lable}"', "did you mean 'label'?"),
        ('label_format = "digits"', "label_format has an unknown name 'digits'; did you mean 'digit'?"),
        ('label_bins = "evne"', "label_bins has an unknown name 'evne'; did you mean 'even'?"),
        ('label_bins = "even"\nlabel_format = "as-written"', "line 7: in [study], label_bins = 'even' cuts the bins"),
        ('order = "assending"', "order has an unknown name 'assending'; did you mean 'ascending'?"),
        ('labels = ["true", "permutted"]', "did you mean 'permuted'?"),
        ('markers = "reps"', "did you mean 'rep'?"),
        ("shots = [20, -5]", "shots must be a whole number from 1 to 100000, not -5"),
        ("shots = 2.5", "shots must be a whole number from 1 to 100000, not 2.5"),
        ("shots = true", "shots must be a whole number from 1 to 100000, not true"),
        ("shots = [20, 20]", "shots has 20 twice"),
        ("shots = []", "shots must not be empty"),
        ("draws = 0", "draws must be a whole number from 1 to 10000, not 0"),
        ("queries = 0", "queries must be a whole number"),
        ("slot_scale = nan", 'slot_scale must be a number above 0 or "own", not nan'),
        ("slot_scale = 0", 'slot_scale must be a number above 0 or "own", not 0'),
        (f"slot_scale = 1{'0' * 400}", 'slot_scale must be a number above 0 or "own", not 1000'),
        ("slot_scale = inf", 'slot_scale must be a number above 0 or "own", not inf'),
        ('slot_scale = "a"', "slot_scale must be a number above 0 or \"own\", not 'a'"),
        ("seeds = [3, 3]", "seeds has 3 twice"),
        ("seeds = 0", "seeds must be a whole number"),
        ("seeds = 99999999999", "seeds must be a whole number from 1 to 10000"),
        ("seeds = []", "seeds must not be empty"),
        ("with_text = [1]", "with_text must be true or false, not 1"),
        ("arms = []", "arms must not be empty"),
        ('arms = "text"', "arms must be a list, not 'text'"),
        ('arms = ["text", "text"]', "arms has 'text' twice"),
        ('arms = [{name = "ridge", also = ["text"]}]', "a wrong also: it must be arms with slots"),
        ('arms = [{name = "ridge", also = []}]', "a wrong also: it must be arms with slots"),
        ('arms = [{name = "ridge", also = ["ridg"]}]', "did you mean 'ridge'?"),
        ('arms = [{name = "ridge", also = [{name = "zero-pad", also = "ridge"}]}]', "none of which is a mixture itself"),
        ('arms = [{name = "text", also = ["ridge"]}]', "an option 'also' that it does not have"),
        ('arms = ["ridge", {name = "zero-pad", also = [{name = "zero-pad", as = "ridge"}]}]', "two different arms 'ridge'"),
        ('arms = ["ot-embed", "moments-text"]', "arms has 'moments-text' twice"),
        ("arms = [3]", "arms must hold names or tables"),
        ('arms = ["ridge x0"]', "gives 'ridge' a wrong draws"),
        ('arms = [{draws = 3}]', "arms must hold names or tables"),
        ('arms = [{name = "ridge", widht = 3}]', "gives 'ridge' an option 'widht' that it does not have"),
        ('arms = [{name = "random-projection", widht = 3}]', "did you mean 'width'?"),
        ('arms = [{name = "text", slot_scale = 3}]', "gives 'text' an option 'slot_scale' that it does not have"),
        ('arms = [{name = "moments-vocab", budget = 3}]', "an option 'budget' that it does not have"),
        ('arms = [{name = "random-projection", activation = "rleu"}]', "activation 'rleu' is unknown; did you mean 'relu'?"),
        ('arms = [{name = "ot-embed", form = "printd"}]', "form 'printd' is unknown; did you mean 'printed'?"),
        ('arms = [{name = "whiten", components = 0}]', "components must be a whole number of at least 1, not 0"),
        ('arms = [{name = "whiten", row_normalise = "yes"}]', "a wrong row_normalise: it must be true or false"),
        ('arms = [{name = "pca-text", dims = 0}]', "a wrong dims: it must be a whole number from 1"),
        ('point = "average"', "point must be one of mean, median, mode, not 'average'"),
        ('decode = "greedi"', "did you mean 'greedy'?"),
        ("selection = 5", "selection must be a string that is not empty, not 5"),
    ],
)  # fmt: skip
def test_a_mistake_names_the_line_the_key_and_the_nearest_name(tmp_path, line, says):
    message = wrong(tmp_path, f"# a comment\n{SMALL}\n[study]\n\n{line}\n# more\n")
    assert message.startswith("study.toml, line 7: ") and says in message


@pytest.mark.parametrize(
    "text, line, says",
    [
        ('[tsk]\nname = "freesolv"\n', 1, "[tsk] is not a section of a study file; did you mean 'task'?"),
        ('[task]\nname = "fresolv"\n', 2, "did you mean 'freesolv'?"),
        ('[task]\nname = "freesolv"\npath = "a.csv"\n', 3, "both a name and a path"),
        ('[task]\nname = "freesolv"\ntext = "smiles"\n', 3, "[task] text is for a table of your own"),
        ('[task]\npath = "a.csv"\ntarget = "a"\nlabel = "b"\n', 4, "both target"),
        ('[task]\npath = ""\n', 2, "path must be a string that is not empty, not ''"),
        ('[task]\npath = "a.csv"\non_bad = "ignore"\n', 3, "on_bad must be one of error, drop, not 'ignore'"),
        ('[task]\npath = "a.csv"\nmodality = "molecules"\n', 3, "modality has an unknown name 'molecules'; did you mean 'molecule'?"),
        ('[task]\npath = "a.csv"\nquery_fraction = 1.0\n', 3, "query_fraction must be a number between 0 and 1, not 1.0"),
        ('[task]\nname = "synthetic"\noptions = {nose = 1}\n', 3, "did you mean 'noise'?"),
        (SMALL + '[encoder]\nname = "minimal"\n', 4, "did you mean 'minimol'?"),
        (SMALL + '[encoder]\nname = "morgan"\noptions = {radios = 3}\n', 5, "did you mean 'radius'?"),
        (SMALL + '[encoder]\nname = "morgan"\npath = "v.npz"\n', 5, "both a name and a path"),
        (SMALL + '[llm]\nname = "smollm2-135"\n', 4, "did you mean 'smollm2-135m'?"),
        (SMALL + '[llm]\ndtype = "bf16"\n', 4, "dtype has an unknown name 'bf16'"),
        (SMALL + 'study = 3\n', 3, "[task] has no key 'study'"),
        ('study = 3\n' + SMALL, 1, "study must be a section, [study], not 3"),
        ('task.name = "fresolv"\n', 1, "did you mean 'freesolv'?"),
        ('task = {name = "fresolv"}\n', 1, "did you mean 'freesolv'?"),
        (SMALL + '[study]\narms = [\n  "text",  # selction\n  "rigde",\n]\n', 6, "did you mean 'ridge'?"),
        ('[task]\nproperty = """\n[study]\nshots = -1\n"""\nname = "freesolv"\n[study]\nshots = -2\n', 8, "not -2"),
        ('[study]\nshots = 3\n', None, "needs the name of a bundled task (freesolv, huuskonen, digits, synthetic) or the path"),
        ('[study]\n[task]\n', 2, "needs the name of a bundled task"),
    ],
)  # fmt: skip
def test_the_line_is_right_however_the_file_is_written(tmp_path, text, line, says):
    message = wrong(tmp_path, text)
    assert says in message
    assert message.startswith(f"study.toml, line {line}: " if line else "study.toml: ")


@pytest.mark.parametrize(
    "data, says",
    [
        (b"[task\nname", "not valid TOML"),
        (b"a = 1\na = 2\n", "line 2"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"a = " + b"[" * 100_000, "not valid TOML"),
        (b"a = " + b"9" * 10_000, "not valid TOML"),
        (b"", "needs the name of a bundled task"),
    ],
)
def test_what_is_no_study_file_is_said_so(tmp_path, data, says):
    (tmp_path / "s.toml").write_bytes(data)
    with pytest.raises(StudyError, match=says):
        StudySpec.read(tmp_path / "s.toml")


def test_a_missing_file_and_a_folder_are_said_so(tmp_path):
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(StudyError, match="give the path of a study file"):
            StudySpec.read(path)


def test_python_arguments_fail_with_the_same_sentence():
    with pytest.raises(StudyError, match=r"^in \[study\], shots must be a whole number from 1 to 100000, not -1$"):
        study(shots=-1)


# ------------------------------------------------------------------------------------------------ fuzz

VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), NAMES),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["name", "draws", "as", "x", "shot"]), inner, max_size=3)),
    max_leaves=5,
)  # fmt: skip
KEYS = st.sampled_from(["task", "encoder", "llm", "study", "name", "path", "options", "arms", "shots", "seeds", "layout", "markers",
                        "controls", "dtype", "slot_scale", "label", "split", "text", "queries", "zzz"])  # fmt: skip


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(KEYS, st.one_of(VALUES, st.dictionaries(KEYS, VALUES, max_size=4)), max_size=4))
def test_any_nesting_is_a_study_or_a_study_error(document):
    try:
        spec = StudySpec.from_dict(document)
    except StudyError as error:
        assert str(error)
    else:
        assert StudySpec.from_dict(spec.to_dict()) == spec


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_study_file_bitten_anywhere_is_a_study_or_a_study_error(data, tmp_path_factory):
    text = bytearray(CONTRACT.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=3))
    file = tmp_path_factory.getbasetemp() / "bitten.toml"
    file.write_bytes(bytes(text[: data.draw(st.integers(1, len(text)))]))
    try:
        StudySpec.read(file)
    except StudyError as error:
        assert "bitten.toml" in str(error)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["", "# c", "[a]", "[a.b]", "x = 1", "y = [\n1,\n2]", 'z = """\n[a]\nk = 2\n"""', "a.b.q = 3"]), max_size=8))  # fmt: skip
def test_the_line_of_a_key_is_the_first_without_which_it_is_not_there(parts):
    text = "\n".join([*parts, "[last]", "key = 5", ""])
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert text.split("\n")[toml.line_of(text, ("last", "key")) - 1] == "key = 5"
    assert toml.line_of(text, ("last", "nothing")) is None


def test_further_encoders_are_kept_with_their_options_files_and_slots(tmp_path):
    path = tmp_path / "two.toml"
    path.write_text(
        '[task]\nname = "freesolv"\n[encoder]\nname = "minimol"\nslots = 3\nalso = ["chemnet", "minimol", '
        '{ name = "morgan", options = { bits = 1024 } }, { path = "v.npz", slots = 2 }, "w.parquet"]\n'
    )
    spec = StudySpec.read(path)
    assert spec.encoder == EncoderSpec(
        "minimol",
        slots=3,
        also=(
            EncoderSpec("chemnet"),
            EncoderSpec("minimol"),
            EncoderSpec("morgan", options={"bits": 1024}),
            EncoderSpec(None, str(tmp_path / "v.npz"), slots=2),
            EncoderSpec(None, str(tmp_path / "w.parquet")),
        ),
    )
    assert StudySpec.from_dict(spec.to_dict()) == spec
    (tmp_path / "again.toml").write_text(spec.to_toml())
    again = StudySpec.read(tmp_path / "again.toml")
    assert again == spec and again.hash == spec.hash
    path.write_text(path.read_text().replace("slots = 2", "slots = 1"))
    assert StudySpec.read(path).hash != spec.hash


def test_a_plain_list_of_encoders_is_written_as_one(tmp_path):
    """Runs begun before an entry could be a table go on."""
    spec = StudySpec.from_dict({"task": {"name": "freesolv"}, "encoder": {"also": ["chemnet"]}})
    assert spec.to_dict()["encoder"] == {"name": "minimol", "also": ["chemnet"]}


@pytest.mark.parametrize(
    ("also", "says"),
    [
        ('["chemnett"]', "line 4.*also has one whose name has an unknown name 'chemnett'.*chemnet"),
        ('[{ name = "morgan", slot = 2 }]', "line 4.*also has no key 'slot'.*slots"),
        ("[{ slots = 2 }]", "line 4.*neither a name nor a path"),
        ('[{ name = "morgan", path = "v.npz" }]', "line 4.*both a name and a path"),
        ('["chemnet",\n{ name = "morgan",options = { bit = 9 } }]', "line 5.*options do not fit.*bits"),
        ('[{ name = "morgan", slots = 0 }]', "line 4.*slots must be a whole number"),
        ('"chemnet"', "line 4.*also must be a list"),
        ("[3]", "line 4.*name must be a string"),
        ("[{ name = 'morgan', also = ['chemnet'] }]", "line 4.*no key 'also'"),
    ],
)
def test_what_is_wrong_with_a_further_encoder_is_said(tmp_path, also, says):
    path = tmp_path / "two.toml"
    path.write_text(f'[task]\nname = "freesolv"\n[encoder]\nalso = {also}\n')
    with pytest.raises(StudyError, match=says):
        StudySpec.read(path)
