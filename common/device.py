"""Where it runs: the device, the number format of its matrix products, how much fits."""

import functools
import importlib.util

import torch
import torch.nn.functional as F

from common.command import UserError

LOGITS_AT_A_TIME = 2**28  # float32 numbers: 1 GB


def pick_device(name=None):
    """The torch.device of that name; by default a CUDA GPU if there is one, else an Apple GPU, else
    the CPU.

    UserError if it is not there.
    """
    apple = torch.backends.mps.is_available()
    default = "cuda" if torch.cuda.is_available() else "mps" if apple else "cpu"
    try:
        device = torch.device(name or default)
    except RuntimeError as error:
        message = f"there is no device called {name}: use cpu, cuda, cuda:N or mps"
        raise UserError(message) from error
    gpus = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(apple)}
    if (device.index or 0) >= gpus.get(device.type, 0):
        raise UserError(f"this machine has no {name} that PyTorch can use: try --device cpu")
    return device


def number_format(device):
    """The dtype of matrix products: bfloat16 where the hardware has them, float16 on other CUDA
    GPUs (T4, RTX 20), else float32.

    bfloat16 is in newer GPUs, Apple's too, and in CPUs with AMX or AVX-512's bfloat16 products:
    there a training step of the `cpu-text` preset takes 40 ms instead of 104.
    """
    if device.type == "cuda":
        bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if bfloat16 else torch.float16
    if device.type == "mps":
        return torch.bfloat16 if computes(torch.bfloat16, device) else torch.float32
    can = getattr(torch.cpu, "get_capabilities", dict)()
    bfloat16 = can.get("amx_bf16", False) or can.get("avx512_bf16", False)
    return torch.bfloat16 if bfloat16 else torch.float32


@functools.cache
def computes(dtype, device):
    """Whether a matrix product, GELU and their gradient come out there as on the CPU. Older
    versions of macOS have no bfloat16, and in some of PyTorch its GELU was NaN on Apple GPUs
    (github.com/pytorch/pytorch/issues/186278)."""
    x = torch.arange(64).remainder(7).view(8, 8) - 3  # products of integers are exact
    try:
        there, here = layer(x.to(device, dtype)), layer(x.to(dtype))
    except (RuntimeError, TypeError):
        return False
    return torch.allclose(there, here, rtol=0.01, atol=0.2)


@torch.enable_grad()
def layer(x):
    """GELU(x x^T) and the gradient of its sum, in float32 on the CPU."""
    x.requires_grad_()
    y = F.gelu(x @ x.mT, approximate="tanh")
    y.sum().backward()
    return torch.cat([y.detach(), x.grad]).float().cpu()


def autocast(device):
    """Matrix products in number_format(device). Weights stay float32."""
    dtype = number_format(device)
    if dtype == torch.float32:
        return torch.autocast(device.type, torch.bfloat16, enabled=False)
    return torch.autocast(device.type, dtype)


def gradient_scaler(device):
    """What keeps small gradients in float16's range; does nothing in other number formats. It makes
    the loss larger before the backward pass and divides the gradients afterwards. An iteration in
    which one overflows changes no weight, and the next factor is smaller."""
    return torch.amp.GradScaler(device.type, enabled=number_format(device) == torch.float16)


def can_compile(device):
    """Whether torch.compile is worth its time there: on a CUDA GPU, if Triton, which writes the
    kernels, is installed and knows the GPU. PyTorch for Windows comes without it; it knows those of
    compute capability 7.0 and newer."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (7, 0)


def texts_at_a_time(length, vocab_size, most=64):
    """How many texts of `length` tokens are sampled or scored together: `most`, or as many as
    have LOGITS_AT_A_TIME logits, at least one."""
    return max(1, min(most, LOGITS_AT_A_TIME // (length * vocab_size)))
