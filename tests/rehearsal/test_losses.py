"""Runs on a GPU that would be lost, as far as they can be rehearsed without one."""

import json
import subprocess
import sys
import warnings

import pytest
import torch
from fake_cuda import DEVICE, fake_cuda
from torch import nn

import zoo
from bench.config import Budget, Recipe, load_plan
from bench.data.augment import BatchStream, Normalization
from bench.device import is_out_of_memory, repeatable_settings
from bench.machine import describe_machine
from bench.records import RunFailure
from bench.runs import network_run, resolve
from bench.runs.determinism import deterministic_algorithms
from bench.runs.job_description import Job
from bench.runs.ledger import died
from bench.runs.stages import Run
from bench.training import loop
from bench.training.checkpoint import Checkpoints
from bench.training.evaluation import evaluate
from bench.training.loop import fit
from bench.training.optim import create_optimizer
from bench.training.step import create_timed_step, fitting_step, warm_up

MEMORY_ERRORS = [  # as users have reported them
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input.",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "Unable to find an engine to execute this computation",
    "GET was unable to find an engine to execute this computation",
]
OTHER_ERRORS = [
    "CUDA error: device-side assert triggered",
    "CUDA error: an illegal memory access was encountered",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "mat1 and mat2 shapes cannot be multiplied",
]


@pytest.mark.parametrize("message", MEMORY_ERRORS)
def test_memory_that_does_not_suffice_is_recognised(message):
    assert is_out_of_memory(RuntimeError(message))
    assert is_out_of_memory(torch.AcceleratorError(message))


@pytest.mark.parametrize("message", OTHER_ERRORS)
def test_other_errors_are_not_taken_for_it(message):
    assert not is_out_of_memory(RuntimeError(message))


class Hungry(nn.Module):
    """A network for whose memory more than ``at_most`` images are too many."""

    def __init__(self, at_most, spoils_input=False):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5))
        self.at_most, self.spoils_input, self.seen = at_most, spoils_input, []

    def forward(self, x):
        if self.spoils_input:
            x.mul_(2)
        if len(x) > self.at_most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.seen.append(len(x))
        return self.net(x)


def stream(device=None, count=20, size=8):
    images = torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % 5
    normalization = Normalization((120.0,) * 3, (60.0,) * 3)
    return BatchStream(images.to(torch.uint8), labels, 10, normalization, device=device or torch.device("cpu"))


def test_evaluation_takes_as_many_images_as_fit_and_finds_the_same():
    torch.manual_seed(0)
    model = Hungry(at_most=100)
    whole = evaluate(model, stream(), 5, test_flip=True)
    model.at_most, model.seen = 3, []
    in_parts = evaluate(model, stream(), 5, test_flip=True)
    assert in_parts.confusion == whole.confusion
    assert in_parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert max(model.seen) == 3  # 10, 5, 3
    assert sum(model.seen) == 2 * 20
    model.at_most = 0
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(model, stream(), 5)


def test_evaluation_does_not_go_on_with_images_that_the_network_has_changed():
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(Hungry(at_most=3, spoils_input=True), stream(), 5)


def test_operators_without_a_deterministic_form_are_named_and_nothing_stays_set():
    flags = []
    with pytest.warns(UserWarning, match="another matter"), deterministic_algorithms("train", flags):  # noqa: PT031
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
        for _ in range(3):
            torch.zeros(4).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))  # has none on any device
        warnings.warn("another matter", stacklevel=1)
    (flag,) = flags
    assert (flag.kind, flag.phase) == ("not_deterministic", "train")
    assert "put_" in flag.message
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic
    with deterministic_algorithms("test", flags):
        torch.zeros(4).add_(1)
    assert len(flags) == 1


