"""A SavedModel is a program: its operations are looked at before any of them runs."""

from __future__ import annotations

from pathlib import Path

from google.protobuf.message import DecodeError

from liverseg_tf.errors import ModelError

# Arithmetic on tensors, and calls among functions that are checked themselves. Nothing here reads or writes a file,
# opens a connection, runs Python, or loads code.
_COMPUTING_NAMES = """
    Abs Add AddN AddV2 All Any ArgMax AssignVariableOp AvgPool BatchMatMulV2 BiasAdd BroadcastArgs BroadcastTo Case
    Cast Ceil ClipByValue ConcatV2 Const Conv2D Conv2DBackpropInput Cumsum DecodePng DenseBincount DepthToSpace
    DepthwiseConv2dNative Div DivNoNan EncodePng Equal Erf Exp ExpandDims Fill Floor FloorDiv FloorMod
    FusedBatchNormV3 GatherNd GatherV2 Greater GreaterEqual Identity IdentityN If LeakyRelu Less LessEqual Log
    LogicalAnd LogicalNot LogicalOr LowerBound MatMul Max MaxPool Maximum Mean Min Minimum MirrorPad Mul Neg NoOp
    NotEqual OneHot Pack Pad PadV2 PartitionedCall Placeholder Prod Range Rank ReadVariableOp RealDiv Relu Relu6
    Reshape ResizeArea ResizeBilinear ResizeNearestNeighbor ReverseV2 Round Rsqrt ScatterNd SearchSorted SelectV2
    Shape ShapeN Sigmoid Sign Size Slice Softmax Softplus SpaceToDepth Split SplitV Sqrt Square SquaredDifference
    Squeeze StatefulPartitionedCall StatelessCase StatelessIf StatelessWhile StopGradient StridedSlice Sub Sum Tanh
    TensorListElementShape TensorListFromTensor TensorListGetItem TensorListLength TensorListReserve
    TensorListSetItem TensorListStack Tile TopKV2 Transpose Unpack UpperBound VarHandleOp VarIsInitializedOp Where
    While ZerosLike
"""
# What TensorFlow adds to every SavedModel for its own saving and restoring. Loading with Python doesn't run these
# nodes, and nothing that a signature calls may contain them.
_CHECKPOINTING_NAMES = """
    DisableCopyOnRead MergeV2Checkpoints RestoreV2 SaveV2 Select ShardedFilename StaticRegexFullMatch StringJoin
"""
_COMPUTING, _CHECKPOINTING = frozenset(_COMPUTING_NAMES.split()), frozenset(_CHECKPOINTING_NAMES.split())
# Ours are below 5 MB; weights lie in other files.
_LARGEST_BYTES = 256 * 1024**2


def check_operations(folder: str | Path) -> None:
    """Check a SavedModel's graph against an allow-list of operations, without running any of it.

    Args:
        folder: the one that holds `saved_model.pb`.

    Raises:
        ModelError: if the graph can't be read, is no TensorFlow 2 SavedModel, or has an operation that is not allowed.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    path = Path(folder) / "saved_model.pb"
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise ModelError(f"{path}: is larger than {_LARGEST_BYTES >> 20} MiB; that is no model of this library")
        model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise ModelError(f"{path}: expected the graph of a SavedModel, it can't be read ({error})") from None
    if len(model.meta_graphs) != 1 or not model.meta_graphs[0].object_graph_def.nodes:
        raise ModelError(f"{path}: expected one TensorFlow 2 graph, got something else or a part of one")
    graph = model.meta_graphs[0].graph_def
    functions = {function.signature.name: function.node_def for function in graph.library.function}
    everything = {node.op for nodes in (graph.node, *functions.values()) for node in nodes}
    run = _operations(functions, model.meta_graphs[0].object_graph_def.concrete_functions)
    refused = sorted((everything - _COMPUTING - _CHECKPOINTING) | (run - _COMPUTING))
    if refused:
        raise ModelError(
            f"{path}: runs operations that no model of this library needs ({', '.join(refused[:5])}); "
            "it is not loaded, because a SavedModel is a program: use only those you trust"
        )


def _operations(functions: dict, names) -> set[str]:
    """Operations of the named functions and of all that these call."""
    found, open_names, seen = set(), list(names), set()
    while open_names:
        name = open_names.pop()
        if name in seen or name not in functions:
            continue
        seen.add(name)
        for node in functions[name]:
            found.add(node.op)
            open_names.append(node.op)  # a function may be called by its name, even by one that an operation has
            for value in node.attr.values():
                open_names += [f.name for f in (value.func, *value.list.func) if f.name]
    return found
