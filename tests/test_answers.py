"""Answers: exact distributions against brute force, mixtures, scores, and a parser that never takes an echo."""

import zlib
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from icrl_lab.answers import (
    BINS,
    FORMATS,
    Answer,
    Choice,
    decode_numbers,
    decode_options,
    fit_format,
    mix,
    parse_answers,
    parse_number,
    parse_option,
    score_numbers,
    score_options,
)
from icrl_lab.answers.numbers import PROBE
from icrl_lab.errors import DataError, StudyError
from icrl_lab.prompts import Example, build, cuts, layout, render_all
from icrl_lab.values import Vectors
from tests.families import FAMILIES, family

POOL = np.random.default_rng(1).gamma(2.0, 1.5, 300) - 6.0
ITEMS = [Example(f"m{i}", "C" * (i + 1), f"{i}") for i in range(8)]
VECTORS = Vectors(np.random.default_rng(0).normal(size=(8, 6)), [e.id for e in ITEMS], "llm:tiny")


def prompts(tokenizer, n=3, name="arrow", view="vector"):
    return render_all([build(layout(name), ITEMS[:4], [q], view=view) for q in ITEMS[4 : 4 + n]], tokenizer, VECTORS)


class HashEngine:
    """Logits are a hash of everything in the prompt: deterministic, and different for every prefix and vector."""

    def __init__(self, tokenizer, spread=2.0):
        self.size, self.spread, self.asked = max(tokenizer.get_vocab().values()) + 1, spread, 0

    def logp(self, prompt):
        seed = zlib.crc32(prompt.ids.tobytes() + prompt.vectors.tobytes())
        logits = np.random.default_rng(seed).normal(0, self.spread, self.size)
        return logits - np.log(np.exp(logits).sum())

    def next_token(self, asked, ids=None):
        self.asked += len(asked)
        table = np.array([self.logp(p) for p in asked])
        return (table if ids is None else table[:, list(ids)]).astype(np.float32)


class ScriptEngine:
    """Writes one of several texts behind every prompt with stated probabilities, token by token."""

    def __init__(self, tokenizer, begun, texts, rest=0.0):
        self.tok, self.size = tokenizer, max(tokenizer.get_vocab().values()) + 1
        self.start, self.rest = len(begun), rest  # `rest`: probability of a token that no text begins with
        self.paths = [(tuple(ids), p) for ids, p in texts]

    def next_token(self, asked, ids=None):
        table = np.full((len(asked), self.size), 1e-30)
        for row, prompt in zip(table, asked):
            said = tuple(prompt.ids[self.start :].tolist())
            fit = [(path, p) for path, p in self.paths if path[: len(said)] == said and len(path) > len(said)]
            for path, p in fit:
                row[path[len(said)]] += p
            if not said:
                row[0] += self.rest
            row /= row.sum()
        out = np.log(table)
        return out if ids is None else out[:, list(ids)]

    def generate(self, asked, max_new_tokens, temperature=0.0, seed=0, stop_ids=()):
        best = max(self.paths, key=lambda t: t[1])[0]
        return [list(best[:max_new_tokens]) for _ in asked]


@pytest.fixture(params=FAMILIES)
def tokenizer(request):
    return family(request.param)


# ----------------------------------------------------------------------------------------------- the formats


@pytest.mark.parametrize("name", ["digit", "two-digit"])
def test_bins_are_equally_full_monotone_and_inverse_within_their_width(name):
    fmt = fit_format(name, POOL)
    bins = FORMATS[name]
    written = [fmt.write(y) for y in POOL]
    assert len(fmt.labels) == bins and set(map(len, fmt.labels)) == {len(str(bins - 1))}
    counts = np.bincount([int(w) for w in written], minlength=bins)
    assert counts.max() - counts.min() <= 1
    edges = np.concatenate([[POOL.min()], fmt.edges, [POOL.max()]])
    for y, w in zip(POOL, written):
        assert abs(fmt.read(w) - y) <= edges[int(w) + 1] - edges[int(w)]
        assert fmt.write(fmt.read(w)) == w  # a bin's value lies in its bin
    order = np.argsort(POOL)
    assert sorted(written) == [written[i] for i in order]
    for b in (0, bins // 2, bins - 1):  # the value of a label is the mean of what it stands for
        assert fmt.values[b] == pytest.approx(POOL[[int(w) == b for w in written]].mean())
    assert fmt.write(-1e9) == fmt.labels[0] and fmt.write(1e9) == fmt.labels[-1]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0, 1.0, 2.5]), min_size=1, max_size=40),
    st.sampled_from(["digit", "two-digit"]),
    st.sampled_from(BINS),
)
def test_ties_skew_and_constants_keep_formats_monotone_and_inside_the_pool(pool, name, bins):
    fmt = fit_format(name, np.array(pool), bins)
    assert (np.diff(fmt.values) >= 0).all() and fmt.values.min() >= min(pool) and fmt.values.max() <= max(pool)
    edges = np.concatenate([[min(pool)], fmt.edges, [max(pool)]])
    for y in pool:
        b = int(fmt.write(y))
        assert abs(fmt.read(fmt.write(y)) - y) <= (edges[b + 1] - edges[b]) * (1 + 1e-9) + 1e-9
    for b in {int(fmt.write(y)) for y in pool}:  # the value of a label is the mean of what it stands for
        assert fmt.values[b] == pytest.approx(np.mean([y for y in pool if int(fmt.write(y)) == b]), abs=1e-6)
    if len(set(pool)) == 1:
        assert fmt.read(fmt.write(pool[0])) == pool[0]


