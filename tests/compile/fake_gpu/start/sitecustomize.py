"""Python starts with this in every process of a run on the fake GPU, also in its workers."""

import importlib.abc
import importlib.util
import sys

_TOOLCHAIN = "intswin.compile.cuda_toolchain"


class _Hook(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Changes the toolchain when it is imported."""

    def find_spec(self, name, path=None, target=None):
        if name != _TOOLCHAIN:
            return None
        sys.meta_path.remove(self)
        self._spec = importlib.util.find_spec(name)
        return importlib.util.spec_from_file_location(name, self._spec.origin, loader=self)

    def exec_module(self, module):
        self._spec.loader.exec_module(module)
        from fake_gpu import toolchain

        toolchain.install(module)


sys.meta_path.insert(0, _Hook())
