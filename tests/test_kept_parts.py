"""What is made before the first step is made once, however often a run is interrupted, and changes nothing."""

import pytest
import torch
from conftest import make_pipeline, run_vdu
from PIL import Image
from tiny_stable_diffusion import make_pipeline as make_stable_diffusion

from vdu import VduError, unlearn
from vdu.backbone import load_backbone
from vdu.diffusion.noised_bank import NoisedBank, fill_bank
from vdu.diffusion.noising import Clean
from vdu.loop import check_resumable
from vdu.weights import kept_parts
from vdu.weights.checkpoint import write_tensors
from vdu.weights.kept_parts import KeptParts

SHORT = {"steps": 2, "guard_every_steps": 2, "batch_size": 2, "stop_share": None, "inversion_steps": 2}
UNASKED = {"bank-forget", "bank-judged", "bank-own", "bank-look", "forget-score-1", "responsibilities"}
UNASKED |= {"samples-own", "samples-guard"}

pytestmark = pytest.mark.usefixtures("few_samples")


def _run(pipeline, forget, **options):
    return unlearn(pipeline, forget, settings=SHORT, seed=3, precision="fp32", **options)


def _interrupted_after_parts(count, monkeypatch, pipeline, forget, state):
    """Whether a run that goes on is interrupted right after ``count`` more parts are written."""
    write, written = kept_parts.write_tensors, []

    def write_and_stop(path, *arguments):
        write(path, *arguments)
        written.append(path)
        if len(written) == count:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(kept_parts, "write_tensors", write_and_stop)
        try:
            _run(pipeline, forget, state_folder=state)
        except KeyboardInterrupt:
            return True
    return False


@pytest.mark.parametrize(("with_text", "each"), [(False, 1), (True, 4)])
def test_a_run_interrupted_again_and_again_equals_an_uninterrupted_one(with_text, each, folder, tmp_path, monkeypatch):
    pipeline = make_stable_diffusion(tmp_path) if with_text else make_pipeline()
    forget = folder if with_text else torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    whole, state = _run(pipeline, forget), tmp_path / "state"
    starts = 0
    while _interrupted_after_parts(each, monkeypatch, pipeline, forget, state):
        starts += 1
    kept = sorted((state / "preparation").iterdir())
    names = {path.name.rsplit("-", 1)[0] for path in kept}
    assert names >= UNASKED | ({"prompts", "words"} if with_text else set())
    assert starts == len(kept) // each > 1
    resumed = _run(pipeline, forget, state_folder=state)
    for figure in ("history", "guard", "share", "result_sha256"):
        assert resumed.record[figure] == whole.record[figure]
    assert (resumed.record["prepared_parts_read"], whole.record["prepared_parts_read"]) == (len(kept), 0)
    assert len({step["loss"] for step in resumed.record["history"]}) == 2
    assert resumed.record["passes"] < whole.record["passes"] / 3


def test_a_run_with_other_settings_of_its_steps_begins_from_the_same_preparation(tmp_path):
    pipeline = make_pipeline()
    forget = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    _run(pipeline, forget, state_folder=tmp_path)
    other = {"strength": 9.0, "gamma": 0.3, "steps": 3, "learning_rate": 1e-3}
    options = {"settings": SHORT | other, "seed": 3, "precision": "fp32"}
    with pytest.raises(VduError, match="remove that file, to begin again from what was made before its first step"):
        unlearn(pipeline, forget, state_folder=tmp_path, **options)
    (tmp_path / "state.safetensors").unlink()
    again, whole = unlearn(pipeline, forget, state_folder=tmp_path, **options), unlearn(pipeline, forget, **options)
    assert again.record["result_sha256"] == whole.record["result_sha256"]
    assert again.record["history"] == whole.record["history"]
    assert again.record["prepared_parts_read"] >= len(UNASKED) - 1  # the forget score may be of other times
    with pytest.raises(VduError, match=f"other settings: remove {tmp_path} or"):
        unlearn(pipeline, forget, state_folder=tmp_path, **options | {"seed": 4})


def test_a_bank_is_what_its_tensors_say(backbone):
    images = torch.rand(3, 1, 8, 8)
    for only in (False, True):
        bank = fill_bank(backbone, images, 0, "test", items=12, features_only=only)
        again = NoisedBank.of(bank.tensors(), 3, torch.device("cpu"))
        assert (again.images, again.draws) == (3, bank.draws)
        assert again.unprompted is again.original
        assert again.prompted_features is again.features
        assert all(torch.equal(tensor, getattr(again, name)) for name, tensor in bank.tensors().items())
        assert again.c is again.asked is None


def test_what_prompts_add_to_a_bank_is_kept(tmp_path):
    backbone = load_backbone(make_stable_diffusion(tmp_path))
    asked = Clean(torch.rand(2, 4, 8, 8), backbone.condition(["red", "blue"]))
    bank = fill_bank(backbone, asked, 0, "test", items=8)
    kept = KeptParts(tmp_path, "x")("bank", bank.tensors)
    again = NoisedBank.of(KeptParts(tmp_path, "x")("bank", pytest.fail), 2, backbone.device)
    assert {"original", "unprompted", "features", "prompted_features", "c"} <= set(kept)
    assert all(torch.equal(tensor, getattr(again, name)) for name, tensor in kept.items())
    assert not torch.equal(again.original, again.unprompted)


