"""System metrics: MLflow's values, under the names of its page, for as long as each device answers."""

import subprocess
import sys
import threading
from types import SimpleNamespace

from cluster.tracking.machine import Sampler, make_monitors, sample


def test_the_values_are_mlflow_s_under_the_names_of_its_page():
    monitors = make_monitors()
    sample(monitors)
    values = sample(monitors)
    assert {
        "system/cpu_utilization_percentage",
        "system/system_memory_usage_megabytes",
        "system/system_memory_usage_percentage",
        "system/disk_usage_percentage",
        "system/network_receive_megabytes",
    } <= set(values)
    assert all(name.startswith("system/") for name in values)
    assert 0 <= values["system/system_memory_usage_percentage"] <= 100


class Device:
    """A monitor of MLflow's kind: averages what it has collected since it was cleared."""

    def __init__(self, readings):
        self.readings, self.collected = list(readings), []

    def clear_metrics(self):
        self.collected.clear()

    def collect_metrics(self):
        reading = self.readings.pop(0)
        if isinstance(reading, Exception):
            raise reading
        self.collected.append(reading)

    def aggregate_metrics(self):
        return {"load": sum(self.collected) / len(self.collected)}


def test_a_sample_is_one_reading_and_no_mean_with_those_before():
    monitors = [Device([10, 30])]
    assert [sample(monitors), sample(monitors)] == [{"system/load": 10}, {"system/load": 30}]


def test_a_device_that_is_lost_is_left_out_and_the_others_go_on():
    monitors = [Device([1, RuntimeError("GPU is lost"), 3]), *make_monitors()]
    assert "system/load" in sample(monitors)
    for _ in range(2):
        values = sample(monitors)
        assert "system/load" not in values
        assert "system/system_memory_usage_megabytes" in values


def test_gpus_are_sampled_where_there_is_a_driver(monkeypatch):
    from mlflow.system_metrics.metrics import gpu_monitor

    class NVMLError(Exception):
        pass

    nvml = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=5e9, total=10e9),
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=40 + handle),
        nvmlDeviceGetPowerUsage=lambda handle: 250_000,
        nvmlDeviceGetEnforcedPowerLimit=lambda handle: 500_000,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(gpu_monitor, "pynvml", nvml, raising=False)
    values = sample(make_monitors())
    assert values["system/gpu_1_utilization_percentage"] == 41
    assert values["system/gpu_0_memory_usage_megabytes"] == 5000
    assert values["system/gpu_1_power_usage_watts"] == 250


def test_a_sampler_sends_until_it_is_stopped():
    seen, enough = [], threading.Event()

    def sink(values):
        seen.append(values)
        if len(seen) == 3:
            enough.set()

    sampler = Sampler(sink, seconds=0.01)
    sampler.start()
    assert enough.wait(60)
    sampler.stop()
    sampler._thread.join(60)
    count = len(seen)
    assert not sampler._thread.is_alive()
    assert len(seen) == count


def test_a_line_that_is_not_tracked_imports_no_mlflow():
    code = "import sys, cluster.tracking.tracker; assert 'mlflow' not in sys.modules and 'psutil' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
