"""Geometry: what is injected is what the model reads, noise keeps nothing of the encoder, and intervals and tests hold."""

from functools import partial

import numpy as np
import pytest

from icrl_lab import maps
from icrl_lab.errors import DataError, StudyError
from icrl_lab.probes import clouds, spaces
from icrl_lab.probes import distortion as bent
from icrl_lab.probes import geometry as room
from icrl_lab.probes import landmarks as landmark
from icrl_lab.probes.clouds import points
from icrl_lab.probes.distortion import distortion, maps_table
from icrl_lab.probes.geometry import geometry
from icrl_lab.probes.jackknife import pseudo_values, put_measures
from icrl_lab.probes.landmarks import landmarks
from icrl_lab.probes.scene import scene
from icrl_lab.values import SLOT, Reading, Vectors
from tests.toy import toy_study

FAMILIES = [("llama", "digits"), ("gemma3", "unigram")]
ITEMS = 20


@pytest.fixture(scope="module")
def readings():
    """The reading of each family, of the isometric arm."""
    return {
        name: geometry(toy(name, tokenizer), "zero-pad", queries=ITEMS, neighbours=5) for name, tokenizer in FAMILIES
    }


def toy(name="llama", tokenizer="digits", **plan):
    return toy_study(name, tokenizer, **{"queries": ITEMS, **plan})


def sel(reading, name, **at):
    return reading.data[name].sel(at).values


# ------------------------------------------------------------------------------------ the spaces


@pytest.mark.parametrize("name,tokenizer", [*FAMILIES, ("gemma2", "unigram")])
def test_depth_0_at_the_slot_is_what_was_injected(name, tokenizer):
    """Times nothing for models that scale inside their embedding layer; Gemma 2 scales whatever it is given by sqrt(d)."""
    study = toy(name, tokenizer, with_text=True)
    one = scene(study, "random-projection", seed=1, queries=9)
    found = points(one)
    inside = study.llm.model.get_decoder().layers[0]
    read = []
    handle = inside.register_forward_pre_hook(lambda m, a, k: read.append((a[0] if a else k["hidden_states"]).clone()), with_kwargs=True)  # fmt: skip
    study.engine.next_token(one.prompts[:1], [0])
    handle.remove()
    at = int(one.parts[0].at("slot", one.parts[0].shown)[0])
    states = np.concatenate([r[0].numpy() for r in read])
    assert np.abs(states - found.slot[0, 0]).max(1).min() < 1e-5  # the model did read this state
    ratio = np.linalg.norm(found.slot[0], axis=1) / np.linalg.norm(found.slots, axis=1)
    assert np.allclose(found.slot[0], found.slots * ratio[:, None], atol=1e-4)
    if name != "gemma2":
        assert np.allclose(ratio, 1, atol=1e-6)
    assert one.prompts[0].ids[at] == SLOT
    assert found.slot.shape == (4, 9, 48) == found.answer.shape and found.encoder.shape == (9, 10)
    assert list(found.named) == ["encoder", "slots", *(f"{p} {d}" for p in ("slot", "answer") for d in range(4))]


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_an_isometric_map_keeps_everything_and_noise_nothing(readings, name):
    found = readings[name]
    for space in ("slots", "slot 0"):
        for measure in ("encoder_rsa", "overlap"):
            assert sel(found, measure, control="real", space=space) == pytest.approx(1, abs=1e-6)
        low, high = (sel(found, f"encoder_rsa_{end}", control="noise", space=space) for end in ("low", "high"))
        assert low < 0 < high and sel(found, "encoder_rsa", control="noise", space=space) < 0.3
        assert sel(found, "over_noise_p", space=space) < 0.01
    assert sel(found, "cosine_correlation", control="real") == pytest.approx(1)
    assert abs(sel(found, "cosine_correlation", control="noise")) < 0.3
    assert sel(found, "norm_spread") == pytest.approx(0, abs=1e-6)
    at = {"relation": "encoder", "position": "slot"}
    assert sel(found, "first", **at) == 0 and str(sel(found, "first_says", **at)) == "depth 0"
    assert sel(found, "first_low", **at) == sel(found, "first_high", **at) == 0
    assert sel(found, "first_share", **at) == 1


