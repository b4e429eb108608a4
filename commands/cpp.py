"""`flowturbo_trt cpp`."""

import shlex
from pathlib import Path

import click

from flowturbo_trt.commands.common import Console, make_command
from flowturbo_trt.serving.cpp_project import PRESETS, Project, write_project


@make_command(name="cpp", short_help="Write a C++ project around a bundle.")
@click.argument("bundle", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.argument("out", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--backend",
    help=f"What runs the engines: {', '.join(PRESETS)}. Default: onnxruntime, or what the bundle has.",
)
@click.option("--schedule", help="What the program runs, e.g. H1P5R3, H8. Default: the bundle's.")
def command(console: Console, bundle: Path, out: Path, backend: str | None, schedule: str | None) -> None:
    """Write a C++ project around BUNDLE into the new folder DIR, ready for CMake.

    DIR gets an example program, the sources of the C++ library, a copy of what one backend runs of the
    bundle, and a README with the commands that build and run it.

    \b
    flowturbo_trt cpp bundle project
    flowturbo_trt cpp bundle project --backend tensorrt-rtx --schedule H8
    """
    project = write_project(bundle, out, backend=backend, schedule=schedule)
    tell(console, project)


def tell(console: Console, project: Project) -> None:
    """Print what was written, and what to do with it."""
    manifest = project.manifest
    condition = manifest.model.conditions[0]
    commands = [
        f"cmake --preset {project.preset}",
        f"cmake --build --preset {project.preset}",
        f"build/generate bundle images.ppm {condition.minimum}",
    ]
    size = sum(record.bytes for record in manifest.files.values())
    document = {
        "command": "cpp",
        "project": str(project.path),
        "backend": project.backend,
        "schedule": manifest.default_schedule,
        "bytes": size,
        "commands": commands,
    }
    lines = [
        f"{project.path}: {manifest.default_schedule} on {project.backend}, {size / 1e6:.1f} MB of engines",
        f"cd {shlex.quote(str(project.path))}",
        *commands,
    ]
    console.result(document, "\n".join(lines))
