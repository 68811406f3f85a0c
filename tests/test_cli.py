"""The command line: one clear line and exit code 2 for bad input, before any work; files where they were asked for."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from conftest import make_pipeline, run_vdu
from PIL import Image

import vdu
from vdu.cli.unlearning import _tell_outcome
from vdu.loop import STATE_FILE
from vdu.methods import METHODS, find_method
from vdu.weights.checkpoint import read_tensors, write_tensors

pytestmark = pytest.mark.usefixtures("few_samples")


def brightness(images):
    """A detector of dark and bright pictures: probabilities ``(N, 2)``."""
    bright = ((images.mean(dim=(1, 2, 3)) + 1) / 2).clamp(0, 1)
    return torch.stack([1 - bright, bright], dim=1)


brightness.class_names = ["dark", "bright"]
brightness.threshold = 0.0


def make_workplace(tmp_path):
    """A folder with a tiny model and four forget images."""
    make_pipeline().save_pretrained(tmp_path / "model")
    (tmp_path / "bad").mkdir()
    for i in range(4):
        Image.new("L", (8, 8), 200 + 10 * i).save(tmp_path / "bad" / f"{i}.png")
    return tmp_path


@pytest.fixture
def folder(tmp_path):
    return make_workplace(tmp_path)


BRIGHTNESS = ("--detector", "test_cli:brightness")


def unlearn_short(monkeypatch, capsys, folder, *more):
    short = ("--set", "steps=2", "--set", "guard_every_steps=1", "--share", "0.3", "--precision", "fp32")
    basic = ("unlearn", folder / "model", "--forget", folder / "bad", "--out", folder / "clean")
    return run_vdu(monkeypatch, capsys, *basic, *short, "--samples", "8", "--sampler-steps", "2", *more)


def test_unlearn_says_on_what_share_it_went_and_whether_anything_was_forgotten(capsys):
    looks = [{"step": step, "forget_share": share} for step, share in ((0, 0.05), (9, 0.0))]
    record = {"share": 0.05, "steps": 9, "seconds": 1.0, "stop_reason": "all steps taken", "best_step": 9}
    record |= {"guard": looks, "share_source": "assumed"}
    _tell_outcome(record, None)
    said = capsys.readouterr()
    assert "5.0% (assumed" in said.out
    assert "9 steps, 1 s: all steps taken" in said.out
    assert said.out.endswith("in 5.0 % of the pictures before and in 0.0 % at step 9.\n")
    assert not said.err
    assert "words" not in said.out
    _tell_outcome(record | {"share_source": "estimated", "words_found": ["in noto style"]}, None)
    assert "“in noto style”" in capsys.readouterr().out
    keep = {"retain": {"notices": ["images of another size were resized to 8x8"]}}
    _tell_outcome(record | keep, None)
    assert "notice: images to keep, images of another size" in capsys.readouterr().out
    _tell_outcome(record | {"share": None, "share_source": None, "best_step": 0}, None)
    said = capsys.readouterr()
    assert "share of what" not in said.out
    assert said.out.endswith("so the result is the original: the model did NOT forget.\n")
    _tell_outcome(record | {"share_source": None, "best_step": 0, "guard": []}, None)
    assert "where training begins" in capsys.readouterr().err


def test_an_interrupted_run_says_what_is_left(folder, monkeypatch, capsys):
    def interrupted(**arguments):
        if arguments["state_folder"]:
            arguments["state_folder"].mkdir()
            (arguments["state_folder"] / STATE_FILE).touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("vdu.unlearning.unlearn", interrupted)
    for state, said in (((), "nothing was kept"), (("--state", folder / "state"), "goes on from the last step")):
        code, _, err = unlearn_short(monkeypatch, capsys, folder, "--method", "ga", *state)
        assert code == 130
        assert "vdu: interrupted: " in err
        assert said in err


def test_what_a_scheduler_ends_is_interrupted_as_by_hand(folder, monkeypatch, capsys):
    monkeypatch.setattr("vdu.unlearning.unlearn", lambda **_: signal.raise_signal(signal.SIGTERM))
    code, _, err = unlearn_short(monkeypatch, capsys, folder, "--method", "ga")
    assert (code, "vdu: interrupted: nothing was kept" in err) == (130, True)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127"),
        RuntimeError("[enforce fail a"),
        torch.OutOfMemoryError("out of memory"),
    ],
)
def test_no_memory_left_is_one_line(error, folder, monkeypatch, capsys):
    def large(**_):
        raise error

    monkeypatch.setattr("vdu.unlearning.unlearn", large)
    code, _, err = unlearn_short(monkeypatch, capsys, folder, "--method", "ga")
    assert code == 2
    assert err.splitlines()[-1].startswith("vdu: not enough memory: ask for less at once")
    assert not (folder / "clean").exists()


def test_figures_are_written_before_anything_is_printed(folder, monkeypatch, capsys):
    def nobody_reads(*_):
        raise BrokenPipeError

    monkeypatch.setattr("vdu.cli.evaluation.print_evaluation", nobody_reads)
    asked = ("--detector", "test_cli:brightness", "--target", "bright", "--samples", "8", "--sampler-steps", "2")
    run_vdu(monkeypatch, capsys, "evaluate", folder / "model", folder / "model", *asked, "--out", folder / "x.json")
    assert json.loads((folder / "x.json").read_text())["samples"] == 8


def test_unlearn_then_evaluate(folder, monkeypatch, capsys):
    detector = ("--detector", "test_cli:brightness", "--target", "bright")
    code, out, err = unlearn_short(monkeypatch, capsys, folder, "--method", "guided", *detector)
    assert code == 0, err
    assert "PUL" in out
    assert "30.0% (given)" in out
    clean = folder / "clean"
    assert {"model_index.json", "unet", "report.html", "README.md", "unlearning.json", "evaluation.json"} <= {
        p.name for p in clean.iterdir()
    }
    figures = folder / "figures.json"
    again = ("evaluate", folder / "model", clean, *detector, "--samples", "8", "--sampler-steps", "2")
    code, out, err = run_vdu(monkeypatch, capsys, *again, "--seed", "1000", "--precision", "fp32", "--out", figures)
    assert code == 0, err
    assert "u-FID was not measured: no reference was given" in out
    assert "NOT OF THESE WEIGHTS" not in err
    first, second = (json.loads(p.read_text()) for p in (clean / "evaluation.json", figures))
    assert first["pul"] == second["pul"]
    assert first["unlearned_sha256"] == second["unlearned_sha256"]
    assert second["u_fid"] is None
    assert second["samples"] == 8
    assert f"unlearned {second['unlearned_sha256']}" in out
    (file,) = (clean / "unet").glob("*.safetensors")
    write_tensors(file, {name: values + 1 for name, values in read_tensors(file)[0].items()})
    code, _, err = run_vdu(monkeypatch, capsys, *again, "--seed", "1000", "--precision", "fp32")
    assert code == 0
    assert f"unlearning.json IS NOT OF THESE WEIGHTS: its result_sha256 is {second['unlearned_sha256']}" in err


def test_forget_images_without_the_target_and_a_share_without_use_are_notices(folder, monkeypatch, capsys):
    asked = ("--detector", "test_cli:brightness", "--method", "ga", "--target")
    _, out, _ = unlearn_short(monkeypatch, capsys, folder, *asked, "dark", "--set", "guard_every_steps=0")
    assert "notice: the detector sees class dark in 0 of the 4 forget images only" in out.splitlines()[0]
    assert "notice: nothing that ga asked for made use of --share" in out
    _, out, _ = unlearn_short(monkeypatch, capsys, folder, *asked, "bright", "--overwrite")
    assert "notice" not in out


def assert_refused(result, *said):
    code, _, err = result
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert all(text in err for text in said), err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--target", "bright"), ("does not come with a detector", "--detector")),
        (("--target", "bright", *BRIGHTNESS, "--oracle", "model"), ("an oracle", "--reference")),
        (("--target", "bright", *BRIGHTNESS, "--oracle", "mnist"), ("different shape",)),
        (("--target", "brite", *BRIGHTNESS), ("no class 'brite'", "bright")),
    ],
)
def test_bad_input_to_evaluate_is_one_line(arguments, said, folder, monkeypatch, capsys):
    arguments = [folder / "model" if a == "model" else a for a in arguments]
    assert_refused(run_vdu(monkeypatch, capsys, "evaluate", folder / "model", folder / "model", *arguments), *said)


def test_methods_lists_them_and_the_settings_of_one(monkeypatch, capsys):
    code, out, err = run_vdu(monkeypatch, capsys, "methods")
    assert (code, err) == (0, "")
    assert any(line.split()[:3] == ["salun", "forget,", "retain"] for line in out.splitlines())
    code, out, err = run_vdu(monkeypatch, capsys, "methods", "vdu")
    assert (code, err) == (0, "")
    settings = {line.split()[0]: line for line in out.splitlines()}
    assert set(settings) == set(find_method("vdu").settings.model_fields)
    assert settings["stop_share"].split()[1:3] == ["not", "set"]
    assert_refused(run_vdu(monkeypatch, capsys, "methods", "vdoo"), "vdoo", "'vdu'")


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_is_described(method):
    assert all(said for _, said in find_method(method).settings.described().values())


def test_a_detector_may_be_a_file_in_the_working_folder(folder, monkeypatch, capsys):
    (folder / "my_judge.py").write_text("from test_cli import brightness as judge\n")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    few = ("--samples", "4", "--sampler-steps", "1", "--target", "bright")
    code, _, err = run_vdu(monkeypatch, capsys, "evaluate", "model", "model", "--detector", "my_judge:judge", *few)
    assert code == 0, err


def brightness_with_features(images):
    """`brightness`, and what a distance can be measured in."""
    return brightness(images), images.flatten(1)[:, :3]


brightness_with_features.class_names = ["dark", "bright"]
brightness_with_features.threshold = 0.0


def test_a_function_that_gives_features_measures_distances(folder, monkeypatch, capsys):
    model, out = folder / "model", folder / "figures.json"
    few = ("--samples", "400", "--sampler-steps", "1", "--target", "bright", "--reference", folder / "bad")
    command = ("evaluate", model, model, *few, "--detector")
    assert_refused(
        run_vdu(monkeypatch, capsys, *command, "test_cli:brightness"), "gives no features", "(probabilities, features)"
    )
    for i in range(8):
        Image.new("L", (8, 8), 10 * i).save(folder / "bad" / f"dark{i}.png")
    code, _, err = run_vdu(monkeypatch, capsys, *command, "test_cli:brightness_with_features", "--out", out)
    assert code == 0, err
    figures = json.loads(out.read_text())
    assert figures["u_fid"] == figures["u_fid_original"] > 0
    assert figures["extractor"]["dimensions"] == 3


def test_a_shipped_model_brings_its_judge(monkeypatch, capsys):
    few = ("--samples", "4", "--sampler-steps", "1")
    code, out, err = run_vdu(monkeypatch, capsys, "evaluate", "mnist", "mnist", "--target", "3", *few)
    assert code == 0, err
    assert "u-FID" in out
    assert_refused(
        run_vdu(monkeypatch, capsys, "evaluate", "mnist", "mnist", "--target", "three"), "no detector of mnist"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--method", "vdu-papr"), ("unknown method", "did you mean", "vdu-paper")),
        (("--set", "stepz=3"), ("no setting 'stepz'", "steps")),
        (("--set", "steps=0"), ("steps=0", "greater than or equal to 1")),
        (("--set", "steps"), ("NAME=VALUE",)),
        (("--share", "1.5"), ("between 0 and 1",)),
        (("--method", "vdu-paper"), ("needs a posterior",)),
        (("--method", "vdu-paper", "--posterior", "absent.safetensors"), ("no posterior file",)),
        (("--posterior", "absent.safetensors"), ("method vdu makes no use of --posterior",)),
        (("--detector", "test_cli:brightness", "--target", "brite"), ("no class 'brite'", "bright")),
        (("--detector", "test_cli:nothing"), ("no Python function",)),
        (("--target", "bright"), ("--target needs a detector",)),
        (("--guard-with-detector",), ("needs a detector",)),
        (("--device", "abacus"), ("device 'abacus' cannot be used here",)),
        (("--device", "meta"), ("device 'meta' cannot be used here",)),
        *([] if torch.cuda.is_available() else [(("--device", "cuda"), ("device 'cuda' cannot be used here",))]),
        (("--precision", "fp8"), ("unknown precision",)),
        (("--set", "parameters=nothing.*"), ("no parameter matches",)),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, said, folder, monkeypatch, capsys):
    assert_refused(unlearn_short(monkeypatch, capsys, folder, *arguments), *said)
    assert not (folder / "clean").exists()


def test_a_state_that_cannot_be_used_is_refused_before_the_work(folder, monkeypatch, capsys):
    unlearn = ("unlearn", folder / "model", "--forget", folder / "bad", "--out", folder / "out", "--state")
    monkeypatch.setattr("vdu.unlearning.Preparation", None)  # nothing may be prepared
    (folder / "file").write_text("no folder")
    assert_refused(run_vdu(monkeypatch, capsys, *unlearn, folder / "file"), "is a file", "--state")
    (folder / "state").mkdir()
    (folder / "state" / "state.safetensors").write_bytes(b"junk")
    assert_refused(run_vdu(monkeypatch, capsys, *unlearn, folder / "state"), "is no state of a run")
    write_tensors(folder / "state" / "state.safetensors", {"a": torch.ones(1)}, {"settings_hash": "another"})
    assert_refused(run_vdu(monkeypatch, capsys, *unlearn, folder / "state"), "other settings")


def test_what_cannot_be_parsed_is_one_line_too(monkeypatch, capsys):
    assert_refused(run_vdu(monkeypatch, capsys, "unlern"), "No such command", "unlearn")
    assert_refused(run_vdu(monkeypatch, capsys, "unlearn", "mnist"), "--forget")
    assert_refused(
        run_vdu(monkeypatch, capsys, "unlearn", "mnist", "--forget", "a", "--out", "b", "--seed", 2**64), "--seed"
    )
    assert_refused(run_vdu(monkeypatch, capsys, "bench", "run", "mnist-digits", "--limit", -1), "--limit")
    code, said, _ = run_vdu(monkeypatch, capsys, "--version")
    assert (code, said) == (0, f"vdu {vdu.__version__}\n")
    code, _, said = run_vdu(monkeypatch, capsys)
    assert code == 2
    assert "Commands:" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--method", "salun"), "needs images to keep"),
        (("--share", "1.5"), "between 0 and 1"),
        (("--precision", "fp8"), "unknown precision"),
    ],
)
def test_real_images_are_looked_at_when_the_rest_is_accepted(arguments, said, folder, monkeypatch, capsys):
    monkeypatch.setattr("vdu.evaluation.reference.load_reference", pytest.fail)
    measured = ("--detector", "test_cli:brightness", "--reference", folder / "bad")
    assert_refused(unlearn_short(monkeypatch, capsys, folder, *measured, *arguments), said)


def test_models_that_cannot_be_used(folder, monkeypatch, capsys):
    unlearn = ("unlearn", "--forget", folder / "bad", "--out", folder / "clean")
    assert_refused(run_vdu(monkeypatch, capsys, *unlearn, folder / "bad"), "model_index.json")
    assert_refused(run_vdu(monkeypatch, capsys, *unlearn, "./absent"), "no folder")
    assert_refused(run_vdu(monkeypatch, capsys, *unlearn, "nobody/absent"), "there is no nobody/absent here, and no")
    assert_refused(run_vdu(monkeypatch, capsys, *unlearn, "mnits"), "did you mean 'mnist'")
    index = folder / "model" / "model_index.json"
    index.write_text(index.read_text().replace("DDPMPipeline", "FluxPipeline"))
    assert_refused(run_vdu(monkeypatch, capsys, *unlearn, folder / "model"), "'FluxPipeline' is not supported")


def test_posterior_commands(folder, monkeypatch, capsys):
    out = folder / "p.safetensors"
    code, said, err = run_vdu(
        monkeypatch, capsys, "posterior", "fisher", folder / "model", "--samples", 2, "--out", out
    )
    assert code == 0, err
    assert "median sd" in said
    code, said, _ = run_vdu(monkeypatch, capsys, "posterior", "show", out)
    assert code == 0
    assert "source fisher" in said
    assert_refused(
        run_vdu(monkeypatch, capsys, "posterior", "isotropic", folder / "model", "--out", out), "--overwrite"
    )
    monkeypatch.setattr("vdu.diffusion.sampling.sample", pytest.fail)
    bad = ("--scale", -1, "--out", folder / "q.safetensors")
    assert_refused(run_vdu(monkeypatch, capsys, "posterior", "fisher", folder / "model", *bad), "must be at least")
    arguments = ("posterior", "checkpoints", folder / "model", folder / "model", "--out", folder / "q.safetensors")
    assert_refused(run_vdu(monkeypatch, capsys, *arguments), "at least 2")


def test_help_needs_no_heavy_import():
    code = "import sys, vdu, vdu.cli; sys.exit(any(m in sys.modules for m in ('torch', 'diffusers', 'matplotlib')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
