"""What this machine can do and what is missing, told without loading anything heavy."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from evergreen.settings import DoctorSettings

REQUIRED = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors")
OPTIONAL = {  # package: what it is for, the line that installs it
    "bitsandbytes": ("4-bit bases (--train_type qlora)", "pip install 'evergreen-lm[qlora]'"),
    "modelscope": ("data and models from ModelScope", "pip install 'evergreen-lm[modelscope]'"),
    "psycopg": ("the home in PostgreSQL (EVERGREEN_DB)", "pip install 'evergreen-lm[postgres]'"),
    "redis": ("one answer cache for several servers (EVERGREEN_CACHE)", "pip install 'evergreen-lm[redis]'"),
    "pymilvus": ("entries in Milvus (EVERGREEN_INDEX)", "pip install 'evergreen-lm[milvus]'"),
    "gguf": ("llama.cpp as the engine (--engine llamacpp)", "pip install 'evergreen-lm[gguf]'"),
    "trl": ("the peer in bench/train.py", "pip install 'evergreen-lm[bench]'"),
}


def run_doctor(settings: DoctorSettings) -> dict[str, Any]:
    """Device, memory, the dtype to expect, packages and optional parts; as words and as JSON."""
    report = {
        "evergreen": importlib.metadata.version("evergreen-lm"),
        "python": platform.python_version(),
        "device": _device(),
        "memory": _memory(),
        "fast_dtype": _fast_dtype(),
        "disk": _disk(),
        "packages": {name: _version(name) for name in REQUIRED},
        "optional": {
            name: {"version": _version(name), "for": use, "install": line} for name, (use, line) in OPTIONAL.items()
        },
        "models": _models(),
    }
    if not settings.json:
        print(_as_text(report))
    return report


def _device() -> dict[str, Any]:
    gpus = _nvidia_smi()
    cpu = _cpu()
    return {
        "kind": "cuda" if gpus else "cpu",
        "gpus": gpus,
        "cpu": cpu["name"],
        "cores": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in cpu["flags"]],
    }


def _nvidia_smi() -> list[dict[str, str]]:
    program = shutil.which("nvidia-smi")
    if not program:
        return []
    try:
        answer = subprocess.run(
            [program, "--query-gpu=name,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [
        dict(zip(("name", "memory"), (part.strip() for part in line.split(",")), strict=False))
        for line in answer.strip().splitlines()
    ]


def _cpu() -> dict[str, Any]:
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    lines = dict(line.split("\t", 1)[0:2] for line in text.split("\n\n")[0].splitlines() if "\t" in line)
    fields = {key.strip(": \t"): value.split(":", 1)[-1].strip() for key, value in lines.items()}
    return {
        "name": fields.get("model name", platform.processor() or platform.machine()),
        "vendor": fields.get("vendor_id", ""),
        "flags": fields.get("flags", "").split(),
    }


def _memory() -> dict[str, int]:
    import psutil

    memory = psutil.virtual_memory()
    return {"total_bytes": memory.total, "available_bytes": memory.available}


def _disk() -> dict[str, int]:
    return {"free_bytes": shutil.disk_usage(".").free}


def _fast_dtype() -> dict[str, str]:
    """What to expect of --torch_dtype auto; training measures it, since flags alone do not tell."""
    cpu = _cpu()
    if _nvidia_smi():
        return {"expected": "bfloat16", "because": "a GPU"}
    if "amx_bf16" in cpu["flags"]:
        return {"expected": "bfloat16", "because": "the CPU has AMX"}
    if "avx512_bf16" in cpu["flags"] and cpu["vendor"] == "AuthenticAMD":
        return {"expected": "bfloat16", "because": "AMD's avx512_bf16 runs at full rate"}
    return {"expected": "float32", "because": "no fast bf16 products on this CPU"}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _models() -> list[str]:
    from evergreen.model.load import local_models

    return local_models()


def _as_text(report: dict[str, Any]) -> str:
    device, memory = report["device"], report["memory"]
    lines = [
        f"evergreen {report['evergreen']} on Python {report['python']}",
        f"device      {device['kind']}: "
        + (
            ", ".join(f"{gpu['name']} {gpu['memory']}" for gpu in device["gpus"])
            or f"{device['cpu']}, {device['cores']} cores ({' '.join(device['flags'])})"
        ),
        f"memory      {memory['available_bytes'] / 2**30:.1f} of {memory['total_bytes'] / 2**30:.1f} GiB free; "
        f"disk {report['disk']['free_bytes'] / 2**30:.0f} GiB free here",
        f"fast dtype  {report['fast_dtype']['expected']} expected ({report['fast_dtype']['because']}); "
        "--torch_dtype auto measures it",
        "models      " + ", ".join(report["models"]) + "  (EVERGREEN_MODELS lists folders of more)",
    ]
    lines += [
        f"package     {name} {version or 'MISSING: pip install evergreen-lm'}"
        for name, version in report["packages"].items()
    ]
    lines += [
        f"optional    {name} {part['version']}: {part['for']}"
        if part["version"]
        else f"optional    {name} is absent: {part['for']}; {part['install']}"
        for name, part in report["optional"].items()
    ]
    return "\n".join(lines)
