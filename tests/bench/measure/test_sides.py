"""What BASE and HEAD may name, and what is said of anything else."""

import pytest

from bench.errors import UserError
from bench.measure.sides import ModelSpec, open_sides, parse_model_spec


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("resnet18", ModelSpec("resnet18")),
        ("resnet18,channels_last=true", ModelSpec("resnet18", channels_last=True)),
        ("timm/resnet18, dtype=bfloat16 ,compile=true", ModelSpec("timm/resnet18", dtype="bfloat16", compile=True)),
        ("deeplab,output_stride=8,drop_rate=0.1", ModelSpec("deeplab", {"output_stride": 8, "drop_rate": 0.1})),
        ("net,norm=batch", ModelSpec("net", {"norm": "batch"})),
    ],
)
def test_model_spec(text, expected):
    assert parse_model_spec(text) == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "names no model"),
        (",channels_last=true", "names no model"),
        ("resnet18,channels_last", "KEY=VALUE"),
        ("resnet18,channels_last=maybe", "true or false"),
        ("resnet18,dtype=float23", "Did you mean 'float32'"),
        ("resnet18,drop_rate=0,drop_rate=1", "stands twice"),
        ("resnet18,input_size=64", "--input-size"),
    ],
)
def test_a_model_spec_that_cannot_be_is_told(text, told):
    with pytest.raises(UserError, match=told):
        parse_model_spec(text)


@pytest.mark.parametrize(
    ("base", "head", "told"),
    [
        ("lenet5", ".", "names a model and"),
        ("git:HEAD", "lenet5,drop_rate=0", "names a model and"),
        ("git:no-such-branch", ".", "git:no-such-branch is no revision"),
        ("git:--help", ".", "is no revision"),
        ("env:/no/such/place", ".", "env:/no/such/place is no virtual environment"),
        ("env:", ".", "is no virtual environment"),
        ("svn:trunk", "lenet5", "'svn:trunk' is no side"),
    ],
)
def test_a_side_that_cannot_be_is_told(base, head, told, repository, monkeypatch):
    monkeypatch.chdir(repository.path)
    with pytest.raises(UserError, match=told), open_sides(base, head):
        pass


def test_outside_a_repository_revisions_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no git repository"), open_sides("git:HEAD", "."):
        pass


def test_a_repository_without_models_is_refused(repository, monkeypatch):
    monkeypatch.chdir(repository.path)
    repository.git("rm", "-rq", "zoo")
    repository.commit("empty")
    with pytest.raises(UserError, match="holds no package zoo"), open_sides("git:HEAD~1", "git:HEAD"):
        pass
    assert repository.worktrees() == [str(repository.path)]


def test_both_sides_are_there_inside_and_gone_afterwards(repository, monkeypatch):
    monkeypatch.chdir(repository.path)
    first = repository.git("rev-parse", "HEAD")
    repository.write("zoo/marker.py", "")
    repository.commit("marker")
    repository.write("zoo/uncommitted.py", "")
    with open_sides("git:HEAD~1", ".") as (base, head):
        assert (base.commit, head.commit) == (first, None)
        assert not repository.exists("zoo/marker.py", base.root)
        assert repository.exists("zoo/uncommitted.py", head.root)
        assert len(repository.worktrees()) == 2
    assert repository.worktrees() == [str(repository.path)]
    assert not repository.exists("", base.root)
