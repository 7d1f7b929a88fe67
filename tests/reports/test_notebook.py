"""The notebook in results/ runs from top to bottom, and shows what it says of the published records."""

import base64
import io
import os
from pathlib import Path

import pytest
from PIL import Image

NOTEBOOK = Path(__file__).parents[2] / "results" / "explore.ipynb"


def texts_of(cell) -> list[str]:
    """What a cell has put out, its pictures aside."""
    return [str(output.get("data", {}).get("text/plain", "")) for output in cell.get("outputs", [])]


@pytest.mark.parametrize("which", ["zoo", "nothing", "published"])
def test_the_notebook_runs(which: str, zoo_results, tmp_path, monkeypatch) -> None:
    try:
        import nbformat
        from nbclient import NotebookClient
    except ImportError:
        reason = "no nbclient: install nbclient and ipykernel"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    if which == "published":  # by whoever opens it where it is
        monkeypatch.delenv("ZOOBENCH_RESULTS", raising=False)
    else:
        monkeypatch.setenv("ZOOBENCH_RESULTS", str(zoo_results if which == "zoo" else tmp_path / "none"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    kept = [texts_of(cell) for cell in notebook.cells]
    path = NOTEBOOK.parent if which == "published" else tmp_path
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(path)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output for output in shown if "image/png" in output.get("data", {})]
    assert len(pictures) == 3
    if which == "published":
        assert [texts_of(cell) for cell in notebook.cells] == kept, "run `make notebook`: it shows other records"
        texts = "".join(map(str, kept))
        for model in ("lenet5", "simple_cnn", "resnet20", "mobilenet_v1"):
            assert model in texts
        sizes = [Image.open(io.BytesIO(base64.b64decode(each["data"]["image/png"]))).size for each in pictures]
        assert all(width >= 1000 and width > height for width, height in sizes)
