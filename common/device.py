"""Where it runs: the device, the number format of its matrix products, how much fits."""

import torch

from common.command import UserError

LOGITS_AT_A_TIME = 2**28  # float32 numbers: 1 GB


def pick_device(name=None):
    """The torch.device of that name; by default a CUDA GPU if there is one, else the CPU.

    UserError if it is not there.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise UserError(f"there is no device called {name}: use cpu, cuda or cuda:N") from error
    missing = device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    if device.type not in ("cpu", "cuda") or missing:
        raise UserError(f"this machine has no {name} that PyTorch can use: try --device cpu")
    return device


def autocast(device):
    """bfloat16 matrix products where the hardware has them, else float32. Weights stay float32.

    GPUs that have bfloat16, and CPUs with AMX or AVX-512's bfloat16 products: there a training
    step of the `cpu-text` preset takes 40 ms instead of 104.
    """
    if device.type == "cuda":
        enabled = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        can = getattr(torch.cpu, "get_capabilities", dict)()
        enabled = can.get("amx_bf16", False) or can.get("avx512_bf16", False)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def texts_at_a_time(length, vocab_size, most=64):
    """How many texts of `length` tokens are sampled or scored together: `most`, or as many as
    have LOGITS_AT_A_TIME logits, at least one."""
    return max(1, min(most, LOGITS_AT_A_TIME // (length * vocab_size)))
