"""Compile for the target cuda-t4: NVIDIA's T4 (sm_75). Needs no GPU.

The options are those of `intswin compile`; without any, the embedded network is compiled.
"""

import sys

from intswin.compile.cli import main

sys.argv[1:1] = ["compile", "--target", "cuda-t4"]
main()
