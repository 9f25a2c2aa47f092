"""Load a causal language model, and prove what the lab relies on.

Owns where a model comes from (the embedded default, a hub name, a folder, a GGUF file), its dtype and number of threads,
and the proof at load. It never runs foreign code unless asked and never reads a pickle. What is done with the model
is the engine's business.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from icrl_lab import fetch
from icrl_lab.errors import IcrlError, MissingExtra, ModelError, StudyError, nearest

DTYPES = ("auto", "float32", "bfloat16", "float16")
GAIN = 2.25  # a CPU takes bfloat16 when its products are measured to be this much faster: AVX-512 gains at most 2, AMX more
WORTH = 1.1  # another way to compute products or attention is taken when it is measured to be this many times faster than torch's
LOOKS, PAUSE = 3, 0.5  # times that one thread has to be ahead of several, and seconds between them


@dataclass(eq=False)
class LLM:
    """A frozen causal language model, ready for the engine.

    width, context  length of an input embedding; tokens it reads at most
    revision        a hash of its configuration and of weights read from it, which names it in caches and manifests
    measured        what was measured at load: tokens/s and way of matrix products by dtype, way of attention, seconds by threads
    proof           what was proved at load, each with its number
    """

    name: str
    model: Any
    tokenizer: Any
    context: int
    threads: int | None = None
    revision: str = ""
    measured: Mapping[str, Any] = field(default_factory=dict)
    proof: Mapping[str, float] = field(default_factory=dict)

    @property
    def space(self) -> str:
        """The name of the model's input space."""
        return f"llm:{self.name}@{self.revision}"

    @property
    def width(self) -> int:
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def blocks(self) -> int:
        """L: the residual stream has L+1 places."""
        return int(self.model.config.get_text_config().num_hidden_layers)

    @property
    def heads(self) -> int:
        """Query heads of a block."""
        return int(self.model.config.get_text_config().num_attention_heads)

    @property
    def head_width(self) -> int:
        return _head_width(self.model.config.get_text_config())

    @property
    def dtype(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        return self.model.device.type

    def embed(self, ids) -> np.ndarray:
        """(n, width) float32: the input embeddings of token ids as the model sees them (Gemma scales its table)."""
        import torch

        with torch.inference_mode():
            ids = torch.tensor(np.asarray(ids, np.int64), device=self.model.device)
            return self.model.get_input_embeddings()(ids).float().cpu().numpy()

    @property
    def embeddings(self) -> np.ndarray:
        """(V, width) float32: all input embeddings; computed at each call."""
        return self.embed(np.arange(self.model.get_input_embeddings().weight.shape[0]))

    def __repr__(self) -> str:
        return f"LLM({self.name!r}, {self.dtype}, {self.device}, width {self.width}, context {self.context})"


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def load_llm(
    name: str = "smollm2-135m",
    *,
    dtype: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    trust_remote_code: bool = False,
    prove: bool = True,
    progress: bool | None = None,
) -> LLM:
    """Load a model by the name of an embedded default, a folder, a `.gguf` file or a hub name.

    dtype    "auto": bfloat16 on a GPU, and on a CPU whose matrix products are measured to be at least 2.25 times faster
             in it (AMX); else float32. "float32" is the one to ask for where digits matter: it is within 1e-5 of itself
             on any machine, bfloat16 within 3e-2
    device   "auto": CUDA where there is one
    threads  None: the fastest of the possible counts, by a short measurement
    trust_remote_code  run the Python code that a folder or hub name brings, if any; a GGUF file never runs any
    prove    check what the lab relies on; a model that fails is refused with the reason

    Raises ModelError when the model cannot be had or fails the proof, StudyError for an unknown dtype or device.
    """
    import torch

    if dtype not in DTYPES:
        raise StudyError(f"dtype {dtype!r} is unknown; {nearest(dtype, DTYPES)}")
    if device not in ("auto", "cpu", "cuda"):
        raise StudyError(f"device {device!r} is unknown; valid: auto, cpu, cuda")
    if threads is not None and threads < 1:
        raise StudyError(f"threads is {threads}; it must be at least 1, or None for the fastest number")
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("device 'cuda' was asked for, but torch sees no CUDA device here; use device='cpu'")
    device = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    first = {"auto": torch.bfloat16 if device == "cuda" else torch.float32}.get(dtype) or getattr(torch, dtype)
    model, tokenizer = _read(name, first, trust_remote_code, progress)
    model = model.to(device).eval().requires_grad_(False)
    measured: dict[str, Any] = {}
    if device == "cpu":
        threads, measured = measure(model, threads)
        if dtype == "auto" and measured["tokens/s"]["bfloat16"] >= GAIN * measured["tokens/s"]["float32"]:
            model = model.to(torch.bfloat16)
        use_fastest(model, measured)
    return wrap(name, model, tokenizer, threads=threads, measured=measured, prove=prove)


def wrap(
    name: str,
    model: Any,
    tokenizer: Any,
    *,
    threads: int | None = None,
    measured: Mapping | None = None,
    prove: bool = True,
) -> LLM:
    """An LLM from a transformers model and tokenizer that are already in memory."""
    config = model.config.get_text_config()
    if getattr(config, "attn_logit_softcapping", None) and config._attn_implementation == "sdpa":
        model.set_attn_implementation("eager")  # the sdpa of older transformers leaves the cap out, without a word
    llm = LLM(name, model.eval(), tokenizer, _context(config), threads, _revision(model), measured or {})
    if prove:
        from icrl_lab.engine.proof import prove as proof

        llm.proof = proof(llm)
    return llm


def _context(config: Any) -> int:
    """Tokens that a prompt may have. LongRoPE has other frequencies for longer prompts, chosen by the longest of a pass: as far as
    the first hold, what a prompt answers does not depend on its company."""
    most = int(getattr(config, "max_position_embeddings", 0) or 2048)
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for kind in (rope, *(part for part in rope.values() if isinstance(part, Mapping))):
        if kind.get("rope_type", kind.get("type")) == "longrope":
            first = kind.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", 0
            )
            most = min(most, int(first or most))
    return most


