"""What a model may be exported as, the default first. Loads nothing heavy."""

FORMATS = ("savedmodel", "tflite")
EXPORT_PRECISIONS = ("float32", "float16", "int8")
