"""Run what is heavy or timed, write benchmarks/results/ and the pages' tables: `make proof`."""

import sys
import tempfile
from pathlib import Path

import click

from flowturbo_trt.benchmarks import (
    bulk_generation,
    cpp_library,
    cpu_latency,
    cpu_settings,
    digits_latency,
    digits_precision,
    digits_quality,
    digits_refiner,
    digits_solver,
    digits_tune,
    full_size,
    killed_builds,
    onnxruntime_speed,
    quantized_speed,
    triton_load,
    triton_soak,
)
from flowturbo_trt.benchmarks.tables import RESULTS, update_pages
from flowturbo_trt.evaluation.report import write_report

PARTS = {
    "digits_latency": digits_latency.measure,
    "digits_quality": digits_quality.measure,
    "digits_refiner": digits_refiner.measure,
    "digits_solver": digits_solver.measure,
    "digits_precision": digits_precision.measure,
    "digits_tune": digits_tune.measure,
    "bulk_generation": bulk_generation.measure,
    "full_size": full_size.measure,
    "killed_builds": killed_builds.measure,
    "onnxruntime_speed": onnxruntime_speed.measure,
    "cpu_latency": cpu_latency.measure,
    "cpu_settings": cpu_settings.measure,
    "quantized_speed": quantized_speed.measure,
    "cpp_library": cpp_library.measure,
    "triton_load": triton_load.measure,
    "triton_soak": triton_soak.measure,
}


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(list(PARTS)))
def main(parts: tuple[str, ...]) -> None:
    """Measure PARTS (all by default), write them down, and exit with 3 if a promise does not hold."""
    held = True
    for part in parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            figures, checks = PARTS[part](Path(folder))
        write_report(RESULTS / f"{part}.json", figures, checks)
        for check in checks:
            click.echo(check)
        held = held and all(check.met for check in checks)
    update_pages()
    sys.exit(0 if held else 3)


if __name__ == "__main__":
    main()