def test_before_attention_all_answers_are_one_point(readings):
    found = readings["llama"]
    for measure in ("encoder_rsa", "label_rsa", "overlap", "effective_rank", "dimension"):
        assert np.isnan(sel(found, measure, space="answer 0")).all()
    assert (sel(found, "label_q", space="answer 0") == 1).all()
    assert sel(found, "first", relation="encoder", position="answer") >= 1
    assert np.isfinite(sel(found, "encoder_rsa", space="answer 1")).all()


def test_several_slots_of_an_item_are_one_point():
    study = toy(arms=["zero-pad"])
    task, llm = study.task, study.llm
    wide = Vectors(
        np.random.default_rng(3).standard_normal((len(task), 60)), task.ids, "wide/1"
    )  # more than the model's 48
    from icrl_lab.studies import Study

    found = points(scene(Study(task, wide, llm, **{**study_plan(), "arms": ["zero-pad"]}), queries=10))
    assert found.slots.shape == (10, 96) and found.slot.shape == (4, 10, 96) and found.answer.shape == (4, 10, 48)
    assert np.allclose(found.slot[0], found.slots, atol=1e-5)
    near, own = (spaces.cosines(spaces.gram(x)) for x in (found.slots, found.encoder))
    assert np.corrcoef(spaces.pairs(near), spaces.pairs(own))[0, 1] > 0.5


def study_plan():
    from tests.toy import PLAN

    return {**PLAN, "queries": ITEMS}


# ------------------------------------------------------------------------------------ the numbers


def test_the_numbers_are_those_of_the_points():
    """A second way to one number of each kind, for one seed: intervals are then over items alone."""
    study = toy()
    found = geometry(study, "random-projection", queries=12, neighbours=4, seeds=[2], metric="euclidean", methods=())
    there = points(scene(study, "random-projection", seed=2, queries=12))
    y = study.task.targets[scene(study, "random-projection", seed=2, queries=12).queries]
    label = np.abs(y[:, None] - y)
    from scipy.spatial.distance import pdist
    from scipy.stats import spearmanr

    for name, x in there.named.items():
        if name == "answer 0":
            continue
        at = {"control": "real", "space": name}
        assert sel(found, "encoder_rsa", **at) == pytest.approx(
            spearmanr(pdist(x), pdist(there.encoder)).statistic, abs=2e-3
        )
        assert sel(found, "label_rsa", **at) == pytest.approx(
            spearmanr(pdist(x), spaces.pairs(label)).statistic, abs=2e-3
        )
        assert sel(found, "norm", **at) == pytest.approx(np.linalg.norm(x, axis=1).mean(), rel=1e-5)
        assert (sel(found, "encoder_rsa_by_seed", **at) == sel(found, "encoder_rsa", **at)).all()
    assert "items alone" in found.about["interval"] and found.about["n"] == "1 seed x 12 items"
    assert "coordinates" not in found.data


def test_a_class_is_near_itself():
    found = geometry(toy(classes=True), "zero-pad", queries=ITEMS, neighbours=5, seeds=[0, 1], methods=())
    assert "label" in found.data.coords and "target" not in found.data.coords
    assert np.isfinite(sel(found, "label_rsa", space="slot 2")).all()
    study = toy(classes=True)
    one = scene(study, "zero-pad", queries=ITEMS)
    labels = np.array(study.task.labels)[one.queries]
    assert np.array_equal(clouds.label_of(one), (labels[:, None] != labels).astype(float))


def test_a_planted_label_is_found_and_a_shuffled_one_is_not():
    """Vectors that hold the label: the label's geometry is there from depth 0. toy_vectors hold nothing."""
    study = toy(arms=["zero-pad"])
    from icrl_lab.studies import Study

    task = study.task
    rich = np.random.default_rng(4).standard_normal((len(task), 10)) * 0.2
    rich[:, 0] += task.targets
    rich[:, 1] += 2
    found = geometry(Study(task, Vectors(rich, task.ids, "rich/1"), study.llm, **{**study_plan(), "arms": ["zero-pad"]}), queries=ITEMS, neighbours=5, methods=())  # fmt: skip
    at = {"relation": "label", "position": "slot"}
    assert str(sel(found, "first_says", **at)) == "depth 0"
    assert sel(found, "label_rsa", control="real", space="slot 0") > 0.4 > 0.2 > sel(found, "label_null_high", control="real", space="slot 0")  # fmt: skip
    assert sel(found, "label_q", control="noise", space="slot 0") > 0.05
    poor = geometry(study, "zero-pad", queries=ITEMS, neighbours=5, methods=())
    assert str(sel(poor, "first_says", **at)) == "none found"


