"""What runs out of memory is told from what is wrong otherwise."""

import numpy as np
import pytest
import torch

from intswin.models.errors import IntswinError
from intswin.models.memory import too_little_memory


@pytest.mark.parametrize("allocate", [torch.empty, lambda count: np.empty(count, np.uint8)])
def test_too_little_memory(allocate):
    with pytest.raises(IntswinError, match="pass --limit"), too_little_memory("pass --limit"):
        allocate(1 << 50)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), too_little_memory("no"):
        torch.ones(2, 3) @ torch.ones(2, 3)
