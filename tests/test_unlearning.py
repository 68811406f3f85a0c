"""The contract of every method, resume, and the errors that a user meets."""

import errno
import itertools
import math

import numpy as np
import pytest
import torch
from conftest import interrupted_after_state, make_pipeline
from diffusers import (
    DDPMPipeline,
    DDPMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)

from vdu import VduError, unlearn
from vdu.backbone import load_backbone, source_of, weights_sha256
from vdu.diffusion.sampling import sample
from vdu.evaluation.comparison import Sampler
from vdu.methods import METHODS
from vdu.model_zoo import find_zoo_model
from vdu.posterior import isotropic, load_posterior
from vdu.precision import CPU_BFLOAT16, resolve_precision
from vdu.weights.checkpoint import write_tensors

SHORT = {"steps": 4, "guard_every_steps": 2, "batch_size": 2, "stop_share": None}
FROM_IMAGES = sorted(name for name, method in METHODS.items() if "prompt" not in method.settings.needs)


pytestmark = pytest.mark.usefixtures("few_samples")


def _forget(forget, method="vdu", seed=0, **options):
    pipeline = make_pipeline()
    posterior = isotropic(load_backbone(pipeline), 1e-2)
    settings = SHORT | options.pop("settings", {})
    if "retain" in METHODS[method].settings.needs:
        options["retain"] = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1
    return unlearn(
        pipeline,
        forget,
        method,
        settings=settings,
        posterior=posterior if "posterior" in METHODS[method].settings.needs else None,
        share=0.2,
        seed=seed,
        precision="fp32",
        **options,
    )


@pytest.mark.parametrize("method", FROM_IMAGES)
def test_same_seed_gives_the_same_tensors_and_the_result_round_trips(method, forget, tmp_path):
    first, second = _forget(forget, method), _forget(forget, method)
    assert first.record["result_sha256"] == second.record["result_sha256"]
    first.pipeline.save_pretrained(tmp_path)
    again = DDPMPipeline.from_pretrained(tmp_path)
    assert weights_sha256(again.unet) == first.record["result_sha256"]


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_other_prediction_types_run_through(kind, forget):
    result = unlearn(make_pipeline(kind), forget, settings=SHORT, share=0.2, precision="fp32")
    assert result.record["history"]
    assert all(math.isfinite(h["loss"]) for h in result.record["history"])


def test_another_seed_gives_other_tensors(forget):
    unguarded = {"guard_every_steps": 0}
    first, second = (_forget(forget, "guided", seed=s, settings=unguarded) for s in (0, 1))
    assert first.record["best_step"] == second.record["best_step"] == 4
    assert first.record["result_sha256"] != second.record["result_sha256"]


def test_a_seed_of_numpy_is_the_same_seed(forget):
    first, second = (_forget(forget, "guided", seed=seed) for seed in (3, np.int64(3)))
    assert first.record["result_sha256"] == second.record["result_sha256"]
    assert type(second.record["seed"]) is int
    for seed in (-1, 2**63, 1.0, "1"):
        with pytest.raises(VduError, match="seed must be a whole number"):
            _forget(forget, "guided", seed=seed)


def test_the_stages_of_the_preparation_are_told_before_the_first_step(forget):
    told = []
    unlearn(
        make_pipeline(), forget, "vdu", settings=SHORT, on_stage=told.append, on_step=lambda r, _: told.append(r.step)
    )
    steps = [stage for stage in told if isinstance(stage, int)]
    assert told[0] == "preparing"
    assert told[-len(steps) :] == steps
    for said in ("sampling the original, 12 images", "undesired part", "score of the forget images, 3 steps", "guard"):
        assert any(said in stage for stage in told[: -len(steps)]), told


def test_unknown_method_and_setting_name_the_nearest(forget):
    with pytest.raises(VduError, match="did you mean 'vdu-paper'"):
        unlearn(make_pipeline(), forget, "vdu-papr")
    with pytest.raises(VduError, match="'learning_rate'"):
        unlearn(make_pipeline(), forget, settings={"learning_rat": 1})
    with pytest.raises(VduError, match="steps"):
        unlearn(make_pipeline(), forget, settings={"steps": 0})


