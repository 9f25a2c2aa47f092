"""The engine's loop: walk the prefix tree, keep one path, run packs of branches, read what was asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from icrl_lab.engine import attention, parts, products
from icrl_lab.engine.capture import LIMIT, Keeper
from icrl_lab.engine.edits import Edits
from icrl_lab.engine.tree import Branch, Node, all_symbols, build, chain, flatten, shared_length
from icrl_lab.errors import DataError
from icrl_lab.values import SLOT, Capture, Rendered, Trace

if TYPE_CHECKING:
    from icrl_lab.models import LLM

# a subtree of at most this many tokens is one branch of a pack, with a dense mask of its own. A stretch and a pack of what follows
# took 1.6 (288 tokens), 1.3 (490), 1.1 (580) and 1.0 (830) times as long on a CPU, and a GPU has the fewer passes to launch too
BRANCH = 512
# tokens a pack. On a CPU 1024 took 8 to 14 % less time than 512, 1280 another 6 to 8 % where branches are long, and 2048 the same;
# a GPU wants the weights read rarely
PACK = {"cpu": 1280, "cuda": 8192}


@dataclass(frozen=True, eq=False)
class Result:
    """What a run gives back, in the order of the prompts.

    logprobs  (n, len(ids)) float32: log-probability of the next token, normalised over the whole vocabulary
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
    read: list[tuple[list[int], torch.Tensor]] = field(default_factory=list)  # sequences, and their rows on the device
    computed: int = 0

    @property
    def streams(self) -> bool:
        """Whether the residual stream has to be reached."""
        return self.edits.streams or (self.keeper is not None and self.keeper.streams)