@pytest.mark.parametrize("name", ["digit", "letter"])
def test_even_bins_are_as_wide_each_and_tell_the_ends_of_a_skewed_target_apart(name):
    pool = -np.random.default_rng(3).lognormal(1.0, 0.8, 500)  # a few values far below the others
    even, ranks = fit_format(name, pool, "even"), fit_format(name, pool)
    assert np.ptp(np.diff(even.edges)) < 1e-9 and len(even.edges) == FORMATS[name] - 1
    low, high = np.quantile(pool, [0.01, 0.99])
    width = (high - low) / FORMATS[name]
    assert even.edges[0] == pytest.approx(low + width) and even.edges[-1] == pytest.approx(high - width)
    for y in (pool.min(), low, 0.5 * (low + high), high, pool.max()):  # within a bin's width but for the outer two
        label = even.write(y)
        assert label in (even.labels[0], even.labels[-1]) or abs(even.read(label) - y) <= width

    def apart(fmt):
        lowest = np.sort(pool)[: len(pool) // 10]
        return len({fmt.write(y) for y in lowest}) / len(fmt.labels)

    assert apart(even) > 2 * apart(ranks)
    errors = {fmt.bins: np.mean([(fmt.read(fmt.write(y)) - y) ** 2 for y in pool]) for fmt in (even, ranks)}
    assert errors["even"] < errors["quantile"]  # what is lost by writing a number down
    assert "rank" in ranks.scale() and "even scale" in even.scale()


@pytest.mark.parametrize("bins", BINS)
@pytest.mark.parametrize("name", ["digit", "two-digit"])
def test_units_do_not_change_what_is_written(name, bins):
    here, there = fit_format(name, POOL, bins), fit_format(name, 1.8 * POOL + 32, bins)
    assert [here.write(y) for y in POOL] == [there.write(1.8 * y + 32) for y in POOL]
    np.testing.assert_allclose(there.values, 1.8 * here.values + 32)


@pytest.mark.parametrize(
    ("y", "text"),
    [(0, "0"), (-0.0, "0"), (1.2, "1.2"), (-3.456, "-3.46"), (0.000123456, "0.000123"), (1234.0, "1230"), (99.96, "100"),
     (1e-9, "1e-9"), (-2.5e12, "-2.5e12"), (9.999e8, "1000000000"), (7, "7"), (-0.5, "-0.5")],
)  # fmt: skip
def test_three_significant_figures(y, text):
    fmt = fit_format("as-written", POOL)
    assert fmt.write(y) == text
    assert fmt.read(text) == pytest.approx(y, rel=5e-3)


@settings(max_examples=200, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_as_written_is_read_back_to_three_figures(y):
    fmt = fit_format("as-written", POOL)
    back = fmt.read(fmt.write(y))
    assert back is None or back == pytest.approx(y, rel=5.1e-3, abs=1e-300)
    assert back is not None or abs(y) > 1e308


def test_formats_refuse_what_they_cannot_write():
    with pytest.raises(StudyError, match="did you mean 'two-digit'"):
        fit_format("two-digits", POOL)
    with pytest.raises(StudyError, match="bins of labels 'evne': did you mean 'even'"):
        fit_format("digit", POOL, "evne")
    with pytest.raises(DataError, match="finite numbers"):
        fit_format("digit", np.array([]))
    with pytest.raises(DataError, match="span more than can be computed with"):
        fit_format("digit", np.array([-1e308, 1e308]))
    with pytest.raises(DataError, match="cannot be written"):
        fit_format("digit", POOL).write(float("nan"))
    fmt = fit_format("digit", POOL)
    assert fmt.read("11") is None and fmt.read("-1") is None and fmt.read("none") is None
    assert fmt.values[3] < fmt.read("3.5") < fmt.values[4]
    assert "0 (lowest) to 9" in fmt.scale("mol") and fit_format("as-written", POOL).scale("mol") == "in mol"


# --------------------------------------------------------------------------------------------- exact scoring


@pytest.mark.parametrize("name", ["digit", "two-digit"])
@pytest.mark.parametrize("which", ["arrow", "paper"])
def test_the_trie_is_brute_force_scoring_of_every_label(tokenizer, name, which):
    fmt, engine = fit_format(name, POOL), HashEngine(tokenizer)
    asked = prompts(tokenizer, name=which)
    answers = score_numbers(engine, asked, fmt, tokenizer)
    for prompt, cut, answer in zip(asked, cuts(asked, tokenizer, fmt.labels), answers):
        begun = cut.apply(prompt)
        brute = []
        for path in cut.labels:
            p, here = 1.0, begun
            for token in path:
                p *= np.exp(engine.logp(here)[token])
                here = here.extend([token])
            brute.append(p)
        assert answer.mass == pytest.approx(sum(brute), rel=1e-5)
        assert np.allclose(answer.probs, np.array(brute) / sum(brute), rtol=1e-5)
        mean = np.array(brute) @ fmt.values / sum(brute)  # it may lie near zero
        assert answer.mean == pytest.approx(mean, abs=1e-5 * np.abs(fmt.values).max())
        assert brute[fmt.labels.index(answer.raw)] >= max(brute) * (1 - 1e-5) and answer.ok  # two may be all but equal
    different = {(p.ids.tobytes(), p.vectors.tobytes()) for p in asked}  # a trained vocabulary may read two texts alike
    assert len({a.mean for a in answers}) == len(different) > 1


class Among(HashEngine):
    """Tells what was asked of it among the labels alone."""

    def next_token(self, asked, ids=None, among=False):
        table = super().next_token(asked, ids)
        self.among = among
        return table - np.log(np.exp(table).sum(1, keepdims=True)) if among else table


@pytest.mark.parametrize("which", [["digit"], ["two-digit"], ("yes", "no", "toxic")])
def test_the_probability_of_all_labels_is_left_out_where_each_is_a_token_and_nobody_asks(tokenizer, which):
    engine, asked = Among(tokenizer), prompts(tokenizer, 4)
    if isinstance(which, list):
        fmt = fit_format(which[0], POOL)
        labels, ask = fmt.labels, lambda **more: score_numbers(engine, asked, fmt, tokenizer, **more)
    else:
        labels, ask = which, lambda **more: score_options(engine, asked, which, tokenizer, **more)
    single = all(len(path) == 1 for cut in cuts(asked, tokenizer, labels) for path in cut.labels)
    whole = ask()
    assert not engine.among
    relative = ask(mass=False)
    assert engine.among == single
    for a, b in zip(whole, relative):
        assert np.allclose(a.probs, b.probs, rtol=1e-5) and a.raw == b.raw
        assert np.isnan(b.mass) if single else a.mass == b.mass


def test_the_trie_asks_once_for_each_inner_node():
    tok = family("digits")
    engine = HashEngine(tok)
    score_numbers(engine, prompts(tok), fit_format("two-digit", POOL), tok)
    assert engine.asked == 3 * 11


def test_answers_do_not_depend_on_their_neighbours(tokenizer):
    fmt = fit_format("digit", POOL)
    asked = prompts(tokenizer, 4)
    together = score_numbers(HashEngine(tokenizer), asked, fmt, tokenizer)
    for i in (3, 1):
        alone = score_numbers(HashEngine(tokenizer), [asked[i]], fmt, tokenizer)[0]
        assert np.array_equal(alone.probs, together[i].probs) and alone.mass == together[i].mass
    assert score_numbers(HashEngine(tokenizer), [], fmt, tokenizer) == []


def test_probabilities_that_cannot_be_used_are_failures_with_a_reason():
    tok = family("digits")

    class Broken(HashEngine):
        def next_token(self, asked, ids=None):
            table = super().next_token(asked, ids)
            table[[np.array_equal(p.vectors, asked_[0].vectors) for p in asked]] = np.nan
            return table

    asked_ = prompts(tok)
    for name in FORMATS:
        first, *rest = score_numbers(Broken(tok), asked_, fit_format(name, POOL), tok)
        assert not first.ok and "not finite" in first.status and np.isnan(first.mean) and np.isnan(first.crps(1.0))
        assert rest[1].ok
    nothing = type("Never", (), {"next_token": lambda self, p, ids=None: np.full((len(p), len(ids)), -np.inf)})()
    for name in FORMATS:
        (only,) = score_numbers(nothing, prompts(tok, 1), fit_format(name, POOL), tok)
        assert "probability" in only.status and only.mass == 0 and only.raw == ""
    (choice,) = score_options(nothing, prompts(tok, 1), ("yes", "no"), tok)
    assert choice.status == "no option has any probability" and choice.label == ""


# ------------------------------------------------------------------------------------ numbers as they are written


def script(tokenizer, texts, rest=0.0, n=2, **more):
    asked = prompts(tokenizer, n, **more)
    begun = cuts(asked, tokenizer, PROBE)[0].apply(asked[0])
    pairs = []
    for text, p in texts:
        cut = cuts(asked[:1], tokenizer, [text])[0]
        whole = [*cut.apply(asked[0]).ids.tolist(), *cut.labels[0]]
        pairs.append((whole[len(begun) :], p))
    return asked, ScriptEngine(tokenizer, begun.ids, pairs, rest)


TEXTS = [("1.5\n", 0.3), ("-2\n", 0.4), ("12\n", 0.1), ("1.25\n", 0.05), ("0.5\n", 0.15)]


def test_the_beam_finds_the_distribution_that_was_planted(tokenizer):
    asked, engine = script(tokenizer, TEXTS)
    for answer in score_numbers(engine, asked, fit_format("as-written", POOL), tokenizer):
        assert answer.values.tolist() == pytest.approx([-2, 0.5, 1.25, 1.5, 12])
        assert answer.probs.tolist() == pytest.approx([0.4, 0.15, 0.05, 0.3, 0.1], abs=1e-6)
        assert answer.mass == pytest.approx(1) and answer.raw == "-2" and answer.median == 0.5


def test_a_narrow_beam_and_other_words_cost_mass(tokenizer):
    asked, engine = script(tokenizer, TEXTS, rest=1.0)
    fmt = fit_format("as-written", POOL)
    wide = score_numbers(engine, asked, fmt, tokenizer)[0]
    assert wide.mass == pytest.approx(0.5) and wide.probs.sum() == pytest.approx(1)
    narrow = score_numbers(engine, asked, fmt, tokenizer, beam=1)[0]
    assert narrow.mass < wide.mass and set(narrow.values) <= set(wide.values)
    short = score_numbers(engine, asked, fmt, tokenizer, levels=2)[0]
    assert short.mass < wide.mass or not short.ok


@pytest.mark.parametrize(
    "pool, text", [([1.23e-6, 2e-6], "0.00000123"), ([1.23e8, -4e8], "123000000"), ([-1.23e-10], "-1.23e-10")]
)
def test_the_beam_goes_as_far_as_the_pools_longest_label(tokenizer, pool, text):
    fmt = fit_format("as-written", np.array(pool))
    assert text in {fmt.write(y) for y in pool}
    asked, engine = script(tokenizer, [(text + "\n", 0.7), ("0.5\n", 0.1)])
    (answer, _) = score_numbers(engine, asked, fmt, tokenizer)
    assert answer.raw == text and answer.mode == pytest.approx(float(text))


def test_an_improbable_exponent_does_not_rule_the_mean(tokenizer):
    """No number beyond ten times the pool's largest magnitude is an answer; its probability is missing in the mass."""
    fmt = fit_format("as-written", np.array([-20.0, 3.0, 12.0]))
    asked, engine = script(tokenizer, [("7\n", 0.5), ("150\n", 0.2), ("1e8\n", 0.1), ("-201\n", 0.1), ("-200\n", 0.1)])
    (answer, _) = score_numbers(engine, asked, fmt, tokenizer)
    assert answer.values.tolist() == pytest.approx([-200, 7, 150]) and answer.mass == pytest.approx(0.8)
    assert fmt.read("1e8") == 1e8  # a number that was generated is read as it is


def test_the_beam_never_finds_more_than_there_is(tokenizer):
    for answer in score_numbers(
        HashEngine(tokenizer, 4.0), prompts(tokenizer), fit_format("as-written", POOL), tokenizer
    ):
        assert answer.ok and 0 < answer.mass <= 1 + 1e-6 and answer.probs.sum() == pytest.approx(1)


def test_decoding_reads_the_same_text(tokenizer):
    fmt = fit_format("as-written", POOL)
    asked, engine = script(tokenizer, [("-2.5\nCCO -> 7\n", 1.0)])
    rows = decode_numbers(engine, asked, fmt, tokenizer)
    assert [[a.mean for a in row] for row in rows] == [[-2.5], [-2.5]] and np.isnan(rows[0][0].mass)
    asked, engine = script(tokenizer, [("none\n", 1.0)])
    ((bad,), _) = decode_numbers(engine, asked, fmt, tokenizer)
    assert bad.status == "no number in the text" and "none" in bad.raw
    digit = fit_format("digit", POOL)
    asked, engine = script(tokenizer, [("7\n", 1.0)])
    assert decode_numbers(engine, asked, digit, tokenizer)[0][0].mean == pytest.approx(digit.values[7])
    asked, engine = script(tokenizer, [("17\n", 1.0)])
    assert decode_numbers(engine, asked, digit, tokenizer)[0][0].status == "the number 17 is no label"


def test_several_queries_are_read_one_by_one():
    tok = family("digits")
    asked = render_all([build(layout("paper"), ITEMS[:3], ITEMS[4:7])] * 2, tok, VECTORS)
    text = tok("Answer 1: -3\nAnswer 2: unknown\nAnswer 3: **0.5**", add_special_tokens=False)["input_ids"]
    engine = ScriptEngine(tok, asked[0].ids, [(text, 1.0)])
    for row in decode_numbers(engine, asked, fit_format("as-written", POOL), tok, queries=3):
        assert [a.status for a in row] == ["ok", "no number in the text", "ok"] and (row[0].mean, row[2].mean) == (
            -3,
            0.5,
        )


# ---------------------------------------------------------------------------------------------- distributions

answers_ = st.lists(st.tuples(st.floats(-100, 100), st.floats(0.01, 1)), min_size=1, max_size=12).map(
    lambda pairs: Answer(np.array([v for v, _ in pairs]), np.array([p for _, p in pairs]), 0.5, "x")
)


@settings(max_examples=60, deadline=None)
@given(answers_, st.floats(-120, 120))
def test_crps_is_the_integral_of_the_squared_distance_of_distribution_functions(answer, y):
    edges = np.unique([*answer.values, y])
    total = 0.0
    for lo, hi in pairwise(edges):  # the integrand is constant between edges
        cdf = answer.probs[answer.values <= (lo + hi) / 2].sum()
        total += (hi - lo) * (cdf - (y <= (lo + hi) / 2)) ** 2
    assert answer.crps(y) == pytest.approx(total, abs=1e-9)


def test_crps_of_a_point_is_its_distance_and_far_values_lose_nothing():
    assert Answer([2.0], [1.0]).crps(-1.5) == 3.5
    near = Answer([0.0, 1.0, 3.0], [1, 2, 1])
    far = Answer(np.array([0.0, 1.0, 3.0]) + 1e9, [1, 2, 1])
    assert far.crps(1e9 + 2) == pytest.approx(near.crps(2), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(answers_)
def test_quantiles_invert_the_distribution_function(answer):
    qs = np.linspace(0, 1, 21)
    got = [answer.quantile(q) for q in qs]
    assert got == sorted(got) and got[-1] == answer.values[-1] and answer.values[0] <= answer.mean <= answer.values[-1]
    for q, x in zip(qs, got):
        assert answer.probs[answer.values <= x].sum() >= q - 1e-9
        assert answer.probs[answer.values < x].sum() < q + 1e-9
    assert answer.point("median") == answer.quantile(0.5)
    with pytest.raises(StudyError, match="did you mean 'median'"):
        answer.point("medain")


@settings(max_examples=60, deadline=None)
@given(st.lists(answers_, min_size=1, max_size=5))
def test_mixtures(parts):
    mixed = mix(parts)
    assert mixed.mean == pytest.approx(np.mean([a.mean for a in parts]), abs=1e-9)
    assert mixed.mass == pytest.approx(0.5) and mixed.probs.sum() == pytest.approx(1)
    back = mix(parts[::-1])
    assert np.array_equal(mixed.values, back.values) and np.allclose(mixed.probs, back.probs)
    same = mix([parts[0]] * 3)
    one = mix(parts[:1])
    assert np.array_equal(same.values, one.values) and np.allclose(same.probs, one.probs)
    for x in mixed.values:  # the distribution function of a mixture is the mean of theirs
        want = np.mean([a.probs[a.values <= x].sum() for a in parts])
        assert mixed.probs[mixed.values <= x].sum() == pytest.approx(want)
    assert mixed.crps(3.0) <= np.mean([a.crps(3.0) for a in parts]) + 1e-9  # CRPS is convex


def test_a_mixture_leaves_failures_out_and_says_so_in_its_mass():
    good, bad = Answer([1.0, 2.0], [1, 3], 0.8, "2"), Answer.failed("why")
    assert mix([good, bad]).mean == good.mean and mix([good, bad]).mass == pytest.approx(0.4)
    assert mix([bad, bad]).status == "why" and mix([good, good]).raw == "2"
    a, b = Choice(("x", "y"), [1.0, 3.0], 1.0), Choice(("x", "y"), [1.0, 0.0], 1.0)
    assert mix([a, b]).probs.tolist() == [0.625, 0.375] and mix([a, b]).label == "x"
    assert mix([a, Choice.failed(("x", "y"), "why")]).label == "y"
    with pytest.raises(ValueError, match="at least one"):
        mix([])


# ---------------------------------------------------------------------------------------------------- options


def test_options_are_exact_also_where_they_share_tokens_or_begin_one_another(tokenizer):
    options = ("toxic", "toxic salt", "tox", "non-toxic")
    engine, asked = HashEngine(tokenizer), prompts(tokenizer)
    got = score_options(engine, asked, options, tokenizer)
    for prompt, cut, choice in zip(asked, cuts(asked, tokenizer, options, "\n"), got):
        brute = []
        for path in cut.labels:
            here, total = cut.apply(prompt), 0.0
            for token in path:
                total += engine.logp(here)[token]
                here = here.extend([token])
            brute.append(total)
        assert np.allclose(choice.probs, np.exp(brute) / np.exp(brute).sum(), rtol=1e-4)
        assert choice.mass == pytest.approx(np.exp(brute).sum(), rel=1e-4)
        assert choice.label == options[int(np.argmax(brute))]
        per = np.array(brute) / [len(path) for path in cut.labels]
        (normal,) = score_options(engine, [prompt], options, tokenizer, per_token=True)
        assert np.allclose(normal.probs, np.exp(per) / np.exp(per).sum(), rtol=1e-4) and normal.mass == pytest.approx(
            choice.mass
        )


def test_calibration_against_the_prompt_itself_leaves_nothing(tokenizer):
    asked = prompts(tokenizer)
    flat = score_options(HashEngine(tokenizer), asked[:1], ("yes", "no", "toxic"), tokenizer, content_free=asked[:1])
    assert np.allclose(flat[0].probs, 1 / 3)
    plain_, shifted = (
        score_options(HashEngine(tokenizer), asked[1:], ("yes", "no"), tokenizer, content_free=cf)
        for cf in ((), asked[:1])
    )
    prior = score_options(HashEngine(tokenizer), asked[:1], ("yes", "no"), tokenizer)[0]
    for a, b in zip(plain_, shifted):
        want = a.probs / prior.probs
        assert np.allclose(b.probs, want / want.sum()) and a.mass == b.mass


def test_decoded_options():
    tok = family("gpt2")
    asked, engine = script(tok, [("non-toxic\n", 1.0)])
    assert [c.label for c in decode_options(engine, asked, ("toxic", "non-toxic"), tok)] == ["non-toxic"] * 2
    asked, engine = script(tok, [("unclear\n", 1.0)])
    assert decode_options(engine, asked, ("toxic", "non-toxic"), tok)[0].status == "no option in the text"


# ----------------------------------------------------------------------------------------------------- parsing

READS = [
    ("5", 5), (" 5\nCCO -> 7\n", 5), ("+0.5", 0.5), (".5", 0.5), ("-.5", -0.5), ("1e-3", 1e-3), ("1E+2", 100), ("−0.5", -0.5),
    ("–0.5", -0.5), ("**-1.2**", -1.2), ("[3.4]", 3.4), ("(−2)", -2), ("`7.1`", 7.1), ("$-3.2$", -3.2), ('"4"', 4), ("1,234.5", 1234.5),
    ("12,345,678", 12345678), ("-1.2 log mol/L", -1.2), ("-1.2 (log mol/L)", -1.2), ("5 x 10^-3", 5e-3), ("5×10⁻³", 5e-3),
    ("2.5 \\times 10^{-4}", 2.5e-4), ("3.", 3), ("3.14.", 3.14), ("- 2", -2), ("-3.2 ± 0.2", -3.2), ("<4.5>", 4.5), ("5%", 5),
    ("Answer: -3.2", -3.2), ("**Answer:** -3.2", -3.2), ("**Answer: -3.2**", -3.2), ("Answer 1: 4.5\nAnswer 2: 7", 4.5),
    ("The predicted value is -2.31 log mol/L.", -2.31), ("logS = -2.3 (from 20 examples)", -2.3), ("about 7", 7), ("~0.3", 0.3),
    ("\n\n-3.2\n", -3.2), ("Let us see.\nFinal answer: -1.5", -1.5), ("0", 0), ("007", 7), ("Answer:\n-2.5", -2.5),
    ("-1.2, as the examples suggest", -1.2), ("-4.00 or so", -4), ("1e-400", 0),
]  # fmt: skip
REFUSES = [
    "", " ", "\n", "Based on", "none", "NaN", "inf", "N/A", "-", ".", "1e999", "C6H6", "c1ccccc1", "CCO -> 5", "c1ccccc1 -> 5\nCCO -> 7",
    "\nCCO -> 5", "\n\nmolecule: CCO\nAnswer: 5", "molecule: CCO\nlogS: 5", "[0.12, -0.3] -> 5", "[0.12, -0.3]", "1,5", "0,123", "3.4.5", "5-10",
    "1/2", "between -2 and -3", "Based on the 20 examples I would say it is not clear, maybe 3 or 4", "v2", "2nd", "Answer 1: <number>",
    "Question 1. What", "?\n5 items", "Based on the 20 examples, it cannot be said", "The 3 nearest: unknown",
]  # fmt: skip


@pytest.mark.parametrize(("text", "number"), READS)
def test_the_parser_reads(text, number):
    assert parse_number(text) == pytest.approx(number)


@pytest.mark.parametrize("text", REFUSES)
def test_the_parser_refuses(text):
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("text", "n", "want"),
    [
        ("Answer 1: -3.2\nAnswer 2: 0.5\nAnswer 3: 7", 3, [-3.2, 0.5, 7]),
        ("**Answer 1:** −3.2\n\n**Answer 3:** .5", 3, [-3.2, None, 0.5]),
        ("Answer 2: 1\nAnswer 1: 2", 2, [2, 1]),
        ("Answer 1: <number>\nAnswer 1: 4", 1, [4]),
        ("Answer 1: 4 Answer 2: 5", 2, [4, 5]),
        (" -3.2\nAnswer 2: 0.5", 2, [-3.2, 0.5]),
        ("1. -3.2\n2. 4", 2, [-3.2, 4]),
        ("Answer 1: 4\nAnswer 2: 5\nAnswer 3: 6\nAnswer 4: 7", 2, [4, 5]),
        ("Answer: 5", 2, [None, None]),
        ("5", 1, [5]),
        ("Answer 0: 3\nAnswer 99: 4", 2, [None, None]),
        ("", 3, [None] * 3),
        ("anything", 0, []),
    ],
)
def test_numbered_answers(text, n, want):
    assert parse_answers(text, n) == want


@pytest.mark.parametrize(
    ("text", "options", "want"),
    [
        ("B", "ABCD", "B"), ("(B)", "ABCD", "B"), ("**B**", "ABCD", "B"), ("B. because", "ABCD", "B"), ("B) it", "ABCD", "B"), ("B: x", "ABCD", "B"),
        ("Answer: C", "ABCD", "C"), ("The answer is (D).", "ABCD", "D"), ("The correct option is A", "ABCD", "A"), ("b", "ABCD", "B"),
        ("Based on", "ABCD", None), ("A molecule with", "ABCD", None), ("CCO", "ABCD", None), ("Because", "ABCD", None), ("", "ABCD", None),
        ("A or B", "ABCD", None), ("B\n\nitem\nAnswer: C", "ABCD", "B"), ("\n\nitem\nAnswer: C", "ABCD", None), ("Hm.\nFinal answer: C", "ABCD", "C"),
        ("non-toxic", ("toxic", "non-toxic"), "non-toxic"), ("It is non-toxic.", ("toxic", "non-toxic"), "non-toxic"), ("Toxic", ("toxic", "non-toxic"), "toxic"),
        ("nontoxicity", ("toxic", "non-toxic"), None), ("yes, it is", ("yes", "no"), "yes"), ("nothing", ("yes", "no"), None), ("yes and no", ("yes", "no"), None),
        ("not toxic at all", ("toxic", "not toxic"), "not toxic"), ("[", "[(", "["), ("x", (), None),
        # what is denied is not said
        ("not toxic", ("toxic", "non-toxic"), None), ("It is not toxic.", ("toxic", "non-toxic"), None), ("It isn't toxic", ("toxic", "non-toxic"), None),
        ("non toxic", ("toxic", "non-toxic"), None), ("non\u2011toxic", ("toxic", "non-toxic"), "non-toxic"), ("not a toxic one", ("toxic", "non-toxic"), None),
        ("It is **not** active", ("active", "inactive"), None), ("I do not know, but toxic", ("toxic", "non-toxic"), "toxic"), ("toxic", ("toxic", "non\u2010toxic"), "toxic"),
        ("not considered toxic", ("toxic", "safe"), None), ("It is not known to be toxic", ("toxic", "safe"), None), ("unlikely to be toxic", ("toxic", "safe"), None),
        ("it doesn't appear toxic", ("toxic", "safe"), None), ("Toxic? No.", ("toxic", "safe"), None), ("toxic: no", ("toxic", "safe"), None), ("Toxic is wrong", ("toxic", "safe"), None),
        ("It is not safe, it is toxic", ("toxic", "safe"), "toxic"), ("No, it is toxic", ("yes", "no"), "no"), ("Toxic? Yes", ("toxic", "safe"), "toxic"),
        # several are none
        ("It could be toxic or not toxic", ("toxic", "not toxic"), None), ("b, c, d", "abcd", None), ("red, dark red", ("red", "dark red"), None),
        ("dark red", ("red", "dark red"), "dark red"), ("b, as the examples say", "abcd", "b"), ("red/blue", ("red", "blue"), None),
        # a class is no part of a number
        ("0.95", "01", None), ("0,7", "01", None), ("1.5", "01", None), ("0. It", "01", "0"), ("The answer is 0.95", "01", None), ("The answer is 0.", "01", "0"),
    ],
)  # fmt: skip
def test_options_are_whole_words(text, options, want):
    assert parse_option(text, tuple(options)) == want


@pytest.mark.parametrize(
    "text",
    ["3 or 4", "3 to 5", "3 - 5", "is 5 to 6", "12 345", "5 and 6", "10 - 2 = 8", "5 x 10", "about 3 - 4", "3 / 4", "3 ... 4", "3…4",
     "1'500", "1’500", "-1'234.5", "5%-6%", "5 kcal/mol to 6 kcal/mol", "5 kcal/mol or 6", "5 plus 2", "5 out of 10", "1.5 E-3", "5 e-3", "1.5 10^-3"],
)  # fmt: skip
def test_a_range_a_sum_or_a_grouped_number_is_no_answer(text):
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("3.2 × 10 ^ -4", 3.2e-4), ("3.2×10^\u20114", 3.2e-4), ("\u20113.2", -3.2), ("5 - as said", 5), ("5 kcal/mol", 5), ("-3.2 (of 20)", -3.2),
        ("3.5 or so", 3.5), ("7 and falling", 7), ("12 34", 12),
        ("5 kcal/mol or so", 5), ("5% or less", 5), ("5 e.g.", 5), ("5'", 5),
    ],
)  # fmt: skip
def test_a_number_with_words_or_spaces_behind_it_is_read(text, want):
    assert parse_number(text) == want


