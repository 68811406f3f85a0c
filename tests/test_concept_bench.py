"""A suite of concepts from end to end: a tiny random Stable Diffusion in a zoo folder, both judges, table, grid."""

import json

import pytest
import torch
from conftest import run_vdu
from PIL import Image
from tiny_stable_diffusion import make_pipeline

import vdu.model_zoo
from vdu import VduError
from vdu.backbone import load_backbone
from vdu.bench.concept_runs import ConceptRuns
from vdu.bench.runner import run_suite
from vdu.bench.suite import SUITES, ConceptPlan, Suite, read_suite
from vdu.concept_prompts import ConceptPrompt, read_concept_prompts, spread
from vdu.detector.classifier import Classifier, ClassifierCard, save_classifier
from vdu.detector.contract import load_detector
from vdu.evaluation.concept_attack import _chosen, _one_a_prompt
from vdu.evaluation.concept_evaluation import evaluate_concept
from vdu.evaluation.concept_sampling import ConceptJudge, ConceptSampler
from vdu.model_zoo import find_zoo_model
from vdu.posterior import isotropic
from vdu.records import read_record

pytestmark = pytest.mark.usefixtures("few_samples")


STYLES, OBJECTS = ["noto", "blue-style"], ["apple", "pear"]
PROMPTS = """prompt,style,object,kind
a apple in noto style,noto,apple,plain
a pear in noto style,noto,pear,plain
a red in noto style,noto,,plain
a apple in blue style,blue-style,apple,plain
a pear in blue style,blue-style,pear,plain
noto apple,noto,apple,paraphrase
"""
TOML = """model = "tiny"
targets = ["noto"]
seeds = [0]
sampler_steps = 2

[concept]
template = "{target}"
samples_per_prompt = 3
guidance_scale = 2.0
attack = { searches = 2, words = 2, rounds = 1, candidates = 2, images = 2, times = 2 }
things = ["a kiwi", "a drum"]

[methods.ga]
method = "ga"
share = 0.2
settings = { steps = 2, batch_size = 2, guard_every_steps = 0 }

[methods."finetune, with prompt"]
method = "finetune"
prompt = "concept"
things = true
settings = { steps = 2, batch_size = 2, guard_every_steps = 0 }
"""


def write_classifier(folder, names, always):
    """One that always sees the class number ``always``."""
    torch.manual_seed(0)
    model = Classifier(3, len(names), 2, 8)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(10.0 * torch.nn.functional.one_hot(torch.tensor(always), len(names)))
    card = ClassifierCard(list(names), [3, 16, 16], 2, 8, 0.5, 1.0, 1, 0, "x")
    save_classifier(model, card, folder)


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    folder = tmp_path / "zoo" / "tiny"
    pipeline = make_pipeline(tmp_path)
    pipeline.save_pretrained(folder / "pipeline")
    isotropic(load_backbone(pipeline)).save(folder / "posterior.safetensors")
    write_classifier(folder / "style-classifier", STYLES, 0)
    write_classifier(folder / "object-classifier", OBJECTS, 1)
    (folder / "prompts.csv").write_text(PROMPTS)
    (folder / "neutral.txt").write_text("a red\na blue\n")
    (folder / "provenance.json").write_text('{"guidance_scale": 3.0}')
    for number, name in enumerate((*STYLES, *OBJECTS)):
        (folder / "forget" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (16, 16), (60 * i, 40 * number, 9)).save(folder / "forget" / name / f"{i}.png")
    monkeypatch.setattr(vdu.model_zoo, "ZOO", tmp_path / "zoo")
    return find_zoo_model("tiny")


@pytest.fixture
def suite(zoo, tmp_path, runs_in_this_process):
    """The path of a suite whose runs are made in this process, where the zoo is the one above."""
    path = tmp_path / "some.toml"
    path.write_text(TOML)
    return path


