"""Safety check of model files: they are programs, so their operations are checked before any of them runs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from liverseg_tf.errors import ModelError
from liverseg_tf.inference.tflite_tables import TFLiteTables

# Arithmetic on tensors, and calls among functions that are checked themselves. Nothing here reads or writes a file,
# opens a connection, runs Python, loads code, or changes a weight.
_COMPUTING_NAMES = """
    Abs Add AddN AddV2 All Any ArgMax AvgPool BatchMatMulV2 BiasAdd BroadcastArgs BroadcastTo Case Cast Ceil
    ClipByValue ConcatV2 Const Conv2D Conv2DBackpropInput Cumsum DecodePng DenseBincount DepthToSpace
    DepthwiseConv2dNative Div DivNoNan Elu EncodePng Equal Erf Exp ExpandDims Fill Floor FloorDiv FloorMod
    FusedBatchNormV3 GatherNd GatherV2 Greater GreaterEqual Identity IdentityN If LeakyRelu Less LessEqual Log
    LogicalAnd LogicalNot LogicalOr LowerBound MatMul Max MaxPool Maximum Mean Min Minimum MirrorPad Mul Neg NoOp
    NotEqual OneHot Pack Pad PadV2 PartitionedCall Placeholder Pow Prod Range Rank ReadVariableOp RealDiv Relu Relu6
    Reshape ResizeArea ResizeBilinear ResizeNearestNeighbor ReverseV2 Round Rsqrt ScatterNd SearchSorted SelectV2
    Selu Shape ShapeN Sigmoid Sign Size Slice Softmax Softplus SpaceToDepth Split SplitV Sqrt Square SquaredDifference
    Squeeze StatefulPartitionedCall StatelessCase StatelessIf StatelessWhile StopGradient StridedSlice Sub Sum Tanh
    TensorListElementShape TensorListFromTensor TensorListGetItem TensorListLength TensorListReserve
    TensorListSetItem TensorListStack Tile TopKV2 Transpose Unpack UpperBound VarHandleOp VarIsInitializedOp Where
    While ZerosLike
"""
_COMPUTING = frozenset(_COMPUTING_NAMES.split())
# The two functions that TensorFlow adds to every SavedModel, to save its variables and to restore them. They may use
# only the exact paths that TensorFlow gives them, and they are not loaded.
_SAVING_NAMES = """
    Const DisableCopyOnRead Identity MergeV2Checkpoints NoOp Pack ReadVariableOp SaveV2 Select ShardedFilename
    StaticRegexFullMatch StringJoin
"""
_RESTORING_NAMES = """
    AssignVariableOp Const Identity NoOp RestoreV2
"""
_SAVING, _RESTORING = frozenset(_SAVING_NAMES.split()), frozenset(_RESTORING_NAMES.split())
_PART_PATH = "StringJoin(file_prefix, Select(StaticRegexFullMatch(file_prefix), .part, _temp/part))"
# This library's graphs are below 5 MB; the weights are in other files.
_LARGEST_BYTES = 256 * 1024**2


def check_operations(folder: str | Path) -> bytes:
    """Check a SavedModel's graph against what `export` writes, without running any of it.

    Every node of the graph and of every function in its library must be an allowed operation, whether or not anything
    calls it. Only TensorFlow's own saver may name files, and only in the form that TensorFlow writes. The object graph
    may hold only the weights and the signatures, because some objects run a function when they are loaded.

    Args:
        folder: the folder that holds `saved_model.pb`.

    Returns:
        The bytes of a `saved_model.pb` to load instead: the checked graph without the saver.

    Raises:
        ModelError: if the graph can't be read, is not a TensorFlow 2 SavedModel, or has an operation or object that is
            not allowed.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    path = Path(folder) / "saved_model.pb"
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise ModelError(f"{path}: is over {_LARGEST_BYTES >> 20} MiB, too large for a model of this library")
        model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise ModelError(f"{path}: expected the graph of a SavedModel, but it can't be read ({error})") from None
    if len(model.meta_graphs) != 1 or not model.meta_graphs[0].object_graph_def.nodes:
        raise ModelError(f"{path}: expected one TensorFlow 2 graph, got something else or a part of one")
    (meta,) = model.meta_graphs
    savers = _savers(meta)
    refused = [*_refused_operations(meta, savers), *_refused_references(meta, savers), *_refused_objects(meta, savers)]
    if refused:
        raise ModelError(
            f"{path}: has parts that no model here needs ({', '.join(dict.fromkeys(refused[:5]))}); it is not "
            "loaded, because a SavedModel is a program: use only those you trust"
        )
    kept = [function for function in meta.graph_def.library.function if function.signature.name not in savers]
    del meta.graph_def.library.function[:]
    meta.graph_def.library.function.extend(kept)
    del meta.graph_def.node[:]
    for field in ("saver_def", "collection_def", "signature_def"):
        meta.ClearField(field)
    return model.SerializeToString()