def test_an_answer_ends_where_the_models_turn_ends(tokenizer):
    """Also where the tokenizer names another token for that; what is written behind it is no part of it."""
    from icrl_lab.answers.numbers import _first_turn, _stops

    eos, other = tokenizer.eos_token_id, 5
    config = SimpleNamespace(eos_token_id=[other, eos])
    engine = SimpleNamespace(llm=SimpleNamespace(model=SimpleNamespace(generation_config=config)))
    assert _stops(engine, tokenizer) == tuple(sorted({other, eos})) and _stops(None, tokenizer) == (eos,)
    ids = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    assert _first_turn([*ids("5"), eos, *ids("7")], tokenizer).strip() == "5"
    assert _first_turn([eos, *ids("7"), eos, *ids("8")], tokenizer).strip() == "7"
    assert _first_turn(ids("5 7"), tokenizer).split() == ["5", "7"] and _first_turn([], tokenizer) == ""


noise = st.text(alphabet="0123456789.,-−+eEx×*[](){}:=\n \tAnswerBC⁻³^10/", max_size=60)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80) | noise, st.integers(0, 4))
@example("Answer 1" * 5 + ":", 2)
@example("1" * 400, 1)
@example("٣", 1)
def test_parsers_never_raise_and_never_give_what_is_no_number(text, n):
    number = parse_number(text)
    assert number is None or np.isfinite(number)
    many = parse_answers(text, n)
    assert len(many) == n and all(v is None or np.isfinite(v) for v in many)
    assert parse_option(text, ("A", "B", "toxic", "")) in (None, "A", "B", "toxic", "")


