"""The command line: it starts fast, does what the library does, and answers bad requests with one sentence and exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml

from moldiff import cli
from moldiff.model_store import ModelInfo


@pytest.fixture
def run(capsys, monkeypatch):
    """Call the command line; gives exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main([str(a) for a in arguments])
        out = capsys.readouterr()
        return int(left.value.code or 0), out.out, out.err

    return call


@pytest.fixture
def no_loading(monkeypatch):
    """Make loading weights a failure of the test."""

    def refuse(self):
        raise AssertionError("the model was loaded before the request was checked")

    monkeypatch.setattr(ModelInfo, "denoiser", refuse)


def test_help_imports_nothing_heavy():
    code = (
        "import sys, moldiff.cli as c\n"
        "try: c.main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'rdkit', 'lightning', 'e3nn', 'pandas', 'matplotlib', 'pymatgen', 'ase', 'torch_geometric'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "[]" and "generate" in done.stdout


def test_generate_writes_files_and_shows_the_table(run, tiny_model, tmp_path):
    out = tmp_path / "out"
    options = ["--steps", 3, "--device", "cpu", "--size", "5-8"]
    code, shown, err = run("generate", "--model", tiny_model, "-n", 4, "--out", out, *options)
    assert code == 0, err
    for words in ("valid and connected", "unique of valid", "atom stability", "molecule stability", "real data", "4 samples in"):
        assert words in shown
    assert sorted(p.name for p in out.iterdir()) == ["metrics.json", "run.yaml", "samples.csv", "samples.sdf", "timing.json"]
    settings = yaml.safe_load((out / "run.yaml").read_text())
    assert settings["settings"]["steps"] == 3 and settings["settings"]["size"] == "5-8" and "torch" in settings["versions"]
    assert len(settings["settings"]["weights_sha256"]) == 64
    assert {"validity", "valid_connected"} <= set(json.loads((out / "metrics.json").read_text())["metrics"])
    code, _, err = run("generate", "--model", tiny_model, "-n", 4, "--out", out)
    assert code == 2 and err == f"error: {out} is not empty; choose another folder or go on with --resume\n"
    code, shown, _ = run("generate", "--model", tiny_model, "-n", 4, "--out", out, *options, "--resume")
    assert code == 0 and "nothing was left to draw" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-n", 0], "n must be at least 1"),
        (["-n", "many"], "valid integer"),
        (["--size", "99"], "outside what tiny was trained on (3 to 9 atoms)"),
        (["--size", "x"], "size must be a number of atoms or a range"),
        (["--steps", 1], "steps must be at least 2"),
        (["--sampler", "hein"], "did you mean 'heun'"),
        (["--option", "eta"], "--option takes KEY=NUMBER"),
        (["--option", "churn=3"], "unknown option of sampler"),
        (["--grid", "carras"], "did you mean 'karras'"),
        (["--temperature", "-1"], "temperature must be a positive number"),
        (["--batch-size", "none"], "batch size must be 'auto' or a whole number"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--stepz", 3], "--stepz"),
        (["--model", "qm99"], "unknown model 'qm99'"),
        (["--model", "no/such/folder"], "no such model folder"),
    ],
)
def test_bad_requests_are_one_sentence_before_the_model_is_loaded(run, no_loading, tiny_model, tmp_path, arguments, words):
    out = tmp_path / "out"
    code, _, err = run("generate", "--model", tiny_model, "-n", 3, "--out", out, *arguments)
    assert code == 2 and err.startswith("error: ") and words in err and len(err.strip().splitlines()) == 1
    assert not out.exists()


def test_a_settings_file_says_what_options_do_and_the_command_line_goes_before(run, tiny_model, tmp_path):
    asked = tmp_path / "asked.yaml"
    values = {"model": str(tiny_model), "n": 5, "steps": 3, "device": "cpu", "n-atoms": [5, 8], "exclude": ["N"]}
    values["options"] = {"eta": 0.5}
    asked.write_text(yaml.safe_dump(values))
    code, _, err = run("generate", asked, "-n", 2, "--out", tmp_path / "file")
    assert code == 0, err
    options = ["-n", 2, "--steps", 3, "--device", "cpu", "--size", "5-8", "--exclude", "N", "--option", "eta=0.5"]
    assert run("generate", "--model", tiny_model, *options, "--out", tmp_path / "line")[0] == 0
    for name in ("samples.sdf", "run.yaml"):
        assert (tmp_path / "file" / name).read_text() == (tmp_path / "line" / name).read_text()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stepz: 3", "unknown option in"),
        ("- 3", "must hold options and their values"),
        ("steps: [1", "is not valid YAML"),
        ("steps: many", "valid integer"),
        ("size: {a: 1}", "size takes one value"),
        ("conditions: {gap: 3}", "trained without conditions"),
    ],
)
def test_a_settings_file_that_is_wrong_is_refused_in_a_sentence(run, no_loading, tiny_model, tmp_path, text, words):
    asked = tmp_path / "asked.yaml"
    asked.write_text(text)
    code, _, err = run("generate", asked, "--model", tiny_model, "--out", tmp_path / "out")
    assert code == 2 and err.startswith("error: ") and words in err and len(err.strip().splitlines()) == 1
    code, _, err = run("generate", tmp_path / "none.yaml", "--out", tmp_path / "out")
    assert code == 2 and "can't read" in err and not (tmp_path / "out").exists()


