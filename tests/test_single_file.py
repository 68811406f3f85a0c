"""Checkpoints of other programs: told apart before they are read; tiny ones make the pipeline they are of."""

import json
import pickle

import pytest
import torch
from checkpoint_layout import checkpoint_layout
from conftest import run_vdu
from PIL import Image
from safetensors.torch import save_file
from tiny_stable_diffusion import SHORT, make_pipeline, make_xl_pipeline

from vdu import VduError, unlearn
from vdu.backbone import load_backbone, weights_sha256
from vdu.backbone.teacher import load_teacher

pytestmark = pytest.mark.usefixtures("few_samples")


UNET = "model.diffusion_model.input_blocks.0.0.weight"
VAE, CLIP = "first_stage_model.a", "cond_stage_model.transformer.text_model.a"
SDXL = ("conditioner.embedders.0.transformer.text_model.a", "conditioner.embedders.1.model.a")


@pytest.fixture(params=["1.x", "2.x", "XL"])
def kind(request, tmp_path):
    """A pipeline, its single file and the folder of its configs, whose weights are other ones."""
    pipeline = make_xl_pipeline(tmp_path) if request.param == "XL" else make_pipeline(tmp_path)
    file, configs = tmp_path / "model.safetensors", tmp_path / "configs"
    save_file(checkpoint_layout(pipeline, open_clip=request.param == "2.x"), file)
    pipeline.save_pretrained(configs)
    for weights in configs.rglob("*.safetensors"):
        weights.unlink()
    return pipeline, file, configs


def write(path, names, channels=4, dtype=torch.float16):
    tensors = {name: torch.zeros(1, dtype=dtype) for name in names}
    save_file(tensors | ({UNET: torch.zeros(8, channels, 3, 3, dtype=dtype)} if UNET in names else {}), path)
    return path


def test_a_single_file_is_the_pipeline_that_it_was_made_of(kind):
    pipeline, file, configs = kind
    read = load_backbone(file, config=configs).pipeline
    assert type(read) is type(pipeline)
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            assert weights_sha256(getattr(read, name)) == weights_sha256(part), name
    asked = {"num_inference_steps": 2, "output_type": "pt"}
    pictures = [p("a red apple", generator=torch.manual_seed(0), **asked).images for p in (read, pipeline)]
    torch.testing.assert_close(*pictures)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_it_keeps_its_precision(dtype, tmp_path):
    pipeline = make_xl_pipeline(tmp_path).to(dtype)
    save_file(checkpoint_layout(pipeline), tmp_path / "half.safetensors")
    pipeline.save_pretrained(tmp_path / "configs")
    read = load_backbone(tmp_path / "half.safetensors", config=tmp_path / "configs").pipeline
    assert read.unet.dtype == read.vae.dtype == read.text_encoder_2.dtype == dtype
    assert weights_sha256(read.unet) == weights_sha256(pipeline.unet)


def test_the_marks_of_a_v_prediction_are_heeded(tmp_path):
    pipeline = make_xl_pipeline(tmp_path)
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    save_file(checkpoint_layout(pipeline) | marks, tmp_path / "v.safetensors")
    pipeline.save_pretrained(tmp_path / "configs")
    backbone = load_backbone(tmp_path / "v.safetensors", config=tmp_path / "configs")
    assert backbone.prediction_type == "v_prediction"
    assert backbone.alpha_bar[-1] < 1e-6


def test_a_teacher_may_be_a_file_too(tmp_path, folder, few_samples):
    student, teacher = make_pipeline(tmp_path), make_pipeline(tmp_path, seed=1)
    teacher.vae, teacher.text_encoder = student.vae, student.text_encoder
    save_file(checkpoint_layout(teacher), tmp_path / "teacher.safetensors")
    teacher.save_pretrained(tmp_path / "configs")
    read = load_teacher(tmp_path / "teacher.safetensors", load_backbone(student), tmp_path / "configs")
    assert read.sha256 == weights_sha256(teacher.unet)
    with pytest.raises(VduError, match="give --config FOLDER"):
        load_teacher(tmp_path / "teacher.safetensors", load_backbone(student))
    student.save_pretrained(tmp_path / "student")
    taught = {"teacher": tmp_path / "teacher.safetensors", "config": tmp_path / "configs", "settings": SHORT}
    result = unlearn(tmp_path / "student", folder, "esd", **taught, precision="fp32")
    assert result.record["teacher"]["sha256"] == read.sha256
    with pytest.raises(VduError, match="--config goes with a single-file checkpoint only"):
        unlearn(tmp_path / "student", folder, "esd", **taught | {"teacher": tmp_path / "configs"})


def test_the_command_line_takes_a_file_and_puts_a_delta_on_it(kind, tmp_path, monkeypatch, capsys):
    pipeline, file, configs = kind
    bad = tmp_path / "bad"
    bad.mkdir()
    for i in range(3):
        Image.new("RGB", (16, 16), (80 * i, 255 - 80 * i, 128)).save(bad / f"{i}.png")
    settings = [f"--set={name}={json.dumps(value)}" for name, value in SHORT.items()]
    shared = ("--forget", bad, "--method", "ga", "--share", "0.2", "--precision", "fp32", "--config", configs)
    for form in ("pipeline", "delta"):
        code, _, err = run_vdu(
            monkeypatch, capsys, "unlearn", file, "--out", tmp_path / form, "--save", form, *shared, *settings
        )
        assert code == 0, err
    code, _, err = run_vdu(
        *(monkeypatch, capsys, "apply", file, tmp_path / "delta", "--out", tmp_path / "applied", "--config", configs)
    )
    assert code == 0, err
    record = json.loads((tmp_path / "pipeline" / "unlearning.json").read_text())
    assert record["model_sha256"] == weights_sha256(pipeline.unet)
    for made in ("pipeline", "applied"):
        assert weights_sha256(type(pipeline).from_pretrained(tmp_path / made).unet) == record["result_sha256"]


