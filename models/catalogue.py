"""Public models by name: where they can be had. Nothing is fetched unless asked for."""

import http.client
import os
import shutil
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flowturbo_trt.models.checkpoints import CheckpointError

CACHE = "FLOWTURBO_TRT_CACHE"
# Seconds without an answer after which a download is given up.
TIMEOUT = 60


@dataclass(frozen=True)
class PublicModel:
    """Files by name and address; a model of several files is a folder."""

    files: dict[str, str]
    licence: str

    @property
    def is_folder(self) -> bool:
        return len(self.files) > 1


def _autoencoder(repository: str) -> PublicModel:
    base = f"https://huggingface.co/stabilityai/{repository}/resolve/main"
    names = ("config.json", "diffusion_pytorch_model.safetensors")
    return PublicModel({name: f"{base}/{name}" for name in names}, "MIT")


_SIT = "https://huggingface.co/nyu-visionx/SiT-collections/resolve/main"
CATALOGUE = {
    "SiT-XL/2-256": PublicModel({"SiT-XL-2-256.pt": f"{_SIT}/SiT-XL-2-256.pt"}, "MIT"),
    "SiT-B/2-256": PublicModel({"SiT-B-2-256.pt": f"{_SIT}/SiT-B-2-256.pt"}, "MIT"),
    "SiT-S/2-256": PublicModel({"SiT-S-2-256.pt": f"{_SIT}/SiT-S-2-256.pt"}, "MIT"),
    "FlowTurbo-refiner-XL/2-256": PublicModel(
        {"SiT-XL-2-Refiner.pt": "https://cloud.tsinghua.edu.cn/f/3d07d92dd2314857ae50/?dl=1"}, "MIT"
    ),
    "sd-vae-ft-ema": _autoencoder("sd-vae-ft-ema"),
    "sd-vae-ft-mse": _autoencoder("sd-vae-ft-mse"),
}


def resolve(text: str, download: bool, progress: Callable[[str, int, int], None]) -> Path:
    """Return the path that a path or a catalogue name stands for.

    A name is looked up in the cache folder ($FLOWTURBO_TRT_CACHE, default ~/.cache/flowturbo_trt), and
    fetched into it with `download`. Raises CheckpointError.
    """
    if text not in CATALOGUE or Path(text).exists():
        if not Path(text).exists():
            raise CheckpointError(f"{text}: no such file, nor a public model ({', '.join(CATALOGUE)})")
        return Path(text)
    model = CATALOGUE[text]
    folder = Path(os.environ.get(CACHE, Path.home() / ".cache" / "flowturbo_trt")) / text.replace("/", "-")
    for name, address in model.files.items():
        if (folder / name).is_file():
            continue
        if not download:
            raise CheckpointError(f"{text}: not fetched yet; add --download to get it from {address}")
        _fetch(address, folder / name, progress)
    return folder if model.is_folder else folder / next(iter(model.files))


def _fetch(address: str, path: Path, progress: Callable[[str, int, int], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    progress(f"fetching {path.name}", 0, 1)
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as response, partial.open("wb") as file:
            if response.headers.get_content_type() == "text/html":
                raise CheckpointError(f"{address}: is a page, not a file; fetch it by hand and give its path")
            shutil.copyfileobj(response, file, length=2**20)
            expected = response.headers.get("Content-Length")
            if expected is not None and file.tell() != int(expected):
                raise CheckpointError(f"{address}: ended after {file.tell()} of {expected} bytes; try again")
    except (OSError, http.client.HTTPException) as error:
        raise CheckpointError(
            f"{address}: cannot be fetched ({error}); fetch it by hand and give its path"
        ) from error
    os.replace(partial, path)
