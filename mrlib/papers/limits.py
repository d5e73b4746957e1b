"""Build models up to a size: settings that are damaged or mistyped may ask for a million layers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

_MAKERS = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)


@contextmanager
def at_most(parts: int, numbers: int) -> Iterator[None]:
    """Build a model in this block of at most so many modules and parameters, and numbers in tensors.

    raises  ValueError for a larger model, or for sizes that no tensor can have
    """
    registered = 0

    def count(module: nn.Module, name: str, part: Any) -> None:
        nonlocal registered
        registered += 1
        if registered > parts:
            raise ValueError(f"the model would have more than {parts} parts")

    hooks = [register_module_parameter_registration_hook(count), register_module_module_registration_hook(count)]
    try:
        with _Numbers(numbers):
            yield
    except (RuntimeError, OverflowError, MemoryError) as error:
        raise ValueError(f"the model cannot be built: {str(error).partition(chr(10))[0]}") from error
    finally:
        for hook in hooks:
            hook.remove()


class _Numbers(TorchFunctionMode):
    """Tensors are made until they have so many numbers together."""

    def __init__(self, most: int):
        super().__init__()
        self.most, self.made = most, 0

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = options or {}
        if function in _MAKERS:
            size = options.get("size", arguments)
            self.made += math.prod(size[0] if size and isinstance(size[0], list | tuple) else size)
            if self.made > self.most:
                raise ValueError(f"the model would have more than {self.most} numbers")
        return function(*arguments, **options)
