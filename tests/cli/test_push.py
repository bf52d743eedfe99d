"""`fiber push`: everything up to the upload, and what is said when the hub does not take it."""

import stat
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import pytest
from huggingface_hub import ModelCard

import fiber
from fiber.cli.main import main
from fiber.cli.push import finished_card
from tiny_exports import coarse_export, fine_export


@pytest.mark.parametrize("kind", ["run", "export"])
def test_a_dry_run_builds_what_would_be_sent(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    export = coarse_export(tmp_path / "run" / "export", vqa=4)
    (export / "notes.bin").write_bytes(b"private")
    source = export if kind == "export" else tmp_path / "run"
    arguments = [
        "push",
        str(source),
        "me/tiny-fiber",
        "--licence",
        "cc-by-4.0",
        "--dry-run",
        "--out",
        str(tmp_path / "o"),
    ]
    assert main(arguments) == 0
    assert "nothing was sent" in capsys.readouterr().out
    sent = tmp_path / "o"
    assert {path.name for path in sent.iterdir()} == {path.name for path in export.iterdir()} - {"notes.bin"}
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o400 for path in sent.iterdir())
    text = (sent / "README.md").read_text()
    card = ModelCard(text)
    assert (card.data.license, card.data.library_name) == ("cc-by-4.0", "fiber")
    assert "license_name" not in text
    assert "# tiny-fiber\n" in text
    assert 'fiber.load("me/tiny-fiber")' in text
    assert fiber.load(sent, device="cpu").tasks == fiber.load(export, device="cpu").tasks
    assert main(arguments) == 1  # the folder is not empty now
    assert "is not empty" in capsys.readouterr().err


def test_what_cannot_be_shared_is_refused_before_anything_is_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", None)  # nobody asks for it
    good = str(fine_export(tmp_path / "e"))
    card = tmp_path / "e" / "README.md"
    for arguments, message in (
        ([good, "no-owner"], "write owner/name"),
        ([good, "a/b/c"], "no hub id"),
        ([str(tmp_path / "gone"), "me/x"], "is no folder"),
        ([good, "me/x", "--licence", "My Own!"], "spells licences"),
    ):
        assert main(["push", *arguments]) == 1
        assert message in capsys.readouterr().err
    card.write_text("# a model")
    assert main(["push", good, "me/x"]) == 1
    assert "no front matter" in capsys.readouterr().err
    for front, message in (
        ("a: [", "its front matter is no YAML"),
        ("- a\n- b", "its front matter is no list of KEY: VALUE lines"),
        ("model-index: 5", "model-index in its front matter is no list of models"),
        ("model-index: [5]", "model-index in its front matter is no list of models"),
    ):
        with pytest.raises(ValueError, match=message):
            finished_card(f"---\n{front}\n---\n# a model\n", "me/x", None)
    content = (tmp_path / "e" / "model.safetensors").read_bytes()
    (tmp_path / "e" / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert main(["push", good, "me/x"]) == 1
    assert "damaged" in capsys.readouterr().err


class Hub:
    """Stands for the hub: keeps what is sent."""

    calls: ClassVar[list[tuple[str, dict[str, Any]]]] = []

    def create_repo(self, name: str, **options: Any) -> str:
        self.calls.append((name, options))
        return f"hub:{name}"

    def create_branch(self, name: str, **options: Any) -> None:
        self.calls.append((name, options))

    def upload_folder(self, *, folder_path: Path, **options: Any) -> None:
        self.calls.append((options["repo_id"], options | {"files": {path.name for path in folder_path.iterdir()}}))


def test_it_is_made_and_sent(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [])
    export = fine_export(tmp_path / "e")
    assert main(["push", str(export), "me/tiny", "--private", "--revision", "v2"]) == 0
    assert "sent to hub:me/tiny" in capsys.readouterr().out
    created, branch, sent = (options for _, options in Hub.calls)
    assert created == {"private": True, "exist_ok": True}
    assert (branch["branch"], sent["revision"]) == ("v2", "v2")
    assert sent["files"] == {path.name for path in export.iterdir()}


def test_a_hub_that_cannot_be_reached_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 34)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert main(["push", str(fine_export(tmp_path / "e")), "me/tiny"]) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: the hub cannot be reached (Connect")
    assert "\n" not in said
