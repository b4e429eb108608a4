"""`flowturbo_trt evaluate`."""

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime

from flowturbo_trt.bundle.environment import versions
from flowturbo_trt.commands.common import JSON_VERSION, Console, make_command
from flowturbo_trt.commands.files import FileError, IntegerList, check_outputs
from flowturbo_trt.evaluation.comparison.options import ComparisonOptions
from flowturbo_trt.evaluation.quality.images import ImageSet, ImageSetError, Rows, open_images
from flowturbo_trt.evaluation.quality.judge import (
    METRICS,
    Judgement,
    check_metrics,
    judge,
    open_extractor,
    open_reference,
)
from flowturbo_trt.evaluation.quality.measures import Labels
from flowturbo_trt.evaluation.quality.reference import BATCH, save_statistics
from flowturbo_trt.runtime.backend import PROVIDERS
from flowturbo_trt.sampling.noise import MAX_SEED

ARROWS = {"lower": "↓", "higher": "↑"}
# Options that mean something with --compare only, and without it only.
COMPARING = (
    *("baseline", "guidance", "latency_batch", "max_seconds"),
    *("truth_schedule", "truth_num", "backend", "provider"),
)
JUDGING = ("labels", "batch", "save_statistics")


@make_command(name="evaluate", short_help="Judge images (FID and the rest), or compare schedules.")
@click.argument("samples", type=click.Path(path_type=Path))
@click.argument("reference", type=click.Path(path_type=Path))
@click.option(
    "--extractor",
    type=click.Path(path_type=Path),
    required=True,
    help="Feature extractor: .onnx, TorchScript .pt or .ts, or the FID Inception weights .pth.",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    help=f"One of {', '.join(METRICS)}; repeatable. Default: all that can be had.",
)
@click.option(
    "--num",
    type=click.IntRange(min=2),
    help=f"Judge so many of SAMPLES, chosen at random. Default: all; {ComparisonOptions.num} with --compare.",
)
@click.option(
    "--seed", type=click.IntRange(0, MAX_SEED), default=0, help="Of that choice, or of the noise. Default: 0."
)
@click.option("--labels", type=IntegerList(), help="The class of each sample, where SAMPLES does not tell.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write the JSON document there; a folder with --compare."
)
@click.option(
    "--save-statistics",
    type=click.Path(path_type=Path),
    help="Write what was computed of REFERENCE as .npz, to be given as REFERENCE from then on.",
)
@click.option("--batch", type=click.IntRange(min=1), help=f"Images judged at once. Default: {BATCH}.")
@click.option("--device", help="cpu, cuda or cuda:N. Default: cpu; with --compare the backend's.")
@click.option("--threads", type=click.IntRange(min=0), default=0, help="CPU threads. Default: all cores.")
@click.option(
    "--compare",
    "compared",
    multiple=True,
    help="Take SAMPLES as a bundle and compare schedules, e.g. H8,H1P5R3,AB2x8; repeatable.",
)
@click.option(
    "--baseline",
    help=f"With --compare: the schedule that acceleration is against. Default: {ComparisonOptions.baseline}.",
)
@click.option("--guidance", type=float, help="With --compare: guidance scale. Default: the bundle's.")
@click.option(
    "--latency-batch",
    type=click.IntRange(min=1),
    help="With --compare: images of a timed batch. Default: the largest built.",
)
@click.option(
    "--truth-schedule",
    help=f"With --compare: the fine schedule that latents are held against. "
    f"Default: {ComparisonOptions.truth_schedule}.",
)
@click.option(
    "--truth-num",
    type=click.IntRange(min=1),
    help=f"With --compare: how many images follow that schedule. Default: {ComparisonOptions.truth_num}.",
)
@click.option(
    "--max-seconds",
    type=click.FloatRange(0, min_open=True),
    help="With --compare: stop timing after this, stable or not. "
    f"Default: {ComparisonOptions.stability.seconds:g}.",
)
@click.option("--backend", help="With --compare: what runs the engines.")
@click.option("--provider", type=click.Choice(PROVIDERS), help="With --compare: what ONNX Runtime runs on.")
def command(
    console: Console,
    samples: Path,
    reference: Path,
    extractor: Path,
    compared: tuple[str, ...],
    metrics: tuple[str, ...],
    **given: Any,
) -> None:
    """Judge SAMPLES against REFERENCE: FID, sFID, Inception Score, KID, precision and recall.

    SAMPLES is a folder of images, a folder that `generate` wrote, or an .npz (arr_0) or .npy file of images
    (N,H,W,3). REFERENCE is one of these, an .npz of published statistics (mu, sigma), or what
    --save-statistics wrote.

    \b
    flowturbo_trt evaluate samples/ real/ --extractor extractor.onnx
    flowturbo_trt evaluate bundle real/ --extractor extractor.onnx --compare H8,H1P5R3 --out report
    """
    check_metrics(metrics)
    refuse(given, JUDGING if compared else COMPARING, "with" if compared else "without")
    if not console.shows_tracebacks:
        # What ONNX Runtime would print is raised as an error as well. The process is ours to silence.
        onnxruntime.set_default_logger_severity(4)
    if compared:
        # Imported here: what is only judged draws no plots.
        from flowturbo_trt.commands import comparing

        comparing.run(
            console,
            bundle=samples,
            reference=reference,
            extractor=extractor,
            schedules=split_schedules(compared),
            metrics=metrics,
            **{name: value for name, value in given.items() if name not in JUDGING},
        )
    else:
        evaluate(console, samples, reference, extractor, metrics, given)


