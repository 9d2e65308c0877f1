"""Compile for the target llvm: the CPU of this machine.

The options are those of `intswin compile`; without any, the embedded network is compiled.
"""

import sys

from intswin.compile.cli import main

sys.argv[1:1] = ["compile", "--target", "llvm"]
main()
