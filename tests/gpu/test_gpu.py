"""CUDA artifacts on a real GPU: exact, without copies, in any stream, as graphs."""

import ctypes

import numpy as np
import pytest
import torch

from intswin.compile import cuda_check, cuda_driver, cuda_runtime, cuda_toolchain, runtime
from intswin.compile.build import build, export
from intswin.compile.emit import emit_kernels
from intswin.compile.fuse_kernels import fuse_for_target
from intswin.compile.targets import get_target
from intswin.models import integer_reference
from intswin.models.errors import IntswinError

BATCH = 2
MANY = 200  # networks, more than earlier tests can have left memory for


def images(count, size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


@pytest.fixture(scope="module")
def network(relu):
    return runtime.open_network(relu.library, relu.metadata)


@pytest.fixture(scope="module")
def batch(network):
    return images(BATCH, network.preprocess.image_size)


@pytest.fixture(scope="module")
def expected(relu, batch):
    return integer_reference.run(relu.graph, batch)


def test_logits_equal_the_reference(compiled):
    network = runtime.open_network(compiled.library, compiled.metadata)
    pixels = images(5, network.preprocess.image_size)
    expected = integer_reference.run(compiled.graph, pixels)
    assert np.array_equal(network.logits(pixels), expected)


def test_without_a_graph(relu, batch, expected):
    network = cuda_runtime.CudaNetwork(relu.library, relu.metadata, cuda_graph=False)
    for _ in range(3):
        assert np.array_equal(network(batch), expected)


@pytest.mark.parametrize("code", ["own", "cuda-v100"])
def test_every_kernel_alone(compiled, tmp_path, code):
    target = get_target(compiled.metadata["target"]["name"] if code == "own" else code)
    try:
        cuda_toolchain.check_installed(target)
    except IntswinError as error:
        pytest.skip(str(error))
    path = tmp_path / "kernels.so"
    export(build(emit_kernels(compiled.graph, BATCH, target), target), path, target)
    runtime.prepare_device(compiled.metadata)
    library = path.read_bytes()
    found = list(cuda_check.check_kernels(compiled.graph, library, BATCH, target, seed=1))
    assert [comparison for comparison in found if comparison.different] == []
    assert len(found) > 15


def test_torch_in_torch_out(network, batch, expected):
    tensor = torch.from_numpy(batch).cuda()
    logits = network(tensor)
    assert isinstance(logits, torch.Tensor)
    assert logits.is_cuda
    assert np.array_equal(logits.cpu().numpy(), expected)


def test_cupy_in_cupy_out(network, batch, expected):
    cupy = pytest.importorskip("cupy")
    logits = network(cupy.asarray(batch))
    assert isinstance(logits, cupy.ndarray)
    assert np.array_equal(cupy.asnumpy(logits), expected)


def test_the_current_stream_is_used(network, batch, expected):
    """What the same stream writes before is what the network reads."""
    tensor, source = torch.zeros(batch.shape, dtype=torch.uint8).cuda(), torch.from_numpy(batch)
    source = source.cuda()
    network(tensor)  # memory is in the pool
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        tensor.copy_(source)
        logits = network(tensor)
        assert not stream.query()  # the call came back before the copy was made
    stream.synchronize()
    assert np.array_equal(logits.cpu().numpy(), expected)


def test_calls_in_two_streams_share_memory_in_turns(network, batch):
    tensors = [torch.from_numpy(images(BATCH, batch.shape[1], seed)).cuda() for seed in (1, 2)]
    torch.cuda.synchronize()
    expected = [network(tensor.cpu().numpy()) for tensor in tensors]
    streams = [torch.cuda.Stream() for _ in tensors]
    for _ in range(20):
        results = [network(t, stream=s) for t, s in zip(tensors, streams, strict=True)]
        torch.cuda.synchronize()
        for result, right in zip(results, expected, strict=True):
            assert np.array_equal(result.cpu().numpy(), right)


def test_own_capture(network, batch, expected):
    tensor = torch.zeros(batch.shape, dtype=torch.uint8).cuda()
    call = network.capture(tensor)
    tensor.copy_(torch.from_numpy(batch))
    call.replay()
    other = network(
        torch.zeros(batch.shape, dtype=torch.uint8).cuda()
    )  # has other memory between the layers
    assert np.array_equal(call.logits.cpu().numpy(), expected)
    assert not np.array_equal(other.cpu().numpy(), expected)


def test_capture_by_torch(network, batch, expected):
    tensor = torch.zeros(batch.shape, dtype=torch.uint8).cuda()
    network(tensor)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = network(tensor)
    tensor.copy_(torch.from_numpy(batch))
    graph.replay()
    torch.cuda.synchronize()
    assert np.array_equal(logits.cpu().numpy(), expected)


def test_no_allocation_after_two_calls(network, batch):
    tensor = torch.from_numpy(batch).cuda()
    network(batch)  # is recorded, and keeps its memory
    network(tensor)
    network(tensor)
    torch.cuda.synchronize()
    free = torch.cuda.mem_get_info()[0]
    for _ in range(10):
        network(tensor)
        network(batch)
    torch.cuda.synchronize()
    assert torch.cuda.mem_get_info()[0] == free


def test_kernel_times(network, relu, batch, target_name):
    times = network.kernel_times(batch)
    kernels = fuse_for_target(relu.graph, len(batch), get_target(target_name)).nodes
    assert len(times) == len(kernels)
    assert all(1e-7 < seconds < 1e-2 for _, seconds in times)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (lambda x: x, "in the CPU's memory"),
        (lambda x: x.to(torch.int8).cuda(), "the tensor is int8"),
        (lambda x: x.cuda().permute(0, 2, 1, 3), "not contiguous"),
        (lambda x: x[:1].cuda(), r"\(1, "),
    ],
)
def test_unfit_tensors_are_refused(network, batch, bad, words):
    with pytest.raises(IntswinError, match=words):
        network(bad(torch.from_numpy(batch)))


def test_too_large_for_the_gpu(relu, batch):
    """Somebody else has the memory; what TVM's pool keeps of earlier tests is used up first."""
    cuda, size = cuda_driver.load_runtime_library(), 1 << 40
    taken: list[ctypes.c_void_p] = []
    opened: list[runtime.Network] = []
    while size >= 4096:
        address = ctypes.c_void_p()
        if cuda.cudaMalloc(ctypes.byref(address), ctypes.c_size_t(size)):
            size //= 2
        else:
            taken.append(address)
    cuda.cudaGetLastError()
    try:
        with pytest.raises(IntswinError, match="memory does not suffice") as error:
            for _ in range(MANY):
                opened.append(runtime.open_network(relu.library, relu.metadata))
                opened[-1](batch)
        assert "\n" not in str(error.value)
    finally:
        for address in taken:
            cuda.cudaFree(address)
