"""Any Hugging Face encoder, by folder or hub name: where it lies, what it reads and what its space is called.

No torch here: a space is a hash over configuration, weights, tokenizer and preprocessor, read from the files, so that a
warm cache answers without loading a model. What runs the model is `hidden`.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from icrl_lab.encoders import hidden
from icrl_lab.encoders.base import Encoder, file_content, text_content
from icrl_lab.errors import ModelError, StudyError, nearest
from icrl_lab.files import sha256

WANTED = ("*.json", "*.safetensors", "*.txt", "*.model")  # what a model's vectors depend on, and nothing pickled
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5")
POOLINGS = ("mean", "cls")
OPTIONS = {
    "modality": None,  # text, vision or audio; None: what the folder offers
    "pooling": "mean",  # over an item's own tokens, or "cls"
    "layer": -1,  # 0 is the embeddings, -1 the last; "all" gives one slot a layer
    "truncate": False,  # cut items longer than the model reads; otherwise they are an error
    "rate": None,  # samples a second of arrays, for audio; None: the model's own
    "revision": None,  # of a hub name
    "device": "cpu",
    "trust_remote_code": False,
}


def folder_of(name: str, revision: str | None = None, remote_code: bool = False) -> Path:
    """The folder of a model: `name` itself where it is one, else the hub's, from its cache or fetched.

    Raises ModelError, saying where it looked, if there is none, and if the weights are there only as a pickle.
    """
    path = Path(name).expanduser()
    if not path.is_dir():
        if name[:1] in "./~\\" or name.count("/") > 1:
            raise ModelError(f"looked for an encoder in the folder {name!r}: there is none")
        path = _from_hub(name, revision, remote_code)
    files = [f for f in path.iterdir() if f.is_file()]
    if not (path / "config.json").is_file():
        raise ModelError(f"the folder of encoder {name!r} has no config.json, so it is not a Hugging Face model")
    if not any(f.suffix == ".safetensors" for f in files):
        pickles = sorted(f.name for f in files if f.suffix in PICKLES)
        why = (
            f"its weights are only there as {pickles[0]!r}, a pickle that can run code"
            if pickles
            else "it has no weights"
        )
        raise ModelError(f"encoder {name!r}: {why}; a model.safetensors is needed (model.save_pretrained writes one)")
    return path


def _from_hub(name: str, revision: str | None, remote_code: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [*WANTED, *(["*.py"] if remote_code else [])]
    get = partial(snapshot_download, name, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"])
    try:
        kept = Path(get(local_files_only=True))
        if any(kept.glob("*.safetensors")) and _reads(kept):  # otherwise somebody fetched a part of it
            return kept
    except Exception:  # it is not there yet
        pass
    try:
        return Path(get())
    except Exception as error:  # names that are none, repositories that are not, no network: all mean it cannot be had
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"looked for a folder {name!r} and for a hub name {name!r}, and found neither ({type(error).__name__}: {cause})"
        ) from None


def _json(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path.name} of an encoder cannot be read: {error}") from None
    return held if isinstance(held, dict) else {}


def _reads(folder: Path) -> list[str]:
    """The modalities a folder has preprocessors for; the one a model is named after stands first."""
    processor = _json(folder / "processor_config.json")
    pre = _json(folder / "preprocessor_config.json")
    audio = "sampling_rate" in pre or "feature_extractor" in processor
    vision = (bool(pre) and not audio) or "image_processor" in processor
    names = {f.name for f in folder.iterdir()}
    tokens = {"tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json"} & names
    return [m for m, there in (("audio", audio), ("vision", vision), ("text", bool(tokens))) if there]


@lru_cache(maxsize=1024)
def _hash(path: str, size: int, changed: int) -> str:
    return sha256(path)


def fingerprint(folder: Path) -> str:
    """12 hex digits over every file that a model's vectors depend on."""
    digest = hashlib.sha256()
    for file in sorted({f for pattern in (*WANTED, "*.py") for f in folder.glob(pattern)}, key=lambda f: f.name):
        stat = file.stat()
        digest.update(f"{file.name}:{_hash(str(file.resolve()), stat.st_size, stat.st_mtime_ns)}\n".encode())
    return digest.hexdigest()[:12]


def find(name: str, options: dict[str, Any]) -> Encoder:
    """The Encoder of a folder or hub name under `options` (see OPTIONS); checks everything that needs no model."""
    o = Encoder(name, (), lambda: "", hidden.text, options=OPTIONS).settle(options)
    if o["pooling"] not in POOLINGS:
        raise StudyError(f"encoder {name!r}: pooling {o['pooling']!r} is unknown; {nearest(o['pooling'], POOLINGS)}")
    if o["layer"] != "all" and (not isinstance(o["layer"], int) or isinstance(o["layer"], bool)):
        raise StudyError(f"encoder {name!r}: layer {o['layer']!r} must be a whole number or 'all'")
    folder = folder_of(name, o["revision"], o["trust_remote_code"])
    offered = _reads(folder)
    if not offered:
        raise ModelError(f"the folder of encoder {name!r} has neither a tokenizer nor a preprocessor")
    modality = o["modality"] or offered[0]
    if modality not in offered:
        raise StudyError(f"encoder {name!r} reads {' and '.join(offered)}, not {modality!r}")
    short = folder.resolve().name if Path(name).expanduser().is_dir() else name
    extra = ("/truncated" if o["truncate"] else "") + (f"/{o['rate']}Hz" if o["rate"] and modality == "audio" else "")

    def space(**_: Any) -> str:
        return f"hf:{short}@{fingerprint(folder)}/{modality}/{o['pooling']}/{o['layer']}{extra}"

    run = {"text": hidden.text, "vision": hidden.vision, "audio": hidden.audio}[modality]
    content = text_content if modality == "text" else file_content
    kinds = {"text": ("text", "protein", "molecule"), "vision": ("image",), "audio": ("audio",)}[modality]
    return Encoder(name, kinds, space, partial(run, folder), content, o, 16)
