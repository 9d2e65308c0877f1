"""The CUDA runtime where there is no GPU: its errors, and its ways in and out on a stand-in.

The stand-in runs a network that was compiled for the CPU, and "CUDA" is the CPU's memory; what
needs a GPU is in tests/gpu.
"""

import contextlib
import ctypes
import types

import numpy as np
import pytest
import torch
from test_runtime import (
    BATCH,
    CLASSES,
    EMPTY_GRAPH,
    SIZE,
    compile_matmul,
    expected_logits,
    metadata,
)

from intswin.compile import (
    artifact,
    cuda_driver,
    cuda_runtime,
    cuda_tensors,
    runtime,
    tvm_runtime,
)
from intswin.models.errors import IntswinError

TARGET = {"kind": "cuda", "name": "cuda-a100", "arch": "sm_80"}
SHAPE = (BATCH, SIZE, SIZE, 3)


class FakeDriver:
    """libcuda as it answers on some machine."""

    def __init__(self, status=0, version=13000, capability=(8, 0), count=1):
        self.status, self.version, self.count = status, version, count
        self.attributes = {75: capability[0], 76: capability[1]}

    def cuInit(self, _flags):
        return self.status

    def cuDriverGetVersion(self, value):
        value._obj.value = self.version

    def cuDeviceGetCount(self, value):
        value._obj.value = self.count

    def cuDeviceGetName(self, name, _size, _device):
        name.value = b"Some GPU"

    def cuDeviceTotalMem_v2(self, value, _device):
        value._obj.value = 1 << 30

    def cuDeviceGetAttribute(self, value, number, _device):
        value._obj.value = self.attributes.get(number, 0)


class FakeCuda:
    """Streams that run at once, on the CPU; a capture runs what it records."""

    def __init__(self):
        self.capturing, self.calls = set(), []
        self.numbers = iter(range(100, 10**6))

    def __getattr__(self, name):  # what has nothing to do here
        def called(*arguments):
            self.calls.append((name, *arguments))
            return next(self.numbers)

        return called

    def is_capturing(self, stream):
        return stream in self.capturing

    def allocation_while_capturing(self):
        self.calls.append(("relaxed",))
        return contextlib.nullcontext()

    def copy_in(self, device, host, size, _stream):
        ctypes.memmove(device, host, size)

    def copy_out(self, host, device, size, _stream):
        ctypes.memmove(host, device, size)


@pytest.fixture
def use_driver(monkeypatch):
    cuda_driver.gpu.cache_clear()
    yield lambda **state: monkeypatch.setattr(
        cuda_driver, "_load_driver", lambda: FakeDriver(**state)
    )
    cuda_driver.gpu.cache_clear()


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return compile_matmul(tmp_path_factory.mktemp("matmul"))


@pytest.fixture
def cuda(monkeypatch):
    """The CPU as "GPU 0"; gives the fake CUDA runtime."""
    fake, tvm_ffi = FakeCuda(), tvm_runtime.load_runtime()
    names = ("from_dlpack", "Shape", "dtype", "get_global_func")
    ffi = types.SimpleNamespace(
        device=lambda _kind, index: tvm_ffi.device("cpu", index),
        use_raw_stream=lambda _device, _stream: contextlib.nullcontext(),
        get_raw_stream=lambda _device: 0,
        **{name: getattr(tvm_ffi, name) for name in names},
    )
    monkeypatch.setattr(cuda_driver, "runtime", lambda _device=0: fake)
    monkeypatch.setattr(cuda_runtime, "load_cuda_runtime", lambda: ffi)
    for module in (cuda_runtime, cuda_tensors):
        monkeypatch.setattr(module, "CUDA", tvm_runtime.CPU)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: FakeStream(7))
    cuda_runtime._order.cache_clear()
    yield fake
    cuda_runtime._order.cache_clear()


class FakeStream:
    def __init__(self, address):
        self.cuda_stream = address


def store(folder, target):
    path = folder / "network.intswin"
    return artifact.write(path, b"not a library", metadata(target=target), EMPTY_GRAPH)


def images():
    return np.random.default_rng(1).integers(0, 256, SHAPE, np.uint8)


def message(error):
    text = str(error.value)
    assert "\n" not in text
    return text


