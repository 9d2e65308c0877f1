"""FQ-ViT's two quantizers against numbers worked out by hand, and a whole network."""

import pytest
import torch
from test_fake_quantize import SMALL, images, small_swin

from intswin.models.errors import IntswinError
from intswin.models.fq_vit import fq_vit, log_int_softmax, min_max, power_of_two_factors
from intswin.models.quantization_points import symmetric_weight, with_points


def test_min_max():
    scale, zero_point = min_max(torch.tensor([-1.0, 4.1]))
    assert scale == pytest.approx(5.1 / 255)
    assert zero_point == 50


def test_each_channel_takes_the_power_of_two_that_covers_it():
    """Range 0 to 8: scales are 8 / 255 / (8, 4, 2, 1); 1.0 and 1.9 just fit the first two."""
    values = torch.tensor([[8.0, 1.0, 1.9, 3.9], [0.0, 0.3, 0.3, 0.3]])
    scales, zero_point = power_of_two_factors(values)
    assert zero_point == 0
    torch.testing.assert_close(scales, 8 / 255 * torch.tensor([1, 1 / 8, 1 / 4, 1 / 2]))


def test_log_int_softmax_gives_powers_of_two():
    # exp is 1, 1/2, 1/8: sums to 1.625; sum/exp = 1.6, 3.25, 13 -> rounded 2, 3, 13
    # log2, up from 1.5 times a power: 2 -> 1, 3 = 1.5 * 2 -> 2, 13 = 1.6 * 8 -> 4
    step = 0.001
    scores = torch.tensor([[0.0, -0.693, -2.079]])
    assert log_int_softmax(scores, step, 8).tolist() == [[0.5, 0.25, 0.0625]]
    # with 2 bits, exponents of 4 and more are no probability at all
    assert log_int_softmax(scores, step, 2).tolist() == [[0.5, 0.25, 0.0]]


def test_weights_by_channel():
    weight = torch.tensor([[1.27, -0.004], [0.0, 12.7]])
    torch.testing.assert_close(symmetric_weight(weight), torch.tensor([[1.27, 0.0], [0.0, 12.7]]))


def test_points_change_nothing_before_quantizers_are_set():
    model = small_swin(activation="gelu")
    x = torch.from_numpy(SMALL.normalize(images(2)))
    with torch.no_grad():
        torch.testing.assert_close(with_points(model)(x), model(x), rtol=1e-4, atol=1e-4)


def test_a_quantized_swin_is_near_the_float_one():
    model = small_swin(activation="gelu")
    x = torch.from_numpy(SMALL.normalize(images(8)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quantized = fq_vit(model, x)
    with torch.no_grad():
        exact, close = model(x), quantized(x)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    error = (close - exact).square().mean() / exact.var()
    assert 0 < error < 0.2


def test_other_networks_are_refused():
    with pytest.raises(IntswinError, match="not a Swin"):
        fq_vit(torch.nn.Linear(2, 2), torch.zeros(1, 2))
