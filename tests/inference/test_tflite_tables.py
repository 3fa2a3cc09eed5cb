"""The few fields that are read of a TFLite file are those that LiteRT's generated reader reads."""

from ai_edge_litert import schema_py_generated as schema

from liverseg_tf.inference.runtimes import _network_of
from liverseg_tf.inference.tflite_tables import CUSTOM, TFLiteTables
from liverseg_tf.shipped import shipped_model


def test_fields_are_those_of_the_whole_schema():
    content = next(shipped_model().glob("*.tflite")).read_bytes()
    tables, model = TFLiteTables(content), schema.Model.GetRootAs(content, 0)
    graph = model.Subgraphs(0)
    assert tables.tensor_names() == [graph.Tensors(index).Name() for index in range(graph.TensorsLength())]
    operators = [graph.Operators(index) for index in range(graph.OperatorsLength())]
    assert tables.outputs() == [[one.Outputs(i) for i in range(one.OutputsLength())] for one in operators]
    codes = [model.OperatorCodes(index) for index in range(model.OperatorCodesLength())]
    assert [(code.codes, code.custom_name) for code in tables.operator_codes()] == [
        ((code.DeprecatedBuiltinCode(), code.BuiltinCode()), code.CustomCode()) for code in codes
    ]
    assert len(codes) > 3
    assert all(code.is_builtin for code in tables.operator_codes())


def test_what_is_not_builtin_is_told():
    assert schema.BuiltinOperator.CUSTOM == CUSTOM


def test_a_network_of_other_sizes_differs_in_the_shapes_of_reshape_only():
    content, _ = _network_of(next(shipped_model().glob("*.tflite")).read_bytes())
    tables = TFLiteTables(content)
    assert tables.is_of_any_size()
    other = tables.resized((256, 256), (192, 128))
    assert TFLiteTables(other).resized((192, 128), (256, 256)) == content
    shapes = [reshaped(file) for file in (content, other)]
    assert (shapes[0][1], shapes[1][1]) == ([1, 16, 8, 1, 512], [1, 12, 4, 1, 512])
    assert (shapes[0][-1], shapes[1][-1]) == ([1, 256, 256, 32], [1, 192, 128, 32])
    assert not TFLiteTables(next(shipped_model().glob("*.tflite")).read_bytes()).is_of_any_size()


def reshaped(content):
    """Shapes of the results of all RESHAPE operators, by LiteRT's reader."""
    model = schema.Model.GetRootAs(content, 0)
    graph, found = model.Subgraphs(0), []
    for operator in map(graph.Operators, range(graph.OperatorsLength())):
        if model.OperatorCodes(operator.OpcodeIndex()).BuiltinCode() == schema.BuiltinOperator.RESHAPE:
            buffer = model.Buffers(graph.Tensors(operator.Inputs(1)).Buffer())
            found.append(buffer.DataAsNumpy().view("<i4").tolist())
    return found
