"""Export of a model with its fusion to one ONNX graph, or to a `torch.export` program."""