@settings(max_examples=200, deadline=None)
@given(
    st.floats(-1e8, 1e8),
    st.sampled_from(["{}", " {}\n", "**{}**", "[{}]", "Answer: {}", "{} mol/L", "{}\nCCO -> 9", "is {}."]),
)
def test_what_is_written_is_read(y, dress):
    assert parse_number(dress.format(repr(y))) == y


@pytest.mark.real
def test_the_embedded_model(smollm2):
    from icrl_lab.engine import Engine

    tok = smollm2.tokenizer
    items = [Example(f"m{i}", f"{i}", str(i % 10)) for i in range(12)]
    asked = render_all(
        [build(layout("arrow"), items[:10], [q], view="text") for q in items[3:5]], tok, None, smollm2.context
    )
    engine = Engine(smollm2)
    closed = score_numbers(engine, asked, fit_format("digit", np.arange(10.0)), tok)
    assert [a.raw for a in closed] == ["3", "4"] and all(a.mass > 0.9 for a in closed)
    written = score_numbers(engine, asked, fit_format("as-written", POOL), tok)
    assert [a.mode for a in written] == [3, 4] and all(a.mass > 0.8 for a in written)
    rows = decode_numbers(engine, asked, fit_format("as-written", POOL), tok, max_new_tokens=6)
    assert [row[0].mean for row in rows] == [3, 4]


