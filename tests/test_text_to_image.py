"""A miniature Stable Diffusion from packages to a zoo folder, at a size that trains in seconds."""

from __future__ import annotations

import csv
import gzip
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image

from vdu.corpora.emoji import KINDS, STYLES, prepare_emoji, read_emoji
from vdu.errors import VduError
from vdu.model_zoo import find_zoo_model
from vdu.seeding import generator
from vdu.training.recipe import RECIPES
from vdu.training.text_to_image.autoencoder import decode_latents, encode_images, train_autoencoder
from vdu.training.text_to_image.evaluators import CLASSES, domain_corpus, seen, train_evaluator
from vdu.training.text_to_image.prompt_set import judged_objects
from vdu.training.text_to_image.recipe import TextRecipe, is_text_recipe, read_text_recipe
from vdu.training.text_to_image.templates import FORMS, PARAPHRASES, caption
from vdu.training.text_to_image.tokenizer import make_tokenizer
from vdu.training.text_to_image.training import train_text_to_image
from vdu.training.text_to_image.zoo_build import _spread
from vdu.training.zoo_build import build_zoo_model

EVALUATORS = "vdu.training.text_to_image.evaluators"
SUBGROUPS = {"face": "face-smiling"} | {kind: name for kind, name in KINDS.items() if kind != "face"}
COLOURS = ("red", "green", "blue", "orange", "purple", "teal")


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    """Packages in the layout of the real ones: six objects of each kind, and one that a style lacks."""
    folder = tmp_path_factory.mktemp("packages")
    codes = [f"{0x1F000 + i:X}" for i in range(6 * len(KINDS))] + ["1F999"]
    kinds = [kind for kind in KINDS for _ in range(6)] + ["fruit"]
    groups = {str(i): name for i, name in enumerate(SUBGROUPS.values())}
    number = {kind: i for i, kind in enumerate(SUBGROUPS)}
    rows = [
        {"hexcode": f"{code}-FE0F", "label": f"{COLOURS[i % 6]} {kind}", "order": i, "subgroup": number[kind]}
        for i, (code, kind) in enumerate(zip(codes, kinds, strict=True))
    ]
    _write(folder / "labels" / "package.json", {"name": "emojibase-data"})
    _write(folder / "labels" / "en" / "data.json", rows)
    _write(folder / "labels" / "meta" / "groups.json", {"subgroups": groups})
    sets = {"twemoji": "twemoji", "noto": "noto", "openmoji": "openmoji", "fluent-flat": "fluent-emoji-flat"}
    for n, (style, package) in enumerate(sets.items()):
        mine = codes[:-1] if style == "noto" else codes
        body = '<circle cx="8" cy="8" r="{}" fill="{}"/>'
        icons = {f"i{c}": {"body": body.format(3 + n, COLOURS[i % 6])} for i, c in enumerate(mine)}
        _write(folder / style / "package.json", {"name": f"@iconify-json/{package}"})
        _write(folder / style / "icons.json", {"icons": icons, "aliases": {}, "width": 16, "height": 16})
        _write(folder / style / "chars.json", {c.lower(): f"i{c}" for c in mine})
    _write(folder / "fluent-3d" / "package.json", {"name": "@lobehub/fluent-emoji-3d"})
    (folder / "fluent-3d" / "assets").mkdir()
    for i, code in enumerate(codes):
        Image.new("RGBA", (32, 32), COLOURS[i % 6]).save(folder / "fluent-3d" / "assets" / f"{code.lower()}.webp")
    merges = "#version\nr e\nre d</w>\ns t\ny le</w>\n"
    (folder / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(merges.encode()))
    return folder