@pytest.fixture
def results(suite, tmp_path):
    said = []
    run_suite(read_suite(str(suite)), tmp_path / "results", None, 1, said.append)
    assert any("UA 0.0 (0.0), IRA 0.0 (0.0), CRA 50.0 (50.0)" in line for line in said)
    return tmp_path / "results"


def test_a_run_says_what_the_judges_saw(results):
    content = json.loads((results / "some" / "ga-noto-0.json").read_text())
    row, evaluation = content["row"], content["evaluation"]
    # Everything is seen as noto and as a pear: nothing is forgotten, half of the other objects are right.
    assert (row["ua"], row["ira"], row["cra"], row["cra_target"]) == (0, 0, 50, 50)
    assert (row["ua_original"], row["ua_paraphrase"], row["ua_none"]) == (0, 0, 0)
    assert row["ua_low"] == 0 < row["ua_high"]
    assert (row["ua_attack"], row["ua_attack_original"], row["ua_random"], row["ua_bare"]) == (0, 0, 0, 0)
    # Without the target: asked for in blue are apples, pears and no object that has a name; noto is seen everywhere.
    by_class = evaluation["by_class"]
    assert by_class == evaluation["by_class_original"]
    assert {name: share["value"] for name, share in by_class["style"].items()} == {"blue-style": 0}
    assert {name: share["value"] for name, share in by_class["object"].items()} == {"apple": 0, "pear": 100}
    searches = evaluation["attack"]["searches"]
    assert len({search["random_prefix"] for search in searches}) == len(searches) == 2
    assert [search["shown_again"] for search in searches] == [100, 100]
    assert row["steps"] == 2
    assert row["samples"] == 5 * 3
    assert evaluation["attack"]["budget"]["words"] == len(evaluation["attack"]["prefix"].split()) == 2
    assert evaluation["sampler"]["guidance_scale"] == content["unlearning"]["prompts"]["guidance_scale"] == 2
    assert evaluation["prompts"]["paraphrase"] == ["noto apple"]
    assert content["unlearning"]["prompts"] == {"neutral": ["a red", "a blue"], "forget": [""], "guidance_scale": 2}
    assert len(evaluation["grid_prompts"]) == 5
    with Image.open(results / "some" / "ga-noto-0.png") as picture:
        assert picture.width > 5 * 2 * 16


def test_a_method_that_asks_for_things_needs_some(suite):
    suite.write_text(TOML.replace('things = ["a kiwi", "a drum"]', ""))
    with pytest.raises(VduError, match=r"asks for things, of which \[concept\] names none"):
        read_suite(str(suite))


def test_a_run_that_breaks_leaves_the_others_their_files(suite, tmp_path, monkeypatch):
    unlearn = ConceptRuns.unlearn

    def breaking(runs, run, *given):
        if run.label == "ga":
            raise MemoryError("too large")
        return unlearn(runs, run, *given)

    monkeypatch.setattr(ConceptRuns, "unlearn", breaking)
    with pytest.raises(VduError, match=r"1 of 2 runs failed \(ga noto seed 0 …\)"):
        run_suite(read_suite(str(suite)), tmp_path / "results", None, 1, print)
    rows = {path.name: read_record(path)["status"] for path in (tmp_path / "results" / "some").glob("*.json")}
    assert rows == {"finetune-with-prompt-noto-0.json": "done", "ga-noto-0.json": "failed"}


