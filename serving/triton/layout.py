"""Where things lie in a model repository, and the models in it that are ours.

REPOSITORY/NAME/config.pbtxt
REPOSITORY/NAME/warmup/…                     what the server warms the model up with
REPOSITORY/NAME/1/model.py
REPOSITORY/NAME/1/bundle/…                   a copy of the bundle of this version
REPOSITORY/NAME_previews/config.pbtxt        the model that streams previews, if there is one
REPOSITORY/NAME_previews/1/model.py          runs NAME/1/bundle
"""

from dataclasses import dataclass
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from flowturbo_trt.serving.triton.config import read_config, read_settings
from flowturbo_trt.serving.triton.settings import ModelSettings
from flowturbo_trt.serving.triton.warmup import FOLDER

CONFIG = "config.pbtxt"
MODEL = "model.py"
BUNDLE = "bundle"
PREVIEWS = "_previews"

_SERVING = "flowturbo_trt.serving.triton"


def model_text(*, previews: bool) -> str:
    """Return what model.py holds: all code is in the installed package."""
    module = f"{_SERVING}.previews" if previews else f"{_SERVING}.model"
    return (
        '"""Runs the bundle of its version; written by `flowturbo_trt triton`."""\n\n'
        f"from {module} import TritonPythonModel\n\n"
        '__all__ = ["TritonPythonModel"]\n'
    )


def versions(folder: Path) -> tuple[int, ...]:
    """Return the versions of a model that lie in its folder, in order."""
    # What begins with a zero, or is no number, the server passes over.
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    return tuple(sorted(int(name) for name in names if name.isdecimal() and name[0] != "0"))


@dataclass(frozen=True)
class ServedModel:
    """A model of ours in a repository."""

    folder: Path
    config: ModelConfig
    settings: ModelSettings

    @property
    def versions(self) -> tuple[int, ...]:
        return versions(self.folder)

    @property
    def is_previews(self) -> bool:
        return self.settings.previews_of is not None

    def bundle(self, version: int) -> Path:
        """Return the bundle that a version runs."""
        folder = (
            self.folder.with_name(self.settings.previews_of) if self.settings.previews_of else self.folder
        )
        return folder / str(version) / BUNDLE


def read_model(folder: Path) -> ServedModel | None:
    """Read a model in its folder; None where another program wrote it.

    Raises ConfigError for a config that cannot be read, SettingsError for settings in it.
    """
    config = read_config(folder / CONFIG)
    settings = read_settings(config)
    return None if settings is None else ServedModel(folder, config, settings)


def missing_files(model: ServedModel) -> tuple[str, ...]:
    """Return the files that a model's warm-up names and that are not there: without one it is not served."""
    inputs = (given for sample in model.config.model_warmup for given in sample.inputs.values())
    named = {given.input_data_file for given in inputs} - {""}
    return tuple(sorted(name for name in named if not (model.folder / FOLDER / name).is_file()))
