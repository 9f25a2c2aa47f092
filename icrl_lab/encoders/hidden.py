"""Items through a Hugging Face model to one vector an item and layer. torch enters and stays in this file.

An item's vector depends on that item only: padding is masked in the model and left out of the mean, as are the tokens that
frame an item ([CLS], [SEP], <eos>, registers). Few audio models mask their padding everywhere (a group norm or a stack of
positional convolutions lets it through), so only sounds of one length share a batch. Parameters a checkpoint lacks are set to NaN: heads that are not used do no harm, and anything else cannot pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from icrl_lab.encoders.base import Batches, chunks, show
from icrl_lab.encoders.media import sound, to_image
from icrl_lab.errors import DataError, ItemError, ModelError
from icrl_lab.fetch import quiet

Options = Mapping[str, Any]


def _load(folder: Path, auto: str, trust: bool, **more: Any) -> Any:
    """`transformers.<auto>.from_pretrained(folder)`, from that folder only; what goes wrong is a ModelError."""
    import transformers

    try:
        with quiet():
            return getattr(transformers, auto).from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=trust, **more
            )
    except Exception as error:  # half a config, a cut weight file, a missing tokenizer library: each has its own type
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"encoder {folder.name!r}: {auto} cannot load it: {cause}") from error


def _model(folder: Path, modality: str, o: Options) -> tuple[Any, list[str]]:
    """The tower that reads `modality`, in float32, and the names of the parameters its file lacks."""
    import torch

    model, info = _load(
        folder, "AutoModel", o["trust_remote_code"], dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )
    lacking = sorted(info["missing_keys"])
    known = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name in lacking:
        if name in known and known[name].is_floating_point():
            known[name].detach().fill_(torch.nan)
    tower = getattr(model, {"text": "text_model", "vision": "vision_model", "audio": "audio_model"}[modality], None)
    if tower is not None:
        model = tower
    elif getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    if getattr(model.config, "attn_logit_softcapping", None) and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation("eager")  # the sdpa of older transformers leaves the cap out, without a word
    if hasattr(model.config, "mask_ratio"):
        model.config.mask_ratio = 0.0  # a masked autoencoder would hide patches at random
    try:
        return model.eval().to(o["device"]), lacking
    except RuntimeError as error:
        raise ModelError(f"the encoder cannot be put on device {o['device']!r}: {error}") from None


def _forward(model: Any, inputs: dict[str, Any], o: Options, ids: Sequence[str]) -> list[Any]:
    """Hidden states of the layers asked for, each (n, T, d)."""
    import torch

    layer = o["layer"]
    try:
        with torch.inference_mode(), quiet():
            inputs = {k: torch.as_tensor(v).to(o["device"]) for k, v in inputs.items()}
            out = model(**inputs, output_hidden_states=layer != -1, return_dict=True)
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        raise ModelError(f"the encoder fails on items {ids[0]!r} to {ids[-1]!r}: {error}") from error
    states = [out.last_hidden_state]
    if layer != -1:
        if not getattr(out, "hidden_states", None):
            raise ModelError("the encoder gives no hidden states, so only layer = -1 can be had")
        states = [*out.hidden_states[:-1], out.last_hidden_state]  # the last one as it leaves the model, after its norm
        if layer != "all":
            if not -len(states) <= layer < len(states):
                raise ModelError(f"layer {layer} is not there: the encoder has layers 0 to {len(states) - 1}")
            states = [states[layer]]
    states = [s.flatten(2).transpose(1, 2) if s.ndim == 4 else s for s in states]  # feature maps (n, d, h, w)
    if len({s.shape[-1] for s in states}) > 1:
        raise ModelError("the encoder's layers have different widths: layer = 'all' does not fit, name one layer")
    return states


def _pool(states: list[Any], keep: np.ndarray, pooling: str, lacking: list[str]) -> np.ndarray:
    """(n, d), or (n, layers, d) of several layers: the mean over `keep` (n, T), or the first token."""
    import torch

    with torch.inference_mode():
        mask = torch.as_tensor(keep, device=states[0].device)
        if pooling == "cls":
            pooled = [s[:, 0] for s in states]
        else:
            count = mask.sum(1, keepdim=True)
            pooled = [s.masked_fill(~mask[..., None], 0).double().sum(1) / count for s in states]
        out = torch.stack(pooled, 1).float().cpu().numpy()
    if lacking and not np.isfinite(out).all():
        raise ModelError(f"the encoder's file lacks weights its vectors depend on: {', '.join(lacking[:3])}")
    return out if len(states) > 1 else out[:, 0]


# ------------------------------------------------------------------------------------------------ text


def _longest(model: Any, tokenizer: Any) -> int:
    """Tokens an item may have: the tokenizer's limit and the model's table of positions, less what padding reserves."""
    import torch

    limits = [int(min(tokenizer.model_max_length, 1 << 30))]
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in ("position_embeddings", "wpe") and isinstance(module, torch.nn.Embedding):
            limits.append(module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1))
    return min(limits)


def text(folder: Path, items: Sequence[str], ids: Sequence[str], batch_size: int, **o: Any) -> Batches:
    """Strings: sentences, proteins, SMILES."""
    tokenizer = _load(folder, "AutoTokenizer", o["trust_remote_code"])
    model, lacking = _model(folder, "text", o)
    limit = _longest(model, tokenizer)
    cut = {"truncation": True, "max_length": limit} if o["truncate"] else {}
    rows, refused = [], {}
    for item, name in zip(items, ids):
        row = tokenizer(item, return_special_tokens_mask=True, return_attention_mask=False, verbose=False, **cut)
        if len(row["input_ids"]) > limit:
            refused[name] = (
                f"item {name!r} has {len(row['input_ids'])} tokens, the encoder reads {limit}; truncate=True cuts"
            )
        elif all(row["special_tokens_mask"]):
            refused[name] = f"item {name!r} ({show(item)}) has no token of its own"
        elif o["pooling"] == "cls" and not row["special_tokens_mask"][0]:
            raise ModelError(
                "the encoder's tokenizer puts no class token first: pooling 'cls' does not fit, use 'mean'"
            )
        rows.append(row)
    if refused:
        raise ItemError(*next(iter(refused.items())), refused)
    lengths = [len(r["input_ids"]) for r in rows]
    for part in chunks(np.argsort(lengths, kind="stable").tolist(), batch_size):
        tokens = np.full((len(part), max(lengths[i] for i in part)), tokenizer.pad_token_id or 0)
        attend, special = np.zeros_like(tokens), np.ones_like(tokens)
        for k, i in enumerate(part):
            tokens[k, : lengths[i]], special[k, : lengths[i]] = rows[i]["input_ids"], rows[i]["special_tokens_mask"]
            attend[k, : lengths[i]] = 1
        states = _forward(model, {"input_ids": tokens, "attention_mask": attend}, o, [ids[i] for i in part])
        yield part, _pool(states, special == 0, o["pooling"], lacking)


# ------------------------------------------------------------------------------------- images and sound


def _framing(model: Any, pooling: str) -> int:
    """Tokens in front of the patches: class, distillation and register tokens, by the parameters that hold them."""
    first = ("cls_token", "class_embedding", "distillation_token")
    count, cls = 0, False
    for name, parameter in model.named_parameters():
        last = name.rpartition(".")[2]
        count += 1 if last in first else parameter.shape[-2] if last == "register_tokens" else 0
        cls |= last in first
    if pooling == "cls" and not cls:
        raise ModelError("the encoder has no class token: pooling 'cls' does not fit, use 'mean'")
    return count


def vision(folder: Path, items: Sequence[Any], ids: Sequence[str], batch_size: int, **o: Any) -> Batches:
    """Images: paths, PIL images, or arrays (h, w) and (h, w, 3) of 0..255, 0..65535 (uint16) or 0.0..1.0."""
    processor = _load(folder, "AutoImageProcessor", o["trust_remote_code"])
    model, lacking = _model(folder, "vision", o)
    skip = _framing(model, o["pooling"])
    for part in chunks(range(len(items)), batch_size):
        images = [_named(to_image, items[i], ids[i]) for i in part]
        with quiet():
            pixels = processor(images=images, return_tensors="pt")["pixel_values"]
        states = _forward(model, {"pixel_values": pixels}, o, [ids[i] for i in part])
        keep = np.ones(states[0].shape[:2], bool)
        keep[:, :skip] = False
        if len({s.shape[1] for s in states}) > 1:  # a pyramid of feature maps: nothing frames them
            states = [s.mean(1, keepdim=True) for s in states]
            keep = np.ones((len(part), 1), bool)
        yield part, _pool(states, keep, o["pooling"], lacking)


def audio(folder: Path, items: Sequence[Any], ids: Sequence[str], batch_size: int, **o: Any) -> Batches:
    """Sound: 1-d arrays at `rate` (the model's own by default), or paths of .wav files."""
    extractor = _load(folder, "AutoFeatureExtractor", o["trust_remote_code"])
    model, lacking = _model(folder, "audio", o)
    skip = _framing(model, o["pooling"])
    waves = [_named(sound, item, name, extractor.sampling_rate, o["rate"]) for item, name in zip(items, ids)]
    longest = _hears(extractor)
    for wave, name in zip(waves, ids):
        if longest and len(wave) > longest and not o["truncate"]:
            seconds = longest / extractor.sampling_rate
            raise ItemError(
                name, f"item {name!r} is longer than the {seconds:g} s the encoder hears; truncate=True cuts"
            )
    masked = bool(getattr(extractor, "return_attention_mask", False))
    order = sorted(range(len(waves)), key=lambda i: len(waves[i]))
    for _, alike in groupby(order, key=lambda i: 0 if longest else len(waves[i])):
        for part in chunks(list(alike), batch_size):
            with quiet():
                features = extractor(
                    [waves[i] for i in part],
                    sampling_rate=extractor.sampling_rate,
                    return_tensors="np",
                    return_attention_mask=True,
                    **({} if longest else {"padding": True}),
                )
            mask, key = features.get("attention_mask"), extractor.model_input_names[0]
            inputs = {key: features[key], **({"attention_mask": mask} if masked and mask is not None else {})}
            states = _forward(model, inputs, o, [ids[i] for i in part])
            keep = _valid(model, mask, len(part), states[0].shape[1])
            keep[:, :skip] = False
            if not keep.any(1).all():
                short = ids[part[int(np.argmin(keep.any(1)))]]
                raise ItemError(short, f"item {short!r} is too short for the encoder to hear a frame")
            yield part, _pool(states, keep, o["pooling"], lacking)


def _hears(extractor: Any) -> int | None:
    """Samples at which an extractor crops, having padded to as many; None if it takes sound of any length."""
    for name in ("n_samples", "nb_max_samples"):  # Whisper, CLAP
        if getattr(extractor, name, None):
            return int(getattr(extractor, name))
    frames = getattr(extractor, "max_length", None)  # spectrogram transformers: frames of 10 ms
    return frames * extractor.sampling_rate // 100 if isinstance(frames, int) else None


def _valid(model: Any, mask: np.ndarray | None, n: int, frames: int) -> np.ndarray:
    """(n, frames) bool: the frames that come of an item's own samples, by the model's function where it has one."""
    import torch

    if mask is not None and mask.shape[1] == frames:
        return np.asarray(mask, bool).copy()
    length = getattr(model, "_get_feat_extract_output_lengths", None)
    if mask is None or length is None:
        if mask is not None and not np.asarray(mask).all():
            raise ModelError("the encoder does not say which frames are padding; encode items of one length at a time")
        return np.ones((n, frames), bool)
    valid = np.asarray(length(torch.as_tensor(np.asarray(mask).sum(1))))
    return np.arange(frames)[None, :] < valid[:, None]


def _named(read: Any, item: Any, name: str, *more: Any) -> Any:
    try:
        return read(item, *more)
    except DataError as error:
        raise ItemError(name, f"item {name!r}: {error}") from None
