"""Fewer bytes for the weights of a loaded model: int8, int4 or nf4 in place of its linears and its output head.

Promises: a layer whose outputs would suffer more than a bound that is measured on the model itself stays as it is; a
row's int8 result never depends on the other rows; the input embedding stays, so activations keep their dtype.
Does not: train through quantised layers, or touch a model that comes quantised.

int8 is W8A8: one scale per output channel, one per token; products of integers, exact. int4 (groups of 32, Gerganov's
and GPTQ's layout; an error counts by the size of the inputs that it meets) and nf4 (QLoRA's, by bitsandbytes) hold the
weights only; the head is int8 in all three. Per matrix of 896 x 4,864, one thread, weights from memory, against fp32
(EPYC with avx512_vnni and _bf16):

    rows              1     8    16   128   512   bytes per weight
    bf16            1.3x  1.9x  2.2x  2.7x  2.3x   2
    int8            3.1x  4.9x  4.9x  4.2x  4.1x   1
    int4            5.6x  2.9x  2.2x  1.2x  1.0x   0.625
    nf4             6.8x  4.4x  2.9x  2.1x  1.6x   0.56
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import nn

from evergreen.engine.packed import PackedLinear
from evergreen.home import digest_of
from evergreen.model.adapters import LAYER
from evergreen.records import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from evergreen.model.load import LoadedModel

FORMATS = ("int8", "int4", "nf4")
MAX_ERROR = {"int8": 0.05, "int4": 0.2, "nf4": 0.2}  # of a linear's output, relative, mean over tokens
GROUP = 32  # input features that share an int4 scale
U8_ZERO = 128
SAMPLE = (
    "The committee met on 14 March 2023 to review the budget: revenue had grown by 7.5%, costs by only 3%.\n"
    "def mean(values: list[float]) -> float:\n    return sum(values) / len(values)\n"
    "昨天下午,研究人员在北京发布了一项关于大语言模型的报告,内容包括训练、部署和评测。请用三句话总结其要点。\n"
    '{"name": "Evergreen", "tags": ["LLM", "LoRA"], "size": 1024}\n'
)


@dataclass(frozen=True)
class Quantized:
    """What was done to a model. `suffix` goes behind its digest wherever results of it are kept, KV blocks above all:
    other weights, other results. It is "" for a model that was left alone."""

    quantization: str
    kept: tuple[str, ...] = ()  # linears that stay in the model's dtype

    @property
    def suffix(self) -> str:
        if not self.quantization:
            return ""
        return f"+{self.quantization}" + (f"-{digest_of(self.kept)[:8]}" if self.kept else "")


def quantize(loaded: "LoadedModel", quantization: str) -> Quantized:
    """Replace the linears of a model in place, one by one. Raises BadInput for a format that cannot be had here."""
    model = loaded.model
    if not quantization or is_quantized(model):
        return Quantized("")
    _check(quantization, model)
    model.requires_grad_(False)
    kept: list[str] = []
    make = {"int8": lambda linear, _: Int8Linear(linear), "int4": _int4_or_int8, "nf4": lambda linear, _: _nf4(linear)}[
        quantization
    ]
    with _each_linear_as_it_runs(model, lambda *call: _replace(model, make, MAX_ERROR[quantization], kept, *call)):
        ids = loaded.tokenizer(SAMPLE, return_tensors="pt").input_ids
        with torch.no_grad():
            model(input_ids=ids.to(model.device), use_cache=False)
    _quantize_head(model)
    return Quantized(quantization, tuple(sorted(kept)))


def is_quantized(model: nn.Module) -> bool:
    return getattr(model, "quantization_method", None) is not None or any(
        isinstance(module, Int8Linear | Int4Linear) or hasattr(getattr(module, "weight", None), "quant_state")
        for module in model.modules()
    )


def _check(quantization: str, model: "PreTrainedModel") -> None:
    if quantization not in FORMATS:
        raise BadInput(f"--quantization {quantization}: one of {', '.join(FORMATS)}")
    if model.device.type != "cpu" and quantization != "nf4":
        raise BadInput(f"--quantization {quantization} is made for CPUs; on {model.device.type} take nf4")
    if quantization == "nf4":
        try:
            import bitsandbytes  # noqa: F401
        except ImportError:
            raise BadInput("--quantization nf4 needs bitsandbytes: pip install 'evergreen-lm[qlora]'") from None


class _each_linear_as_it_runs:
    """Calls `seen(name, linear, inputs, outputs)` for every linear of the decoder layers. A context manager."""

    def __init__(self, model: nn.Module, seen: Callable):
        self.hooks = [
            module.register_forward_hook(lambda module, args, output, name=name: seen(name, module, args[0], output))
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and LAYER.search(f".{name}.")
        ]

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()


def _replace(model: nn.Module, make: Callable, max_error: float, kept: list[str],
             name: str, linear: nn.Linear, x: torch.Tensor, y: torch.Tensor) -> None:  # fmt: skip
    """The rule: a layer is quantised when that moves its outputs by at most `max_error`, relative, on real text."""
    small = make(linear, x.detach())
    if small is None or relative_error(small(x.detach()), y.detach()) > max_error:
        kept.append(name)
        return
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, small)


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """|found - wanted| / |wanted| of each token's vector, mean over tokens."""
    wanted = wanted.float()
    return float(((found.float() - wanted).norm(dim=-1) / wanted.norm(dim=-1).clamp(min=1e-12)).mean())


