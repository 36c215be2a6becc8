"""System metrics of this machine: MLflow's own monitors, sampled beside the work.

    CPU and memory, disk, network, GPUs ─▶ system/cpu_utilization_percentage, … ─▶ sink, every few seconds

The names are those that MLflow's interface has a page for. MLflow's SystemMetricsMonitor would send them itself, and
lose them while MLflow is away; here they go through the outbox as all else does.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor

PREFIX = "system/"
_log = logging.getLogger(__name__)


class Sampler:
    """Reads the machine's load every few seconds in a thread of its own.

    Args:
        sink: called with each sample, metric -> value: percent, megabytes, watts.
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
        monitors = make_monitors()
        sample(monitors)  # the first reading of the CPU's load only starts its clock
        wait = min(2.0, self._seconds)
        while not self._stop.wait(wait):
            self._sink(sample(monitors))
            wait = self._seconds


def make_monitors() -> list[BaseMetricsMonitor]:
    """MLflow's monitors of what this machine has; GPUs where there are a driver and its Python package."""
    from cluster.tracking.place import import_quietly

    import_quietly()
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    monitors: list[BaseMetricsMonitor] = []
    for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor, ROCMMonitor):
        try:
            monitors.append(kind())
        except Exception as error:  # no package, no driver, no permission: each has an exception of its own
            _log.debug("%s: %s", kind.__name__, error)
    return monitors


def sample(monitors: list[BaseMetricsMonitor]) -> dict[str, float]:
    """One reading of each; a monitor that fails is left out from then on."""
    values: dict[str, float] = {}
    for monitor in list(monitors):
        try:
            monitor.clear_metrics()
            monitor.collect_metrics()
            measured: dict[str, float] = monitor.aggregate_metrics() or {}
            values |= {f"{PREFIX}{name}": value for name, value in measured.items()}
        except Exception as error:  # a device that is reset or lost; the work itself will say so
            _log.warning("%s: %s; system metrics go on without it", type(monitor).__name__, error)
            monitors.remove(monitor)
    return values
