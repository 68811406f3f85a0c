"""Grids of pictures: sizes, pixels, frames."""

from __future__ import annotations

import base64
import io

import pytest
import torch
from PIL import Image

from vdu.images.grids import PAIR_GAP, before_after, image_grid, png_data_uri


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_size_and_pixels(channels: int) -> None:
    images = torch.full((5, channels, 4, 6), -1.0)
    images[4] = 1.0
    sheet = image_grid(images, columns=3, scale=2)
    assert sheet.size == (3 * 12 + 2 * 2, 2 * 8 + 2)
    assert sheet.getpixel((0, 0)) == (0, 0, 0, 255)
    assert sheet.getpixel((14 + 11, 10 + 7)) == (255, 255, 255, 255)
    assert sheet.getpixel((12, 0))[3] == 0
    assert image_grid(images[:2], columns=3, scale=1).size == (2 * 6 + 2, 4)


def test_before_after_pairs_rows_and_frames_marked_originals() -> None:
    images = torch.zeros(5, 1, 8, 8)
    plain = before_after(images, images, 4, 3)
    marked = before_after(images, images, 4, 3, [True] + [False] * 4)
    assert plain.size == marked.size
    assert plain.height == 2 * (2 * 24 + 2) + PAIR_GAP + 2
    red = [pixel for _, pixel in marked.getcolors(100_000) if pixel[0] > 200 and pixel[1] < 60]
    assert red
    assert not [pixel for _, pixel in plain.getcolors(100_000) if pixel[0] > 200 and pixel[1] < 60]
    with pytest.raises(ValueError, match="pair up"):
        before_after(images, images[:4], 4)


def test_grids_take_broken_images_and_refuse_what_is_none() -> None:
    assert image_grid(torch.full((1, 1, 2, 2), float("nan")), 1).getpixel((0, 0))[0] == 128
    with pytest.raises(ValueError, match="expected"):
        image_grid(torch.zeros(2, 2, 4, 4), 2)


def test_png_data_uri_reads_back() -> None:
    sheet = image_grid(torch.zeros(2, 3, 4, 4), 2)
    kind, data = png_data_uri(sheet).split(",")
    assert kind == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == sheet.size
