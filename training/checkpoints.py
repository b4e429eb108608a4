"""A run's folder: checkpoints from which it goes on, the averaged weights, the rows of metrics.

    OUT/checkpoints/step-00000500.safetensors   all that moves, the newest few
    OUT/refiner.safetensors                     the average of the weights, which `build` takes
    OUT/metrics.jsonl                           a row per step

Files appear whole or not at all, and the checkpoint last: what it does not know of was not saved.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from flowturbo_trt.bundle.lock import held
from flowturbo_trt.models.checkpoints import CONFIG_KEY
from flowturbo_trt.training.config import DEFAULTS, RESUMABLE, TrainingError
from flowturbo_trt.training.files import replace_file
from flowturbo_trt.training.interrupts import interrupts_held
from flowturbo_trt.training.records import METRICS, append_rows
from flowturbo_trt.training.run import Run

LOCK = ".lock"
CHECKPOINTS = "checkpoints"
WEIGHTS = "refiner.safetensors"
# Damage that a disk's or a file system's error leads the readers to.
UNREADABLE = (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError)


class Archive:
    """Saves a run to its folder and takes it up again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._saved_step = 0

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep the folder, made where there is none, for this run alone; raises TrainingError."""
        with ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                alone = stack.enter_context(held(self.folder / LOCK))
            except OSError as error:
                raise _unwritable(self.folder, error) from error
            if not alone:
                raise TrainingError(
                    f"{self.folder}: another training is at work there; wait for it, or give another folder"
                )
            yield

    def save(self, run: Run) -> None:
        """Write weights, metrics and the whole state; where that fails, the checkpoint before stays.

        Of several processes the first one writes. Raises TrainingError.
        """
        if run.step == self._saved_step or not run.group.leads:
            return
        try:
            with interrupts_held():
                self._write(run)
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"{self.folder}: step {run.step} cannot be saved ({error}); the last checkpoint is kept"
            ) from error

    def _write(self, run: Run) -> None:
        self._write_weights(run)
        append_rows(self.folder, run.unsaved)
        checkpoints = self.folder / CHECKPOINTS
        checkpoints.mkdir(exist_ok=True)
        state = run.state()
        about = {"step": run.step, "config": run.identity, "sha256": _digest(state)}
        path = checkpoints / f"step-{run.step:08}.safetensors"
        # One entry, as the order of several is not defined and files are compared.
        replace_file(path, lambda partial: partial.write_bytes(save(state, {"run": json.dumps(about)})))
        run.unsaved.clear()
        self._saved_step = run.step
        for _, old in self._found()[: -run.config.keep]:
            old.unlink()

    def _write_weights(self, run: Run) -> None:
        """Write the averaged weights, with the network's configuration in the header."""
        average = {name: tensor.cpu() for name, tensor in run.average.state_dict().items()}
        header = {CONFIG_KEY: json.dumps(asdict(run.average.config))}
        replace_file(self.folder / WEIGHTS, lambda partial: partial.write_bytes(save(average, header)))

    def resume(self, run: Run) -> None:
        """Take up the newest checkpoint, if any; raises TrainingError if it is damaged or of another run."""
        found = self._found()
        if not found:
            if (self.folder / WEIGHTS).exists():
                raise TrainingError(
                    f"{self.folder}: holds {WEIGHTS} but no checkpoint; train into another folder"
                )
            return
        _, path = found[-1]
        try:
            about, state = _read(path)
            _check_same(about["config"], run.identity, path)
            if about["sha256"] != _digest(state):
                raise ValueError("its tensors are not those that were saved")
            run.load_state(state, int(about["step"]))
        except UNREADABLE as error:
            reason = " ".join(str(error).split())[:200]
            remedy = (
                f"delete it to go on from step {found[-2][0]}" if found[:-1] else "train into another folder"
            )
            raise TrainingError(
                f"{path}: cannot be resumed, damaged or of another network ({reason}); {remedy}"
            ) from error
        self._saved_step = run.step

    def prepare(self, run: Run) -> None:
        """Put the folder at the step of a run; fail now, not at the first checkpoint, where writing fails.

        What it holds of later steps, whose checkpoint was deleted or never written, is taken back.
        """
        if not run.group.leads:
            return
        metrics = self.folder / METRICS
        try:
            rows = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
            replace_file(metrics, lambda partial: partial.write_text("".join(rows[: run.step])))
            for partial in (self.folder / CHECKPOINTS).glob("*.partial"):
                partial.unlink()
            if run.step:
                self._write_weights(run)
        except (OSError, ValueError, SafetensorError) as error:
            raise _unwritable(self.folder, error) from error

    def _found(self) -> list[tuple[int, Path]]:
        """Return the checkpoints by step, the newest last."""
        paths = (self.folder / CHECKPOINTS).glob("step-*.safetensors")
        steps = [(re.fullmatch(r"step-(\d+)", path.stem), path) for path in paths]
        return sorted((int(match[1]), path) for match, path in steps if match)


def _unwritable(folder: Path, error: Exception) -> TrainingError:
    return TrainingError(f"{folder}: cannot be written ({error}); give another folder")


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, "pt") as file:
        about: dict[str, Any] = json.loads((file.metadata() or {})["run"])
        return about, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)


def _check_same(saved: Mapping[str, Any], identity: Mapping[str, Any], path: Path) -> None:
    for name, value in identity.items():
        # An option that did not exist then was as it is by default now.
        then = saved.get(name, DEFAULTS.get(name))
        if name not in RESUMABLE and then != value:
            raise TrainingError(
                f"{path}: was trained with {name}={then}, now {value}; use the same options or another folder"
            )


def _digest(state: Mapping[str, Tensor]) -> str:
    """Hash names and bytes of tensors: safetensors notices a file cut short, but no changed byte."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
