"""Load a causal language model, and prove what the lab relies on.

Owns the model and its tokenizer, its dtype and device, and that it is proved at load. Where it comes from stands in reading.py, what is
measured for it in fastest.py. What is done with the model is the engine's business.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from icrl_lab.errors import ModelError, StudyError, nearest
from icrl_lab.models import fastest, reading

DTYPES = ("auto", "float32", "bfloat16", "float16")
FACTORS = np.random.default_rng(0).integers(0, 2**63, 4096, dtype=np.uint64) * 2 + 1
GAIN = 2.25  # a CPU takes bfloat16 when its products are measured to be this much faster: AVX-512 gains at most 2, AMX more


@dataclass(eq=False)
class LLM:
    """A frozen causal language model, ready for the engine.

    width, context  length of an input embedding; tokens it reads at most
    revision        a hash of its configuration and its weights, which names it in caches and manifests
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
        return fastest.head_width(self.model.config.get_text_config())

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
    progress bars of what is fetched: None shows them in a terminal, True anywhere, False nowhere

    Raises ModelError when the model cannot be had or fails the proof, StudyError for an unknown dtype or device and for
    a misspelt embedded name.
    """
    import torch

    if not isinstance(name, (str, os.PathLike)):
        raise StudyError(f"load_llm takes the name of a model, a folder or a .gguf file, not {name!r}")
    name = os.fspath(name)
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
    model, tokenizer = reading.read(name, first, trust_remote_code, progress)
    model = model.to(device).eval().requires_grad_(False)
    measured: dict[str, Any] = {}
    if device == "cpu":
        threads, measured = fastest.measure(model, threads)
        if dtype == "auto" and measured["tokens/s"]["bfloat16"] >= GAIN * measured["tokens/s"]["float32"]:
            model = model.to(torch.bfloat16)
        fastest.use(model, measured)
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


def _revision(model: Any) -> str:
    """12 hex digits over the configuration and every weight."""
    config = model.config.get_text_config().to_dict()
    where = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}  # where it came from is not what it is
    digest = hashlib.sha256(repr(sorted((k, v) for k, v in config.items() if k not in where)).encode())
    for key, weight in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(_sums(weight))
    return digest.hexdigest()[:12]


def _sums(weight: Any) -> bytes:
    """Sums of a weight's bits as float32, each over 32 KB of 64-bit numbers times an odd factor of their place, and the bytes that are
    left over: any one change moves them, another dtype of the same numbers does not, and they cost a tenth of a cryptographic digest."""
    import torch

    raw = weight.detach().cpu().float().contiguous().flatten().view(torch.uint8).numpy()
    whole = len(raw) // FACTORS.nbytes * FACTORS.nbytes
    return (raw[:whole].view(np.uint64).reshape(-1, len(FACTORS)) @ FACTORS).tobytes() + raw[whole:].tobytes()
