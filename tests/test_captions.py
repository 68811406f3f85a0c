"""What the forget images are said to show, and prompts, that do not fit are refused."""

import json
import shutil

import pytest
import torch
from PIL import Image
from tiny_stable_diffusion import CAPTIONS, unlearned, write_captions

from vdu import VduError, unlearn
from vdu.backbone import load_backbone
from vdu.images.image_set import load_image_set
from vdu.prompts import Prompts, read_prompts, without
from vdu.text.captions import forget_captions

pytestmark = pytest.mark.usefixtures("few_samples")


def test_captions_of_csv_jsonl_one_prompt_and_rows(pipeline, folder):
    images = load_image_set(folder, (3, 16, 16))
    backbone = load_backbone(pipeline)
    assert forget_captions(backbone, folder, images) == ("",) * 4
    (folder / "metadata.jsonl").write_text(
        "\n".join(json.dumps({"file_name": n, "text": t}) for n, t in reversed(CAPTIONS.items()))
    )
    assert forget_captions(load_backbone(pipeline), folder, images) == tuple(CAPTIONS.values())
    asked = load_backbone(pipeline, Prompts(forget=("a pear",)))
    assert forget_captions(asked, folder, images) == ("a pear",) * 4
    assert asked.prompts.forget == ("a pear",)
    rows = [{"image": Image.new("RGB", (16, 16)), "text": f"a {fruit}"} for fruit in ("apple", "pear")]
    loaded = load_image_set(rows, (3, 16, 16))
    assert forget_captions(load_backbone(pipeline), rows, loaded) == ("a apple", "a pear")
    with pytest.raises(VduError, match="1 of 2 rows have no text"):
        forget_captions(load_backbone(pipeline), [rows[0], rows[1] | {"text": None}], loaded)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda f: write_captions(f, CAPTIONS | {"9.png": "a pear"}), "no image there: 9.png"),
        (lambda f: write_captions(f, CAPTIONS | {"/absent/9.png": "a pear"}), "no image there: /absent/9.png"),
        (lambda f: write_captions(f, CAPTIONS | {"metadata.csv": "a pear"}), "no image there: metadata.csv"),
        (lambda f: write_captions(f, {"0.png": "a pear"}), "without a caption: 1.png, 2.png, 3.png"),
        (lambda f: (f / "metadata.csv").write_text("file,words\n0.png,a pear\n"), "no file_name or no text"),
        (lambda f: (f / "metadata.jsonl").write_text("no json"), "cannot read the captions"),
        (lambda f: write_captions(f, CAPTIONS | {"1.png": "ξξ ξξ"}), "knows no word"),
        (lambda f: [shutil.copy(__file__, f / n) for n in ("metadata.csv", "metadata.jsonl")], "keep one"),
    ],
)
def test_captions_that_do_not_fit_are_refused(write, said, pipeline, folder):
    write(folder)
    with pytest.raises(VduError, match=said):
        unlearned(pipeline, folder)


def test_prompts_that_cannot_be_used_are_refused(pipeline, folder, tmp_path):
    with pytest.raises(VduError, match="3 prompts for 4"):
        unlearned(pipeline, folder, prompts=Prompts(forget=("a", "red", "pear")))
    with pytest.raises(VduError, match="at least 1"):
        Prompts(guidance_scale=0.5)
    from conftest import make_pipeline as make_ddpm

    with pytest.raises(VduError, match="takes no prompts"):
        unlearn(make_ddpm(), torch.zeros(2, 1, 8, 8), prompts=Prompts())


def test_a_file_of_prompts_may_come_from_any_editor(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa red apple\r\n\r\na blue\u2028pear\r\n".encode())
    assert read_prompts(path) == ("a red apple", "a blue\u2028pear")


def test_what_does_not_stand_in_a_text_leaves_it_as_it_is():
    for text in ("🐱", "a  red apple", "notoriety", ""):
        assert without("noto", text) == text
    assert without("noto", "a  noto apple") == "a apple"
    assert without("noto", "noto 🐱!") == ""


def test_one_picture_by_itself_has_no_caption(pipeline):
    backbone, picture = load_backbone(pipeline, Prompts()), Image.new("RGB", (16, 16))
    assert forget_captions(backbone, picture, load_image_set(picture, (3, 16, 16))) == ("",)
