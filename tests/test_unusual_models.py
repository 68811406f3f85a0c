"""Networks, schedules and judges that are not what the shipped models have: they work, or are refused in one line."""

import pytest
import torch
from conftest import make_pipeline
from diffusers import AutoencoderTiny, DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput
from peft import LoraConfig, inject_adapter_in_model

from vdu import VduError, unlearn
from vdu.backbone import load_backbone
from vdu.diffusion.noising import Clean
from vdu.diffusion.sampling import sample
from vdu.evaluation.comparison import evaluate
from vdu.guard import Guard
from vdu.model_zoo import find_zoo_model
from vdu.objective.plasticity import elbo_weight
from vdu.preparation.preparation import Preparation

SHORT = {"steps": 4, "guard_every_steps": 2, "batch_size": 2, "stop_share": None}

pytestmark = pytest.mark.usefixtures("few_samples")


def test_weights_that_are_missing_or_not_finite_are_refused(forget):
    for value, said in ((float("nan"), "not all finite"), (None, "not whole")):
        pipeline = make_pipeline()
        if value is None:
            pipeline.unet.conv_out.to("meta")
        else:
            pipeline.unet.conv_out.bias.data.fill_(value)
        with pytest.raises(VduError, match=said):
            unlearn(pipeline, forget)


def test_a_model_of_fewer_times_than_sampler_steps_is_sampled_in_as_many_as_it_has():
    pipeline = make_pipeline()
    pipeline.scheduler = DDPMScheduler(num_train_timesteps=5)
    backbone = load_backbone(pipeline)
    few, many = (sample(backbone, backbone.network, 2, 0, steps=steps) for steps in (5, 12))
    assert torch.equal(few, many)


@pytest.mark.parametrize("parameters", ["*", "*.to_q.weight"])
def test_a_network_with_dropout_has_nothing_dropped_between_looks_either(forget, parameters):
    pipeline, hashes = make_pipeline(), set()
    for module in pipeline.unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    for noise in range(2):
        torch.manual_seed(noise)
        done = unlearn(
            pipeline, forget, "capped-ascent", settings=SHORT | {"parameters": parameters}, share=0.2, precision="fp32"
        )
        hashes.add(done.record["result_sha256"])
    assert len(hashes) == 1
    assert any(module.p == 0.5 for module in done.pipeline.unet.modules() if isinstance(module, torch.nn.Dropout))


def test_a_pipeline_with_a_lora_beside_its_weights_is_refused(forget):
    pipeline = make_pipeline()
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_q"]), pipeline.unet)
    with pytest.raises(VduError, match="unload_lora_weights"):
        unlearn(pipeline, forget, "ga")


def test_fused_attention_and_weights_of_eight_bits_are_refused(pipeline, folder):
    pipeline.fuse_qkv_projections(vae=False)
    with pytest.raises(VduError, match=r"leave out fuse_qkv_projections\(\)"):
        unlearn(pipeline, folder)
    small = make_pipeline()
    small.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    with pytest.raises(VduError, match="weights are float8_e4m3fn: give the model in float32"):
        load_backbone(small)


def test_every_part_must_be_finite_and_the_vae_one_with_a_distribution(pipeline, folder):
    pipeline.vae.decoder.conv_in.bias.data.fill_(float("nan"))
    with pytest.raises(VduError, match=r"vae's weights .decoder\.conv_in\.bias. are not all finite"):
        unlearn(pipeline, folder)
    pipeline.vae = AutoencoderTiny(latent_channels=4)
    with pytest.raises(VduError, match="AutoencoderTiny is not supported"):
        unlearn(pipeline, folder)


def _network(**options):
    plain = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 4}
    two = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D",) * 2,
        "up_block_types": ("UpBlock2D",) * 2,
    }
    return UNet2DModel(**(plain | two | options))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"time_embedding_type": "fourier"}, "output at time 0 is not finite"),
        ({"time_embedding_type": "learned", "num_train_timesteps": 20}, "IndexError"),
    ],
)
def test_a_network_that_cannot_be_asked_is_refused_before_any_work(forget, options, said):
    torch.manual_seed(0)
    pipeline, stages = DDPMPipeline(_network(**options), DDPMScheduler(num_train_timesteps=50)), []
    with pytest.raises(VduError, match=said):
        unlearn(pipeline, forget, on_stage=stages.append, precision="fp32")
    assert stages == ["preparing"]


