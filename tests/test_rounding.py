"""Weights in half precision keep what unlearning did to them on average, and each is as precise as the user's own."""

import pytest
import torch
from conftest import make_pipeline

from vdu.backbone import load_backbone
from vdu.backbone.rounding import rounded


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_changes_of_less_than_half_a_step_stay_on_average(dtype):
    g = torch.Generator().manual_seed(0)
    before = (torch.randn(200_000, generator=g) * 0.05).to(dtype).float()
    change = 2e-5
    after = rounded(before + change, dtype, g).float()
    assert (after - before).mean() == pytest.approx(change, rel=0.05)
    assert torch.equal(rounded(before, dtype, g).float(), before)
    spacing = torch.finfo(dtype).eps * before.abs().maximum(after.abs()).clamp(min=torch.finfo(dtype).smallest_normal)
    assert ((after - before - change).abs() <= 2 * spacing + 1e-9).all()


def test_it_is_up_or_down_as_often_as_the_value_is_near():
    value = torch.full((100_000,), 1 + 0.25 * torch.finfo(torch.float16).eps)
    high = rounded(value, torch.float16, torch.Generator().manual_seed(0)) > 1
    assert high.float().mean() == pytest.approx(0.25, abs=0.01)
    low = rounded(-value, torch.float16, torch.Generator().manual_seed(0)) < -1
    assert torch.equal(high, low)
    assert rounded(torch.tensor([0.0, 1e9]), torch.float16, torch.Generator()).tolist() == [0.0, float("inf")]


def test_every_tensor_is_handed_out_as_precise_as_it_was_given():
    pipeline = make_pipeline()
    pipeline.unet.to(torch.bfloat16).conv_out.float()
    backbone = load_backbone(pipeline)
    moved = backbone.trainable_copy()
    with torch.no_grad():
        for p in moved.parameters():
            p.add_(1e-5)
    first, again = (backbone.with_network(moved).unet.state_dict() for _ in range(2))
    for name, theirs in pipeline.unet.state_dict().items():
        assert first[name].dtype == theirs.dtype
        assert torch.equal(first[name], again[name])
    assert torch.equal(first["conv_out.weight"], moved.state_dict()["conv_out.weight"])


def test_the_memory_format_stays():
    weights = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
    after = rounded(weights, torch.float16, torch.Generator().manual_seed(0))
    assert after.stride() == weights.stride()
    assert torch.equal(after, rounded(weights.contiguous(), torch.float16, torch.Generator().manual_seed(0)))
