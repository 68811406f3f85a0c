"""`vdu posterior …`: make and show p(θ|D)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vdu.cli.options import (
    Config,
    DeviceOption,
    Model,
    Overwrite,
    PromptsFile,
    Seed,
    make_app,
    make_prompts,
    open_model,
)

__all__ = ["app"]

PosteriorFile = Annotated[Path, typer.Option(help=".safetensors file to write")]

app = make_app("The Gaussian posterior p(θ|D) over the pre-trained weights.")


@app.command("checkpoints")
def posterior_checkpoints(
    model: Model,
    checkpoints: Annotated[list[Path], typer.Argument(help=".safetensors files or pipeline folders")],
    out: PosteriorFile,
    anchor: Annotated[str, typer.Option(help="weights (what is sampled) or mean (of the checkpoints)")] = "weights",
    config: Config = None,
    overwrite: Overwrite = False,
) -> None:
    """From saved checkpoints of the pre-training run, streamed."""
    from vdu.output import refuse_existing
    from vdu.posterior import from_checkpoints

    refuse_existing(out, overwrite, sources=checkpoints)
    _write_posterior(from_checkpoints(open_model(model, config=config), checkpoints, anchor=anchor), out)


@app.command("fisher")
def posterior_fisher(
    model: Model,
    out: PosteriorFile,
    samples: Annotated[int, typer.Option(min=2, help="own samples, one gradient each")] = 256,
    scale: Annotated[float, typer.Option(help="prior standard deviation")] = 1e-2,
    prompts: PromptsFile = None,
    config: Config = None,
    seed: Seed = 0,
    device: DeviceOption = None,
    overwrite: Overwrite = False,
) -> None:
    """From the diagonal Fisher on the model's own samples: for a model with one checkpoint."""
    from vdu.device import resolve_device
    from vdu.diffusion.noising import Clean
    from vdu.diffusion.sampling import sample as draw
    from vdu.output import refuse_existing
    from vdu.posterior import check_scale, from_fisher

    check_scale(scale)
    refuse_existing(out, overwrite)
    backbone = open_model(model, make_prompts(model, None, prompts, None), config, resolve_device(device))
    images = Clean(draw(backbone, backbone.network, samples, seed), backbone.sample_conditions(samples))
    _write_posterior(from_fisher(backbone, images, seed=seed, scale=scale), out)


@app.command("isotropic")
def posterior_isotropic(
    model: Model,
    out: PosteriorFile,
    scale: Annotated[float, typer.Option(help="its standard deviation")] = 1e-3,
    config: Config = None,
    overwrite: Overwrite = False,
) -> None:
    """The same spread for every parameter: plain L2 to the released weights."""
    from vdu.output import refuse_existing
    from vdu.posterior import isotropic

    refuse_existing(out, overwrite)
    _write_posterior(isotropic(open_model(model, config=config), scale), out)


@app.command("show")
def posterior_show(file: Annotated[Path, typer.Argument()]) -> None:
    """Spread, floor share and a summary of every layer."""
    from vdu.posterior import load_posterior

    _show_posterior(load_posterior(file))


def _write_posterior(posterior: Any, out: Path) -> None:
    posterior.save(out)
    _show_posterior(posterior)
    typer.echo(f"posterior: {out}")


def _show_posterior(posterior: Any) -> None:
    from vdu.posterior import summarise

    typer.echo(f"source {posterior.source}, K = {posterior.count}, model {posterior.model_sha256[:12]}")
    typer.echo(f"{'layer':32s}{'parameters':>11s}{'median sd':>12s}{'least':>12s}{'most':>12s}{'at floor':>10s}")
    for name, s in summarise(posterior).items():
        spread = f"{s.median_sd:12.3e}{s.smallest_sd:12.3e}{s.largest_sd:12.3e}{s.floor_share:10.1%}"
        typer.echo(f"{name:32s}{s.parameters:11,d}{spread}")
