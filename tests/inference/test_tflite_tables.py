"""The few fields that are read of a TFLite file are those that LiteRT's generated reader reads."""

from ai_edge_litert import schema_py_generated as schema

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
