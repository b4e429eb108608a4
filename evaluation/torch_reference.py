"""The bundle's networks in torch: what engines are verified against, and compared with in speed.

They are rebuilt from the manifest's configurations and the weights of the float32 graphs, so that a
bundle is enough and the checkpoints need not be at hand.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.torch_weights import rebuild
from flowturbo_trt.sampling import reference
from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.sampling.program import Program

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Compiled code is kept per function and shape; past this number torch would refuse to compile more.
COMPILED_SHAPES = 64


class TorchReferenceError(FlowTurboError):
    """A bundle whose networks cannot be rebuilt in torch, or be run as asked."""


@dataclass(frozen=True)
class TorchOptions:
    """Where and how: a torch device, a precision of PRECISIONS, compiled by torch.compile or not.

    `threads` bounds torch's CPU threads, which torch keeps for the whole process (0: as they are).
    """

    device: str = "cpu"
    precision: str = "fp32"
    compiled: bool = False
    threads: int = 0

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise TorchReferenceError(f"precision {self.precision!r}, expected {' or '.join(PRECISIONS)}")
        if self.device != "cpu" and not torch.cuda.is_available():
            raise TorchReferenceError(
                f"device {self.device}: this torch sees no GPU; install one with CUDA, or use cpu"
            )


def load_torch_networks(bundle: Bundle, options: TorchOptions | None = None) -> "TorchNetworks":
    """Return the networks of a bundle; each is rebuilt when first needed, see TorchNetworks.load."""
    return TorchNetworks(bundle, options or TorchOptions())


class TorchNetworks:
    """Networks by name and variant, with the inputs and outputs that bundle/FORMAT.md gives engines."""

    def __init__(self, bundle: Bundle, options: TorchOptions) -> None:
        self._bundle = bundle
        self.options = options
        self._modules: dict[tuple[str, str | None], Any] = {}
        if options.threads:
            torch.set_num_threads(options.threads)

    def load(self, program: Program, *, decode: bool) -> None:
        """Rebuild what a program needs; raises TorchReferenceError, BundleError."""
        for network, variant in program.evaluations():
            self._module(network, variant)
        if decode:
            self._module("decoder", None)

    def evaluate(self, network: str, variant: str | None, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Call one network on host arrays by input name, as runtime.backend.Backend.evaluate does."""
        with torch.inference_mode():
            return _to_host(self.call(network, variant, {n: self.tensor(a) for n, a in inputs.items()}))

    def field(
        self,
        variant: str,
        conditions: Mapping[str, NDArray[np.int64]],
        guidance: NDArray[np.float32],
    ) -> "TorchField":
        """Bind conditions (B) and guidance (B): the field that sampling.reference runs on tensors."""
        bound = {name: self.tensor(values) for name, values in conditions.items()}
        if variant == "guided":
            bound["guidance"] = self.tensor(guidance)
        return TorchField(self, variant, bound)

    def run(
        self,
        program: Program,
        noise: NDArray[np.float32],
        conditions: Mapping[str, NDArray[np.int64]],
        guidance: NDArray[np.float32],
        *,
        decode: bool = True,
    ) -> NDArray[Any]:
        """Run a program from noise (B,C,H,W) to images (B,H,W,3) uint8, or to latents (B,C,H,W).

        Between the first and the last instruction everything stays on the device.
        """
        variants = {variant for _, variant in program.evaluations()}
        if len(variants) != 1:
            raise TorchReferenceError(f"the program mixes {sorted(variants)}, expected one variant")
        with torch.inference_mode():
            field = self.field(variants.pop(), conditions, guidance)
            start: Any = self.tensor(noise)
            *_, (x, _) = reference.run(program, field, start)
            latents: Any = x
            return _to_host(self.call("decoder", None, {"state": latents}) if decode else latents)

    def call(self, network: str, variant: str | None, inputs: Mapping[str, Tensor]) -> Tensor:
        """Call one network on tensors of the device; its output is float32, or uint8 of a decoder."""
        module, options = self._module(network, variant), self.options
        device, dtype = torch.device(options.device).type, PRECISIONS[options.precision]
        graphs = options.compiled and device == "cuda"
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
            result: Tensor = module(**inputs)
        # A captured graph writes its next result to the same place.
        return result.clone() if graphs else result

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """Copy an array to the device."""
        return torch.tensor(array, device=self.options.device)

    def _module(self, network: str, variant: str | None) -> Any:
        key = (network, variant)
        if key not in self._modules:
            module = rebuild(self._bundle, network, variant).to(self.options.device)
            _cast_weights(module, PRECISIONS[self.options.precision])
            whole = _Images(module) if network == "decoder" else _Velocity(module)
            self._modules[key] = self._compiled(whole) if self.options.compiled else whole
        return self._modules[key]

    def _compiled(self, module: nn.Module) -> Any:
        # Networks share their code, and each batch size is a shape of its own.
        torch._dynamo.config.recompile_limit = COMPILED_SHAPES
        # With CUDA graphs: what the engines are compared with should be torch at its best.
        mode = "max-autotune" if torch.device(self.options.device).type == "cuda" else None
        return torch.compile(module, fullgraph=True, dynamic=False, mode=mode)


class TorchField:
    """Predictor and refiner of one variant with their conditions bound (sampling.steps.Field)."""

    def __init__(self, networks: TorchNetworks, variant: str, bound: Mapping[str, Tensor]) -> None:
        self._networks = networks
        self._variant = variant
        self._bound = bound

    def predict(self, x: Tensor, t: float) -> Tensor:
        return self._networks.call("predictor", self._variant, self._inputs(x, t))

    def refine(self, x: Tensor, v: Tensor, t: float) -> Tensor:
        return self._networks.call("refiner", self._variant, {**self._inputs(x, t), "velocity": v})

    def _inputs(self, x: Tensor, t: float) -> dict[str, Tensor]:
        time = torch.full((x.shape[0],), t, dtype=torch.float32, device=x.device)
        return {"state": x, "time": time, **self._bound}


class _Velocity(nn.Module):
    """A velocity network whose output is float32, as the sums it goes into are."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, **inputs: Tensor) -> Tensor:
        velocity: Tensor = self.network(**inputs).float()
        return velocity


class _Images(nn.Module):
    """A decoder whose levels are computed in float32 whatever the precision before (FORMAT.md, Images)."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        # Loaded together with diffusers, once there is a decoder.
        from flowturbo_trt.models.autoencoder import to_uint8

        self.decoder = decoder
        self.to_uint8 = to_uint8

    def forward(self, state: Tensor) -> Tensor:
        return self.to_uint8(self.decoder.pixels(state).float())


def _cast_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights that autocast would cast anew at every call."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            part.to(dtype)


def _to_host(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.cpu().numpy()
    return array
