"""The lens: what a residual state would say if the model ended there, and what a linear probe can read from it.

Two ways of reading the same states, at the query's slot and at the answer position, depth by depth. The logit lens
(nostalgebraist 2020) puts a state through the model's own final norm and unembedding: it says what the model would answer if
its remaining blocks did nothing. A linear probe (Alain and Bengio 2017) is fitted on the queries' labels: what it reads is
there, whether the model uses it or not. Beside both stand noise vectors, the item's text, shuffled labels (Hewitt and Liang
2019), and as the ceiling the same probe on the encoder's own vectors. Nothing is drawn here, and no prompt is edited.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab.errors import DataError
from icrl_lab.probes.arrays import Named, ci, dataset, looked_at, over
from icrl_lab.probes.asked import checked
from icrl_lab.probes.beside import put, views
from icrl_lab.probes.linear import Labels, agreement, bounded, held_out, labels_for, p_values, score, skill, within
from icrl_lab.probes.scene import Scene, scene
from icrl_lab.probes.words import Place, places, words
from icrl_lab.stats import Effects, adjusted, effects
from icrl_lab.stats.metrics import Array
from icrl_lab.stats.words import tested
from icrl_lab.values import Capture, Reading

if TYPE_CHECKING:
    import xarray as xr

    from icrl_lab.studies.run import Study

POSITIONS = ("slot", "answer")
METHOD = (
    "jackknife pseudo-values over queries, crossed analysis of variance over seeds and queries, t distribution, on Fisher's z; "
    "probe p: permutations of the labels, the same for every seed; q: against the largest score over positions and depths"
)
LIMITS = (
    "The logit lens reads a state as the last block would leave it; what an early state holds in another basis it misses.",
    "A probe shows what somebody who knows labels could read linearly, not what the model uses: that takes patching.",
    "The best depth is the best of many: its corrected p-value allows for that, its score and interval do not.",
    "The intervals hold each probe's out-of-fold predictions fixed; a fit on other items would differ, too.",
)
ALONE = (
    "With one seed the intervals of probes are too narrow: under the null they held the truth 80 % (12 queries) to 89 % (100) of the "
    "time, as queries share the fits; real less noise is not tested. Take two seeds or more."
)
TEXT = "Of the item as text, the last token of its text stands in for the slot."


@checked()
def lens(
    study: Study,
    arm: str | None = None,
    *,
    seeds: Sequence[int] | None = None,
    queries: int | Sequence[int] | None = None,
    permutations: int | None = None,
    top: int = 5,
    with_text: bool | None = None,
    seed: int = 0,
) -> Reading:
    """What is read at the query's slot and at the answer, at each depth of the residual stream.

    seeds         None: all of the plan
    queries       None: all of the plan; a probe needs many
    permutations  of the labels, for the probes' null; None: 100 with ridge, 20 with logistic regression, which costs more
    top           tokens kept of each state that is shown in words

    In the reading, over (control, [position,] depth): `score` of the probes with interval, p and q, `gain` of real over noise,
    `null_low`, `null_high`; `final` and `target`, the correlation over queries of what the lens says with the final answer
    and with the truth; `mass` on the labels; `outcome` of each seed and query; `token` of a few places in words. Scores are
    Pearson's r of out-of-fold predictions within folds, for classes averaged over them. DataError where labels have several tokens
    or there are fewer than 10 queries.
    """
    dataset({}, {})  # before anything is computed
    seeds = tuple(study.plan.seeds if seeds is None else seeds)
    beside = views(study, arm)
    looks: dict[str, list[_Look]] = {name: [] for name in beside}
    shown: list[Place] = []
    scenes: list[Scene] = []
    for number, s in enumerate(seeds):
        for name, (label, control) in beside.items():
            text = None if name == "text" else with_text
            one = scene(study, label, control, with_text=text, seed=s, queries=queries)
            if not scenes:
                labels = labels_of(one, permutations, seed)
            scenes += [one] if name == "real" else []
            states = _states(one)
            looks[name].append(_look(one, states, labels))
            if number == 0 and name != "text":
                shown += places(one, states[0], states[1], name)
    first = scenes[0]
    arrays = _numbers(looks, labels, held_out(_encoder(first), labels), first.units) | words(first, shown, top)
    coords: dict[str, Any] = {"control": list(beside), "position": list(POSITIONS)}
    coords |= {"depth": np.arange(arrays["mass"][1].shape[1]), "seed": list(seeds), "query": list(first.ids)}
    coords |= {k: ("place", [getattr(p, k) for p in shown]) for k in ("kind", "item", "text", "label")}
    data = dataset(arrays, coords)
    limits = [*LIMITS, *([TEXT] if "text" in beside else []), *([ALONE] if len(seeds) == 1 else [])]
    about = {
        **first.about(),
        "seeds": list(seeds),
        "n": looked_at(len(seeds), len(first.queries)),
        "interval": over(METHOD, len(seeds)),
        "probe": f"{labels.how}, {labels.folds} folds of {len(labels.kept)} items, {len(labels.turns)} permutations",
        "lens against answer": max(look.error for look in looks["real"]),
        "limits": limits,
    }
    return Reading("lens", data, {**about, "says": _says(data)})


# ------------------------------------------------------------------------------------------------ states


@dataclass(frozen=True, eq=False)
class _Look:
    """What was read of one scene.

    votes          (D, C, n) what the lens says at the answer: the outcome, or each class's share
    outcome, mass  (D, n)
    predicted      (2, D, C, m) out-of-fold predictions of the label, at slot and answer
    scores         (2, D, 1 + permutations) how well they agree with the true and with the shuffled labels
    error          the largest difference between the lens at the last depth and the model's own log-probabilities
    """

    votes: Array
    outcome: Array
    mass: Array
    predicted: Array
    scores: Array
    error: float


def _item(one: Scene, number: int) -> list[int]:
    """Where the query's own item stands: its slot, or the last token of its text where it has none."""
    parts = one.parts[number]
    found = parts.at("slot", parts.shown).tolist() or parts.at("text", parts.shown).tolist()[-1:]
    if not found:
        raise DataError(f"the query {one.ids[number]!r} has neither a slot nor a text that could be read")
    return found