@pytest.mark.parametrize(("times", "steps"), [(50, 29), (300, 7), (1000, 61), (1000, 12), (50, 50)])
def test_the_sampler_takes_as_many_steps_as_asked_and_none_at_a_time_below_zero(monkeypatch, times, steps):
    pipeline, asked = make_pipeline(), []
    pipeline.scheduler = DDPMScheduler(num_train_timesteps=times)
    backbone = load_backbone(pipeline)
    output = backbone._output
    monkeypatch.setattr(backbone, "_output", lambda n, x, t, c: asked.append(int(t[0])) or output(n, x, t, c))
    assert sample(backbone, backbone.network, 1, 0, steps=steps).isfinite().all()
    assert len(asked) == steps
    assert asked[-1] >= 0


def test_no_time_of_a_schedule_that_ends_in_noise_alone_has_a_negative_elbo_weight():
    pipeline = make_pipeline()
    pipeline.scheduler = DDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    assert (elbo_weight(load_backbone(pipeline).alpha_bar) > 0).all()


def test_no_time_of_a_cosine_schedule_has_nearly_all_the_weight_of_the_elbo():
    pipeline = make_pipeline()
    pipeline.scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    weight = elbo_weight(load_backbone(pipeline).alpha_bar)
    assert weight.mean() == pytest.approx(1)
    assert weight[:-10].mean() > 0.5


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_targets_of_long_schedules_are_more_than_rounding(prediction_type):
    pipeline = make_pipeline()
    pipeline.scheduler = DDPMScheduler(num_train_timesteps=4000, prediction_type=prediction_type)
    backbone = load_backbone(pipeline)
    g = torch.Generator().manual_seed(0)
    x_0, eps, t = torch.full((40, 1, 8, 8), 0.7), torch.randn(40, 1, 8, 8, generator=g), torch.arange(99, 4000, 100)
    alpha_bar = backbone.alpha_bar[t].view(-1, 1, 1, 1)
    wanted = x_0 if prediction_type == "sample" else alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x_0
    target = backbone.from_eps(eps, backbone.add_noise(x_0, eps, t), t)
    torch.testing.assert_close(target, wanted, atol=0.02, rtol=0)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_schedule_that_begins_without_noise_is_learned_with(prediction_type, forget):
    scheduler = DDPMScheduler(num_train_timesteps=50, beta_start=0.0, prediction_type=prediction_type)
    pipeline = DDPMPipeline(make_pipeline().unet, scheduler)
    record = unlearn(pipeline, forget, settings=SHORT, share=0.2, precision="fp32").record
    assert len(record["history"]) == SHORT["steps"]
    assert all(step["loss"] < float("inf") for step in record["history"])


def test_a_folder_with_a_shipped_models_name_is_not_passed_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_pipeline().save_pretrained("mnist-14")
    with pytest.raises(VduError, match=r"write \./mnist-14 for the folder"):
        load_backbone("mnist-14")
    assert load_backbone("./mnist-14").shape == (1, 8, 8)
    assert load_backbone("mnist").shape == (1, 28, 28)


def test_large_pictures_go_through_the_network_a_few_at_a_time():
    for side, most in ((8, 256), (64, 128), (256, 8)):
        assert load_backbone(DDPMPipeline(_network(sample_size=side), DDPMScheduler())).largest_batch == most


def test_a_guard_whose_original_makes_one_picture_only_has_no_diversity_to_lose(backbone, forget):
    backbone.denoise = lambda network, noise, *_: torch.zeros_like(noise)
    preparation = Preparation(backbone, Clean(forget), seed=0)
    guard = Guard(preparation, lambda x: (torch.zeros(len(x)), torch.zeros(len(x))), count=4, sampler_steps=1)
    assert guard.check(backbone.network, 1).diversity == 1


def test_a_detector_that_cannot_look_at_the_models_pictures_is_refused_before_any_work(forget):
    torch.manual_seed(0)
    colour = DDPMPipeline(_network(in_channels=3, out_channels=3), DDPMScheduler(num_train_timesteps=50))
    judge, stages = str(find_zoo_model("mnist").classifier), []
    with pytest.raises(VduError, match=r"was trained on pictures of \(1, 28, 28\), not of \(3, 8, 8\)"):
        unlearn(colour, forget.repeat(1, 3, 1, 1), detector=judge, target="3", on_stage=stages.append)
    assert not stages
    with pytest.raises(VduError, match=r"was trained on pictures of \(1, 28, 28\), not of \(3, 8, 8\)"):
        evaluate(colour, colour, judge, "3")


def test_a_forget_image_given_twice_counts_once(forget):
    once = unlearn(make_pipeline(), forget, settings=SHORT, precision="fp32")
    twice = unlearn(make_pipeline(), torch.cat([forget, forget]), settings=SHORT, precision="fp32")
    assert twice.record["result_sha256"] == once.record["result_sha256"]
    assert twice.record["forget"]["images"] == len(forget)
    assert "6 images are copies of others and were left out" in twice.record["forget"]["notices"]


