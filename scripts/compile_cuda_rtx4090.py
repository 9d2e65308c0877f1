"""Compile for the target cuda-rtx4090: NVIDIA's RTX 4090 (sm_89). Needs no GPU.

The options are those of `intswin compile`; without any, the embedded network is compiled.
"""

import sys

from intswin.compile.cli import main

sys.argv[1:1] = ["compile", "--target", "cuda-rtx4090"]
main()
