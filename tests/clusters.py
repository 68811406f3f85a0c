"""Banks of two clusters, of which it is known what is undesired."""

import torch

from vdu.diffusion.noised_bank import NoisedBank

DRAWS = 8


def bank_of(means: torch.Tensor, seed: int) -> NoisedBank:
    """A bank whose 16 features are the image's mean, each with noise that grows with time."""
    g = torch.Generator().manual_seed(seed)
    count = DRAWS * len(means)
    t_share = (torch.arange(DRAWS).repeat_interleave(len(means)) + torch.rand(count, generator=g)) / DRAWS
    features = means.repeat(DRAWS).unsqueeze(1) + 6 * t_share.unsqueeze(1) * torch.randn(count, 16, generator=g)
    empty = torch.zeros(count, 1, 1, 1)
    return NoisedBank(len(means), DRAWS, empty, (t_share * 1000).long(), t_share, empty, empty, features, features)


def make_clusters() -> tuple[NoisedBank, NoisedBank, torch.Tensor]:
    """Forget images at +2; own samples at −2, but for every fifth, which is of the undesired kind and at +1.5."""
    undesired = torch.arange(200) % 5 == 0
    g = torch.Generator().manual_seed(3)
    own = torch.where(undesired, 1.5, -2.0) + 0.3 * torch.randn(200, generator=g)
    return bank_of(2 + 0.3 * torch.randn(50, generator=g), 1), bank_of(own, 2), undesired
