"""What a repository holds of a model before it is written again, and what may be put beside it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flowturbo_trt.bundle.manifest import BundleError, Manifest
from flowturbo_trt.bundle.store import MANIFEST, Bundle, read_manifest, sha256
from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.serving.triton.layout import CONFIG, MODEL, PREVIEWS, ServedModel, model_text, read_model
from flowturbo_trt.serving.triton.options import check_runs
from flowturbo_trt.serving.triton.settings import ModelSettings
from flowturbo_trt.serving.triton.staging import RepositoryError


@dataclass(frozen=True)
class Existing:
    """A model and the one that streams its previews, as far as there are any."""

    model: ServedModel | None
    previews: ServedModel | None

    @property
    def versions(self) -> tuple[int, ...]:
        return self.model.versions if self.model else ()

    @property
    def bundles(self) -> Mapping[str, str]:
        """The sha256 of every version's manifest, of versions that were removed too."""
        return self.model.settings.bundles if self.model else {}

    def version_of(self, manifest_sha256: str) -> int | None:
        """Return the newest version if it holds the bundle with this manifest, whole."""
        if self.model is None or not self.versions:
            return None
        newest = self.versions[-1]
        same = self.bundles.get(str(newest)) == manifest_sha256
        return newest if same and fault_of(self.model, newest) is None else None

    def next_version(self) -> int:
        """Return a number that no version has had: servers cache answers by it."""
        return max((*self.versions, *(int(v) for v in self.bundles if v.isdecimal())), default=0) + 1


def find_existing(repository: Path, name: str, *, previews: bool) -> Existing:
    """Return what there is of a model; raises RepositoryError for what must not be replaced."""
    model, streaming = _find(repository / name), _find(repository / (name + PREVIEWS))
    if model is not None and model.is_previews:
        raise RepositoryError(
            f"{model.folder}: streams the previews of {model.settings.previews_of}; give another --name"
        )
    if streaming is not None and streaming.settings.previews_of != name:
        raise RepositoryError(f"{streaming.folder}: is a model of its own; give another --name")
    if streaming is not None and not previews:
        raise RepositoryError(
            f"{streaming.folder}: would go on with older versions; add --previews, or remove it"
        )
    return Existing(model, streaming)


def _find(folder: Path) -> ServedModel | None:
    if not folder.exists():
        return None
    model = read_model(folder) if (folder / CONFIG).is_file() else None
    if model is None:
        raise RepositoryError(
            f"{folder}: exists and is no model that `flowturbo_trt triton` wrote; give another --name"
        )
    return model


def check_older(existing: Existing, manifest: Manifest, settings: ModelSettings) -> dict[int, str]:
    """Return for each older version that cannot run with new settings the reason.

    Raises RepositoryError where the model is another one: its callers would get other images than those
    they ask for, or errors.
    """
    unfit = {}
    for version in existing.versions:
        assert existing.model is not None
        try:
            older = read_manifest(existing.model.bundle(version))
        except BundleError as error:
            folder = existing.model.folder / str(version)
            raise RepositoryError(f"{folder}: cannot be served ({error}); remove that folder") from error
        if difference := _difference(older, manifest):
            raise RepositoryError(
                f"{existing.model.folder}: is another model, {difference}; give another --name"
            )
        try:
            check_runs(older, settings)
        except FlowTurboError as error:
            unfit[version] = str(error)
    return unfit


def _difference(older: Manifest, newer: Manifest) -> str | None:
    """Tell what of the models' interfaces differs."""
    for what in ("conditions", "latent", "image"):
        before, after = getattr(older.model, what), getattr(newer.model, what)
        if before != after:
            if what == "conditions":
                before, after = (
                    ", ".join(f"{c.name} {c.minimum} to {c.maximum}" for c in conditions)
                    for conditions in (before, after)
                )
            return f"whose {what} {'are' if what == 'conditions' else 'is'} {before} and not {after}"
    return None


def fault_of(model: ServedModel, version: int) -> str | None:
    """Return what is wrong with the files of a version, None where they are as they were written."""
    file = model.folder / str(version) / MODEL
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return f"{file}: cannot be read ({error})"
    if text != model_text(previews=model.is_previews):
        return f"{file}: is not what `flowturbo_trt triton` writes"
    path = model.bundle(version)
    try:
        bundle = Bundle.open(path)
        bundle.check_all()
    except BundleError as error:
        return str(error)
    expected = model.settings.bundles.get(str(version))
    if sha256(path / MANIFEST) != expected:
        return f"{path}: is not the bundle that the config names for version {version}"
    return None