def test_an_unwritable_folder_and_a_damaged_model_are_found_before_loading(run, no_loading, tiny_model, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run("generate", "--model", tiny_model, "-n", 3, "--out", tmp_path / "file" / "x")
    assert code == 2 and "can't write" in err
    (tmp_path / "weights.ckpt").write_bytes(b"\x80\x04")
    code, _, err = run("generate", "--model", tmp_path / "weights.ckpt", "-n", 3, "--out", tmp_path / "x")
    assert code == 2 and "pickle" in err


def test_a_fault_of_the_program_is_one_line_unless_asked(run, tiny_model, tmp_path, monkeypatch):
    def broken(self):
        raise ZeroDivisionError("a fault\nof two lines")

    monkeypatch.setattr(ModelInfo, "denoiser", broken)
    arguments = ["generate", "--model", tiny_model, "-n", 3, "--out", tmp_path / "x", "--resume"]
    code, _, err = run(*arguments)
    assert code == 1 and err == "error: ZeroDivisionError: a fault (MOLDIFF_DEBUG=1 shows where)\n"
    monkeypatch.setenv("MOLDIFF_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        cli.main([str(a) for a in arguments])


def test_report_of_a_run(run, tiny_model, tmp_path):
    out = tmp_path / "out"
    assert run("report", tmp_path)[0] == 2
    assert run("generate", "--model", tiny_model, "-n", 3, "--out", out, "--device", "cpu")[0] == 0
    code, shown, err = run("report", out)
    assert code == 0 and "report.html" in shown, err
    html = (out / "report.html").read_text()
    assert "tiny" in html and len(html) > 10_000
    (out / "metrics.json").unlink()
    code, _, err = run("report", out)
    assert code == 2 and "not finished" in err


def test_models_info_and_list(run, tiny_model, monkeypatch):
    code, shown, _ = run("models", "info", tiny_model)
    assert code == 0 and "molecules of H, C, N, O" in shown and "SHA-256" in shown
    monkeypatch.setattr("moldiff.model_store.SHIPPED", tiny_model.parent)
    code, shown, _ = run("models", "list")
    assert code == 0 and "tiny" in shown and "3-9" in shown


def test_data_commands(run, tmp_path, monkeypatch):
    monkeypatch.setenv("MOLDIFF_DATA", str(tmp_path / "data"))
    (tmp_path / "mine.smi").write_text("CCO ethanol\nCC ethane\nCN amine\nC methane\n")
    code, _, err = run("data", "prepare", tmp_path / "mine.smi")
    assert code == 2 and "--name" in err
    code, shown, err = run("data", "prepare", tmp_path / "mine.smi", "--name", "mine", "--workers", 0)
    assert code == 0, err
    code, again, _ = run("data", "info", "mine")
    assert code == 0 and "H 21" in again and "H 21" in shown
    code, _, err = run("data", "info", "mein")
    assert code == 2 and "did you mean 'mine'" in err


def test_train_refuses_before_it_computes(run, tmp_path, tiny_data):
    from conftest import tiny_config

    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_config().to_yaml())
    cases = {
        ("--set", "training.lr=-1"): "training.lr",
        ("--set", "training.lrr=1"): "did you mean 'lr'",
        ("--data", "nowhere"): "nowhere",
        ("--resume",): "nothing to resume",
        ("--set", "max_atoms=6"): "max_atoms is 6",
        ("--devices", "two"): "devices must be",
    }
    for extra, words in cases.items():
        data = [] if "--data" in extra else ["--data", tiny_data]
        code, _, err = run("train", path, "--out", tmp_path / "run", *data, "--set", "training.max_steps=1", *extra)
        assert code == 2 and words in err and len(err.strip().splitlines()) == 1, err
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "thesis.tex").write_text("x")
    code, _, err = run("train", path, "--out", tmp_path / "run", "--data", tiny_data)
    assert code == 2 and "not empty" in err
