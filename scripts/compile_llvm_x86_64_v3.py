"""Compile for the target llvm-x86-64-v3: any x86-64 CPU with AVX2.

The options are those of `intswin compile`; without any, the embedded network is compiled.
"""

import sys

from intswin.compile.cli import main

sys.argv[1:1] = ["compile", "--target", "llvm-x86-64-v3"]
main()