def test_a_posterior_that_would_not_be_used_is_refused(forget):
    with pytest.raises(VduError, match="method ga makes no use of --posterior"):
        unlearn(make_pipeline(), forget, "ga", posterior=isotropic(load_backbone(make_pipeline()), 1e-2))


def test_the_paper_method_without_a_posterior_is_refused(forget):
    with pytest.raises(VduError, match="needs a posterior"):
        unlearn(make_pipeline(), forget, "vdu-paper")


def test_a_posterior_of_another_model_is_refused(forget, tmp_path):
    isotropic(load_backbone(make_pipeline(seed=5))).save(tmp_path / "p.safetensors")
    with pytest.raises(VduError, match="belongs to another model"):
        load_posterior(tmp_path / "p.safetensors", load_backbone(make_pipeline()))


def test_an_unsupported_pipeline_class_is_refused(forget):
    with pytest.raises(VduError, match="not supported"):
        unlearn(torch.nn.Linear(1, 1), forget)


def test_networks_that_cannot_be_used_are_refused(forget):
    pipeline = make_pipeline()
    for setting, said in (
        ({"out_channels": 2}, "variance"),
        ({"sample_size": None}, "sample_size"),
        ({"sample_size": 9}, "too odd"),
        ({"class_embed_type": "timestep"}, "class-conditional"),
        ({"in_channels": 4, "out_channels": 4}, "4-channel"),
    ):
        unet = UNet2DModel.from_config(dict(pipeline.unet.config) | {"_use_default_values": []} | setting)
        with pytest.raises(VduError, match=said):
            unlearn(DDPMPipeline(unet, pipeline.scheduler), forget)
    for scheduler, said in (
        (FlowMatchEulerDiscreteScheduler(), "prediction type None"),
        (EDMEulerScheduler(), "schedule of EDMEulerScheduler"),
        (EulerDiscreteScheduler(10, beta_start=1e-4, beta_end=0.5, trained_betas=[0.3] * 10), None),
    ):
        if said is None:
            assert len(load_backbone(DDPMPipeline(pipeline.unet, scheduler)).alpha_bar) == 10
            continue
        with pytest.raises(VduError, match=said):
            load_backbone(DDPMPipeline(pipeline.unet, scheduler))
    with pytest.raises(VduError, match="'sigmoid' is not supported"):
        unlearn(DDPMPipeline(pipeline.unet, DDPMScheduler(beta_schedule="sigmoid")), forget)


def test_a_half_precision_pipeline_is_worked_on_in_float32_and_comes_back_as_one(forget):
    pipeline = make_pipeline()
    pipeline.unet.half()
    result = unlearn(pipeline, forget, settings=SHORT, share=0.2, precision="fp32")
    assert pipeline.unet.dtype == torch.float16
    assert result.original.network.dtype == torch.float32
    assert result.pipeline.unet.dtype == torch.float16


def test_a_folder_of_half_precision_weights_only_is_read(tmp_path):
    pipeline = make_pipeline()
    pipeline.save_pretrained(tmp_path, variant="fp16")
    assert weights_sha256(load_backbone(tmp_path).network) == weights_sha256(pipeline.unet)


def test_gradients_are_on_whoever_calls(forget):
    settings = SHORT | {"guard_every_steps": 0}
    pipeline = make_pipeline()
    plain = unlearn(pipeline, forget, "ga", settings=settings, precision="fp32")
    with torch.inference_mode():
        inside = unlearn(pipeline, forget, "ga", settings=settings, precision="fp32")
    assert inside.record["result_sha256"] == plain.record["result_sha256"]


