"""What every method must do, and the needs that are refused."""

import math

import pytest
import torch
from conftest import interrupted_after_state, make_pipeline, run_vdu
from PIL import Image

from vdu import VduError, unlearn
from vdu.backbone import load_backbone
from vdu.methods import METHODS
from vdu.model_zoo import find_zoo_model
from vdu.objective.needs import check_needs
from vdu.posterior import isotropic

SHORT = {"steps": 4, "guard_every_steps": 2, "batch_size": 2, "stop_share": None}
FROM_IMAGES = sorted(name for name, method in METHODS.items() if "prompt" not in method.settings.needs)


def _run(method, forget, retain, **options):
    pipeline = make_pipeline()
    return unlearn(
        pipeline,
        forget,
        method,
        retain=retain if "retain" in METHODS[method].settings.needs else None,
        settings=SHORT | options.pop("settings", {}),
        posterior=isotropic(load_backbone(pipeline), 1e-2) if "posterior" in METHODS[method].settings.needs else None,
        share=0.2,
        precision="fp32",
        **options,
    )


@pytest.mark.parametrize("method", FROM_IMAGES)
def test_a_resumed_run_equals_an_uninterrupted_one_and_the_sets_are_on_record(
    method, forget, retain, tmp_path, monkeypatch, few_samples
):
    whole = _run(method, forget, retain)
    assert all(math.isfinite(h["loss"]) for h in whole.record["history"])
    kept = whole.record["retain"]
    assert (kept is None) == ("retain" not in METHODS[method].settings.needs)
    assert kept is None or (kept["images"], len(kept["sha256"])) == (9, 64)
    with interrupted_after_state(monkeypatch):
        _run(method, forget, retain, state_folder=tmp_path)
    resumed = _run(method, forget, retain, state_folder=tmp_path)
    assert resumed.record["result_sha256"] == whole.record["result_sha256"]
    assert len(resumed.record["history"]) == 4


@pytest.mark.parametrize("method", FROM_IMAGES)
def test_only_chosen_parameters_move_and_the_seed_matters(method, forget, retain, few_samples):
    unguarded = {"steps": 1, "guard_every_steps": 0}
    settings = unguarded | {"parameters": "mid_block.*", "ema_decay": 0.0, "learning_rate": 1e-6}
    first, second = (_run(method, forget, retain, settings=settings, seed=seed) for seed in (0, 1))
    before = dict(first.original.network.named_parameters())
    moved = {n for n, p in first.pipeline.unet.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert all(name.startswith("mid_block.") for name in moved)
    assert first.record["history"][0]["loss"] != second.record["history"][0]["loss"]


def test_a_resume_with_another_retain_set_is_refused(forget, retain, tmp_path, few_samples):
    _run("finetune", forget, retain, state_folder=tmp_path)
    with pytest.raises(VduError, match="other settings"):
        _run("finetune", forget, retain[:5], state_folder=tmp_path)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_missing_need_names_the_option_to_give(method):
    given = dict.fromkeys(METHODS[method].settings.needs, "something")
    check_needs(METHODS[method], given)
    for need in given:
        with pytest.raises(VduError, match=f"method {method} needs .*--{need}"):
            check_needs(METHODS[method], given | {need: None})


def test_what_would_not_be_used_and_what_contradicts_is_refused(forget, retain):
    with pytest.raises(VduError, match="makes no use of --retain"):
        unlearn(make_pipeline(), forget, "vdu", retain=retain)
    with pytest.raises(VduError, match="2 of the images to keep are images to forget too"):
        unlearn(make_pipeline(), forget, "finetune", retain=torch.cat([retain, forget[:2]]))
    with pytest.raises(VduError, match="the retain tensor is"):
        unlearn(make_pipeline(), forget, "finetune", retain=retain[..., :4])
    with pytest.raises(VduError, match="the teacher predicts v_prediction"):
        unlearn(make_pipeline(), forget, "esd", teacher=make_pipeline("v_prediction"))


def _folder(path, shades):
    path.mkdir()
    for shade in shades:
        Image.new("L", (8, 8), shade).save(path / f"{shade}.png")
    return path


def test_the_command_line_takes_a_retain_folder_and_refuses_without(tmp_path, monkeypatch, capsys, few_samples):
    make_pipeline().save_pretrained(tmp_path / "model")
    bad, good = _folder(tmp_path / "bad", (200, 210, 220)), _folder(tmp_path / "good", (10, 20, 30, 40))
    out = tmp_path / "clean"
    basic = ("unlearn", tmp_path / "model", "--forget", bad, "--out", out, "--method", "siss", "--share", "0.3")
    code, _, err = run_vdu(monkeypatch, capsys, *basic)
    assert code == 2
    assert err.strip() == "vdu: method siss needs images to keep: give --retain FOLDER"
    code, _, err = run_vdu(monkeypatch, capsys, *basic, "--retain", tmp_path / "absent")
    assert code == 2
    assert "give --retain a folder" in err
    assert not out.exists()
    short = ("--set", "steps=1", "--precision", "fp32")
    code, _, err = run_vdu(monkeypatch, capsys, *basic, "--retain", good, *short)
    assert code == 0, err
    assert "images to keep | 4" in (out / "README.md").read_text()


def test_a_shipped_model_brings_images_of_the_other_classes():
    kept = find_zoo_model("mnist").retain("3")
    assert len(kept) == 900
    assert {path.parent.name for path in kept} == set("012456789")


def test_methods_are_listed_with_their_needs(monkeypatch, capsys):
    code, out, _ = run_vdu(monkeypatch, capsys, "methods")
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert set(lines) == set(METHODS)
    assert "forget, retain" in lines["siss"]
    assert "[teacher]" in lines["esd"]
