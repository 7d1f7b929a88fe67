"""What `zoobench doctor` says of a GPU."""

import contextlib
import json
from types import SimpleNamespace

import psutil
import pynvml
import pytest
import torch
from fake_cuda import fake_cuda
from rich.console import Console
from scripted_nvml import ScriptedGpu, ScriptedNvml

from bench.cli import doctor

PLAIN = {"NVIDIA H100", "80.0 GiB", "575.1", "1980 MHz", "bfloat16 autocast", "--cuda-graph of throughput and compare"}


@pytest.fixture
def examine(monkeypatch, capsys):
    """What is printed of a machine with such a driver."""
    monkeypatch.setattr(doctor, "resolve_device", lambda name: "cuda")
    monkeypatch.setattr(doctor, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 0.0)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())

    def print_all(driver, uuid="aaaa", native=True):
        properties = SimpleNamespace(name="NVIDIA H100", total_memory=80 * 2**30, uuid=uuid)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        with fake_cuda(), driver.installed():
            monkeypatch.setattr(
                torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native
            )
            findings = doctor.examine()
        json.dumps(findings)
        Console(width=200).print(doctor.render(findings))
        return " ".join(capsys.readouterr().out.split())

    return print_all


def test_it_says_what_the_gpu_is_used_for(examine):
    text = examine(ScriptedNvml())
    for words in PLAIN:
        assert words in text, words
    assert "power limit 700 W highest" in text
    assert "part of a GPU no" in text
    assert "chooses kernels by trial while speed is measured" in text
    assert "energy NVML's counter of the whole GPU" in text
    assert "float32 products none; convolutions tf32" in text
    assert "disturbed by nothing that is seen now" in text


def test_it_says_what_holds_the_gpu_back_and_who_else_is_there(examine):
    reasons = pynvml.nvmlClocksEventReasonSwPowerCap
    gpu = ScriptedGpu(power_limit_milliwatts=500_000, pids=(1, 2, 3), reasons=reasons, clock_mhz=1200)
    text = examine(ScriptedNvml([gpu]))
    assert "500 W, below the usual 700 W" in text
    assert "2 other processes computed on this GPU" in text
    assert "its power cap held the GPU back" in text


def test_it_names_what_changes_the_format_of_numbers(examine, monkeypatch):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    text = examine(ScriptedNvml(), native=False)
    assert "NVIDIA_TF32_OVERRIDE=0 goes before" in text
    assert "float32: this GPU only emulates bfloat16" in text


def test_it_says_that_the_device_is_a_part_of_a_gpu(examine):
    whole = ScriptedGpu(uuid="GPU-cccc")
    text = examine(ScriptedNvml([whole, ScriptedGpu(uuid="MIG-dddd", parent=whole)]), uuid="dddd")
    assert "part of a GPU yes (MIG)" in text
    assert "power limit 700 W" in text
    assert "energy not measured" in text


def test_a_driver_that_does_not_answer_is_said(examine):
    text = examine(ScriptedNvml(init_error=pynvml.NVMLError_DriverNotLoaded()))
    assert "Driver Not Loaded" in text
    assert "part of a GPU unknown power limit unknown" in text
    assert "disturbed by what else disturbed the GPU was not seen" in text


def test_a_gpu_that_is_lost_is_said_without_a_traceback(examine, monkeypatch):
    lost = {"gpu": "does not answer: CUDA error: GPU is lost"}
    monkeypatch.setattr("bench.machine._describe_gpu", lambda device: lost)

    def context(device):
        raise RuntimeError("CUDA error: GPU is lost")

    monkeypatch.setattr(torch.cuda, "device", context)  # which the question about bfloat16 enters
    text = examine(ScriptedNvml())
    assert "GPU is lost" in text
    assert "a run would fail until it answers" in text
