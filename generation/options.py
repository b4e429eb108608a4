"""From what a user asks of a bundle to a plan, with everything checked before anything long starts."""

import importlib.metadata
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from flowturbo_trt.bundle.environment import versions
from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.generation.identity import identity
from flowturbo_trt.generation.plan import GenerationError, GenerationPlan, PlanError
from flowturbo_trt.runtime.backend import default_backend, default_device
from flowturbo_trt.runtime.programs import choose_variant, find_program
from flowturbo_trt.runtime.request import RequestError, make_request
from flowturbo_trt.sampling.schedule import Schedule

# By backend, of those that bundle.environment tells the versions of.
ENGINE_PACKAGES = {
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt-rtx-cu13",),
}
# Of photographs; those of drawings are smaller.
PNG_SHARE = 0.5
BLOCK = 4096


@dataclass(frozen=True)
class GenerationOptions:
    """What images to generate; None is what the bundle has by default.

    `labels` are balanced, random, or listed ones that are taken in turn; `batch` is the images of one
    request to the pipeline; the default is the largest that the bundle was built for.
    """

    num: int = 50_000
    schedule: str | None = None
    guidance: float | None = None
    labels: str | tuple[int, ...] = "balanced"
    seed: int = 0
    format: str = "npz"
    shard_size: int = 500
    batch: int | None = None
    backend: str | None = None
    device: str | None = None
    provider: str | None = None


def make_plan(path: Path, options: GenerationOptions) -> GenerationPlan:
    """Return the plan for a bundle; raises the error of whatever would fail later.

    BundleError for a bundle that cannot be used or lacks engines, ScheduleError, RequestError for
    guidance or labels, PlanError for the rest.
    """
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    if manifest.model.image is None:
        raise RequestError(f"{path}: has no decoder, and so makes no images; build it with --decoder")
    backend = options.backend or default_backend(manifest)
    device = options.device or default_device(backend, options.provider)
    schedule = manifest.schedule(options.schedule)
    guidance = manifest.model.guidance.default if options.guidance is None else float(options.guidance)
    _check_request(manifest, options.labels, guidance)
    _check_engines(manifest, schedule, guidance, backend)
    (label,) = manifest.model.conditions
    return GenerationPlan(
        bundle=identity(manifest, str(schedule)),
        num=options.num,
        schedule=str(schedule),
        guidance=guidance,
        labels=options.labels,
        classes=(label.minimum, label.maximum),
        seed=options.seed,
        format=options.format,
        shard_size=options.shard_size,
        batch=max(manifest.batches) if options.batch is None else options.batch,
        image=manifest.model.image,
        backend=backend,
        device=device.partition(":")[0],
        provider=options.provider,
        software=installed_software(backend, options.format),
    )


def _check_request(manifest: Manifest, labels: str | tuple[int, ...], guidance: float) -> None:
    listed = [manifest.model.conditions[0].minimum] if isinstance(labels, str) else labels
    if len(listed) == 0:
        raise PlanError("no labels are listed; give at least one, or balanced or random")
    make_request(manifest.model, {"label": listed}, None, guidance, None)


def _check_engines(manifest: Manifest, schedule: Schedule, guidance: float, backend: str) -> None:
    variant = choose_variant(manifest, is_unguided=guidance == 1)
    for network, needed in find_program(manifest, schedule, variant).evaluations():
        manifest.engine(network, needed, backend)
    manifest.engine("decoder", None, backend)


def installed_software(backend: str, file_format: str) -> dict[str, str]:
    """Return the versions of the installed packages that the bits of images and files depend on."""
    found = versions()
    names = ("flowturbo_trt", "numpy", *ENGINE_PACKAGES.get(backend, ()))
    software = {name: found[name] for name in names if name in found}
    if file_format == "png":
        software["pillow"] = importlib.metadata.version("pillow")
    return software


def check_disk(plan: GenerationPlan, images: int, out: Path) -> None:
    """Raise GenerationError when so many images will not fit on the disk that `out` is on.

    The size of npz shards is known; PNG files are taken to be half as large as their pixels.
    """
    size = 3 * math.prod(plan.image)
    if plan.format == "png":
        size = math.ceil(PNG_SHARE * size / BLOCK) * BLOCK
    free = shutil.disk_usage(out).free
    if images * size > free:
        raise GenerationError(
            f"{out}: {images} images take about {images * size / 1e9:.1f} GB as {plan.format}, "
            f"{free / 1e9:.1f} GB are free; free some, or give a folder on another disk"
        )