REFUSED = [
    (("lora_unet_down_blocks_0.lora_up.weight",), "is a LoRA"),
    (("unet.down_blocks.0.attn1.to_q.lora_A.weight",), "is a LoRA"),
    (("model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight",), "is a Stable Diffusion 3 model"),
    (("double_blocks.0.img_attn.norm.key_norm.scale",), "such as Flux"),
    (("control_model.time_embed.0.weight",), "is a ControlNet"),
    (("down_blocks.0.motion_modules.0.proj_in.weight",), "is a motion module"),
    (("emb_params",), "is a textual inversion"),
    (("clip_g", "clip_l"), "is a textual inversion"),
    (("edm_mean", UNET, *SDXL), "is an EDM model"),
    (("first_stage_model.decoder.conv_in.weight",), "is a VAE only"),
    (("decoder.conv_in.weight",), "is a VAE only"),
    (("text_model.embeddings.token_embedding.weight",), "is a text encoder only"),
    (("down_blocks.0.resnets.0.conv1.weight",), "one part of a diffusers folder"),
    (("layer.weight",), "of an unknown kind"),
    ((UNET, VAE), "no text encoder"),
    ((UNET, CLIP), "no VAE"),
    ((UNET, VAE, "conditioner.embedders.0.model.a"), "SDXL refiner"),
    ((UNET, VAE, "cond_stage_model.model.a"), "do not say if they predict"),
]


@pytest.mark.parametrize(("names", "said"), REFUSED)
def test_other_files_are_refused(names, said, tmp_path):
    file = write(tmp_path / "other.safetensors", names)
    with pytest.raises(VduError, match=said):
        load_backbone(file)


def test_other_channels_and_quantised_weights_are_refused(tmp_path):
    for channels in (9, 8):
        file = write(tmp_path / "edit.safetensors", (UNET, VAE, CLIP), channels)
        with pytest.raises(VduError, match=f"takes {channels} channels, not 4: inpainting"):
            load_backbone(file)
    file = write(tmp_path / "quantised.safetensors", (UNET, VAE, *SDXL), dtype=torch.float8_e4m3fn)
    with pytest.raises(VduError, match="F8_E4M3 weights"):
        load_backbone(file)


class Trap:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize(
    ("name", "said"),
    [("model.ckpt", "is a pickle"), ("model.safetensors", "not a valid"), ("model", "not a .safetensors")],
)
def test_a_pickle_is_never_opened(name, said, tmp_path):
    (tmp_path / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(VduError, match=said):
        load_backbone(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_configs_that_do_not_fit_are_refused(tmp_path):
    (tmp_path / "xl").mkdir()
    pipeline, other = make_pipeline(tmp_path), make_xl_pipeline(tmp_path)
    save_file(checkpoint_layout(pipeline), tmp_path / "model.safetensors")
    other.save_pretrained(tmp_path / "xl")
    make_pipeline(tmp_path, block_out_channels=(16, 16)).save_pretrained(tmp_path / "wide")
    make_pipeline(tmp_path, layers_per_block=2).save_pretrained(tmp_path / "deep")
    for folder, said in (
        ("xl", "is for a StableDiffusionXLPipeline, the checkpoint is of Stable Diffusion 1.x"),
        ("wide", "does not fit the configs"),
        ("deep", "does not fit the configs"),
        ("absent", "no diffusers pipeline folder"),
    ):
        with pytest.raises(VduError, match=said):
            load_backbone(tmp_path / "model.safetensors", config=tmp_path / folder)
    pipeline.save_pretrained(tmp_path / "folder")
    with pytest.raises(VduError, match="a single-file checkpoint only"):
        load_backbone(tmp_path / "folder", config=tmp_path / "folder")


def test_weights_in_the_folder_of_configs_are_not_used(tmp_path):
    pipeline = make_pipeline(tmp_path)
    whole = checkpoint_layout(pipeline)
    make_pipeline(tmp_path, seed=1).save_pretrained(tmp_path / "configs", safe_serialization=False)
    save_file(whole, tmp_path / "whole.safetensors")
    read = load_backbone(tmp_path / "whole.safetensors", config=tmp_path / "configs").pipeline
    assert weights_sha256(read.text_encoder) == weights_sha256(pipeline.text_encoder)
    lacking = {n: w for n, w in whole.items() if "position_embedding" not in n}
    save_file(lacking, tmp_path / "lacking.safetensors")
    with pytest.raises(VduError, match="does not fit the configs"):
        load_backbone(tmp_path / "lacking.safetensors", config=tmp_path / "configs")


def test_bad_files_are_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "one.safetensors", (UNET, VAE, CLIP))
    write(tmp_path / "xl.safetensors", (UNET, VAE, *SDXL))
    (tmp_path / "model.ckpt").write_bytes(b"")
    (tmp_path / "bad").mkdir()
    for name, said in (
        ("one.safetensors", "go online once, or give --config FOLDER"),
        ("xl.safetensors", "stable-diffusion-xl-base-1.0) are not here"),
        ("model.ckpt", "is a pickle"),
        ("absent.safetensors", "no file"),
    ):
        code, _, err = run_vdu(
            monkeypatch, capsys, "unlearn", tmp_path / name, "--forget", tmp_path / "bad", "--out", tmp_path / "clean"
        )
        assert code == 2
        assert len(err.strip().splitlines()) == 1
        assert said in err
    assert not (tmp_path / "clean").exists()
