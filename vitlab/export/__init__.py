"""Export of trained models for other programs: files of weights, StableHLO, ONNX."""
