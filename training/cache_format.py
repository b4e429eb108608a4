"""A cache folder's description: `cache.json`, what it says and how it is read.

cache.json               what the latents are, of which images, by which encoder; every shard's hash
shard-00000.safetensors  mean, std (N,C,H,W), label (N); mirrored_mean and mirrored_std with flip
shard-00000.json         the image of every row of that shard, and those left out
skipped.jsonl            all that were left out, with the reason, if there are any
encoding.json            instead of cache.json until the last shard is written
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from flowturbo_trt.models.checkpoints import file_sha256
from flowturbo_trt.training.source import DataError, EncoderRecord

CACHE_FILE = "cache.json"
BEGUN_FILE = "encoding.json"
SKIPPED_FILE = "skipped.jsonl"
FORMAT = "flowturbo_trt latent cache"
VERSION = 1
# How pixels are made of a file; the name changes with the rule (training/pixels.py).
CROP = "EXIF orientation, transparency on white, ADM centre crop (BOX halving, BICUBIC)"

JSON_TYPES: dict[Any, set[type]] = {int: {int}, float: {int, float}, str: {str}, bool: {bool}}
Part = TypeVar("Part")


@dataclass(frozen=True)
class SourceRecord:
    """The images that were found: their number, a hash of their paths, sizes and labels, the classes."""

    images: int
    listing_sha256: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Preparation:
    """What was made of every image."""

    size: int
    flip: bool
    dtype: str
    shard_size: int
    crop: str = CROP


@dataclass(frozen=True)
class ShardRecord:
    """One shard file."""

    file: str
    rows: int
    bytes: int
    sha256: str

    def check(self, folder: Path, *, hashed: bool) -> None:
        """Raise DataError unless the file is there in its size, and with `hashed` in its content."""
        path = folder / self.file
        if not path.is_file():
            raise DataError(f"{path}: is missing; restore it or encode again")
        if path.stat().st_size != self.bytes:
            raise DataError(
                f"{path}: has {path.stat().st_size} bytes, expected {self.bytes}; restore it or encode again"
            )
        if hashed and file_sha256(path) != self.sha256:
            raise DataError(
                f"{path}: its content is not what was written (sha256 differs); restore it or encode again"
            )


@dataclass(frozen=True)
class ShardIndex:
    """Which image each row of a shard is of, and what was left out: (path, reason). No file without rows."""

    shard: ShardRecord | None
    images: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class CacheIdentity:
    """What a cache is of: encoding goes on with one only where all of this is the same."""

    latent: tuple[int, int, int]
    source: SourceRecord
    encoder: EncoderRecord
    preparation: Preparation

    def difference(self, now: "CacheIdentity") -> str | None:
        """Return the first thing that is not the same now, or None. An encoder's file may be another."""
        before, after = asdict(self.preparation), asdict(now.preparation)
        pairs = [
            *((name, before[name], after[name]) for name in before),
            ("encoder weights", self.encoder.weights_sha256[:12], now.encoder.weights_sha256[:12]),
            ("scaling_factor", self.encoder.scaling_factor, now.encoder.scaling_factor),
            ("shift_factor", self.encoder.shift_factor, now.encoder.shift_factor),
            ("number of images", self.source.images, now.source.images),
            ("classes", self.source.classes, now.source.classes),
            ("list of images", self.source.listing_sha256[:12], now.source.listing_sha256[:12]),
        ]
        different = ((name, then, value) for name, then, value in pairs if then != value)
        return next((f"{name} was {then}, now {value}" for name, then, value in different), None)


@dataclass(frozen=True)
class CacheDescription(CacheIdentity):
    """A finished cache."""

    shards: tuple[ShardRecord, ...]
    skipped: int

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)


def to_json(identity: CacheIdentity, **extra: Any) -> str:
    content = {"format": FORMAT, "version": VERSION, **asdict(identity), **extra}
    return json.dumps(content, indent=1) + "\n"


def shard_name(number: int) -> str:
    return f"shard-{number:05}.safetensors"


def index_name(number: int) -> str:
    return f"shard-{number:05}.json"


def read_index(file: Path) -> ShardIndex:
    """Read which images a shard is of; raises DataError."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        shard = None if data["shard"] is None else _made(ShardRecord, data["shard"])
        skipped = tuple((str(path), str(reason)) for path, reason in data["skipped"])
        return ShardIndex(shard, tuple(map(str, data["images"])), skipped)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: cannot be read as a shard's index ({error})") from error


def read_description(folder: Path) -> CacheDescription:
    """Read the description of a finished cache; raises DataError."""
    file = folder / CACHE_FILE
    if not file.is_file():
        if (folder / BEGUN_FILE).is_file():
            raise DataError(f"{folder}: is not finished; run the same `flowturbo_trt encode` again to go on")
        raise DataError(
            f"{folder}: cannot be read as a latent cache ({CACHE_FILE} not found); make one with "
            "`flowturbo_trt encode`"
        )
    data = _read(file)
    try:
        shards = tuple(_made(ShardRecord, record) for record in data["shards"])
        if any(Path(shard.file).name != shard.file for shard in shards):
            raise ValueError("a shard's name leaves the folder")
        return CacheDescription(**_identity(data), shards=shards, skipped=_integer(data["skipped"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file}: does not describe a latent cache ({error})") from error


def read_identity(file: Path) -> CacheIdentity:
    """Read what a cache, finished or begun, is of; raises DataError."""
    try:
        return CacheIdentity(**_identity(_read(file)))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file}: does not describe a latent cache ({error})") from error


def _read(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as JSON ({error})") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise DataError(f"{file}: does not describe a latent cache")
    if data.get("version") != VERSION:
        raise DataError(
            f"{file}: is of version {data.get('version')} of the format, this program reads version "
            f"{VERSION}; upgrade flowturbo_trt"
        )
    return data


def _identity(data: dict[str, Any]) -> dict[str, Any]:
    channels, height, width = (_integer(number) for number in data["latent"])
    return {
        "latent": (channels, height, width),
        "source": _made(SourceRecord, data["source"] | {"classes": tuple(data["source"]["classes"])}),
        "encoder": _made(EncoderRecord, data["encoder"]),
        "preparation": _made(Preparation, data["preparation"]),
    }


def _made(kind: type[Part], data: dict[str, Any]) -> Part:
    """Make a record of JSON data in which every field is there and of its type."""
    for field in fields(kind):  # type: ignore[arg-type]
        found = data[field.name]
        if type(found) not in JSON_TYPES.get(field.type, {type(found)}):
            raise TypeError(f"{field.name} is {found!r}")
    return kind(**data)


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is no integer")
    return value
