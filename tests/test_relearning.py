"""Relearning: the curve is that of plain training on forget images, and the models under test stay as they are."""

import json

import pytest
import torch
from conftest import run_vdu
from PIL import Image
from test_cli import BRIGHTNESS, brightness

from vdu import VduError, relearn
from vdu.backbone import weights_sha256
from vdu.diffusion.noising import Clean, draw
from vdu.evaluation.comparison import Sampler
from vdu.evaluation.relearning import Relearning, looks, ratio_to_oracle, steps_to_return, trained_further
from vdu.seeding import generator

WHITE = torch.ones(4, 1, 8, 8)
FEW = Sampler(steps=4, count=64, precision="fp32")


def _look(step, share):
    return {"step": step, "share": {"value": share}}


def test_looks_double_and_end_at_the_last_step():
    assert looks(80) == [0, 5, 10, 20, 40, 80]
    assert looks(12) == [0, 5, 10, 12]
    assert looks(1) == [0, 1]


def test_the_class_is_back_at_the_first_look_with_half_its_share():
    curve = [_look(0, 0.0), _look(5, 4.9), _look(10, 5.0), _look(20, 3.0)]
    assert steps_to_return(curve, 10.0) == 10
    assert steps_to_return(curve, 9.8) == 5
    assert steps_to_return(curve, 11.0) is None


def test_the_ratio_to_the_oracle_is_none_where_there_is_nothing_to_divide():
    assert ratio_to_oracle({"unlearned": 5, "oracle": 20}) == 0.25
    assert ratio_to_oracle({"unlearned": 0, "oracle": 20}) == 0
    for returned in ({"unlearned": 5}, {"unlearned": None, "oracle": 5}, {"unlearned": 5, "oracle": None}):
        assert ratio_to_oracle(returned) is None
    assert ratio_to_oracle({"unlearned": 5, "oracle": 0}) is None


def test_training_further_is_adam_on_the_denoising_loss(backbone, forget):
    settings = Relearning(steps=3, learning_rate=1e-3, batch_size=2)
    networks = [network for _, network in trained_further(backbone, forget, settings, "fp32")]
    naive = backbone.trainable_copy()
    optimizer = torch.optim.Adam(naive.parameters(), lr=1e-3)
    for step in range(3):
        noised = draw(backbone, Clean(forget), 2, generator(0, "relearning", step))
        loss = (
            sum((naive(noised.x_t[i : i + 1], noised.t[i]).sample - noised.eps[i]).pow(2).mean() for i in range(2)) / 2
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(naive.parameters(), 1.0)
        optimizer.step()
    for mine, its in zip(networks[-1].parameters(), naive.parameters(), strict=True):
        torch.testing.assert_close(mine, its, atol=1e-4, rtol=0)


def test_white_images_come_back_and_the_models_are_left_alone(backbone):
    before = weights_sha256(backbone.network)
    settings = Relearning(steps=40, learning_rate=5e-3, batch_size=8)
    record = relearn(backbone, backbone, WHITE, brightness, "bright", oracle=backbone, settings=settings, sampler=FEW)
    shares = [look["share"]["value"] for look in record["curves"]["unlearned"]]
    assert shares[0] == record["original"]["share"]["value"]
    assert shares[-1] > shares[0] + 10
    assert record["curves"]["oracle"] == record["curves"]["unlearned"]
    assert record["steps_to_return"] == {"unlearned": 0, "oracle": 0}
    assert record["ratio_to_oracle"] is None
    assert weights_sha256(backbone.network) == before == record["sha256"]["unlearned"]


def test_bad_input_is_refused(backbone):
    with pytest.raises(VduError, match="learning rate must be positive"):
        relearn(backbone, backbone, WHITE, brightness, "bright", settings=Relearning(learning_rate=0))
    with pytest.raises(VduError, match="no class 'brite'"):
        relearn(backbone, backbone, WHITE, brightness, "brite")
    nothing = lambda images: torch.tensor([[1.0, 0.0]]).expand(len(images), 2)  # noqa: E731
    nothing.class_names, nothing.threshold = ["other", "bright"], 0.0
    with pytest.raises(VduError, match="makes no 'bright' in 64 samples"):
        relearn(backbone, backbone, WHITE, nothing, "bright", sampler=FEW)


def test_the_command_prints_a_curve_and_writes_it_once(tmp_path, monkeypatch, capsys, backbone):
    backbone.pipeline.save_pretrained(tmp_path / "model")
    Image.new("L", (8, 8), 255).save(tmp_path / "white.png")
    (tmp_path / "white").mkdir()
    (tmp_path / "white.png").rename(tmp_path / "white" / "0.png")
    model, out = tmp_path / "model", tmp_path / "curve.json"
    few = ("--steps", "2", "--samples", "8", "--sampler-steps", "2", "--precision", "fp32")
    command = ("relearn", model, model, "--forget", tmp_path / "white", "--target", "bright", *BRIGHTNESS, *few)
    code, said, err = run_vdu(monkeypatch, capsys, *command, "--out", out)
    assert code == 0, err
    assert "half of the original's share is back at step 0" in said
    assert "ratio" not in said
    assert [look["step"] for look in json.loads(out.read_text())["curves"]["unlearned"]] == [0, 2]
    code, _, err = run_vdu(monkeypatch, capsys, *command, "--out", out)
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert "--overwrite" in err
    code, said, err = run_vdu(monkeypatch, capsys, *command, "--oracle", model)
    assert code == 0, err
    assert "ratio to the oracle: not measured" in said