class _OneImage(torch.nn.Module):
    """The ε of data that are one image, with an ``error`` and no idea of larger ``x_t``, like a network."""

    def __init__(self, backbone, image, error):
        super().__init__()
        self.backbone, self.image = backbone, image
        self.error = torch.nn.Parameter(error * torch.randn(image.shape, generator=torch.Generator().manual_seed(5)))

    def forward(self, x_t, t):
        seen = x_t.clamp(-4, 4)
        return UNet2DOutput(sample=self.backbone.noise_from(seen, self.image.expand_as(x_t), t) + self.error)


@pytest.mark.parametrize(("schedule", "error"), [("linear", 0.02), ("squaredcos_cap_v2", 0.02)])
def test_an_error_of_eps_does_not_take_the_samples_out_of_all_range(schedule, error):
    pipeline = make_pipeline()
    pipeline.scheduler = DDPMScheduler(beta_schedule=schedule)
    backbone = load_backbone(pipeline)
    image = torch.linspace(-0.8, 0.8, 64).view(backbone.shape)
    made = sample(backbone, _OneImage(backbone, image, error), 8, 0)
    assert (made - image).square().mean().sqrt() < 0.2


def test_an_eps_that_is_surely_wrong_is_that_of_the_nearest_picture():
    pipeline = make_pipeline()
    pipeline.scheduler = DDPMScheduler()
    backbone = load_backbone(pipeline)
    image = torch.linspace(-0.8, 0.8, 64).view(1, *backbone.shape)
    t, eps = torch.tensor([500]), torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    x_t = backbone.add_noise(image, eps, t)
    for error, believed in ((0.02, True), (0.5, False)):
        network = _OneImage(backbone, image[0], error)
        followed, said = backbone.sampling_output(network, x_t, t), backbone.output(network, x_t, t)
        assert torch.equal(followed, said) is believed
        signal, noise = backbone.alpha_bar[500].sqrt(), (1 - backbone.alpha_bar[500]).sqrt()
        x_0 = (x_t - noise * said) / signal
        expected = x_0 if believed else x_0.clamp(-1, 1)
        torch.testing.assert_close((x_t - noise * followed) / signal, expected, atol=1e-5, rtol=0)


def test_betas_that_reach_one_without_saying_so_are_refused(forget):
    pipeline = make_pipeline()
    betas = [*torch.linspace(1e-4, 0.02, 99).tolist(), 1.0]
    pipeline.scheduler = DDPMScheduler(num_train_timesteps=100, trained_betas=betas, prediction_type="v_prediction")
    with pytest.raises(VduError, match="betas reach 1: set rescale_betas_zero_snr"):
        unlearn(pipeline, forget)
    pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, rescale_betas_zero_snr=True)
    assert unlearn(pipeline, forget, "ga", settings={"steps": 1}).record["steps"] == 1


def test_an_original_that_makes_no_numbers_is_refused_before_a_step(backbone, monkeypatch):
    solved = type(backbone).denoise
    monkeypatch.setattr(type(backbone), "denoise", lambda *given: solved(*given) * float("nan"))
    preparation = Preparation(backbone, Clean(torch.zeros(2, *backbone.shape)), seed=0)
    with pytest.raises(VduError, match="what the model makes is not finite"):
        _ = preparation.own_samples


def test_the_clean_network_can_be_trained_as_the_users_own(forget):
    pipeline = make_pipeline()
    frozen = pipeline.unet.conv_in.weight.requires_grad_(False)
    clean = unlearn(pipeline, forget, "ga", settings={"steps": 1}).pipeline.unet
    assert frozen is pipeline.unet.conv_in.weight
    assert [n for n, p in clean.named_parameters() if not p.requires_grad] == ["conv_in.weight"]


def test_weights_that_are_a_pickle_are_not_read(tmp_path, forget):
    make_pipeline().save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(VduError, match=r"unet has its weights as \.bin, which may hold code and is not read"):
        unlearn(tmp_path, forget)


def test_a_trainings_own_pickles_beside_a_pipeline_are_no_part_of_it(tmp_path):
    make_pipeline().save_pretrained(tmp_path)
    (tmp_path / "checkpoint-500").mkdir()
    (tmp_path / "checkpoint-500" / "optimizer.bin").touch()
    assert load_backbone(tmp_path).shape == (1, 8, 8)


@pytest.mark.parametrize(("betas", "times"), [(20, 50), (50, 20)])
def test_a_schedule_of_other_betas_than_times_is_refused(betas, times):
    pipeline = make_pipeline()
    pipeline.scheduler = DDPMScheduler(times, trained_betas=torch.linspace(1e-4, 0.02, betas).tolist())
    with pytest.raises(VduError, match=f"{betas} betas for num_train_timesteps {times}"):
        load_backbone(pipeline)
