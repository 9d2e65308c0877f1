"""Ranges of a float graph's values, and the file that keeps them."""

import numpy as np
import pytest
import torch
from torch import nn

from intswin.compile.calibrate import METHODS, Calibration, calibrate
from intswin.compile.float_graph import read_float_graph
from intswin.compile.import_model import import_torch
from intswin.compile.simplify import simplify
from intswin.models.errors import IntswinError


class Mlp(nn.Module):
    def __init__(self, hidden=8):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(12, hidden), nn.Linear(hidden, 4)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x.reshape(1, 12))))


def graph_of(hidden=8):
    torch.manual_seed(0)
    return simplify(read_float_graph(import_torch(Mlp(hidden).eval(), (2, 2))))


def images(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 3, 2, 2, generator=generator) * (1 + i) for i in range(count)]


@pytest.fixture(scope="module")
def values():
    """The fc1 output over all images, exactly."""
    graph = graph_of()
    seen = []
    for image in images(200):
        graph.run(image, lambda op, value: seen.append(value) if op.name == "add_0" else None)
    return torch.cat(seen).numpy()


@pytest.fixture(scope="module")
def calibration():
    """Images grow, so that histograms must widen again and again."""
    return calibrate(graph_of(), images(200))


def test_min_max_is_exact(values, calibration):
    low, high = calibration.ranges["min-max"]["add_0"]
    assert low == pytest.approx(values.min(), rel=1e-6)
    assert high == pytest.approx(values.max(), rel=1e-6)


@pytest.mark.parametrize("percent", [99.9, 99.99])
def test_percentiles_are_within_a_bin(values, calibration, percent):
    low, high = calibration.ranges[f"percentile-{percent}"]["add_0"]
    bin_width = 4 * np.abs(values).max() / 4096
    fraction = percent / 100
    count = values.size
    ordered = np.sort(values, axis=None)
    assert abs(high - ordered[int(np.ceil(fraction * count)) - 1]) <= bin_width
    assert abs(low - ordered[int(np.floor((1 - fraction) * count))]) <= bin_width


def test_mse_beats_every_other_method(values, calibration):
    def error(method):
        low, high = calibration.ranges[method]["add_0"]
        scale = max(-low, high) / 127
        return np.mean((values - np.clip(np.round(values / scale), -127, 127) * scale) ** 2)

    errors = {method: error(method) for method in METHODS}
    assert errors["mse"] <= 1.01 * min(errors.values())


def test_relu_range_starts_at_zero(calibration):
    for method in METHODS:
        low, high = calibration.ranges[method]["relu_0"]
        assert low == 0 < high


def test_file_round_trip(tmp_path, calibration):
    path = tmp_path / "c.json"
    calibration.save(path)
    again = Calibration.load(path)
    assert again.images == 200
    table = again.for_graph(graph_of(), "mse")
    for name, (low, high) in calibration.ranges["mse"].items():
        assert table[name] == pytest.approx((low, high), rel=1e-6)


def test_another_network_is_refused(calibration):
    with pytest.raises(IntswinError, match="another network"):
        calibration.for_graph(graph_of(hidden=16), "mse")


def test_unknown_method(calibration):
    with pytest.raises(IntswinError, match="min-max"):
        calibration.for_graph(graph_of(), "best")


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": "intswin-calibration-1"}'])
def test_not_a_calibration(tmp_path, text):
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(IntswinError, match="not an intswin calibration"):
        Calibration.load(path)


def test_missing_file(tmp_path):
    with pytest.raises(IntswinError, match="no calibration file"):
        Calibration.load(tmp_path / "none.json")


def test_no_images():
    with pytest.raises(IntswinError, match="no calibration images"):
        calibrate(graph_of(), [])


def test_a_network_that_is_not_finite():
    with pytest.raises(IntswinError, match="not finite"):
        calibrate(graph_of(), [torch.full((1, 3, 2, 2), torch.inf)])
