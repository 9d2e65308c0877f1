"""The trainable integer network equals the NumPy reference, and its gradients are useful."""

import numpy as np
import pytest
import torch
from timm.models import SwinTransformer

from intswin.compile import quantize_parameters
from intswin.compile.calibrate import calibrate
from intswin.compile.float_graph import read_float_graph
from intswin.compile.import_model import import_torch
from intswin.compile.quantize import quantize
from intswin.compile.simplify import simplify
from intswin.models import fake_quantize_math, integer_reference
from intswin.models.activation import replace_activation
from intswin.models.distill_loss import LossWeights
from intswin.models.errors import IntswinError
from intswin.models.fake_quantize import FakeQuantized, QuantizedDistillation
from intswin.models.preprocess import Preprocess

SMALL = Preprocess(image_size=64, crop_pct=1.0)


def small_swin(seed=0, activation="relu"):
    torch.manual_seed(seed)
    model = SwinTransformer(
        img_size=64,
        num_classes=5,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(2, 2),
        window_size=4,
        drop_path_rate=0.0,
    )
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    for name, parameter in model.named_parameters():  # initial weights of 0.02 are all alike
        spread = 0.05 if "qkv" in name else 0.2
        torch.nn.init.normal_(parameter, 1.0 if "norm" in name and "weight" in name else 0, spread)
    return replace_activation(model, activation).eval()


def images(count, seed=1):
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 200, 64)[None, :, None, None] * rng.random((count, 1, 1, 3))
    return (ramp + rng.integers(0, 55, (count, 64, 64, 3))).astype(np.uint8)


def integer_network(model, method="mse"):
    graph = simplify(read_float_graph(import_torch(model, (64, 64))))
    inputs = torch.from_numpy(SMALL.normalize(images(6, seed=2)))
    ranges = calibrate(graph, (x[None] for x in inputs))
    return quantize(graph, ranges.ranges[method], ranges.ranges["min-max"], SMALL).graph


@pytest.fixture(scope="module")
def network():
    torch.set_num_threads(1)
    model = small_swin()
    return model, integer_network(model)


def test_every_tensor_equals_the_reference(network):
    model, graph = network
    pixels = images(3)
    expected = integer_reference.run_all(graph, pixels)
    with torch.no_grad():
        steps = FakeQuantized(model, graph, SMALL).run_all(torch.from_numpy(pixels))
    kinds = set()
    for node in graph.nodes:
        stored = steps[node.name].numpy() + node.out.zero_point
        assert np.array_equal(stored, expected[node.name].astype(np.float32)), node.name
        kinds.add((node.op, node.attrs.get("out")))
    assert {("linear", "u8"), ("linear", "s8"), ("linear", "i16"), ("linear", "i32")} <= kinds
    assert {("layer_norm", "u8"), ("layer_norm", "i16"), ("mean_pool", None)} <= kinds


