"""What BASE and HEAD may name, and what is said of anything else."""

import pytest

from bench.errors import UserError
from bench.gate.revisions import open_sides, parse_subject
from bench.gate.timing.subject import Subject


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("resnet18", Subject("resnet18")),
        ("resnet18,channels_last=true", Subject("resnet18", channels_last=True)),
        ("timm/resnet18, dtype=bfloat16 ,compile=true", Subject("timm/resnet18", dtype="bfloat16", runtime="compile")),
        ("deeplab,output_stride=8,drop_rate=0.1", Subject("deeplab", {"output_stride": 8, "drop_rate": 0.1})),
        ("resnet18,runtime=openvino,width=2", Subject("resnet18", {"width": 2}, runtime="openvino")),
        ("resnet18,compile=false,runtime=eager", Subject("resnet18")),
        ("net,norm=batch", Subject("net", {"norm": "batch"})),
    ],
)
def test_a_model_with_options(text, expected):
    assert parse_subject(text) == expected


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", "names no model"),
        (",channels_last=true", "names no model"),
        ("resnet18,channels_last", "OPTION=VALUE"),
        ("resnet18,channels_last=maybe", "true or false"),
        ("resnet18,dtype=float23", "Did you mean 'float32'"),
        ("resnet18,runtime=onnx_runtime", "Did you mean 'onnxruntime'"),
        ("resnet18,compile=true,runtime=openvino", "another runtime is given"),
        ("resnet18,drop_rate=0,drop_rate=1", "given twice"),
        ("resnet18,input_size=64", "--input-size"),
    ],
)
def test_a_model_that_cannot_be_is_refused(text, shown):
    with pytest.raises(UserError, match=shown):
        parse_subject(text)


@pytest.mark.parametrize(
    ("base", "head", "shown"),
    [
        ("lenet5", ".", "names a model and"),
        ("git:HEAD", "lenet5,drop_rate=0", "names a model and"),
        ("git:no-such-branch", ".", "git:no-such-branch is no revision"),
        ("git:--help", ".", "is no revision"),
        ("env:/no/such/place", ".", "env:/no/such/place is no virtual environment"),
        ("env:", ".", "is no virtual environment"),
        ("env:/no/such/place@HEAD", ".", "env:/no/such/place is no virtual environment"),
        ("svn:trunk", "lenet5", "'svn:trunk' is no side"),
    ],
)
def test_a_side_that_cannot_be_is_refused(base, head, shown, repository, monkeypatch):
    monkeypatch.chdir(repository.path)
    with pytest.raises(UserError, match=shown), open_sides(base, head):
        pass


def test_an_environment_may_say_of_which_revision_it_is(repository, monkeypatch, tmp_path):
    monkeypatch.chdir(repository.path)
    for name in ("new", "old@2"):  # a folder may have the sign in its name
        (tmp_path / name / "bin").mkdir(parents=True)
        (tmp_path / name / "bin" / "python").touch()
    with open_sides(f"env:{tmp_path}/new@HEAD", f"env:{tmp_path}/old@2") as (new, old):
        assert new.commit == repository.git("rev-parse", "HEAD")
        assert old.commit is None
        assert [side.interpreter for side in (new, old)] == [
            f"{tmp_path}/{name}/bin/python" for name in ("new", "old@2")
        ]
    with pytest.raises(UserError, match="nothing is no revision"), open_sides(f"env:{tmp_path}/new@nothing", "."):
        pass


def test_outside_a_repository_revisions_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no git repository"), open_sides("git:HEAD", "."):
        pass


def test_a_repository_without_models_is_refused(repository, monkeypatch):
    monkeypatch.chdir(repository.path)
    repository.git("rm", "-rq", "zoo")
    repository.commit("empty")
    with pytest.raises(UserError, match="has no package zoo"), open_sides("git:HEAD~1", "git:HEAD"):
        pass
    assert repository.worktrees() == [str(repository.path)]


def test_both_sides_are_there_inside_and_gone_afterwards(repository, monkeypatch):
    monkeypatch.chdir(repository.path)
    first = repository.git("rev-parse", "HEAD")
    repository.write("zoo/marker.py", "")
    repository.commit("marker")
    repository.write("zoo/uncommitted.py", "")
    with open_sides("git:HEAD~1", ".") as (base, head):
        second = repository.git("rev-parse", "HEAD")
        assert (base.commit, head.commit) == (first, second + "+")  # with what is not committed
        assert not repository.exists("zoo/marker.py", base.root)
        assert repository.exists("zoo/uncommitted.py", head.root)
        assert repository.exists("zoo/registry.py", base.root)
    assert not repository.exists("", base.root)
