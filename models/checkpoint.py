"""Read and write checkpoints, and say in one line why a file does not fit a network.

Reads .safetensors and .pth (a state dict, or one nested under ``model`` or ``state_dict``, as the
Swin and DeiT authors publish). Never unpickles code. Optimizer state is not kept here: that is
``training.py``'s own resume file.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from timm.models import SwinTransformer
from timm.models.swin_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from intswin.models.errors import IntswinError
from intswin.models.files import write_atomically, write_file

PICKLED = (".pth", ".pt", ".bin")
SCALE = ".scale"  # suffix of the scales of an 8-bit weight


def save_checkpoint(model: nn.Module, path: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """Write the parameters as ``dtype`` to a .safetensors or .pth file.

    With ``torch.int8``, matrices and convolutions are stored in 8 bits with a float32 scale for
    each output channel (NAME.scale), and everything else as float16. The file appears whole or not
    at all. Raises IntswinError on another suffix or when the disk refuses.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.state_dict().items():
        value = parameter.detach().cpu()
        if dtype == torch.int8 and name.endswith(".weight") and value.ndim > 1:
            tensors[name], tensors[name + SCALE] = _eight_bits(value.float())
        elif value.is_floating_point():
            tensors[name] = value.to(torch.float16 if dtype == torch.int8 else dtype).contiguous()
        else:
            tensors[name] = value.contiguous()
    if path.suffix == ".safetensors":
        write_file(path, safetensors.torch.save(tensors))
    elif path.suffix in PICKLED:
        write_atomically(path, lambda temporary: torch.save(tensors, temporary))
    else:
        raise IntswinError(f"{path}: unknown checkpoint suffix; use .safetensors or .pth")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a checkpoint's tensors on the CPU, or raise IntswinError naming the file."""
    path = Path(path)
    if not path.is_file():
        raise IntswinError(f"{path}: no such checkpoint; give a .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            return _dequantized(safetensors.torch.load_file(path))
        if path.suffix not in PICKLED:
            raise IntswinError(f"{path}: unknown checkpoint suffix; use .safetensors or .pth")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        SafetensorError,
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise IntswinError(
            f"{path} is truncated or is not a checkpoint ({reason}); get it anew"
        ) from error
    for nested in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(nested), dict):
            state = state[nested]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise IntswinError(f"{path} holds no state dict; save model.state_dict()")
    return _dequantized({name.removeprefix("module."): value for name, value in state.items()})


def _eight_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Int8 steps of a weight (N, ...), and float32 scales (N,)."""
    rows = weight.flatten(1)
    scale = rows.abs().amax(1).clamp(min=1e-12) / 127
    return (rows / scale[:, None]).round().to(torch.int8).view_as(weight), scale


def _dequantized(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with its 8-bit weights as float32."""
    eight_bit = [n for n, v in state.items() if v.dtype == torch.int8 and n + SCALE in state]
    for name in eight_bit:
        weight, scale = state[name], state.pop(name + SCALE)
        state[name] = weight.float() * scale.view(-1, *[1] * (weight.ndim - 1))
    return state


def load_checkpoint(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a checkpoint into the network, in place, in the network's own dtype; returns the model.

    A network built without fc1 biases reads a checkpoint that has them and leaves them out. Raises
    IntswinError naming the file and the first thing that does not fit.
    """
    state = read_state_dict(path)
    if isinstance(model, SwinTransformer):
        state = checkpoint_filter_fn(state, model)
    own = model.state_dict()
    for name in [n for n in state if n.endswith(".mlp.fc1.bias") and n not in own]:
        if name.removesuffix("bias") + "weight" in own:
            del state[name]
    problem = _first_mismatch(state, own)
    if problem:
        raise IntswinError(f"{path} does not fit the network: {problem}")
    model.load_state_dict(state)
    return model


def _first_mismatch(state: dict[str, Tensor], own: dict[str, Tensor]) -> str | None:
    """One sentence on the first difference between a checkpoint and a network, None if none."""
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    if missing and all(name.endswith(".mlp.fc1.bias") for name in missing):
        return "it has no fc1 biases; pass --drop-fc1-bias"
    differing = [n for n in own if n in state and own[n].shape != state[n].shape]
    head = next((n for n in differing if n in ("head.fc.weight", "head.weight")), None)
    if head and not missing and not unexpected and len(differing) <= 2:
        has, wants = state[head].shape[0], own[head].shape[0]
        return f"{head} has {has} classes, the network has {wants}; pass --num-classes {has}"
    if missing:
        return f"it has no {missing[0]}; pass the network that it was saved from"
    if unexpected:
        return f"the network has no {unexpected[0]}; pass the network that it was saved from"
    if differing:
        name = differing[0]
        shapes = f"{tuple(state[name].shape)}, the network's is {tuple(own[name].shape)}"
        return f"{name} is {shapes}; pass the network that it was saved from"
    return None