def _states(one: Scene) -> tuple[Array, Array, Array]:
    """Residual states (n, D, w, d) at the query's w slots and (n, D, d) at the answer; the label tokens' own log-probabilities."""
    prompts, engine = one.prompts, one.engine
    wanted = [(*_item(one, i), -1) for i in range(len(prompts))]
    ids = sorted({token for i in range(len(prompts)) for token in one.outcome(i).ids})
    size = 4 * (one.study.llm.blocks + 1) * len(wanted[0]) * one.study.llm.width
    step = max(1, int(engine.limit // size))
    hidden, logp = [], []
    for start in range(0, len(prompts), step):
        some = slice(start, start + step)
        run = engine.run(prompts[some], ids, capture=[Capture(hidden=w) for w in wanted[some]])
        hidden += [np.asarray(trace.hidden) for trace in run.traces]
        columns = [[ids.index(t) for t in one.outcome(i).ids] for i in range(len(prompts))[some]]
        logp += [row[c] for row, c in zip(run.logprobs, columns)]
    both = np.stack(hidden)
    return both[:, :, :-1], both[:, :, -1], np.stack(logp)


def _look(one: Scene, states: tuple[Array, Array, Array], labels: Labels) -> _Look:
    slot, answer, own = states
    outcomes = [one.outcome(i) for i in range(len(answer))]
    logp = np.empty((*answer.shape[:2], len(outcomes[0].ids)))
    for ids in {o.ids for o in outcomes}:
        rows = [i for i, o in enumerate(outcomes) if o.ids == ids]
        logp[rows] = one.engine.unembed(answer[rows], ids)
    for depth in range(answer.shape[1]):  # the answer's own embedding: one state has one reading, to the last bit
        if (answer[:, depth] == answer[0, depth]).all():
            logp[:, depth] = logp[0, depth]
    outcome = np.array([o.read_all(rows) for o, rows in zip(outcomes, logp)]).T
    votes = outcome[:, None]
    if labels.columns is not None:
        share = np.exp(logp - np.logaddexp.reduce(logp, -1, keepdims=True))
        votes = share[..., labels.columns].transpose(1, 2, 0)
    flat = (slot.reshape(*slot.shape[:2], -1), answer)
    held = [[held_out(s[:, d], labels) for d in range(s.shape[1])] for s in flat]
    predicted = np.array([[h[0] for h in of] for of in held])
    scores = np.array([[score(h, labels) for h in of] for of in held])
    return _Look(votes, outcome, np.exp(logp).sum(-1).T, predicted, scores, float(np.abs(logp[:, -1] - own).max()))


def labels_of(one: Scene, permutations: int | None = None, seed: int = 0) -> Labels:
    """The labels of a scene's queries as a probe is to find them."""
    task = one.study.task
    if task.targets is not None:
        return labels_for(task.targets[one.queries], permutations, seed)
    assert task.labels is not None
    return labels_for(np.array([task.options.index(task.labels[q]) for q in one.queries]), permutations, seed)


def _encoder(one: Scene) -> Array:
    """(n, f) the encoder's own vectors of the queries."""
    values = one.study.vectors.values[one.queries]
    return values.reshape(len(values), -1)


# ------------------------------------------------------------------------------------------------ numbers

CELLS = ("control", "position", "depth")


def _numbers(looks: dict[str, list[_Look]], labels: Labels, ceiling: Array, units: str) -> Named:
    """Every array of numbers; `looks` by control (the real one first) and seed."""
    stack = {
        name: np.array([[getattr(x, name) for x in of] for of in looks.values()]) for name in vars(looks["real"][0])
    }
    arrays: Named = {}
    scores = stack["scores"].mean(1)
    predicted = np.moveaxis(stack["predicted"], 1, -2)  # control, position, depth, C, S, m
    sought = within(labels.sought[0], labels.fold)[:, None]
    mean, table = agreement(within(predicted, labels.fold), sought)
    p, q = (np.array(v) for v in zip(*(p_values(s) for s in scores)))
    probe = "probe: correlation of out-of-fold predictions with the label"
    put(arrays, "score", bounded(mean, table)._replace(p=p), CELLS, probe, "Pearson r", q=q)
    arrays["score_q"] = (CELLS, q, f"{probe}, p against the largest shuffled score of all positions and depths", "")
    for name, level in (("null_low", 0.025), ("null_high", 0.975)):
        shuffled = np.quantile(scores[..., 1:], level, axis=-1)
        arrays[name] = (CELLS, shuffled, f"probe on shuffled labels, quantile {level}", "Pearson r")
    put(arrays, "r2", skill(predicted, labels), CELLS, "probe: share of the squared error taken off", "R2")
    if "noise" in looks:
        noise = list(looks).index("noise")
        gain = _over_seeds(bounded(mean[0] - mean[noise], table[0] - table[noise], "plain"), table)
        put(
            arrays,
            "gain",
            gain,
            CELLS[1:],
            "probe: real less noise",
            "difference of r",
            q=gain.p if np.isnan(gain.p).all() else adjusted(gain.p),
        )
    top = score(ceiling, labels)
    own = bounded(*agreement(within(ceiling[0], labels.fold)[:, None], sought))
    put(arrays, "ceiling", own._replace(p=p_values(top)[0]), (), "the same probe on the encoder's vectors", "Pearson r")
    votes = np.moveaxis(stack["votes"], 1, -2)  # control, depth, C, S, n
    final = bounded(*agreement(votes, votes[:, -1:]))
    put(arrays, "final", final, CELLS[::2], "lens: correlation with the final answer", "Pearson r")
    target = bounded(*agreement(votes, labels.truth[:, None]))
    put(arrays, "target", target, CELLS[::2], "lens: correlation with the truth", "Pearson r", q=adjusted(target.p))
    said, told = agreement(within(votes[0, -1][..., labels.kept], labels.fold), sought)
    unsaid = _over_seeds(bounded(mean[0, 1, -1] - said, table[0, 1, -1] - told, "plain"), table)
    put(arrays, "unsaid", unsaid, (), "probe of the last answer state less the answer itself", "difference of r")
    mass = effects(np.moveaxis(stack["mass"], 1, 2))
    put(arrays, "mass", mass, CELLS[::2], "lens: probability of the labels", "share of all tokens")
    outcome = np.moveaxis(stack["outcome"], 2, -1)
    return arrays | {"outcome": (("control", "seed", "query", "depth"), outcome, "lens: outcome at the answer", units)}


def _over_seeds(found: Effects, table: Array) -> Effects:
    """Without a p-value where there is one seed: what probes predict of items shares its training with them, which items alone
    do not show (under the null 10 to 26 % of such p-values were below .05; with two seeds and more, 2 to 7 %)."""
    return found if table.shape[-2] > 1 else found._replace(p=np.full_like(found.p, np.nan))


# ------------------------------------------------------------------------------------------------ says


def _says(data: xr.Dataset) -> list[str]:
    """What the numbers bear out, in words."""
    last = data.sizes["depth"] - 1
    others = [c for c in data["control"].values.tolist() if c != "real"]
    others_at = lambda name, **at: "".join(f"; {c}: {ci(data, name, control=c, **at)}" for c in others)  # noqa: E731
    late, half = (_from(data[n].sel(control="real").values, level) for n, level in (("final", 0.9), ("mass", 0.5)))
    most = float(data["mass"].sel(control="real").max())
    out = [
        f"Read through the lens at the answer position, the answer is settled from depth {last if late is None else late} of {last} on (r with the final "
        "answer at least 0.9); the labels have more than half of the probability "
        + (f"from depth {half} on." if half is not None else f"nowhere to the end, at most {most:.0%}."),
        f"The model's own answer correlates with the truth at r = {ci(data, 'target', control='real', depth=last)}"
        f"{others_at('target', depth=last)}.",
    ]
    for position, where in (("slot", "the query's slot"), ("answer", "the answer position")):
        best = int(np.argmax(data["score"].sel(control="real", position=position).values))
        at: dict[str, Any] = {"position": position, "depth": best}
        q = float(data["score_q"].sel({"control": "real", **at}))
        out.append(
            f"At {where} a linear probe {'finds the label' if q < 0.05 else 'does not find the label beyond shuffled ones'}: at "
            f"its best depth, {best}, r = {ci(data, 'score', control='real', **at)}, {tested(q)}"
            f"{others_at('score', **at)}; on the encoder's vectors: {ci(data, 'ceiling')}."
        )
    gap, p = float(data["unsaid"]), float(data["unsaid_p"])
    if p < 0.05 and gap > 0:
        what = "The last answer state holds more than it says"
    elif p < 0.05:  # of the state, which the answer is a function of, that cannot be true
        what = "In the last answer state the probe finds less than the answer says (too few items for it, or nothing linear)"
    else:
        what = "The last answer state holds no more than it says, as far as can be seen"
    told = tested(p, "p") if p == p else "not tested, for one seed"
    out.append(f"{what}: the probe's r less the answer's is {ci(data, 'unsaid')} ({told}).")
    return out


def _from(values: Array, level: float) -> int | None:
    """The first depth from which all values are at least `level`."""
    below = np.flatnonzero(~(values >= level))
    first = int(below[-1]) + 1 if len(below) else 0
    return first if first < len(values) else None
