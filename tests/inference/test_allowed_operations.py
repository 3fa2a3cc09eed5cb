"""SavedModels and TFLite files that would do more than compute are refused before any of it runs."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from liverseg_tf.errors import ModelError
from liverseg_tf.inference.allowed_operations import check_operations, check_tflite_operators
from liverseg_tf.inference.runtimes import open_runtime
from liverseg_tf.models.artefacts import SAVEDMODEL_MANIFEST, Manifest, sha256_of
from liverseg_tf.shipped import shipped_model

pytestmark = pytest.mark.slow


@pytest.fixture
def edited(savedmodel, tmp_path):
    """Function that changes a copy of our SavedModel by a function of its meta graph, digests recomputed."""

    def make(change):
        folder = tmp_path / "liverseg" / "1"
        shutil.copytree(savedmodel, folder)
        path = folder / "saved_model.pb"
        model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
        change(model.meta_graphs[0])
        path.write_bytes(model.SerializeToString())
        manifest = folder / SAVEDMODEL_MANIFEST
        old = Manifest.load(manifest)
        sha256 = old.sha256 | {"saved_model.pb": sha256_of(path)}
        manifest.write_text(Manifest(old.config, old.card, sha256).to_json())
        return folder

    return make


def writer(target, name="evil"):
    """A graph function that writes a checkpoint when it runs."""

    @tf.function
    def write():
        tf.raw_ops.SaveV2(prefix=str(target), tensor_names=["x"], shape_and_slices=[""], tensors=[tf.constant(1.0)])

    definition = type(write.get_concrete_function().function_def)()
    definition.CopyFrom(write.get_concrete_function().function_def)
    definition.signature.name = name
    return definition


def test_a_resource_that_writes_when_it_is_initialised(edited, tmp_path):
    target = tmp_path / "written"

    def change(meta):
        meta.graph_def.library.function.append(writer(target))
        nodes = meta.object_graph_def.nodes
        resource, initialise = nodes.add(), nodes.add()
        resource.resource.device = ""
        resource.children.add(node_id=len(nodes) - 1, local_name="_initialize")
        initialise.bare_concrete_function.concrete_function_name = "evil"
        nodes[0].children.add(node_id=len(nodes) - 2, local_name="table")

    folder = edited(change)
    with pytest.raises(ModelError, match="SaveV2"):
        open_runtime(folder)
    assert not list(tmp_path.glob("written*"))


def nodes_of(meta, part):
    """Nodes of the function whose name has `part` in it."""
    (function,) = (f for f in meta.graph_def.library.function if part in f.signature.name)
    return {node.name: node for node in function.node_def}


def computing(meta):
    return next(f for f in meta.graph_def.library.function if "serving_default" in f.signature.name)


def add_evil(meta):
    meta.graph_def.library.function.append(writer("anywhere"))


def call_by_name(meta):
    meta.graph_def.library.function.append(writer("anywhere", "Relu"))


def saver_called(attribute):
    def change(meta):
        (saver,) = (f.signature.name for f in meta.graph_def.library.function if "traced_save" in f.signature.name)
        node = computing(meta).node_def.add(name="caller", op="NoOp")
        attribute(node.attr["f"], saver)

    return change


def nested(value, name):
    value.func.name = next_name = "inner"
    value.func.attr[next_name].func.name = name


def saver_under_an_operations_name(meta):
    (saver,) = (f for f in meta.graph_def.library.function if "traced_save" in f.signature.name)
    for node in meta.graph_def.node:
        if node.attr["f"].func.name == saver.signature.name:
            node.attr["f"].func.name = "Relu"
    saver.signature.name = "Relu"


def signature_of_the_saver(meta):
    signature = meta.signature_def["serving_default"]
    signature.inputs["hu"].name = meta.saver_def.filename_tensor_name
    signature.outputs["labels"].name = meta.saver_def.save_tensor_name


def saver_fed_by_the_graph(meta):
    meta.graph_def.node.add(name="more", op="Identity").input.append(meta.saver_def.save_tensor_name)


def own_saver(meta):
    """A function of the attacker's is declared to be the saver."""
    (saver,) = (f for f in meta.graph_def.library.function if "traced_save" in f.signature.name)
    saver.CopyFrom(writer("anywhere", saver.signature.name))


def constant_path(part, name, value):
    def change(meta):
        nodes_of(meta, part)[name].attr["value"].tensor.string_val[0] = value

    return change


