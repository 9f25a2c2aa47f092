"""The engine's loop: walk the prefix tree, keep one path, run packs of branches, read what was asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from icrl_lab.engine import attention, forward, generation, packs, parts
from icrl_lab.engine.capture import LIMIT, Keeper
from icrl_lab.engine.edits import Edits
from icrl_lab.engine.tree import Branch, Node, all_symbols, build, chain, flatten, shared_length
from icrl_lab.engine.workers import Turn, Workers
from icrl_lab.errors import DataError
from icrl_lab.values import Capture, Rendered, Trace

if TYPE_CHECKING:
    from icrl_lab.models import LLM

# a subtree of at most this many tokens is one branch of a pack, with a dense mask of its own. A stretch and a pack of what follows
# took 1.6 (288 tokens), 1.3 (490), 1.1 (580) and 1.0 (830) times as long on a CPU, and a GPU has the fewer passes to launch too
BRANCH = 512
# packs that are well asked at a time where passes run side by side: of three equal trees one thread would have two (a study: 1.14
# times as fast, .97 with one pack)
AHEAD = 4


@dataclass(frozen=True, eq=False)
class Result:
    """What a run gives back, in the order of the prompts.

    logprobs  (n, len(ids)) float32: log-probability of the next token, normalised over the whole vocabulary, or among `ids`
    traces    n traces where a capture was asked, else empty
    computed, asked  tokens that went through the model, and tokens of all prompts laid end to end
    """

    logprobs: np.ndarray
    traces: tuple[Trace, ...]
    computed: int
    asked: int


@dataclass
class _Job:
    """One call: the sequences, where their symbols and vectors are, and what has been read so far."""

    prompts: Sequence[Rendered]
    symbols: list[np.ndarray]
    ids: torch.Tensor | None
    edits: Edits
    keeper: Keeper | None = None
    among: bool = False
    alone: bool = False  # whether the logits are those of `ids` and of no other token
    read: list[tuple[list[int], torch.Tensor]] = field(default_factory=list)  # sequences, and their rows on the device
    passes: list[int] = field(default_factory=list)  # tokens of each

    @property
    def streams(self) -> bool:
        """Whether the residual stream has to be reached."""
        return self.edits.streams or (self.keeper is not None and self.keeper.streams)

    @property
    def computed(self) -> int:
        return sum(self.passes)


class Engine:
    """Runs prompts through one model.

    pack       tokens computed at a time at most; None takes the device's default, less where memory is short
    branch     largest subtree that is computed as one branch of a pack; one that shares no pack, the tree itself, only up to half
               of that: a longer stretch is kept for the next call
    limit      bytes that the capture of one call may keep
    """

    def __init__(self, llm: LLM, *, pack: int | None = None, branch: int = BRANCH, limit: float = LIMIT) -> None:
        self.llm = llm
        self.model = llm.model
        self.device = next(llm.model.parameters()).device
        self.branch = branch
        self.pack = pack or packs.fitting(llm, self.device)
        self.limit = limit
        threads = (llm.threads or torch.get_num_threads()) if self.device.type == "cpu" else 1
        self.workers = Workers(threads) if threads > 1 else None
        self.path = attention.PathBuffer()
        self.held = np.zeros(0, np.int64)  # the symbols whose keys and values stand in the path
        self.laid_out = llm.measured.get("attention") == "products"
        self.computed = self.asked = 0  # over the engine's life

    @property
    def room(self) -> int:
        """Tokens that are well asked in one call: where passes run side by side, enough for the last ones to end at about the same time."""
        return self.pack * (AHEAD if self.workers else 1)

    @property
    def threads(self) -> int:
        """How many passes may run side by side."""
        return self.workers.threads if self.workers else 1

    # ------------------------------------------------------------------------------------ what is asked

    def next_token(
        self, prompts: Sequence[Rendered], ids: Sequence[int] | None = None, *, among: bool = False
    ) -> np.ndarray:
        """(n, len(ids)) float32 log-probabilities of the token after each prompt, read at `ids` (None: the whole vocabulary).

        among  given that it is one of `ids`: the unembedding of the others is not computed
        """
        return self.run(prompts, ids, among=among).logprobs

    def run(
        self,
        prompts: Sequence[Rendered],
        ids: Sequence[int] | None = None,
        capture: Capture | Sequence[Capture] | None = None,
        *,
        among: bool = False,
    ) -> Result:
        """Log-probabilities after each prompt (see `next_token`), and what `capture` (one for all, or one a prompt) asks to keep.

        Each distinct stretch of the prompts' prefix tree is computed once, edits included. Equal prompts give equal rows.
        A prompt that is empty or longer than the model's context is a DataError, as is an edit that it cannot have and a
        capture that would keep more than `limit` bytes; an edit that did not fire is a RuntimeError.
        """
        job = self._with_room(lambda: self._ran(self._job(prompts, ids, capture, among=among)))
        job.edits.finish(prompts, job.symbols)
        rows = np.empty((len(prompts), job.read[0][1].shape[1]), np.float32)
        for sequences, values in job.read:
            rows[sequences] = values.cpu().numpy()
        traces = tuple(job.keeper.trace(i) for i in range(len(prompts))) if job.keeper else ()
        asked = sum(len(p) for p in prompts)
        self.computed += job.computed
        self.asked += asked
        return Result(rows, traces, job.computed, asked)

    def generate(
        self,
        prompts: Sequence[Rendered],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        stop_ids: Sequence[int] = (),
    ) -> list[list[int]]:
        """New token ids of each prompt, up to and without a stop id. Greedy at temperature 0, else sampled.

        A sampled prompt draws from its own stream (seed, its place in the list), whatever it is packed with.
        """
        if max_new_tokens < 1:
            raise DataError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
        if any(prompt.edits for prompt in prompts):
            raise DataError("an edited prompt is scored, not continued; take decode = 'score'")
        how = generation.Sampling(max_new_tokens, temperature, seed, frozenset(stop_ids))
        out: list[list[int]] = [[] for _ in prompts]
        job = self._with_room(lambda: self._told(self._job(prompts, None, None, room=max_new_tokens), out, how))
        self.computed += job.computed
        self.asked += sum(len(p) + len(o) for p, o in zip(prompts, out))
        return out

    def unembed(self, states: np.ndarray, ids: Sequence[int] | None = None) -> np.ndarray:
        """(..., len(ids)) float32 log-probabilities that residual states (..., d) would give if the model ended there: the
        final norm, the unembedding and the model's own cap, normalised over the whole vocabulary (ids None: all of it)."""
        flat = np.asarray(states, np.float32).reshape(-1, self.llm.width)
        wanted = None if ids is None else torch.as_tensor(list(ids), device=self.device)
        with torch.inference_mode():
            found = [
                forward.log_probabilities(
                    parts.unembed(self.model, torch.tensor(rows).to(self.device, self.model.dtype)), wanted
                ).cpu()
                for rows in np.array_split(flat, max(1, len(flat) // 256))
            ]
        return torch.cat(found).numpy().reshape(*np.shape(states)[:-1], -1)

    # ------------------------------------------------------------------------------------ the walk

    def _with_room(self, call: Callable[[], _Job]) -> _Job:
        """Call it; where memory is short for passes side by side, again, and from here on one after the other."""
        try:
            return call()
        except RuntimeError as error:
            if self.workers is None or not _is_short(error):
                raise
            self.workers = None
            return call()

    def _ran(self, job: _Job) -> _Job:
        with torch.inference_mode(), self._cascading(job.streams, job.ids if job.among else None) as job.alone:
            for branches in self._walk(job, build(job.symbols)):
                self._each(branches, partial(self._forward, job, int(branches[0].symbol_at[0, 1])))
        return job

    def _told(self, job: _Job, out: list[list[int]], how: generation.Sampling) -> _Job:
        order = sorted(range(len(out)), key=lambda i: job.symbols[i].tolist())
        with torch.inference_mode(), self._cascading():
            while order:
                group, share = generation.group(job.symbols, order)
                order = order[len(group) :]
                self._stretch(job, Node(0, share, group[0], group))
                rest = [chain(i, share, len(job.symbols[i]), [i]) for i in group]
                self._each(rest, partial(self._continue, job, share, out, how))
        return job

    def _job(self, prompts, ids, capture, room: int = 0, among: bool = False) -> _Job:
        if not prompts:
            raise DataError("no prompt to run")
        for number, prompt in enumerate(prompts):
            if not len(prompt):
                raise DataError(f"prompt {number} is empty")
            if len(prompt) + room > self.llm.context:
                raise DataError(
                    f"prompt {number} has {len(prompt)} tokens{f' and asks for {room} more' if room else ''}, but "
                    f"{self.llm.name} reads {self.llm.context}; use fewer shots or a shorter text"
                )
            if len(prompt.vectors) and prompt.vectors.shape[1] != self.llm.width:
                raise DataError(
                    f"prompt {number} injects vectors of width {prompt.vectors.shape[1]}, but {self.llm.name} reads {self.llm.width}"
                )
        edits = Edits(prompts)
        edits.check(prompts, self.llm)
        captures = [capture] * len(prompts) if isinstance(capture, Capture) else capture
        if captures is not None and len(captures) != len(prompts):
            raise DataError(f"{len(captures)} captures for {len(prompts)} prompts; give one for all, or one a prompt")
        keeper = None if captures is None else Keeper(captures, [len(p) for p in prompts], self.llm, self.limit)
        wanted = None if ids is None else torch.as_tensor(list(ids), device=self.device)
        symbols = edits.symbols(prompts, all_symbols(prompts))
        return _Job(prompts, symbols, wanted, edits, keeper, among and ids is not None)

    def _walk(self, job: _Job, node: Node) -> Iterator[list[Branch]]:
        """Depth first: compute a large node's own stretch, yield its small children as branches, descend into the large."""
        if node.start == 0 and node.size <= self.branch // 2:
            yield [flatten(node)]
            return
        self._stretch(job, node)
        small = [child for child in node.children if child.size <= self.branch]
        if small:
            yield [flatten(child) for child in small]
        for child in node.children:
            if child.size > self.branch:
                yield from self._walk(job, child)

    def _stretch(self, job: _Job, node: Node) -> None:
        """Put a node's keys and values on the path, in chunks, unless they stand there already."""
        path = job.symbols[node.sequence][: node.stop]
        known = shared_length(self.held, path)
        read = (job.keeper.inside(node) if job.keeper else []) + ([node.stop - 1] if node.ends else [])
        known = min([known, *read])  # what is read here must run, also when it stands on the path
        job.edits.held(path, node.sequence, known)
        if known < len(self.held):
            self._finish()  # what still reads the path that is left
        self.held = self.held[:known]
        side_by_side, most = packs.shares(node.stop - known, self.pack, self.threads)
        while known < node.stop:
            stop = min(known + most, node.stop)
            ends = node.ends if stop == node.stop else []
            pack = [chain(node.sequence, known, stop, ends, node.members)]
            run = partial(self._forward, job, known, pack, commit=True)
            if side_by_side > 1 and self.workers:
                self.workers.start(run, at_a_time=side_by_side, writes=True)
            else:
                self._finish()
                try:
                    run(None)
                except RuntimeError as error:
                    self._halve(error, stop - known)
                    most = self.pack
                    continue
            known = stop
            self.held = path[:known]

    def _each(self, branches: list[Branch], run: Callable[[list[Branch], Turn | None], None]) -> None:
        """Run these branches pack by pack, side by side where they are many; after running out of memory, what is left in smaller ones."""
        side_by_side, tokens = packs.shares(sum(map(len, branches)), self.pack, self.threads)
        if side_by_side > 1 and self.workers:
            beside = packs.even(branches, tokens)
            for pack in beside:
                self.workers.start(partial(run, pack), at_a_time=min(side_by_side, len(beside)))
            return
        self._finish()
        queue = packs.full(branches, self.pack)
        while queue:
            pack = queue.pop(0)
            try:
                run(pack, None)
            except RuntimeError as error:
                self._halve(error, sum(map(len, pack)), len(pack))
                queue = packs.full([b for p in [pack, *queue] for b in p], self.pack)

    def _finish(self) -> None:
        """Wait for the passes that run beside this thread."""
        if self.workers:
            self.workers.finish()

    def _halve(self, error: RuntimeError, tokens: int, branches: int = 2) -> None:
        """After running out of memory: smaller packs from here on. Any other error, or nothing left to halve, is raised."""
        if not _is_short(error) or branches < 2 or tokens < 2:
            raise error
        self.pack = max(1, tokens // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    # ------------------------------------------------------------------------------------ one pass

    @contextmanager
    def _cascading(self, streams: bool = False, ids: torch.Tensor | None = None) -> Iterator[bool]:
        """The model with our attention function, until all passes have ended; one cut short may leave half a stretch, which is then
        forgotten."""
        with forward.cascading(self.llm, streams, ids) as alone:
            try:
                yield alone
                self._finish()
            except BaseException:
                if self.workers:
                    self.workers.stop()
                self.held = self.held[:0]
                raise

    def _forward(
        self, job: _Job, prefix: int, pack: list[Branch], turn: Turn | None = None, *, commit: bool = False
    ) -> None:
        """Run a pack behind `prefix` tokens of the path, and read and keep what was asked of it."""
        state, where = self._pass(prefix, pack, turn, commit)
        starts = np.cumsum([0, *(len(b) for b in pack[:-1])])
        ends = [(s, int(at + start)) for b, start in zip(pack, starts) for s, at in b.ends]
        changes = job.edits.prepare(state, pack, job.symbols) if job.edits else 0
        marked = job.keeper.mark(state, pack, self.device) if job.keeper else None
        logits = self._logits(job, state, where, [at for _, at in ends])
        if state.applied != changes:
            raise RuntimeError(f"{changes} rows were to be edited and {state.applied} were")
        job.passes.append(len(where))
        if ends:
            found = (
                logits.float().log_softmax(-1) if job.alone else forward.log_probabilities(logits, job.ids, job.among)
            )
            job.read.append(([s for s, _ in ends], found))
        if marked and job.keeper:
            job.keeper.keep(state, marked)

    def _continue(
        self,
        job: _Job,
        prefix: int,
        out: list[list[int]],
        how: generation.Sampling,
        pack: list[Branch],
        turn: Turn | None,
    ) -> None:
        """Extend every branch of a pack token by token."""
        texts = generation.Continuation(pack, self._pass(prefix, pack, turn)[0], out, how)
        while texts.going:
            logits = self._logits(job, texts.state, texts.where, texts.rows, texts.new)
            job.passes.append(texts.tokens)
            texts.take(logits)

    def _pass(
        self, prefix: int, pack: list[Branch], turn: Turn | None, commit: bool = False
    ) -> tuple[attention.Pass, np.ndarray]:
        """What the cascade needs to know of a pack, and (tokens, 2) the sequence and position at which each token is read."""
        where = np.concatenate([b.symbol_at for b in pack])
        layout = attention.Layout(pack, where[:, 1].copy(), self.device)
        return attention.Pass(self.path, layout, prefix, self.laid_out, turn, commit), where

    def _logits(self, job: _Job, state, where, rows, new=None) -> torch.Tensor:
        return forward.logits(self.llm, job.prompts, state, where, rows, new, narrow=not job.edits)


def _is_short(error: RuntimeError) -> bool:
    """Whether memory was not enough."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
