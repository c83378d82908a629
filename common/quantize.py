"""Weights in int8: a quarter of the bytes of float32.

Every row of a matrix has a scale of its own, and its numbers are whole multiples of it:

    W[i, j] is about int8[i, j] scale[i]       scale[i] = max_j |W[i, j]| / 127

so no weight moves by more than scale / 2. Vectors (biases, norms) stay float32: they are few.
Plumbing, to be skipped on a first reading.
"""

import torch


def quantize(weights):
    """{name: tensor} -> {name: {"int8": (m, n) int8, "scale": (m, 1) float32} for a matrix, else
    the float32 tensor}."""
    quantized = {}
    for name, tensor in weights.items():
        tensor = tensor.detach().float().cpu()
        if tensor.ndim != 2:
            quantized[name] = tensor
            continue
        scale = tensor.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127  # (m, 1)
        quantized[name] = {"int8": (tensor / scale).round().to(torch.int8), "scale": scale}
    return quantized


def dequantize(weights):
    """The other way: {name: float32 tensor}. Weights that are not quantized stay as they are."""
    return {
        name: value["int8"].float() * value["scale"] if isinstance(value, dict) else value
        for name, value in weights.items()
    }
