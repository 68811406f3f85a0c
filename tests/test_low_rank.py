"""A LoRA is trained beside frozen weights, merged into what is handed out, and read by diffusers."""

import re
import sys

import pytest
import torch
from conftest import interrupted_after_state, run_vdu
from conftest import make_pipeline as make_ddpm
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file
from tiny_stable_diffusion import SHORT, unlearned

from vdu import VduError, unlearn
from vdu.backbone import load_backbone, weights_sha256
from vdu.backbone.low_rank import factors, merged_state
from vdu.diffusion.denoising import prediction_error
from vdu.diffusion.noising import Clean, draw
from vdu.methods import find_method, make_settings
from vdu.preparation.forget_score import fit_forget_score
from vdu.weights.parameters import trained_copy

pytestmark = pytest.mark.usefixtures("few_samples")


LORA = {"parameters": "lora", "lora_rank": 2, "learning_rate": 1e-2}
FILE = "pytorch_lora_weights.safetensors"


def _images(pipeline):
    g = torch.Generator().manual_seed(0)
    return pipeline("a red apple", num_inference_steps=3, generator=g, output_type="pt").images


@pytest.mark.parametrize("method", ["ga", "vdu"])
@pytest.mark.parametrize("chosen", [{}, {"weight_name": "kohya_lora.safetensors"}])
def test_the_original_with_the_saved_lora_makes_the_images_of_the_result(method, chosen, pipeline, folder, tmp_path):
    before = _images(pipeline)
    result = unlearned(pipeline, folder, method, settings=LORA | {"steps": 4, "guard_every_steps": 0})
    result.save(tmp_path / "out", form="lora")
    assert not (tmp_path / "out" / "model_index.json").exists()
    assert {"unlearning.json", "report.html", "README.md", FILE} <= {p.name for p in (tmp_path / "out").iterdir()}
    assert torch.equal(_images(pipeline), before)
    after = _images(result.pipeline)
    assert (after - before).abs().max() > 1e-3
    pipeline.load_lora_weights(tmp_path / "out", **chosen)
    torch.testing.assert_close(_images(pipeline), after, atol=1e-5, rtol=1e-4)
    pipeline.unload_lora_weights()
    torch.testing.assert_close(_images(pipeline), before, atol=1e-6, rtol=1e-5)


def test_kohyas_names_are_those_of_the_layers_and_alpha_is_the_rank(pipeline, folder, tmp_path):
    unlearned(pipeline, folder, settings=LORA).save(tmp_path / "out", form="lora")
    named, own = load_file(tmp_path / "out" / "kohya_lora.safetensors"), load_file(tmp_path / "out" / FILE)
    layers = {key.split(".")[0] for key in named}
    modules = {f"lora_unet_{name.replace('.', '_')}" for name, _ in pipeline.unet.named_modules()}
    assert layers <= modules
    assert len(layers) == len(own) / 2
    for layer in layers:
        assert float(named[f"{layer}.alpha"]) == len(named[f"{layer}.lora_down.weight"]) == LORA["lora_rank"]


def test_what_is_handed_out_is_an_ordinary_network_in_which_only_attention_moved(pipeline, folder):
    result = unlearned(pipeline, folder, settings=LORA | {"guard_every_steps": 0})
    before, after = pipeline.unet.state_dict(), result.pipeline.unet.state_dict()
    assert list(before) == list(after)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    projections = (".to_q.weight", ".to_k.weight", ".to_v.weight", ".to_out.0.weight")
    assert moved == {name for name in before if name.endswith(projections)}
    for name in moved:
        assert torch.linalg.matrix_rank((after[name] - before[name]).double(), rtol=1e-3) <= 2
    assert result.record["result_sha256"] == weights_sha256(result.pipeline.unet)


