"""NVIDIA GPUs through NVML: clocks, temperature, power, throttle reasons, energy. Absent where pynvml or the driver is.

``pip install nvidia-ml-py`` on a machine with a GPU; nothing here needs it elsewhere.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import JsonValue

SM_CLOCK, MEMORY_CLOCK = 1, 2
GPU_SENSOR = 0
# nvml.h: nvmlClocksEventReason*. Idle, application clocks and the power cap of normal work are not trouble.
REASONS = {0x8: "hw_slowdown", 0x20: "sw_thermal", 0x40: "hw_thermal", 0x80: "hw_power_brake"}


class Nvml:
    """The GPUs of this machine: an observer, a throttle watch and an energy counter in one.

    Args:
        library: The ``pynvml`` module, initialised.
    """

    name = "nvml"
    step_s = 0.1  # of an H100's energy; older ones move more often, which does no harm

    def __init__(self, library: Any) -> None:
        self._library = library
        count = library.nvmlDeviceGetCount()
        self._gpus = [library.nvmlDeviceGetHandleByIndex(index) for index in range(count)]

    @classmethod
    def found(cls) -> Nvml | None:
        """Return the GPUs, or None where there are none to be read."""
        try:
            library = importlib.import_module("pynvml")
            library.nvmlInit()
            made = cls(library)
        except Exception:  # not installed, no driver, no right to: pynvml raises classes of its own, made as it runs
            return None
        return made if made._gpus else None

    def read(self) -> Mapping[str, JsonValue]:
        return {"gpus": [self._read(gpu) for gpu in self._gpus]}

    def is_throttled(self) -> bool:
        """Whether any GPU is slowed down by heat or by the power brake now."""
        return any(self._reasons(gpu) for gpu in self._gpus)

    def read_mj(self) -> float:
        """Return the energy of all GPUs since the driver was loaded."""
        return float(sum(self._library.nvmlDeviceGetTotalEnergyConsumption(gpu) for gpu in self._gpus))

    def _reasons(self, gpu: Any) -> list[str]:
        bits = self._library.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)
        return [word for bit, word in REASONS.items() if bits & bit]

    def _read(self, gpu: Any) -> JsonValue:
        readings: dict[str, Callable[[], JsonValue]] = {
            "name": lambda: _word(self._library.nvmlDeviceGetName(gpu)),
            "sm_mhz": lambda: self._library.nvmlDeviceGetClockInfo(gpu, SM_CLOCK),
            "memory_mhz": lambda: self._library.nvmlDeviceGetClockInfo(gpu, MEMORY_CLOCK),
            "temperature_c": lambda: self._library.nvmlDeviceGetTemperature(gpu, GPU_SENSOR),
            "power_w": lambda: self._library.nvmlDeviceGetPowerUsage(gpu) / 1000,
            "throttle_reasons": lambda: list[JsonValue](self._reasons(gpu)),
        }
        seen: dict[str, JsonValue] = {}
        for key, read in readings.items():
            try:
                seen[key] = read()
            except Exception:  # NVMLError_NotSupported: not every GPU tells everything
                continue
        return seen


def _word(name: str | bytes) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name
