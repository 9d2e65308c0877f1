"""Compile for the target cuda-h100: NVIDIA's H100 (sm_90a). Needs no GPU.

The options are those of `intswin compile`; without any, the embedded network is compiled.
"""

import sys

from intswin.compile.cli import main

sys.argv[1:1] = ["compile", "--target", "cuda-h100"]
main()
