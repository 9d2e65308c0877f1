"""PTQ4ViT's quantizers against numbers worked out by hand, and a whole network."""

import torch
from test_fake_quantize import SMALL, images, small_swin

from intswin.models.ptq4vit import hessian_distance, ptq4vit, symmetric, twin_gelu, twin_softmax


def test_twin_softmax():
    """Coarse steps of 1/128; with shift 3 fine ones of 1/1024 up to 127/1024, below 1/8."""
    x = torch.tensor([0.0, 0.4 / 1024, 0.6 / 1024, 100.2 / 1024, 0.1249, 0.126, 0.5, 1.0])
    expected = torch.tensor([0, 0, 1, 100, 127, 16 * 8, 64 * 8, 127 * 8]) / 1024
    torch.testing.assert_close(twin_softmax(x, 3), expected)


def test_twin_gelu():
    """Negative steps of 0.01, positive ones of 0.04."""
    x = torch.tensor([-0.17, -0.014, 0.0, 0.05, 0.07, 9.0])
    expected = torch.tensor([-0.17, -0.01, 0.0, 0.04, 0.08, 127 * 0.04])
    torch.testing.assert_close(twin_gelu(x, torch.tensor(0.01), 2), expected)


def test_symmetric():
    x = torch.tensor([-2.0, 0.26, 0.24, 2.0])
    torch.testing.assert_close(
        symmetric(x, torch.tensor(0.01)), torch.tensor([-1.28, 0.26, 0.24, 1.27])
    )


def test_hessian_distance_weighs_errors_by_gradients():
    output, exact = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0])
    assert hessian_distance(output, exact, torch.tensor([3.0, 0.5])) == 9 + 1


def test_a_quantized_swin_is_near_the_float_one():
    model = small_swin(activation="gelu")
    x = torch.from_numpy(SMALL.normalize(images(8)))
    quantized = ptq4vit(model, x, candidates=20, rounds=2)
    with torch.no_grad():
        exact, close = model(x), quantized(x)
    error = (close - exact).square().mean() / exact.var()
    assert 0 < error < 0.2
