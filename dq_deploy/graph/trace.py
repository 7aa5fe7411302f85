"""Float denoiser -> onnx-ir graph; the one file of this package that uses torch."""

from __future__ import annotations

import contextlib
import copy
import linecache
import logging
import re
import warnings
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dq_deploy.errors import ModelError, first_line, raise_if_out_of_memory
from dq_deploy.graph.exact_constants import ConstantsInFloat64, near_numbers_kept
from dq_deploy.graph.varying import Guard, SizeTexts, VaryingSizes, admitted, keep_sizes
from dq_deploy.graph.writing.builder import Builder
from dq_deploy.recent import Recent
from dq_deploy.record import BATCH, OUTPUT

OPSET = 21
MODULE_KEY = "dq_deploy.module"
"""Node metadata: path of the innermost module a node was traced from."""

_ROOT = "denoiser."
_SCOPES = "pkg.torch.onnx.name_scopes"


@contextlib.contextmanager
def quiet_tracer() -> Iterator[None]:
    """Inside, warnings of the tracer and of the optimizer are not shown; weights without a value are one."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = [log.level for log in logs]
    try:
        for log in logs:
            log.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def _call_by_name(module: Any, inputs: Mapping[str, Any]) -> Any:
    """The denoiser's outputs where every input is a keyword argument of it."""
    return [module(**inputs, return_dict=False)[0]]


def trace(
    module: Any,
    example: Mapping[str, NDArray[np.generic]],
    *,
    outputs: Mapping[str, Sequence[int | str]] = MappingProxyType({OUTPUT: ()}),
    call: Callable[[Any, Mapping[str, Any]], Any] = _call_by_name,
    weights: Mapping[str, ir.TensorProtocol] | None = None,
    shapes: Mapping[str, Sequence[int | str]] | None = None,
    key: Hashable = None,
) -> ir.Model:
    """Trace a diffusers denoiser whose sizes vary.

    Only shapes pass through the tracer; the parameters are put into the graph afterwards, so those in `weights` may
    be tensors that compute their values when they are read.

    Args:
        module: torch module; parameters that are in `weights` may be on the device `meta`.
        example: inputs by name in call order; sizes that vary are 2 or more in it.
        outputs: names of the graph's outputs in order, and their sizes as in `shapes`; nothing is said of those of an
            output that has none.
        call: gives the outputs of the module for inputs by name, in a list.
        weights: values of some parameters by state-dict key; the others are the module's own.
        shapes: sizes of the inputs, a name where one varies; by default the first axis of each is the batch, `B`.
        key: all that decides the graph but for the parameters' values. The last graphs are kept, and the tracer is not
            asked again for one of the same key; by default it is asked.

    Returns:
        Model at opset 21 whose nodes carry their module path under `MODULE_KEY`; `varying.sizes_of` says which sizes
        vary in it.

    Raises:
        ModelError: torch cannot export this module.
    """
    import torch

    if shapes is None:
        shapes = {name: (BATCH, *value.shape[1:]) for name, value in example.items()}
    subject = _Subject(module=module, example=example, call=call, shapes=shapes, outputs=outputs)
    try:
        with quiet_tracer(), torch.no_grad():
            make = partial(_without_values, subject)
            model, found = make() if key is None else _GRAPHS.get(key, make)
            model = model.clone()
            _fill_own(model, module, weights or {})
            ConstantsInFloat64().apply(model)
            with near_numbers_kept(model):
                model = _optimized(model)
    except ModelError:
        raise
    except Exception as error:  # torch raises many unrelated types here
        raise_if_out_of_memory(error)
        raise ModelError(
            f"torch could not trace the denoiser: {first_line(error)}; please report this model"
        ) from error
    _fill_given(model, weights or {})
    keep_sizes(model, found)
    return _tidy(model)


_Graph = tuple[ir.Model, VaryingSizes]
_GRAPHS: Recent[_Graph] = Recent(4)


def _without_values(subject: _Subject) -> _Graph:
    """The graph before its parameters have values, and which of its sizes vary."""
    program, found = _exported(subject)
    converted = _converted(program, subject)
    if converted is None:
        raise ModelError("torch.onnx.export returned nothing; expected a traced graph")
    _without_units(converted.model, subject, found.fixed)
    _name_sizes(converted.model, program, found, subject)
    own = _own(subject.module)
    for name, value in converted.model.graph.initializers.items():
        if name.removeprefix(_ROOT) in own:  # the tracer's shape of it would hold all that the tracer knows
            value.const_value = None
    return converted.model, found


