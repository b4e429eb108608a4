"""The C++ manifest reader under a fuzzer, and beside Python's: the same manifests are read and refused."""

import copy
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from flowturbo_trt.benchmarks.cpp_builds import ROOT, Toolchain, exclusive
from flowturbo_trt.bundle.manifest import BundleError
from flowturbo_trt.bundle.store import MANIFEST, read_manifest

FUZZ = ROOT / "serving" / "cpp" / "fuzz"
SECONDS = 20
# A value of every type of JSON, and the numbers at which integers and ranges end.
WRONG: tuple[Any, ...] = (None, True, 0, 3, -1, 1.5, "", "text", [], [0], {}, {"key": "text"})
ABSENT, UNKNOWN = ..., NotImplemented
# Objects whose keys are names; and those in which a reader takes nothing for granted.
NAMED = {("programs",), ("files",), ("inputs",)}
FREE = {
    (key,)
    for key in ("config", "refiner_config", "decoder_config", "options", "environment", "key", "sources")
}
Place = tuple[Any, ...]


@pytest.fixture(scope="session")
def fuzz_build(pytestconfig: pytest.Config, cpp_toolchain: Toolchain) -> Path:
    """The build folder of the fuzzer; without clang the test is skipped, or fails with --serving."""
    compiler = next(filter(None, map(shutil.which, ("clang++", "clang++-14"))), None)
    if compiler is None:
        reason = "libFuzzer comes with clang: apt-get install clang-14 libclang-rt-14-dev"
        if pytestconfig.getoption("--serving"):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = ROOT / "build" / "cpp" / "fuzz"
    with exclusive(folder):
        return cpp_toolchain.build(FUZZ, folder, f"-DCMAKE_CXX_COMPILER={compiler}", "-DCMAKE_CXX_FLAGS=-O1")


@pytest.fixture(scope="session")
def manifests(tiny_bundle: Path, tiny_fused_bundle: Path) -> dict[str, dict[str, Any]]:
    """Real manifests: hoisted, fused, of version 1; and what 8-bit engines and a solver table add to one."""
    folders = {"tiny": tiny_bundle, "fused": tiny_fused_bundle, "version1": ROOT / "tests/bundle/version1"}
    found = {name: json.loads((path / MANIFEST).read_text("utf-8")) for name, path in folders.items()}
    found["int8"] = copy.deepcopy(found["tiny"])
    for engine in found["int8"]["engines"]:
        engine |= {"precision": "int8", "key": {"graph": "0" * 64}, "targets": ["8.9"]}
    found["tables"] = found["tiny"] | {
        "tables": [
            {"name": "two", "times": [0.0, 0.25, 1.0], "weights": [[0.25], [-0.5, 1.25]], "refined": 1}
        ]
    }
    return found


def test_fuzzer_finds_nothing(fuzz_build: Path, manifests: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name, manifest in manifests.items():
        (corpus / name).write_text(json.dumps(manifest), encoding="utf-8")
    (corpus / "words").write_bytes(
        b'{"format": "flowturbo_trt bundle", "version": 2, "batches": [1e99, \xff]}'
    )
    command = [str(fuzz_build / "fuzz_manifest"), f"-dict={FUZZ / 'manifest.dict'}", "-max_len=65536"]
    command += [f"-max_total_time={SECONDS}", "-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"]
    done = subprocess.run(
        [*command, f"-artifact_prefix={tmp_path}/", str(corpus)],
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, done.stderr[-5000:]
    executed = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    assert executed
    assert int(executed[1]) > len(manifests)


def test_dictionary_knows_every_key(manifests: dict[str, dict[str, Any]]) -> None:
    named = set(re.findall(r'\\"(\w+)\\":', (FUZZ / "manifest.dict").read_text(encoding="utf-8")))
    keys = {key for name in places(manifests["tables"]) for key in name if key[0].isalpha()}
    assert len(keys) > 50
    assert keys <= named


@pytest.mark.parametrize("name", ["tables", "version1"])
def test_python_and_cpp_refuse_the_same(
    fuzz_build: Path, manifests: dict[str, dict[str, Any]], name: str, tmp_path: Path
) -> None:
    """Every key of a manifest left out, of every wrong type, and every object with a key more."""
    manifest = manifests[name]
    cases = [
        (place, value, changed(manifest, at, value))
        for place, at in places(manifest).items()
        for value in (*WRONG, ABSENT, *([UNKNOWN] if isinstance(value_at(manifest, at), dict) else []))
    ]
    lines = "".join(json.dumps(case) + "\n" for _, _, case in cases)
    done = subprocess.run([fuzz_build / "check_manifests"], input=lines, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = done.stdout.splitlines()
    expected = [refusal_of_python(case, tmp_path) for _, _, case in cases]
    assert found.count("accepted") < len(found) / 2
    differing = [
        (place, value, of_python, of_cpp)
        for (place, value, _), of_python, of_cpp in zip(cases, expected, found, strict=True)
        if (of_python is None) != (of_cpp == "accepted")
    ]
    assert differing == []


def places(value: Any, place: Place = (), at: Place = ()) -> dict[Place, Place]:
    """Return one place for every kind of place in a manifest: names, and items of lists, count as alike."""
    found: dict[Place, Place] = {}
    for key, item in reversed(list(value.items() if isinstance(value, dict) else enumerate(value))):
        is_name = place[-1:] in NAMED or place[-2:-1] == ("programs",)
        kind = f"[{item['op']}]" if isinstance(item, dict) and "op" in item else "*"
        name = (*place, kind if isinstance(value, list) or is_name else key)
        found[name] = (*at, key)
        if isinstance(item, dict | list) and name[-1:] not in FREE:
            found |= places(item, name, (*at, key))
    return found


def value_at(manifest: Any, at: Place) -> Any:
    for key in at:
        manifest = manifest[key]
    return manifest


def changed(manifest: dict[str, Any], at: Place, value: Any) -> dict[str, Any]:
    """Return the manifest with another value at a place, without that place, or with a key more there."""
    result = copy.deepcopy(manifest)
    holder = value_at(result, at[:-1])
    if value is ABSENT:
        del holder[at[-1]]
    elif value is UNKNOWN:
        holder[at[-1]]["unknown"] = 1
    else:
        holder[at[-1]] = value
    return result


def refusal_of_python(manifest: dict[str, Any], folder: Path) -> str | None:
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    try:
        read_manifest(folder)
    except BundleError as error:
        return str(error)
    return None
