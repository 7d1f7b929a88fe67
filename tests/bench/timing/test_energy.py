import pytest
import torch

from bench.timing.energy import EnergyMeter, EnergyUnavailableError


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_a_device_without_a_counter_says_so(device):
    with pytest.raises(EnergyUnavailableError, match=device):
        EnergyMeter(torch.device(device))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_machine_without_a_gpu_or_the_package_says_so():
    with pytest.raises(EnergyUnavailableError, match=r"zoobench\[nvml\]|NVML gives no energy"):
        EnergyMeter(torch.device("cuda", 0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_work_takes_energy():
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    meter = EnergyMeter(torch.device("cuda", 0))
    before = meter.joules()
    a = torch.randn(4096, 4096, device="cuda")
    for _ in range(500):
        a = (a @ a).clamp(-1, 1)
    torch.cuda.synchronize()
    assert 0 < meter.joules() - before < 1e5