def constant_prefix(part, op):
    def change(meta):
        (function,) = (f for f in meta.graph_def.library.function if part in f.signature.name)
        (node,) = (n for n in function.node_def if n.op == op)
        constant = function.node_def.add(name="where", op="Const")
        constant.attr["dtype"].type = tf.string.as_datatype_enum
        constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto("/anywhere"))
        node.input[1 if op == "MergeV2Checkpoints" else 0] = "where:output:0"

    return change


def operation(op, **attributes):
    def change(meta):
        node = computing(meta).node_def.add(name="more", op=op)
        for name, value in attributes.items():
            node.attr[name].type = value

    return change


def graph_operation(meta):
    meta.graph_def.node.add(name="more", op="ReadFile")


def object_of(kind, **fields):
    def change(meta):
        node = meta.object_graph_def.nodes.add()
        getattr(node, kind).SetInParent()
        for name, value in fields.items():
            setattr(getattr(node, kind), name, value)

    return change


def named_child(parent, name, child):
    def change(meta):
        meta.object_graph_def.nodes[parent].children.add(node_id=child, local_name=name)

    return change


def on_first_variable(change_node):
    def change(meta):
        change_node(next(n for n in meta.object_graph_def.nodes if n.WhichOneof("kind") == "variable"))

    return change


def capture_of_no_variable(meta):
    next(f for f in meta.object_graph_def.concrete_functions.values() if f.bound_inputs).bound_inputs[0] = 0


def registered_type(meta):
    function = next(iter(meta.object_graph_def.concrete_functions.values()))
    function.output_signature.list_value.values.add().type_spec_value.type_spec_class_name = "mine"


def asset(meta):
    meta.asset_file_def.add(filename="../../../etc/passwd").tensor_info.name = "Const:0"


def initialiser(meta):
    meta.collection_def["legacy_init_op"].node_list.value.append("NoOp")


def main_operation(meta):
    meta.collection_def["saved_model_main_op"].node_list.value[:] = [meta.saver_def.restore_op_name]


def gradient(meta):
    meta.graph_def.library.registered_gradients.add(gradient_func="f", registered_op_type="Relu")


def swapped_function(meta):
    meta.graph_def.library.function[0].attr["api_implements"].s = b"x"


def double(meta):
    meta.graph_def.library.function.append(meta.graph_def.library.function[0])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (add_evil, "SaveV2"),
        (call_by_name, "SaveV2"),
        (own_saver, "SaveV2 outside"),
        (saver_called(lambda value, name: setattr(value.func, "name", name)), "a call of the saver"),
        (saver_called(lambda value, name: value.list.func.add(name=name)), "a call of the saver"),
        (saver_called(nested), "a call of the saver"),
        (saver_under_an_operations_name, "named as the operation 'Relu'"),
        (signature_of_the_saver, "a use of the saver's 'saver_filename'"),
        (saver_fed_by_the_graph, "a use of the saver's"),
        (main_operation, "a use of the saver's"),
        (constant_path("traced_save", "Const", b"/../../anywhere"), "SaveV2 outside"),
        (constant_path("traced_save", "Const_1", b"/../../anywhere"), "SaveV2 outside"),
        (constant_prefix("traced_save", "SaveV2"), "SaveV2 outside"),
        (constant_prefix("traced_save", "MergeV2Checkpoints"), "SaveV2 outside"),
        (constant_prefix("traced_restore", "RestoreV2"), "RestoreV2 outside"),
        (operation("AssignVariableOp"), "AssignVariableOp"),
        (operation("saveV2"), "saveV2"),
        (operation("Const", dtype=tf.resource.as_datatype_enum), "DT_RESOURCE"),
        (operation("Const", dtype=tf.variant.as_datatype_enum), "DT_VARIANT"),
        (graph_operation, "ReadFile"),
        (double, "two functions"),
        (gradient, "gradients"),
        (swapped_function, "function attributes"),
        (asset, "assets"),
        (initialiser, "legacy_init_op"),
        (object_of("asset"), "the object 'asset'"),
        (object_of("resource"), "the object 'resource'"),
        (object_of("constant"), "the object 'constant'"),
        (object_of("function"), "the object 'function'"),
        (object_of("captured_tensor", name="x"), "the object 'captured_tensor'"),
        (object_of("user_object", identifier="optimizer"), "the object 'optimizer'"),
        (object_of("bare_concrete_function", concrete_function_name="gone"), "the function 'gone'"),
        (named_child(0, "_restore_from_tensors", 2), "'_restore_from_tensors'"),
        (named_child(1, "append", 3), "'append'"),
        (named_child(2, "__class__", 3), "'__class__'"),
        (named_child(2, "more", 3), "'more'"),
        (named_child(1, "9999", 9999), "'9999'"),
        (on_first_variable(lambda node: node.saveable_objects["x"].SetInParent()), "restores itself"),
        (on_first_variable(lambda node: node.dependencies.add(node_id=0)), "restores itself"),
        (on_first_variable(lambda node: setattr(node, "registered_name", "x.y")), "the class 'x.y'"),
        (on_first_variable(lambda node: setattr(node, "registered_saver", "x.y")), "the class 'x.y'"),
        (capture_of_no_variable, "the captures"),
        (registered_type, "a custom type"),
    ],
)
def test_what_no_export_of_ours_has_is_refused(savedmodel, tmp_path, change, told):
    model = saved_model_pb2.SavedModel.FromString((savedmodel / "saved_model.pb").read_bytes())
    change(model.meta_graphs[0])
    (tmp_path / "saved_model.pb").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=told):
        check_operations(tmp_path)