def test_the_pipeline_that_was_given_is_left_alone(forget):
    pipeline = make_pipeline()
    before = {name: p.clone() for name, p in pipeline.unet.named_parameters()}
    pipeline.unet.train()
    result = unlearn(pipeline, forget, settings=SHORT | {"guard_every_steps": 0}, share=0.2, precision="fp32")
    assert pipeline.unet.training
    assert all(p.requires_grad and torch.equal(p, before[name]) for name, p in pipeline.unet.named_parameters())
    assert any(not torch.equal(p, before[name]) for name, p in result.pipeline.unet.named_parameters())


def test_a_folder_of_other_files_is_no_place_for_a_state(forget, tmp_path):
    (tmp_path / "picture.png").touch()
    with pytest.raises(VduError, match="other files than a run's state"):
        unlearn(make_pipeline(), forget, "ga", settings=SHORT, state_folder=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["picture.png"]


def test_a_run_is_not_resumed_with_another_posterior_or_judge(forget, tmp_path, monkeypatch):
    pipeline, state = make_pipeline(), {"state_folder": tmp_path}
    wide, narrow = (isotropic(load_backbone(pipeline), scale) for scale in (1e-2, 1e-6))

    def run(posterior=wide, **more):
        return unlearn(pipeline, forget, "vdu-paper", settings=SHORT, posterior=posterior, precision="fp32", **more)

    with interrupted_after_state(monkeypatch):
        run(**state)
    with pytest.raises(VduError, match="other settings"):
        run(narrow, **state)
    with pytest.raises(VduError, match="other settings"):
        run(detector=all_dark, target="dark", **state)
    assert run(**state).record["result_sha256"] == run().record["result_sha256"]


def all_dark(images):
    """A detector that sees the same in every image."""
    return torch.tensor([[1.0, 0.0]]).expand(len(images), 2)


all_dark.class_names = ["dark", "bright"]


def zero_or_one(images):
    return torch.stack([images.flatten(1).mean(1) < 0, images.flatten(1).mean(1) >= 0], 1).float()


zero_or_one.class_names = ["0", "1"]


def test_a_class_that_is_given_as_the_number_zero_is_meant(forget):
    settings = {"steps": 1, "guard_every_steps": 0}
    done = unlearn(make_pipeline(), forget, "ga", settings=settings, detector=zero_or_one, target=0)
    few = Sampler(count=2, steps=2)
    assert [done.record["target"], done.evaluate(zero_or_one, 0, sampler=few).record["target"]] == ["0", "0"]
    assert done.evaluate(zero_or_one, 1, sampler=few).record["target"] == "1"
    with pytest.raises(VduError, match="target needs a detector"):
        unlearn(make_pipeline(), forget, "ga", settings=settings, target=0)


def test_no_share_is_called_estimated_that_was_not(forget):
    assert (
        unlearn(make_pipeline(), forget, "ga", settings=SHORT | {"guard_every_steps": 0}).record["share_source"] is None
    )


def test_what_is_learned_from_and_looked_at_is_never_what_measures(forget):
    backbone = load_backbone(make_pipeline())
    drawn = {
        purpose: sample(backbone, backbone.network, 2, 3, steps=1, purpose=purpose)
        for purpose in ("", "own", "asked", "guard")
    }
    pairs = itertools.combinations(drawn.values(), 2)
    assert not any(torch.equal(a[i], b[j]) for a, b in pairs for i in range(2) for j in range(2))
    later = sample(backbone, backbone.network, 1, 4, steps=1)
    assert not torch.equal(drawn["own"][:1], later)


def test_an_existing_output_is_kept_unless_overwritten(forget, tmp_path):
    out = tmp_path / "out"
    result = _forget(forget)
    result.save(out)
    assert {"model_index.json", "report.html", "README.md", "unlearning.json"} <= {p.name for p in out.iterdir()}
    with pytest.raises(VduError, match="exists"):
        result.save(out)
    result.save(out, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["report.html", "before-after.png"])
def test_an_existing_report_or_picture_is_kept_unless_overwritten(name, forget, tmp_path):
    result, path = _forget(forget), tmp_path / name
    write = result.report if path.suffix == ".html" else result.picture
    path.write_text("mine")
    with pytest.raises(VduError, match="exists"):
        write(path)
    assert path.read_text() == "mine"
    assert write(path, overwrite=True).read_bytes() != b"mine"


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.ones(1)})
    old = path.read_bytes()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vdu.weights.checkpoint.save_file", full)
    with pytest.raises(VduError, match="no space left"):
        write_tensors(path, {"a": torch.zeros(1)})
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_the_shipped_model_loads_with_its_posterior():
    zoo = find_zoo_model("mnist")
    assert zoo is not None
    posterior = load_posterior(zoo.posterior, load_backbone(zoo.pipeline))
    assert posterior.count == 12
    assert len(list(zoo.forget("3").glob("*.png"))) == 100