def _optimized(model: ir.Model) -> ir.Model:
    from torch.onnx import ONNXProgram

    program = ONNXProgram(model, None)
    program.optimize()
    return program.model


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """What is traced; the arguments of `trace`."""

    module: Any
    example: Mapping[str, NDArray[np.generic]]
    call: Callable[[Any, Mapping[str, Any]], Any]
    shapes: Mapping[str, Sequence[int | str]]
    outputs: Mapping[str, Sequence[int | str]]

    @property
    def sizes(self) -> dict[str, int]:
        """The number that each size has in the example."""
        found: dict[str, int] = {}
        for name, shape in self.shapes.items():
            for size, number in zip(shape, self.example[name].shape, strict=True):
                if isinstance(size, str):
                    found.setdefault(size, number)
        return found

    def units(self, fixed: Collection[str]) -> dict[str, int]:
        """What sizes of a picture are surely multiples of: it is halved in every block that samples down.

        Torch is told so, for what it else works out by itself takes it twice the time.
        """
        unit = 2 ** sum(map(_samples_down, getattr(self.module, "down_blocks", ())))
        sizes = {name: self.sizes[name] for name in PICTURE if name in self.sizes and name not in fixed}
        fits = unit > 1 and all(size % unit == 0 and size > unit for size in sizes.values())
        return dict.fromkeys(sizes, unit) if fits else {}

    def place_of(self, size: str) -> tuple[int, int]:
        """Number of an input and of its axis that has a size."""
        places = ((i, shape) for i, name in enumerate(self.example) if size in (shape := self.shapes[name]))
        number, shape = next(places)
        return number, list(shape).index(size)


PICTURE = ("height", "width")
"""Names of the sizes that blocks of a UNet halve."""
_UNITS = "units"
_DOWN = ("Downsample2D", "FirDownsample2D", "KDownsample2D")


def _samples_down(block: Any) -> bool:
    return any(type(child).__name__ in _DOWN for child in block.modules())


def _exported(subject: _Subject) -> tuple[Any, VaryingSizes]:
    """The program of the module, and which of its sizes vary.

    A size that the model turns into a number of Python holds in the graph at one value only. It is made a constant,
    and the rest is traced again.
    """
    fixed: dict[str, str] = {}
    while True:
        try:
            program = _program(subject, fixed)
        except Exception as error:
            raise_if_out_of_memory(error)
            more = [name for name in subject.sizes if name not in fixed and name != BATCH]
            if not more:
                raise
            fixed |= dict.fromkeys(more, f"torch cannot trace the model with sizes that vary, {first_line(error)}")
            continue
        sizes = {name: size for name, size in subject.sizes.items() if name not in fixed}
        found = admitted(sizes, _guards(program, subject, fixed))
        if BATCH in found.fixed:
            raise ModelError(f"the batch of this model cannot vary: {found.fixed[BATCH]}; it cannot be exported")
        fixed |= found.fixed
        if not found.fixed:
            every = {name: size for name, size in subject.sizes.items() if name != BATCH}
            return program, replace(found, traced=every, fixed=fixed)


def _program(subject: _Subject, fixed: Collection[str]) -> Any:
    """What torch exports of a copy of the module that has shapes and no values; sizes vary that are not fixed."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from dq_deploy.models.buffers import plain_tensors

    class Call(torch.nn.Module):
        def __init__(self, denoiser: Any) -> None:
            super().__init__()
            self.denoiser = denoiser

        def forward(self, *args: Any) -> Any:
            for axis, ((number, of), unit) in enumerate(places):
                if args[number].shape[of] != unit * args[-1].shape[axis]:
                    raise AssertionError
            args = args[: len(subject.example)]
            return subject.call(self.denoiser, dict(zip(subject.example, args, strict=True)))

    module, units = subject.module, subject.units(fixed)
    places = [(subject.place_of(name), unit) for name, unit in units.items()]
    dims: list[dict[int, Any]] = [
        {axis: torch.export.Dim.AUTO for axis, size in enumerate(shape) if isinstance(size, str) and size not in fixed}
        for shape in (subject.shapes[name] for name in subject.example)
    ]
    arrays = list(subject.example.values())
    if units:
        dims.append(dict.fromkeys(range(len(units)), torch.export.Dim.AUTO))
        arrays.append(np.zeros([subject.sizes[name] // unit for name, unit in units.items()], np.float32))
    with FakeTensorMode() as mode:
        memo: dict[int, Any] = {id(b): torch.empty(b.shape, dtype=b.dtype) for b in module.buffers()}
        for value in plain_tensors(module):
            memo[id(value)] = value  # a constant
        for p in module.parameters():
            memo[id(p)] = torch.nn.Parameter(torch.empty(p.shape, dtype=p.dtype), requires_grad=False)
        tensors = tuple(mode.from_tensor(torch.from_numpy(np.array(value))) for value in arrays)
        frame = Call(copy.deepcopy(module, memo)).eval()
        return torch.export.export(frame, tensors, dynamic_shapes=(tuple(dims),), strict=False)


def translations() -> dict[Any, Callable[..., Any]]:
    """What every export of ours says of operations that the exporter writes wrongly."""
    import torch

    from dq_deploy.graph.translations import repeat_interleave

    return {torch.ops.aten.repeat_interleave.self_int: repeat_interleave}


def _converted(program: Any, subject: _Subject) -> Any:
    import torch

    return torch.onnx.export(
        program,
        (),
        dynamo=True,
        input_names=[*subject.example, *([_UNITS] if len(_inputs_of(program)) > len(subject.example) else [])],
        output_names=list(subject.outputs),
        opset_version=OPSET,
        custom_translation_table=translations(),
        verbose=False,
        optimize=False,
    )


def _inputs_of(program: Any) -> list[Any]:
    """The fake tensors of the program's inputs, in the order of the example."""
    wanted = program.graph_signature.user_inputs
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    return [values[name] for name in wanted]


