"""Stable Diffusion XL at a tiny size with the real classes, against what the pipeline itself computes."""

import copy

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from tiny_stable_diffusion import SHORT, make_pipeline, make_text, make_xl_pipeline, where_words_have_a_say
from transformers import CLIPTextModel

from vdu import VduError, unlearn
from vdu.backbone import load_backbone, weights_sha256
from vdu.backbone.teacher import load_teacher
from vdu.diffusion.sampling import sample
from vdu.prompts import Prompts
from vdu.text.closed_form import ClosedForm

pytestmark = pytest.mark.usefixtures("few_samples")


@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_the_first_step_is_the_pipelines_own(zeros, scale, tmp_path):
    pipeline = make_xl_pipeline(tmp_path, zeros)
    pipeline.scheduler = DDIMScheduler(num_train_timesteps=50)
    backbone = load_backbone(pipeline, Prompts(neutral=("a red apple", "a pear"), guidance_scale=scale))
    noise, seen = torch.randn(2, 4, 8, 8), []

    def keep(_, __, t, values):
        seen.append((t, values["latents"]))
        return values

    pipeline(
        ["a red apple", "a pear"],
        num_inference_steps=2,
        guidance_scale=scale,
        latents=noise,
        output_type="latent",
        callback_on_step_end=keep,
    )
    t, wanted = seen[0]
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(2)
    with torch.no_grad():
        guided = backbone.sampling_output(backbone.network, noise, t.expand(2), backbone.sample_conditions(2))
    torch.testing.assert_close(scheduler.step(guided, t, noise).prev_sample, wanted, atol=1e-5, rtol=1e-5)


def test_the_empty_prompt_is_what_the_pipeline_guides_away_from(tmp_path):
    for zeros in (True, False):
        pipeline = make_xl_pipeline(tmp_path, zeros)
        _, words, _, pooled = pipeline.encode_prompt("a pear")
        assert words.any() != zeros
        backbone, x_t, t = load_backbone(pipeline), torch.randn(1, 4, 8, 8), torch.tensor([7])
        sizes = torch.tensor([[16.0, 16, 0, 0, 16, 16]])
        with torch.no_grad():
            own = pipeline.unet(x_t, t, words, added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes}).sample
            for c in (None, backbone.condition([""])):
                torch.testing.assert_close(backbone.output(backbone.network, x_t, t, c), own)


def test_the_empty_prompt_is_the_same_among_others(tmp_path):
    for zeros in (True, False):
        backbone = load_backbone(make_xl_pipeline(tmp_path, zeros))
        with torch.no_grad():
            alone, among = backbone._encoding([""]), backbone._encoding(["", "a pear"])
        for one, many in zip(alone, among, strict=True):
            torch.testing.assert_close(many[:1], one)


@pytest.mark.parametrize("method", ["ga", "vdu"])
def test_images_in_a_clean_pipeline_out(method, folder, tmp_path):
    pipeline = make_xl_pipeline(tmp_path, zeros=False)
    prompts = Prompts(neutral=("a blue apple",), forget=("a red apple",), guidance_scale=2.0)
    result = unlearn(pipeline, folder, method, settings=SHORT, share=0.2, precision="fp32", prompts=prompts)
    assert len(result.record["history"]) == 2
    result.save(tmp_path / "clean")
    again = StableDiffusionXLPipeline.from_pretrained(tmp_path / "clean", add_watermarker=False)
    assert weights_sha256(again.unet) == result.record["result_sha256"] != weights_sha256(pipeline.unet)
    for part in ("vae", "text_encoder", "text_encoder_2"):
        assert getattr(result.pipeline, part) is getattr(pipeline, part)
        assert weights_sha256(getattr(again, part)) == weights_sha256(getattr(pipeline, part))
    assert again.config.force_zeros_for_empty_prompt is False
    assert result.pipeline.watermark is None
    assert again("a red apple", num_inference_steps=2, output_type="pt").images.shape == (1, 3, 16, 16)


def test_a_half_precision_pipeline_stays_one_and_its_vae_works_in_float32(tmp_path):
    pipeline = make_xl_pipeline(tmp_path)
    with torch.no_grad():
        pipeline.vae.decoder.conv_in.weight.mul_(1e4)  # float16 activations overflow, as those of the real VAE do
    backbone = load_backbone(pipeline.to(torch.float16))
    x_0 = torch.randn(2, 4, 8, 8) * 30
    with torch.no_grad():
        assert pipeline.vae.decode((x_0 / 0.13025).half()).sample.isfinite().logical_not().any()
    pictures = backbone.decode(x_0)
    assert pictures.isfinite().all()
    assert pictures.dtype == backbone.encode(pictures).dtype == torch.float32
    assert backbone.encode(pictures).shape == (2, 4, 8, 8)
    assert pipeline.vae.dtype == backbone.with_network(backbone.network).unet.dtype == torch.float16


