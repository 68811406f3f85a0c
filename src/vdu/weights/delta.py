"""Only what unlearning changed, as one safetensors file that can be put on and taken off again.

    δ = bits(θ*) ⊕ bits(θ_u)     for every tensor that changed

The difference is that of the bit patterns, since θ* + (θ_u − θ*) in floating point is not θ_u. The same δ thus leads
both ways, exactly; the weights' hashes before and after say to which model it belongs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vdu.backbone import Backbone, weights_sha256
from vdu.errors import VduError
from vdu.weights.checkpoint import read_tensors, write_tensors

__all__ = ["DELTA_FILE", "apply_delta", "revert_delta", "write_delta"]

DELTA_FILE = "delta.safetensors"
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
BEFORE, AFTER = "original_sha256", "unlearned_sha256"


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().view(BITS[tensor.element_size()])


def write_delta(path: Path, original: nn.Module, unlearned: nn.Module) -> None:
    """Write what differs between two networks of the same architecture, each tensor as precise as ``unlearned``'s."""
    before, after = original.state_dict(), unlearned.state_dict()
    dtype = min((weights.dtype for weights in after.values()), key=lambda kind: kind.itemsize)
    differences = {}
    for name, weights in after.items():
        difference = _bits(before[name].to(weights.dtype)) ^ _bits(weights)
        if difference.any():
            differences[name] = difference
    hashes = {BEFORE: weights_sha256(original), AFTER: weights_sha256(unlearned)}
    write_tensors(path, differences, hashes | {"dtype": str(dtype).removeprefix("torch.")})


def _flip(weights: Mapping[str, Tensor], differences: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Flip ``differences`` in place in float32 ``weights``; ``dtype`` is the least precise that the delta holds."""
    for name, difference in differences.items():
        own = next(kind for kind in (dtype, *DTYPES.values()) if BITS[kind.itemsize] == difference.dtype)
        flipped = _bits(weights[name].to(own)) ^ difference
        weights[name].copy_(flipped.view(own).float())


def _moved(model: Backbone, delta: Path, start: str, end: str) -> Any:
    """The model's pipeline with the delta's bits flipped, checked against the hashes on both sides."""
    file = delta / DELTA_FILE if delta.is_dir() else delta
    if not file.is_file():
        raise VduError(f"{delta} is no delta: give the folder or file that `vdu unlearn --save delta` wrote")
    differences, metadata = read_tensors(file)
    if not {start, end, "dtype"} <= metadata.keys() or metadata["dtype"] not in DTYPES:
        raise VduError(f"{file} is not a delta of vdu: give what `vdu unlearn --save delta` wrote")
    found = weights_sha256(model.network)
    if found != metadata[start]:
        hint = "it is so already" if found == metadata[end] else "this is another model"
        raise VduError(f"{file} is for weights {metadata[start][:12]}…, the model has {found[:12]}…: {hint}")
    network, dtype = model.trainable_copy(), DTYPES[metadata["dtype"]]
    weights = network.state_dict()
    fits = all(
        name in weights and weights[name].shape == d.shape and d.dtype in BITS.values()
        for name, d in differences.items()
    )
    if fits:
        _flip(weights, differences, dtype)
    if not fits or weights_sha256(network) != metadata[end]:
        raise VduError(f"{file} does not lead to the weights that it names: the file is damaged")
    return model.with_network(network)


def apply_delta(original: Backbone, delta: Path) -> Any:
    """The unlearned pipeline from the original and its delta (file or folder). Raises `VduError` for another model."""
    return _moved(original, delta, BEFORE, AFTER)


def revert_delta(unlearned: Backbone, delta: Path) -> Any:
    """The original pipeline from the unlearned one and the delta. Raises `VduError` for another model."""
    return _moved(unlearned, delta, AFTER, BEFORE)
