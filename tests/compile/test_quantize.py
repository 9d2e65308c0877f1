"""Float networks become integer networks that compute nearly the same, whatever imported them."""

import collections

import numpy as np
import pytest
import torch
from torch import nn

from intswin.compile.calibrate import calibrate
from intswin.compile.float_graph import read_float_graph
from intswin.compile.import_model import export_onnx, import_onnx, import_torch
from intswin.compile.quantize import quantize
from intswin.compile.simplify import simplify
from intswin.compile.verify_ranges import verify_ranges
from intswin.models.errors import IntswinError
from intswin.models.integer_reference import run
from intswin.models.preprocess import Preprocess
from intswin.models.swin import create_model

PREPROCESS = Preprocess(image_size=224)


def smooth_images(count):
    """Images with the large smooth areas of photos: uint8 (count, 224, 224, 3)."""
    coarse = np.random.default_rng(0).uniform(0, 255, (count, 3, 9, 9)).astype(np.float32)
    fine = nn.functional.interpolate(torch.from_numpy(coarse), (224, 224), mode="bicubic")
    return fine.clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def float_graph(model, importer, folder):
    if importer == "torch":
        return simplify(read_float_graph(import_torch(model, (224, 224))))
    path = folder / "network.onnx"
    export_onnx(model, (224, 224), path)
    return simplify(read_float_graph(import_onnx(path)))


def quantized(model, importer="torch", gelu="igelu", folder=None, preprocess=PREPROCESS):
    graph = float_graph(model, importer, folder)
    images = smooth_images(3)
    normalized = torch.from_numpy(preprocess.normalize(images))
    calibration = calibrate(graph, [image[None] for image in normalized])
    ranges = calibration.ranges
    network = quantize(graph, ranges["mse"], ranges["min-max"], preprocess, gelu)
    verify_ranges(network.graph)
    with torch.no_grad():
        exact = model(normalized).numpy()
    return network, images, exact


def snr(exact, network, images):
    real = run(network.graph, images) * network.graph.nodes[-1].out.scale
    return 10 * np.log10((exact**2).sum() / ((exact - real) ** 2).sum())


SWIN = {"patchify": 1, "linear": 53, "layer_norm": 29, "attention": 12, "mean_pool": 1}
VIT = {
    "patchify": 1, "linear": 50, "layer_norm": 25, "attention": 12, "add_constant": 1,
    "gather_rows": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "activation", "importer", "gelu", "operators", "least"),
    [
        ("swin_micro", "relu", "torch", "igelu", SWIN, 27),
        ("swin_micro", "relu", "onnx", "igelu", SWIN, 27),
        pytest.param("swin_micro", "gelu", "torch", "igelu", SWIN, 20, marks=pytest.mark.slow),
        ("swin_micro", "gelu", "onnx", "shiftgelu", SWIN, 20),
        ("vit_tiny_patch16_224", "gelu", "torch", "igelu", VIT, 20),
        ("deit_tiny_patch16_224", "relu", "onnx", "igelu", VIT, 22),
    ],
)
def test_networks(tmp_path, name, activation, importer, gelu, operators, least):
    """No layout operator is left, and the logits' signal-to-noise ratio is that of 8 bits."""
    model = create_model(name, activation=activation, num_classes=10)
    network, images, exact = quantized(model, importer, gelu, tmp_path)
    assert collections.Counter(node.op for node in network.graph.nodes) == operators
    assert snr(exact, network, images) > least


def test_relu_costs_no_operator():
    """The uint8 clamp is the ReLU: the fc1 nodes have zero point 0 and no activation."""
    network, _, _ = quantized(create_model("swin_micro", activation="relu"))
    hidden = [n for n in network.graph.nodes if n.op == "linear" and n.float_name[:4] == "relu"]
    assert len(hidden) == 12
    assert all(n.attrs["activation"] == "none" and n.out.zero_point == 0 for n in hidden)


