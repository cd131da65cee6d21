"""Compilation without a compiler: what dynamo traces runs as it is, which is all that many tests ask about."""

from __future__ import annotations

import functools
from typing import Any

import torch

from multissl.parallel.compiling import Whole


def traced_functions(names: list[str] | None = None) -> property:
    """Return what takes the place of `Whole._compiled`; `names` gets the name of a function at each of its graphs."""

    @functools.cache
    def traced(function: Any) -> Any:
        def backend(graph: Any, _inputs: Any) -> Any:
            if names is not None:
                names.append(function.__name__)
            return graph.forward

        return torch.compile(function, backend=backend, fullgraph=True, dynamic=False)

    def of(whole: Whole[..., Any]) -> Any:
        return traced(whole.function)

    return property(of)
