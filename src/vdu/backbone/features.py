"""What a frozen U-Net knows of a noised picture: h(x_t, t, c), its inner blocks' outputs, pooled to at most 2×2.

Pooled by their mean, and where it is wanted by their largest value as well: a few strokes in a corner say little in a
mean.

A diffusion U-Net's inner layers separate classes (Baranchuk et al., arXiv 2112.03126), so a discriminator on them
generalises from few images. The last block, which works at the picture's own size and takes a quarter to a third of a
pass, is none of them: it is left out where nothing but features is wanted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d

__all__ = ["features_taken"]


class _AllTaken(Exception):  # noqa: N818 -- nothing went wrong
    """Ends a pass whose output nobody wants."""


def _end_of_pass(_: nn.Module, __: Any) -> None:
    raise _AllTaken


@contextmanager
def features_taken(network: Any, alone: bool = False, largest: bool = False) -> Iterator[list[Tensor]]:
    """Each pass of ``network`` inside the block adds its features, some ``(B, D)``, to the list.

    With ``largest``, the largest values beside the means. With ``alone`` the first pass ends with the last of them, and
    so does the block.
    """
    taken: list[Tensor] = []
    poolings = (adaptive_avg_pool2d, adaptive_max_pool2d) if largest else (adaptive_avg_pool2d,)

    def take(_: nn.Module, __: Any, out: Tensor | tuple[Tensor, ...]) -> None:
        tensor = (out[0] if isinstance(out, tuple) else out).float()
        whole = tensor.cpu() if tensor.is_mps else tensor  # where some versions of torch refuse maps of odd size
        taken.extend(pool(whole, 2).flatten(1).to(tensor.device) for pool in poolings)

    blocks = [*network.down_blocks[1:], network.mid_block, *network.up_blocks[:-1]]
    handles = [block.register_forward_hook(take) for block in blocks if block is not None]
    if alone:
        handles.append(network.up_blocks[-1].register_forward_pre_hook(_end_of_pass))
    try:
        yield taken
    except _AllTaken:
        pass
    finally:
        for handle in handles:
            handle.remove()
