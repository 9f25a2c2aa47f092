"""Where a model comes from: an embedded default, a hub name, a folder, a GGUF file.

Never runs foreign code unless asked, and never reads a pickle. A model is whole, or an error in one sentence.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from icrl_lab import fetch
from icrl_lab.errors import IcrlError, MissingExtra, ModelError, StudyError, nearest

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5")
WORDS = ("tokenizer.json", "vocab", "merges", "spiece")  # files of a tokenizer's words begin with one of them


def read(name: str, dtype: Any, trust: bool, progress: bool | None) -> tuple[Any, Any]:
    """The model and tokenizer of a name, whatever kind of name it is.

    trust     run the Python code that a folder or hub name brings
    progress  bars of what is fetched, as of `load_llm`; what is here is loaded without any, and the process keeps its own settings
    Raises ModelError when it cannot be had, StudyError for a misspelt embedded name.
    """
    try:
        with fetch.hub_bars(progress) as shown:
            return _found(name, dtype, trust, progress, shown)
    except IcrlError:
        raise
    except Exception as error:  # foreign parsers on foreign bytes: whatever they raise, the model is at fault
        path = Path(name).expanduser()
        if "trust_remote_code" in str(error) and path.suffix == ".gguf":
            raise ModelError(
                f"the folder of {name!r} asks for Python code, which a GGUF file never runs; move it to a folder of its own"
            ) from error
        if "trust_remote_code" in str(error) and not trust:
            raise ModelError(
                f"the model {name!r} asks for Python code of its own; read it, and give trust_remote_code=True if you trust it"
            ) from error
        if name not in fetch.EMBEDDED and (wrong := _what_is_wrong(name, path)):
            raise ModelError(wrong) from error
        lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
        first = " ".join(lines)[:200] if lines[0].endswith(":") else lines[0]
        known = ", ".join(fetch.EMBEDDED)
        raise ModelError(
            f"the model {name!r} cannot be had: {first.rstrip('.')}; embedded: {known}; else a folder, a .gguf file or a hub name"
        ) from error


def _found(name: str, dtype: Any, trust: bool, progress: bool | None, shown: Mapping[str, Any]) -> tuple[Any, Any]:
    """The model and tokenizer by what kind of name it is; `shown` says how a download shows itself."""
    path = Path(name).expanduser()
    if name in fetch.EMBEDDED:
        return _from_folder(str(_dense_copy(name, progress)), dtype, trust)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"there is no model file {name}; give a .gguf file, a folder or a hub name")
        return _from_gguf(path, dtype)
    _refuse(name, path)
    if path.is_dir():
        return _from_folder(str(path), dtype, trust)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no model folder {name}; save one with save_pretrained, or give a hub name")
    return _from_folder(name, dtype, trust, **shown)


def _refuse(name: str, path: Path) -> None:
    """Raise the error of a name that can be no model, before a parser or a hub is asked: a file of another kind, or a misspelt
    embedded name."""
    if path.is_file():
        raise ModelError(
            f"{name} is no model: one is a folder with safetensors, a .gguf file or a hub name; pickled weights are not read"
        )
    if not path.is_dir() and "/" not in name and (hint := nearest(name, fetch.EMBEDDED)).startswith("did you mean"):
        raise StudyError(f"there is no model {name!r}; {hint}")


def _what_is_wrong(name: str, path: Path) -> str:
    """The sentence of a folder that lacks a file or of a GGUF file that is damaged, where one could not be read; "" for another cause."""
    if path.suffix == ".gguf" and _damaged(path):
        return f"{name} is damaged, or no GGUF file; fetch or copy it again"
    if not path.is_dir():
        return ""
    held = sorted(file.name for file in path.iterdir())
    packed = [file for file in held if file.endswith(".gguf")]
    pickled = [file for file in held if file.endswith(PICKLES)]
    if not any(file.endswith(".safetensors") for file in held) and packed:
        return f"the folder {name} has no model.safetensors; give its file {packed[0]} as the name"
    if "config.json" not in held:
        lacks = "config.json"
    elif not any(file.endswith(".safetensors") for file in held):
        lacks = "model.safetensors" + (f" ({pickled[0]} is a pickle, which is not read)" if pickled else "")
    elif not any(file.startswith(WORDS) or file.endswith((".model", ".tiktoken")) for file in held):
        lacks = "tokenizer.json"
    else:
        return ""
    return f"the model folder {name} has no {lacks}; save model and tokenizer there with save_pretrained"


def _damaged(path: Path) -> bool:
    """Whether a GGUF file cannot be read even as a list of what it holds."""
    import gguf

    try:
        gguf.GGUFReader(path)
    except Exception:  # of a foreign parser on foreign bytes
        return True
    return False


def _from_folder(name: str, dtype: Any, trust: bool, **shown: Any) -> tuple[Any, Any]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust)
    return _whole(name, dtype=dtype, trust_remote_code=trust, use_safetensors=True, **shown), tokenizer


def _whole(name: str, **given: Any) -> Any:
    """A model of which every weight was found: transformers fills the others with random numbers and a log line."""
    from transformers import AutoModelForCausalLM

    load: Any = AutoModelForCausalLM.from_pretrained
    with fetch.quiet():
        model, found = load(name, output_loading_info=True, **given)
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
