"""What an ONNX file may hold: sizes before it is parsed, fields, and parts that reach an output."""
