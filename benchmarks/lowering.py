"""What inductor leaves of functions and modules for an H100, without one: kernels after fusing, and their bytes.

A graph is lowered and scheduled as if for the GPU, and nothing is built. Inductor does not tune, and constants are not
folded between the forward and the backward graph, as that would run them.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from multissl.parallel.compiling import Whole

H100 = SimpleNamespace(
    name="H100", major=9, minor=0, multi_processor_count=132, total_memory=80 << 30, warp_size=32,
    max_threads_per_multi_processor=2048, max_threads_per_block=1024, regs_per_multiprocessor=65536,
    shared_memory_per_block=48 << 10, shared_memory_per_block_optin=227 << 10, L2_cache_size=50 << 20,
)  # fmt: skip


GPU = torch.device("cuda", 0)
META = torch.device("meta")
"""Stands for the GPU where gradients are computed, which autograd refuses on a GPU that is not there."""


class _LoweredError(BaseException):
    """Ends a compilation after its kernels are known, before any is built."""


def lowered(whole: Whole[..., Any], args: Any, kwargs: Any) -> tuple[int, int]:
    """Return how many kernels inductor makes of a call of a compiled function, and the bytes that they move."""
    tensors, rebuilt = _tensors((args, kwargs))

    def run(*tensors: Tensor) -> tuple[Any, ...]:
        args, kwargs = rebuilt(tensors)
        return (*tree_leaves(whole.function(*args, **kwargs)),)

    return kernels_of(torch.func.functionalize(run), tensors, whole.options)


def kernels_of(
    function: Callable[..., Any], tensors: Sequence[Any], options: dict[str, Any]
) -> tuple[int, int]:
    """Return how many kernels inductor makes of a function of tensors for an H100, and the bytes that they move."""
    from torch._guards import TracingContext, tracing
    from torch._inductor import config, ir
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.graph import GraphLowering
    from torch._inductor.scheduler import NopKernelSchedulerNode
    from torch._inductor.virtualized import V
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils._python_dispatch import _disable_current_modes

    counts: list[int] = []

    def stop(lowering: GraphLowering) -> None:
        lowering._update_scheduler()
        nodes = [
            node for node in lowering.scheduler.nodes
            if not isinstance(node, NopKernelSchedulerNode) and not isinstance(node.node, ir.MultiOutput)
        ]  # fmt: skip
        counts.extend([len(nodes), lowering.count_bytes()[0]])
        raise _LoweredError

    fake = FakeTensorMode()
    with _disable_current_modes(), torch.no_grad():
        with fake:
            inputs = [_on_gpu(t) for t in tensors]
            graph = make_fx(function, select_decomp_table(), _allow_non_fake_inputs=True)(*inputs)
        with (
            pretended_gpu(),
            mock.patch.object(GraphLowering, "compile_to_module", stop),
            config.patch(fx_graph_cache=False, **options),
            tracing(TracingContext(fake)),
            V.set_fake_mode(fake),
            suppress(_LoweredError),
        ):
            compile_fx_inner(graph, inputs)
    return counts[0], counts[1]


def _on_gpu(tensor: Tensor) -> Tensor:
    """Return a tensor of the same sizes on the GPU that is not there; one of the host as it is."""
    device = tensor.device if tensor.device.type == "cpu" else GPU
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)


class Units:
    """Stands in for the compiler of modules: each call of one, and its backward pass, tells what it costs.

    `add` takes kernels and bytes; `silent` is what runs within a unit without being told of. Modules of one class with
    tensors of the same shapes are compiled once.
    """

    def __init__(
        self, add: Callable[[int, int], None], silent: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self.add, self.silent = add, silent
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def compile(self, module: nn.Module) -> None:
        """Stand in for `nn.Module.compile`."""
        module._compiled_call_impl = partial(self._call, module)

    def _call(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        tensors, rebuilt = _tensors((args, kwargs, state))
        fixed = [leaf for leaf in tree_leaves((args, kwargs)) if not isinstance(leaf, Tensor)]
        mode = module.training, torch.is_grad_enabled()
        sizes = [(*t.shape, t.dtype, t.requires_grad) for t in tensors]
        key = repr((type(module), mode, sizes, fixed))

        def run(*tensors: Tensor) -> Any:
            args, kwargs, state = rebuilt(tensors)
            with torch.nn.utils.stateless._reparametrize_module(module, state):
                return module._call_impl(*args, **kwargs)

        if key not in self._compiled:
            self._compiled[key] = self._aot(run)
        with self.silent():
            return self._compiled[key](*tensors)

    def _aot(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose forward and backward graphs are those that inductor is handed."""
        from torch._functorch.aot_autograd import aot_function
        from torch._inductor import config
        from torch._inductor.compile_fx import partition_fn
        from torch._inductor.decomposition import select_decomp_table

        def parted(joint: torch.fx.GraphModule, inputs: Sequence[Any], **options: Any) -> Any:
            _move(joint, GPU)  # inductor drops what computes on a device without content
            with config.patch(joint_graph_constant_folding=False):  # would fold on the GPU
                return partition_fn(joint, inputs, **options)

        return aot_function(
            function,
            fw_compiler=self._graph,
            bw_compiler=self._graph,
            partition_fn=parted,
            decompositions=select_decomp_table(),
        )

    def _graph(self, graph: torch.fx.GraphModule, tensors: Sequence[Any]) -> Callable[..., Any]:
        """Return what runs a graph on `META` and tells what it would cost on the GPU."""
        from torch._functorch._aot_autograd.utils import make_boxed_func

        there, here = copy.deepcopy(graph), copy.deepcopy(graph)
        _move(there, GPU)
        _move(here, META)
        cost = kernels_of(there, tensors, {})

        def run(*tensors: Tensor) -> Any:
            self.add(*cost)
            with self.silent():
                return here(*tensors)

        return make_boxed_func(run)


