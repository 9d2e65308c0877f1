"""Compile a tiny Swin for the fake GPU: python -m fake_gpu.tiny FOLDER TARGET..."""

import sys
from pathlib import Path

import numpy as np

import graphs
from intswin.compile.pipeline import CompileOptions, FloatNetwork, build_integer_network
from intswin.compile.targets import get_target
from intswin.models import integer_reference
from intswin.models.preprocess import Preprocess


def compile_tiny(activation, target_name):
    """`graphs.tiny_swin_graph` for two images, as `compile_network` gives a network."""
    in_graph = "none" if activation == "relu" else activation
    graph = graphs.tiny_swin_graph(np.random.default_rng(0), classes=10, activation=in_graph)
    options = CompileOptions(activation=activation, target=target_name, batch=2)
    network = FloatNetwork(None, None, None, Preprocess(image_size=graph.input.shape[0]))
    return build_integer_network(options, network, graph, get_target(target_name))


def main(target_name, folder):
    """Write TARGET.intswin, and images with their logits to TARGET.npz."""
    compiled = compile_tiny("relu", target_name)
    compiled.save(folder / f"{target_name}.intswin")
    images = graphs.random_images(np.random.default_rng(1), compiled.graph, 2)
    logits = integer_reference.run(compiled.graph, images)
    np.savez(folder / f"{target_name}.npz", images=images, logits=logits)


if __name__ == "__main__":
    for name in sys.argv[2:]:
        main(name, Path(sys.argv[1]))
