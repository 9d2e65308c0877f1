"""Tests that run in an environment of the fake GPU, without torch: test_fake_gpu.py starts them.

Device memory of the fake GPU cannot be touched by the host, nothing runs before something waits for
it, and memory that was not written is not zero: what passes here does not depend on luck.
"""

import ctypes
import os
import subprocess
import sys
from ctypes import byref, c_int, c_void_p
from pathlib import Path

import numpy as np
import pytest

from intswin.compile import cuda_driver, cuda_runtime, runtime, tvm_runtime
from intswin.compile.cuda_runtime import CudaNetwork
from intswin.models.errors import IntswinError

FOLDER = Path(os.environ["FAKE_GPU_NETWORKS"])
GLOBAL_MODE = 0  # cudaStreamCaptureModeGlobal, which torch uses by default


@pytest.fixture(scope="module")
def stored():
    return runtime.artifact.read(FOLDER / "cuda-h100.intswin")


@pytest.fixture(scope="module")
def data():
    with np.load(FOLDER / "cuda-h100.npz") as file:
        return file["images"], file["logits"]


@pytest.fixture(scope="module")
def network(stored):
    return CudaNetwork(stored.library, stored.metadata)


@pytest.fixture
def cuda(network):
    return network._cuda


@pytest.fixture
def gpu(monkeypatch):
    """Change the fake GPU: `gpu(memory=...)`."""

    def change(**settings):
        for name, value in settings.items():
            monkeypatch.setenv(f"FAKE_GPU_{name.upper()}", str(value))
        cuda_driver.gpu.cache_clear()

    yield change
    cuda_driver.gpu.cache_clear()


def fake(name, *arguments):
    """A counter of the fake library."""
    function = getattr(cuda_driver.load_runtime_library(), f"fake_gpu_{name}")
    function.restype = ctypes.c_size_t
    return function(*map(c_void_p, arguments))


def write(network, tensor, images, stream):
    network._cuda.copy_in(tensor.data_ptr(), images.ctypes.data, images.nbytes, stream)


def read(network, tensor, stream):
    """After everything in the stream."""
    array = np.empty(tuple(tensor.shape), str(tensor.dtype))
    network._cuda.copy_out(array.ctypes.data, tensor.data_ptr(), array.nbytes, stream)
    network._cuda.synchronize(stream)
    return array


def new_input(network):
    return network._empty((network.batch, *network._image_shape), "uint8")


def message(error):
    text = str(error.value)
    assert "\n" not in text
    return text


def test_torch_is_not_needed(network):
    assert "torch" not in sys.modules
    assert cuda_driver.gpu().name.startswith("fake GPU")


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_arrays(stored, data, cuda_graph):
    images, logits = data
    network = CudaNetwork(stored.library, stored.metadata, cuda_graph=cuda_graph)
    for _ in range(2):
        np.testing.assert_array_equal(network(images), logits, strict=True)
    np.testing.assert_array_equal(network(images[::-1]), logits[::-1])


def test_code_of_an_older_gpu_runs_by_its_ptx():
    network = runtime.load(FOLDER / "cuda-a100.intswin")
    with np.load(FOLDER / "cuda-a100.npz") as file:
        np.testing.assert_array_equal(network(file["images"]), file["logits"])


def test_tensors_in_the_callers_stream(network, cuda, data):
    """What the stream writes before is read, and the call returns before its kernels have run."""
    images, logits = data
    tensor, stream, own = new_input(network), cuda.new_stream(), network._stream
    cuda.synchronize(own)
    before = fake("kernels", own)
    write(network, tensor, images, stream)
    result = network(tensor, stream=stream)
    assert fake("kernels", stream) > 15
    assert fake("pending", stream) > fake("kernels", stream)
    assert fake("kernels", own) == before
    assert result.__dlpack_device__() == (tvm_runtime.CUDA, 0)
    np.testing.assert_array_equal(read(network, result, stream), logits)


def test_the_default_stream(network, data):
    images, logits = data
    tensor = new_input(network)
    write(network, tensor, images, 0)
    np.testing.assert_array_equal(read(network, network(tensor), 0), logits)


def test_streams_share_memory_in_turns(network, cuda, data):
    images, logits = data
    streams = [cuda.new_stream() for _ in range(2)]
    tensors = [new_input(network) for _ in streams]
    write(network, tensors[0], images, streams[0])
    write(network, tensors[1], np.ascontiguousarray(images[::-1]), streams[1])
    results = [network(t, stream=s) for t, s in zip(tensors, streams, strict=True)]
    np.testing.assert_array_equal(read(network, results[1], streams[1]), logits[::-1])
    np.testing.assert_array_equal(read(network, results[0], streams[0]), logits)


