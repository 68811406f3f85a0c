"""Contact sheets of image tensors, as PIL images and as PNG data URIs that an HTML file can carry inside itself."""

from __future__ import annotations

import base64
import io

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import interpolate

__all__ = ["before_after", "image_grid", "png_data_uri", "thumbnails"]

WIDEST = 128
GAP = 2
PAIR_GAP = 12
MARK = (220, 38, 38, 255)
CAPTION = (128, 128, 128, 255)  # legible on white and on black: the sheet's background is transparent


def thumbnails(images: Tensor) -> Tensor:
    """``images`` ``(N, C, H, W)`` on the CPU, no wider or higher than 128 px: a sheet stays a file to be mailed."""
    images = images.detach().float().cpu()
    widest = max(images.shape[-2:])
    return interpolate(images, scale_factor=WIDEST / widest, mode="area") if widest > WIDEST else images


def _pictures(images: Tensor, scale: int) -> list[Image.Image]:
    """Each image of ``(N, C, H, W)`` in [-1, 1], C = 1 or 3, upscaled by repeating pixels. NaN becomes mid-grey."""
    if images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) == 0:
        raise ValueError(f"expected (N, 1 or 3, H, W) with N > 0, got {tuple(images.shape)}")
    pixels = images.detach().float().cpu().nan_to_num(0.0).clamp(-1, 1)
    pixels = ((pixels + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)
    pixels = pixels.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    return [Image.fromarray(np.ascontiguousarray(p.permute(1, 2, 0).numpy())) for p in pixels]


def image_grid(images: Tensor, columns: int, scale: int = 2) -> Image.Image:
    """``images`` ``(N, C, H, W)`` row by row, 2 px apart, on transparent ground; at most ``columns`` in a row."""
    pictures = _pictures(images, scale)
    columns, (width, height) = min(columns, len(pictures)), pictures[0].size
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGBA", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP))
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % columns * (width + GAP), index // columns * (height + GAP)))
    return sheet


def _caption_font(height: int) -> tuple[ImageFont.FreeTypeFont | ImageFont.ImageFont, int]:
    """A font for rows of ``height`` pixels and the width of the caption column in it."""
    font = ImageFont.load_default(size=min(22, max(10, height // 4)))
    return font, int(max(font.getlength(word) for word in ("original", "unlearned"))) + 10


def before_after(
    before: Tensor, after: Tensor, columns: int, scale: int = 2, marks: list[bool] | None = None
) -> Image.Image:
    """Rows in pairs, the original's image above the unlearned model's from the same seed.

    ``marks[i]`` frames original ``i`` in red: it is of the forgotten class.
    """
    if before.shape != after.shape or (marks is not None and len(marks) != len(before)):
        raise ValueError(f"before {tuple(before.shape)}, after {tuple(after.shape)} and marks must pair up")
    upper, lower = _pictures(before, scale), _pictures(after, scale)
    columns, (width, height) = min(columns, len(upper)), upper[0].size
    font, left = _caption_font(height)
    pair = 2 * height + GAP + PAIR_GAP
    rows = -(-len(upper) // columns)
    sheet = Image.new("RGBA", (left + columns * (width + GAP), rows * pair - PAIR_GAP + 2))
    pen = ImageDraw.Draw(sheet)
    for row in range(rows):
        for word, y in (("original", row * pair + 1), ("unlearned", row * pair + 1 + height + GAP)):
            pen.text((0, y + height // 2), word, fill=CAPTION, font=font, anchor="lm")
    for index, (first, second) in enumerate(zip(upper, lower, strict=True)):
        x, y = left + 1 + index % columns * (width + GAP), index // columns * pair + 1
        sheet.paste(first, (x, y))
        sheet.paste(second, (x, y + height + GAP))
        if marks is not None and marks[index]:
            pen.rectangle((x - 1, y - 1, x + width, y + height), outline=MARK, width=1 + scale)
    return sheet


def png_data_uri(image: Image.Image) -> str:
    """``image`` as ``data:image/png;base64,…``."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