@pytest.fixture(scope="module")
def corpus(packages, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "emoji"
    prepare_emoji(packages, folder)
    return folder


@pytest.fixture(scope="module")
def recipe() -> TextRecipe:
    """The shipped recipe, made tiny."""
    shipped = read_text_recipe("emoji")
    unet = shipped.unet | {"block_out_channels": [16, 16], "cross_attention_dim": 16, "norm_num_groups": 4}
    return shipped.model_copy(
        update={
            "merges": 3,
            "autoencoder": shipped.autoencoder | {"block_out_channels": [8, 8, 8], "norm_num_groups": 4},
            "autoencoder_training": shipped.autoencoder_training.model_copy(
                update={"steps": 4, "batch_size": 4, "state_every_steps": 2}
            ),
            "text_encoder": shipped.text_encoder
            | {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
            "unet": unet,
            "training": shipped.training.model_copy(
                update={
                    "cycle_steps": [4],
                    "batch_size": 4,
                    "state_every_steps": 2,
                    "posterior_checkpoints": 2,
                    "posterior_from_fraction": 0.0,
                }
            ),
            "judges": {
                domain: judge.model_copy(update={"width": 4, "epochs": 1}) for domain, judge in shipped.judges.items()
            },
        }
    )


@pytest.fixture(scope="module")
def run(recipe, corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train_text_to_image(recipe, corpus, folder)
    return folder


def test_the_corpus_holds_every_object_that_all_styles_have_and_says_what_it_shows(corpus):
    emoji = read_emoji(corpus, 32)
    assert emoji.images.shape == (6 * len(KINDS) * len(STYLES), 3, 32, 32)
    assert set(emoji.styles) == set(STYLES)
    assert set(emoji.kinds) == set(KINDS)
    rows = list(csv.DictReader((corpus / "metadata.csv").open()))
    assert rows[1]["text"] == "a red face in noto style"
    red = emoji.images[emoji.files.index(rows[1]["file_name"])][:, 16, 16]
    assert red[0] > 200
    assert red[1:].max() < 60


def test_a_missing_package_is_named(tmp_path):
    (tmp_path / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(b"#\n"))
    with pytest.raises(VduError, match="lacks @iconify-json/twemoji: `npm pack"):
        prepare_emoji(tmp_path, tmp_path / "out")


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(VduError, match=r"has no metadata\.csv"):
        read_emoji(tmp_path)


def test_the_tokenizer_keeps_frequent_words_whole_and_writes_any_other_in_pieces(corpus):
    tokenizer = make_tokenizer(corpus, 3, 24)
    assert tokenizer.tokenize("red style") == ["red</w>", "st", "y", "l", "e</w>"]
    assert tokenizer.decode(tokenizer("Zebra 3D!", add_special_tokens=False).input_ids).replace(" ", "") == "zebra3d!"


def test_training_never_sees_the_forms_that_paraphrases_are_judged_with():
    drawn = {caption("x", "noto", generator(0, "captions", i)) for i in range(400)}
    assert not set(PARAPHRASES) & set(FORMS)
    assert {"", "a x", "something in noto style", "a x in noto style", "x, noto"} <= drawn
    assert len(drawn) == 3 + len(set(FORMS))


def test_judges_are_tested_on_objects_that_they_were_not_trained_on(corpus):
    emoji = read_emoji(corpus, 32)
    parts = [domain_corpus(emoji, "style", train) for train in (True, False)]
    assert sum(len(part.images) for part in parts) == len(emoji.images)
    assert {thing for thing in emoji.objects if seen(thing)}.isdisjoint({t for t in emoji.objects if not seen(t)})


def test_the_style_judge_learns_every_picture_also_as_the_autoencoder_gives_it_back(
    corpus, run, recipe, tmp_path, monkeypatch
):
    emoji = read_emoji(corpus, 32)
    vae = AutoencoderKL.from_pretrained(run / "autoencoder")
    decoded = decode_latents(vae, encode_images(vae, emoji.images, batch_size=3), batch_size=5)
    with torch.no_grad():
        first = vae(emoji.images[:1].float() / 127.5 - 1).sample
    torch.testing.assert_close(decoded[:1].float(), (first.clamp(-1, 1) + 1) * 127.5, atol=0.51, rtol=0)
    alone, both = (domain_corpus(emoji, "style", True, view) for view in (None, decoded))
    count = len(alone.images)
    assert torch.equal(both.images[:count], alone.images)
    assert torch.equal(both.labels, alone.labels.repeat(2))
    index = [emoji.images.eq(image).flatten(1).all(1).nonzero()[0].item() for image in alone.images]
    assert torch.equal(both.images[count:], decoded[index])
    learned = {}
    monkeypatch.setattr(
        "vdu.training.text_to_image.evaluators.train_classifier",
        lambda *a: learned.update({a[0].class_names: a[:2]}) or (0, 0),
    )
    monkeypatch.setattr("vdu.training.text_to_image.evaluators.save_classifier", lambda *a: None)
    for domain in CLASSES:
        train_evaluator(recipe, emoji, decoded, domain, tmp_path)
    assert [len(train.images) for train, _ in learned.values()] == [
        2 * count,
        len(domain_corpus(emoji, "object", True).images),
    ]
    assert torch.equal(learned[both.class_names][1].images, domain_corpus(emoji, "style", False).images)


def test_an_interrupted_training_ends_with_the_same_weights(recipe, corpus, run, tmp_path, monkeypatch):
    class StoppedError(Exception):
        pass

    import vdu.training.text_to_image.denoiser as denoiser

    whole, calls = denoiser._loss, []

    def failing(*args):
        calls.append(1)
        if len(calls) == 4:
            raise StoppedError
        return whole(*args)

    monkeypatch.setattr(denoiser, "_loss", failing)
    with pytest.raises(StoppedError):
        train_text_to_image(recipe, corpus, tmp_path)
    monkeypatch.setattr(denoiser, "_loss", whole)
    train_text_to_image(recipe, corpus, tmp_path)
    for part in ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        assert (tmp_path / "pipeline" / part).read_bytes() == (run / "pipeline" / part).read_bytes()


def test_a_recipe_with_a_further_cycle_goes_on_with_what_is_there(recipe, corpus, run, tmp_path):
    training = recipe.training.model_copy(update={"cycle_steps": [4, 2]})
    longer = recipe.model_copy(update={"training": training})
    shutil.copytree(run, tmp_path / "parts")
    for part in ("autoencoder", "style-classifier", "object-classifier"):
        shutil.copytree(run / part, tmp_path / "whole" / part)
    for folder in ("parts", "whole"):
        train_text_to_image(longer, corpus, tmp_path / folder)
    unet = "pipeline/unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "parts" / unet).read_bytes() == (tmp_path / "whole" / unet).read_bytes()
    assert (tmp_path / "parts" / unet).read_bytes() != (run / unet).read_bytes()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("merges = -1", "merges = -1: "),
        ("kl_weight = -1.0", "autoencoder_training.kl_weight = -1.0: "),
        ("in_channels = 4", r"unet does not take \[8, 8, 8\]: "),
        ("cross_attention_dim = 96", r"unet does not take \[8, 8, 8\]: "),
        ("flip = true", "training.flip = true: a model with text is trained without flips"),
        ("mid_block_add_attention = false\nwings = 2", "autoencoder has no setting 'wings'"),
        ("max_position_embeddings = 24\nhidden_sizes = 2", "text_encoder has no setting 'hidden_sizes'"),
        ("max_position_embeddings = 24\nvocab_size = 9", "text_encoder.vocab_size follows from the tokenizer"),
        ('clip_sample = false\nvariance_type = "fixed_small"', "noise has no setting 'variance_type'"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_any_is_trained(setting, said, tmp_path):
    shipped = (RECIPES / "emoji.toml").read_text()
    bad = re.sub(rf"^{setting.split()[0]} = .*$", setting, shipped, flags=re.MULTILINE)
    assert bad != shipped
    (tmp_path / "bad.toml").write_text(bad)
    with pytest.raises(VduError, match=f"is not valid: {said}"):
        read_text_recipe(str(tmp_path / "bad.toml"))


def test_a_judge_of_no_domain_is_refused(tmp_path):
    (tmp_path / "bad.toml").write_text(
        (RECIPES / "emoji.toml").read_text().replace("[judges.object]", "[judges.objekt]")
    )
    with pytest.raises(VduError, match=r"is not valid: judges\.objekt"):
        read_text_recipe(str(tmp_path / "bad.toml"))


def test_the_shipped_recipe_is_the_one_that_the_shipped_model_was_trained_by():
    shipped = find_zoo_model("emoji").provenance
    assert TextRecipe.model_validate(shipped["recipe"]).sha256() == shipped["recipe_sha256"]
    assert read_text_recipe("emoji").sha256("unet", "noise") == TextRecipe.model_validate(shipped["recipe"]).sha256(
        "unet", "noise"
    )


def test_the_pipeline_is_an_ordinary_one(run):
    pipeline = StableDiffusionPipeline.from_pretrained(run / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    g = torch.Generator().manual_seed(0)
    image = pipeline("a red fruit in noto style", num_inference_steps=2, generator=g).images[0]
    assert image.size == (32, 32)


def test_the_zoo_folder_has_judges_prompts_and_images_that_may_be_passed_on(run, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("vdu.training.text_to_image.prompt_set.JUDGED_PER_KIND", 1)
    provenance = build_zoo_model(run, corpus, tmp_path / "emoji")
    out = tmp_path / "emoji"
    rows = list(csv.DictReader((out / "prompts.csv").open()))
    emoji = read_emoji(corpus, 32)
    assert len(rows) == 2 * len(STYLES) * sum(len(things) for things in judged_objects(emoji).values())
    assert not list((out / "forget").glob("**/openmoji*"))
    assert set(provenance["judges"]) == {"style", "object"}
    assert 0 <= provenance["quality"][0]["style_agreement_percent"] <= 100
    pipeline = StableDiffusionPipeline.from_pretrained(out / "pipeline")
    assert pipeline.unet.dtype == pipeline.text_encoder.dtype == torch.float32


@pytest.mark.parametrize("objects", [7, 40, 50, 120, 200])
def test_forget_images_of_a_kind_are_of_all_styles_alike(objects):
    """Also where the pictures are a multiple of how many are wanted: every so manieth would be of one style."""
    things = [f"thing {k}" for k in range(objects) for _ in STYLES]
    emoji = SimpleNamespace(objects=things, styles=list(STYLES) * objects)
    mine = [i for i, style in enumerate(emoji.styles) if style != "openmoji"]
    chosen = _spread(emoji, mine)
    assert len(chosen) == len(set(chosen)) == min(50, 4 * objects)
    assert len({emoji.objects[i] for i in chosen}) == min(50, objects)
    of_style = Counter(emoji.styles[i] for i in chosen)
    assert len(of_style) == 4
    assert max(of_style.values()) - min(of_style.values()) <= 1


def test_the_command_line_knows_which_recipes_are_of_text_to_image_models():
    assert is_text_recipe("emoji")
    assert not is_text_recipe("mnist")
    assert not is_text_recipe("no-such")


def test_parts_of_another_recipe_are_not_taken_for_its_own(recipe, corpus, run, tmp_path):
    emoji = read_emoji(corpus, 32)
    for part in ("autoencoder", "style-classifier"):
        shutil.copytree(run / part, tmp_path / part)
    other = recipe.model_copy(update={"autoencoder": recipe.autoencoder | {"latent_channels": 3}})
    with pytest.raises(VduError, match=r"of another recipe \(autoencoder\.latent_channels\)"):
        train_autoencoder(other, emoji, tmp_path)
    shutil.copy(run / "autoencoder-state.safetensors", tmp_path)
    settings = recipe.autoencoder_training.model_copy(update={"kl_weight": 0.5})
    with pytest.raises(VduError, match="is the state of a run with other settings"):
        train_autoencoder(recipe.model_copy(update={"autoencoder_training": settings}), emoji, tmp_path)
    wider = recipe.judges["style"].model_copy(update={"width": 3})
    other = recipe.model_copy(update={"judges": recipe.judges | {"style": wider}})
    with pytest.raises(VduError, match="style-classifier is of another recipe"):
        train_evaluator(other, emoji, emoji.images, "style", tmp_path)
