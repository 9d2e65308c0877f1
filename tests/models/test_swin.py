import pytest
import torch
from torch import nn

from intswin.models.activation import mlp_activation, mlps, replace_activation
from intswin.models.errors import IntswinError
from intswin.models.swin import (
    create_model,
    embedded_checkpoint,
    model_preprocess,
    with_fused_attention,
)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def test_swin_micro_is_small_and_in_eval_mode():
    model = create_model()
    assert parameters(model) <= 4_000_000
    assert not model.training
    assert model(torch.zeros(2, 3, 224, 224)).shape == (2, 10)
    assert len(mlps(model)) == 2 + 2 + 6 + 2


def test_seed_decides_the_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = create_model(seed=1), create_model(seed=1), create_model(seed=2)
    assert torch.equal(torch.rand(3), expected)
    key = "layers.2.blocks.3.mlp.fc1.weight"
    assert torch.equal(first.state_dict()[key], again.state_dict()[key])
    assert not torch.equal(first.state_dict()[key], other.state_dict()[key])


@pytest.mark.parametrize(
    ("name", "size", "depth"),
    [
        ("swin_tiny_patch4_window7_224", 224, 12),
        ("swin_base_patch4_window12_384", 384, 24),
        ("deit_tiny_patch16_224", 224, 12),
    ],
)
def test_timm_networks_by_name(name, size, depth):
    model = create_model(name, activation="relu", num_classes=7)
    assert len(mlps(model)) == depth
    assert mlp_activation(model) == "relu"
    assert model_preprocess(model).image_size == size
    assert not any(getattr(module, "fused_attn", False) for module in model.modules())
    attentions = [m for m in with_fused_attention(model).modules() if hasattr(m, "fused_attn")]
    assert len(attentions) == depth and all(module.fused_attn for module in attentions)
    assert model.get_classifier().out_features == 7


def test_only_the_mlp_activations_are_swapped():
    gelu, relu = create_model(seed=3), replace_activation(create_model(seed=3), "relu")
    assert mlp_activation(gelu) == "gelu"
    before = {name: type(m) for name, m in gelu.named_modules()}
    after = {name: type(m) for name, m in relu.named_modules()}
    changed = {name for name in before if before[name] is not after[name]}
    assert changed == {name for name in before if name.endswith(".mlp.act")}
    for name, value in gelu.state_dict().items():
        assert torch.equal(value, relu.state_dict()[name]), name
    image = torch.randn(1, 3, 224, 224)
    assert not torch.allclose(gelu(image), relu(image))


def test_dropping_the_fc1_bias_equals_a_bias_of_zero():
    dropped = create_model(activation="relu", drop_fc1_bias=True)
    zeroed = create_model(activation="relu")
    for mlp, kept in zip(mlps(dropped), mlps(zeroed), strict=True):
        assert mlp.fc1.bias is None
        assert mlp.fc2.bias is not None
        nn.init.zeros_(kept.fc1.bias)
    image = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(dropped(image), zeroed(image))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "swin_mikro"}, "unknown network 'swin_mikro'"),
        ({"activation": "tanh"}, "unknown activation 'tanh'"),
        ({"drop_fc1_bias": True}, "ReLU only"),
        ({"pretrained": True}, "no hub has a swin_micro"),
        ({"checkpoint": "embedded", "num_classes": 3}, "pass --num-classes 10"),
        ({"name": "deit_tiny_patch16_224", "checkpoint": "embedded"}, "is a swin_micro"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(options, message):
    with pytest.raises(IntswinError, match=message) as caught:
        create_model(**options)
    assert "\n" not in str(caught.value)


def test_a_network_without_mlps_is_refused():
    with pytest.raises(IntswinError, match="no timm Mlp"):
        replace_activation(nn.Linear(2, 2), "relu")


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_embedded_checkpoint_is_loaded(activation):
    assert embedded_checkpoint(activation).stat().st_size < 8 << 20
    embedded = create_model(activation=activation, checkpoint="embedded")
    assert mlp_activation(embedded) == activation
    assert not torch.equal(embedded.head.fc.weight, create_model().head.fc.weight)