def test_an_average_and_a_guard_work_on_the_lora_and_the_seed_decides(pipeline, folder):
    settings = LORA | {"ema_decay": 0.9, "guard_every_steps": 1}
    first, again = (unlearned(pipeline, folder, settings=settings) for _ in range(2))
    other = unlearned(pipeline, folder, settings=settings, seed=1)
    hashes = [r.record["result_sha256"] for r in (first, again, other)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert len(first.record["guard"]) == 3


def test_the_frozen_weights_are_the_originals_own(pipeline):
    backbone = load_backbone(pipeline)
    network = trained_copy(backbone, "lora", 2, 0)
    held = {p.data_ptr() for p in backbone.network.parameters()}
    assert all((p.data_ptr() in held) != p.requires_grad for p in network.parameters())
    state = merged_state(network)
    assert all(torch.equal(state[k], v) for k, v in backbone.network.state_dict().items())


def test_a_resumed_run_ends_as_an_uninterrupted_one_and_its_state_holds_only_the_lora(
    pipeline, folder, tmp_path, monkeypatch
):
    settings, state = LORA | {"ema_decay": 0.9, "guard_every_steps": 1}, tmp_path / "state"
    whole = unlearned(pipeline, folder, settings=settings)
    with interrupted_after_state(monkeypatch):
        unlearned(pipeline, folder, settings=settings, state_folder=state)
    names = {name for name in load_file(state / "state.safetensors") if not name.startswith("optimizer.")}
    assert {name.split(".", 1)[0] for name in names} == {"network", "average", "best"}
    assert all(".lora_" in name for name in names)
    resumed = unlearned(pipeline, folder, settings=settings, state_folder=state)
    assert resumed.record["result_sha256"] == whole.record["result_sha256"]


def test_the_forget_score_of_a_lora_run_is_a_lora_and_learns(pipeline):
    backbone = load_backbone(pipeline)
    x_0 = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    score, whole = (
        fit_forget_score(backbone, Clean(x_0), 0, steps=60, lora_rank=rank, gradient_checkpointing=True)
        for rank in (4, None)
    )
    noised = draw(backbone, Clean(x_0).repeat(32), 64, torch.Generator().manual_seed(1))
    errors = [float(prediction_error(backbone, n, noised).mean()) for n in (score, whole, backbone.network)]
    assert errors[0] < errors[2]
    assert len(factors(score)) > 0 == len(factors(whole))
    held = {p.data_ptr() for p in backbone.network.parameters()}
    assert sum(p.data_ptr() not in held for p in score.parameters()) == len(factors(score))


@pytest.mark.parametrize("method", ["ga", "vdu-quick"])  # by Adam, and by Muon
def test_a_ddpm_with_attention_has_a_lora_too_but_no_lora_file(method, forget, few_samples, tmp_path):
    original = make_ddpm()
    result = unlearn(original, forget, method, settings=SHORT | LORA, share=0.2, precision="fp32")
    assert weights_sha256(result.pipeline.unet) != weights_sha256(original.unet)
    with pytest.raises(VduError, match="no load_lora_weights"):
        result.save(tmp_path / "out", form="lora")
    result.save(tmp_path / "delta", form="delta")


def test_what_cannot_be_is_refused_before_the_work(forget, pipeline, folder, tmp_path, monkeypatch, capsys):
    plain = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
        add_attention=False,
    )
    with pytest.raises(VduError, match="without attention"):
        unlearn(DDPMPipeline(plain, DDPMScheduler()), forget, "ga", settings=LORA)
    for name in ("vdu-paper", "selective-amnesia"):
        with pytest.raises(VduError, match="holds weights of the network itself"):
            make_settings(find_method(name), LORA)
    pipeline.save_pretrained(tmp_path / "model")
    capsys.readouterr()
    arguments = ("unlearn", tmp_path / "model", "--forget", folder, "--out", tmp_path / "out", "--save", "lora")
    code, _, err = run_vdu(monkeypatch, capsys, *arguments)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert "--set parameters=lora" in err
    assert not (tmp_path / "out").exists()
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(VduError, match=re.escape("pip install peft")):
        unlearned(pipeline, folder, settings=LORA, on_stage=lambda _: pytest.fail("the work began"))


def test_the_command_line_writes_a_lora(pipeline, folder, tmp_path, monkeypatch, capsys):
    pipeline.save_pretrained(tmp_path / "model")
    settings = [f"--set={name}={value}" for name, value in (SHORT | LORA | {"stop_share": "null"}).items()]
    code, _, err = run_vdu(
        *(monkeypatch, capsys, "unlearn", tmp_path / "model", "--forget", folder, "--out", tmp_path / "out"),
        *("--method", "ga", "--share", "0.2", "--precision", "fp32", "--save", "lora", *settings),
    )
    assert code == 0, err
    state = load_file(tmp_path / "out" / FILE)
    assert all(name.startswith("unet.") for name in state)
    assert min(min(tensor.shape) for tensor in state.values()) == 2