def test_cublas_is_told_to_repeat_itself_unless_the_user_has_said_how(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert repeatable_settings("cuda:1") == {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    assert repeatable_settings("cpu") == {}
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    assert repeatable_settings("cuda") == {"CUBLAS_WORKSPACE_CONFIG": ":16:8"}


def test_a_checkpoint_keeps_the_random_state_of_the_runs_own_gpu(monkeypatch, tmp_path):
    saved, restored = [], []
    with fake_cuda():
        monkeypatch.setattr(Checkpoints, "save", lambda self, step, weights, state: saved.append(state))
        monkeypatch.setattr(Checkpoints, "load", lambda self: None)
        monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device=None: f"state of {device}")
        monkeypatch.setattr(torch.random, "fork_rng", lambda devices: warnings.catch_warnings())
        monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device=None: restored.append((state, device)))
        with DEVICE:
            model = zoo.create_model("lenet5", 5, 32)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "backward", lambda loss: None)
            options = {"checkpoints": Checkpoints(tmp_path)}
            optimizer = create_optimizer(model, Recipe(lr=0.1), 0.1, 0.0)
            fit(model, optimizer, stream(DEVICE, size=32), Recipe(lr=0.1), Budget(epochs=1), **options)
            weights = model.state_dict()
            monkeypatch.setattr(Checkpoints, "load", lambda self: (weights, saved[-1]))
            fit(model, optimizer, stream(DEVICE, size=32), Recipe(lr=0.1), Budget(epochs=1), **options)
    assert saved[0]["cuda_rng"] == f"state of {DEVICE}"
    assert restored == [(f"state of {DEVICE}", DEVICE)]


