"""Encoded pictures (PNG, JPEG, …) as pixels of the size that the corpus has; nothing is resized silently."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from vdu.errors import VduError

__all__ = ["decode"]


def decode(encoded: bytes, shape: tuple[int, int, int], where: str) -> np.ndarray:
    """Pixels ``shape`` ``(C, H, W)`` uint8 of one picture; grey ones of a colour corpus get three equal channels.

    Raises `VduError`, which says ``where``, for bytes that are no picture and for another size.
    """
    channels, height, width = shape
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if image.size != (width, height):
                raise VduError(
                    f"{where} is {image.size[0]}x{image.size[1]} and the corpus {width}x{height}: give its own images"
                )
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise VduError(
            f"{where} is not a readable image ({type(error).__name__}): fetch the corpus again, or remove it"
        ) from error
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
