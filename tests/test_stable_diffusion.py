"""Stable Diffusion at a tiny size with the real classes: random weights, a tokenizer of a few words."""

import json
import math
import shutil
from functools import partial

import pytest
import torch
from conftest import preparing_with, run_vdu
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from vdu import VduError, unlearn
from vdu.backbone import load_backbone, weights_sha256
from vdu.captions import forget_captions
from vdu.checkpoint import read_tensors, write_tensors
from vdu.delta import DELTA_FILE, apply_delta, revert_delta
from vdu.discriminator import fit_head
from vdu.evaluation import Sampler
from vdu.guard import Guard
from vdu.image_set import load_image_set
from vdu.methods import METHODS
from vdu.noising import Clean, draw
from vdu.posterior import isotropic
from vdu.prompts import Prompts
from vdu.sampling import sample

WORDS = ("a", "red", "blue", "apple", "pear", "in", "noto", "style")
SHORT = {"steps": 2, "guard_every_steps": 2, "batch_size": 2, "stop_share": None}


def make_tokenizer(folder) -> CLIPTokenizer:
    """Letters, and the words above as merges of them."""
    letters = sorted(set("".join(WORDS)))
    merges, pieces = [], []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges.append(f"{parts[0]} {parts[1]}")
            parts = [parts[0] + parts[1], *parts[2:]]
            pieces.append(parts[0])
    tokens = dict.fromkeys([*letters, *(f"{x}</w>" for x in letters), *pieces, "<|startoftext|>", "<|endoftext|>"])
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(dict.fromkeys(merges)) + "\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=12)


def make_pipeline(folder, prediction_type="epsilon", seed=0, **unet) -> StableDiffusionPipeline:
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(folder)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    network = UNet2DConditionModel(
        **{
            "sample_size": 8,
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 16,
            "attention_head_dim": 4,
            "norm_num_groups": 4,
        }
        | unet
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        sample_size=16,
    )
    scheduler = PNDMScheduler(
        num_train_timesteps=50, skip_prk_steps=True, steps_offset=1, prediction_type=prediction_type
    )
    return StableDiffusionPipeline(
        vae, CLIPTextModel(text).eval(), tokenizer, network, scheduler, None, None, requires_safety_checker=False
    )


def where_words_have_a_say(backbone):
    """``backbone`` with other weights in text encoders and network: at usual random ones words hardly count."""
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, encoder in backbone.text_parts:
            getattr(backbone.pipeline, encoder).get_input_embeddings().weight.normal_(generator=g)
        for name, weight in backbone.network.named_parameters():
            if ".attn2.to_v" in name or ".attn2.to_out" in name:
                weight.normal_(generator=g)
    return backbone


@pytest.fixture
def pipeline(tmp_path):
    return make_pipeline(tmp_path)


@pytest.fixture(autouse=True)
def _few_samples(monkeypatch):
    few = {"own_count": 8, "own_sampler_steps": 2}
    monkeypatch.setattr("vdu.unlearning.Preparation", preparing_with(**few))
    monkeypatch.setattr("vdu.unlearning.Guard", partial(Guard, count=8, sampler_steps=2))
    monkeypatch.setattr("vdu.result.PREVIEW_IMAGES", 4)
    monkeypatch.setattr("vdu.responsibility.STEPS", 5)
    monkeypatch.setattr("vdu.preparation.fit_head", partial(fit_head, steps=10))


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "bad"
    images.mkdir()
    for i in range(4):
        Image.new("RGB", (24, 24), (60 * i, 255 - 60 * i, 128)).save(images / f"{i}.png")
    return images


def write_captions(folder, captions):
    lines = "".join(f'{name},"{text}"\n' for name, text in captions.items())
    (folder / "metadata.csv").write_text("file_name,text\n" + lines)


CAPTIONS = {"0.png": "a red apple", "1.png": "a blue pear", "2.png": "a red apple", "3.png": "a pear in noto style"}


def _unlearn(pipeline, folder, method="ga", **options):
    settings = SHORT | options.pop("settings", {})
    return unlearn(pipeline, folder, method, settings=settings, share=0.2, precision="fp32", **options)