def test_no_driver(tmp_path, monkeypatch):
    cuda_driver.gpu.cache_clear()
    monkeypatch.setattr(cuda_driver, "_DRIVER", "libcuda-that-is-missing.so.1")
    with pytest.raises(IntswinError) as error:
        runtime.load(store(tmp_path, TARGET))
    assert "no NVIDIA driver" in message(error)
    assert "cuda-a100" in message(error)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"status": 100}, "finds no GPU"),
        ({"status": 803}, "error 803"),
        ({"version": 12040}, "knows CUDA 12.4, and 13.0 is needed; install driver 580"),
        ({"count": 0}, "there is no GPU 0"),
        ({"capability": (7, 5)}, "for sm_80, and this GPU is sm_75.*--target cuda-t4"),
        ({"capability": (9, 0)}, "for sm_80, and this GPU is sm_90.*--target cuda-h100"),
        ({"capability": (12, 0)}, "for sm_80, and this GPU is sm_120.*--target cuda-v100"),
    ],
)
def test_unfit_machines_are_refused(tmp_path, use_driver, state, words):
    use_driver(**state)
    with pytest.raises(IntswinError, match=words) as error:
        runtime.load(store(tmp_path, TARGET))
    message(error)


def test_missing_runtime_library(monkeypatch):
    cuda_driver.load_runtime_library.cache_clear()
    monkeypatch.setattr(cuda_driver, "_runtime_paths", lambda: iter(["libmissing.so.13"]))
    with pytest.raises(IntswinError, match="pip install nvidia-cuda-runtime"):
        cuda_driver.load_runtime_library()


def test_another_device_than_there_are(use_driver):
    use_driver(count=2)
    assert cuda_driver.gpu(1).index == 1
    with pytest.raises(IntswinError, match="no GPU 2; this machine has 2"):
        cuda_driver.gpu(2)


@pytest.mark.parametrize(
    ("arch", "ptx", "capability", "runs"),
    [
        ("sm_80", None, (8, 0), True),
        ("sm_80", None, (8, 9), True),
        ("sm_89", None, (8, 6), False),
        ("sm_80", None, (9, 0), False),
        ("sm_90a", None, (9, 0), True),
        ("sm_90a", None, (10, 0), False),
        ("sm_90a", "compute_90a", (10, 0), False),
        ("sm_70", "compute_70", (9, 0), True),
        ("sm_70", "compute_70", (12, 0), True),
        ("sm_80", "compute_80", (7, 5), False),
    ],
)
def test_which_code_runs_where(arch, ptx, capability, runs):
    assert (cuda_driver.cannot_run(arch, ptx, capability) == "") is runs


def test_unknown_architecture():
    with pytest.raises(IntswinError, match="'gfx90a'"):
        cuda_driver.cannot_run("gfx90a", None, (9, 0))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("CUDA: out of memory", "memory does not suffice for batch 32"),
        ("CUDAError: CUDA_ERROR_OUT_OF_MEMORY", "memory does not suffice"),
        ("cuModuleLoadData: CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "driver is too old"),
        ("CUDA_ERROR_NO_BINARY_FOR_GPU", "no code for this GPU"),
        ("Check failed: something of TVM", ""),
    ],
)
def test_explanations(said, words):
    assert words in cuda_runtime.explanation(said, 32)
    assert bool(cuda_runtime.explanation(said, 32)) is bool(words)


def test_out_of_memory_while_loading(library, cuda, monkeypatch):
    def load(_library):
        raise RuntimeError("CUDA: out of memory\n  at cuda_device_api.cc")

    monkeypatch.setattr(cuda_runtime, "load_executable", load)
    with pytest.raises(IntswinError, match="memory does not suffice") as error:
        cuda_runtime.CudaNetwork(library, metadata(target=TARGET))
    message(error)


def test_numpy_and_torch_give_the_same(library, cuda):
    network = cuda_runtime.CudaNetwork(library, metadata(target=TARGET), cuda_graph=False)
    batch = images()
    logits = network(batch)
    assert isinstance(logits, np.ndarray)
    assert np.array_equal(logits, expected_logits(batch))
    tensor = torch.from_numpy(batch)
    result = network(tensor)
    assert isinstance(result, torch.Tensor)
    assert (result.dtype, tuple(result.shape)) == (torch.int32, (BATCH, CLASSES))
    assert np.array_equal(result.numpy(), logits)


def test_tensors_are_read_in_place(library, cuda, monkeypatch):
    network = cuda_runtime.CudaNetwork(library, metadata(target=TARGET))
    tensor = torch.from_numpy(images())
    seen = []
    monkeypatch.setattr(network, "_main", lambda x: seen.append(x.data_ptr()) or x)
    network(tensor)
    assert seen == [tensor.data_ptr()]