def _move(graph: torch.fx.GraphModule, device: torch.device) -> None:
    """Let a graph compute on another device."""

    def moved(tensor: Tensor) -> Tensor:
        if tensor.device.type == "cpu" or not isinstance(tensor, FakeTensor):
            return tensor
        with tensor.fake_mode:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)

    for node in graph.graph.nodes:
        if "device" in node.kwargs and node.kwargs["device"] != torch.device("cpu"):
            node.kwargs = {**node.kwargs, "device": device}
        if "val" in node.meta:
            node.meta["val"] = tree_map_only(Tensor, moved, node.meta["val"])
    graph.recompile()


def _tensors(tree: Any) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]]:
    """Return the tensors of nested arguments, and a function that puts others in their places."""
    leaves, spec = tree_flatten(tree)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def rebuilt(tensors: Sequence[Tensor]) -> Any:
        filled = [*leaves]
        for i, tensor in zip(places, tensors, strict=True):
            filled[i] = tensor
        return tree_unflatten(filled, spec)

    return [leaves[i] for i in places], rebuilt


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Let inductor plan for an H100 that is not there; nothing can run on it."""
    answers = {
        "torch.cuda.is_available": True,
        "torch.cuda.device_count": 1,
        "torch.cuda.current_device": 0,
        "torch.cuda.get_device_capability": (H100.major, H100.minor),
        "torch.cuda.get_device_properties": H100,
        "torch.cuda.get_rng_state": torch.zeros(0),
        "torch.cuda.set_rng_state": None,
        "torch.cuda.synchronize": None,
        "torch.cuda._lazy_init": None,
        "torch.cuda._exchange_device": 0,
        "torch.cuda._maybe_exchange_device": 0,
        "torch._inductor.scheduler.has_triton": True,
        "torch._dynamo.device_interface.CudaInterface.get_device_properties": H100,
        "torch._dynamo.device_interface.CudaInterface.Worker.get_device_properties": H100,
    }
    with ExitStack() as stack, warnings.catch_warnings():
        for advice in ("TensorFloat32", r"\s*Online softmax"):  # on speed, and nothing runs
            warnings.filterwarnings("ignore", message=advice)
        for name, answer in answers.items():
            stack.enter_context(mock.patch(name, lambda *_args, answer=answer, **_options: answer))
        yield
