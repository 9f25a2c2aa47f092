"""What a single shot does to an answer: the outcome with all shots minus the outcome with that one left out.

An influence is causal and exact: the prompt is rendered without the shot, every other item keeps its vector and its label, and
prompts that begin alike share what they begin with. Where a shot stands and what it says are told apart by design: in a
`square` a few shots change places among themselves until each has stood on each, while all others stay.
"""

from __future__ import annotations

from itertools import permutations as every
from math import factorial
from typing import NamedTuple

import numpy as np

from icrl_lab.errors import DataError, StudyError
from icrl_lab.probes.scene import Scene, arranged, still
from icrl_lab.stats.metrics import Array

TOGETHER = 1024  # prompts that are rendered and run in one call
ALL = 4  # shots up to which every permutation is taken


def permutations(k: int, count: int, rng: np.random.Generator) -> Array:
    """(p, k) permutations of k shots: all k! in lexical order for k <= 4 or where `count` asks for as many; else `count`
    different ones, each set of them equally likely."""
    if k < 2 or count < 2:
        raise StudyError(
            f"there is no order to look at with {k} shots and {count} permutations; take at least 2 of both"
        )
    if k <= ALL or (k < 13 and count >= factorial(k)):
        return np.array(list(every(range(k))), np.int64)
    found: dict[bytes, Array] = {}
    while len(found) < count:
        one = rng.permutation(k)
        found.setdefault(one.tobytes(), one)
    return np.stack(list(found.values())).astype(np.int64)


class Square(NamedTuple):
    """Orders in which some shots stand once on each of some positions, and all others always where they were.

    orders     (m, k) which shot stands where, by the scene's own numbers
    positions  (m,) the positions, ascending; orders[r][positions] is a cyclic shift of the same m shots
    """

    orders: Array
    positions: Array


def square(k: int, places: int, rng: np.random.Generator) -> Square:
    """A Latin square of `places` positions, spread evenly from the first to the last, in a random order of k shots."""
    positions = np.unique(np.linspace(0, k - 1, min(places, k)).round().astype(np.int64))
    base = rng.permutation(k)
    orders = np.repeat(base[None], len(positions), 0)
    for turn in range(len(positions)):
        orders[turn, positions] = np.roll(base[positions], turn)
    return Square(orders.astype(np.int64), positions)


def influence(one: Scene, orders: Array | None = None, positions: Array | None = None) -> tuple[Array, Array]:
    """(m, n, p) influence of the shot at each of `positions`, in each of `orders`, on each query; and (m, n) outcomes with all.

    orders     (m, k) shots of `one` by where they stand; None: the scene's own order alone
    positions  (p,) places in the order; None: all
    """
    n, k = one.shots.shape
    if k < 2:
        raise DataError("a prompt of one shot has none left without it; take at least 2 shots")
    orders = np.arange(k)[None] if orders is None else np.asarray(orders)
    positions = np.arange(k) if positions is None else np.asarray(positions)
    full = read_orders(one, orders)
    less = np.array([np.delete(order, p) for order in orders for p in positions])
    without = read_orders(one, less).reshape(len(orders), len(positions), n)
    return still(full[:, :, None] - without.transpose(0, 2, 1), full), full


def read_orders(one: Scene, orders: Array) -> Array:
    """(m, n) outcomes of each query under each of m arrangements (m, k') of the same length, which all queries share."""
    n, found = len(one.queries), []
    for some in np.array_split(orders, -(-len(orders) * n // TOGETHER)):
        scene = arranged(one, np.repeat(some, n, 0), np.tile(np.arange(n), len(some)))
        found += [scene.read().reshape(len(some), n)]
    return np.concatenate(found)


def weights(moved: Array, apart: Array) -> Array:
    """(p, n) how far each position's shots pull the answer to their own labels: the slope of influence on how far a label lies
    from the mean of the others, through zero.

    moved  (m, n, p) influences; apart (m, n, p) label minus the mean of the other shots' labels
    A model that answers with the mean of k labels has 1/k everywhere; one that copies the last has 1 there and 0 elsewhere.
    Where all labels are the same there is no slope, and it is 0.
    """
    above, below = (moved * apart).sum(0), (apart**2).sum(0)
    return np.divide(above, below, out=np.zeros_like(above), where=below > 1e-12).T


def lean(outcomes: Array, labels: Array) -> Array:
    """(k, n) slope of the answer on the label at each position, over orders.

    outcomes  (m, n); labels (m, n, k) what each position's label says under each order
    Over all orders the slopes of an answer that is a weighted sum of labels by position are w_p minus the mean of the other
    weights: they say where an order's end pulls more than its beginning, and are 0 for whatever cannot see order.
    """
    y = still(outcomes - outcomes.mean(0), outcomes)
    x = labels - labels.mean(0)
    above, below = (y[:, :, None] * x).sum(0), (x**2).sum(0)
    return np.divide(above, below, out=np.zeros_like(above), where=below > 1e-12).T


def trend(size: Array, orders: Array, positions: Array) -> Array:
    """(n,) slope of influences (m, n, p) on position (0 first, 1 last), within shots: a shot's own strength is taken off."""
    shot = orders[:, positions]  # (m, p)
    place = np.broadcast_to(positions / max(positions.max(), 1), shot.shape).astype(float)
    y, x = size.transpose(1, 0, 2).copy(), place.copy()
    for s in np.unique(shot):
        here = shot == s
        x[here] -= x[here].mean()
        y[:, here] -= y[:, here].mean(1, keepdims=True)
    below = float((x**2).sum())
    return (y * x).sum((1, 2)) / below if below > 0 else np.zeros(len(y))
