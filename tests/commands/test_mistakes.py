"""Every mistake a user can make: one clear line, a status that is not zero, and nothing lost."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.commands.group import cli
from flowturbo_trt.export.options import BuildOptions


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def check_one_line(result: Result, *essential: str) -> None:
    """The error is the last line on stderr, holds the essential words and no traceback; stdout is empty."""
    assert result.exit_code == 1, result.output
    lines = [line for line in result.stderr.splitlines() if not line.startswith("[")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert result.stdout == ""
    for words in essential:
        assert words in lines[0]


def build(options: BuildOptions, out: Path, **changed: object) -> Result:
    """Run `build` with the given options, some changed."""
    given = {
        "--predictor": options.predictor,
        "--refiner": options.refiner,
        "--decoder": options.decoder,
        "--config": options.config,
        "--schedule": "H1P1R1",
    } | {f"--{name}": value for name, value in changed.items()}
    words = [word for option, value in given.items() if value is not None for word in (option, value)]
    return run("build", *words, out)


def write_damaged(source: Path, folder: Path, kind: str) -> Path:
    """Copy a checkpoint with one kind of damage."""
    state = torch.load(source, weights_only=False)["model"]
    path = folder / f"{kind}.pt"
    if kind == "truncated":
        path.write_bytes(source.read_bytes()[:5000])
        return path
    if kind == "nan":
        state["blocks.0.attn.qkv.weight"][0, 0] = float("nan")
    elif kind == "missing":
        del state["blocks.1.mlp.fc1.bias"]
    elif kind == "other":
        state["step"] = 3
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("truncated", "truncated"),
        ("nan", "blocks.0.attn.qkv.weight holds NaN"),
        ("missing", "blocks.1.mlp.fc1.bias is missing"),
        ("other", "expected a state dict of tensors"),
    ],
)
def test_damaged_checkpoint(golden_options: BuildOptions, tmp_path: Path, kind: str, words: str) -> None:
    damaged = write_damaged(golden_options.predictor, tmp_path, kind)
    check_one_line(build(golden_options, tmp_path / "out", predictor=damaged), str(damaged), words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"predictor": "nowhere.pt"}, "no such file"),
        ({"predictor": "SiT-XL/2-256"}, "--download"),
        ({"model": "SiT-XL/2", "config": None}, "hidden_size is 96"),
        ({"model": "SiT-Q/3"}, "SiT-XL/2"),
        ({"config": None}, "num_heads"),
        ({"schedule": "R3"}, "starts with R"),
        ({"schedule": "H0"}, "has no steps"),
        ({"schedule": "H1@0,0.5"}, "does not run from 0 to 1"),
        ({"schedule": "fast"}, "H1P5R3"),
        ({"refiner": None}, "need a refiner"),
        ({"batch": 0}, "at least 1"),
        ({"backend": "tpu"}, "onnxruntime"),
        ({"precision": "int3"}, "bf16"),
        ({"variant": "both"}, "unguided"),
        ({"target": "8.9"}, "tensorrt-rtx"),
    ],
)
def test_build_options(
    golden_options: BuildOptions, tmp_path: Path, changed: dict[str, object], words: str
) -> None:
    check_one_line(build(golden_options, tmp_path / "out", **changed), words)
    assert list(tmp_path.iterdir()) == []


def test_refiner_of_another_predictor(
    golden_options: BuildOptions, tiny_options: BuildOptions, tmp_path: Path
) -> None:
    check_one_line(build(golden_options, tmp_path / "out", refiner=tiny_options.refiner), "refiner for")
    check_one_line(build(golden_options, tmp_path / "out", refiner=golden_options.predictor), "not a refiner")


def test_the_current_folder_is_not_replaced(
    golden_options: BuildOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_one_line(build(golden_options, Path(".")), "cannot be replaced as a whole")
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(golden_options: BuildOptions, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    check_one_line(build(golden_options, tmp_path / "file" / "out"), "cannot be written")
    check_one_line(build(golden_options, tmp_path / "mine"), "is no bundle")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("words", "essential"),
    [
        (["--labels", "3"], "0 to 2"),
        (["--labels", "0,1", "--seeds", "1,2,3"], "3 seeds for 2 images"),
        (["--labels", "0", "--seeds", "18446744073709551616"], "2^64"),
        (["--labels", "0", "--guidance", "nan"], "guidance"),
        (["--labels", "0", "--schedule", "R2"], "starts with R"),
        (["--labels", "0", "--schedule", "H2@0,0.5,0.9"], "0 to 1"),
        (["--labels", "0", "--device", "tpu"], "cuda:N"),
        (["--labels", "0", "--device", "cuda"], "NVIDIA GPU"),
        (["--labels", "0", "--backend", "abacus"], "onnxruntime"),
        (["--labels", "0", "--noise", "nowhere.npy"], "nowhere.npy"),
        (["--labels", "0", "--trajectory", "nowhere/t.npz"], "cannot be written"),
    ],
)
def test_sample(tiny_bundle: Path, tmp_path: Path, words: list[str], essential: str) -> None:
    result = run("sample", tiny_bundle, "--output-latents", tmp_path / "x.npy", *words)
    check_one_line(result, essential)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "essential"),
    [
        ([], "nothing to write"),
        (["--out", "picture.tiff"], ".png"),
        (["--labels", "zero", "--out", "x.png"], "zero"),
        (["--guidance", "much", "--out", "x.png"], "much"),
        (["--sheduel", "H1"], "--sheduel"),
    ],
)
def test_wrong_usage(tiny_bundle: Path, words: list[str], essential: str) -> None:
    labels = [] if "--labels" in words else ["--labels", "0"]
    result = run("sample", tiny_bundle, *labels, *words)
    assert result.exit_code == 2
    assert essential in result.stderr


def test_noise_of_another_shape(tiny_bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "z.npy", np.zeros((1, 4, 8, 8), np.float32))
    result = run(
        "sample", tiny_bundle, "--labels", 0, "--noise", tmp_path / "z.npy", "--out", tmp_path / "x.png"
    )
    check_one_line(result, "(1, 4, 8, 8)", "(1, 2, 4, 4)")


def test_damaged_bundles(tiny_copy: Path, tmp_path: Path) -> None:
    check_one_line(run("inspect", tmp_path), "no bundle here")
    name = Bundle.open(tiny_copy).manifest.engines[0].file
    content = (tiny_copy / name).read_bytes()
    (tiny_copy / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    check_one_line(run("inspect", tiny_copy), name, "sha256")
    check_one_line(run("sample", tiny_copy, "--labels", 0, "--out", tmp_path / "x.png"), name, "sha256")
    (tiny_copy / name).write_bytes(content[:100])
    check_one_line(run("sample", tiny_copy, "--labels", 0, "--out", tmp_path / "x.png"), name, "100 bytes")
    (tiny_copy / name).unlink()
    check_one_line(run("inspect", tiny_copy), name, "is missing")
    shutil.rmtree(tiny_copy)
    check_one_line(run("sample", tiny_copy, "--labels", 0, "--out", tmp_path / "x.png"), "no bundle here")


def test_train(golden_options: BuildOptions, tmp_path: Path) -> None:
    cache = tmp_path / "cache.safetensors"
    zeros = torch.zeros(20, 4, 8, 8)
    save_file({"mean": zeros, "std": zeros.clone(), "label": torch.full((20,), 11)}, cache)
    common = ["train", "--predictor", golden_options.predictor, "--config", golden_options.config]
    out = ["--out", tmp_path / "run"]
    check_one_line(run(*common, *out, "--data", tmp_path / "nowhere"), "latent cache")
    check_one_line(run(*common, *out, "--data", cache), "10 classes")
    check_one_line(run(*common, *out, "--data", cache, "--steps", 0), "steps is 0")
    check_one_line(run(*common, *out, "--data", cache, "--precision", "int4"), "bf16")
    assert not (tmp_path / "run").exists()


def test_train_into_finished_weights(golden_options: BuildOptions, tmp_path: Path) -> None:
    """Weights whose checkpoint is gone are a result; a new run does not write over them."""
    cache, run_folder = tmp_path / "cache.safetensors", tmp_path / "run"
    zeros = torch.zeros(20, 4, 8, 8)
    save_file({"mean": zeros, "std": zeros.clone(), "label": torch.zeros(20, dtype=torch.int64)}, cache)
    run_folder.mkdir()
    (run_folder / "refiner.safetensors").write_bytes(b"precious")
    words = ["--predictor", golden_options.predictor, "--config", golden_options.config, "--data", cache]
    check_one_line(run("train", *words, "--out", run_folder), "but no checkpoint; train into another folder")
    assert (run_folder / "refiner.safetensors").read_bytes() == b"precious"