def _quantize_head(model: "PreTrainedModel") -> None:
    """The output embedding, 27% of the bytes that a token of Qwen2.5-0.5B reads; the lookup keeps a tied weight."""
    head = model.get_output_embeddings()
    if isinstance(head, nn.Linear) and model.device.type == "cpu":
        model.set_output_embeddings(Int8Linear(head))


class Int8Linear(nn.Module):
    """W8A8: y = (codes of x) @ (codes of W), times the token's scale and the output channel's, plus the bias.

    The products are oneDNN's of unsigned by signed bytes, 1.6x as fast as `torch._int_mm` up to 16 rows; with signed
    activations the same call falls to a reference loop (92 ms instead of 0.4). Tokens have scales of their own, so
    that an outlier coarsens its own row only."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        self.register_buffer("scales", (weight.abs().amax(dim=1) / 127).clamp(min=1e-12))
        codes = torch.round(weight / self.scales[:, None]).to(torch.int8)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().float(), requires_grad=False)
        self.is_packed = packs_bytes()
        self.codes = torch.ops.onednn.qlinear_prepack(codes, None) if self.is_packed else codes
        self.register_buffer("zeros", torch.zeros(self.out_features, dtype=torch.int32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features)
        scale = torch.maximum(rows.amax(dim=1, keepdim=True), -rows.amin(dim=1, keepdim=True)).float().div_(127)
        # 512 rows of 4,864 in bf16: 3.8 ms this way; 15.5 with the greatest taken in fp32 and a division
        codes = rows.to(torch.float32, copy=True).mul_(scale.clamp(min=1e-30).reciprocal_())
        y = self._times_bytes(codes) if self.is_packed else self._times_ints(codes)
        y = y.mul_(scale) if self.bias is None else torch.addcmul(self.bias, y, scale)
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _times_bytes(self, codes: torch.Tensor) -> torch.Tensor:
        codes = codes.add_(U8_ZERO + 0.5).to(torch.uint8)  # cutting off then rounds
        return byte_product(codes, self.codes, self.scales, self.zeros)

    def _times_ints(self, codes: torch.Tensor) -> torch.Tensor:
        return torch._int_mm(codes.round_().to(torch.int8), self.codes.t()).float().mul_(self.scales)

    def dequantize(self) -> torch.Tensor:
        """The weight that it multiplies by, [out, in] in fp32."""
        codes = self.codes.to_dense().t() if self.is_packed else self.codes
        return codes.float() * self.scales[:, None]


def byte_product(codes: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """(codes - 128) @ W in fp32, W's scales applied. `codes` [rows, in] uint8, `packed` by onednn.qlinear_prepack."""
    return torch.ops.onednn.qlinear_pointwise(
        codes, 1.0, U8_ZERO, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )


@cache
def packs_bytes() -> bool:
    """Whether oneDNN's byte product is exact here (older CPUs add pairs of products in 16 bits, which overflow) and
    not its reference loop. Takes a few milliseconds."""
    codes, weight = torch.full((4, 256), 255, dtype=torch.uint8), torch.full((256, 256), 127, dtype=torch.int8)
    try:
        call = codes, torch.ops.onednn.qlinear_prepack(weight, None), torch.ones(256), torch.zeros(256).int()
        is_exact = bool((byte_product(*call) == 127 * 127 * 256).all())
    except (RuntimeError, AttributeError):
        return False
    signed = torch.zeros_like(codes, dtype=torch.int8)
    return is_exact and _seconds(lambda: byte_product(*call)) < 8 * _seconds(lambda: torch._int_mm(signed, weight.t()))


def _seconds(call: Callable, repeats: int = 5) -> float:
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


