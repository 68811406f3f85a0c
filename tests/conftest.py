"""Real diffusers classes at a tiny size."""

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from vdu.backbone import Backbone, load_backbone


def make_pipeline(prediction_type: str = "epsilon", seed: int = 0) -> DDPMPipeline:
    torch.manual_seed(seed)
    network = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=4,
    )
    return DDPMPipeline(network, DDPMScheduler(num_train_timesteps=50, prediction_type=prediction_type))


@pytest.fixture
def backbone() -> Backbone:
    return load_backbone(make_pipeline())


@pytest.fixture
def forget() -> torch.Tensor:
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
