"""Stable Diffusion at a tiny size with the real classes: random weights, a tokenizer of a few words."""

import math

import pytest
import torch
from conftest import run_vdu
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, StableDiffusionPipeline
from PIL import Image
from tiny_stable_diffusion import CAPTIONS, make_pipeline, unlearned, write_captions

from vdu import VduError
from vdu.backbone import load_backbone, weights_sha256
from vdu.diffusion.noising import Clean, draw
from vdu.diffusion.sampling import sample
from vdu.evaluation.comparison import Sampler, evaluate
from vdu.methods import METHODS
from vdu.posterior import isotropic
from vdu.prompts import Prompts

pytestmark = pytest.mark.usefixtures("few_samples")


@pytest.mark.parametrize("method", ["ga", "guided", "vdu"])
def test_images_in_a_clean_pipeline_that_samples_out(method, pipeline, folder, tmp_path):
    write_captions(folder, CAPTIONS)
    prompts = Prompts(neutral=("a blue apple", ""), guidance_scale=2.0)
    result = unlearned(pipeline, folder, method, prompts=prompts)
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
    result = unlearned(pipeline, folder, name, **given)
    assert len(result.record["history"]) == 2
    assert all(math.isfinite(step["loss"]) for step in result.record["history"])


def test_same_seed_gives_the_same_tensors_and_captions_matter(pipeline, folder):
    first, second = (unlearned(pipeline, folder, "vdu").record for _ in range(2))
    assert first["result_sha256"] == second["result_sha256"]
    assert first["history"] == second["history"]
    captioned = unlearned(pipeline, folder, "vdu", prompts=Prompts(forget=("a red apple",))).record
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
    result = unlearned(make_pipeline(tmp_path, "v_prediction"), folder, "guided")
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
    plain = unlearned(pipeline, folder, settings={"parameters": "cross-attention"})
    before = dict(plain.original.network.named_parameters())
    moved = {n for n, p in plain.pipeline.unet.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert all(".attn2." in name for name in moved)
    saving = unlearned(pipeline, folder, settings={"parameters": "cross-attention", "gradient_checkpointing": True})
    for a, b in zip(plain.pipeline.unet.parameters(), saving.pipeline.unet.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_a_half_precision_pipeline_stays_one(pipeline, folder):
    result = unlearned(pipeline.to(torch.float16), folder)
    assert pipeline.unet.dtype == pipeline.vae.dtype == torch.float16
    assert result.pipeline.unet.dtype == result.pipeline.text_encoder.dtype == torch.float16


def test_of_a_half_precision_folder_all_parts_work_together(pipeline, tmp_path):
    pipeline.to(torch.float16).save_pretrained(tmp_path / "half")
    backbone = load_backbone(tmp_path / "half")
    clean = backbone.with_network(backbone.network)
    assert {clean.unet.dtype, clean.vae.dtype, clean.text_encoder.dtype} == {torch.float32}
    clean.save_pretrained(tmp_path / "clean")
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "clean")
    again.set_progress_bar_config(disable=True)
    assert again("red", num_inference_steps=1, output_type="latent").images.isfinite().all()


def test_a_vae_of_other_than_grey_or_colour_pictures_is_refused(pipeline):
    for channels in ((4, 4), (2, 2), (3, 4)):
        pipeline.vae.register_to_config(in_channels=channels[0], out_channels=channels[1])
        with pytest.raises(VduError, match=f"VAE of {channels[0]} → {channels[1]} channels is not supported"):
            load_backbone(pipeline)


def test_a_detector_sees_pictures_not_latents(pipeline, folder):
    result = unlearned(pipeline, folder, detector="test_cli:brightness", target="bright")
    evaluation = result.evaluate("test_cli:brightness", "bright", sampler=Sampler(steps=2, count=4, precision="fp32"))
    assert evaluation.before.shape == evaluation.after.shape == (4, 3, 16, 16)
    assert evaluation.record["prompts"]["guidance_scale"] == 7.5


def test_two_models_that_share_a_network_are_both_sampled(pipeline, tmp_path):
    other = make_pipeline(tmp_path)
    other.vae = make_pipeline(tmp_path, seed=1).vae
    assert weights_sha256(other.unet) == weights_sha256(pipeline.unet)
    for second, alike in ((pipeline, True), (other, False)):
        sampler = Sampler(steps=2, count=4, precision="fp32")
        found = evaluate(pipeline, second, "test_cli:brightness", "bright", sampler=sampler)
        assert torch.equal(found.before, found.after) == alike


def test_a_schedule_that_ends_in_pure_noise_gives_finite_targets(tmp_path):
    pipeline = make_pipeline(tmp_path, "v_prediction")
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, rescale_betas_zero_snr=True)
    backbone = load_backbone(pipeline)
    x_0, eps, t = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), torch.tensor([49])
    v = backbone.from_eps(eps, backbone.add_noise(x_0, eps, t), t)
    torch.testing.assert_close(v, -x_0, atol=5e-3, rtol=5e-3)
    assert torch.isfinite(sample(backbone, backbone.network, 2, 0, steps=3)).all()


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
