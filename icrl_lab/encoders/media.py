"""Images and sound as the models' preprocessors want them: RGB images, and mono float32 at one rate."""

from __future__ import annotations

import os
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np

from icrl_lab.encoders.base import pixels
from icrl_lab.errors import DataError, MissingExtra


def to_image(item: Any) -> Any:
    """An RGB PIL image of a path, a PIL image, or an array (h, w), (h, w, 3) of 0..255, (uint16) 0..65535 or (floats) 0..1."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise MissingExtra("images need pillow: pip install pillow") from None
    if isinstance(item, (str, os.PathLike)):
        try:
            with Image.open(item) as image:
                item = pixels(image)
        except FileNotFoundError:
            raise DataError(f"there is no image file {str(item)!r}") from None
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{str(item)!r} cannot be read as an image: {error}") from None
    elif isinstance(item, Image.Image):
        item = pixels(item)
    if isinstance(item, Image.Image):
        return item
    array = np.asarray(item)
    if (
        array.dtype.kind not in "biuf"
        or not array.size
        or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3))
    ):
        raise DataError(f"an image is an array (h, w) or (h, w, 3), not {array.dtype} of shape {array.shape}")
    if array.dtype.kind in "fb":
        array = array.astype(np.float64) * 255
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:
        array = array / 257
    if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 255):
        raise DataError("an image's numbers are whole, 0 to 255 (uint16: 0 to 65535), or fractions, 0 to 1")
    return Image.fromarray(np.rint(array).astype(np.uint8)).convert("RGB")


def sound(item: Any, rate: int, array_rate: int | None = None) -> np.ndarray:
    """(samples,) float32 at `rate` of a .wav path (channels averaged), or of a 1-d array at `array_rate`.

    Whole samples are fractions of their type's full scale, in a file as in an array: -1 to 1.
    """
    if isinstance(item, (str, os.PathLike)):
        from scipy.io import wavfile

        try:
            own, wave = wavfile.read(Path(item).expanduser())
        except FileNotFoundError:
            raise DataError(f"there is no sound file {str(item)!r}") from None
        except Exception as error:  # scipy's reader throws whatever a damaged header leads it to
            raise DataError(f"{str(item)!r} cannot be read as a .wav file: {error}") from None
    else:
        own, wave = array_rate or rate, np.asarray(item)
        if wave.ndim != 1 or wave.dtype.kind not in "iuf":
            raise DataError(f"sound is a 1-d array of samples, not {wave.dtype} of shape {wave.shape}")
        if wave.dtype.kind in "iu" and wave.dtype.itemsize > 4:  # Python's own whole numbers: of any width
            raise DataError(f"samples of {wave.dtype} have no full scale; give int16, int32, uint8, or fractions")
    if wave.dtype.kind in "iu":
        half = 2.0 ** (8 * wave.dtype.itemsize - 1)
        wave = (wave - half * (wave.dtype.kind == "u")) / half
    wave = wave.mean(1) if wave.ndim == 2 else wave
    if not wave.size or not np.isfinite(wave).all():
        raise DataError("the sound is empty or has a NaN or an infinity")
    if own != rate:
        from scipy.signal import resample_poly

        common = gcd(int(own), int(rate))
        wave = resample_poly(wave.astype(np.float64), rate // common, int(own) // common)
    return np.ascontiguousarray(wave, np.float32)
