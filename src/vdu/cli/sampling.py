"""`vdu train` and `vdu sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vdu.cli.options import (
    Config,
    DeviceOption,
    GuidanceScale,
    Model,
    Overwrite,
    PromptsFile,
    Seed,
    make_prompts,
    open_model,
)
from vdu.quiet import quiet

__all__ = ["sample", "train"]


def train(
    recipe: Annotated[str, typer.Argument(help="recipe name or .toml file")],
    data: Annotated[Path, typer.Option(help="folder with the corpus")],
    out: Annotated[Path, typer.Option(help="run folder; run again to resume")],
    without: Annotated[
        list[str] | None, typer.Option(metavar="CLASS", help="train the oracle, which never sees this class")
    ] = None,
) -> None:
    """Train a model from a recipe, with the checkpoints that its posterior is made of."""
    quiet()
    from vdu.errors import VduError
    from vdu.training.text_to_image.recipe import is_text_recipe, read_text_recipe

    if is_text_recipe(recipe):
        if without:
            raise VduError(f"recipe {recipe} is of a model with text, which has no oracle yet: leave --without out")
        from vdu.training.text_to_image.training import train_text_to_image

        typer.echo(f"pipeline: {train_text_to_image(read_text_recipe(recipe), data, out)}")
        return
    from vdu.training.denoiser import train as run
    from vdu.training.recipe import read_recipe

    typer.echo(f"pipeline: {run(read_recipe(recipe, without or ()), data, out)}")


def sample(
    model: Model,
    out: Annotated[Path, typer.Option(help="PNG file of a grid")],
    count: Annotated[int, typer.Option(min=1)] = 64,
    steps: Annotated[int, typer.Option(min=1, help="sampler steps")] = 25,
    prompts: PromptsFile = None,
    guidance_scale: GuidanceScale = None,
    config: Config = None,
    seed: Seed = 0,
    device: DeviceOption = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a grid of samples."""
    from vdu.device import resolve_device
    from vdu.output import refuse_existing, replacing

    refuse_existing(out, overwrite)
    place = resolve_device(device)
    backbone = open_model(model, make_prompts(model, None, prompts, guidance_scale), config, place)
    from vdu.diffusion.sampling import sample as draw
    from vdu.images.grids import image_grid

    images = backbone.decode(draw(backbone, backbone.network, count, seed, steps=steps))
    with replacing(out) as beside:
        image_grid(images, columns=min(16, count)).save(beside, format="PNG")
    typer.echo(str(out))
