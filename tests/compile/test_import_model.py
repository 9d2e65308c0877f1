"""Both importers give the network that torch runs, and refuse what is not one."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from intswin.compile.float_graph import read_float_graph
from intswin.compile.import_model import export_onnx, image_size_of, import_onnx, import_torch
from intswin.compile.simplify import simplify
from intswin.models.errors import IntswinError
from intswin.models.swin import create_model

SIZE = (224, 224)


@pytest.fixture(scope="module")
def model():
    return create_model("swin_micro", activation="gelu", seed=1)


@pytest.fixture(scope="module", params=["torch", "onnx"])
def module(request, model, tmp_path_factory):
    if request.param == "torch":
        return import_torch(model, SIZE)
    path = tmp_path_factory.mktemp("onnx") / "micro.onnx"
    export_onnx(model, SIZE, path)
    assert onnx.load(path).opset_import[0].version >= 18
    return import_onnx(path)


def test_equals_torch(model, module):
    """Before and after simplification, within 1e-4 of torch."""
    assert image_size_of(module) == SIZE
    graph = read_float_graph(module)
    simple = simplify(graph)
    assert len(simple.ops) < len(graph.ops)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        image = torch.randn(1, 3, *SIZE, generator=generator)
        with torch.no_grad():
            expected = model(image)
            torch.testing.assert_close(graph.run(image), expected, rtol=0, atol=1e-4)
            torch.testing.assert_close(simple.run(image), expected, rtol=0, atol=1e-4)


class ErfGelu(nn.Module):
    """GELU as opsets below 20 spell it."""

    def __init__(self, order):
        super().__init__()
        self.order = order
        self.fc1, self.fc2 = nn.Linear(3 * 64, 16), nn.Linear(16, 4)

    def forward(self, x):
        x = self.fc1(x.reshape(1, -1))
        erf = 1 + torch.erf(x / 2**0.5) if self.order else torch.erf(x * 0.5**0.5) + 1
        y = x * erf * 0.5 if self.order else (0.5 * x) * erf
        return self.fc2(y)


@pytest.mark.parametrize("order", [0, 1])
def test_recognises_gelu_written_with_erf(order):
    torch.manual_seed(0)
    model = ErfGelu(order).eval()
    graph = simplify(read_float_graph(import_torch(model, (8, 8))))
    assert [op.op for op in graph.ops].count("nn.gelu") == 1
    assert "erf" not in {op.op for op in graph.ops}
    image = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(graph.run(image), model(image), rtol=0, atol=1e-5)


def test_half_of_a_gelu_is_left_alone():
    """x * (1 + erf(x / sqrt 2)) lacks the 0.5: it is not GELU."""

    class Double(ErfGelu):
        def forward(self, x):
            x = self.fc1(x.reshape(1, -1))
            return self.fc2(x * (1 + torch.erf(x / 2**0.5)))

    graph = simplify(read_float_graph(import_torch(Double(0).eval(), (8, 8))))
    assert "nn.gelu" not in {op.op for op in graph.ops}


def test_missing_onnx_file(tmp_path):
    with pytest.raises(IntswinError, match="no ONNX file"):
        import_onnx(tmp_path / "none.onnx")


def test_not_an_onnx_file(tmp_path):
    path = tmp_path / "x.onnx"
    path.write_bytes(np.random.default_rng(0).bytes(1000))
    with pytest.raises(IntswinError, match="not a valid ONNX file"):
        import_onnx(path)


@pytest.mark.parametrize("shape", [[1, 1, 8, 8], ["n", 3, 8, 8], [1, 3, 8]])
def test_onnx_of_another_input(tmp_path, shape):
    tensor = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", tensor, shape)],
        [onnx.helper.make_tensor_value_info("y", tensor, shape)],
    )
    path = tmp_path / "x.onnx"
    onnx.save(onnx.helper.make_model(graph), path)
    with pytest.raises(IntswinError, match="export it for one image"):
        import_onnx(path)
