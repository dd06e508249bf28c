"""Read and write the residual stream at a site. The only forward hooks of the project.

Tensor names carry their shape: B rows, T positions, D hidden width, V vocabulary, N selected positions.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Point = Literal["block", "mlp", "attention"]
Edit = Callable[[Tensor], Tensor]


@dataclass(frozen=True, order=True)
class Site:
    """A place in the residual stream: the output of a layer, or of its MLP or attention."""

    layer: int
    point: Point = "block"

    def __str__(self) -> str:
        return f"{self.layer}.{self.point}"


class _Stop(Exception):
    """Ends a forward pass early; never leaves this module."""


def first(output: Any) -> Tensor:
    """The hidden states of a module output that may be a tensor or a tuple."""
    return cast(Tensor, output[0] if isinstance(output, tuple) else output)


def add_edit(module: nn.Module, edit: Edit) -> RemovableHandle:
    """Replace the hidden states that `module` returns by `edit(hidden_BTD)`, a new tensor."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        edited = edit(first(output))
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    return module.register_forward_hook(hook)


@contextmanager
def editing(module: nn.Module, edit: Edit) -> Iterator[None]:
    """`add_edit` for the length of a `with` block; removed even after an exception."""
    handle = add_edit(module, edit)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def capturing(modules: dict[Site, nn.Module]) -> Iterator[dict[Site, Tensor]]:
    """Collect the hidden states that the modules return, as clones, keyed by site.

    Edits that were registered before are visible in what is captured.
    """
    captured: dict[Site, Tensor] = {}
    with ExitStack() as stack:
        for site, module in modules.items():

            def keep(_module: nn.Module, _args: Any, output: Any, site: Site = site) -> None:
                captured[site] = first(output).clone()

            stack.callback(module.register_forward_hook(keep).remove)
        yield captured


@contextmanager
def reading_inputs(
    modules: Mapping[str, nn.Module], read: Callable[[str, Tensor], Tensor]
) -> Iterator[dict[str, Tensor]]:
    """Collect `read(name, input)` of each module's input, keyed by its name; `read` gives a new tensor."""
    found: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name, module in modules.items():

            def keep(_module: nn.Module, args: Any, name: str = name) -> None:
                found[name] = read(name, args[0])

            stack.callback(module.register_forward_pre_hook(keep).remove)
        yield found


def run_until(layer: nn.Module, forward: Callable[[], Any]) -> Tensor:
    """Run `forward` up to `layer` and return the hidden states that reach it."""
    reached: list[Tensor] = []

    def stop(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        reached.append(args[0] if args else kwargs["hidden_states"])
        raise _Stop

    handle = layer.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        forward()
    except _Stop:
        return reached[0]
    finally:
        handle.remove()
    raise RuntimeError("the layer was never reached")


@contextmanager
def starting_at(layers: Iterable[nn.Module], hidden_BTD: Tensor) -> Iterator[None]:
    """Let `layers` pass on `hidden_BTD` unchanged, as if they had just computed it.

    The model's own forward still builds masks and rotary angles, so no family needs code of its own.
    """

    def passed(*_args: Any, **_kwargs: Any) -> Tensor:
        return hidden_BTD

    try:
        for layer in layers:
            layer.forward = passed
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def plain(tensor: Tensor) -> Tensor:
    """The whole tensor behind a sharded one (a collective under FSDP2), or the tensor itself."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else cast(Tensor, gather())


def generator_for(*key: int | str) -> torch.Generator:
    """A CPU generator that is a pure function of the key, for example (seed, purpose, index)."""
    return torch.Generator().manual_seed(keyed_seed(*key))


def keyed_seed(*key: int | str) -> int:
    """A 63-bit seed from a key; different purposes never share a stream."""
    import hashlib

    digest = hashlib.sha256("\x1f".join(str(part) for part in key).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