def test_logits_are_the_references_in_real_units(network):
    model, graph = network
    pixels = images(3)
    expected = integer_reference.run(graph, pixels) * graph.nodes[-1].out.scale
    with torch.no_grad():
        logits = FakeQuantized(model, graph, SMALL)(torch.from_numpy(SMALL.normalize(pixels)))
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(("kind", "layer"), [("u8", "mlp.fc1"), ("s8", "attn.qkv")])
def test_after_a_step_it_is_still_what_the_quantizer_makes(kind, layer):
    """Weights that moved are quantized on the same scales as by the integer pass."""
    model = small_swin()
    graph = integer_network(model)
    fake = FakeQuantized(model, graph, SMALL)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if layer in name:
                parameter.mul_(0.9)
    node = next(n for n in graph.nodes if n.op == "linear" and n.attrs["out"] == kind)
    by_name = dict(zip([n.name for n in graph.nodes], fake.operators, strict=True))
    module = model.layers[0].blocks[0].get_submodule(layer)
    x = torch.from_numpy(np.random.default_rng(0).integers(-128, 128, (1, 7, 16))).float()
    source = graph.spec(node.inputs[0])
    scales = np.array(node.out.part_scales or (node.out.scale,))
    tensors = quantize_parameters.linear_parameters(
        module.weight.detach().double().numpy(),
        module.bias.detach().double().numpy(),
        source.scale,
        source.zero_point,
        np.repeat(scales, len(module.bias) // len(scales)) / 2 ** node.attrs["frac"],
        layer,
    )
    from intswin.models.integer_graph import Node
    from intswin.models.integer_ops import execute

    again = Node(layer, "linear", [], tensors, node.attrs, node.out)
    expected = execute(again, [(x.numpy() + source.zero_point).astype(np.uint8)])
    with torch.no_grad():
        assert np.array_equal(by_name[node.name](x).numpy(), expected)


def test_other_weights_on_the_same_scales(network):
    """What validation does with averaged weights."""
    model, graph = network
    fake = FakeQuantized(model, graph, SMALL)
    inputs = torch.from_numpy(SMALL.normalize(images(2)))
    with torch.no_grad():
        own = fake(inputs)
        assert torch.equal(fake.of(small_swin())(inputs), own)
        moved = small_swin()
        for parameter in moved.parameters():
            parameter.mul_(0.8)
        assert not torch.equal(fake.of(moved)(inputs), own)
        assert torch.equal(fake(inputs), own)


def test_fixed_point_is_the_quantizers():
    ratio = np.concatenate([np.geomspace(1e-9, 0.9999, 500), 0.5 ** np.arange(1, 30)])
    pre, mult = fake_quantize_math.fixed_point(torch.from_numpy(ratio))
    expected_pre, expected_mult = quantize_parameters.fixed_point(ratio, "x")
    assert np.array_equal(pre.numpy(), expected_pre)
    assert np.array_equal(mult.numpy(), expected_mult)


def test_bit_length():
    numbers = [1, 2, 3, 255, 256, 2**53 - 1, 2**53, 2**55 - 1, 2**55]
    lengths = fake_quantize_math.bit_length(torch.tensor(numbers))
    assert lengths.tolist() == [n.bit_length() for n in numbers]


def test_gradients_point_where_the_float_networks_do(network):
    model, graph = network
    inputs = torch.from_numpy(SMALL.normalize(images(4)))
    gradients = []
    for forward in (FakeQuantized(model, graph, SMALL), model):
        model.zero_grad()
        forward(inputs).logsumexp(1).sum().backward()
        trained = [(n, p) for n, p in model.named_parameters() if "bias_table" not in n]
        gradients.append({n: p.grad.clone() for n, p in trained})
    similar = [
        torch.cosine_similarity(own.flatten(), gradients[1][name].flatten(), dim=0)
        for name, own in gradients[0].items()
        if name.endswith("weight")
    ]
    assert torch.stack(similar).median() > 0.9


def test_straight_through_saturates():
    from intswin.models.fake_quantize_math import straight_through

    x = torch.tensor([-2.0, 0.3, 9.0], requires_grad=True)
    y = straight_through(x.clamp(0, 5), x.detach().round().clamp(0, 5))
    y.sum().backward()
    assert y.tolist() == [0, 0, 5]
    assert x.grad.tolist() == [0, 1, 0]


def test_training_brings_the_integers_closer_to_the_teacher(network):
    _, graph = network
    student = small_swin()
    teacher = small_swin()
    objective = QuantizedDistillation(
        FakeQuantized(student, graph, SMALL), teacher, LossWeights(temperature=1.0)
    )
    inputs = torch.from_numpy(SMALL.normalize(images(8)))
    with torch.no_grad():  # what post-training quantization lost, much enlarged
        for name, parameter in student.named_parameters():
            if "mlp" in name:
                parameter.mul_(0.7)
    objective.train()
    assert not any(module.training for module in teacher.modules())
    optimizer = torch.optim.Adam(student.parameters(), lr=2e-3)
    losses = []
    for _ in range(15):
        loss, parts = objective(inputs, None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(parts[0].item())
    assert losses[-1] < 0.5 * losses[0]


def test_networks_that_do_not_belong_together(network):
    _, graph = network
    with pytest.raises(IntswinError, match="other weights"):
        FakeQuantized(small_swin(seed=9), graph, SMALL)