def test_parts_of_one_name_are_told_by_their_order(tmp_path):
    made = iter(range(9))

    def make():
        return {"number": torch.tensor(next(made))}

    first, again = KeptParts(tmp_path, "x"), KeptParts(tmp_path, "x")
    assert [int(first(part, make)["number"]) for part in ("a", "b", "a")] == [0, 1, 2]
    assert [int(again(part, make)["number"]) for part in ("a", "b", "a", "a")] == [0, 1, 2, 3]
    unkept = KeptParts()
    assert [int(unkept("a", make)["number"]) for _ in range(2)] == [4, 5]


def test_parts_of_another_run_and_broken_ones_are_refused_before_any_work(tmp_path):
    KeptParts(tmp_path, "x")("a", lambda: {"number": torch.tensor(1)})
    check_resumable(tmp_path, "x", "x")
    with pytest.raises(VduError, match=rf"a-1\.safetensors .*other settings: remove {tmp_path} or"):
        check_resumable(tmp_path, "y", "y")
    part = tmp_path / "preparation" / "a-1.safetensors"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(VduError, match=rf"a-1\.safetensors is no state of a run .*: remove {tmp_path} or"):
        check_resumable(tmp_path, "x", "x")


def test_only_parts_make_a_folder_one_of_a_run(tmp_path):
    place = tmp_path / "preparation"
    place.touch()
    with pytest.raises(VduError, match="preparation is a file"):
        check_resumable(tmp_path, "x", "x")
    place.unlink()
    place.mkdir()
    (place / ".a-1.safetensors.partial-1-0").touch()  # of a run that was killed
    check_resumable(tmp_path, "x", "x")
    (place / "notes.txt").touch()
    with pytest.raises(VduError, match="other files than a run's state"):
        check_resumable(tmp_path, "x", "x")
    (place / "notes.txt").unlink()
    for other in ("thesis.pdf", "log.jsonl"):  # the state of a training has that name too
        write_tensors(tmp_path / "state.safetensors", {}, {"settings_hash": "y"})
        (tmp_path / other).touch()
        with pytest.raises(VduError, match="other files than a run's state"):
            check_resumable(tmp_path, "x", "x")


def test_a_state_that_would_not_fit_is_refused_before_any_work(tmp_path):
    with pytest.raises(VduError, match=r"no space left on the disk for .*state\.safetensors"):
        check_resumable(tmp_path, "x", "x", needed_bytes=10**18)


def test_what_diffusers_notes_of_a_scheduler_does_not_tell_runs_apart(tmp_path):
    told = []
    for defaults in (["clip_sample", "thresholding"], ["thresholding", "clip_sample"]):  # as two processes have them
        pipeline = make_pipeline()
        pipeline.scheduler.register_to_config(_use_default_values=defaults)
        told.append(load_backbone(pipeline).beside_sha256)
    pipeline.save_pretrained(tmp_path)
    told.append(load_backbone(pipeline).beside_sha256)
    assert told[0] == told[1] == told[2]


@pytest.mark.parametrize("changed", ["vae", "text_encoder", "scheduler"])
def test_a_run_is_told_from_that_of_a_model_with_other_parts(changed, tmp_path):
    pipeline = make_stable_diffusion(tmp_path)
    before = load_backbone(pipeline).beside_sha256
    assert load_backbone(pipeline).beside_sha256 == before
    if changed == "scheduler":
        pipeline.scheduler.register_to_config(use_karras_sigmas=True)
    else:
        next(getattr(pipeline, changed).parameters()).data.mul_(1.3)
    after = load_backbone(pipeline).beside_sha256
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


def test_an_interrupted_preparation_is_gone_on_with_by_the_same_command(tmp_path, monkeypatch, capsys):
    pipeline, bad, out, state = (tmp_path / name for name in ("model", "bad", "out", "state"))
    make_pipeline().save_pretrained(pipeline)
    bad.mkdir()
    for i in range(4):
        Image.new("L", (8, 8), 60 * i).save(bad / f"{i}.png")
    short = ("--set", "steps=2", "--set", "guard_every_steps=2", "--set", "batch_size=2")
    command = ("unlearn", pipeline, "--forget", bad, "--out", out, "--state", state, *short)
    write = kept_parts.write_tensors

    def write_and_stop(*arguments):
        write(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(kept_parts, "write_tensors", write_and_stop)
        code, _, err = run_vdu(monkeypatch, capsys, *command)
    assert (code, f"goes on from what is made in {state}" in err) == (130, True)
    code, _, err = run_vdu(monkeypatch, capsys, *command, "--seed", "1")
    assert (code, "other settings" in err, out.exists()) == (2, True, False)
    assert run_vdu(monkeypatch, capsys, *command)[0] == 0
    assert "since the run was gone on with after step 0" in (out / "report.html").read_text()
