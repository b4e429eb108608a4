"""What a comparison says about itself: what was compared and how, in words for table and page alike."""

from collections.abc import Mapping

from flowturbo_trt.evaluation.comparison.findings import Comparison
from flowturbo_trt.evaluation.comparison.table import significant
from flowturbo_trt.evaluation.quality.judge import METRICS
from flowturbo_trt.sampling.schedule import TABLED, Schedule, named_table
from flowturbo_trt.sampling.steps import REFINER

STEP_NAMES = {
    "H": "Heun",
    "P": "pseudo-corrector",
    "R": "velocity refiner",
    "E": "Euler",
    "AB2": "Adams–Bashforth of order 2",
    "AB3": "Adams–Bashforth of order 3",
    "AB4": "Adams–Bashforth of order 4",
    TABLED: "a step of the table",
}


def title(comparison: Comparison) -> str:
    return f"{len(comparison.rows)} schedules compared on {comparison.setting.bundle}"


def summary(comparison: Comparison) -> str:
    """Say in one paragraph what was compared, on what, and against what."""
    s = comparison.setting
    provider = f" ({s.provider})" if s.provider else ""
    cpu = f"{comparison.machine['cores']} cores of {comparison.machine['cpu']}"
    where = f"{comparison.machine['gpu']} beside {cpu}" if comparison.machine["gpu"] else cpu
    return (
        f"{len(comparison.rows)} schedules generated the same {s.count:,} images each: from the same noise, "
        f"with {s.labels} labels and guidance {s.guidance:g}, by the same engines ({s.backend}{provider}, "
        f"{s.precision}, on {s.device}: {where}). They were judged in the features of {s.extractor} against "
        f"{_reference(comparison)}, and timed in turn in one run. The schedule that the others are held "
        f"against is {s.baseline}."
    )


def _reference(comparison: Comparison) -> str:
    s = comparison.setting
    return s.reference if s.reference_count is None else f"{s.reference_count:,} images of {s.reference}"


def legend(comparison: Comparison) -> dict[str, str]:
    """Say what the letters of the schedules, the columns and the marks of the table are."""
    s = comparison.setting
    known = {key for row in comparison.rows for key in row.figures}
    operations = {"GFLOP per image": _operations(comparison)} if "gflop" in known else {}
    return {
        "steps": _letters(comparison),
        **operations,
        "ms per image": f"from noise to image, decoder included, in batches of {s.latency_batch}; medians",
        "acceleration": f"1 − t / t({s.baseline}), turn by turn",
        **{METRICS[name].title: METRICS[name].description for name in s.metrics},
        "endpoint error": f"distance of the latent from where {s.truth} ends from the same noise, relative "
        f"to the length of that one; mean of {s.endpoint_count:,} images",
        "intervals": "95 %, where they are known",
        "marked": "the best of a column, whether or not the intervals of others reach it",
    }


def _letters(comparison: Comparison) -> str:
    kinds = dict.fromkeys(kind for row in comparison.rows for kind in _kinds(row.schedule))
    return ", ".join(f"{kind}: {STEP_NAMES[kind]}" for kind in kinds if kind in STEP_NAMES)


def _kinds(text: str) -> tuple[str, ...]:
    return (TABLED, REFINER) if named_table(text) else Schedule.parse(text).kinds


def _operations(comparison: Comparison) -> str:
    share = comparison.decoder_gflop
    decoder = f", {significant(share, 3)} of it the decoder's" if share is not None else ""
    return (
        f"operations of all networks in batches of {comparison.setting.latency_batch}, both halves of a "
        f"guided evaluation counted{decoder}; an addition and a multiplication are two"
    )


def notes(comparison: Comparison) -> list[str]:
    """Return what must be known beside the figures; a note that all rows share is said once."""
    rows = comparison.rows
    shared = [note for note in rows[0].notes if all(note in row.notes for row in rows)]
    own = [f"{row.schedule}: {note}" for row in rows for note in row.notes if note not in shared]
    return [*comparison.notes, *shared, *own]


def configuration(comparison: Comparison) -> dict[str, str]:
    """Return what is needed to do it again, by name."""
    s, machine = comparison.setting, comparison.machine
    return {
        "bundle": f"{s.bundle}, manifest sha256 {s.bundle_sha256}",
        "engines": f"{s.backend}, {s.precision}, device {s.device}, provider {s.provider or 'default'}, "
        f"threads {s.threads}",
        "images": f"{s.count:,}, {s.labels} labels, seed {s.seed}, guidance {s.guidance:g}",
        "extractor": f"{s.extractor}, sha256 {s.extractor_sha256}",
        "reference": f"{_reference(comparison)}, sha256 of its statistics {s.reference_sha256}",
        "fine trajectory": f"{s.truth}, {s.endpoint_count:,} images",
        "machine": f"{machine['cores']} cores of {machine['cpu']}, {machine['gpu'] or 'no GPU'}, "
        f"{machine['system']}",
        "versions": ", ".join(f"{name} {version}" for name, version in comparison.versions.items()),
        "measured": comparison.measured_at,
    }


def as_markdown(comparison: Comparison, table: str) -> str:
    """Return table.md: the table with all that must be known to read it."""
    parts = [
        f"# {title(comparison)}",
        summary(comparison),
        table,
        _listed(legend(comparison)),
        "\n".join(f"- {note}" for note in notes(comparison)),
        _listed(configuration(comparison)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _listed(terms: Mapping[str, str]) -> str:
    return "\n".join(f"- {term}: {text}" for term, text in terms.items())
