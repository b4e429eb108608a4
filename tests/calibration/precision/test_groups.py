"""Groups of layers: what is in them, how many there are, and what they save."""

from pathlib import Path

import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.endpoints import CalibrationError
from flowturbo_trt.calibration.precision.groups import Macs, find_candidates, kind_of, make_groups
from flowturbo_trt.calibration.recording.float32 import float32_view
from flowturbo_trt.calibration.recording.trajectories import Recording

KINDS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def macs_of(depth: int, *graphs: str) -> Macs:
    names = [f"blocks.{block}.{kind}" for block in range(depth) for kind in KINDS]
    return {graph: {name: float(i + 1) for i, name in enumerate(names)} for graph in graphs}


def test_one_for_each_layer() -> None:
    groups = make_groups(macs_of(3, "predictor guided"), 12)
    assert [group.name for group in groups][:5] == [
        *(f"predictor blocks.0.{kind}" for kind in KINDS),
        "predictor blocks.1.attn.qkv",
    ]
    assert [group.macs for group in groups] == [float(i + 1) for i in range(12)]
    assert groups[4].layers == {"predictor guided": ("blocks.1.attn.qkv",)}


def test_neighbours_together() -> None:
    """As few blocks together as the limit asks for; the last ones may be fewer."""
    groups = make_groups(macs_of(28, "predictor guided"), 48)
    assert len(groups) == 40
    assert groups[0].name == "predictor blocks.0-2.attn.qkv"
    assert groups[0].layers == {"predictor guided": tuple(f"blocks.{i}.attn.qkv" for i in range(3))}
    assert groups[-1].name == "predictor blocks.27.mlp.fc2"
    assert groups[0].macs == 1 + 5 + 9
    assert [group.name for group in make_groups(macs_of(28, "predictor guided"), 1)] == [
        f"predictor blocks.0-27.{kind}" for kind in KINDS
    ]


def test_variants_share_groups_and_networks_do_not() -> None:
    macs = {**macs_of(2, "predictor guided", "predictor unguided"), **macs_of(1, "refiner guided")}
    groups = {group.name: group for group in make_groups(macs, 48)}
    assert len(groups) == 12
    group = groups["predictor blocks.1.mlp.fc1"]
    assert group.layers == dict.fromkeys(("predictor guided", "predictor unguided"), ("blocks.1.mlp.fc1",))
    assert group.macs == 14
    assert groups["refiner blocks.0.mlp.fc1"].network == "refiner"


def test_kinds() -> None:
    assert kind_of("blocks.12.mlp.fc1") == "mlp.fc1"
    assert kind_of("final_layer.linear") == "final_layer.linear"


def test_products(golden_bundle: Path, golden_recording: Recording) -> None:
    """Tokens × inputs × outputs, for both halves where guided, and for every call."""
    view = float32_view(Bundle.open(golden_bundle))
    config = view.manifest.model.config
    D, N = config["hidden_size"], (config["input_size"] // config["patch_size"]) ** 2
    kinds = (*KINDS, "final_layer.linear")
    found = find_candidates(view, golden_recording.sites, ["predictor", "refiner"], kinds)
    assert set(found) == {"predictor guided", "predictor unguided", "refiner guided"}
    calls = {
        name: sum(f"{site.network} {site.variant}" == name for site in golden_recording.sites)
        for name in found
    }
    # H1P1R1 evaluates the predictor 3 times; of H2's 4 times guidance is at t = 0.5 alone, twice.
    assert calls == {"predictor guided": 5, "predictor unguided": 2, "refiner guided": 2}
    for name, halves in (("predictor guided", 2), ("predictor unguided", 1), ("refiner guided", 2)):
        token = halves * calls[name] * N
        assert found[name]["blocks.0.attn.qkv"] == token * 3 * D * D
        assert found[name]["blocks.0.mlp.fc2"] == token * 4 * D * D
    assert "final_layer.linear" in found["predictor guided"]


@pytest.mark.parametrize(
    ("networks", "kinds", "expected"),
    [
        (
            ["decoder"],
            KINDS,
            r"network 'decoder': the schedules never call it; .* predictor or refiner",
        ),
        (["predictor"], ["mlp.fc3"], r"layers 'mlp.fc3': the networks have none; known are attn.qkv, .*fc2"),
    ],
)
def test_what_is_not_there(
    golden_bundle: Path, golden_recording: Recording, networks: list[str], kinds: list[str], expected: str
) -> None:
    view = float32_view(Bundle.open(golden_bundle))
    with pytest.raises(CalibrationError, match=expected):
        find_candidates(view, golden_recording.sites, networks, kinds)
