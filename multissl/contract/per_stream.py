"""Modules and parameters by stream, whatever the streams are called."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Generic, TypeVar, cast
from urllib.parse import unquote

from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class PerStream(nn.Module, Generic[M]):
    """A dictionary from a stream's name to its module, registered in the order of insertion.

    torch forbids dots in a module's name, and names that are attributes already. Such a name is kept with its
    characters written as %XX; all other names are kept as they are, and so are those of the parameters below.
    """

    def __init__(self, modules: Mapping[str, M] | None = None) -> None:
        super().__init__()
        for stream, module in (modules or {}).items():
            self[stream] = module

    @classmethod
    def key(cls, stream: str) -> str:
        """Return the name under which a stream's module is kept."""
        return _key(cls, stream)

    @staticmethod
    def stream(key: str) -> str:
        """Return the stream whose module is kept under a name."""
        return "" if key == "%" else unquote(key)

    def __getitem__(self, stream: str) -> M:
        return cast(M, self._modules[self.key(stream)])

    def __setitem__(self, stream: str, module: M) -> None:
        self.add_module(self.key(stream), module)

    def __contains__(self, stream: object) -> bool:
        return isinstance(stream, str) and self.key(stream) in self._modules

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_stream())

    def keys(self) -> KeysView[str]:
        """Return the streams."""
        return self._by_stream().keys()

    def values(self) -> ValuesView[M]:
        """Return the modules."""
        return self._by_stream().values()

    def items(self) -> ItemsView[str, M]:
        """Return the streams with their modules."""
        return self._by_stream().items()

    def _by_stream(self) -> dict[str, M]:
        return {self.stream(key): cast(M, module) for key, module in self._modules.items()}


class ParameterPerStream(nn.Module):
    """A parameter for each stream, registered in the order of insertion under the names that `PerStream` gives."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for stream, tensor in tensors.items():
            self.register_parameter(_key(type(self), stream), nn.Parameter(tensor))

    def __getitem__(self, stream: str) -> nn.Parameter:
        return self.get_parameter(_key(type(self), stream))


def _key(cls: type[nn.Module], stream: str) -> str:
    """Return the name under which torch can hold something of a stream in a module of a class."""
    if not stream or hasattr(cls, stream) or stream.startswith("_") or stream == "training":
        return "".join(f"%{byte:02X}" for byte in stream.encode()) or "%"
    return stream.replace("%", "%25").replace(".", "%2E")
