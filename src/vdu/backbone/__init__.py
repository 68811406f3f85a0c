"""The seam to diffusers: the only package that knows pipeline classes. A new architecture is one file here.

`contract` says what the rest of the library relies on; `ddpm`, `stable_diffusion`, `stable_diffusion_xl` fill it;
`single_file` reads checkpoints of other programs; `loading` chooses.
"""

from __future__ import annotations

from vdu.backbone.contract import Backbone, placed, weights_sha256
from vdu.backbone.loading import load_backbone, source_of

__all__ = ["Backbone", "load_backbone", "placed", "source_of", "weights_sha256"]