def _symbols(program: Any, subject: _Subject, fixed: Collection[str]) -> dict[str, tuple[str, int]]:
    """The call's name for each symbol of the tracer, and by what its size is divided."""
    found: dict[str, tuple[str, int]] = {}
    shapes = [subject.shapes[name] for name in subject.example]
    units = list(subject.units(fixed).items())
    for source, symbol in _environment(program).source_to_var.items():
        place = re.search(r"\[(\d+)\]\.size\(\)\[(\d+)\]$", source)
        if place is not None:
            number, axis = int(place[1]), int(place[2])
            size, unit = (shapes[number][axis], 1) if number < len(shapes) else units[axis]
            if isinstance(size, str):
                found[str(symbol)] = (size, unit)
    return found


def _environment(program: Any) -> Any:
    """Where torch keeps what it found out about sizes."""
    return next(value.fake_mode.shape_env for value in _inputs_of(program))


def _guards(program: Any, subject: _Subject, fixed: Collection[str]) -> list[Guard]:
    """The equalities between sizes that torch took for granted, and those that the call states."""
    import sympy

    names = _symbols(program, subject, fixed)
    found: dict[str, Guard | None] = {}
    for guard in _environment(program).guards:
        if guard.expr.atoms(sympy.Eq):
            found.setdefault(str(guard.expr), _guard(guard.expr, names, _place(guard.sloc)))
    for symbol, value in _environment(program).replacements.items():
        sloc = _environment(program).replacements_slocs.get(symbol)
        if str(symbol) in names:
            equation = sympy.Eq(symbol, value, evaluate=False)
            found.setdefault(str(equation), _guard(equation, names, _place(sloc)))
    for size, number in _output_sizes(program, subject):
        if isinstance(size, str) and size in subject.sizes:
            expression = number.node.expr if hasattr(number, "node") else sympy.Integer(number)
            symbol = sympy.Symbol(f"{size}_of_call", integer=True)
            equation = sympy.Eq(expression, symbol, evaluate=False)
            found.setdefault(str(equation), _guard(equation, {**names, str(symbol): (size, 1)}, ""))
    return [guard for guard in found.values() if guard is not None]


def _output_sizes(program: Any, subject: _Subject) -> list[tuple[int | str, Any]]:
    """Each size of the outputs by the call, and what torch has for it."""
    given = next(node for node in program.graph.nodes if node.op == "output").args[0]
    found: list[tuple[int | str, Any]] = []
    for shape, node in zip(subject.outputs.values(), given, strict=True):
        if shape:
            found += zip(shape, node.meta["val"].shape, strict=True)
    return found