def test_streams(library, cuda):
    """The caller's stream is used, and another one waits for it."""
    network = cuda_runtime.CudaNetwork(library, metadata(target=TARGET))
    tensor = torch.from_numpy(images())
    network(tensor)  # torch's current stream, 7
    network(tensor, stream=FakeStream(8))
    network(tensor, stream=8)
    event = network._order._event
    assert [c for c in cuda.calls if c[0] in ("wait", "record")] == [
        ("wait", 7, event),
        ("record", event, 7),
        ("wait", 8, event),
        ("record", event, 8),
        ("wait", 8, event),
        ("record", event, 8),
    ]
    with pytest.raises(IntswinError, match="stream is str"):
        network(tensor, stream="main")


def test_the_callers_capture_keeps_its_memory(library, cuda):
    network = cuda_runtime.CudaNetwork(library, metadata(target=TARGET))
    tensor = torch.from_numpy(images())
    cuda.capturing.add(7)
    logits = network(tensor)
    kept = {memory.data_ptr() for memory in network._kept}
    assert logits.data_ptr() in kept
    assert tensor.data_ptr() in kept
    assert not [c for c in cuda.calls if c[0] == "record"]
    assert ("relaxed",) in cuda.calls  # memory that is kept may have to be replaced
    others = [network(tensor, stream=8) for _ in range(3)]
    assert all(other.data_ptr() not in kept for other in others)


def test_capture(library, cuda):
    network = cuda_runtime.CudaNetwork(library, metadata(target=TARGET))
    tensor = torch.from_numpy(images())
    call = network.capture(tensor)
    assert call.images is tensor
    assert isinstance(call.logits, torch.Tensor)
    assert np.array_equal(call.logits.numpy(), expected_logits(tensor.numpy()))
    assert call.replay() is call.logits
    assert cuda.calls[-1][0::2] == ("launch_graph", 7)
    names = [c[0] for c in cuda.calls]
    assert names.count("begin_capture") == names.count("instantiate") == 1
    own = network.capture()
    assert own.images.shape == SHAPE


def test_a_failing_capture_is_ended(library, cuda, monkeypatch):
    network = cuda_runtime.CudaNetwork(library, metadata(target=TARGET))

    def fail(_graph):
        raise cuda_driver.CudaError("cudaGraphInstantiate: out of memory")

    monkeypatch.setattr(cuda, "end_capture", fail, raising=False)
    with pytest.raises(IntswinError, match="memory does not suffice"):
        network(images())
    assert np.array_equal(
        cuda_runtime.CudaNetwork(library, metadata(target=TARGET), cuda_graph=False)(images()),
        expected_logits(images()),
    )


def test_kernel_times(library, cuda):
    cuda.seconds = lambda _start, _end: 2e-3
    network = cuda_runtime.CudaNetwork(library, metadata(target=TARGET))
    times = network.kernel_times(images())
    assert [round(seconds * 1e6) for _, seconds in times] == [100, 100]  # of 20 launches
    assert all("vm.builtin" not in name for name, _ in times)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (lambda x: x.to(torch.int8), r"the tensor is int8 .*takes uint8 \(2, 8, 8, 3\)"),
        (lambda x: x[:1], r"the tensor is uint8 \(1, 8, 8, 3\)"),
        (lambda x: x.permute(0, 2, 1, 3), "not contiguous"),
        (lambda x: x.flatten()[1:].clone()[: x.numel() - 1].repeat(2)[1:385].reshape(SHAPE), "16"),
        (lambda x: x.to("meta"), "cannot be read through DLPack: .*meta"),
        (lambda x: x.tolist(), "takes NumPy arrays and tensors with DLPack.*got list"),
        (lambda x: x.numpy().astype(np.int16), "an image is int16"),
        (lambda x: x.numpy()[:1], "compiled for batch 2"),
    ],
)
def test_unfit_tensors_are_refused(library, cuda, bad, words):
    network = cuda_runtime.CudaNetwork(library, metadata(target=TARGET))
    with pytest.raises(IntswinError, match=words) as error:
        network(bad(torch.from_numpy(images())))
    message(error)


def test_a_tensor_of_another_device(library, cuda, monkeypatch):
    network = cuda_runtime.CudaNetwork(library, metadata(target=TARGET))
    monkeypatch.setattr(cuda_tensors, "CUDA", 2)
    with pytest.raises(IntswinError, match="in the CPU's memory and the network on GPU 0; move"):
        network(torch.from_numpy(images()))