def _read(name: str, dtype: Any, trust: bool, progress: bool | None) -> tuple[Any, Any]:
    """The model and tokenizer of a name, whatever kind of name it is."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    path = Path(name).expanduser()
    try:
        if name in fetch.EMBEDDED:
            return _from_folder(str(_dense_copy(name, progress)), dtype, trust)
        if path.suffix == ".gguf":
            if not path.is_file():
                raise ModelError(f"there is no model file {name}; give a .gguf file, a folder or a hub name")
            return _from_gguf(path, dtype)
        if path.is_dir():
            return _from_folder(str(path), dtype, trust)
        if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            raise ModelError(f"there is no model folder {name}; save one with save_pretrained, or give a hub name")
        return _from_folder(name, dtype, trust)
    except IcrlError:
        raise
    except Exception as error:  # foreign parsers on foreign bytes: whatever they raise, the model is at fault
        if "trust_remote_code" in str(error) and path.suffix == ".gguf":
            raise ModelError(
                f"the folder of {name!r} asks for Python code, which a GGUF file never runs; move it to a folder of its own"
            ) from error
        if "trust_remote_code" in str(error) and not trust:
            raise ModelError(
                f"the model {name!r} asks for Python code of its own; read it, and give trust_remote_code=True if you trust it"
            ) from error
        lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
        first = " ".join(lines)[:200] if lines[0].endswith(":") else lines[0]
        known = ", ".join(fetch.EMBEDDED)
        raise ModelError(
            f"the model {name!r} cannot be had: {first.rstrip('.')}; embedded: {known}; else a folder, a .gguf file or a hub name"
        ) from error


def _from_folder(name: str, dtype: Any, trust: bool) -> tuple[Any, Any]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust)
    return _whole(name, dtype=dtype, trust_remote_code=trust, use_safetensors=True), tokenizer


def _whole(name: str, **given: Any) -> Any:
    """A model of which every weight was found: transformers fills the others with random numbers and a log line."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    said = logging.get_verbosity()
    logging.set_verbosity_error()
    load: Any = AutoModelForCausalLM.from_pretrained
    try:
        model, found = load(name, output_loading_info=True, **given)
    finally:
        logging.set_verbosity(said)
    missing = sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]]))
    if missing:
        raise ModelError(
            f"the model {name!r} lacks {len(missing)} of the weights that its configuration asks for, the first "
            f"{missing[0]!r}; it is damaged, or no causal language model"
        )
    return model


def _from_gguf(path: Path, dtype: Any) -> tuple[Any, Any]:
    """A GGUF file, with its blocks turned into a dense model: packed blocks would be paid for at every product."""
    try:
        import accelerate  # noqa: F401
        import gguf  # noqa: F401
    except ImportError:
        raise MissingExtra('a GGUF file needs the "models" extra: pip install "icrl-lab[models]"') from None
    from unittest.mock import patch

    from tqdm import tqdm
    from transformers import AutoTokenizer, GgufConfig, modeling_gguf_pytorch_utils

    folder, file = str(path.parent), path.name
    quantization = GgufConfig(gguf_file=file, dequantize=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file, trust_remote_code=False)
    bar = partial(tqdm, disable=None, delay=2)  # its own bar shows where the output is no terminal, too
    with patch.object(modeling_gguf_pytorch_utils, "tqdm", bar, create=True):
        model = _whole(folder, gguf_file=file, quantization_config=quantization, dtype=dtype, trust_remote_code=False)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # it is dense now, and must not say otherwise when it is saved
    return model, tokenizer


def _dense_copy(name: str, progress: bool | None) -> Path:
    """The folder of an embedded model as float32 safetensors: made once from its GGUF, loaded in a fraction of a second after."""
    import shutil

    import torch

    path = fetch.gguf(name, progress=progress)
    folder = path.parent / "dense"
    if (folder / "done").is_file():
        return folder
    with fetch.alone(path.parent / "lock"):
        if not (folder / "done").is_file():  # who held the lock may have made it
            part = path.parent / "dense.part"
            for left in (part, folder):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            model, tokenizer = _from_gguf(path, torch.float32)
            model.save_pretrained(part)
            tokenizer.save_pretrained(part)
            (part / "done").write_text(fetch.EMBEDDED[name].sha256)
            os.replace(part, folder)
    return folder