def cloud_tables(x, encoder, y):
    """The probe's tables and shuffled labels for clouds (control, space, seed, n, d)."""
    grams, label = spaces.gram(x), np.abs(y[:, None] - y)
    measure = partial(room._measures, metric="euclidean", k=4)
    tables = put_measures({}, room.MEASURES, room.BY, measure, (grams, spaces.gram(encoder), label))
    return tables, room._shuffled(grams, label, "euclidean", 100, 0)


def test_where_there_is_nothing_the_tests_say_so_at_their_rate():
    """Clouds that resemble one another from depth to depth, as they do, and know neither encoder nor label."""
    draw, kinds = np.random.default_rng(5), np.array(["slot"] * 3 + ["answer"] * 3)
    p, found = {"over_noise_p": [], "label_p": []}, {"encoder": [], "label": []}
    for number in range(70):
        x = draw.standard_normal((2, 6, 3, 14, 6)) + draw.standard_normal((2, 1, 3, 14, 6))
        into = {}
        landmark.put_tests(
            into, *cloud_tables(x, draw.standard_normal((14, 5)), draw.standard_normal(14)), kinds, number
        )
        for name in p:
            p[name].append(into[name][1])
        for row, relation in enumerate(landmark.RELATIONS):
            found[relation].append([words != "none found" for words in into["first_says"][1][row]])
    for name, values in p.items():
        assert (np.array(values) < 0.05).mean() < 0.09, name
        assert (np.array(values) < 0.5).mean() > 0.3, name  # and not for want of power
    for relation, values in found.items():
        assert np.mean(values) < 0.10, relation


def test_what_is_lost_at_a_depth_is_called_lost_there():
    """At the slot the encoder's points up to depth 3 and the label's from depth 4 on; at the answer the encoder's from 2 on."""
    draw, kinds = np.random.default_rng(6), np.array(["slot"] * 7 + ["answer"] * 7)
    encoder, y = draw.standard_normal((32, 5)), draw.standard_normal(32)
    x = draw.standard_normal((2, 14, 3, 32, 6))
    x[0, :4, :, :, :5] += 4 * encoder
    x[0, 4:7, :, :, 5] += 12 * y
    x[0, 9:, :, :, :5] += 4 * encoder
    into = {}
    landmark.put_tests(into, *cloud_tables(x, encoder, y), kinds, 0)
    first, lost = into["first_says"][1], into["lost_says"][1]
    assert first[0] == ["depth 0", "depth 2"] and lost[0] == ["depth 4", "none found: it is there to the last depth"]
    assert first[1][0] == "depth 4" and lost[1][0] == "none found: it is there to the last depth"
    assert first[1][1] == "none found" and lost[1][1] == "none found: it is never there"
    low, high = np.array(into["first_low"][1][0]), np.array(into["first_high"][1][0])
    assert (low <= [0, 2]).all() and (high >= [0, 2]).all()
    assert into["lost_low"][1][0, 0] <= 4 <= into["lost_high"][1][0, 0]
    assert into["lost_share"][1][0][0] > 0.9 and into["lost_share"][1][0][1] < 0.1


def test_landmarks_of_truths():
    found = np.array([[0, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]], bool)
    first, lost = landmarks(found)
    assert first.tolist() == [1, 5, 0, 4] and lost.tolist() == [4, 0, 5, 5]


def test_intervals_cover_what_new_items_would_give():
    """RSA, CKA and slopes of 24 items from a population whose own values are known from thousands."""
    draw, turn = np.random.default_rng(7), np.random.default_rng(8).standard_normal((4, 8))

    def one(n):
        x = draw.standard_normal((n, 4)) * np.array([2, 1, 1, 0.5])
        return spaces.gram(x), spaces.gram(x @ turn + 2 * draw.standard_normal((n, 8)))[None]

    def measure(own, gram):
        rsa = spaces.rsa(spaces.distances(gram), spaces.distances(own))
        slope = bent._cosines(gram, own, 0.1, spaces.relu_cosine)["cosine_slope"]
        return {"encoder_rsa": rsa, "encoder_cka": spaces.cka(gram, own), "cosine_slope": slope}

    truth = {name: float(value[0]) for name, value in measure(*one(1500)).items()}
    hits = {name: [] for name in truth}
    for _ in range(120):
        into = {}
        put_measures(into, {**room.MEASURES, **bent.MAPPED}, (), measure, one(24))
        for name in truth:
            hits[name].append(into[f"{name}_low"][1] <= truth[name] <= into[f"{name}_high"][1])
    assert {name: bool(0.88 < np.mean(h) <= 1) for name, h in hits.items()} == dict.fromkeys(truth, True)