def check_tflite_operators(content: bytes) -> None:
    """Check that a TFLite file has only builtin operators.

    TensorFlow's interpreter would also run any TensorFlow operation that a file names, such as `FlexWriteFile`.

    Raises:
        ModelError: naming an operator that is not builtin, or if the file can't be read.
    """
    try:
        for code in TFLiteTables(content).operator_codes():
            if not code.is_builtin:
                name = (code.custom_name or b"custom").decode("ascii", "replace")
                raise ModelError(f"expected TFLite builtin operators only, got {name!r}")
    except ModelError:
        raise
    except Exception as error:  # the flatbuffers reader follows the file's offsets unchecked
        raise ModelError(f"expected a TFLite file that can be read ({type(error).__name__})") from None


def _savers(meta) -> dict[str, frozenset[str]]:
    """Names of the functions that save and restore variables, and the operations that each may have."""
    nodes = {node.name: node for node in meta.graph_def.node}
    names = {}
    for output, allowed in ((meta.saver_def.save_tensor_name, _SAVING), (meta.saver_def.restore_op_name, _RESTORING)):
        node = nodes.get(output.partition(":")[0])
        if node is not None and node.attr["f"].func.name:
            names[node.attr["f"].func.name] = allowed
    return names


def _refused_operations(meta, savers: dict[str, frozenset[str]]) -> Iterator[str]:
    """Operations, constants and paths that are not allowed, in the graph and in all functions of its library."""
    from tensorflow.core.framework import types_pb2

    library = meta.graph_def.library.function
    for nodes, allowed in (
        (meta.graph_def.node, _COMPUTING),
        *((function.node_def, savers.get(function.signature.name, _COMPUTING)) for function in library),
    ):
        yield from sorted({node.op for node in nodes} - allowed)
        for node in nodes:
            # such a constant is a handle to something that another model holds, or is decoded by registered code
            if node.op == "Const" and node.attr["dtype"].type in (types_pb2.DT_RESOURCE, types_pb2.DT_VARIANT):
                yield f"a constant of type {types_pb2.DataType.Name(node.attr['dtype'].type)}"
    for function in library:
        if function.signature.name in savers and not _paths_are_tensorflows(function):
            yield f"{_file_operations(function)} outside TensorFlow's saver"


def _file_operations(function) -> str:
    names = {"SaveV2", "MergeV2Checkpoints", "RestoreV2"}
    return ", ".join(sorted(names & {node.op for node in function.node_def})) or "a function"


def _paths_are_tensorflows(function) -> bool:
    """Tell whether a saver function touches only files at the prefix it is given, as TensorFlow writes it."""
    nodes = {node.name: node for node in function.node_def}
    prefix = function.signature.input_arg[0].name if function.signature.input_arg else ""

    def path(name: str, depth: int = 0) -> str:
        """The expression that computes an input, as text."""
        node = nodes.get(name.partition(":")[0])
        if node is None or depth > 8:
            return "file_prefix" if name == prefix else "unknown"
        if node.op == "Const":
            tensor = node.attr["value"].tensor
            values = [value.decode("utf-8", "replace") for value in tensor.string_val] or list(tensor.int_val)
            return str(values[0]) if len(values) == 1 else "unknown"
        inputs = (path(i, depth + 1) for i in node.input if not i.startswith("^"))
        return f"{node.op}({', '.join(inputs)})"

    by_op: dict[str, list] = {}
    for node in function.node_def:
        by_op.setdefault(node.op, []).append([i for i in node.input if not i.startswith("^")])
    saves, merges, restores = (by_op.get(op, []) for op in ("SaveV2", "MergeV2Checkpoints", "RestoreV2"))
    parts = [f"ShardedFilename({_PART_PATH}, {index}, {len(saves)})" for index in range(len(saves))]
    return (
        len(nodes) == len(function.node_def)
        and len(merges) + len(restores) == 1
        and sorted(path(inputs[0]) for inputs in saves) == sorted(parts)
        and all([path(i) for i in inputs] == [f"Pack({', '.join(parts)})", "file_prefix"] for inputs in merges)
        and all(path(inputs[0]) == "file_prefix" for inputs in restores)
    )