class Int4Linear(nn.Module):
    """16 levels between the least and the greatest weight of each group of 32; products in bf16.

    The kernel reads bf16 activations; fp32 ones would take its reference path, 20 times as long."""

    def __init__(self, linear: nn.Linear, importance: torch.Tensor | None = None):
        """`importance` [in]: how much an error of the weights of each input counts."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        codes, scales, zeros = int4_codes(linear.weight.detach().float(), importance)
        self.register_buffer("packed", torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1))
        self.register_buffer("scales_and_zeros", torch.stack([scales, zeros], dim=2).transpose(0, 1).contiguous())
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features).to(torch.bfloat16).contiguous()
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, GROUP, self.scales_and_zeros).to(x.dtype)
        return (y if self.bias is None else y + self.bias).view(*x.shape[:-1], self.out_features)


def int4_codes(
    weight: torch.Tensor, importance: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(codes [out, in] int32, scales and zeros [out, groups] bf16); weight = (code - 8) * scale + zero.

    Of three ranges per group, the whole one and narrower ones, and the line that fits the best one's codes, the one
    with the least squared error, weighted by `importance` [in] (llama.cpp's importance matrix)."""
    groups = weight.view(len(weight), -1, GROUP)
    weights = (torch.ones(weight.shape[1]) if importance is None else importance).view(1, -1, GROUP)
    low, high = groups.amin(dim=2, keepdim=True), groups.amax(dim=2, keepdim=True)
    best = None
    for share in (1.0, 0.9, 0.8, None):
        if share:
            scale = (high - low) * (share / 15)
            zero = (low + high + scale) / 2
        else:
            scale, zero = _fitted(best[0] - 8, groups, weights)
        scale = scale.clamp_(min=1e-8).bfloat16().float()
        zero = zero.bfloat16().float()
        codes = ((groups - zero) / scale).add_(8).round_().clamp_(0, 15)
        error = torch.addcmul(zero - groups, codes - 8, scale).square_().mul_(weights).sum(dim=2, keepdim=True)
        now = codes, scale, zero, error
        is_better = error < best[3] if best else None
        best = now if best is None else [torch.where(is_better, *pair) for pair in zip(now, best, strict=True)]
    codes, scales, zeros, _ = best
    return codes.reshape(weight.shape).int(), scales[..., 0].bfloat16(), zeros[..., 0].bfloat16()


def _fitted(codes: torch.Tensor, groups: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero of each group by weighted least squares."""
    shares = weights / weights.sum(dim=2, keepdim=True)
    mean, level = ((one * shares).sum(dim=2, keepdim=True) for one in (codes, groups))
    away = (codes - mean).mul_(shares)
    slope = (away * groups).sum(dim=2, keepdim=True) / (away * codes).sum(dim=2, keepdim=True).clamp_(min=1e-20)
    return slope, level - slope * mean


def _int4_or_int8(linear: nn.Linear, inputs: torch.Tensor) -> nn.Module:
    """The kernel wants whole groups and blocks of 16 outputs."""
    if linear.in_features % GROUP or linear.out_features % 16:
        return Int8Linear(linear)
    squares = inputs.flatten(0, -2).float().square().mean(dim=0)
    return Int4Linear(linear, squares.add_(1e-4 * squares.mean() + 1e-12))


def _nf4(linear: nn.Linear) -> nn.Module | None:
    import bitsandbytes

    if linear.in_features % 64:  # not whole blocks
        return None
    small = bitsandbytes.nn.Linear4bit(
        linear.in_features, linear.out_features, linear.bias is not None, linear.weight.dtype, quant_type="nf4"
    )
    small.weight = bitsandbytes.nn.Params4bit(linear.weight.detach().clone(), requires_grad=False, quant_type="nf4")
    small.bias = linear.bias
    return small.to(linear.weight.device).eval()


def weight_of(linear: nn.Module) -> torch.Tensor:
    """The weight [out, in] that a linear of any kind multiplies by, in fp32; where only its kernel can read it, by its
    outputs for the rows of the identity."""
    if isinstance(linear, Int8Linear | PackedLinear):
        return linear.dequantize()
    if isinstance(linear, nn.Linear) and linear.weight.is_floating_point():
        return linear.weight.detach().float()
    device = next(iter([*linear.parameters(), *linear.buffers()])).device
    with torch.no_grad():
        bias = 0 if linear.bias is None else linear.bias.float()
        rows = torch.eye(linear.in_features, device=device, dtype=torch.bfloat16).split(256)
        return torch.cat([linear(some).float() - bias for some in rows]).t()
