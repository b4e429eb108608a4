"""Bundles that the C++ library refuses: a typed error for every cause, whatever the bytes, never a crash."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowturbo_trt.sampling.program_json import to_json
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.trace import trace
from flowturbo_trt.tests.bundles import changed_copy, edit_manifest
from flowturbo_trt.tests.serving.cpp.library import Library, LibraryError, refused

GRAPH = "onnx/predictor.guided.onnx"
Change = Callable[[dict[str, Any]], object]


def program_of(manifest: dict[str, Any]) -> dict[str, Any]:
    program: dict[str, Any] = manifest["programs"]["H1P1R1"]["guided"]
    return program


def first(program: dict[str, Any], operation: str) -> dict[str, Any]:
    return next(item for item in program["instructions"] if item["op"] == operation)


def refiner_call(program: dict[str, Any]) -> dict[str, Any]:
    return next(item for item in program["instructions"] if item.get("network") == "refiner")


MANIFESTS: dict[str, tuple[Change, str]] = {
    "other format": (lambda m: m.update(format="other"), "not that of a flowturbo_trt bundle"),
    "newer": (lambda m: m.update(version=3), "format version 3, this reader knows up to 2"),
    "version 0": (lambda m: m.update(version=0), "format version 0"),
    "huge version": (lambda m: m.update(version=2**70), "manifest.version"),
    "version true": (lambda m: m.update(version=True), "version is 'true', expected an integer"),
    "missing key": (lambda m: m.pop("engines"), "'engines' is missing"),
    "wrong type": (lambda m: m.update(batches="8"), "batches is '\"8\"', expected a list"),
    "no batch": (lambda m: m.update(batches=[]), "batches are"),
    "batch 0": (lambda m: m.update(batches=[0]), "batches are .*0"),
    "fractional batch": (lambda m: m.update(batches=[1.5]), r"batches\[0\] is '1.5', expected an integer"),
    "latent of 2 axes": (lambda m: m["model"].update(latent=[2, 4]), "latent has 2 items, expected 3"),
    "latent of size 0": (lambda m: m["model"].update(latent=[0, 4, 4]), "size below 1"),
    "negative image": (lambda m: m["model"].update(image=[8, -8]), "size below 1"),
    "halves": (lambda m: m["model"]["guidance"].update(halves=3), "guidance of"),
    "channels": (lambda m: m["model"]["guidance"].update(channels=9), "guidance of 9 channels"),
    "condition": (lambda m: m["model"]["conditions"][0].update(dtype="float32"), "expected 'int64'"),
    "default": (lambda m: m.update(default_schedule="H9"), "no program for the default schedule 'H9'"),
    "variants": (
        lambda m: m["programs"]["H2"].update(unguided=m["programs"]["H2"]["guided"]),
        "has programs",
    ),
    "no such file": (lambda m: m["engines"][0].update(file="onnx/x.onnx"), "not among the files"),
    "no such data": (lambda m: m["graphs"][0].update(data=["onnx/x.data"]), "not among the files"),
    "table": (
        lambda m: m.update(tables=[{"name": "t", "times": [0, 1], "weights": [[1], [2]]}]),
        "no solver table",
    ),
    "program version": (lambda m: program_of(m).update(version=2), "program version 2, this reader knows 1"),
    "no noise": (lambda m: program_of(m).update(inputs={}), "no input 'noise'"),
    "operation": (lambda m: first(program_of(m), "combine").update(op="jump"), "unknown instruction 'jump'"),
    "network": (lambda m: first(program_of(m), "evaluate").update(network="x"), "'x' is not known"),
    "variant": (lambda m: first(program_of(m), "evaluate").update(variant="x"), "'x' is not known"),
    "register type": (lambda m: program_of(m)["registers"].__setitem__(1, "x"), "'x' is not known"),
    "no register": (lambda m: first(program_of(m), "evaluate").update(state=99), "no register 99"),
    "huge register": (lambda m: program_of(m).update(output=2**63), "expected an integer of 64 bits"),
    "negative register": (lambda m: program_of(m).update(output=-1), "an integer from 0 on"),
    "read too early": (lambda m: first(program_of(m), "evaluate").update(state=2), "before it is written"),
    "written twice": (lambda m: first(program_of(m), "combine").update(out=0), "a second time"),
    "never written": (lambda m: program_of(m)["registers"].append("state"), "never written"),
    "wrong register": (lambda m: program_of(m).update(output=1), "is a velocity:guided, expected a state"),
    "refines nothing": (lambda m: refiner_call(program_of(m)).update(velocity=None), "refiner without"),
    "no terms": (lambda m: first(program_of(m), "combine").update(terms=[]), "combines nothing"),
    "term": (lambda m: first(program_of(m), "combine").update(terms=[[1]]), "a coefficient and a register"),
    "time": (lambda m: first(program_of(m), "evaluate").update(time=0.9), "evaluates at 0.9, outside"),
    "no steps": (lambda m: program_of(m).update(steps=[]), "do not cover the instructions"),
    "step back": (lambda m: program_of(m)["steps"][1].update(t=0), "do not follow the step before"),
    "step end": (lambda m: program_of(m)["steps"][0].update(end=10**9), "do not follow the step before"),
    "passes on": (lambda m: program_of(m)["steps"][0].update(velocity=0), "a state as its velocity"),
    "mixed": (lambda m: m["engines"][1].update(variant="other"), "has no refiner guided engine"),
    "no null": (lambda m: m["model"]["conditions"][0].pop("null"), "stands for none"),
    "no conditioner": (
        lambda m: m.update(engines=[e for e in m["engines"] if "_" not in e["network"]]),
        "_conditioner",
    ),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest(cpp_library: Library, tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    change, match = MANIFESTS[name]
    bundle = changed_copy(tiny_bundle, tmp_path, change)
    if name == "no null":
        with cpp_library.load(bundle) as pipeline, pytest.raises(LibraryError, match=f"^bundle: .*{match}"):
            pipeline.images([0])
    else:
        refused(cpp_library, bundle, f"^bundle: .*{match}")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"null",
        b"[" * 100_000,
        b'{"options":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"format": "flowturbo_trt bundle", "version": NaN}',
        b'{"format": "flowturbo_trt bundle", "version": 1e999}',
        b'{"format": "\xff\xfe", "version": 2}',
        b'{"format": "flowturbo_trt bundle", "version": 2',
    ],
    ids=lambda content: content[:24].decode("latin-1"),
)
def test_manifest_that_is_none(cpp_library: Library, tiny_copy: Path, content: bytes) -> None:
    (tiny_copy / "manifest.json").write_bytes(content)
    refused(cpp_library, tiny_copy, "^bundle: .*manifest")


def test_unknown_key_may_be_deep(cpp_library: Library, tiny_copy: Path) -> None:
    file = tiny_copy / "manifest.json"
    deep = "[" * 100_000 + "]" * 100_000
    file.write_text(file.read_text().replace("{", f'{{"deep": {deep},', 1))
    with cpp_library.load(tiny_copy) as pipeline:
        assert pipeline.schedules


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-1e999"])
def test_number_that_is_none(cpp_library: Library, tiny_copy: Path, value: str) -> None:
    file = tiny_copy / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["model"]["guidance"]["default"] = 12345.5
    file.write_text(json.dumps(manifest).replace("12345.5", value))
    refused(cpp_library, tiny_copy, "^bundle: .*manifest")


def test_unknown_keys_are_ignored(cpp_library: Library, tiny_bundle: Path, tmp_path: Path) -> None:
    def add(manifest: dict[str, Any]) -> None:
        program = program_of(manifest)
        for place in (manifest, manifest["model"], program, program["steps"][0], program["instructions"][0]):
            place["of a later version"] = [1, {"two": None}]

    with cpp_library.load(changed_copy(tiny_bundle, tmp_path, add)) as pipeline:
        assert pipeline.images([0]).any()


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "onnx/../../x", "a\\b", "c:x", "", ".", "onnx//x", "onnx/", "a\0b"]
)
def test_path_that_leaves_the_bundle(cpp_library: Library, tiny_copy: Path, name: str) -> None:
    edit_manifest(tiny_copy, lambda m: m["files"].update({name: {"bytes": 1, "sha256": "0" * 64}}))
    refused(cpp_library, tiny_copy, "^bundle: .*no path inside the bundle")


def cut(bundle: Path) -> None:
    (bundle / GRAPH).write_bytes((bundle / GRAPH).read_bytes()[:-1])


def alter(bundle: Path) -> None:
    content = bytearray((bundle / GRAPH).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / GRAPH).write_bytes(content)


def link_file(bundle: Path) -> None:
    (bundle / GRAPH).rename(bundle / "elsewhere")
    (bundle / GRAPH).symlink_to(bundle / "elsewhere")


def link_folder(bundle: Path) -> None:
    (bundle / "onnx").rename(bundle.parent / "elsewhere")
    (bundle / "onnx").symlink_to(bundle.parent / "elsewhere")


def link_within(bundle: Path) -> None:
    (bundle.parent / "elsewhere").mkdir()
    (bundle / "onnx" / "more").symlink_to(bundle.parent / "elsewhere")


def link_manifest(bundle: Path) -> None:
    (bundle / "manifest.json").rename(bundle / "elsewhere")
    (bundle / "manifest.json").symlink_to(bundle / "elsewhere")


def make_folder(bundle: Path) -> None:
    (bundle / GRAPH).unlink()
    (bundle / GRAPH).mkdir()


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda bundle: (bundle / GRAPH).unlink(), f"{GRAPH}: is missing"),
    "folder": (make_folder, f"{GRAPH}: is missing"),
    "cut": (cut, f"{GRAPH}: has [0-9]+ bytes, expected [0-9]+"),
    "altered": (alter, f"{GRAPH}: .*sha256 differs"),
    "link": (link_file, f"{GRAPH}: is a link"),
    "linked folder": (link_folder, "onnx: is a link"),
    "link to a folder": (link_within, "onnx/more: is a link"),
    "linked manifest": (link_manifest, "manifest.json: is a link"),
    "unlisted": (lambda bundle: (bundle / "onnx" / "weights.bin").touch(), "weights.bin: is not part"),
    "no manifest": (lambda bundle: (bundle / "manifest.json").unlink(), "no bundle here"),
    "nothing": (shutil.rmtree, "no bundle here"),
}


@pytest.mark.parametrize("name", FILES)
def test_files(cpp_library: Library, tiny_copy: Path, name: str) -> None:
    change, match = FILES[name]
    change(tiny_copy)
    refused(cpp_library, tiny_copy, f"^bundle: .*{match}")


def test_note_beside_the_manifest_does_no_harm(cpp_library: Library, tiny_copy: Path, tmp_path: Path) -> None:
    (tiny_copy / "NOTE").write_text("from the second training")
    (tmp_path / "link").symlink_to(tiny_copy)
    with cpp_library.load(tmp_path / "link") as pipeline:
        assert pipeline.backend == "onnxruntime"


@pytest.mark.parametrize("numbers", [[2**62], [1, 2**62]], ids=str)
def test_sizes_past_all_memory(
    cpp_library: Library, tiny_bundle: Path, tmp_path: Path, numbers: list[int]
) -> None:
    bundle = changed_copy(tiny_bundle, tmp_path, lambda m: m.update(batches=numbers))
    with cpp_library.load(bundle) as pipeline:
        if len(numbers) == 1:
            with pytest.raises(LibraryError, match=r"^backend: .*more memory than there are addresses"):
                pipeline.latents([0])
        else:
            assert pipeline.latents([0]).any()


def test_variants_of_both_kinds_of_conditioning(
    cpp_library: Library, golden_bundle: Path, tmp_path: Path
) -> None:
    schedule = "H4:guided=0.2..0.7"

    def change(manifest: dict[str, Any]) -> None:
        manifest["programs"][schedule] = {
            variant: to_json(trace(Schedule.parse(schedule), variant)) for variant in ("guided", "unguided")
        }
        for engine in manifest["engines"]:
            if (engine["network"], engine["variant"]) == ("predictor", "unguided"):
                engine["inputs"] = [tensor for tensor in engine["inputs"] if tensor["name"] != "modulation"]

    bundle = changed_copy(golden_bundle, tmp_path, change)
    with cpp_library.load(bundle) as pipeline, pytest.raises(LibraryError, match="others not; rebuild"):
        pipeline.latents([0], schedule=schedule)


def test_graph_that_is_none(cpp_library: Library, tiny_copy: Path) -> None:
    import hashlib

    content = b"no graph"
    (tiny_copy / GRAPH).write_bytes(content)
    record = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit_manifest(tiny_copy, lambda m: m["files"].update({GRAPH: record}))
    refused(cpp_library, tiny_copy, "^backend: predictor guided: ONNX Runtime cannot load onnx/predictor")


def test_graph_that_is_another(cpp_library: Library, tiny_bundle: Path, tmp_path: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        (engine,) = (e for e in manifest["engines"] if e["network"] == "predictor")
        engine["inputs"][0]["shape"][1] = 5

    bundle = changed_copy(tiny_bundle, tmp_path, change)
    refused(
        cpp_library, bundle, "^backend: predictor guided: its state is float32 .* not as the manifest says"
    )