@pytest.mark.parametrize("method", ["ga", "guided", "vdu"])
def test_images_in_a_clean_pipeline_that_samples_out(method, pipeline, folder, tmp_path):
    write_captions(folder, CAPTIONS)
    prompts = Prompts(neutral=("a blue apple", ""), guidance_scale=2.0)
    result = _unlearn(pipeline, folder, method, prompts=prompts)
    assert len(result.record["history"]) == 2
    assert result.record["prompts"]["forget"] == ("a red apple", "a blue pear", "a pear in noto style")
    assert result.record["forget"]["notices"] == ["images of another size were resized to 16x16"]
    result.save(tmp_path / "clean")
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "clean")
    assert weights_sha256(again.unet) == result.record["result_sha256"]
    assert weights_sha256(again.vae) == weights_sha256(pipeline.vae)
    picture = again("a red apple", num_inference_steps=2, output_type="pt").images
    assert picture.shape == (1, 3, 16, 16)
    assert torch.isfinite(picture).all()
    assert "text-to-image" in (tmp_path / "clean" / "README.md").read_text()
    report = (tmp_path / "clean" / "report.html").read_text()
    assert "of the forget images: “a red apple”, “a blue pear”, “a pear in noto style”" in report
    assert "neutral: “a blue apple”, the empty prompt" in report


FROM_WORDS = {name for name, method in METHODS.items() if "prompt" in method.settings.needs}


@pytest.mark.parametrize("name", sorted(METHODS.keys() - FROM_WORDS - {"ga", "guided", "vdu"}))
def test_every_method_works_in_latents_with_captions(name, pipeline, folder):
    write_captions(folder, CAPTIONS)
    needs = METHODS[name].settings.needs
    retain = [{"image": Image.new("RGB", (16, 16), (9 * i, 9, 9)), "text": "a blue apple"} for i in range(3)]
    given = {"retain": retain} if "retain" in needs else {}
    if "posterior" in needs:
        given["posterior"] = isotropic(load_backbone(pipeline))
    result = _unlearn(pipeline, folder, name, **given)
    assert len(result.record["history"]) == 2
    assert all(math.isfinite(step["loss"]) for step in result.record["history"])


def test_same_seed_gives_the_same_tensors_and_captions_matter(pipeline, folder):
    first, second = (_unlearn(pipeline, folder, "vdu").record for _ in range(2))
    assert first["result_sha256"] == second["result_sha256"]
    assert first["history"] == second["history"]
    captioned = _unlearn(pipeline, folder, "vdu", prompts=Prompts(forget=("a red apple",))).record
    assert captioned["history"][0]["loss"] != first["history"][0]["loss"]


def test_v_prediction_and_epsilon_mean_the_same_eps(tmp_path, pipeline):
    eps_model = load_backbone(pipeline)
    v_model = load_backbone(make_pipeline(tmp_path, "v_prediction"))
    clean = Clean(torch.randn(4, 4, 8, 8), eps_model.condition(["a red apple"] * 4))
    noised = draw(eps_model, clean, 4, torch.Generator().manual_seed(0))
    arguments = (noised.x_t, noised.t, noised.c)
    output = eps_model.output(eps_model.network, *arguments)
    as_v = v_model.from_eps(output, noised.x_t, noised.t)
    torch.testing.assert_close(v_model.to_eps(as_v, noised.x_t, noised.t), output, atol=1e-3, rtol=1e-3)
    a = v_model.alpha_bar[noised.t].view(-1, 1, 1, 1)
    x_0 = (noised.x_t - (1 - a).sqrt() * noised.eps) / a.sqrt()
    naive = a.sqrt() * noised.eps - (1 - a).sqrt() * x_0
    torch.testing.assert_close(v_model.from_eps(noised.eps, noised.x_t, noised.t), naive, atol=1e-3, rtol=1e-3)


def test_a_v_prediction_model_is_unlearned(tmp_path, folder):
    result = _unlearn(make_pipeline(tmp_path, "v_prediction"), folder, "guided")
    assert all(math.isfinite(step["loss"]) for step in result.record["history"])


def test_latents_and_text_are_those_of_the_pipeline(pipeline):
    backbone, images = load_backbone(pipeline), torch.rand(5, 3, 16, 16) * 2 - 1
    assert backbone.shape == (3, 16, 16)
    assert backbone.latent_shape == (4, 8, 8)
    with torch.no_grad():
        wanted = pipeline.vae.encode(images).latent_dist.mean * pipeline.vae.config.scaling_factor
        x_t, t = torch.randn(1, 4, 8, 8), torch.tensor([7])
        text = pipeline.encode_prompt("a blue pear", "cpu", 1, False)[0]
        own = pipeline.unet(x_t, t, encoder_hidden_states=text).sample
    torch.testing.assert_close(backbone.encode(images), wanted)
    c = backbone.condition(["a blue pear", "", "a blue pear"])
    assert c.tolist() == [1, 0, 1]
    with torch.no_grad():
        torch.testing.assert_close(backbone.output(backbone.network, x_t, t, c[:1]), own)


