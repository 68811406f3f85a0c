"""Methods that start from words: equal to naive versions of their formulas, refused without words, run end to end."""

import math
from functools import partial

import pytest
import torch
from conftest import interrupted_after_state, preparing_with, run_vdu
from conftest import make_pipeline as make_image_pipeline
from PIL import Image
from tiny_stable_diffusion import make_pipeline, make_xl_pipeline

from vdu import VduError, unlearn
from vdu.backbone import load_backbone
from vdu.diffusion.noising import Clean
from vdu.diffusion.sampling import sample
from vdu.methods import METHODS, make_settings
from vdu.methods.esd_prompt import NegativeGuidance
from vdu.methods.salun import _relabelling
from vdu.objective.another_prompt import AnotherPrompt
from vdu.objective.surrogate import AnotherImage
from vdu.preparation.preparation import Preparation
from vdu.prompts import Prompts
from vdu.text.closed_form import closed_form_factor, own_places
from vdu.weights.parameters import chosen_names, trained_copy

WORDED = ("concept-ablation", "esd-prompt", "uce")
ASKED = Prompts(("a red pear", "a blue apple in noto style", ""), ("noto style",), 2.0)
FEW = {"own_count": 8, "own_sampler_steps": 2}
IMAGES = {"concept-ablation": "anchor_images", "esd-prompt": "concept_images"}


@pytest.fixture(params=["epsilon", "v_prediction"])
def backbone(tmp_path, request):
    return load_backbone(make_pipeline(tmp_path, request.param), ASKED)


@pytest.fixture
def preparation(backbone):
    return Preparation(backbone, Clean(torch.randn(3, 4, 8, 8), backbone.condition(["noto style"] * 3)), 0, **FEW)


@pytest.fixture
def moved(backbone):
    """A network that is no longer the original."""
    network = backbone.trainable_copy()
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=g))
    return network


def _said(backbone, network, x_t, t, text):
    states = backbone.pipeline.encode_prompt([text], "cpu", 1, False)[0]
    return network(x_t, t, encoder_hidden_states=states).sample


def _one(backbone, images, g):
    """Number, time and noised latent of one image, drawn as the terms draw them for a batch of one."""
    i = int(torch.randint(len(images), (1,), generator=g))
    t = torch.randint(backbone.timesteps, (1,), generator=g)
    eps, a = torch.randn(1, 4, 8, 8, generator=g), backbone.alpha_bar[t].view(1, 1, 1, 1)
    return i, t, a.sqrt() * images[i] + (1 - a).sqrt() * eps


def _seeds(count=4):
    return [[torch.Generator().manual_seed(i) for _ in range(2)] for i in range(count)]


def test_esd_prompt_regresses_on_negative_guidance_in_eps(backbone, moved):
    texts = ["noto style", "a red apple"]
    images = Clean(torch.randn(2, 4, 8, 8), backbone.condition(texts))
    term = NegativeGuidance(backbone, images, 1.5)
    for g, again in _seeds():
        i, t, x_t = _one(backbone, images.x_0, g)
        empty, concept = (backbone.to_eps(_said(backbone, backbone.network, x_t, t, c), x_t, t) for c in ("", texts[i]))
        target = backbone.from_eps(empty - 1.5 * (concept - empty), x_t, t)
        naive = ((_said(backbone, moved, x_t, t, texts[i]) - target) ** 2).mean()
        torch.testing.assert_close(term(moved, 1, again), naive, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("own", ["asked", "taught"])
def test_another_prompt_is_taught_what_the_network_itself_says(backbone, moved, own):
    texts, others = ["a red apple", "a blue pear"], ["noto style", "a pear"]
    images = Clean(torch.randn(2, 4, 8, 8), backbone.condition(texts))
    term = AnotherPrompt(backbone, images, backbone.condition(others), own)
    weights = [p for n, p in moved.named_parameters() if ".attn2.to_v" in n]
    for g, again in _seeds():
        i, t, x_t = _one(backbone, images.x_0, g)
        pair = texts[i], others[int(torch.randint(2, (1,), generator=g))]
        asked, taught = pair if own == "asked" else pair[::-1]
        target = _said(backbone, moved, x_t, t, taught).detach()
        naive, found = ((_said(backbone, moved, x_t, t, asked) - target) ** 2).mean(), term(moved, 1, again)
        torch.testing.assert_close(found, naive, rtol=1e-4, atol=1e-7)
        pairs = zip(torch.autograd.grad(found, weights), torch.autograd.grad(naive, weights), strict=True)
        for one, other in pairs:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-7)


