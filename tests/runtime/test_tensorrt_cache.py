"""Compiled kernels of TensorRT for RTX, kept between processes (here: runtimes)."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime import tensorrt_engine
from flowturbo_trt.runtime.tensorrt_cache import CacheKey
from flowturbo_trt.tests.fake_tensorrt import SCRATCH, IRuntimeCache
from flowturbo_trt.tests.runtime.tensorrt_machines import Machine, MakeMachine, machine_maker


@pytest.fixture
def make_machine(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeMachine:
    return machine_maker(tiny_bundle, tmp_path, monkeypatch)


@pytest.fixture
def machine(make_machine: MakeMachine) -> Machine:
    return make_machine("tensorrt-rtx")


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What TensorRT was given to read as kernels."""
    seen: list[bytes] = []
    read = IRuntimeCache.deserialize

    def watched(cache: IRuntimeCache, blob: bytes) -> bool:
        seen.append(blob)
        return read(cache, blob)

    monkeypatch.setattr(IRuntimeCache, "deserialize", watched)
    return seen


def use(machine: Machine) -> None:
    """Load an engine and make a context, which compiles its kernels, as a process would."""
    engine, stream = machine.load(), machine.device.create_stream()
    engine.context(1, machine.scratch(SCRATCH), stream)


def test_kernels_are_kept(machine: Machine, offered: list[bytes]) -> None:
    use(machine)
    assert offered == []
    (file,) = machine.kernels.iterdir()
    written = file.stat().st_mtime_ns
    use(machine)
    assert offered == [b"1.7.1\nrefiner guided"]
    # Nothing was added: nothing is written.
    assert list(machine.kernels.iterdir()) == [file]
    assert file.stat().st_mtime_ns == written


def test_all_contexts_of_an_engine_share_them(machine: Machine) -> None:
    engine, stream = machine.load(), machine.device.create_stream()
    for batch in (1, 3):
        engine.context(batch, machine.scratch(3 * SCRATCH), stream)
    first, second = (config._cache for config in machine.module.configs)
    assert first is second is not None


def test_more_kernels_are_added(machine: Machine) -> None:
    """What is compiled when the first calls run is kept when asked for."""
    engine, stream = machine.load(), machine.device.create_stream()
    engine.context(1, machine.scratch(SCRATCH), stream)
    (file,) = machine.kernels.iterdir()
    size = file.stat().st_size
    assert not engine.save_kernels()
    machine.module.configs[0]._cache.add("compiled later")
    assert engine.save_kernels()
    assert file.stat().st_size > size


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 500])
def test_damaged_file_is_not_offered(machine: Machine, offered: list[bytes], damage: bytes) -> None:
    use(machine)
    (file,) = machine.kernels.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage)
    use(machine)
    assert offered == []
    assert file.read_bytes() == whole


def test_file_that_tensorrt_refuses_is_replaced(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    use(machine)
    (file,) = machine.kernels.iterdir()
    whole = file.read_bytes()
    monkeypatch.setattr(IRuntimeCache, "deserialize", lambda cache, blob: False)
    before = file.stat().st_ino
    use(machine)
    assert file.read_bytes() == whole
    assert file.stat().st_ino != before


@pytest.mark.skipif(os.name != "posix", reason="permissions as on POSIX")
@pytest.mark.parametrize("blocked", ["folder is a file", "no such file can be made"])
def test_unwritable_folder_is_no_error(machine: Machine, blocked: str) -> None:
    if blocked == "folder is a file":
        machine.kernels.write_bytes(b"")
    else:
        machine.kernels = Path("/proc/flowturbo_trt")
    use(machine)
    assert not machine.load().save_kernels()


def test_nothing_else_is_left_behind_when_the_disk_is_full(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    use(machine)
    assert list(machine.kernels.iterdir()) == []


def test_enterprise_has_none(make_machine: MakeMachine) -> None:
    machine = make_machine("tensorrt")
    use(machine)
    assert not machine.kernels.exists()
    assert not machine.load().save_kernels()


KEY = CacheKey("a" * 64, "tensorrt_rtx 1.7.1", "NVIDIA RTX", (8, 9), "13000")


@pytest.mark.parametrize(
    "other",
    [
        {"plan": "a" * 63 + "b"},
        {"module": "tensorrt_rtx 1.7.2"},
        {"gpu": "NVIDIA RTX 2"},
        {"capability": (12, 0)},
        {"driver": "13010"},
    ],
)
def test_key_holds_everything(other: dict[str, object]) -> None:
    assert KEY.file == replace(KEY).file
    assert KEY.file != replace(KEY, **other).file  # type: ignore[arg-type]


def test_key_is_of_this_machine(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_engine, "driver_version", lambda: "13010")
    use(machine)
    manifest = Bundle.open(machine.bundle).manifest
    plan = manifest.files[manifest.engine("refiner", "guided", machine.backend).file]
    key = CacheKey(plan.sha256, "tensorrt_rtx 1.7.1", "emulated GPU", (9, 0), "13010")
    assert [file.name for file in machine.kernels.iterdir()] == [key.file]