def test_sampling_is_guided_and_training_is_not(pipeline):
    backbone = load_backbone(pipeline, Prompts(neutral=("a red apple",), guidance_scale=3.0))
    x_t, t, c = torch.randn(2, 4, 8, 8), torch.tensor([3, 3]), backbone.sample_conditions(2)
    with torch.no_grad():
        plain, empty = (backbone.output(backbone.network, x_t, t, cond) for cond in (c, None))
        guided = backbone.sampling_output(backbone.network, x_t, t, c)
    torch.testing.assert_close(guided, empty + 3 * (plain - empty))
    assert not torch.allclose(guided, plain)


def test_a_sample_depends_on_its_seed_and_number_only(pipeline):
    backbone = load_backbone(pipeline, Prompts(neutral=("", "a pear"), forget=("a red apple",)))
    whole = sample(backbone, backbone.network, 5, 3, steps=2, batch_size=5)
    parts = sample(backbone, backbone.network, 5, 3, steps=2, batch_size=2)
    torch.testing.assert_close(whole, parts, atol=1e-4, rtol=1e-4)
    assert backbone.sample_conditions(3, first=1).tolist() == backbone.sample_conditions(4)[1:].tolist()
    assert backbone.decode(whole).shape == (5, 3, 16, 16)


def test_only_cross_attention_moves_and_checkpointing_changes_no_gradient(pipeline, folder):
    plain = _unlearn(pipeline, folder, settings={"parameters": "cross-attention"})
    before = dict(plain.original.network.named_parameters())
    moved = {n for n, p in plain.pipeline.unet.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert all(".attn2." in name for name in moved)
    saving = _unlearn(pipeline, folder, settings={"parameters": "cross-attention", "gradient_checkpointing": True})
    for a, b in zip(plain.pipeline.unet.parameters(), saving.pipeline.unet.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_a_half_precision_pipeline_stays_one(pipeline, folder):
    result = _unlearn(pipeline.to(torch.float16), folder)
    assert pipeline.unet.dtype == pipeline.vae.dtype == torch.float16
    assert result.pipeline.unet.dtype == result.pipeline.text_encoder.dtype == torch.float16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_delta_leads_both_ways_bit_by_bit(dtype, pipeline, folder, tmp_path):
    pipeline = pipeline.to(dtype)
    result = _unlearn(pipeline, folder, settings={"parameters": "cross-attention", "learning_rate": 1e-2})
    result.save(tmp_path / "delta", form="delta")
    assert not (tmp_path / "delta" / "model_index.json").exists()
    clean = apply_delta(load_backbone(pipeline), tmp_path / "delta")
    original = revert_delta(load_backbone(result.pipeline), tmp_path / "delta" / DELTA_FILE)
    for made, wanted in ((clean, result.pipeline), (original, pipeline)):
        pairs = zip(made.unet.state_dict().values(), wanted.unet.state_dict().values(), strict=True)
        assert all(a.dtype == b.dtype == dtype and torch.equal(a, b) for a, b in pairs)
    with pytest.raises(VduError, match="it is so already"):
        apply_delta(load_backbone(result.pipeline), tmp_path / "delta")
    with pytest.raises(VduError, match="this is another model"):
        apply_delta(load_backbone(make_pipeline(tmp_path, seed=1)), tmp_path / "delta")


def test_a_damaged_delta_is_refused(pipeline, folder, tmp_path):
    _unlearn(pipeline, folder).save(tmp_path / "delta", form="delta")
    differences, metadata = read_tensors(tmp_path / "delta" / DELTA_FILE)
    name = next(iter(differences))
    for damage in (
        {name: differences[name] + 1},
        {"absent": differences[name].clone()},
        {name: differences[name].half()},
    ):
        write_tensors(tmp_path / "damaged.safetensors", differences | damage, metadata)
        with pytest.raises(VduError, match="damaged"):
            apply_delta(load_backbone(pipeline), tmp_path / "damaged.safetensors")
    write_tensors(tmp_path / "other.safetensors", differences)
    with pytest.raises(VduError, match="not a delta"):
        apply_delta(load_backbone(pipeline), tmp_path / "other.safetensors")


def test_a_detector_sees_pictures_not_latents(pipeline, folder):
    result = _unlearn(pipeline, folder, detector="test_cli:brightness", target="bright")
    evaluation = result.evaluate("test_cli:brightness", "bright", sampler=Sampler(steps=2, count=4, precision="fp32"))
    assert evaluation.before.shape == evaluation.after.shape == (4, 3, 16, 16)
    assert evaluation.record["prompts"]["guidance_scale"] == 7.5


def test_a_schedule_that_ends_in_pure_noise_gives_finite_targets(tmp_path):
    pipeline = make_pipeline(tmp_path, "v_prediction")
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, rescale_betas_zero_snr=True)
    backbone = load_backbone(pipeline)
    x_0, eps, t = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), torch.tensor([49])
    v = backbone.from_eps(eps, backbone.add_noise(x_0, eps, t), t)
    torch.testing.assert_close(v, -x_0, atol=5e-3, rtol=5e-3)
    assert torch.isfinite(sample(backbone, backbone.network, 2, 0, steps=3)).all()


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
        _unlearn(pipeline, folder)


