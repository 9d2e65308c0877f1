"""Compile for the target cuda-a100: NVIDIA's A100 (sm_80). Needs no GPU.

The options are those of `intswin compile`; without any, the embedded network is compiled.
"""

import sys

from intswin.compile.cli import main

sys.argv[1:1] = ["compile", "--target", "cuda-a100"]
main()
