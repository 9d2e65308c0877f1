"""Compile for the target llvm-aarch64: 64-bit Arm, cross-compiled; needs aarch64-linux-gnu-gcc.

The options are those of `intswin compile`; without any, the embedded network is compiled.
"""

import sys

from intswin.compile.cli import main

sys.argv[1:1] = ["compile", "--target", "llvm-aarch64"]
main()