def test_residual_streams_have_one_scale():
    network, _, _ = quantized(create_model("swin_micro", activation="relu"))
    graph = network.graph
    joined = [n for n in graph.nodes if n.op == "linear" and len(n.inputs) == 2]
    assert len(joined) == 24
    assert all(graph.spec(n.inputs[1]).scale == n.out.scale for n in joined)


def test_preprocessing_is_folded():
    """Another mean and std with the same pixels: the integer network follows the float one."""
    preprocess = Preprocess(image_size=224, mean=(0.1, 0.5, 0.9), std=(0.5, 0.2, 0.3))
    network, images, exact = quantized(
        create_model("swin_micro", activation="relu"), preprocess=preprocess
    )
    assert snr(exact, network, images) > 25


def test_separate_projections_and_layer_scale():
    """Queries, keys and values from three layers, and a learned scale of a branch (DeiT III)."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(32) for _ in range(3))
            self.q, self.k, self.v, self.proj = (nn.Linear(32, 32) for _ in range(4))
            self.gamma = nn.Parameter(torch.rand(32) + 0.5)

        def forward(self, x):
            y = self.norm1(x)
            q, k, v = (
                f(y).reshape(1, 196, 2, 16).transpose(1, 2) for f in (self.q, self.k, self.v)
            )
            scores = (q @ k.transpose(-2, -1)) / 4.0
            y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(1, 196, 32)
            return x + self.gamma * self.proj(y)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(3, 32, 16, 16)
            self.block, self.norm, self.head = Block(), nn.LayerNorm(32), nn.Linear(32, 7)

        def one(self, x):
            x = self.embed(x).flatten(2).transpose(1, 2)
            return self.head(self.norm(self.block(x)).mean(1))

        def forward(self, x):
            return torch.cat([self.one(image[None]) for image in x]) if len(x) > 1 else self.one(x)

    torch.manual_seed(0)
    network, images, exact = quantized(Net().eval())
    assert [node.op for node in network.graph.nodes].count("attention") == 1
    assert snr(exact, network, images) > 25


def test_too_fine_a_scale_is_widened():
    """Nearly equal logits: their scale would be finer than the accumulator's."""
    model = create_model("swin_micro", activation="relu")
    with torch.no_grad():
        model.head.fc.weight.mul_(1e-30).add_(1.0)  # every class the same
        model.head.fc.bias.zero_()
    network, images, exact = quantized(model)
    scale = network.graph.nodes[-1].out.scale
    assert scale > 1.5 * np.abs(exact).max() / 16384
    # a sum of 256 rounded means, each off by at most half of its step
    assert np.abs(run(network.graph, images) * scale - exact).max() < 0.5


@pytest.mark.parametrize(
    ("activation", "layer", "factor", "message"),
    [
        ("relu", "attn.qkv", 3000, "too much for an 8-bit softmax"),
        ("gelu", "mlp.fc1", 1e6, "finds no scale"),
    ],
)
def test_absurd_values_are_refused(activation, layer, factor, message):
    """Attention scores, and a GELU's input that no exponent suits; not an endless search."""
    model = create_model("swin_micro", activation=activation)
    with torch.no_grad():
        model.layers[0].blocks[0].get_submodule(layer).weight.mul_(factor)
    with pytest.raises(IntswinError, match=message):
        quantized(model)


def test_another_architecture_is_refused():
    class Convolutional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

        def forward(self, x):
            return self.head(self.conv(x).mean((2, 3)))

    with pytest.raises(IntswinError, match="not a patch embedding"):
        quantized(Convolutional().eval())


def test_an_operator_without_integer_form_is_named():
    class Sigmoid(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Conv2d(3, 8, 16, 16), nn.Linear(8, 4)

        def forward(self, x):
            return self.head(torch.sigmoid(self.embed(x)).mean((2, 3)))

    with pytest.raises(IntswinError, match="sigmoid"):
        quantized(Sigmoid().eval())
