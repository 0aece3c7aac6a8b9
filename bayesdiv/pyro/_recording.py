"""Recording a torch function as a list of operations, without those that repeat or do nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx

_aten: Any = torch.ops.aten
# Their results depend on shapes alone, which a recording fixes.
_FROM_SHAPE = (
    _aten.ones_like.default,
    _aten.zeros_like.default,
    _aten.full_like.default,
    _aten.new_zeros.default,
    _aten.new_ones.default,
    _aten.new_full.default,
)


def record(
    function: Callable[..., Any], *inputs: torch.Tensor
) -> Callable[..., tuple[torch.Tensor, ...]]:
    """``function`` of tensors of these shapes as plain operations; returns a tuple of tensors.

    Whatever does not depend on the inputs is computed now: tensors that ``function`` refers to
    must not change later. Python that it runs is not run again.

    Raises
    ------
    RuntimeError
        If an operation draws random numbers, or depends on values in Python.
    """
    with torch.no_grad():
        module = make_fx(function)(*inputs)
        _tidy(module, inputs)
    # The generated method itself: a module's call looks for hooks each time. Parameters among the
    # constants must not record what passes through them.
    return torch.no_grad()(module.forward)


def _tidy(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
    graph = module.graph
    graph.eliminate_dead_code()
    calls = [node for node in graph.nodes if node.op == "call_function"]
    if any(torch.Tag.nondeterministic_seeded in getattr(c.target, "tags", ()) for c in calls):
        raise RuntimeError("an operation outside the sites draws random numbers")
    schemas = [getattr(node.target, "_schema", None) for node in calls]
    if not any(schema is not None and schema.is_mutable for schema in schemas):
        _simplify(module, inputs)
        graph.eliminate_dead_code()
    module.recompile()


def _simplify(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
    """Fold constants, drop what returns its argument, compute what repeats once."""
    graph = module.graph
    values: dict[Any, Any] = {}
    constants: set[Any] = set()
    seen: dict[Any, Any] = {}
    remaining = iter(inputs)
    for node in list(graph.nodes):
        if node.op == "placeholder":
            values[node] = next(remaining)
        elif node.op == "get_attr":
            values[node] = getattr(module, node.target)
            constants.add(node)
        elif node.op == "call_function":
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            value = values[node] = node.target(*args, **kwargs)
            same = _returned_argument(node, value, values, constants)
            if same is None:
                key = (node.target, _hashable(node.args), _hashable(node.kwargs))
                same = seen.setdefault(key, node)
            if same is not node:
                node.replace_all_uses_with(same)
            elif isinstance(value, torch.Tensor) and (
                node.target in _FROM_SHAPE or set(node.all_input_nodes) <= constants
            ):
                constants.add(node)
    for number, node in enumerate(node for node in list(graph.nodes) if node in constants):
        if node.op == "call_function":
            name = f"_folded_{number}"
            module.register_buffer(name, values[node], persistent=False)
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.get_attr(name))


def _returned_argument(node: Any, value: Any, values: dict, constants: set) -> Any:
    """The input of ``node`` that its value is the same as, if it is; else None."""
    inputs = node.all_input_nodes
    if not inputs or not isinstance(value, torch.Tensor):
        return None
    first = values[inputs[0]]
    if not _is_like(first, value):
        return None
    if first.data_ptr() == value.data_ptr() and first.numel() > 0:
        return inputs[0]
    if node.target is _aten.pow.Tensor_Scalar and node.args[1] == 1:
        return inputs[0]
    neutral = {_aten.mul.Tensor: 1.0, _aten.div.Tensor: 1.0, _aten.add.Tensor: 0.0}
    if node.target in neutral and not node.kwargs and node.args[0] is inputs[0]:
        other = node.args[1]
        is_constant = other in constants or not isinstance(other, torch.fx.Node)
        other = values.get(other, other) if is_constant else None
        if other is not None and bool((torch.as_tensor(other) == neutral[node.target]).all()):
            return inputs[0]
    return None


def _is_like(left: Any, right: torch.Tensor) -> bool:
    return (
        isinstance(left, torch.Tensor)
        and left.shape == right.shape
        and left.dtype == right.dtype
        and left.device == right.device
        and left.stride() == right.stride()
    )


def _hashable(value: Any) -> Any:
    """Nested containers as tuples; numbers with their type, since 1 and True are equal."""
    if isinstance(value, list | tuple):
        return tuple(_hashable(part) for part in value)
    if isinstance(value, dict):
        return tuple((name, _hashable(part)) for name, part in value.items())
    return (type(value).__name__, value)