def test_the_closed_form_is_the_minimiser_of_its_least_squares_problem():
    g = torch.Generator().manual_seed(0)
    c, anchor, kept = (torch.randn(n, 6, generator=g).double() for n in (4, 4, 9))
    original, (hold, erase, keep) = torch.randn(3, 6, generator=g).double(), (0.5, 2.0, 0.3)
    rows = torch.cat([math.sqrt(hold) * torch.eye(6), math.sqrt(erase) * c, math.sqrt(keep) * kept])
    wanted = [hold**0.5 * original.T, erase**0.5 * anchor @ original.T, keep**0.5 * kept @ original.T]
    minimiser = torch.linalg.lstsq(rows, torch.cat(wanted)).solution.T
    factor = closed_form_factor(c, anchor, kept, hold=hold, erase=erase, keep=keep)
    torch.testing.assert_close(original @ factor, minimiser)


def test_uce_sets_keys_and_values_and_keeps_the_prompts_that_name_no_concept(preparation):
    backbone, settings = preparation.backbone, make_settings(METHODS["uce"], {"hold": 0.01})
    network = trained_copy(backbone, settings.parameters, 8, 0)
    edit = METHODS["uce"].build(settings, preparation, network)
    before = edit.gradient(network, 1, torch.Generator(), "fp32")
    edit.after_step(1e-4)
    after, original = edit.gradient(network, 1, torch.Generator(), "fp32"), dict(backbone.network.named_parameters())
    assert float(after) < 0.2 * float(before)
    changed = {n for n, p in network.named_parameters() if not torch.equal(p, original[n])}
    assert changed == {n for n in original if n.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
    states = {
        text: backbone.pipeline.encode_prompt([text], "cpu", 1, False)[0][0] for text in (*ASKED.neutral, "noto style")
    }
    rows = [(states["noto style"][1:], states[""][1:], 1.0), *((states[p],) * 2 + (0.5,) for p in ("a red pear", ""))]
    for name in changed:
        weight, fixed = (dict(n.named_parameters())[name].detach().double() for n in (network, backbone.network))
        slope = 0.01 * (weight - fixed)
        for c, v, s in rows:  # the gradient of the published objective vanishes
            slope = slope + s * (c.double() @ weight.T - v.double() @ fixed.T).T @ c.double()
        assert float(slope.abs().max()) < 1e-4


def _left(backbone, preparation, **values):
    """How far the concept's own states are from the anchor's after the edit, as a share of before."""
    settings = make_settings(METHODS["uce"], values)
    network = trained_copy(backbone, settings.parameters, 8, 0)
    edit = METHODS["uce"].build(settings, preparation, network)
    before = float(edit.gradient(network, 1, torch.Generator(), "fp32"))
    edit.after_step(1e-4)
    return float(edit.gradient(network, 1, torch.Generator(), "fp32")) / before


def test_a_long_list_of_neutral_prompts_does_not_undo_the_erasing(tmp_path):
    pipeline, words = make_pipeline(tmp_path), ("red", "blue", "apple", "pear", "in")
    neutral = tuple(f"a {x} {y}" for x in words for y in words)
    few, many, undone = (
        _left(backbone, Preparation(backbone, Clean(torch.zeros(1, 4, 8, 8)), 0), keep=keep)
        for count, keep in ((2, 1.0), (25, 1.0), (25, 25.0))
        for backbone in [load_backbone(pipeline, Prompts(neutral[:count], ("noto style",)))]
    )
    assert few < 0.2
    assert many < 2 * few
    assert undone > 2 * many


def test_what_a_concept_begins_with_in_common_with_kept_prompts_is_not_edited(backbone):
    own = own_places(backbone, ["a red apple", "noto style"], ["a red pear", "a pear", ""])
    assert own.tolist() == [[False] * 3 + [True] * 9, [False] + [True] * 11]
    shared, other = backbone.states_of(["a red apple", "a red pear"])
    torch.testing.assert_close(shared[:3], other[:3])
    assert not torch.allclose(shared[3], other[3])


def test_an_anchor_can_be_chosen(preparation):
    backbone, settings = preparation.backbone, {"anchor": "a pear", "hold": 1e-4, "keep": 0.0}
    edit = METHODS["uce"].build(
        make_settings(METHODS["uce"], settings),
        preparation,
        trained_copy(backbone, METHODS["uce"].settings().parameters, 8, 0),
    )
    concept, anchor = backbone.states_of(["noto style", "a pear"])
    torch.testing.assert_close(edit.form.concepts, concept[1:])
    torch.testing.assert_close(concept[1:] @ edit.form.factor.T.float(), anchor[1:], rtol=0.05, atol=0.05)
    chosen = make_settings(METHODS["concept-ablation"], {"anchor": "a pear", "anchor_images": 3})
    images = METHODS["concept-ablation"].build(chosen, preparation, None).plasticity.images
    assert images.c.tolist() == backbone.condition(["a pear"] * 3).tolist()


def test_a_concept_that_reads_as_its_anchor_is_refused(preparation):
    network = trained_copy(preparation.backbone, METHODS["uce"].settings().parameters, 8, 0)
    with pytest.raises(VduError, match="'noto style' reads as the anchor"):
        METHODS["uce"].build(make_settings(METHODS["uce"], {"anchor": "noto style"}), preparation, network)


def test_samples_are_asked_with_the_texts_that_were_given(preparation):
    found = preparation.samples_of(["a red apple", "noto style"], 3)
    assert found.c.tolist() == preparation.backbone.condition(["a red apple", "noto style", "a red apple"]).tolist()
    other = load_backbone(preparation.backbone.pipeline, Prompts(("a red apple",), ("noto style",), 2.0))
    torch.testing.assert_close(found.x_0, sample(other, other.network, 3, 0, steps=2, purpose="asked"))


def test_methods_take_their_images_from_the_right_prompts(preparation):
    made = {m: METHODS[m].build(make_settings(METHODS[m], {IMAGES[m]: 4}), preparation, None) for m in IMAGES}
    number = {text: int(preparation.backbone.condition([text])) for text in (*ASKED.neutral, "noto style")}
    ablation, esd = (made[m].plasticity for m in ("concept-ablation", "esd-prompt"))
    assert ablation.images.c.tolist() == [number["a red pear"], number[""]] * 2
    assert ablation.others.tolist() == [number["noto style"]]
    assert ablation.own == "taught"
    assert esd.images.c.tolist() == [number["noto style"]] * 4


def test_salun_relabels_by_prompts_only_where_they_tell_the_sides_apart(preparation):
    backbone, forget = preparation.backbone, preparation.forget
    kept = Clean(forget.x_0, backbone.condition(["a pear", "noto style", "a pear"]))
    term = _relabelling(backbone, forget, kept)
    assert isinstance(term, AnotherPrompt)
    assert term.own == "asked"
    assert set(term.others.tolist()) == set(backbone.condition(["a pear"]).tolist())
    nameless = Clean(forget.x_0, backbone.condition([""] * 3))
    assert isinstance(_relabelling(backbone, nameless, kept), AnotherImage)
    assert isinstance(_relabelling(backbone, forget, forget), AnotherImage)
    assert isinstance(_relabelling(backbone, Clean(forget.x_0), Clean(forget.x_0)), AnotherImage)


def _forget_folder(path):
    path.mkdir()
    for i in range(3):
        Image.new("RGB", (16, 16), (60 * i, 255 - 60 * i, 128)).save(path / f"{i}.png")
    return path


@pytest.mark.parametrize("method", WORDED)
def test_a_run_from_words_moves_cross_attention_and_is_reproducible(method, tmp_path, monkeypatch):
    monkeypatch.setattr("vdu.unlearning.Preparation", preparing_with(**FEW))
    pipeline, folder = make_pipeline(tmp_path, "v_prediction"), _forget_folder(tmp_path / "bad")
    steps = 1 if method == "uce" else 2
    settings = {"steps": steps, "batch_size": 2, "guard_every_steps": 0} | (
        {IMAGES[method]: 4} if method in IMAGES else {}
    )
    run = partial(unlearn, pipeline, folder, method, prompts=ASKED, settings=settings, precision="fp32")
    first, second = run(), run()
    assert first.record["result_sha256"] == second.record["result_sha256"] != first.record["model_sha256"]
    assert [math.isfinite(h["loss"]) for h in first.record["history"]] == [True] * steps
    before = dict(first.original.network.named_parameters())
    moved = {n for n, p in first.pipeline.unet.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert all(".attn2." in name for name in moved)


@pytest.mark.parametrize("method", WORDED)
def test_without_words_or_a_model_that_takes_them_nothing_starts(method, tmp_path, monkeypatch, capsys):
    folder, images = _forget_folder(tmp_path / "bad"), torch.zeros(2, 1, 8, 8)
    make_pipeline(tmp_path).save_pretrained(tmp_path / "model")
    capsys.readouterr()  # the progress bar of saving
    basic = ("unlearn", tmp_path / "model", "--forget", folder, "--out", tmp_path / "out", "--method", method)
    code, _, err = run_vdu(monkeypatch, capsys, *basic)
    said = f"method {method} needs the concept in words: give --prompt TEXT (and a model that takes text)"
    assert (code, err.strip()) == (2, f"vdu: {said}")
    with pytest.raises(VduError, match="takes no prompts"):
        unlearn(make_image_pipeline(), images, method, prompts=ASKED)
    with pytest.raises(VduError, match="a model that takes text"):
        unlearn(make_image_pipeline(), images, method)


def test_settings_that_the_closed_form_has_no_use_for_are_refused(preparation):
    for values, said in (({"steps": 2}, "steps=2"), ({"parameters": "lora"}, "a LoRA cannot")):
        with pytest.raises(VduError, match=said):
            make_settings(METHODS["uce"], values)
    settings = make_settings(METHODS["uce"], {"parameters": "cross-attention"})
    with pytest.raises(VduError, match="keys and values of cross-attention only"):
        METHODS["uce"].build(settings, preparation, trained_copy(preparation.backbone, settings.parameters, 8, 0))


def test_a_part_and_all_but_this_part_are_the_network(backbone):
    inside, outside = (chosen_names(backbone.network, name) for name in ("cross-attention", "not-cross-attention"))
    assert inside == {name for name, _ in backbone.network.named_parameters() if ".attn2." in name}
    assert inside | outside == {name for name, _ in backbone.network.named_parameters()}
    assert not inside & outside
    with pytest.raises(VduError, match="no parameter matches 'not-there'"):
        chosen_names(backbone.network, "not-there")


def _run(pipeline, folder, method, steps, **options):
    few = {IMAGES[method]: 4} if method in IMAGES else {}
    settings = {"steps": steps, "batch_size": 2} | few
    return unlearn(pipeline, folder, method, prompts=ASKED, settings=settings, precision="fp32", **options)


@pytest.mark.parametrize("method", sorted(IMAGES))
def test_a_resumed_run_equals_an_uninterrupted_one(method, tmp_path, monkeypatch):
    monkeypatch.setattr("vdu.unlearning.Preparation", preparing_with(**FEW))
    pipeline, folder = make_pipeline(tmp_path), _forget_folder(tmp_path / "bad")
    whole = _run(pipeline, folder, method, 12)
    with interrupted_after_state(monkeypatch):
        _run(pipeline, folder, method, 12, state_folder=tmp_path / "state")
    resumed = _run(pipeline, folder, method, 12, state_folder=tmp_path / "state")
    assert resumed.record["result_sha256"] == whole.record["result_sha256"]
    assert len(resumed.record["history"]) == 12


@pytest.mark.parametrize("method", WORDED)
def test_a_larger_model_of_two_text_encoders_is_unlearned_from_words_too(method, tmp_path, monkeypatch):
    monkeypatch.setattr("vdu.unlearning.Preparation", preparing_with(**FEW))
    folder = _forget_folder(tmp_path / "bad")
    record = _run(make_xl_pipeline(tmp_path), folder, method, 1 if method == "uce" else 2).record
    assert all(math.isfinite(step["loss"]) for step in record["history"])
    assert record["result_sha256"] != record["model_sha256"]
