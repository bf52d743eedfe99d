"""The command as a whole: help without heavy imports, wrong usage, versions, extras, completion."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import constraints
import fiber
from fiber.cli import main as command

REPO = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "transformers", "numpy", "PIL", "deepspeed", "pydantic"}


def test_help_of_every_verb_imports_nothing_heavy() -> None:
    """In one new process: the overview, then every verb's help."""
    script = (
        "import contextlib, io, sys\n"
        "from fiber.cli import main\n"
        "for words in [['--help'], *[[verb.name, '--help'] for verb in main.VERBS]]:\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "        main.main(words)\n"
        "    assert len(out.getvalue()) > 100, words\n"
        f"    heavy = {HEAVY} & set(sys.modules)\n"
        "    assert not heavy, (words, heavy)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_every_verb_teaches_by_an_example(capsys: pytest.CaptureFixture) -> None:
    for verb in command.VERBS:
        assert f"    fiber {verb.name} " in command.module(verb.name).DESCRIPTION or verb.name == "completion"
    assert {verb.group for verb in command.VERBS} == set(command.EXAMPLES)
    for status in ("  0  done", "  75 a run was stopped"):
        assert status in command.overview()
    for example in command.EXAMPLES.values():
        assert example.split()[1] in [verb.name for verb in command.VERBS]


def test_version(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        command.main(["--version"])
    assert (end.value.code, capsys.readouterr().out) == (0, f"fiber {fiber.__version__}\n")
    assert f"version: {fiber.__version__}\n" in (REPO / "CITATION.cff").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tain"], "error: no verb tain; did you mean train?"),
        (["detect", "--modle", "x"], "usage: fiber detect"),
        (["match", "--model", "m", "--image", "i", "--text", "t", "a=b"], "unrecognized arguments: a=b"),
        (["train", "x", "--ranks", "0"], "argument --ranks: 0 is not a whole number of at least 1"),
    ],
)
def test_wrong_usage_is_status_2(words: list[str], said: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        command.main(words)
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_overrides_stand_before_and_behind_options() -> None:
    arguments = command.parse(["train", "mine.yaml", "a=1", "--ranks", "2", "b.c=3"])
    assert (arguments.overrides, arguments.ranks) == (["a=1", "b.c=3"], 2)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    needs = [
        "numpy>=1.26",
        'onnx>=1.17; extra == "onnx"',
        'onnxruntime>=1.20; extra == "onnx"',
        'wandb; extra == "train"',
    ]
    monkeypatch.setattr(metadata, "requires", lambda _: needs)

    def run(name: str) -> str:
        def fail(_: object) -> int:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        monkeypatch.setattr(command.module("config"), "run", fail)
        assert command.main(["config", "list"]) == 1
        return capsys.readouterr().err

    assert run("wandb.sdk") == 'error: wandb is not installed: pip install "fiber-vl[train]"\n'
    assert run("onnxruntime") == 'error: onnxruntime is not installed: pip install "fiber-vl[onnx]"\n'
    assert run("numpy") == "error: numpy is not installed: pip install numpy\n"
    with pytest.raises(ModuleNotFoundError):  # a fault of ours, not of the installation
        run("fiber.nothing")


def test_bash_completes_verbs_options_and_configurations(tmp_path: Path) -> None:
    script = tmp_path / "fiber.bash"
    with script.open("w") as out:
        subprocess.run([sys.executable, "-m", "fiber.cli.main", "completion", "bash"], stdout=out, check=True)

    def completed(*words: str) -> list[str]:
        ask = (
            'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _fiber; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(
            ["bash", "-c", ask, "-", str(script), *words], capture_output=True, text=True, check=True, cwd=tmp_path
        )
        return done.stdout.split()

    assert completed("fiber", "tra") == ["train"]
    assert completed("fiber", "train", "stage2/odinw_") == ["stage2/odinw_prompt"]
    assert completed("fiber", "detect", "--thr") == ["--threshold"]
    assert completed("fiber", "convert", "fiber.b") == ["fiber.bash"]


def test_what_was_tested_satisfies_what_is_asked_for() -> None:
    """Every requirement of setup.py that constraints.txt names is met by it; the base install is all there."""
    lines = [line for line in (REPO / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    versions = dict(line.split("==") for line in lines)
    assert len(versions) == len(lines)
    needs = [Requirement(text) for text in constraints.named()]
    assert len(needs) > 25
    for need in needs:
        name = constraints.canonicalize_name(need.name)
        assert name not in versions or need.specifier.contains(versions[name], prereleases=True), need
    absent = {need.name for need in needs} - {
        need.name for need in needs if constraints.canonicalize_name(need.name) in versions
    }
    assert absent <= {"pycocoevalcap", "mkdocs-material"}  # Java, and pages alone
