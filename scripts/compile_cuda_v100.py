"""Compile for the target cuda-v100: NVIDIA's V100 (sm_70). Needs no GPU.

The artifact holds PTX as well, which newer cards can run.

The options are those of `intswin compile`; without any, the embedded network is compiled.
"""

import sys

from intswin.compile.cli import main

sys.argv[1:1] = ["compile", "--target", "cuda-v100"]
main()
