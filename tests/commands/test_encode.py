"""`encode`: a folder of images to a latent cache, which `train` takes."""

import _thread
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from flowturbo_trt.commands.encode import HELP
from flowturbo_trt.tests.bundles import save_autoencoder
from flowturbo_trt.tests.training.caches import save_pictures
from flowturbo_trt.training.cache_format import Preparation
from flowturbo_trt.training.encode import Encoded, encode_images
from flowturbo_trt.training.latent_cache import ShardedCache

pytestmark = pytest.mark.usefixtures("one_thread")

Run = Callable[..., Result]
Document = Callable[..., dict[str, Any]]
Fails = Callable[..., str]


@pytest.fixture
def words(here: Path) -> list[str]:
    """Nine pictures in three classes, one of them damaged, and an autoencoder of two levels."""
    save_pictures(here / "pictures")
    (here / "pictures" / "bee" / "1.png").write_text("no image")
    (here / "pictures" / "readme.txt").write_text("mine")
    save_autoencoder(here / "vae", 2, 3, spread=4)
    return ["encode", "pictures", "latents", "--encoder=vae", "--size=16"]


def test_document(document: Document, words: list[str]) -> None:
    found = document(*words, "--shard-size=4", "--flip")
    assert found.pop("seconds") > 0
    assert found == {
        "version": 1,
        "command": "encode",
        "cache": "latents",
        "latents": 8,
        "latent": [2, 8, 8],
        "classes": 3,
        "skipped": 1,
        "ignored": 1,
        "shards": 3,
        "shards_made": 3,
        "bytes": sum(path.stat().st_size for path in Path("latents").glob("*.safetensors")),
    }
    cache = ShardedCache.load("latents", verify=True)
    assert (len(cache), cache.flip) == (8, True)
    assert document(*words, "--shard-size=4", "--flip")["shards_made"] == 0


def test_what_people_are_told(run: Run, words: list[str]) -> None:
    result = run(*words)
    first, *_, last = result.stderr.splitlines()
    assert first == "9 images, 3 classes; 1 other files are passed over"
    assert last == "[9/9] shard 0"
    size = Path("latents/shard-00000.safetensors").stat().st_size
    assert result.stdout.splitlines() == [
        f"8 latents 2×8×8 in 1 shards, {size / 1e6:.3g} MB: latents",
        "left out as unreadable: 1, listed in latents/skipped.jsonl",
    ]
    assert run(*words).stdout.splitlines()[0].endswith("MB: latents (finished before)")


def test_images_without_classes(run: Run, words: list[str]) -> None:
    result = run("encode", "pictures/ant", *words[2:], "--flip")
    assert result.stderr.splitlines()[0] == "3 images, one class, 0"
    assert result.stdout.startswith("3 latents 2×8×8, also mirrored, in 1 shards")
    assert ShardedCache.load("latents").labels.tolist() == [0, 0, 0]


def test_labels_of_a_file(run: Run, document: Document, words: list[str]) -> None:
    names = [f"{name}/{number}.png" for name in ("ant", "bee", "cat") for number in range(3)]
    Path("labels.json").write_text(json.dumps({name: 40 + i for i, name in enumerate(names)}))
    result = run(*words, "--labels=labels.json")
    assert result.stderr.startswith("9 images, labelled by labels.json; 1 other")
    assert ShardedCache.load("latents").labels.tolist() == [40, 41, 42, 43, 45, 46, 47, 48]


def test_options_of_a_configuration_file(run: Run, words: list[str]) -> None:
    Path("options.toml").write_text('size = 32\nflip = true\ndtype = "fp32"\nshard-size = 5\nbatch = 2\n')
    run(*words[:-1], "--config-file=options.toml")
    preparation = ShardedCache.load("latents").description.preparation
    assert preparation == Preparation(size=32, flip=True, dtype="fp32", shard_size=5)


def test_help_has_every_option(run: Run) -> None:
    text = run("encode", "--help").stdout
    for name in HELP:
        assert f"--{name.replace('_', '-')} " in text
    assert "[default: 256]" in text
    assert "[default: 10000]" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ["--strict"],
            "pictures/bee/1.png: is no image that Pillow knows; remove it, or leave such",
        ),
        (["--size=15"], "size is 15, expected a multiple of the encoder's 2"),
        (["--batch=0"], "batch is 0, expected at least 1"),
        (["--encoder=nowhere"], "nowhere: no such file, nor a public model (SiT-XL/2-256"),
        (["--encoder=sd-vae-ft-ema"], "sd-vae-ft-ema: not fetched yet; add --download"),
        (
            ["--encoder=pictures"],
            "pictures: expected a diffusers autoencoder, found no diffusion_pyto",
        ),
        (["--labels=none.json"], "none.json: cannot be read as JSON"),
    ],
)
def test_mistakes(fails: Fails, words: list[str], change: list[str], message: str) -> None:
    assert message in fails(*words, *change, "--quiet")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_that_is_not_there(fails: Fails, words: list[str]) -> None:
    assert "device is cuda, but this torch sees no GPU" in fails(*words, "--device=cuda")


def test_folders_that_are_refused(fails: Fails, words: list[str], here: Path) -> None:
    assert "nowhere: no such folder; give a folder of images" in fails("encode", "nowhere", *words[2:])
    (here / "texts").mkdir()
    (here / "texts" / "a.txt").write_text("text")
    assert "texts: holds no images" in fails("encode", "texts", *words[2:])
    (here / "full").mkdir()
    (here / "full" / "thesis.txt").write_text("mine")
    assert "full: holds files that are no latent cache" in fails(
        "encode", "pictures", "full", *words[3:], "-q"
    )


def test_cache_of_something_else(run: Run, fails: Fails, words: list[str]) -> None:
    run(*words)
    assert "latents: holds another encoding: size was 16, now 32" in fails(*words, "--size=32", "-q")
    assert ShardedCache.load("latents", verify=True).shape == (2, 8, 8)


def test_damage_is_found_and_mended(run: Run, document: Document, words: list[str]) -> None:
    run(*words)
    shard = Path("latents/shard-00000.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")
    assert document(*words)["shards_made"] == 0
    assert document(*words, "--check")["shards_made"] == 1
    ShardedCache.load("latents", verify=True)


def test_ended_by_a_scheduler(
    run: Run, words: list[str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if interrupted from a terminal: a word, its own status, nothing half written; and it goes on."""

    def encode(*arguments: Any) -> Encoded:
        *given, _ = arguments

        def terminate(what: str, done: int, total: int) -> None:
            if (here / "latents" / "shard-00000.json").exists():
                # What a SIGTERM leads to; a real one would run on the fault handler's small stack.
                _thread.interrupt_main(signal.SIGTERM)

        return encode_images(*given, terminate)

    monkeypatch.setattr("flowturbo_trt.commands.encode.encode_images", encode)
    result = run(*words, "--shard-size=4", status=130)
    assert result.stderr.splitlines()[-1] == "interrupted"
    assert {path.name for path in (here / "latents").iterdir()} == {
        "encoding.json",
        "shard-00000.json",
        "shard-00000.safetensors",
    }
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert run(*words, "--shard-size=4").stdout.startswith("8 latents")