def test_pseudo_values_of_a_mean_are_its_terms():
    x = np.random.default_rng(9).standard_normal((2, 3, 7))
    left = (x.sum(-1, keepdims=True) - x) / 6
    assert np.allclose(pseudo_values(x.mean(-1), left), x)


# ------------------------------------------------------------------------------------ the slot map alone


def distorted(mapped, raw):
    grams, own = spaces.gram(mapped)[None], spaces.gram(raw)
    return {name: float(np.ravel(v)[0]) for name, v in bent._cosines(grams, own, 1.0, spaces.relu_cosine).items()}


def test_the_recipe_s_geometry_is_reproduced():
    """Pool vectors of mean cosine 0.90, simulated: what each map leaves of cosines, and of their differences."""
    draw = np.random.default_rng(10)
    raw = np.full(512, 3.0) + draw.standard_normal((300, 512))
    assert spaces.mean_cosine(spaces.gram(raw)) == pytest.approx(0.90, abs=0.005)
    table = np.random.default_rng(11).standard_normal((2000, 4096)) * 0.03 + 0.03 * np.sqrt(0.05 / 0.95)
    tokens, pool = maps.Tokens(table, "llm:wide"), Vectors(raw, tuple(map(str, range(300))), "fm/1")

    def through(name, **options):
        return distorted(maps.apply(maps.fit(name, pool, tokens, seed=0, **options), pool).values, raw)

    narrow, wide = through("random-projection"), through("wide-random")
    assert narrow["cosine_after"] == pytest.approx(0.90, abs=0.05) and wide["cosine_after"] == pytest.approx(
        0.90, abs=0.01
    )
    # of isotropic vectors the correlation is 1 / sqrt(1 + d (1/64 + 1/64 + 1/4096)): 0.24 and 0.94
    assert narrow["cosine_correlation"] == pytest.approx(0.23, abs=0.05)
    assert wide["cosine_correlation"] == pytest.approx(0.94, abs=0.02)
    assert through("centre")["cosine_after"] == pytest.approx(0, abs=0.01)
    matched = through("moments-vocab", projector="random-projection")
    assert matched["cosine_after"] == pytest.approx(0.05, abs=0.02)
    bent = through("random-projection", width=4096, depth=2, activation="relu")
    expected = spaces.relu_cosine(spaces.pairs(spaces.cosines(spaces.gram(raw)))).mean()
    assert bent["cosine_after"] == pytest.approx(expected, abs=0.02) and bent["cosine_after"] > 0.9


def test_distortion_runs_no_model():
    study = toy(arms=["zero-pad", "wide-random", {"name": "random-projection", "as": "bent", "activation": "relu", "width": 40}])  # fmt: skip
    study.engine.run = None
    found = distortion(study, "bent", queries=12)
    assert found.data["slot_cosine"].dims == ("control", "seed", "pair") and found.data.sizes["pair"] == 66
    for control, number in (("real", 0), ("noise", 1)):
        one = scene(study, "bent", control, seed=1, queries=12)
        injected = np.concatenate([p.vectors[-1:] for p in one.prompts])  # the query's slot is the last
        assert np.allclose(sel(found, "slot_cosine")[number, 1], spaces.pairs(spaces.cosines(spaces.gram(injected))))
    rho = found.data["rho"].values
    assert np.allclose(sel(found, "theory"), spaces.relu_cosine(rho, 2)) and np.allclose(sel(found, "theory_relu"), spaces.relu_cosine(rho))  # fmt: skip
    assert float(found.data["layer_width"]) == pytest.approx(1 / (1 / 40 + 1 / 40 + 1 / 48))
    smooth = toy(arms=[{"name": "random-projection", "as": "smooth", "activation": "gelu", "width": 40}])
    unknown = distortion(
        smooth, "smooth", queries=12
    )  # GELU has no curve of its own, and is not given that of no activation
    assert np.isnan(sel(unknown, "theory")).all() and np.isnan(sel(unknown, "cosine_within", control="real"))
    legend = {trace.name for trace in unknown.plot().data if trace.name}
    assert "theory for one ReLU layer" in legend and not any("this map" in n or "bound" in n for n in legend)
    assert "Theory has no bound for the activations" in unknown.about["says"][1] and "nan" not in " ".join(
        unknown.about["says"]
    )
    straight = distortion(study, "wide-random", queries=12)
    assert np.allclose(sel(straight, "theory"), rho) and float(straight.data["layer_width"]) == pytest.approx(48)
    assert sel(straight, "cosine_within", control="real") > 0.9
    slopes = sel(straight, "cosine_slope", control="real"), sel(straight, "cosine_slope", control="noise")
    assert 0.8 < slopes[0] < 1.2 and abs(slopes[1]) < 0.4
    assert np.allclose(np.linalg.norm(study.vectors.values[scene(study, "bent", queries=12).queries], axis=1), sel(found, "norm_before")[0], rtol=1e-6)  # fmt: skip


