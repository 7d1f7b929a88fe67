"""A worker's answers, where others write to its standard output."""

import os
import sys

from bench.gate.timing.process import Setting, WorkerProcess


def test_what_others_print_does_not_break_the_answers(tmp_path, monkeypatch):
    noise = "import os\nprint('{\"error\": \"noise\"}', flush=True)\nos.write(1, b'noise\\n')\n"
    (tmp_path / "sitecustomize.py").write_text(noise)
    (tmp_path / "json.py").write_text("raise ImportError('the current folder was searched')\n")
    monkeypatch.chdir(tmp_path)
    # The current folder, by a relative and an empty entry; the absolute one is for its sitecustomize.
    (tmp_path / "site").mkdir()
    (tmp_path / "sitecustomize.py").rename(tmp_path / "site" / "sitecustomize.py")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", ".", str(tmp_path / "site")]))
    with WorkerProcess(sys.executable, Setting()) as worker:
        assert worker.ask("drop") == {}
        assert worker._process.errors(1000).count("noise") == 2