def _refused_references(meta, savers: Iterable[str]) -> Iterator[str]:
    """Names through which a function other than the saver could be called, or run at loading."""
    graph, library = meta.graph_def, meta.graph_def.library
    names = Counter(function.signature.name for function in library.function)
    yield from (f"two functions {name!r}" for name, count in names.items() if count > 1)
    # TensorFlow resolves a name to a function before it tries an operation
    yield from (f"a function named as the operation {name!r}" for name in names if name in _COMPUTING)
    nodes = [*graph.node, *(node for function in library.function for node in function.node_def)]
    called = Counter(name for node in nodes for value in node.attr.values() for name in _functions_in(value))
    yield from (f"a call of {name!r}, a function that the file does not hold" for name in called if name not in names)
    yield from (f"a call of the saver {name!r}" for name in savers if called[name] != 1)
    saver = {name.partition(":")[0] for name in (meta.saver_def.filename_tensor_name, meta.saver_def.save_tensor_name)}
    saver.add(meta.saver_def.restore_op_name)
    used = {i.lstrip("^").partition(":")[0] for node in graph.node if node.name not in saver for i in node.input}
    for signature in meta.signature_def.values():
        used |= {info.name.partition(":")[0] for m in (signature.inputs, signature.outputs) for info in m.values()}
    used |= {name.partition(":")[0] for value in meta.collection_def.values() for name in value.node_list.value}
    yield from (f"a use of the saver's {name!r}" for name in sorted(saver & used) if name)
    yield from (f"the collection {name!r}" for name in meta.collection_def if name != "saved_model_main_op")
    for what, values in (
        ("assets", meta.asset_file_def),
        ("gradients", [*library.gradient, *library.registered_gradients]),
        # attributes such as `api_implements` replace one function by another
        ("function attributes", [key for f in library.function for key in f.attr if not key.startswith("_")]),
    ):
        if values:
            yield what


def _functions_in(value) -> Iterator[str]:
    """Functions that an attribute names, at any depth."""
    kind = value.WhichOneof("value")
    for function in (value.func,) if kind == "func" else value.list.func if kind == "list" else ():
        yield function.name
        for inner in function.attr.values():
            yield from _functions_in(inner)


def _refused_objects(meta, savers: Iterable[str]) -> Iterator[str]:
    """Objects in the object graph other than the root, its list of weights and its map of signatures."""
    graph = meta.object_graph_def
    functions = {function.signature.name for function in meta.graph_def.library.function} - set(savers)
    # parent -> {pattern of a child's name: its kind}; loading sets children as attributes, so their names matter
    edges = {
        "_generic_user_object": {"weights": "trackable_list_wrapper", "signatures": "signature_map"},
        "trackable_list_wrapper": {"[0-9]+": "variable"},
        "signature_map": {"[a-z][a-z_]*": "bare_concrete_function"},
    }

    def kind_of(index: int) -> str:
        if not 0 <= index < len(graph.nodes):
            return "nothing"
        node = graph.nodes[index]
        kind = node.WhichOneof("kind") or "nothing"
        return node.user_object.identifier if kind == "user_object" else kind

    if kind_of(0) != "_generic_user_object":
        yield f"the root object {kind_of(0)!r}"
    for index, node in enumerate(graph.nodes):
        kind = kind_of(index)
        if kind not in (*edges, "variable", "bare_concrete_function"):
            yield f"the object {kind!r}"
        for child in node.children:
            kinds = [k for names, k in edges.get(kind, {}).items() if re.fullmatch(names, child.local_name)]
            if kinds != [kind_of(child.node_id)]:
                yield f"the object {child.local_name!r} in {kind!r}"
        if node.dependencies or node.saveable_objects or node.slot_variables:
            yield f"an object {kind!r} that restores itself"
        if node.registered_name or node.registered_saver or node.HasField("serialized_user_proto"):
            yield f"an object of the class {node.registered_name or node.registered_saver!r}"
        if kind == "bare_concrete_function" and node.bare_concrete_function.concrete_function_name not in functions:
            yield f"the function {node.bare_concrete_function.concrete_function_name!r} as an object"
    for name, function in graph.concrete_functions.items():
        if name not in functions or any(kind_of(index) != "variable" for index in function.bound_inputs):
            yield f"the captures of {name!r}"
    # TensorFlow builds a type registered by Python code from data in the file
    described = [*graph.concrete_functions.values(), *(n.bare_concrete_function for n in graph.nodes)]
    if any("type_spec_value {" in str(message) for message in described):
        yield "a custom type"
