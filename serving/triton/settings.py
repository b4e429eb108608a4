"""Settings of a served model: written into its config, read by its model.py."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from flowturbo_trt.sampling.errors import FlowTurboError

# The config's parameter that holds them.
PARAMETER = "flowturbo_trt"


class SettingsError(FlowTurboError):
    """Settings that are missing from a model's config, or that nobody wrote."""


@dataclass(frozen=True)
class ModelSettings:
    """How a model runs its bundle.

    `schedules` are those it may be asked for, its default first; `bundles` the sha256 of manifest.json by
    version of the model; `previews_of`, in the model that streams previews, names the one whose bundles
    it runs. `device` is cpu or cuda: which GPU, an instance is told by the server. `threads` is for
    engines on the CPU (0: all cores); with `cancellation` a request can be given up between steps.
    """

    backend: str
    device: str
    schedules: tuple[str, ...]
    provider: str | None = None
    threads: int = 0
    cancellation: bool = True
    previews_of: str | None = None
    bundles: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the text that `from_json` reads."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "ModelSettings":
        """Read settings; raises SettingsError."""
        try:
            data = json.loads(text)
            return cls(**{**data, "schedules": tuple(data["schedules"])})
        except (ValueError, TypeError, KeyError) as error:
            raise SettingsError(
                f"parameter {PARAMETER} holds no settings ({error}); write the repository again with "
                "`flowturbo_trt triton`"
            ) from error
