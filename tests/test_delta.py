"""A delta holds what changed, and leads from the original to the result and back."""

import json

import pytest
import torch
from conftest import run_vdu
from diffusers import StableDiffusionPipeline
from tiny_stable_diffusion import SHORT, make_pipeline, unlearned

from vdu import VduError
from vdu.backbone import load_backbone, weights_sha256
from vdu.weights.checkpoint import read_tensors, write_tensors
from vdu.weights.delta import DELTA_FILE, apply_delta, revert_delta

pytestmark = pytest.mark.usefixtures("few_samples")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_delta_leads_both_ways_bit_by_bit(dtype, pipeline, folder, tmp_path):
    pipeline = pipeline.to(dtype)
    settings = {"parameters": "cross-attention", "learning_rate": 1e-2, "guard_every_steps": 0}
    result = unlearned(pipeline, folder, settings=settings)
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


def test_a_delta_of_a_network_of_mixed_precision_leads_both_ways(pipeline, folder, tmp_path):
    pipeline.unet.half().conv_out.float()
    with torch.no_grad():
        pipeline.unet.conv_out.weight.add_(1e-6)  # what float16 cannot hold
    result = unlearned(pipeline, folder, settings={"learning_rate": 1e-2, "guard_every_steps": 0})
    result.save(tmp_path / "delta", form="delta")
    clean = apply_delta(load_backbone(pipeline), tmp_path / "delta")
    original = revert_delta(load_backbone(result.pipeline), tmp_path / "delta")
    for made, wanted in ((clean, result.pipeline), (original, pipeline)):
        pairs = zip(made.unet.state_dict().values(), wanted.unet.state_dict().values(), strict=True)
        assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def test_a_damaged_delta_is_refused(pipeline, folder, tmp_path):
    unlearned(pipeline, folder).save(tmp_path / "delta", form="delta")
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
