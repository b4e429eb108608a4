"""The bundle's networks in torch: what engines are verified against, and compared with in speed.

They are rebuilt from the manifest's configurations and the weights of the float32 graphs, so that a
bundle is enough and the checkpoints need not be at hand.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.torch_weights import rebuild, rebuild_whole
from flowturbo_trt.sampling import reference
from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.sampling.program import Program

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Compiled code is kept per function and shape; past this number torch would refuse to compile more.
COMPILED_SHAPES = 64
# Runs until everything is as it stays: the first compiles and picks kernels, the second captures graphs.
WARM_UPS = 3


class TorchReferenceError(FlowTurboError):
    """A bundle whose networks cannot be rebuilt in torch, or be run as asked."""


@dataclass(frozen=True)
class TorchOptions:
    """Where and how: a torch device, a precision of PRECISIONS, compiled by torch.compile or not.

    `threads` bounds torch's CPU threads, which torch keeps for the whole process (0: as they are).
    `channels_last` has the decoder work on channels as the last axis, which its convolutions may do faster.
    """

    device: str = "cpu"
    precision: str = "fp32"
    compiled: bool = False
    threads: int = 0
    channels_last: bool = False

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
        self._modules: dict[object, Any] = {}
        self._weights: list[nn.Module] = []
        if options.threads:
            torch.set_num_threads(options.threads)
        if self._on_gpu:
            _set_up_gpu()

    def load(self, program: Program, *, decode: bool) -> None:
        """Rebuild what a program needs; raises TorchReferenceError, BundleError."""
        for network, variant in program.evaluations():
            self._module(network, variant, rebuild_whole)
        if decode:
            self._module("decoder", None, rebuild_whole)

    @property
    def manifest(self) -> Manifest:
        """What the networks' bundle says about itself."""
        return self._bundle.manifest

    @property
    def weight_bytes(self) -> int:
        """The bytes of the weights of all networks that have been rebuilt."""
        return sum(p.nbytes for module in self._weights for p in module.parameters())

    def evaluate(self, network: str, variant: str | None, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Call what an engine computes on host arrays, as runtime.backend.Backend.evaluate does."""
        with torch.inference_mode():
            tensors = {name: self.tensor(array) for name, array in inputs.items()}
            return _to_host(self._call(self._module(network, variant, rebuild), tensors))

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
        with torch.inference_mode():
            fields = {variant: self.field(variant, conditions, guidance) for variant in variants}
            start: Any = self.tensor(noise)
            *_, (x, _) = reference.run(program, fields, start)
            latents: Any = x
            return _to_host(self.call("decoder", None, {"state": latents}) if decode else latents)

    def call(self, network: str, variant: str | None, inputs: Mapping[str, Tensor]) -> Tensor:
        """Call one network, conditioning and all, on tensors of the device.

        Its output is float32, or uint8 of a decoder.
        """
        return self._call(self._module(network, variant, rebuild_whole), inputs)

    def _call(self, module: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        dtype = PRECISIONS[self.options.precision]
        # What is computed in 16 bits are the products, as in the engines (export/precision.py).
        with torch.autocast(self._device_type, dtype=dtype, enabled=dtype != torch.float32):
            result: Tensor = module(**inputs)
        return result

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """Copy an array to the device."""
        return torch.tensor(array, device=self.options.device)

    def _module(
        self, network: str, variant: str | None, rebuilt: Callable[[Bundle, str, str | None], nn.Module]
    ) -> Any:
        key = (network, variant, rebuilt)
        if key not in self._modules:
            module = rebuilt(self._bundle, network, variant).to(self.options.device)
            _cast_weights(module, PRECISIONS[self.options.precision])
            self._weights.append(module)
            whole: nn.Module = _Images(module) if network == "decoder" else _Velocity(module)
            if network == "decoder" and self.options.channels_last:
                # Activations follow the weights.
                whole = whole.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stubs lack it
            self._modules[key] = self._compiled(whole) if self.options.compiled else whole
        return self._modules[key]

    def _compiled(self, module: nn.Module) -> Any:
        # Networks share their code, and each batch size is a shape of its own.
        torch._dynamo.config.recompile_limit = COMPILED_SHAPES
        if not self._on_gpu:
            return torch.compile(module, fullgraph=True, dynamic=False, mode=None)
        # With CUDA graphs: what the engines are compared with should be torch at its best.
        return GraphedCalls(torch.compile(module, fullgraph=True, dynamic=False, mode="max-autotune"))

    @property
    def _device_type(self) -> str:
        return torch.device(self.options.device).type

    @property
    def _on_gpu(self) -> bool:
        return self._device_type == "cuda"


class GraphedCalls:
    """A network that torch.compile captures as a CUDA graph, whose calls may follow each other in any order.

    Each call is a step of its own to torch: the graph of a network then depends on no call before it and
    is captured once. It writes every result to the same place, so that callers get copies.
    """

    def __init__(self, compiled: Callable[..., Tensor]) -> None:
        self._compiled = compiled

    def __call__(self, **inputs: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return self._compiled(**inputs).clone()


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


def _set_up_gpu() -> None:
    """Make float32 float32 and convolutions fast, for the whole process."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    # Shapes are few and fixed, and what is tried out is tried out in the warm-up.
    torch.backends.cudnn.benchmark = True


def _cast_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights that autocast would cast anew at every call."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            part.to(dtype)


def _to_host(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.cpu().numpy()
    return array