def test_graphs_that_are_none_of_ours(savedmodel, tmp_path):
    content = (savedmodel / "saved_model.pb").read_bytes()
    model = saved_model_pb2.SavedModel.FromString(content)
    value = model.meta_graphs[0].object_graph_def.concrete_functions["f"].output_signature
    for _ in range(300):
        value = value.list_value.values.add()
    for what, told in (
        (content + content, "one TensorFlow 2 graph"),  # two meta graphs
        (model.SerializeToString(), "can't be read"),
        (b"", "one TensorFlow 2 graph"),
        (content[:5000], "can't be read"),
    ):
        (tmp_path / "saved_model.pb").write_bytes(what)
        with pytest.raises(ModelError, match=told):
            check_operations(tmp_path)


def test_only_what_was_checked_is_loaded(savedmodel, keras_runtime, body_hu, edited, monkeypatch):
    """The graph on disk is exchanged after the check, and nothing else that TensorFlow would look for is read."""
    from liverseg_tf.inference import runtimes

    folder = edited(lambda meta: None)
    (folder / "debug").mkdir()
    (folder / "debug" / "saved_model_debug_info.pb").write_bytes(b"no debug info")

    def exchanging(path):
        content = check_operations(path)
        (folder / "saved_model.pb").write_bytes(b"exchanged")
        return content

    monkeypatch.setattr(runtimes, "check_operations", exchanging)
    hu = body_hu((1, 40, 40))
    assert np.array_equal(open_runtime(folder).labels(hu), keras_runtime.labels(hu))


def test_the_saver_is_not_loaded(savedmodel):
    model = saved_model_pb2.SavedModel.FromString(check_operations(savedmodel))
    (meta,) = model.meta_graphs
    assert not meta.graph_def.node
    operations = {node.op for function in meta.graph_def.library.function for node in function.node_def}
    assert "Conv2D" in operations
    assert not operations & {"SaveV2", "MergeV2Checkpoints", "RestoreV2", "AssignVariableOp"}


@pytest.mark.parametrize("size", [1 << 40, 5])
def test_weights_of_another_size_are_not_read(edited, size):
    def change(meta):
        variable = next(n for n in meta.object_graph_def.nodes if n.WhichOneof("kind") == "variable").variable
        variable.shape.dim[0].size = size

    with pytest.raises(ModelError, match="weights/0 of another shape"):
        open_runtime(edited(change))


def test_our_own_pass(savedmodel):
    check_operations(savedmodel)
    check_operations(next(shipped_model().glob("*/saved_model.pb")).parent)


def test_tflite_files_with_other_operators_are_refused():
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils

    check_tflite_operators(next(shipped_model().glob("*.tflite")).read_bytes())
    for builtin, old_builtin in ((32, 32), (0, 32), (32, 0), (0, 0)):
        model, code = schema.ModelT(), schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.customCode = builtin, old_builtin, b"FlexWriteFile"
        model.operatorCodes = [schema.OperatorCodeT(), code]
        content = bytes(flatbuffer_utils.convert_object_to_bytearray(model))
        with pytest.raises(ModelError, match="FlexWriteFile"):
            check_tflite_operators(content)
    for cut in (b"", content[:30], b"\xff" * 64):
        with pytest.raises(ModelError, match="can be read"):
            check_tflite_operators(cut)


def test_tflite_files_are_checked_before_they_are_run(tmp_path, monkeypatch):
    from liverseg_tf.inference import runtimes

    def refuse(content):
        raise ModelError("expected TFLite builtin operators only, got 'FlexWriteFile'")

    monkeypatch.setattr(runtimes, "check_tflite_operators", refuse)
    monkeypatch.setattr(runtimes, "_interpreter_class", lambda: pytest.fail("was run"))
    with pytest.raises(ModelError, match="FlexWriteFile"):
        open_runtime(next(shipped_model().glob("*.tflite")))
