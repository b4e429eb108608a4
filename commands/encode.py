"""`flowturbo_trt encode`."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from flowturbo_trt.commands.common import Console, make_command
from flowturbo_trt.models.autoencoder import load_encoder
from flowturbo_trt.models.catalogue import resolve
from flowturbo_trt.training.cache_format import SKIPPED_FILE
from flowturbo_trt.training.distributed import DEVICES, choose_device
from flowturbo_trt.training.encode import DTYPES, Encoded, EncodeOptions, encode_images
from flowturbo_trt.training.images import ImageFolder, find_images
from flowturbo_trt.training.interrupts import terminations_as_interrupts

HELP = {
    "size": "Side of the square that is cut from every image, in pixels.",
    "flip": "Encode every image mirrored as well; training visits one or the other.",
    "dtype": "What the moments are kept in.",
    "shard_size": "Images to a shard. An interrupted run goes on with the next shard.",
    "batch": "Images encoded at once.",
    "workers": "Threads that read images.  [default: all cores]",
    "strict": "Fail at the first image that cannot be read, instead of leaving it out.",
    "check": "Hash the shards that are there already, too; one that is damaged is made anew.",
}


def encode_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add one option per field of EncodeOptions, with its default."""
    for field in reversed(dataclasses.fields(EncodeOptions)):
        settings: dict[str, Any] = {"default": field.default, "help": HELP[field.name]}
        settings["show_default"] = field.name != "workers" and not isinstance(field.default, bool)
        if isinstance(field.default, bool):
            settings["is_flag"] = True
        if field.name == "dtype":
            settings["type"] = click.Choice(list(DTYPES))
        function = click.option("--" + field.name.replace("_", "-"), **settings)(function)
    return function


@make_command(name="encode", short_help="Encode a folder of images into a latent cache to train on.")
@click.argument("images", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--encoder", required=True, help="The autoencoder: a diffusers folder, a file, or a public model's name."
)
@encode_options
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="JSON file with every image's label by relative path, instead of classes by folder.",
)
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True, help="What encodes.")
@click.option("--download", is_flag=True, help="Fetch a public model that is given by name.")
def command(
    console: Console,
    images: Path,
    out: Path,
    encoder: str,
    labels: Path | None,
    device: str,
    download: bool,
    **settings: Any,
) -> None:
    """Encode the images in the folder IMAGES into the latent cache OUT, a folder that `train` reads.

    Every sub-folder of IMAGES is a class, numbered in the order of their names; without sub-folders all
    images are of class 0. Images are turned as their EXIF orientation says, transparency becomes white, and
    a square is cut from the middle as ADM does it. Those that cannot be read are left out and listed.
    Run again, it goes on where it stopped.

    \b
    flowturbo_trt encode photos latents --encoder sd-vae-ft-ema --size 256 --flip
    """
    options = EncodeOptions(**settings)
    chosen = choose_device(device)
    found = find_images(images, labels)
    console.info(_found(found, labels))
    started = time.perf_counter()
    with console.progress() as progress, terminations_as_interrupts():
        network, checkpoint = load_encoder(resolve(encoder, download, progress))
        encoded = encode_images(found, network.to(chosen), checkpoint, out, options, progress)
    document = {
        "command": "encode",
        "cache": str(out),
        "latents": encoded.cache.rows,
        "latent": list(encoded.cache.latent),
        "classes": len(set(found.labels)),
        "skipped": encoded.cache.skipped,
        "ignored": found.ignored,
        "shards": len(encoded.cache.shards),
        "shards_made": encoded.shards_made,
        "bytes": sum(shard.bytes for shard in encoded.cache.shards),
        "seconds": time.perf_counter() - started,
    }
    console.result(document, _summary(encoded, out))


def _found(images: ImageFolder, labels: Path | None) -> str:
    kinds = len(images.classes)
    of = f"{kinds} classes" if kinds > 1 else "one class, 0"
    ignored = f"; {images.ignored} other files are passed over" if images.ignored else ""
    return f"{len(images)} images, {of if labels is None else f'labelled by {labels}'}{ignored}"


def _summary(encoded: Encoded, out: Path) -> str:
    cache = encoded.cache
    C, H, W = cache.latent
    megabytes = sum(shard.bytes for shard in cache.shards) / 1e6
    mirrored = ", also mirrored," if cache.preparation.flip else ""
    lines = [
        f"{cache.rows} latents {C}×{H}×{W}{mirrored} in {len(cache.shards)} shards, {megabytes:.3g} MB: {out}"
    ]
    if encoded.shards_made == 0:
        lines[0] += " (finished before)"
    if cache.skipped:
        lines.append(f"left out as unreadable: {cache.skipped}, listed in {out / SKIPPED_FILE}")
    return "\n".join(lines)
