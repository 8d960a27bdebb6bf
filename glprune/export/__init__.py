"""Write ONNX files, run them with ONNX Runtime and measure them."""
