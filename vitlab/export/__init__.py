"""Trained models for programs that are not this one: files of weights, StableHLO, ONNX."""