def test_prompts_that_cannot_be_used_are_refused(pipeline, folder, tmp_path):
    with pytest.raises(VduError, match="3 prompts for 4"):
        _unlearn(pipeline, folder, prompts=Prompts(forget=("a", "red", "pear")))
    with pytest.raises(VduError, match="at least 1"):
        Prompts(guidance_scale=0.5)
    from conftest import make_pipeline as make_ddpm

    with pytest.raises(VduError, match="takes no prompts"):
        unlearn(make_ddpm(), torch.zeros(2, 1, 8, 8), prompts=Prompts())


@pytest.mark.parametrize(
    ("unet", "said"),
    [
        ({"in_channels": 9}, "inpainting"),
        ({"cross_attention_dim": 24}, "different families"),
        ({"time_cond_proj_dim": 8}, "time_cond_proj_dim"),
    ],
)
def test_networks_of_another_kind_are_refused(unet, said, tmp_path):
    with pytest.raises(VduError, match=said):
        load_backbone(make_pipeline(tmp_path, **unet))


def test_the_command_line_makes_applies_and_reverts_a_delta(pipeline, folder, tmp_path, monkeypatch, capsys):
    pipeline.save_pretrained(tmp_path / "model")
    (tmp_path / "neutral.txt").write_text("a blue apple\n\na pear\n")
    settings = [f"--set={name}={json.dumps(value)}" for name, value in SHORT.items()]
    asked = ("--prompt", "a red apple", "--neutral-prompts", tmp_path / "neutral.txt", "--guidance-scale", "2")
    code, _, err = run_vdu(
        *(monkeypatch, capsys, "unlearn", tmp_path / "model", "--forget", folder, "--out", tmp_path / "delta"),
        *("--method", "ga", "--share", "0.2", "--precision", "fp32", "--save", "delta", *settings, *asked),
    )
    assert code == 0, err
    record = json.loads((tmp_path / "delta" / "unlearning.json").read_text())
    assert record["prompts"] == {"neutral": ["a blue apple", "a pear"], "forget": ["a red apple"], "guidance_scale": 2}
    for command, source, out in (("apply", "model", "clean"), ("revert", "clean", "again")):
        code, _, err = run_vdu(
            monkeypatch, capsys, command, tmp_path / source, tmp_path / "delta", "--out", tmp_path / out
        )
        assert code == 0, err
    hashes = [
        weights_sha256(StableDiffusionPipeline.from_pretrained(tmp_path / f).unet) for f in ("model", "clean", "again")
    ]
    assert hashes[0] == hashes[2] == record["model_sha256"]
    assert hashes[1] == record["result_sha256"]
    code, out, err = run_vdu(
        *(monkeypatch, capsys, "sample", tmp_path / "clean", "--out", tmp_path / "grid.png", "--count", "2"),
        *("--steps", "2", "--prompts", tmp_path / "neutral.txt"),
    )
    assert code == 0, err


def test_bad_options_are_one_line_before_the_work(pipeline, folder, tmp_path, monkeypatch, capsys):
    pipeline.save_pretrained(tmp_path / "model")
    basic = ("unlearn", tmp_path / "model", "--forget", folder, "--out", tmp_path / "clean")
    (tmp_path / "empty.txt").write_text("\n")
    capsys.readouterr()
    for arguments, said in (
        (("--prompt", "ξξ"), "knows no word"),
        (("--neutral-prompts", tmp_path / "empty.txt"), "has no prompts"),
        (("--guidance-scale", "0"), "at least 1"),
        (("--save", "dleta"), "did you mean 'delta'"),
    ):
        code, _, err = run_vdu(monkeypatch, capsys, *basic, *arguments)
        assert code == 2
        assert len(err.strip().splitlines()) == 1
        assert said in err
    assert not (tmp_path / "clean").exists()
    ddpm = DDPMPipeline(pipeline.unet, DDPMScheduler())
    with pytest.raises(VduError, match="needs a UNet2DModel"):
        load_backbone(ddpm)