def _guard(expression: Any, names: Mapping[str, tuple[str, int]], place: str) -> Guard | None:
    """A guard that can be asked about sizes of the call's names; None where it speaks of something else."""
    import math

    import torch
    from torch.utils._sympy.printers import PythonPrinter

    symbols = {str(symbol): names.get(str(symbol), ("", 1)) for symbol in expression.free_symbols}
    if not all(name for name, _ in symbols.values()):
        return None
    code = compile(PythonPrinter().doprint(expression), "<guard>", "eval")

    def holds(sizes: Mapping[str, int]) -> bool:
        values = {symbol: sizes[name] // unit for symbol, (name, unit) in symbols.items()}
        try:
            return bool(eval(code, {"math": math, "torch": torch}, values))
        except ZeroDivisionError:
            return False

    return Guard(names=frozenset(name for name, _ in symbols.values()), holds=holds, place=place)


def _place(sloc: Any) -> str:
    """Where a model needed a guard: file, function and statement; empty where it was torch itself."""
    frame = getattr(sloc, "framework_loc", None)
    path = getattr(frame, "filename", "")
    parts = re.split(r"[\\/]", path)
    if frame is None or "diffusers" not in parts:
        return ""
    short = "/".join(parts[len(parts) - 1 - parts[::-1].index("diffusers") :])
    line = linecache.getline(path, frame.lineno or 0).strip()
    return f"{short} in {frame.name}: {line}"


def _without_units(model: ir.Model, subject: _Subject, fixed: Collection[str]) -> None:
    """Take out the input whose sizes are those of the picture, divided; what reads one divides the picture's own."""
    units = list(subject.units(fixed).items())
    value = next((value for value in model.graph.inputs if value.name == _UNITS), None)
    if value is None:
        return
    for node in [use.node for use in value.uses()]:
        size, unit = units[node.attributes["start"].as_int()]
        number, axis = subject.place_of(size)
        b = Builder(model.graph, node, f"{_UNITS}/{node.name}")
        whole = b.op("Shape", [model.graph.inputs[number]], "size", attributes={"start": axis, "end": axis + 1})
        part = b.op("Div", [whole, b.constant(np.array([unit], np.int64), "unit")], "part", dtype=ir.DataType.INT64)
        part.shape, whole.type, whole.shape = ir.Shape([1]), part.type, ir.Shape([1])
        ir.convenience.replace_all_uses_with(node.outputs[0], part)
        model.graph.remove(node, safe=True)
    model.graph.inputs.remove(value)


def _name_sizes(model: ir.Model, program: Any, sizes: VaryingSizes, subject: _Subject) -> None:
    """Write the sizes of every tensor in the call's names."""
    symbols = _symbols(program, subject, sizes.fixed).items()
    texts = SizeTexts(sizes, {key: name if unit == 1 else f"({name}//{unit})" for key, (name, unit) in symbols})
    graph = model.graph
    for node in graph:
        for value in node.outputs:
            if value.shape is not None:
                value.shape = _named(value.shape, texts)
    for value in graph.inputs:
        value.shape = ir.Shape(sizes.shape(subject.shapes[str(value.name)]))
    for value, shape in zip(graph.outputs, subject.outputs.values(), strict=True):
        if shape:
            value.shape = ir.Shape(sizes.shape(shape))


def _named(shape: ir.Shape, texts: SizeTexts) -> ir.Shape:
    return ir.Shape([texts(size.value) if isinstance(size, ir.SymbolicDim) and size.value else size for size in shape])


def _own(module: Any) -> dict[str, Any]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _fill_own(model: ir.Model, module: Any, weights: Mapping[str, ir.TensorProtocol]) -> None:
    """Give every initializer that stands for a parameter of the module, and is not in `weights`, its value."""
    own = _own(module)
    for name, value in model.graph.initializers.items():
        key = name.removeprefix(_ROOT)
        if name.startswith(_ROOT) and key in own:
            # without a value the optimizer leaves it alone, and a lazy tensor stays unread
            value.const_value = None if key in weights else ir.tensor(own[key].detach().numpy(), name=name)


def _fill_given(model: ir.Model, weights: Mapping[str, ir.TensorProtocol]) -> None:
    """Give the other initializers theirs; their transposes become initializers too, computed when they are read."""
    graph = model.graph
    for key, tensor in weights.items():
        value = graph.initializers.get(_ROOT + key)
        if value is None:
            continue
        value.const_value = tensor
        for node in [use.node for use in value.uses() if use.node.op_type == "Transpose"]:
            turned = _transposed(tensor, node.attributes["perm"].as_ints(), f"{_ROOT}{key}.transposed")
            graph.register_initializer(turned)
            node.outputs[0].replace_all_uses_with(turned)
            graph.remove(node, safe=True)


def _transposed(tensor: ir.TensorProtocol, axes: Sequence[int], name: str) -> ir.Value:
    shape = ir.Shape([int(tensor.shape[axis]) for axis in axes])
    values = ir.LazyTensor(
        lambda: ir.tensor(tensor.numpy().transpose(axes)), dtype=tensor.dtype, shape=shape, name=name
    )
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=values)


def _tidy(model: ir.Model) -> ir.Model:
    """Keep the module path of each node and drop the tracer's other notes, paths of this machine included."""
    for node in model.graph:
        scopes = node.metadata_props.get(_SCOPES)
        path = _module_path(scopes) if scopes else ""
        node.metadata_props.clear()
        node.doc_string = None
        if path:
            node.metadata_props[MODULE_KEY] = path
        for value in node.outputs:
            value.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.name = "denoiser"
    model.producer_name, model.producer_version = "dq_deploy", None
    for name in list(model.graph.initializers):
        if name.startswith(_ROOT):
            value = model.graph.initializers.pop(name)
            value.name = name.removeprefix(_ROOT)
            model.graph.register_initializer(value)
    return model


def _module_path(scopes: str) -> str:
    import ast

    names = ast.literal_eval(scopes)
    if len(names) < 2:
        return ""
    return str(names[-2]).removeprefix("denoiser").removeprefix(".")
