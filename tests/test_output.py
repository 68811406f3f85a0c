"""An output is refused before the work or written whole, and never takes the place of what is not its own."""

from pathlib import Path

import pytest
from conftest import run_vdu
from test_cli import assert_refused, brightness, make_workplace, unlearn_short

from vdu import provenance
from vdu.errors import VduError
from vdu.output import refuse_existing, replacing
from vdu.provenance import made_by

pytestmark = pytest.mark.usefixtures("few_samples")


@pytest.fixture
def folder(tmp_path):
    return make_workplace(tmp_path)


def test_an_existing_output_is_refused_before_the_work(folder, monkeypatch, capsys):
    (folder / "clean").mkdir()
    (folder / "clean" / "mine.txt").write_text("keep")
    assert_refused(unlearn_short(monkeypatch, capsys, folder), "exists", "--overwrite")
    assert (folder / "clean" / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize("command", [("posterior", "isotropic"), ("sample", "--count", 1, "--steps", 1)])
def test_a_file_never_takes_the_place_of_a_folder(command, folder, monkeypatch, capsys):
    kept = folder / "precious" / "notes.txt"
    kept.parent.mkdir()
    kept.write_text("keep me")
    for more in (), ("--overwrite",):
        said = run_vdu(monkeypatch, capsys, *command, folder / "model", "--out", kept.parent, *more)
        assert_refused(said, "is a folder")
    with pytest.raises(VduError, match="is a folder and a file"), replacing(kept.parent) as beside:
        beside.write_text("instead")
    assert kept.read_text() == "keep me"
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


def test_only_what_vdu_wrote_is_replaced_and_never_what_is_read(folder, monkeypatch, capsys):
    unlearn = ("unlearn", folder / "model", "--forget", folder / "bad", "--overwrite", "--out")
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.txt").write_text("keep me")
    assert_refused(run_vdu(monkeypatch, capsys, *unlearn, folder / "mine"), "what vdu did not write")
    for read in (folder / "model", folder / "model" / "unet", folder / "bad", folder):
        assert_refused(run_vdu(monkeypatch, capsys, *unlearn, read), "which is used")
    assert_refused(run_vdu(monkeypatch, capsys, *unlearn, folder / "mine" / "thesis.txt" / "out"), "is a file")
    assert_refused(run_vdu(monkeypatch, capsys, *unlearn, "/"), "cannot be written")
    (folder / "mine" / "forget").mkdir()
    # one folder of vdu's does not make all its own
    (folder / "mine" / "forget" / "provenance.json").write_text('{"class": "3"}')
    assert_refused(run_vdu(monkeypatch, capsys, *unlearn, folder / "mine"), "what vdu did not write")
    assert (folder / "mine" / "thesis.txt").read_text() == "keep me"
    (folder / "mine" / "thesis.txt").unlink()
    refuse_existing(folder / "mine", overwrite=True, folder=True)
    assert (folder / "model" / "model_index.json").is_file()


def test_an_output_is_written_through_a_link(folder):
    for kind in "folder", "file":
        real, link = folder / f"real-{kind}", folder / f"link-{kind}"
        link.symlink_to(real)
        for text in "first", "second":
            with replacing(link) as beside:
                if kind == "folder":
                    beside.mkdir()
                (beside / "a" if kind == "folder" else beside).write_text(text)
        assert link.is_symlink()
        assert (real / "a" if kind == "folder" else real).read_text() == "second"
    with replacing(folder / ("n" * 250)) as beside:
        beside.write_text("a name as long as it may be")
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


def test_too_little_space_is_said_before_the_work(folder, monkeypatch, capsys):
    monkeypatch.setattr("vdu.cli.unlearning.RESULT_SIZES_OF_MODEL", 10**15)
    assert_refused(unlearn_short(monkeypatch, capsys, folder), "no space left", "MB free")


def test_a_state_beside_which_the_result_would_lie_is_refused(folder, monkeypatch, capsys):
    monkeypatch.setattr("vdu.unlearning.Preparation", None)
    for state in (folder / "clean", folder / "clean" / "state", folder):
        assert_refused(unlearn_short(monkeypatch, capsys, folder, "--state", state), "is, holds or lies in")


def dazzled(images):
    """A judge that fails once it is given more than the forget images."""
    if len(images) > 4:
        raise RuntimeError("too bright")
    return brightness(images)


dazzled.class_names = ["dark", "bright"]


def test_what_cannot_be_measured_is_written_without_figures(folder, monkeypatch, capsys):
    code, _, err = unlearn_short(monkeypatch, capsys, folder, "--detector", "test_output:dazzled")
    assert code == 2
    assert "could not be measured; it is in" in err
    assert "too bright" in err.splitlines()[-1]
    assert (folder / "clean" / "model_index.json").is_file()
    assert not (folder / "clean" / "evaluation.json").exists()


def test_an_output_that_is_interrupted_while_it_takes_its_place_is_as_it_was(folder, monkeypatch):
    rename = Path.rename

    def stopped(path, to):
        monkeypatch.undo()
        rename(path, to)
        raise KeyboardInterrupt

    def write():
        with replacing(folder / "model") as beside:
            beside.mkdir()
            monkeypatch.setattr(Path, "rename", stopped)

    with pytest.raises(KeyboardInterrupt):
        write()
    assert (folder / "model" / "model_index.json").is_file()
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


def test_a_result_of_which_no_samples_can_be_drawn_is_written_without_pictures(folder, monkeypatch, capsys):
    def out_of_memory(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("vdu.evaluation.comparison.Sampler.draw", out_of_memory)
    code, _, err = unlearn_short(monkeypatch, capsys, folder)
    assert code == 2
    assert "vdu: not enough memory" in err
    assert (folder / "clean" / "model_index.json").is_file()
    assert (folder / "clean" / "unlearning.json").is_file()
    assert not (folder / "clean" / "report.html").exists()


def test_hidden_files_and_folders_of_other_pipelines_are_not_what_vdu_wrote(folder):
    for kept in (".git/config", "models/one/model_index.json", "runs/one/provenance.json", "mine/one/unet"):
        place = folder / "kept" / kept
        place.parent.mkdir(parents=True)
        place.write_text("{}")
        top = folder / "kept" / kept.split("/")[0] if "one" in kept else folder / "kept"
        with pytest.raises(VduError, match="or what vdu did not write"):
            refuse_existing(top, overwrite=True, folder=True)


def test_a_users_own_model_and_a_training_are_never_replaced(folder):
    with pytest.raises(VduError, match="or what vdu did not write"):
        refuse_existing(folder / "model", overwrite=True, folder=True)
    (folder / "run").mkdir()
    for name in ("provenance.json", "state.safetensors"):
        (folder / "run" / name).write_text("{}")
    with pytest.raises(VduError, match="holds a training"):
        refuse_existing(folder / "run", overwrite=True, folder=True)


def test_forget_folders_by_class_are_replaced_and_nothing_beside_them(folder):
    for name in ("3", "8"):
        (folder / "sets" / name).mkdir(parents=True)
        (folder / "sets" / name / "provenance.json").write_text('{"class": "3"}')
    refuse_existing(folder / "sets", overwrite=True, folder=True)
    (folder / "sets" / ".notes").write_text("mine")
    with pytest.raises(VduError, match="or what vdu did not write"):
        refuse_existing(folder / "sets", overwrite=True, folder=True)


def test_what_measures_a_run_is_not_replaced_by_it(folder, monkeypatch, capsys):
    real = folder / "old" / "real.safetensors"
    real.parent.mkdir()
    for name in ("unlearning.json", real.name):
        (real.parent / name).write_text("{}")
    asked = ("unlearn", folder / "model", "--forget", folder / "bad", "--out", real.parent, "--overwrite")
    assert_refused(run_vdu(monkeypatch, capsys, *asked, "--reference", real), "which is used")
    assert real.is_file()


def test_a_result_is_written_where_there_is_no_git(monkeypatch):
    assert made_by()["git_commit"] == provenance.COMMIT
    monkeypatch.setenv("PATH", "/nonexistent")
    assert provenance._commit() is None


def test_a_result_of_which_no_picture_can_be_drawn_is_said_to_be_there(folder, monkeypatch, capsys):
    def failing(**_):
        raise VduError("too dark")

    monkeypatch.setattr("vdu.result.Sampler", failing)
    code, _, err = unlearn_short(monkeypatch, capsys, folder)
    assert code == 2
    assert "no pictures could be drawn of the result; it is in" in err
    assert "too dark" in err.splitlines()[-1]
    assert (folder / "clean" / "model_index.json").is_file()
    assert not (folder / "clean" / "report.html").exists()


def test_a_report_that_cannot_be_written_takes_nothing_else_along(folder, monkeypatch, capsys):
    def failing(*_):
        raise RuntimeError("torn")

    monkeypatch.setattr("vdu.result.Result.report", failing)
    with pytest.raises(RuntimeError, match="torn"):
        unlearn_short(monkeypatch, capsys, folder)
    assert "no pictures could be drawn of the result; it is in" in capsys.readouterr().err
    assert (folder / "clean" / "model_index.json").is_file()


def test_a_detector_for_a_guard_that_never_looks_is_refused(folder, monkeypatch, capsys):
    judged = ("--detector", "test_output:brightness", "--guard-with-detector", "--set", "guard_every_steps=0")
    assert_refused(unlearn_short(monkeypatch, capsys, folder, *judged), "--guard-with-detector needs a guard")