def test_a_checkpoint_of_a_gpu_is_read_where_there_is_none(monkeypatch, tmp_path):
    """Its tensors go to the host first: the next machine's GPU may have another number."""
    checkpoints = Checkpoints(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:7")
        checkpoints.save(3, {"weight": torch.ones(2)}, {"momentum": torch.full((2,), 5.0)})
    weights, state = checkpoints.load()
    assert state["momentum"].device.type == weights["weight"].device.type == "cpu"
    assert state["momentum"].tolist() == [5.0, 5.0]


class MakesABuffer(nn.Module):
    """A foreign network that makes in its first pass what it goes on with."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.scale = nn.Conv2d(3, 4, 3), nn.Linear(4, 5), None

    def forward(self, x):
        maps = self.conv(x)
        if self.scale is None:
            self.scale = torch.ones_like(maps[:1].detach())
        return self.fc((maps * self.scale).mean((2, 3)))


def test_what_a_network_makes_while_it_is_evaluated_can_be_trained_with():
    """Which tensors made in inference mode cannot."""
    recipe = Recipe(lr=0.1)
    model = MakesABuffer()
    evaluate(model, stream(), 5)
    assert not model.scale.is_inference()
    fit(model, create_optimizer(model, recipe, 0.1, 0.0), stream(), recipe, Budget(epochs=1))
    timed = MakesABuffer()
    create_timed_step(timed, timed, torch.randn(4, 3, 8, 8), False, recipe=recipe)()


def test_what_is_compiled_for_another_set_of_gradients_is_compiled_off_the_clock(monkeypatch):
    def state(model):
        trained = tuple(parameter.requires_grad for parameter in model.parameters())
        return trained, tuple(module.training for module in model.modules())

    warmed, stepped, on_clock = [], [], []

    def warm(model, *arguments):
        warmed.append(state(model))
        assert not on_clock
        warm_up(model, *arguments)
        assert state(model) == warmed[-1]

    def step(model, *arguments):
        stepped.append(state(model))
        assert stepped[-1] == warmed[-1]
        return fitting_step(model, *arguments)

    monkeypatch.setattr(loop, "warm_up", warm)
    monkeypatch.setattr(loop, "fitting_step", step)
    resume, pause = loop.Clock.resume, loop.Clock.pause
    monkeypatch.setattr(loop.Clock, "resume", lambda clock: (resume(clock), on_clock.append(True)))
    monkeypatch.setattr(loop.Clock, "pause", lambda clock: (pause(clock), on_clock.clear()))
    model, recipe = Hungry(at_most=100).train(), Recipe(lr=0.1, head_epochs=2, head_lr=0.1)
    optimizer = create_optimizer(model, recipe, 0.1, 0.0)
    fit(model, optimizer, stream(), recipe, Budget(epochs=4), head=("net.3",))
    assert len(stepped) == 4 * 2
    assert len(set(stepped)) == 2
    assert len(warmed) == 3


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_that_a_gpu_only_emulates_is_not_the_default(native, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", lambda device: warnings.catch_warnings())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert resolve.training_defaults("cuda").autocast is native
    assert not resolve.training_defaults("cpu").autocast


def test_a_gpu_that_does_not_answer_is_described_as_that(monkeypatch):
    def lost(device):
        raise RuntimeError("CUDA error: GPU is lost")

    monkeypatch.setattr(torch.cuda, "get_device_properties", lost)
    machine = describe_machine("cuda:1")
    assert machine["device"] == "cuda:1"
    assert machine["gpu"] == "does not answer: CUDA error: GPU is lost"


@pytest.mark.parametrize(
    ("autocast", "words"),
    [(None, "float32 was used, unless"), (False, "float32 was used"), (True, "emulates it, slowly")],
)
def test_a_record_says_that_a_gpu_lacks_bfloat16_and_which_gpu_a_run_died_on(autocast, words, monkeypatch, tmp_path):
    monkeypatch.setattr(resolve, "resolve_device", lambda name: "cuda:0")
    for module in (resolve, network_run):
        monkeypatch.setattr(module, "multiplies_bfloat16", lambda device: False)
    overrides = {"models": ["lenet5"]} if autocast is None else {"models": ["lenet5"], "autocast": autocast}
    (config,) = resolve.resolve_plan(load_plan("smoke", overrides), data_dir=None)
    job = Job(config=config, results=str(tmp_path))
    run = Run(job, lambda event: None)
    run._use_device(config.device, torch.get_num_threads())
    ((kind, message),) = [(flag.kind, flag.message) for flag in run.flags]
    assert kind == "no_bfloat16"
    assert words in message
    assert died(job, "killed", RunFailure(kind="SIGKILL", message="")).environment["machine"]["device"] == "cuda:0"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_a_real_gpu_repeats_a_training_to_the_last_bit(tmp_path):
    command = [sys.executable, "-m", "zoobench", "run", "smoke", "--models", "resnet20", "--device", "cuda"]
    hashes = set()
    for name in ("a", "b"):
        done = subprocess.run([*command, "--results", str(tmp_path / name)], check=True, capture_output=True, text=True)
        assert done.returncode == 0
        (record,) = (tmp_path / name).rglob("runs/*.json")
        hashes.add(json.loads(record.read_text())["metrics"]["weights_sha256"])
    assert len(hashes) == 1


def test_the_plan_for_a_gpu_is_taken_where_the_device_is_one(monkeypatch):
    plan = load_plan("cifar10", {"models": ["lenet5"], "data": "digits", "seeds": [0]})
    monkeypatch.setattr(resolve, "resolve_device", lambda name: "cuda")
    monkeypatch.setattr(resolve, "multiplies_bfloat16", lambda device: True)
    (run,) = resolve.resolve_plan(plan, data_dir=None)
    assert (run.device, run.recipe.batch_size, run.measure.batch_size, run.autocast) == ("cuda", 512, 512, "auto")
    assert run.lr_peak == pytest.approx(0.05 * 512 / 128)
    monkeypatch.setattr(resolve, "resolve_device", lambda name: "cpu")
    (run,) = resolve.resolve_plan(plan, data_dir=None)
    assert (run.device, run.recipe.batch_size, run.measure.batch_size) == ("cpu", 32, 128)