def test_the_table_of_maps_has_each_arm():
    table = maps_table(toy(arms=["text", "zero-pad", "random-projection"]), queries=12)
    assert table["arm"].tolist() == ["zero-pad", "random-projection"]
    assert table["cosine_correlation"][0] == pytest.approx(1) and table["cosine_correlation"][1] < 0.99
    assert (table["cosine_after_low"] < table["cosine_after"]).all() and (table["cosine_correlation_noise"] < 0.5).all()


def test_a_slot_that_is_a_token_is_nearest_to_it():
    study = toy(arms=["zero-pad"])
    one = scene(study, queries=9)
    ids = np.arange(40, 49)
    injected = np.tile(study.llm.embeddings[ids][None, None, :, None], (2, 1, 1, 1, 1)) * 0.3
    found = bent._tokens(one, injected, 0)
    words = [study.llm.tokenizer.decode([int(i)]) for i in ids]
    assert found["token_cosine_each"][1] == pytest.approx(1, abs=1e-5)
    assert found["nearest_token"][1][0, 0].tolist() == [w if w.isprintable() else found["nearest_token"][1][0, 0, i] for i, w in enumerate(words)]  # fmt: skip
    assert (found["token_to_token"][1] < 1 - 1e-4).all() and bent._word(study.llm.tokenizer, int(study.llm.tokenizer.encode("\n", add_special_tokens=False)[-1])) == "\\n"  # fmt: skip


# ------------------------------------------------------------------------------------ the reading and its figures


def test_a_reading_comes_back_and_says_what_it_found(readings, tmp_path):
    for name, reading in readings.items():
        reading.save(tmp_path / f"{name}.nc")
        again = Reading.load(tmp_path / f"{name}.nc")
        assert again.data.equals(reading.data) and dict(again.about) == dict(reading.about)
        assert again.names[0] == "encoder_rsa"
        table = again.to_dataframe()
        assert {"control", "space", "depth", "label_rsa", "label_q", "norm_low"} <= set(table)
        assert len(again.about["says"]) >= 4 and all(a.attrs["long_name"] for a in again.data.data_vars.values())
        assert "depth 0" in again.about["says"][1]
        assert "none found" in again.about["says"][2]


def test_the_same_seed_gives_the_same_reading():
    one, again, other = (geometry(toy(), "zero-pad", queries=10, neighbours=3, seeds=[0, 1], seed=s) for s in (1, 1, 2))
    assert one.data.equals(again.data)
    assert not np.array_equal(one.data["label_p"], other.data["label_p"])
    assert np.array_equal(one.data["encoder_rsa"], other.data["encoder_rsa"], equal_nan=True)


