"""A generate run that is killed anywhere ends, after a resume, in the same bytes; and resumes that are wrong are refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moldiff import generate as runs
from moldiff.errors import BadRequest, DamagedFile, MoldiffError
from moldiff.generator import Generator
from moldiff.journal import JOURNAL, JournaledFiles
from moldiff.output import MoleculeOutput

SDF, CSV = MoleculeOutput.files
FILES = (SDF, CSV, runs.METRICS, runs.RUN)
N, BATCH = 10, 3


class Killed(BaseException):
    """Stands for kill -9: nothing after it runs."""


@pytest.fixture(scope="module")
def generator(tiny_model):
    return Generator.from_pretrained(tiny_model, device="cpu")


def go(generator: Generator, out: Path, resume: bool = False, batch: int = BATCH, **options):
    request = generator.request(N, seed=1, **options)
    folder = runs.open_run(out, request, "cpu", resume)
    return runs.run(generator, request, folder, batch)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def whole(generator, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    go(generator, out)
    return out


def test_a_run_leaves_these_files_and_no_journal(whole):
    assert sorted(p.name for p in whole.iterdir()) == sorted([*FILES, runs.TIMING])
    assert (whole / SDF).read_text().count("$$$$") == N
    assert len((whole / CSV).read_text().splitlines()) == N + 1
    assert json.loads((whole / runs.METRICS).read_text())["n"] == N


# Each batch makes three writes: samples.sdf, samples.csv, the journal.
@pytest.mark.parametrize("point", range(12))
def test_a_kill_at_any_write_and_a_resume_give_the_same_bytes(generator, whole, tmp_path, monkeypatch, point):
    writes, write = [0], JournaledFiles._write

    def killing(file, data):
        writes[0] += 1
        if writes[0] == point + 1:
            write(file, data[: len(data) // 2])
            raise Killed
        write(file, data)

    monkeypatch.setattr(JournaledFiles, "_write", staticmethod(killing))
    with pytest.raises(Killed):
        go(generator, tmp_path / "run")
    monkeypatch.undo()
    assert not (tmp_path / "run" / runs.METRICS).exists()
    go(generator, tmp_path / "run", resume=True, batch=4)
    assert contents(tmp_path / "run") == contents(whole)


def test_what_was_written_is_not_drawn_again(generator, tmp_path, monkeypatch):
    drawn, draw = [], Generator.draw

    def spying(self, request, indices, *rest):
        if len(drawn) == 2:
            raise Killed
        drawn.append(list(indices))
        return draw(self, request, indices, *rest)

    monkeypatch.setattr(Generator, "draw", spying)
    with pytest.raises(Killed):
        go(generator, tmp_path / "run")
    drawn.clear()
    result = go(generator, tmp_path / "run", resume=True, batch=100)
    assert drawn == [[6, 7, 8, 9]] and result.drawn == 4


def test_left_overs_of_atomic_writes_are_cleared(generator, whole, tmp_path):
    out = tmp_path / "run"
    go(generator, out)
    (out / runs.METRICS).unlink()
    (out / ".metrics.json.abcd").write_text("{")
    (out / JOURNAL).write_bytes(b"")  # killed before the first batch was complete
    go(generator, out, resume=True)
    assert contents(out) == contents(whole) and sorted(p.name for p in out.iterdir()) == sorted([*FILES, runs.TIMING])


def test_kill_minus_9_of_the_real_command(whole, tiny_model, tmp_path):
    out = tmp_path / "run"
    command = [
        sys.executable, "-m", "moldiff.cli", "generate", "--model", str(tiny_model), "-n", str(N), "--seed", "1",
        "--out", str(out), "--batch-size", "1", "--device", "cpu",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not ((out / JOURNAL).exists() and (out / JOURNAL).read_bytes().count(b"\n") >= 2):
        assert process.poll() is None and time.monotonic() < until, "the run ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / runs.METRICS).exists()
    done = subprocess.run([*command, "--resume"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, expected = contents(out), contents(whole)
    # run.yaml also names the model as it was given
    assert found[runs.RUN].replace(str(tiny_model).encode(), b"tiny") == expected[runs.RUN]
    del found[runs.RUN], expected[runs.RUN]
    assert found == expected


def test_a_folder_that_is_not_empty_needs_resume(generator, whole, tmp_path):
    with pytest.raises(BadRequest, match="not empty"):
        go(generator, whole)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadRequest, match="not empty"):
        go(generator, tmp_path)
    with pytest.raises(BadRequest, match="nothing to resume"):
        go(generator, tmp_path, resume=True)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("options", [{"steps": 6}, {"sampler": "ddim"}, {"size": 5}, {"temperature": 0.5}])
def test_a_resume_with_other_settings_is_refused(generator, whole, options):
    before = contents(whole)
    with pytest.raises(BadRequest, match="resume with the same settings"):
        go(generator, whole, resume=True, **options)
    assert contents(whole) == before


def test_resume_of_a_new_folder_starts_and_of_a_finished_one_reads(generator, whole, tmp_path):
    go(generator, tmp_path / "new", resume=True)
    assert contents(tmp_path / "new") == contents(whole)
    result = runs.read_result(tmp_path / "new")
    assert result.n == N and set(result.metrics) and result.drawn == 0


def test_files_that_were_cut_are_noticed(generator, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_finish", lambda _: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        go(generator, tmp_path / "run")
    monkeypatch.undo()
    with open(tmp_path / "run" / SDF, "r+b") as file:
        file.truncate(100)
    with pytest.raises(DamagedFile, match="shorter"):
        go(generator, tmp_path / "run", resume=True)


def test_two_runs_do_not_share_a_folder(generator, tmp_path):
    request = generator.request(N)
    folder = runs.open_run(tmp_path / "run", request, "cpu", False)
    with JournaledFiles(folder, (SDF, CSV)), pytest.raises(BadRequest, match="another run"):
        runs.run(generator, request, folder)


def test_a_full_disk_is_one_sentence_and_loses_nothing(generator, whole, tmp_path, monkeypatch):
    writes, write = [0], JournaledFiles._write

    def full(file, data):
        writes[0] += 1
        if writes[0] > 4:
            write(file, data[:10])
            raise OSError(28, "No space left on device")
        write(file, data)

    monkeypatch.setattr(JournaledFiles, "_write", staticmethod(full))
    with pytest.raises(MoldiffError, match=r"No space left on device.*--resume"):
        go(generator, tmp_path / "run")
    monkeypatch.undo()
    go(generator, tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == contents(whole)


def test_a_place_that_cannot_be_written_is_refused(generator, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadRequest, match="is a file"):
        go(generator, tmp_path / "file")
    with pytest.raises(BadRequest, match="can't write"):
        go(generator, tmp_path / "file" / "below")