class Engine:
    """Runs prompts through one model.

    pack       tokens computed together at most; None takes the device's default, less where memory is short
    branch     largest subtree that is computed as one branch of a pack; one that shares no pack, the tree itself, only up to half
               of that: a longer stretch is kept for the next call
    limit      bytes that the capture of one call may keep
    """

    def __init__(self, llm: LLM, *, pack: int | None = None, branch: int = BRANCH, limit: float = LIMIT) -> None:
        self.llm = llm
        self.model = llm.model
        self.device = next(llm.model.parameters()).device
        self.branch = branch
        self.pack = pack or self._fitting_pack()
        self.limit = limit
        self.path = attention.PathBuffer()
        self.held = np.zeros(0, np.int64)  # the symbols whose keys and values stand in the path
        self.laid_out = llm.measured.get("attention") == "products"
        self.computed = self.asked = 0  # over the engine's life

    # ------------------------------------------------------------------------------------ what is asked

    def next_token(self, prompts: Sequence[Rendered], ids: Sequence[int] | None = None) -> np.ndarray:
        """(n, len(ids)) float32 log-probabilities of the token after each prompt, read at `ids` (None: the whole vocabulary)."""
        return self.run(prompts, ids).logprobs

    def run(
        self,
        prompts: Sequence[Rendered],
        ids: Sequence[int] | None = None,
        capture: Capture | Sequence[Capture] | None = None,
    ) -> Result:
        """Log-probabilities after each prompt, and what `capture` (one for all, or one a prompt) asks to keep.

        Each distinct stretch of the prompts' prefix tree is computed once, edits included. Equal prompts give equal rows.
        A prompt that is empty or longer than the model's context is a DataError, as is an edit that it cannot have and a
        capture that would keep more than `limit` bytes; an edit that did not fire is a RuntimeError.
        """
        job = self._job(prompts, ids, capture)
        with torch.inference_mode(), self._cascading(job.streams):
            for branches in self._walk(job, build(job.symbols)):
                self._packs(job, branches)
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
        job = self._job(prompts, None, None, room=max_new_tokens)
        out: list[list[int]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda i: job.symbols[i].tolist())
        with torch.inference_mode(), self._cascading():
            while order:
                group, share = self._group(job, order)
                order = order[len(group) :]
                self._stretch(job, Node(0, share, group[0], group))
                asked = (max_new_tokens, temperature, seed, frozenset(stop_ids))
                rest = [chain(i, share, len(job.symbols[i]), [i]) for i in group]
                self._each(rest, partial(self._decode, job, out, share, *asked))
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
                self._read(
                    parts.unembed(self.model, torch.tensor(rows).to(self.device, self.model.dtype)), wanted
                ).cpu()
                for rows in np.array_split(flat, max(1, len(flat) // 256))
            ]
        return torch.cat(found).numpy().reshape(*np.shape(states)[:-1], -1)

    # ------------------------------------------------------------------------------------ the walk

    def _job(self, prompts, ids, capture, room: int = 0) -> _Job:
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
        return _Job(prompts, edits.symbols(prompts, all_symbols(prompts)), wanted, edits, keeper)

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
        self.held = self.held[:known]
        while known < node.stop:
            stop = min(known + self.pack, node.stop)
            ends = node.ends if stop == node.stop else []
            try:
                self._forward(job, known, [chain(node.sequence, known, stop, ends, node.members)], commit=True)
            except RuntimeError as error:
                self._halve(error, stop - known)
                continue
            known = stop
            self.held = path[:known]

    def _packs(self, job: _Job, branches: list[Branch]) -> None:
        prefix = int(branches[0].symbol_at[0, 1])
        self._each(branches, partial(self._forward, job, prefix))

    def _each(self, branches: list[Branch], run: Callable[[list[Branch]], None]) -> None:
        """Run these branches pack by pack; after running out of memory, what is left in smaller ones."""
        queue = self._chunks(branches)
        while queue:
            pack = queue.pop(0)
            try:
                run(pack)
            except RuntimeError as error:
                self._halve(error, sum(map(len, pack)), len(pack))
                queue = self._chunks([b for p in [pack, *queue] for b in p])

    def _chunks(self, branches: list[Branch]) -> list[list[Branch]]:
        """Packs of about equal lengths, at most `self.pack` tokens each (a longer branch stands alone). Chains are packed apart
        from trees: one tree among them would give all of them its dense mask, at its length."""
        packs: list[list[Branch]] = []
        tokens = 0
        for branch in sorted(branches, key=lambda b: (not b.is_chain, len(b))):
            if not packs or tokens + len(branch) > self.pack or branch.is_chain != packs[-1][-1].is_chain:
                packs.append([])
                tokens = 0
            packs[-1].append(branch)
            tokens += len(branch)
        return packs

    def _halve(self, error: RuntimeError, tokens: int, branches: int = 2) -> None:
        """After running out of memory: smaller packs from here on. Any other error, or nothing left to halve, is raised."""
        short = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not short or branches < 2 or tokens < 2:
            raise error
        self.pack = max(1, tokens // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _fitting_pack(self) -> int:
        """Tokens a pack by a memory estimate: activations, and float32 logits for a row of each token, within a tenth of the memory
        that is free (at most 1 GB of a machine's own)."""
        config = self.llm.model.config.get_text_config()
        wide = 10 * config.hidden_size + 4 * (getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
        token = wide * self.model.dtype.itemsize + config.vocab_size * (4 + self.model.dtype.itemsize)
        cuda = self.device.type == "cuda"
        free = 0.1 * torch.cuda.mem_get_info(self.device)[0] if cuda else min(1e9, 0.1 * products.free())
        return int(max(32, min(PACK.get(self.device.type, 512), free // token)))

    # ------------------------------------------------------------------------------------ the forward pass

    @contextmanager
    def _cascading(self, streams: bool = False) -> Iterator[None]:
        """The model with our attention function (and, with `streams`, hooks where the residual stream is read) and the
        measured number of threads, and as it was afterwards."""
        before, threads = self.model.config._attn_implementation, torch.get_num_threads()
        self.model.set_attn_implementation(attention.NAME)
        if self.llm.threads:
            torch.set_num_threads(self.llm.threads)
        try:
            with (
                parts.hooked(self.model, attention.residual) if streams else nullcontext(),
                parts.narrowed(self.model, attention.read),
            ):
                yield
        except BaseException:
            self.held = self.held[:0]  # a pass cut short may have left half a stretch
            raise
        finally:
            self.model.set_attn_implementation(before)
            torch.set_num_threads(threads)

    def _forward(self, job: _Job, prefix: int, pack: list[Branch], commit: bool = False) -> None:
        where = np.concatenate([b.symbol_at for b in pack])
        layout = attention.Layout(pack, where[:, 1].copy(), self.device)
        state = attention.Pass(self.path, layout, prefix, self.laid_out, commit=commit)
        starts = np.cumsum([0, *(len(b) for b in pack[:-1])])
        ends = [(s, int(at + start)) for b, start in zip(pack, starts) for s, at in b.ends]
        changes = job.edits.prepare(state, pack, job.symbols) if job.edits else 0
        marked = job.keeper.mark(state, pack, self.device) if job.keeper else None
        logits = self._model(job, state, where, [at for _, at in ends])
        if state.applied != changes:
            raise RuntimeError(f"{changes} rows were to be edited and {state.applied} were")
        job.computed += len(where)
        if ends:
            job.read.append(([s for s, _ in ends], self._read(logits, job.ids)))
        if marked and job.keeper:
            job.keeper.keep(state, marked)

    def _model(
        self, job: _Job, state: attention.Pass, where: np.ndarray, rows: list[int], new: np.ndarray | None = None
    ) -> torch.Tensor:
        """Logits (len(rows), vocabulary) of one pack; `new` gives token ids directly while text is generated."""
        embeds = (
            self._embed(job, where)
            if new is None
            else self.model.get_input_embeddings()(torch.from_numpy(new).to(self.device))
        )
        keep = torch.as_tensor(rows or [0], device=self.device)
        if not job.edits:
            read = torch.tensor(sorted({*rows, *state.also}), device=self.device) if state.also else keep
            state.read, state.last = read, self.llm.blocks - 1
        with attention.running(state):
            out = self.model(
                inputs_embeds=embeds[None],
                position_ids=state.layout.positions[None],
                attention_mask=None,
                use_cache=False,
                logits_to_keep=keep,
            )
        if not state.fired:
            raise RuntimeError(f"{self.llm.name} did not call the engine's attention function")
        return out.logits[0]

    def _embed(self, job: _Job, where: np.ndarray) -> torch.Tensor:
        """(tokens, width) input embeddings: the model's own for tokens, the injected vectors at slots."""
        cuts = [0, *(np.flatnonzero(np.diff(where[:, 0])) + 1).tolist(), len(where)]
        found = np.concatenate([job.prompts[where[a, 0]].ids[where[a:b, 1]] for a, b in pairwise(cuts)])
        slots = np.flatnonzero(found < 0)
        embeds = self.model.get_input_embeddings()(torch.from_numpy(np.maximum(found, 0)).to(self.device))
        if len(slots):
            rows = [job.prompts[s].vectors[(job.prompts[s].ids[:p] == SLOT).sum()] for s, p in where[slots].tolist()]
            embeds[torch.from_numpy(slots).to(self.device)] = torch.from_numpy(np.stack(rows)).to(embeds)
        return embeds

    @staticmethod
    def _read(logits: torch.Tensor, ids: torch.Tensor | None) -> torch.Tensor:
        """float32 log-probabilities; a few stay on the device, so that a GPU need not wait for the host between packs."""
        logits = logits.float()
        norm = logits.logsumexp(-1, keepdim=True)
        return (logits - norm).cpu() if ids is None else logits.index_select(-1, ids) - norm

    # ------------------------------------------------------------------------------------ generation

    @staticmethod
    def _group(job: _Job, order: list[int]) -> tuple[list[int], int]:
        """The first prompts of a sorted list that share at least half of themselves, and how much they share."""
        first = job.symbols[order[0]]
        group, share = [order[0]], len(first) - 1
        for other in order[1:]:
            common = min(shared_length(first, job.symbols[other]), len(first) - 1, len(job.symbols[other]) - 1)
            if 2 * common < len(job.symbols[other]):
                break
            group.append(other)
            share = min(share, common)
        return group, share

    def _decode(self, job, out, prefix, most, temperature, seed, stop, pack) -> None:
        """Extend every branch of a pack token by token; a branch leaves the pack when it meets a stop id."""
        rows = [b.ends[0][0] for b in pack]
        for row in rows:  # a pack that was given up may have begun them
            out[row].clear()
        draws = {s: np.random.default_rng([seed, s]) for s in rows} if temperature > 0 else {}
        where = np.concatenate([b.symbol_at for b in pack])
        lengths = [len(b) for b in pack]
        layout = attention.Layout(pack, where[:, 1].copy(), self.device)
        own = attention.OwnCache(layout, lengths)
        state = attention.Pass(self.path, layout, prefix, self.laid_out, own=own)
        logits = self._model(job, state, where, (np.cumsum(lengths) - 1).tolist())
        job.computed += len(where)
        for step in range(most):
            chosen = [_choose(row, temperature, draws.get(s)) for s, row in zip(rows, logits.float().cpu().numpy())]
            going = [i for i, token in enumerate(chosen) if token not in stop]
            for i in going:
                out[rows[i]].append(chosen[i])
            rows = [rows[i] for i in going]
            if not rows or step == most - 1:
                return
            own.select(going)
            positions = np.array([len(job.symbols[s]) + step for s in rows])
            layout = attention.Layout([chain(s, 0, 1) for s in rows], positions, self.device)
            own.step(layout)
            state = attention.Pass(self.path, layout, prefix, self.laid_out, own=own)
            new = np.array([chosen[i] for i in going])
            logits = self._model(job, state, where, list(range(len(rows))), new)
            job.computed += len(rows)


def _choose(logits: np.ndarray, temperature: float, draw: np.random.Generator | None) -> int:
    """The most probable token, or one sampled at `temperature` (Gumbel maximum)."""
    if draw is None:
        return int(logits.argmax())
    return int((logits / temperature + draw.gumbel(size=logits.shape)).argmax())
