"""The same numbers with less memory traffic: LoRA projections, RMSNorm and SwiGLU as single autograd functions.

Where matrix products are fast (bf16 on AMX or AVX-512, any GPU) a small LoRA step spends more time on casts, scalings
and sums over whole activations than on products. Each function here keeps only what its gradient needs and does its
sums inside the products. Only modules whose arithmetic is known are replaced; all others stay as they are.

Shapes: T tokens, x [..., in], y [..., out], A [r, in], B [out, r].
"""

import types
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RMS_NORMS = {"Qwen2RMSNorm", "Qwen3RMSNorm", "LlamaRMSNorm", "MistralRMSNorm"}  # weight * x / rms(x), in fp32 inside
GATED_MLPS = {"Qwen2MLP", "Qwen3MLP", "LlamaMLP", "MistralMLP"}  # down(silu(gate(x)) * up(x))


def fuse(model: "PreTrainedModel") -> int:
    """Replace the forward of every module that is known, in place; how many were."""
    count = 0
    for module in model.modules():
        forward = _fused_forward(module)
        if forward is not None:
            module.forward = types.MethodType(forward, module)
            count += 1
    return count


def _fused_forward(module: torch.nn.Module) -> Any:
    name = type(module).__name__
    if name in RMS_NORMS:
        return _rms_norm
    if name in GATED_MLPS and getattr(module.act_fn, "__class__", None).__name__ in ("SiLU", "SiLUActivation"):
        return _gated_mlp
    if _is_plain_lora(module):
        return _lora
    return None


def _is_plain_lora(module: torch.nn.Module) -> bool:
    """PEFT's LoRA over a frozen nn.Linear: one adapter, no dropout, no variant such as DoRA."""
    if (
        type(module).__name__ != "Linear"
        or not hasattr(module, "lora_A")
        or type(module.base_layer) is not torch.nn.Linear
    ):
        return False
    if len(module.lora_A) != 1 or list(module.lora_A) != list(module.active_adapters) or module.lora_variant:
        return False
    [name] = module.lora_A
    is_frozen = not any(parameter.requires_grad for parameter in module.base_layer.parameters())
    return (
        is_frozen
        and isinstance(module.lora_dropout[name], torch.nn.Identity)
        and module.lora_A[name].bias is None
        and module.lora_B[name].bias is None
    )


def _rms_norm(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    return _RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon)


def _gated_mlp(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.down_proj(_SwiGLU.apply(self.gate_proj(x), self.up_proj(x)))


def _lora(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    if self.disable_adapters or self.merged:
        return type(self).forward(self, x, *args, **kwargs)
    [name] = self.lora_A
    return _LoraLinear.apply(
        x,
        self.base_layer.weight,
        self.base_layer.bias,
        self.lora_A[name].weight,
        self.lora_B[name].weight,
        self.scaling[name],
    )


class _LoraLinear(torch.autograd.Function):
    """y = x W' + bias + scale * (x A') B', W frozen. The products run in W's dtype, or autocast's."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        with torch.autocast(device, enabled=False):
            flat = x.reshape(-1, x.shape[-1]).to(dtype)
            weight, low, high = weight.to(dtype), a.to(dtype), b.to(dtype)
            inner = flat @ low.t()
            y = F.linear(flat, weight, None if bias is None else bias.to(dtype)).addmm_(inner, high.t(), alpha=scale)
        ctx.save_for_backward(flat, inner, weight, low, high)
        ctx.scale, ctx.dtypes = scale, (x.dtype, a.dtype, b.dtype)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        flat, inner, weight, low, high = ctx.saved_tensors
        x_dtype, a_dtype, b_dtype = ctx.dtypes
        shape = grad.shape[:-1]
        grad = grad.reshape(-1, grad.shape[-1]).to(weight.dtype)
        grad_inner = (grad @ high).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_inner, low).view(*shape, -1).to(x_dtype)
        grad_b = (grad.t() @ inner).to(b_dtype).mul_(ctx.scale)
        return grad_x, None, None, (grad_inner.t() @ flat).to(a_dtype), grad_b, None


class _RMSNorm(torch.autograd.Function):
    """weight * x / sqrt(mean(x^2) + eps) (Zhang & Sennrich 2019), statistics in fp32."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        wide = x.float()
        inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, weight, inverse)
        return weight * (wide * inverse).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        x, weight, inverse = ctx.saved_tensors
        normal = x.float() * inverse
        slope = grad.float()
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (slope * normal).flatten(0, -2).sum(0).to(weight.dtype)
        slope = slope * weight
        projection = (slope * normal).mean(-1, keepdim=True)
        return slope.addcmul_(normal, projection, value=-1).mul_(inverse).to(x.dtype), grad_weight, None


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up (Shazeer 2020); keeps its two inputs and nothing else."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        grad_up = F.silu(gate).mul_(grad)
        return torch.ops.aten.silu_backward(grad * up, gate), grad_up