def refuse(given: dict[str, Any], names: tuple[str, ...], when: str) -> None:
    """Raise a usage error for an option that would be ignored."""
    for name in names:
        if given[name] is not None:
            raise click.UsageError(f"--{name.replace('_', '-')} means nothing {when} --compare; leave it out")


def split_schedules(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Split lists of schedules at commas, but for those between the times of a schedule's own grid."""
    schedules: list[str] = []
    for text in texts:
        begun = False
        for part in text.split(","):
            part = part.strip()
            # A schedule begins with the letter of its first step, a time does not.
            if begun and part.startswith(tuple("0123456789.")):
                schedules[-1] += f",{part}"
            else:
                schedules.append(part)
            begun = True
    return tuple(schedules)


def evaluate(
    console: Console,
    samples: Path,
    reference: Path,
    extractor_file: Path,
    metrics: tuple[str, ...],
    given: dict[str, Any],
) -> None:
    """Judge images and print what was found."""
    out, statistics = given["out"], given["save_statistics"]
    check_files(out, statistics)
    extractor = open_extractor(extractor_file, given["device"] or "cpu", given["threads"])
    images = open_images(samples)
    rows = chosen_rows(images, given["num"], given["seed"])
    labels = labels_of(images, given["labels"], rows)
    batch = given["batch"] or BATCH
    # What the extractor cannot read shows now, not after the reference.
    extractor.dimensions(next(images.batches(2)))
    with console.progress() as progress:
        against = open_reference(reference, extractor, progress, batch=batch)
        if statistics is not None:
            save_statistics(against, extractor, statistics)
        count = len(images) if rows is None else len(rows)
        found = judge(images.batches(batch, rows), count, against, extractor, metrics, labels, progress)
    for note in found.notes:
        console.info(f"note: {note}")
    document = {
        "command": "evaluate",
        "samples": str(samples),
        "reference": str(reference),
        "extractor": {"path": str(extractor_file), "sha256": extractor.sha256},
        **describe(found),
        "seed": None if rows is None else given["seed"],
        "versions": versions(),
    }
    if out is not None:
        text = json.dumps({"version": JSON_VERSION, **document}, indent=1, ensure_ascii=False)
        out.write_text(text + "\n", encoding="utf-8")
    console.result(document, table(found))


def check_files(out: Path | None, statistics: Path | None) -> None:
    """Refuse outputs that cannot be written, before any work."""
    if statistics is not None and statistics.suffix != ".npz":
        raise click.UsageError(f"--save-statistics {statistics}: expected a name ending in .npz")
    if files := [file for file in (out, statistics) if file is not None]:
        check_outputs(files, None)


def chosen_rows(images: ImageSet, num: int | None, seed: int) -> Rows | None:
    """Return the indices of `num` of the images, increasing; None for all."""
    if num is None or num == len(images):
        return None
    if num > len(images):
        raise ImageSetError(f"--num {num}: {images.path} holds {len(images)} images; give at most that")
    # Not the first ones: folders are sorted by class more often than not.
    return np.sort(np.random.default_rng(seed).choice(len(images), num, replace=False))


def labels_of(images: ImageSet, given: list[int] | None, rows: Rows | None) -> Labels | None:
    """Return the labels of the images that are judged, None where nobody tells them."""
    labels = images.labels if given is None else np.array(given, dtype=np.int64)
    if labels is None:
        return None
    if len(labels) != len(images):
        raise FileError(
            f"--labels gives {len(labels)} labels, {images.path} holds {len(images)} images; give one for "
            "each"
        )
    return labels if rows is None else labels[rows]


def describe(found: Judgement) -> dict[str, Any]:
    """Return a judgement as plain data."""
    return {
        "count": found.count,
        "reference_count": found.reference_count,
        "values": dict(found.values),
        "intervals": {name: list(interval) for name, interval in found.intervals.items()},
        "notes": list(found.notes),
    }


def table(found: Judgement) -> str:
    """Lay the metrics out for people, one a line."""
    references = "" if found.reference_count is None else f" against {found.reference_count} references"
    lines = [f"{found.count} samples{references}"]
    for name, value in found.values.items():
        metric = METRICS[name]
        spread = ""
        if name in found.intervals:
            low, high = found.intervals[name]
            spread = f"  (95 %: {low:.4g} to {high:.4g})"
        lines.append(f"  {metric.title:<10} {ARROWS[metric.better]} {value:<8.4g}{spread}".rstrip())
    return "\n".join(lines)
