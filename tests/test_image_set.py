"""Forget images from folders, files, tensors and rows; what cannot be read or does not fit is refused."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_pipeline
from PIL import Image

from vdu import VduError, unlearn
from vdu.images.image_set import load_image_set

ORIENTATION = 0x0112


def _folder(tmp_path: Path, count: int = 3) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(count):
        Image.new("L", (8, 8), 40 * i).save(folder / f"{i}.png")
    return folder


def test_a_missing_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(VduError, match="no folder"):
        unlearn(make_pipeline(), tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(VduError, match="no images in"):
        unlearn(make_pipeline(), tmp_path / "empty")


def test_a_corrupt_image_is_named_and_can_be_skipped(tmp_path):
    folder = _folder(tmp_path)
    (folder / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(VduError, match=r"bad\.png"):
        unlearn(make_pipeline(), folder)
    forget = load_image_set(folder, (1, 8, 8), skip_unreadable=True)
    assert len(forget.images) == 3
    assert "bad.png" in forget.notices[0]


def test_all_that_cannot_be_used_is_named_at_once(tmp_path):
    folder = _folder(tmp_path)
    (folder / "a.png").write_bytes(b"not a picture")
    for name in "bcdefgh":
        Image.new("L", (16, 8)).save(folder / f"{name}.png")
    with pytest.raises(VduError, match=r"a\.png.*; 7 more cannot be used: b\.png, c\.png, d\.png, e\.png, f\.png …"):
        load_image_set(folder, (1, 8, 8))
    with pytest.raises(VduError, match=r"b\.png.*aspect ratio.*; 6 more cannot be used"):
        load_image_set(folder, (1, 8, 8), skip_unreadable=True)


def test_colour_images_are_refused_by_a_grey_model(tmp_path):
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "red.png")
    with pytest.raises(VduError, match="colour image"):
        unlearn(make_pipeline(), tmp_path)


def test_another_aspect_ratio_is_refused_and_a_larger_square_is_resized(tmp_path):
    folder = _folder(tmp_path)
    Image.new("L", (16, 16)).save(folder / "large.png")
    assert any("resized" in n for n in load_image_set(folder, (1, 8, 8)).notices)
    Image.new("L", (16, 8)).save(folder / "wide.png")
    with pytest.raises(VduError, match="aspect ratio"):
        unlearn(make_pipeline(), folder)


def test_a_turned_photograph_is_learned_upright(tmp_path):
    upright = Image.fromarray(np.tile(np.arange(0, 256, 32, dtype=np.uint8), (8, 1)))
    turned, exif = upright.rotate(90), Image.Exif()
    exif[ORIENTATION] = 6  # to be turned by a quarter clockwise
    turned.save(tmp_path / "a.png", exif=exif)
    upright.save(tmp_path / "b.png")
    first, second = load_image_set(tmp_path, (1, 8, 8)).images
    assert torch.equal(first, second)


def test_sixteen_bits_keep_their_range_and_thirty_two_are_refused(tmp_path):
    levels = np.linspace(0, 65535, 64).reshape(8, 8)
    Image.fromarray(levels.astype(np.uint16)).save(tmp_path / "a.png")
    found = load_image_set(tmp_path, (1, 8, 8))
    torch.testing.assert_close(found.images[0, 0], torch.from_numpy(levels / 32767.5 - 1).float(), atol=5e-3, rtol=0)
    assert "images of 16 bits were converted to 8" in found.notices
    Image.fromarray(levels.astype(np.int32)).save(tmp_path / "b.tiff")
    with pytest.raises(VduError, match="32 bits a pixel"):
        load_image_set(tmp_path, (1, 8, 8))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "is a NoneType"),
        ({"image": None}, "is a dict"),
        (iter([]), "is a list_iterator"),
        ([Path("a.png"), Image.new("L", (8, 8))], "row 0 of the forget set has no PIL image"),
        (np.zeros((1, 8, 8)), "row 0 of the forget set has no PIL image"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.bool), "is bool"),
        (torch.zeros(2, 1, 8, 8).to_sparse(), "sparse"),
        (torch.zeros(0, 1, 8, 8), "no image"),
        (torch.full((1, 1, 8, 8), float("nan")), "not finite"),
    ],
)
def test_what_is_no_set_of_images_is_refused_with_what_would_be(given, said):
    with pytest.raises(VduError, match=said):
        load_image_set(given, (1, 8, 8))


def test_one_image_and_a_tensor_that_looks_unscaled():
    assert len(load_image_set(Image.new("L", (8, 8)), (1, 8, 8))) == 1
    with pytest.warns(UserWarning, match="forget tensor is below 0"):
        assert load_image_set(torch.rand(2, 1, 8, 8, requires_grad=True), (1, 8, 8)).notices
    assert not load_image_set(torch.rand(2, 1, 8, 8) - 0.5, (1, 8, 8)).notices


def test_hidden_folders_are_left_out_and_linked_ones_are_read(tmp_path):
    for place in "a", "a/.git", "elsewhere/b":
        (tmp_path / place).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / place / "x.png")
    (tmp_path / "a" / "b").symlink_to(tmp_path / "elsewhere" / "b")
    (tmp_path / "a" / "round").symlink_to(tmp_path / "a")
    found = load_image_set(tmp_path / "a", (1, 8, 8))
    assert [str(path.relative_to(tmp_path / "a")) for path in found.files] == ["b/x.png", "x.png"]


def test_of_a_film_the_first_picture_is_taken_and_said(tmp_path, monkeypatch):
    first, second = (Image.new("L", (8, 8), level) for level in (0, 255))
    first.save(tmp_path / "film.gif", save_all=True, append_images=[second])
    found = load_image_set(tmp_path, (1, 8, 8))
    assert float(found.images.max()) == -1
    assert any("several pictures" in notice for notice in found.notices)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(VduError, match=r"film\.gif has too many pixels"):
        load_image_set(tmp_path, (1, 8, 8))
    with pytest.raises(VduError, match="is no folder of images"):
        load_image_set(Path(__file__), (1, 8, 8))


def test_rows_are_turned_upright_and_an_orientation_that_cannot_be_read_is_none():
    upright = Image.fromarray(np.tile(np.arange(0, 256, 32, dtype=np.uint8), (8, 1)))
    turned, exif = upright.rotate(90), Image.Exif()
    exif[ORIENTATION] = 6
    turned.info["exif"] = exif.tobytes()
    turned.getexif()[ORIENTATION] = 6
    first, second = load_image_set([turned, upright], (1, 8, 8)).images
    assert torch.equal(first, second)
    broken = upright.copy()
    broken.getexif = _unreadable
    assert torch.equal(load_image_set([broken], (1, 8, 8)).images[0], second)


def _unreadable():
    raise struct.error("unpack requires a buffer of 4 bytes")


def test_a_pipe_that_is_called_like_a_picture_is_not_read(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    assert len(load_image_set(tmp_path, (1, 8, 8)).images) == 1
