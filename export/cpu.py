"""The processor: its name, and how its 8-bit products behave."""

import platform
from pathlib import Path

VNNI = {"avx512_vnni", "avx_vnni", "avx512vnni", "avxvnni"}


def cpu_field(name: str) -> str:
    """A field of the first processor in /proc/cpuinfo; empty where there is no such file."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")


def cpu_name() -> str:
    """What the processor is called."""
    return cpu_field("model name") or platform.processor() or platform.machine()


def has_vnni() -> bool:
    """Whether the processor multiplies and adds 8-bit integers in one instruction."""
    return bool(VNNI & set(cpu_field("flags").split()))


def int8_saturates() -> bool:
    """Whether sums of two 8-bit products may overflow: on x86 without VNNI, where weights then
    get 7 bits (`reduce_range`)."""
    return platform.machine().lower() in ("x86_64", "amd64") and not has_vnni()
