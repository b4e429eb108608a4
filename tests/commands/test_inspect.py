"""What `inspect` tells before anything is loaded: memory and cost."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.schedule_cost import schedule_costs
from flowturbo_trt.runtime.memory_plan import plan_memory
from flowturbo_trt.runtime.programs import find_program
from flowturbo_trt.tests.bundles import changed_copy, edit_manifest

Run = Callable[..., Result]
Document = Callable[..., dict[str, Any]]
ROOT = Path(__file__).parents[2]
# Stands for the base install: what the extra brings cannot be found.
BARE = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "onnx", "onnx_ir", "diffusers"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from flowturbo_trt.commands.group import cli
cli(["inspect", sys.argv[1]], prog_name="flowturbo_trt")
"""


def table(text: str, title: str) -> list[list[str]]:
    """Return the cells of the lines from a title to the next empty line."""
    lines = text.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(title))
    rest = lines[start + 1 :]
    return [line.split() for line in rest[: rest.index("")]]


def test_memory(run: Run, document: Document, tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    program = find_program(manifest, None, "guided")
    plan = plan_memory(manifest, program, (1, 3), "onnxruntime", on_gpu=False)
    (told,) = document("inspect", tiny_bundle)["memory"]
    as_lists = asdict(plan) | {"trajectories": [asdict(found) for found in plan.trajectories]}
    assert told == {"schedule": manifest.default_schedule, "total": plan.total, **as_lists}
    text = run("inspect", tiny_bundle).stdout
    header, *rows = table(text, "memory of the host for H1P1R1 on onnxruntime, in MB")
    assert header == ["batch", "registers", "modulations", "tables", "images", "weights", "total"]
    for found, row in zip(plan.trajectories, rows[:2], strict=True):
        sizes = [getattr(found, name) for name in header[1:5]] + [plan.weights, plan.weights + found.total]
        assert row == [str(found.batch), *(f"{size / 1e6:.2f}" for size in sizes)]
    assert rows[2][-1] == f"{plan.total / 1e6:.2f}"
    assert " ".join(rows[3]).endswith("when it is loaded: activations within the engines")


def test_memory_of_a_gpu(run: Run, document: Document, tiny_bundle: Path) -> None:
    words = ("inspect", tiny_bundle, "--provider", "cuda", "--batch", 3, "--schedule", "H2")
    manifest = Bundle.open(tiny_bundle).manifest
    program = find_program(manifest, "H2", "guided")
    plan = plan_memory(manifest, program, (3,), "onnxruntime", on_gpu=True)
    (told,) = document(*words)["memory"]
    assert (told["schedule"], told["total"], told["on_gpu"]) == ("H2", plan.total, True)
    text = run(*words).stdout
    header, row, _ = table(text, "memory of a GPU for H2 on onnxruntime")
    assert header[-6:] == ["weights", "total", "pinned", "on", "the", "host"]
    assert row[-1] == f"{plan.pinned / 1e6:.2f}"
    assert "all together" not in text


def test_every_backend_that_is_known(document: Document, tiny_bundle: Path, tmp_path: Path) -> None:
    """One of a later version is passed over; one without all engines is told about."""

    def change(manifest: dict[str, Any]) -> None:
        own = manifest["engines"]
        later = [engine | {"backend": "mosaic"} for engine in own]
        plans = [engine | {"backend": "tensorrt-rtx", "precision": "fp16"} for engine in own]
        part = [e | {"backend": "openvino"} for e in own if e["network"] != "decoder"]
        manifest["engines"] = own + later + plans + part

    copy = changed_copy(tiny_bundle, tmp_path, change)
    told = document("inspect", copy)
    assert [(plan["backend"], plan["on_gpu"]) for plan in told["memory"]] == [
        ("onnxruntime", False),
        ("tensorrt-rtx", True),
    ]
    (reason,) = told["unplanned"]
    assert reason.startswith("the bundle has no decoder engine for openvino")
    (plan,) = document("inspect", copy, "--backend", "tensorrt-rtx")["memory"]
    assert plan["backend"] == "tensorrt-rtx"


def test_costs(run: Run, document: Document, tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    expected = schedule_costs(manifest, manifest.programs, manifest.batches, "onnxruntime")
    told = document("inspect", tiny_bundle)
    assert told["costs"] == [asdict(cost) for cost in expected]
    assert told["uncounted"] == ""
    _, *rows = table(run("inspect", tiny_bundle).stdout, "cost of an image on onnxruntime")
    for cost, row in zip(expected, rows, strict=True):
        assert row[:3] == [cost.schedule, "guided", str(cost.batch)]
        assert row[6] == f"{cost.image.weight_bytes / 1e6:.2f}"
    (only,) = document("inspect", tiny_bundle, "--schedule", "H3", "--batch", 1)["costs"]
    assert (only["schedule"], only["batch"]) == ("H3", 1)


def test_costs_where_the_manifest_does_not_tell(run: Run, tiny_copy: Path) -> None:
    edit_manifest(tiny_copy, lambda manifest: manifest["model"].update(decoder_config=None))
    text = run("inspect", tiny_copy).stdout
    assert "costs are not counted: the manifest does not tell the decoder's shape" in text


def test_base_install(tiny_bundle: Path) -> None:
    """Memory is told without torch; what counting needs is told in one line."""
    command = [sys.executable, "-c", BARE, str(tiny_bundle)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "memory of the host for H1P1R1 on onnxruntime" in done.stdout
    assert "costs are not counted: it takes torch; pip install 'flowturbo_trt[export]'" in done.stdout


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--batch", "2"], "batch 2: the bundle was built for 1, 3; take one of these, or rebuild it with"),
        (["--backend", "mosaic"], "backend 'mosaic' is not known; use onnxruntime"),
        (["--backend", "openvino"], "the bundle has no guided predictor engine for openvino"),
        (["--backend", "openvino", "--provider", "cuda"], "provider cuda: only onnxruntime has providers"),
        (["--schedule", "R1"], "R1: starts with R"),
        (["--schedule", "H2:guided=0..0.1"], "needs unguided engines"),
    ],
)
def test_mistakes(fails: Callable[..., str], tiny_bundle: Path, words: list[str], complaint: str) -> None:
    assert complaint in fails("inspect", tiny_bundle, *words)


def test_recipes(run: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    """Whose speed was measured where; and a manifest of another hand is shown as far as it is known."""
    note = {"file": "r.json", "sha256": "ab" * 32, "kind": "int8", "passed": True, "findings": {}}
    note |= {"timed": ["onnxruntime", "openvino"], "emulated": [], "schedules": ["H2"]}
    untimed = note | {"kind": "fp8", "timed": [], "emulated": ["onnxruntime"]}
    recipes = [note, untimed, {"kind": "int8"}, "r.json"]
    copy = changed_copy(tiny_bundle, tmp_path, lambda data: data["options"].update(recipes=recipes))
    lines = [line for line in run("inspect", copy).stdout.splitlines() if line.startswith("recipe ")]
    assert lines == [
        "recipe     int8 r.json (abababababab): passed its gate; speed measured on onnxruntime, openvino",
        "recipe     fp8 r.json (abababababab): passed its gate; speed measured on no backend; onnxruntime "
        "ONLY EMULATES it",
        *["recipe     told of in a form that this version does not know"] * 2,
    ]
