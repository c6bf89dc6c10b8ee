"""Models in and out: our folders and foreign ones, the Hub, the card, ONNX."""