def test_no_allocation_after_two_calls(network, data):
    tensor = new_input(network)
    write(network, tensor, data[0], 0)
    network(data[0])  # is recorded, and keeps its memory
    network(tensor)
    network(tensor)
    before = fake("allocations")
    for _ in range(2):
        network(tensor)
        network(data[0])
    assert fake("allocations") == before


def test_own_capture(network, cuda, data):
    images, logits = data
    call = network.capture()
    stream = cuda.new_stream()
    before = fake("allocations")
    for pixels, expected in ((images, logits), (images[::-1].copy(), logits[::-1])):
        write(network, call.images, pixels, stream)
        result = call.replay(stream)
        assert result is call.logits
        np.testing.assert_array_equal(read(network, result, stream), expected)
    assert fake("allocations") == before


@pytest.mark.parametrize("warm", [True, False])
def test_the_callers_capture(stored, data, warm):
    """In the strictest mode; without a call before, its kernels and memory are new."""
    images, logits = data
    network = CudaNetwork(stored.library, stored.metadata)
    cuda, library = network._cuda, cuda_driver.load_runtime_library()
    tensor, stream = new_input(network), cuda.new_stream()
    before = cuda.new_stream()
    if warm:
        network(tensor, stream=before)
    assert library.cudaStreamBeginCapture(c_void_p(stream), c_int(GLOBAL_MODE)) == 0
    result = network(tensor, stream=stream)
    assert fake("pending", before) == 0  # the graph has memory that this call used
    graph = c_void_p()
    assert library.cudaStreamEndCapture(c_void_p(stream), byref(graph)) == 0
    executable = cuda.instantiate(graph.value)
    write(network, tensor, images, stream)
    cuda.launch_graph(executable, stream)
    other = network(tensor, stream=stream)  # has other memory between the layers
    np.testing.assert_array_equal(read(network, result, stream), logits)
    np.testing.assert_array_equal(read(network, other, stream), logits)


def test_kernel_times(network, data, monkeypatch):
    monkeypatch.setattr(cuda_runtime, "_REPEATS", 2)
    monkeypatch.setattr(cuda_runtime, "_REPLAYS", 1)
    times = network.kernel_times(data[0])
    assert len(times) > 15
    assert all(name and seconds > 0 for name, seconds in times)
    np.testing.assert_array_equal(network(data[0]), data[1])


def test_too_little_memory_to_load(stored, gpu):
    gpu(memory=1 << 16)
    with pytest.raises(IntswinError, match="memory does not suffice for batch 2") as error:
        CudaNetwork(stored.library, stored.metadata)
    message(error)


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_too_little_memory_to_run(stored, data, gpu, cuda_graph):
    """And when there is enough again, it runs."""
    network = CudaNetwork(stored.library, stored.metadata, cuda_graph=cuda_graph)
    tvm_runtime.load_runtime().get_global_func("vm.builtin.memory_manager.clear")()
    gpu(memory=0)
    with pytest.raises(IntswinError, match="memory does not suffice for batch 2") as error:
        network(data[0])
    message(error)
    gpu(memory=1 << 30)
    np.testing.assert_array_equal(network(data[0]), data[1])


def test_code_for_another_gpu(stored, gpu):
    gpu(capability=80)
    with pytest.raises(IntswinError, match=r"this GPU is sm_80.*--target cuda-a100") as error:
        runtime.load(stored.path)
    message(error)
    network = CudaNetwork(stored.library, stored.metadata)  # kernels are loaded when called
    with pytest.raises(IntswinError, match="no code for this GPU") as error:
        network(np.zeros((2, 32, 32, 3), np.uint8))
    message(error)


def test_old_driver(stored, gpu):
    gpu(driver=12080)
    with pytest.raises(IntswinError, match=r"knows CUDA 12\.8, and 13\.0 is needed") as error:
        runtime.load(stored.path)
    message(error)


def test_a_tensor_in_the_cpus_memory(network, data):
    tensor = tvm_runtime.load_runtime().from_dlpack(data[0])
    with pytest.raises(IntswinError, match="in the CPU's memory and the network on GPU 0"):
        network(tensor)


def test_a_kernel_that_fails_ends_its_process(data):
    """CUDA is of no use any more, and says so in every call; nothing waits for ever."""
    program = f"""
import numpy as np
from intswin.compile import runtime
network = runtime.load({str(FOLDER / "cuda-h100.intswin")!r})
for _ in range(2):
    try:
        network(np.zeros((2, 32, 32, 3), np.uint8))
    except RuntimeError as error:
        print("said:", str(error).splitlines()[-1], flush=True)
"""
    environment = {**os.environ, "FAKE_GPU_FAULT": "mean_pool_kernel"}
    command = [sys.executable, "-c", program]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    said = [line for line in result.stdout.splitlines() if line.startswith("said:")]
    assert len(said) == 2
    assert all("ILLEGAL_ADDRESS" in line for line in said)