def measure(model: Any, threads: int | None = None) -> tuple[int, dict[str, Any]]:
    """Threads that make a product of this model's size fastest, and the faster ways to compute products and attention.

    Products, in float32 and in bfloat16, are those of 256 tokens with one layer's up-projection; attention is that of as
    many tokens in every head to 2048 keys.

    Returns the threads and {"tokens/s": by dtype, "products": way by dtype, "attention": way, "seconds by threads": ...}.
    """
    import torch

    from icrl_lab.engine import kernels, products

    config = model.config.get_text_config()
    hidden, inner = config.hidden_size, getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    parameters = sum(p.numel() for p in model.parameters())
    before = torch.get_num_threads()

    def multiply(ways: Sequence[str], dtype: Any) -> dict[str, Callable[[], Any]]:
        x, w = torch.randn(256, hidden, dtype=dtype), torch.randn(inner, hidden, dtype=dtype)
        return {way: partial(products.product(w, way), x) for way in ways}

    def attend() -> dict[str, Callable[[], Any]]:
        heads = config.num_attention_heads
        groups = getattr(config, "num_key_value_heads", None) or heads
        width = _head_width(config)
        k, v = torch.randn(2, 1, groups, 2048, width)
        q = torch.randn(1, groups, 256 * (heads // groups), width)
        return {way: partial(kernels.to_all(k, v, way), q, width**-0.5) for way in kernels.WAYS}

    def with_threads(n: int, call: Callable[[], Any]) -> None:
        torch.set_num_threads(n)
        call()

    try:
        counts = (
            sorted({1, max(1, (os.cpu_count() or 1) // 2), len(os.sched_getaffinity(0))})
            if threads is None
            else [threads]
        )
        plain = multiply(("torch",), torch.float32)["torch"]
        by_threads = _by_threads({n: partial(with_threads, n, plain) for n in counts})
        best = min(by_threads, key=by_threads.__getitem__)
        torch.set_num_threads(best)
        rate, chosen = {}, {}
        for dtype in (torch.float32, torch.bfloat16):
            name = str(dtype).removeprefix("torch.")
            took = _seconds(multiply(products.possible(dtype), dtype))
            chosen[name] = _worth(took)
            rate[name] = round(256 * hidden * inner / took[chosen[name]] / parameters, 1)
        # keys and values are laid out as weights are; whether that is worth it is another question with another answer
        attention = _worth(_seconds(attend(), times=1)) if "oneDNN" in products.possible(torch.float32) else "flash"
    finally:
        torch.set_num_threads(before)
    return best, {"tokens/s": rate, "products": chosen, "attention": attention, "seconds by threads": by_threads}


def _seconds(calls: Mapping[Any, Callable[[], Any]], rounds: int = 6, times: int = 4) -> dict[Any, float]:
    """What each call takes. They are timed in turn, each after a call that wakes it, and the least of the rounds is taken: a
    neighbour's burst slows one round, not one candidate."""
    took: dict[Any, list[float]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            call()
            start = time.perf_counter()
            for _ in range(times):
                call()
            took[key].append((time.perf_counter() - start) / times)
    return {key: min(found) for key, found in took.items()}


def _by_threads(calls: Mapping[int, Callable[[], Any]]) -> dict[int, float]:
    """What each number of threads takes. That one thread beats several is nearly always a neighbour that keeps a core busy for longer than
    all rounds last, and a study would stay on that thread for hours: it is believed when it was seen `LOOKS` times."""
    took = _seconds(calls)
    for _ in range(LOOKS - 1):
        if len(took) == 1 or min(took, key=took.__getitem__) > 1:
            break
        time.sleep(PAUSE)
        again = _seconds(calls)
        took = {n: min(took[n], again[n]) for n in took}
    return took


def _worth(took: Mapping[str, float]) -> str:
    """The fastest way, or the first, torch's own, where that gains too little."""
    first, fastest = next(iter(took)), min(took, key=took.__getitem__)
    return fastest if took[first] >= WORTH * took[fastest] else first


def use_fastest(model: Any, measured: dict[str, Any]) -> None:
    """Compute products in the way that was measured to be the fastest in the model's dtype; say so in `measured` where memory is short."""
    from icrl_lab.engine import products

    dtype = str(model.dtype).removeprefix("torch.")
    if measured["products"].get(dtype) == "oneDNN" and not products.lay_out(model):
        measured["products"][dtype] = "torch"


def _revision(model: Any) -> str:
    """12 hex digits over the configuration and a sample of every weight."""
    config = model.config.get_text_config().to_dict()
    where = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}  # where it came from is not what it is
    digest = hashlib.sha256(repr(sorted((k, v) for k, v in config.items() if k not in where)).encode())
    for key, weight in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(weight.flatten()[:: max(1, weight.numel() // 64)][:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