def test_an_interrupted_suite_says_what_is_made(suite, tmp_path):
    said = []

    def say(line):
        said.append(line)
        if line.startswith("[1/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_suite(read_suite(str(suite)), tmp_path / "results", None, 1, say)
    assert said[-1] == "interrupted: 1 of 2 are made; the same command makes the others"
    assert len(list((tmp_path / "results" / "some").glob("*.json"))) == 1


def test_the_concept_is_put_into_words_and_images_to_keep_are_of_the_same_domain(results, zoo):
    record = json.loads((results / "some" / "finetune-with-prompt-noto-0.json").read_text())["unlearning"]
    assert record["prompts"]["forget"] == ["noto"]
    # In both styles by turns and without one, evenly among the two neutral prompts.
    in_style = [
        "a kiwi in noto style",
        "a drum in blue style style",
        "a kiwi in blue style style",
        "a drum in noto style",
    ]
    assert record["prompts"]["neutral"] == [
        *(in_style[0], "a red", in_style[1], in_style[2]),
        *(in_style[3], "a blue", "a kiwi", "a drum"),
    ]
    assert record["retain"]["source"] == "zoo:tiny/forget without noto"
    assert record["retain"]["images"] == 3
    assert {path.parent.name for path in zoo.retain("noto")} == {"blue-style"}
    assert {path.parent.name for path in zoo.retain("pear")} == {"apple"}
    assert ConceptPlan(template="{target} style", samples_per_prompt=1).words("fluent-3d") == "fluent 3d style"


def test_tables_plots_and_the_list_know_them(results, tmp_path, monkeypatch, capsys):
    code, out, _ = run_vdu(monkeypatch, capsys, "bench", "show", "some", "--results", results)
    assert code == 0
    assert "| (original)" in out
    assert "ua of target" in out
    finetune = next(line for line in out.splitlines() if line.startswith("| finetune, with prompt"))
    assert finetune.split("|")[3].strip() == "forget images, words, 3 images to keep"
    assert "–" not in finetune.split("|")[4]
    code, out, _ = run_vdu(monkeypatch, capsys, "bench", "show", "some", "--results", results, "--format", "json")
    assert {row["method"] for row in json.loads(out)} == {"ga", "finetune, with prompt"}
    for kind, code_expected in (("frontier", 0), ("cost", 0), ("classes", 0), ("amount", 2)):
        options = ("--kind", kind, "--out", tmp_path / f"{kind}.svg", "--results", results)
        code, _, err = run_vdu(monkeypatch, capsys, "bench", "plot", "some", *options)
        assert code == code_expected, err
    assert len(err.strip().splitlines()) == 1
    assert "a text-to-image suite has no PUL" in err
    assert not (tmp_path / "amount.svg").exists()
    assert b"IRA and CRA" in (tmp_path / "frontier.svg").read_bytes()
    code, out, _ = run_vdu(monkeypatch, capsys, "zoo", "list")
    assert "tiny: classes noto, blue-style, apple, pear" in out


def test_the_originals_samples_are_made_once(zoo, monkeypatch):
    backbone = load_backbone(zoo.pipeline)
    judge = ConceptJudge({domain: load_detector(folder) for domain, folder in zoo.concept_classifiers.items()})
    classes = {domain: detector.class_names for domain, detector in judge.detectors.items()}
    prompts, known = read_concept_prompts(zoo.concept_prompts, classes), {}
    sampler = ConceptSampler(per_prompt=1, steps=2, precision="fp32")
    first = evaluate_concept(backbone, backbone, judge, prompts, "noto", sampler, known=known)
    assert [len(asked) for asked in known] == [5, 1]
    draws, draw = [], ConceptSampler.draw
    monkeypatch.setattr(ConceptSampler, "draw", lambda *a: draws.append(a) or draw(*a))
    second = evaluate_concept(backbone, backbone, judge, prompts, "noto", sampler, known=known)
    assert len(draws) == 2  # the unlearned model's plain prompts and paraphrases
    assert torch.equal(second.before.pictures, second.after.pictures)  # equal models, equal seeds
    assert first.record | {"seconds": 0} == second.record | {"seconds": 0}


def test_a_shipped_model_of_two_classifiers_is_measured_by_the_one_that_knows_them(zoo, tmp_path, monkeypatch, capsys):
    arguments = (
        "tiny",
        "--forget",
        zoo.forget("noto"),
        "--out",
        tmp_path / "clean",
        "--method",
        "ga",
        "--share",
        "0.2",
    )
    short = ("--set", "steps=2", "--set", "batch_size=2", "--set", "guard_every_steps=0")
    short += ("--samples", "8", "--sampler-steps", "2")
    code, out, err = run_vdu(monkeypatch, capsys, "unlearn", *arguments, *short)
    assert code == 0, err
    assert "Pictures of class noto, of 8" in out
    assert (tmp_path / "clean" / "report.html").is_file()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"noto"', '"nota"', "tiny knows no class 'nota': did you mean 'noto'"),
        ("sampler_steps = 2", "sampler_steps = 2\nsamples = 100", "not both"),
        ("{target}", "style", "string should match pattern"),
        ('prompt = "concept"', 'prompt = "words"', "input should be 'none' or 'concept'"),
        ("words = 2", "word = 2", "concept.attack.word is no setting"),
    ],
)
def test_a_suite_that_cannot_be_run_is_one_line(old, new, said, suite):
    suite.write_text(TOML.replace(old, new))
    with pytest.raises(VduError, match=said) as raised:
        read_suite(str(suite))
    assert "\n" not in str(raised.value)