def test_samples_depend_on_their_numbers_only(tmp_path):
    backbone = load_backbone(make_xl_pipeline(tmp_path), Prompts(neutral=("", "a pear"), forget=("a red apple",)))
    whole = sample(backbone, backbone.network, 3, 3, steps=2)
    parts = sample(backbone, backbone.network, 3, 3, steps=2, batch_size=1)
    torch.testing.assert_close(whole, parts, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"in_channels": 9}, "inpainting"),
        ({"cross_attention_dim": 24}, "different families"),
        ({"time_cond_proj_dim": 8}, "time_cond_proj_dim"),
        ({"projection_class_embeddings_input_dim": 5 * 8 + 12}, "added conditions are 52 wide"),
        ({"addition_embed_type": None}, "not one of SDXL"),
        ({"vae": {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}}, "latents_mean"),
    ],
)
def test_other_networks_are_refused(change, said, tmp_path):
    with pytest.raises(VduError, match=said):
        load_backbone(make_xl_pipeline(tmp_path, **change))


def test_a_teacher_of_another_architecture_is_refused(tmp_path):
    with pytest.raises(VduError, match="teacher is a StableDiffusionPipeline, the model a StableDiffusionXLPipeline"):
        load_teacher(make_pipeline(tmp_path), load_backbone(make_xl_pipeline(tmp_path)))
    wide = make_pipeline(tmp_path, cross_attention_dim=24)
    wide.text_encoder = CLIPTextModel(make_text(wide.tokenizer, 24, layers=1)).eval()
    with pytest.raises(VduError, match="teacher's latents or prompts are of another size"):
        load_teacher(wide, load_backbone(make_pipeline(tmp_path)))


def test_refiners_and_missing_parts_are_refused(tmp_path):
    pipeline = make_xl_pipeline(tmp_path)
    parts = pipeline.components
    refiner = StableDiffusionXLPipeline(**parts | {"text_encoder": None, "tokenizer": None}, add_watermarker=False)
    with pytest.raises(VduError, match="refiner is not supported"):
        load_backbone(refiner)
    with pytest.raises(VduError, match="lacks its tokenizer_2"):
        load_backbone(StableDiffusionXLPipeline(**parts | {"tokenizer_2": None}, add_watermarker=False))
    with pytest.raises(VduError, match="knows no word"):
        load_backbone(pipeline, Prompts(neutral=("ξξ",)))


def test_a_teacher_of_another_vae_or_text_encoder_is_refused(tmp_path):
    model = make_xl_pipeline(tmp_path)
    backbone = load_backbone(model)

    def teacher(**parts):
        return StableDiffusionXLPipeline(**{**model.components, **parts}, add_watermarker=False)

    unet = make_xl_pipeline(tmp_path).unet
    unet.conv_out.bias.data.add_(1)
    half = {name: copy.deepcopy(getattr(model, name)).bfloat16().float() for name in ("vae", "text_encoder_2")}
    half["vae"].decoder.conv_out.bias.data.add_(1)  # a decoder for the same latents
    assert load_teacher(teacher(unet=unet, **half), backbone).sha256
    for name, said in (("vae", "VAE"), ("text_encoder", "text encoder"), ("text_encoder_2", "text encoder")):
        other = copy.deepcopy(getattr(model, name))
        for parameter in other.parameters():
            parameter.data.mul_(1.3)
        with pytest.raises(VduError, match=f"teacher's {said}.* is another than the model's"):
            load_teacher(teacher(unet=unet, **{name: other}), backbone)
    scaled = copy.deepcopy(model.vae)
    scaled.register_to_config(scaling_factor=1.0)
    with pytest.raises(VduError, match="scaling_factor"):
        load_teacher(teacher(unet=unet, vae=scaled), backbone)


@pytest.mark.parametrize("zeros", [True, False])
def test_the_empty_text_that_holds_what_is_to_stay_is_read_as_text(zeros, tmp_path):
    backbone = where_words_have_a_say(load_backbone(make_xl_pipeline(tmp_path, zeros)))
    empty, words = backbone.states_of(["", "a pear"])
    assert torch.equal(empty, backbone.states_of([""])[0])
    torch.testing.assert_close(empty[0], words[0])  # the start mark, which text after it does not change
    assert not torch.allclose(empty[1], words[1])
    held, free = (ClosedForm.of_words(backbone, ["a red"], [""], keep=keep) for keep in (1.0, 0.0))
    start = empty[0].double()
    moved = [(start @ form.factor.T - start).norm() for form in (held, free)]
    assert moved[0] < 0.02 * moved[1]