def test_figures_draw_what_the_reading_holds(readings):
    from icrl_lab.plots import geometry as plots

    reading = readings["llama"]
    made = plots.figures(reading)
    assert list(made) == ["along", "shape", "distortion", "map-pca"]
    assert made["along"].to_json() == reading.plot().to_json()
    for figure in made.values():
        assert figure.layout.width == 700 and "3 seeds x 20 items" in figure.layout.title.text
    real = next(t for t in made["along"].data if t.name == "real vectors, RSA")
    kept = reading.data.isel(space=reading.data["kind"].values == "slot")["encoder_rsa"].sel(control="real").values
    assert np.array_equal(np.asarray(real.y, float), kept)
    found = next(t for t in made["along"].data if t.name == "first found")
    assert list(found.x) == [0]
    points = [t for t in made["map-pca"].data if t.mode == "markers"]
    assert len(points) == 6 and len(points[0].x) == ITEMS
    alone = distortion(toy(), "random-projection", queries=10)
    assert list(plots.figures(alone)) == ["distortion"] and alone.plot().layout.width == 700
    with pytest.raises(DataError, match="no map 'umap'"):
        plots.maps(reading, "umap")


def test_every_space_has_a_map_that_lies_as_the_encoders_does(readings):
    from icrl_lab.probes.geometry import turned

    data = readings["llama"].data
    assert list(data["mapped"].values) == list(data["space"].values)
    flat = data["coordinates"].values[0]
    for one in flat[1:]:
        a, b = one - one.mean(0), flat[0] - flat[0].mean(0)
        product = a.T @ b  # of the nearest turn: symmetric, and no direction points away
        assert np.allclose(product, product.T, atol=1e-8) and np.linalg.eigvalsh(product).min() > -1e-8
    rng = np.random.default_rng(0)
    plane = rng.standard_normal((9, 2))
    mirrored = plane @ np.array([[0.6, 0.8], [0.8, -0.6]]) + 3
    assert np.allclose(turned(mirrored, plane), plane - plane.mean(0))


def test_text_of_the_data_cannot_be_markup(readings):
    from icrl_lab.plots import geometry as plots

    reading = readings["llama"]
    data = reading.data.assign_coords(
        query=[f"<b onclick=x>{i}" for i in range(ITEMS)], text=("query", ["<script>"] * ITEMS)
    )
    told = {**reading.about, "task": "<img>", "target_units": "<i>u"}
    for figure in plots.figures(Reading("geometry", data, told)).values():
        assert not any(bad in figure.to_json() for bad in ("<script>", "<b onclick", "<img>", "<i>u"))


def test_classes_have_colours_and_shapes():
    from icrl_lab.plots import geometry as plots

    reading = geometry(toy(classes=True), "zero-pad", queries=ITEMS, neighbours=5, seeds=[0])
    figure = plots.maps(reading)
    looks = {t.name: (t.marker.color, t.marker.symbol) for t in figure.data}
    assert set(looks) == {"yes", "no"} and len(set(looks.values())) == 2


def test_what_cannot_be_asked_is_said():
    with pytest.raises(StudyError, match="injects no vector"):
        geometry(toy(arms=["text", "zero-pad"]), "text")
    with pytest.raises(StudyError, match="at least 8 queries"):
        geometry(toy(), queries=6)
    with pytest.raises(StudyError, match="8 neighbours of 12 items are no neighbourhood"):
        geometry(toy(), queries=12)
    with pytest.raises(StudyError, match="did you mean 'cosine'"):
        geometry(toy(), queries=12, neighbours=3, metric="cosin")
    with pytest.raises(StudyError, match="at least 100"):
        geometry(toy(), queries=12, neighbours=3, permutations=10)
    with pytest.raises(StudyError, match="no space 'slot 9'"):
        clouds.embedding(scene(toy(), queries=12), "slot 9")
    assert clouds.embedding(scene(toy(), queries=12), "slot 2", neighbours=3).coordinates.shape == (12, 2)


@pytest.mark.real
def test_molecules_in_the_embedded_model(smollm2):
    import icrl_lab as lab
    from icrl_lab.studies import Study

    task = lab.load_task("freesolv")
    plan = dict(arms=["random-projection"], with_text=False, labels="true", shots=5, seeds=1, queries=18)
    study = Study(task, lab.encode(task, "minimol"), smollm2, label_format="letter", **plan)
    found = geometry(study, neighbours=5, methods=())
    kept, noise = (sel(found, "encoder_rsa", control=c, space="slot 0") for c in ("real", "noise"))
    assert kept == pytest.approx(sel(found, "encoder_rsa", control="real", space="slots"), abs=1e-3)
    assert kept > 0.6 > noise and found.data.sizes["space"] == 64
    assert 0.4 < sel(found, "cosine_before") < 0.9
    assert sel(found, "token_cosine", control="real") < 0.3 < sel(found, "token_to_token").mean()
