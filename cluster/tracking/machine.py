"""System metrics of this machine, under the names that MLflow's interface has a page for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

MEGA = 1e6
_log = logging.getLogger(__name__)


class Sampler:
    """Reads the machine's load every few seconds in a thread of its own.

    Args:
        sink: called with each sample, metric -> value.
        seconds: between two samples; 10 costs about 0.01% of a core.
    """

    def __init__(self, sink: Callable[[dict[str, float]], None], seconds: float = 10.0):
        self._sink, self._seconds = sink, seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system-metrics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        gpus = _gpus()
        usage(gpus)  # the first reading of the CPU's load only starts its clock
        wait = min(2.0, self._seconds)
        while not self._stop.wait(wait):
            try:
                values = usage(gpus)
            except Exception as error:  # a device that is reset or lost; the work itself will say so
                _log.warning("System metrics: %s; going on without the GPUs'", error)
                gpus, values = None, usage()
            self._sink(values)
            wait = self._seconds


def usage(gpus: tuple[Any, list[Any]] | None = None) -> dict[str, float]:
    """The load now: percent, and megabytes."""
    import psutil

    memory = psutil.virtual_memory()
    values = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(None),
        "system/system_memory_usage_megabytes": memory.used / MEGA,
        "system/system_memory_usage_percentage": memory.percent,
    }
    if gpus:
        nvml, handles = gpus
        for index, handle in enumerate(handles):
            used = nvml.nvmlDeviceGetMemoryInfo(handle)
            values[f"system/gpu_{index}_utilization_percentage"] = nvml.nvmlDeviceGetUtilizationRates(handle).gpu
            values[f"system/gpu_{index}_memory_usage_megabytes"] = used.used / MEGA
            values[f"system/gpu_{index}_power_usage_watts"] = nvml.nvmlDeviceGetPowerUsage(handle) / 1000
    return values


def _gpus() -> tuple[Any, list[Any]] | None:
    """NVML and this machine's devices, where there is a driver and `nvidia-ml-py` is installed."""
    try:
        import pynvml  # pyright: ignore[reportMissingImports]

        pynvml.nvmlInit()
        return pynvml, [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except Exception:  # no module, no driver, no permission: each has an exception of its own
        return None
