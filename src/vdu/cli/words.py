"""`vdu words`: which words ask a text-to-image model for the pictures of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vdu.cli.options import Config, DeviceOption, Model, Overwrite, Precision, Seed, open_model

__all__ = ["words_command"]


def words_command(
    model: Model,
    forget: Annotated[Path, typer.Option(help="folder of pictures that the words should ask for")],
    show: Annotated[int, typer.Option(min=1, help="how many words are shown")] = 12,
    config: Config = None,
    seed: Seed = 0,
    precision: Precision = "auto",
    device: DeviceOption = None,
    out: Annotated[Path | None, typer.Option(help="write all words that stay to this JSON file")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Which single words of its vocabulary ask MODEL for the pictures in FORGET: what --prompt could be."""
    from dataclasses import asdict

    from vdu.device import resolve_device
    from vdu.images.image_set import load_image_set
    from vdu.output import refuse_existing
    from vdu.precision import resolve_precision
    from vdu.records import write_record
    from vdu.text.vocabulary import asking_words, refuse_wordless

    if out:
        refuse_existing(out, overwrite)
    place = resolve_device(device)
    backbone = open_model(model, config=config, device=place)
    refuse_wordless(backbone)
    pictures = load_image_set(forget, backbone.shape)
    found = asking_words(
        backbone,
        backbone.encode(pictures.images),
        seed,
        precision=resolve_precision(precision, place),
        on_round=lambda words, images: typer.echo(f"{words} words at {images} noised pictures"),
    )
    for word in found[:show]:
        typer.echo(f"{word.text:<16s} {1000 * word.gain:+7.2f} ± {1000 * word.standard_error:.2f}")
    typer.echo("thousandths of the squared error that the word takes off the empty prompt's, and its standard error")
    if out:
        words = [asdict(word) for word in found]
        write_record(out, {"model": model, "forget": pictures.record(), "seed": seed, "words": words})
