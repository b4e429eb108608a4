"""`flowturbo_trt diagnose`."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.commands.common import JSON_VERSION, Console, make_command
from flowturbo_trt.commands.files import FileError, IntegerList
from flowturbo_trt.commands.running import running_options
from flowturbo_trt.evaluation.velocity.description import age_summaries, describe, worth
from flowturbo_trt.evaluation.velocity.diagnosis import Diagnosis, diagnose
from flowturbo_trt.evaluation.velocity.figure import draw
from flowturbo_trt.evaluation.velocity.plan import DiagnosisOptions, make_plan
from flowturbo_trt.evaluation.velocity.verdict import ranges, verdict
from flowturbo_trt.runtime.backend import default_backend, load_backend

NAME = "diagnose"


class Labels(IntegerList):
    """Integers as in an IntegerList, or `balanced`: no labels of its own."""

    name = "balanced|1,2,5-9|FILE.npy"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        return [] if value in ("balanced", []) else super().convert(value, param, ctx)


@make_command(name=NAME, short_help="Show how steady velocities are, and what a refiner is worth.")
@click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder for diagnose.json, .png, .svg."
)
@click.option("--labels", type=Labels(), default="balanced", show_default=True, help="Classes, in turn.")
@click.option(
    "--num", type=click.IntRange(min=1), default=DiagnosisOptions.num, show_default=True, help="Images."
)
@click.option(
    "--seed", type=int, default=DiagnosisOptions.seed, show_default=True, help="Of the first image."
)
@click.option("--guidance", type=float, help="Guidance scale; 1 is none. Default: the bundle's.")
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=DiagnosisOptions.steps,
    show_default=True,
    help="Heun steps of the trajectories that are the truth.",
)
@click.option(
    "--schedule",
    help="Whose R steps to look at. Default: the bundle's if it has R steps, "
    f"else {DiagnosisOptions.usual_schedule}.",
)
@running_options
def command(
    console: Console,
    path: Path,
    out: Path,
    labels: list[int],
    backend: str | None,
    device: str | None,
    provider: str | None,
    threads: int,
    **given: Any,
) -> None:
    """Show how BUNDLE's velocities change along trajectories, and what a refiner is worth there.

    Before training, on a bundle without a refiner: whether one can help. After it: whether it does.

    \b
    flowturbo_trt diagnose bundle --num 64 --schedule H1P5R3 --out diagnosis
    """
    if not console.shows_tracebacks:
        # What ONNX Runtime would print is raised as an error as well. The process is ours to silence.
        onnxruntime.set_default_logger_severity(4)
    bundle = Bundle.open(path)
    name = backend or default_backend(bundle.manifest)
    options = DiagnosisOptions(labels=tuple(labels), **given)
    with contextlib.closing(load_backend(name, bundle, device, threads, provider)) as opened:
        plan = make_plan(bundle.manifest, name, options)
        make_folder(out)
        with console.progress() as progress:
            diagnosis = diagnose(bundle.manifest, name, opened, plan, progress)
    document = {"command": NAME, "bundle": str(path), "backend": name, **describe(diagnosis)}
    document["verdict"] = verdict(diagnosis)
    files = [out / f"{NAME}.{suffix}" for suffix in ("json", "png", "svg")]
    text = json.dumps({"version": JSON_VERSION, **document}, indent=1, ensure_ascii=False)
    files[0].write_text(f"{text}\n", encoding="utf-8")
    draw(diagnosis, files[1:])
    console.result(
        document | {"outputs": list(map(str, files))},
        "\n".join([*lines(diagnosis), "", ", ".join(map(str, files))]),
    )


def make_folder(out: Path) -> None:
    """Make a folder to write into; raises FileError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{out}: cannot be a folder ({error.strerror}); give another path") from error
    if not os.access(out, os.W_OK):
        raise FileError(f"{out}: cannot be written; give a folder you may write to")


def lines(diagnosis: Diagnosis) -> list[str]:
    """Lay the diagnosis out for people: tables of medians over images, then the verdict."""
    plan = diagnosis.plan
    tables = {
        f"change per unit of time along H{plan.steps}": _stability_rows(diagnosis),
        "error of the velocity at s, from the one at s − Δ": _age_rows(diagnosis),
        f"error of the velocity in the R steps of {plan.schedule}": _call_rows(diagnosis),
        "distance from the true endpoint": _endpoint_rows(diagnosis),
    }
    text = [f"{plan.schedule} at guidance {plan.guidance:g}, medians of {len(plan.request)} images", ""]
    for title, rows in tables.items():
        if len(rows) > 1:
            text += [title, *_table(rows), ""]
    found = diagnosis.curvature
    straight = (
        f"Between successive velocities the cosine is at least {np.median(found.cosine, axis=-1).min():.4f}; "
        f"from the straight line they differ by {found.mean_straightness:.3g} "
        "(‖(x1 − x0) − v‖² / ‖x1 − x0‖²)."
    )
    return [*text, straight, *verdict(diagnosis)]


def _stability_rows(diagnosis: Diagnosis) -> list[tuple[str, ...]]:
    times = diagnosis.plan.times
    rows: list[tuple[str, ...]] = [("of", "median", "least", "most")]
    for name in ("velocity", "noise", "data"):
        change = np.median(getattr(diagnosis.curvature, name), axis=-1)
        extremes = (f"{change[i]:.3g} at {times[i]:g}" for i in (int(change.argmin()), int(change.argmax())))
        rows.append((name, f"{np.median(change):.3g}", *extremes))
    return rows


def _age_rows(diagnosis: Diagnosis) -> list[tuple[str, ...]]:
    refines, times = diagnosis.plan.refines, diagnosis.plan.times
    ages = age_summaries(diagnosis.plan, diagnosis.lags)
    own = ("refiner", "worth", "helps at s") if refines else ()
    rows: list[tuple[str, ...]] = [("Δ", "reuse", "line", *own)]
    for age in ages:
        row = (f"{age.delta:g}", f"{age.reuse:.4f}", f"{age.extrapolated:.4f}")
        found = (f"{age.refined:.4f}", f"{age.worth:.2f}", ranges(times, age.helps)) if refines else ()
        rows.append((*row, *found))
    return rows


def _call_rows(diagnosis: Diagnosis) -> list[tuple[str, ...]]:
    plan, errors = diagnosis.plan, diagnosis.in_schedule
    rows: list[tuple[str, ...]] = [
        ("step", "s", "Δ", "reuse", *(("refiner", "worth") if plan.refines else ()))
    ]
    for call, *both in zip(plan.calls, errors.reuse, errors.refined, strict=True):
        reuse, refined = (float(np.median(values)) for values in both)
        found = (f"{refined:.4f}", f"{worth(reuse, refined):.2f}") if plan.refines else ()
        rows.append((str(call.step + 1), f"{call.t:.3f}", f"{call.age:.3f}", f"{reuse:.4f}", *found))
    return rows


def _endpoint_rows(diagnosis: Diagnosis) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("schedule", "R steps", "error")]
    for way, errors in zip(diagnosis.plan.endings, diagnosis.endpoints, strict=True):
        rows.append((str(way.schedule), way.name, f"{np.median(errors):.4f}"))
    return rows


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """Lay rows out in columns, the first of them headings."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