def test_auto_precision_is_what_the_machine_computes_and_the_record_says_which(forget):
    unguarded = SHORT | {"guard_every_steps": 0}
    result = unlearn(make_pipeline(), forget, "ga", settings=unguarded, share=0.2, device="cpu")
    assert result.record["precision"] == resolve_precision("auto")
    native = {name for name, has in torch.cpu.get_capabilities().items() if has} & set(CPU_BFLOAT16)
    assert (result.record["precision"] == "bf16") == bool(native)


def test_a_given_precision_is_kept_and_an_unknown_one_refused():
    assert [resolve_precision(p) for p in ("bf16", "fp32")] == ["bf16", "fp32"]
    with pytest.raises(VduError, match="unknown precision 'fp8': give auto, bf16 or fp32"):
        resolve_precision("fp8")


@pytest.mark.parametrize(("method", "each"), [("ga", 3), ("siss", 5), ("capped-ascent", 3 + 3 + 1)])
def test_passes_are_counted_a_backward_pass_as_two(method, each, forget):
    settings = {"steps": 3, "batch_size": 2, "guard_every_steps": 0}
    retain = -forget if method == "siss" else None
    result = unlearn(make_pipeline(), forget, method, retain=retain, settings=settings, precision="fp32")
    own = 12 * 2 if method == "capped-ascent" else 0
    assert result.record["passes"] == 3 * 2 * each + own


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompts": "a circle"}, r"prompts is a str: give vdu\.Prompts"),
        ({"detector": 3}, "the detector is a int"),
        ({"settings": {1: 2}}, "no setting '1'"),
    ],
)
def test_arguments_of_another_kind_are_one_line(given, said, forget):
    with pytest.raises(VduError, match=said):
        unlearn(make_pipeline(), forget, "ga", **given)


def test_a_pipeline_object_is_named_by_where_it_was_read_from(tmp_path):
    pipeline = make_pipeline()
    assert source_of(pipeline) == "DDPMPipeline"
    pipeline.save_pretrained(tmp_path)
    assert source_of(DDPMPipeline.from_pretrained(tmp_path)) == source_of(tmp_path) == str(tmp_path)


def test_a_result_says_in_a_line_what_it_is(forget):
    done = unlearn(make_pipeline(), forget, "ga", settings=SHORT | {"guard_every_steps": 0})
    assert repr(done) == (
        f"<DDPMPipeline after ga, {done.record['steps']} steps. Forgetting was not measured: no detector was given; "
        "the label-free guard never looked.>"
    )
    with pytest.raises(VduError, match="0 pairs are no picture"):
        done.picture(pairs=0)
    with pytest.raises(VduError, match="the reference is a Tensor"):
        done.evaluate(zero_or_one, 0, reference=forget)


def test_no_more_pairs_are_shown_than_are_kept(forget, tmp_path):
    done = unlearn(make_pipeline(), forget, "ga", settings=SHORT | {"guard_every_steps": 0})
    sampler = Sampler(steps=1, count=100, precision="fp32", seed=np.int64(1000))
    done.evaluate(all_dark, "dark", sampler=sampler)
    assert done.evaluation.record["seed"] == 1000
    whole, most = (done.picture(tmp_path / f"{pairs}.png", pairs).read_bytes() for pairs in (64, 90))
    assert whole == most
    done.save(tmp_path / "out")