def test_a_label_that_joins_with_what_stands_before_it_is_not_asked_for_without_it(smollm2):
    """ ":-" is one token there: cut off with nothing to put it back, the prompt would end in the item."""
    from icrl_lab.engine import Engine

    tok, engine, fmt = smollm2.tokenizer, Engine(smollm2), fit_format("as-written", np.arange(-5.0, 6.0))
    items = [Example(f"m{i}", f"item {i}", str(i - 3)) for i in range(7)]

    def asked(text):
        return render_all([build(layout(text), items[:6], items[6:], view="text")], tok, None, smollm2.context)

    for text in ("{item}:{label}", "{item}={label}", "{item} ({label})"):
        for ask in (score_numbers, decode_numbers):
            with pytest.raises(StudyError, match="joins it with a minus sign"):
                ask(engine, asked(text), fmt, tok)
        with pytest.raises(StudyError, match="joins it with a minus sign or a label"):
            decode_options(engine, asked(text), ("-1", "1"), tok)
        assert score_options(engine, asked(text), ("-1", "1"), tok)[0].ok  # exact: every label brings its own
        assert score_numbers(engine, asked(text), fit_format("digit", np.arange(-5.0, 6.0)), tok)[0].ok
    for text in ("{item} -> {label}", "{item}: {label}"):
        assert score_numbers(engine, asked(text), fmt, tok)[0].mass > 0.1


def test_letters_write_and_read_the_same_bins_as_digits():
    y = np.random.default_rng(0).lognormal(size=57)
    digit, letter = fit_format("digit", y), fit_format("letter", y)
    assert (digit.values == letter.values).all()
    for value in y:
        assert "abcdefghij"[int(digit.write(value))] == letter.write(value)
        assert letter.read(letter.write(value)) == digit.read(digit.write(value))
    assert letter.read("5") is None and letter.read("k") is None and letter.read(" c\n") == letter.values[2]
