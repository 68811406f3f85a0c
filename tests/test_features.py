"""What the frozen network knows of a picture: each inner block's map by quarters, against a loop."""

import pytest
import torch
from conftest import make_pipeline

from vdu.backbone import load_backbone
from vdu.diffusion.noising import Clean
from vdu.methods import find_method, make_settings
from vdu.preparation.preparation import Preparation


def naive_quarters(inner_map: torch.Tensor, largest: bool) -> list[float]:
    """Of ``(C, h, w)``: means of its four quarters, channel by channel, then their largest values."""
    half = max(1, inner_map.shape[1] // 2)
    starts = [(0, 0), (0, -half), (-half, 0), (-half, -half)]
    quarters = [
        [channel[y : y + half or None, x : x + half or None] for y, x in starts] for channel in inner_map.double()
    ]
    found = [float(quarter.mean()) for channel in quarters for quarter in channel]
    return found + ([float(quarter.max()) for channel in quarters for quarter in channel] if largest else [])


@pytest.mark.parametrize("largest", [False, True])
def test_features_are_means_of_quarters_and_their_largest_values_where_wanted(largest):
    backbone = load_backbone(make_pipeline())
    backbone.largest_features = largest
    network, maps = backbone.network, []
    for block in (*network.down_blocks[1:], network.mid_block, *network.up_blocks[:-1]):
        block.register_forward_hook(lambda _, __, out: maps.append(out[0] if isinstance(out, tuple) else out))
    x_t, t = torch.randn(2, *backbone.shape, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 30])
    _, found = backbone.original_with_features(x_t, t)
    for i in range(2):
        naive = [value for inner_map in maps for value in naive_quarters(inner_map[i], largest)]
        torch.testing.assert_close(found[i], torch.tensor(naive), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(backbone.original_features(x_t, t), found)


@pytest.mark.usefixtures("few_samples")
def test_vdu_tells_the_undesired_by_them_where_it_is_told_to(forget):
    dimensions = []
    for largest in (False, True):
        backbone = load_backbone(make_pipeline())
        preparation = Preparation(backbone, Clean(forget), seed=0, own_count=8, bank_items=16, score_steps=1)
        settings = make_settings(find_method("vdu"), {"largest_features": largest})
        find_method("vdu").build(settings, preparation, backbone.trainable_copy())
        dimensions.append({bank.features.shape[1] for bank in (preparation.own_bank, preparation.forget_bank)})
    (means,), (both,) = dimensions
    assert both == 2 * means
