"""`python -m student.export`: a file that is read again, or one line and an exit code."""

import pytest

from distill.checkpoint import load_checkpoint
from distill.command import script
from student.export import main

SHIPPED = "pkg://student/weights/demo_student.safetensors"


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["/somewhere/student/export.py", *map(str, arguments)])
    main()


def test_what_is_written_is_read_again(tmp_path, monkeypatch):
    run(monkeypatch, SHIPPED, tmp_path / "out.safetensors")
    original, written = load_checkpoint(SHIPPED, "ema"), load_checkpoint(str(tmp_path / "out.safetensors"), "ema")
    assert (written.config, written.facts) == (original.config, original.facts)
    assert all((written.state[name] == value).all() for name, value in original.state.items())


@pytest.mark.parametrize(
    ("checkpoint", "output", "message"),
    [
        ("nothing.pt", "out.safetensors", "nothing.pt: no such file"),
        ("text.pt", "out.safetensors", "text.pt: not a file of PyTorch weights"),
        (".", "out.safetensors", "a folder"),
        (SHIPPED, "nowhere/out.safetensors", "nowhere/out.safetensors: cannot write it"),
        (SHIPPED, "/proc/out.safetensors", "/proc/out.safetensors: cannot write it"),
        (SHIPPED, "out.pt", "name it out.safetensors"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, monkeypatch, capsys, checkpoint, output, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pt").write_text("text")
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, checkpoint, output)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("export: error: ") and message in line
    assert [file.name for file in tmp_path.iterdir()] == ["text.pt"]


def test_a_script_that_is_interrupted_says_so(capsys):
    @script
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        interrupted()
    assert ended.value.code == 130
    assert capsys.readouterr().err.endswith("error: interrupted\n")


def test_a_defect_of_a_script_keeps_its_traceback():
    @script
    def broken():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