def test_a_suite_of_classes_needs_a_model_of_classes(suite):
    classes = TOML.partition("[concept]")[0] + "samples = 100\n[methods.ga]\nmethod = 'ga'\n"
    suite.write_text(classes)
    with pytest.raises(VduError, match=r"the model tiny needs a table \[concept\]"):
        read_suite(str(suite))


def test_without_a_picture_of_the_target_there_is_no_attack_and_no_figure(zoo):
    backbone = load_backbone(zoo.pipeline)
    judge = ConceptJudge({domain: load_detector(folder) for domain, folder in zoo.concept_classifiers.items()})
    prompts = [ConceptPrompt("a apple", "", "apple"), ConceptPrompt("a pear", "", "pear")]
    sampler = ConceptSampler(per_prompt=2, steps=2, precision="fp32")
    plan = ConceptPlan(template="{target}", samples_per_prompt=1, attack={"words": 2})
    record = evaluate_concept(backbone, backbone, judge, prompts, "apple", sampler, budget=plan.attack).record
    assert record["ua"]["value"] == record["ua_original"]["value"] == 100
    assert record["ua_attack"] is record["ua_paraphrase"] is record["fid_to_original"] is None
    assert record["attack"] == {"status": "no sample of the original shows the target"}
    assert record["cra"]["value"] is None
    with pytest.raises(VduError, match="no detector has a class 'appl': did you mean 'apple'"):
        evaluate_concept(backbone, backbone, judge, prompts, "appl", sampler)
    with pytest.raises(VduError, match="no plain prompt asks for 'noto'"):
        evaluate_concept(backbone, backbone, judge, prompts, "noto", sampler)


@pytest.mark.parametrize(("chance", "prefix"), [((5.0, 3.0, 90.0), "rc"), ((5.0, 3.0, 9.0), "b")])
def test_the_prefix_that_shows_the_target_most_often_is_chosen_sought_or_not(chance, prefix):
    made = [
        {"prefix": name, "random_prefix": f"r{name}", "shown_again": shown, "shown_at_random": at_random}
        for name, shown, at_random in zip("abc", (70.0, 80.0, 50.0), chance, strict=True)
    ]
    found = _chosen(made)
    assert (found["prefix"], found["random_prefix"], found["sought"]) == (prefix, "rc", prefix == "b")


def test_the_pictures_that_an_attack_begins_with_are_of_different_prompts():
    assert _one_a_prompt(torch.tensor([1, 4, 5, 8, 9]), 4) == [1, 4]
    assert _one_a_prompt(torch.tensor([2, 6, 7]), 4) == [2, 7]
    assert spread(list(range(10)), 3) == [0, 4, 9]
    assert spread([3, 5], 6) == [3, 5]


@pytest.mark.parametrize("name", ["emoji-styles", "emoji-objects"])
def test_the_shipped_suites_are_valid(name):
    import tomllib

    suite = Suite(name=name, **tomllib.loads((SUITES / f"{name}.toml").read_text()))
    assert len(list(suite.runs())) == len(suite.methods) * 3 * 2
    assert suite.concept.attack is not None
