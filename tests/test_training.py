"""Pre-training: resume equals uninterrupted, and what is not the raw corpus is refused."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import make_mnist_data, write_idx
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file

import vdu.training.averaged_training
import vdu.training.denoiser
from vdu import VduError
from vdu.backbone import weights_sha256
from vdu.corpora import Corpus, load_corpus
from vdu.model_zoo import find_zoo_model
from vdu.training.denoiser import train
from vdu.training.recipe import RECIPES, Recipe, read_recipe
from vdu.training.text_to_image.recipe import is_text_recipe
from vdu.weights.checkpoint import read_tensors, save_state


@pytest.fixture
def data(tmp_path):
    return make_mnist_data(tmp_path)


@pytest.fixture
def recipe():
    unet = {
        **{"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": [8, 16]},
        **{"layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 8},
        **{"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2},
    }
    settings = read_recipe("mnist").training.model_dump() | {
        **{"cycle_steps": [6], "batch_size": 4, "state_every_steps": 3, "posterior_checkpoints": 2},
        **{"precision": "fp32", "warmup_steps": 2},
    }
    return Recipe(name="tiny", corpus="mnist", unet=unet, noise={"num_train_timesteps": 50}, training=settings)


def _with(recipe, **training):
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=training)})


@pytest.mark.parametrize("options", [{}, {"flip": True}, {"flip": True, "precision": "bf16"}, {"dropout": 0.5}])
def test_resume_equals_uninterrupted(options, recipe, data, tmp_path, monkeypatch):
    recipe = recipe.model_copy(update={"unet": recipe.unet | {"dropout": options.pop("dropout", 0.0)}})
    recipe = _with(recipe, **options)
    whole = load_file(train(recipe, data, tmp_path / "whole") / "unet" / "diffusion_pytorch_model.safetensors")

    def save_and_stop(*arguments):
        save_state(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(vdu.training.averaged_training, "save_state", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, data, tmp_path / "parts")
    parts = load_file(train(recipe, data, tmp_path / "parts") / "unet" / "diffusion_pytorch_model.safetensors")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert len(list((tmp_path / "parts" / "checkpoints").iterdir())) == 2


def test_a_recipe_can_start_from_the_weights_of_another_model(recipe, data, tmp_path):
    first = train(recipe, data, tmp_path / "first")
    # A rate at which nothing moves: what comes out is what it began with.
    still = _with(recipe, learning_rate=1e-30).model_copy(update={"start_from": str(first)})
    begun = load_file(train(still, data, tmp_path / "second") / "unet" / "diffusion_pytorch_model.safetensors")
    weights = load_file(first / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(begun[name], weights[name]) for name in weights)
    provenance = json.loads((tmp_path / "second" / "provenance.json").read_text())
    assert provenance["started_from"] == {
        "model": str(first),
        "sha256": weights_sha256(UNet2DModel.from_pretrained(first / "unet")),
    }
    with pytest.raises(VduError, match="other settings"):
        train(still, data, tmp_path / "first")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"unet": {"block_out_channels": [8, 24]}}, "its block_out_channels is [8, 16], the recipe's [8, 24]"),
        ({"unet": {"norm_num_groups": 2}}, "its norm_num_groups is 4, the recipe's 2"),
        ({"noise": {"prediction_type": "v_prediction"}}, "it predicts epsilon, the recipe's network v_prediction"),
        ({"noise": {"beta_schedule": "squaredcos_cap_v2"}}, "its noise schedule is another one"),
        ({"start_from": "mnits"}, "no model 'mnits': did you mean 'mnist'"),
        ({"start_from": "emoji"}, "it is no unconditional DDPM"),
        ({"without": ["3"]}, "which recipe tiny starts from, may have seen 3: remove start_from"),
    ],
)
def test_what_cannot_be_started_from_is_refused_before_any_work(change, said, recipe, data, tmp_path):
    first = train(recipe, data, tmp_path / "first")
    change = {k: getattr(recipe, k) | v if isinstance(v, dict) else v for k, v in change.items()}
    with pytest.raises(VduError, match=re.escape(said)):
        train(recipe.model_copy(update={"start_from": str(first)} | change), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_state_of_other_settings_is_refused(recipe, data, tmp_path):
    train(recipe, data, tmp_path / "run")
    for other in (_with(recipe, seed=1), _with(recipe, flip=True)):
        with pytest.raises(VduError, match="other settings"):
            train(other, data, tmp_path / "run")
    images = data / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1] + b"\0")
    with pytest.raises(VduError, match="other settings"):
        train(_with(recipe, cycle_steps=[6, 4]), data, tmp_path / "run")


def test_a_recipe_with_a_further_cycle_goes_on_with_what_is_there(recipe, data, tmp_path):
    longer = _with(recipe, cycle_steps=[6, 4])
    whole = train(longer, data, tmp_path / "whole")
    train(recipe, data, tmp_path / "parts")
    parts = train(longer, data, tmp_path / "parts")
    weights = [load_file(folder / "unet" / "diffusion_pytorch_model.safetensors") for folder in (whole, parts)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert (tmp_path / "parts" / "log.jsonl").is_file()
    with pytest.raises(VduError, match="other settings"):
        train(_with(recipe, cycle_steps=[5, 4]), data, tmp_path / "parts")


def test_a_loss_that_is_not_finite_ends_the_training_and_leaves_the_last_state(recipe, data, tmp_path):
    wild = _with(recipe, learning_rate=1e25, warmup_steps=0, state_every_steps=1)
    said = rf"not finite at step (\d), the state of an earlier step is kept in {tmp_path}/run/state.safetensors: give a"
    with pytest.raises(VduError, match=said) as ended:
        train(wild, data, tmp_path / "run")
    failed_at = int(re.search(said, str(ended.value)).group(1))
    tensors, metadata = read_tensors(tmp_path / "run" / "state.safetensors")
    assert int(metadata["step"]) == failed_at - 1
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert not (tmp_path / "run" / "pipeline").exists()


def _log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_log_of_a_resumed_run_is_that_of_an_uninterrupted_one(recipe, data, tmp_path, monkeypatch):
    monkeypatch.setattr(vdu.training.averaged_training, "LOG_EVERY_STEPS", 2)
    recipe = _with(recipe, cycle_steps=[9])
    train(recipe, data, tmp_path / "whole")
    whole, loss = _log(tmp_path / "whole"), vdu.training.denoiser._loss
    assert [line["step"] for line in whole] == [2, 3, 4, 6, 8, 9]

    def stop_at_eight(*arguments):
        if arguments[-1] == 8:
            raise KeyboardInterrupt
        return loss(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(vdu.training.denoiser, "_loss", stop_at_eight)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, data, tmp_path / "parts")
    assert [line["step"] for line in _log(tmp_path / "parts")] == [2, 3, 4, 6, 8]
    with (tmp_path / "parts" / "log.jsonl").open("a") as log:
        log.write('{"step": 9, "lo')
    train(recipe, data, tmp_path / "parts")
    parts = _log(tmp_path / "parts")
    assert [(line["step"], line["loss"]) for line in parts] == [(line["step"], line["loss"]) for line in whole]
    assert [line["seconds"] for line in parts] == sorted(line["seconds"] for line in parts)


def test_training_regresses_what_the_pipeline_says_that_it_predicts(recipe, data, tmp_path):
    """On one constant image the exact answer is known."""
    corpus = Corpus(torch.full((1, 1, 8, 8), 191).byte(), torch.zeros(1), ("a",), "", "tiny", True, True)
    x = 191 / 127.5 - 1

    class Exact(torch.nn.Linear):
        def forward(self, x_t, t):
            a = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
            eps = (x_t - a.sqrt() * x) / (1 - a).sqrt()
            v = a.sqrt() * eps - (1 - a).sqrt() * x
            return SimpleNamespace(sample={"epsilon": eps, "v_prediction": v, "sample": torch.full_like(x_t, x)}[kind])

    for trained in ("epsilon", "v_prediction", "sample"):
        scheduler = DDPMScheduler(num_train_timesteps=50, prediction_type=trained)
        for kind in ("epsilon", "v_prediction", "sample"):
            loss = vdu.training.denoiser._loss(Exact(1, 1), scheduler, corpus, recipe.training, step=0)
            assert (loss < 1e-6) == (kind == trained), (trained, kind)


def test_the_weights_depend_on_the_prediction_type(recipe, data, tmp_path):
    weights = []
    for kind in ("epsilon", "v_prediction"):
        other = recipe.model_copy(update={"noise": recipe.noise | {"prediction_type": kind}})
        folder = train(other, data, tmp_path / kind)
        assert DDPMPipeline.from_pretrained(folder).scheduler.config.prediction_type == kind
        weights.append(load_file(folder / "unet" / "diffusion_pytorch_model.safetensors"))
    assert not torch.equal(weights[0]["conv_out.weight"], weights[1]["conv_out.weight"])


def test_flips_are_half_of_the_images_and_leave_the_other_draws(recipe, monkeypatch):
    corpus = Corpus(torch.arange(4).expand(50, 1, 4, 4).byte(), torch.zeros(50), ("a",), "", "tiny", True, True)
    seen = []

    class Echo(torch.nn.Linear):
        def forward(self, x_t, t):
            seen.append((x_t, t))
            return SimpleNamespace(sample=x_t)

    scheduler = DDPMScheduler(num_train_timesteps=50)
    for flip in (False, True, True):
        vdu.training.denoiser._loss(
            Echo(1, 1), scheduler, corpus, _with(recipe, flip=flip, batch_size=200).training, step=3
        )
    (plain, t), (flipped, t_flipped), (again, _) = seen
    assert torch.equal(t, t_flipped)
    assert torch.equal(flipped, again)
    share = (plain != flipped).any(dim=(1, 2, 3)).double().mean()
    assert 0.35 < share < 0.65


def test_an_option_left_at_its_default_keeps_the_hash_of_a_recipe():
    shipped = find_zoo_model("mnist").provenance
    assert Recipe.model_validate(shipped["recipe"]).sha256() == shipped["recipe_sha256"]


@pytest.mark.parametrize("name", [p.stem for p in sorted(RECIPES.glob("*.toml")) if not is_text_recipe(p.stem)])
def test_shipped_recipes_make_a_network(name):
    recipe = read_recipe(name)
    network = UNet2DModel(**recipe.unet)
    assert (5e5 if name.endswith("-14") else 2e6) < sum(p.numel() for p in network.parameters()) < 5e6
    assert len(recipe.training.checkpoint_steps()) == recipe.training.posterior_checkpoints
    assert recipe.training.flip == ("mnist" not in recipe.corpus)


@pytest.mark.parametrize("unet", [{"in_channels": 3}, {"sample_size": None}])
def test_a_network_that_does_not_fit_the_corpus_is_refused(unet, recipe, data):
    with pytest.raises(VduError, match="does not fit mnist"):
        recipe.model_copy(update={"unet": recipe.unet | unet}).load_corpus(data)


def test_garments_are_read_as_digits_are(data):
    digits, garments = load_corpus("mnist", data), load_corpus("fashion-mnist", data)
    assert torch.equal(garments.images, digits.images)
    assert torch.equal(garments.labels, digits.labels)
    assert garments.class_names[7:] == ("sneaker", "bag", "boot")
    assert (garments.redistributable, garments.mirror_keeps_class, digits.mirror_keeps_class) == (True, True, False)


def test_files_that_are_not_the_corpus_are_refused(data, tmp_path):
    with pytest.raises(VduError, match=r"no train-images.*mnist-data"):
        load_corpus("mnist", tmp_path)
    with pytest.raises(VduError, match=r"no train-images.*dataset-fashion-mnist"):
        load_corpus("fashion-mnist", tmp_path)
    images = data / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-5])
    with pytest.raises(VduError, match="cut short"):
        load_corpus("mnist", data)
    images.write_bytes(images.read_bytes()[:9])
    with pytest.raises(VduError, match="cut short"):
        load_corpus("mnist", data)
    images.write_bytes(b"PK not idx")
    with pytest.raises(VduError, match="not an IDX file"):
        load_corpus("mnist", data)
    images.unlink()
    images.with_name(f"{images.name}.gz").write_bytes(b"not packed")
    with pytest.raises(VduError, match="cannot be unpacked"):
        load_corpus("mnist", data)
    write_idx(images, torch.zeros(19, 8, 8, dtype=torch.uint8))
    with pytest.raises(VduError, match="19 images and 20 labels"):
        load_corpus("mnist", data)
    write_idx(images, torch.zeros(20, dtype=torch.uint8))
    with pytest.raises(VduError, match=r"\(20, 1\) as images and \(20,\) as labels: give those of mnist"):
        load_corpus("mnist", data)


def test_a_folder_of_something_else_is_not_trained_into(recipe, data, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model_index.json").write_text("{}")
    with pytest.raises(VduError, match="holds what `vdu train` did not write"):
        train(recipe, data, tmp_path / "mine")
    (tmp_path / "a file").write_text("")
    with pytest.raises(VduError, match="is a file"):
        train(recipe, data, tmp_path / "a file" / "run")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["model_index.json"]


def test_a_log_that_is_none_is_named(recipe, data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").write_text("{}\n")
    with pytest.raises(VduError, match=r"log\.jsonl is no log of a run"):
        train(recipe, data, tmp_path / "run")


def test_unknown_recipes_and_settings_are_refused(tmp_path):
    with pytest.raises(VduError, match="did you mean 'mnist'"):
        read_recipe("mnst")
    (tmp_path / "bad.toml").write_text('name = "x"\ncolour = 3\n')
    with pytest.raises(VduError, match=r"corpus is missing.*colour is no setting"):
        read_recipe(str(tmp_path / "bad.toml"))
    (tmp_path / "bad.toml").write_text("name = x")
    with pytest.raises(VduError, match="is no TOML file"):
        read_recipe(str(tmp_path / "bad.toml"))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("state_every_steps = 0", "training.state_every_steps = 0: input should be greater than or equal to 1"),
        ("cycle_steps = []", r"training.cycle_steps = \[\]: list should have at least 1 item"),
        ("cycle_steps = [0]", "training.cycle_steps.0 = 0: input should be greater"),
        ("batch_size = 0", "training.batch_size = 0: "),
        ("learning_rate = -1e-3", "training.learning_rate = -0.001: "),
        ("warmup_steps = -1", "training.warmup_steps = -1: "),
        ("ema_decay = 1.0", "training.ema_decay = 1.0: "),
        ("min_snr_gamma = 0", "training.min_snr_gamma = 0: "),
        ("max_gradient_norm = 0", "training.max_gradient_norm = 0: "),
        ("seed = -1", "training.seed = -1: "),
        ("posterior_checkpoints = 9000", "posterior_checkpoints = 9000: the last 30% of 14000 steps have room for"),
        ("posterior_from_fraction = 1.0", "training.posterior_from_fraction = 1.0: "),
        ("layers_per_block = 1\nnorm_groups = 4", "unet has no setting 'norm_groups': did you mean 'norm_num_groups'"),
        ("norm_num_groups = 5", "unet makes no UNet2DModel: "),
        ("sample_size = 30", r"unet does not take \[1, 30, 30\]: "),
        ("sample_size = [28, 28]", "unet needs whole numbers as in_channels and sample_size"),
        ("out_channels = 2", r"unet must keep the shape of what is noised, \[1, 28, 28\], and makes \[2, 28, 28\]"),
        ('prediction_type = "flow"', "noise.prediction_type = 'flow': Known: epsilon"),
        ('beta_schedule = "none"', "noise makes no DDPMScheduler: none is not implemented"),
        ("num_train_timesteps = 9\nwings = 2", "noise has no setting 'wings'"),
    ],
)
def test_settings_that_no_model_can_be_trained_with_are_refused_in_one_line(setting, said, tmp_path):
    name = setting.split()[0]
    shipped = (RECIPES / "mnist.toml").read_text()
    bad = re.sub(rf"^{name} = .*$", setting, shipped, flags=re.MULTILINE)
    assert bad != shipped
    (tmp_path / "bad.toml").write_text(bad)
    with pytest.raises(VduError, match=f"is not valid: {said}") as error:
        read_recipe(str(tmp_path / "bad.toml"))
    assert "\n" not in str(error.value)
