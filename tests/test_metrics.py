"""The figures of the protocol against naive loops, and what they say where there is nothing to measure."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from vdu import VduError
from vdu.detector.contract import Detection, Detector, load_detector
from vdu.evaluation import metrics, reference
from vdu.evaluation.comparison import figures
from vdu.evaluation.metrics import (
    Features,
    class_shares,
    frechet_distance,
    kernel_distance,
    paired_changes,
    paired_rise,
    poisson_upper,
    precision_recall,
    pul,
    total_variation,
)
from vdu.evaluation.reference import Reference, load_reference
from vdu.records import write_record


def _normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _naive_coverage(centres, points):
    distance = lambda x, y: float(((x - y) ** 2).sum() ** 0.5)  # noqa: E731
    radius = [sorted(distance(c, other) for j, other in enumerate(centres) if j != i)[2] for i, c in enumerate(centres)]
    inside = [any(distance(p, c) <= r for c, r in zip(centres, radius, strict=True)) for p in points]
    return 100 * np.mean(inside)


@pytest.mark.parametrize("rows_at_once", [4, 1024])
def test_precision_and_recall_equal_naive_loops(rows_at_once, monkeypatch):
    monkeypatch.setattr(metrics, "ROWS_AT_ONCE", rows_at_once)
    samples, real = 0.7 * _normal(15, 3, seed=1) + 1.5, _normal(15, 3, seed=2)
    wanted = _naive_coverage(real, samples), _naive_coverage(samples, real)
    assert precision_recall(samples, real) == pytest.approx(wanted)
    assert 0 < wanted[0] < 100
    assert wanted[0] != wanted[1]


def test_precision_of_perfect_samples_does_not_depend_on_the_order_of_the_real_ones():
    """A reference folder is read class by class: the first of them would be some classes only."""
    centres, labels = 10 * _normal(10, 8), torch.arange(10).repeat_interleave(500)
    real = centres[labels] + _normal(5000, 8, seed=1)
    samples = centres[torch.arange(500) % 10] + _normal(500, 8, seed=2)
    shuffled = real[torch.randperm(5000, generator=torch.Generator().manual_seed(3))]
    by_class, mixed = precision_recall(samples, real), precision_recall(samples, shuffled)
    assert min(*by_class, *mixed) > 70
    assert by_class == pytest.approx(mixed, abs=8)
    assert precision_recall(shuffled, samples) == pytest.approx(mixed[::-1])
    assert precision_recall(samples, real) == by_class


def test_in_parts_the_kernel_distance_is_the_same_and_shared_parts_are_not_made_twice(monkeypatch):
    a, b = _normal(37, 3), _normal(29, 3, seed=1) + 1
    whole, real = kernel_distance(a, b), Features(b)
    monkeypatch.setattr(metrics, "ROWS_AT_ONCE", 5)
    assert kernel_distance(a, real) == pytest.approx(whole)
    monkeypatch.setattr(metrics, "_kernel", None)
    assert real.mean_kernel > 0
    assert real.drawn(29) is real


def test_what_too_few_features_cannot_tell_is_none():
    assert frechet_distance(_normal(3, 3), _normal(90, 3)) is None
    assert frechet_distance(_normal(90, 3), _normal(4, 3)) is not None
    assert kernel_distance(_normal(1, 3), _normal(90, 3)) is None
    assert precision_recall(_normal(3, 3), _normal(90, 3)) == (None, None)


def test_class_shares_count_every_class_and_none_last():
    predicted = torch.tensor([0, 2, 2, -1, 0, 2, -1, 2])
    assert class_shares(predicted, 3) == [25.0, 0.0, 50.0, 25.0]


def test_total_variation_is_half_the_distance_of_the_shares_among_themselves():
    before, after = [10.0, 30.0, 20.0], [45.0, 15.0, 30.0]
    naive = sum(abs(b / 60 - a / 90) for b, a in zip(before, after, strict=True)) / 2
    assert total_variation(before, after) == pytest.approx(100 * naive)
    assert total_variation([1.0, 0.0], [0.0, 5.0]) == 100
    assert total_variation([50, 50], [0, 0]) is total_variation([0, 0], [50, 50]) is None


def test_changed_are_those_of_other_classes_that_are_another_or_none_now():
    before = torch.tensor([0, 0, 1, 1, 2, 2, -1])
    after = torch.tensor([1, 0, 1, 2, -1, 2, 1])
    assert paired_changes(before, after, target=0) == pytest.approx(50)
    assert paired_changes(torch.tensor([0, -1]), torch.tensor([1, 1]), target=0) is None


def _detection(predicted, features):
    return Detection(predicted, features)


def test_paired_rise_counts_only_pairs_that_change_and_its_interval_holds_the_truth() -> None:
    before, after = torch.zeros(256, dtype=torch.bool), torch.zeros(256, dtype=torch.bool)
    before[:46] = True
    after[11:46], after[46:66] = True, True
    rise = paired_rise(before, after)
    assert rise.value == pytest.approx(100 * 9 / 256)
    # By hand: p01 = 21/258, p10 = 12/258, their difference ± 1.96 √((33/258 − (9/258)²) / 258).
    assert (rise.low, rise.high) == pytest.approx((-0.8548, 7.8316), abs=1e-4)
    held, g = 0, torch.Generator().manual_seed(0)
    for _ in range(400):
        u = torch.rand(100, generator=g)
        found = paired_rise(u < 0.1, (u > 0.07) & (u < 0.27))  # 10 % before, 20 % after: 10 points more
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 10 <= found.high
    assert held / 400 == pytest.approx(0.95, abs=0.03)


def test_every_model_is_measured_on_as_many_samples():
    """Half of the original's samples are of the class: the unlearned model has twice as many others, the same first."""
    features, half = _normal(400, 4), torch.arange(400) % 2
    before = _detection(half, torch.where(half.unsqueeze(1) == 1, features, 99.0))
    after = _detection(torch.ones(400, dtype=torch.long), torch.cat([features[1::2], 5 + features[::2]]))
    oracle = _detection(torch.ones(400, dtype=torch.long), 2 + features)
    reference = Reference(_normal(500, 4, seed=1), torch.arange(500) % 2)
    found = figures(before, after, 0, 2, reference, oracle=oracle)
    assert found["u_fid_samples"] == 200
    for name in ("u_fid", "kid", "precision", "recall"):
        assert found[name] == found[f"{name}_original"] is not None
    real = reference.features[1::2]
    assert found["u_fid"] == pytest.approx(frechet_distance(features[1::2], real))
    assert found["kid"] == pytest.approx(kernel_distance(features[1::2], real))
    assert found["precision"] == precision_recall(features[1::2], real)[0]
    assert found["u_fid_oracle"] == pytest.approx(frechet_distance(2 + features[:200], real))


def test_where_nothing_else_is_left_every_figure_of_the_rest_is_none_and_the_record_is_json(tmp_path):
    all_of_it, gone = torch.zeros(9, dtype=torch.long), torch.full((9,), -1)
    found = figures(_detection(all_of_it, None), _detection(gone, None), 0, 2)
    assert found["pul"]["value"] == 100
    missing = ("total_variation", "changed", "u_fid", "kid_original", "u_fid_oracle", "u_fid_samples")
    assert [found[name] for name in missing] == [None] * len(missing)
    write_record(tmp_path / "x.json", found)
    assert json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail) == found


@pytest.mark.parametrize("figure", [float("nan"), float("inf")])
def test_a_record_with_what_is_no_json_is_not_written(figure, tmp_path):
    write_record(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_record(tmp_path / "x.json", {"a": figure})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert len(list(tmp_path.iterdir())) == 1


def _shade(images):
    """Light or dark, and the mean and the spread of the pixels."""
    mean, spread = images.mean(dim=(1, 2, 3)), images.flatten(1).std(1)
    light = ((mean + 1) / 2).unsqueeze(1)
    return torch.cat([1 - light, light], dim=1), torch.stack([mean, spread], dim=1)


_shade.class_names = ["dark", "light"]
_shade.threshold = 0.0


def _write(folder, shades):
    folder.mkdir(parents=True)
    for shade in shades:
        Image.new("L", (8, 8), shade).save(folder / f"{shade}.png")


def test_a_reference_is_labelled_by_its_sub_folders_or_else_by_the_detector(tmp_path):
    detector = load_detector(_shade)
    # The detector would call the 90 dark.
    _write(tmp_path / "named" / "light", (90, 200, 250))
    _write(tmp_path / "named" / "dark", (0, 20))
    named = load_reference(tmp_path / "named", detector, (1, 8, 8))
    assert named.labels.tolist() == [0, 0, 1, 1, 1]
    means = [shade / 127.5 - 1 for shade in (0, 20, 200, 250, 90)]
    assert named.features[:, 0].tolist() == pytest.approx(means, abs=1e-4)
    assert named.notices == ()
    Image.new("L", (16, 16), 240).save(tmp_path / "named" / "light" / "240.png")
    assert load_reference(tmp_path / "named", detector, (1, 8, 8)).notices == (
        "light: images of another size were resized to 8x8",
    )
    (tmp_path / "named" / "light" / "240.png").unlink()
    assert named.retained(0)[:, 0].tolist() == pytest.approx(means[2:], abs=1e-4)
    (tmp_path / "named" / "Lihgt").mkdir()
    with pytest.raises(VduError, match="folder Lihgt, which is no class of the detector: did you mean 'light'"):
        load_reference(tmp_path / "named", detector, (1, 8, 8))
    _write(tmp_path / "flat", (90, 200))
    assert load_reference(tmp_path / "flat", detector, (1, 8, 8)).labels.tolist() == [1, 0]


def test_a_reference_file_is_read_back_and_refused_by_another_detector(tmp_path):
    detector, path = load_detector(_shade), tmp_path / "reference.safetensors"
    features, labels = _normal(7, 2), torch.tensor([0, 1, 1, 0, 1, 0, 0])
    Reference(features, labels).save(path, detector)
    again = load_reference(path, detector, (1, 8, 8))
    torch.testing.assert_close(again.features, features, atol=2e-3, rtol=1e-3)
    assert again.labels.equal(labels)
    other = Detector("other", "another hash", detector.class_names, 0.0, _shade)
    with pytest.raises(VduError, match="made with another detector"):
        load_reference(path, other, (1, 8, 8))
    (tmp_path / "flat").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "flat" / "0.png")
    blind = Detector("blind", "function", detector.class_names, 0.0, lambda images: (_shade(images)[0], None))
    with pytest.raises(VduError, match="gives no features"):
        load_reference(tmp_path / "flat", blind, (1, 8, 8))


def test_pul_of_pairs_that_never_changed_is_not_known_exactly():
    seen, none = torch.arange(300) < 5, torch.zeros(300, dtype=torch.bool)
    same = pul(seen, seen)
    assert (same.low, same.value, same.high) == (-60, 0, 60)  # three of five, by the rule of three
    gone = pul(seen, none)
    assert (gone.low, gone.value, gone.high) == (pytest.approx(100 - 100 * 3.68888 / 5), 100, 100)
    assert pul(torch.arange(300) < 2, none).low == 0


def test_of_few_that_are_left_there_may_be_as_many_as_a_poisson_mean_allows():
    for count, bound in ((0, 3.68888), (1, 5.57164), (2, 7.22469), (9, 17.08480)):  # of the exact interval's tables
        assert poisson_upper(count) == pytest.approx(bound, abs=1e-4)
    before, after = torch.arange(1000) < 50, torch.arange(1000) == 999
    assert pul(before, after).low == pytest.approx(100 * (1 - 5.57164 / 50), abs=1e-3)


def test_few_that_are_left_are_within_the_interval_as_often_as_it_says():
    g, held = torch.Generator().manual_seed(0), 0
    before = torch.arange(400) < 60
    for _ in range(40):
        left = before & (torch.rand(400, generator=g) < 0.04)
        found = pul(before, left)
        held += found.low <= 96 <= found.high
    assert held >= 37


def test_a_reference_is_read_in_parts_and_must_have_finite_features(tmp_path, monkeypatch):
    for i in range(5):
        Image.new("L", (8, 8), 40 * i).save(tmp_path / f"{i}.png")
    detector, held = load_detector(_shade), []

    def judge(images):
        held.append(len(images))
        return detector.judge(images)

    counting = replace(detector, judge=judge)
    whole = load_reference(tmp_path, counting, (1, 8, 8))
    monkeypatch.setattr(reference, "READ_AT_ONCE", 2)
    parts = load_reference(tmp_path, counting, (1, 8, 8))
    assert held == [5, 2, 2, 1]
    for name in ("0.png", "1.png", "3.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(VduError, match=r"0\.png.*; 2 more cannot be used: 1\.png, 3\.png"):
        load_reference(tmp_path, detector, (1, 8, 8))
    some = load_reference(tmp_path, detector, (1, 8, 8), skip_unreadable=True)
    assert len(some.labels) == 2
    assert "3 unreadable images were skipped: 0.png, 1.png, 3.png" in some.notices[0]
    for i in (0, 1, 3):
        Image.new("L", (8, 8), 40 * i).save(tmp_path / f"{i}.png")
    assert torch.equal(parts.features, whole.features)
    assert torch.equal(parts.labels, whole.labels)
    by_spread = replace(detector, judge=lambda x: (detector.judge(x)[0], x[:, 0, 0] / x.flatten(1).std(1)[:, None]))
    with pytest.raises(VduError, match=rf"{tmp_path}: the features of 5 of its 5 images are not finite"):
        load_reference(tmp_path, by_spread, (1, 8, 8))


def test_why_there_is_no_u_fid_is_said_where_samples_or_real_images_are_too_few():
    predicted = torch.arange(240) % 2

    def measured(dimensions, real):
        seen = Detection(predicted, _normal(240, dimensions))
        reference = Reference(_normal(real, dimensions, seed=1), torch.ones(real).long())
        return figures(seen, seen, 0, 2, reference)

    assert measured(3, 90)["u_fid"] is not None
    assert measured(3, 90)["distances_missing"] is None
    few = measured(120, 200)
    assert few["u_fid"] is None
    assert few["kid"] is not None
    said = "only 120 samples that are not of the class, u-FID needs more than the 120 features"
    assert few["distances_missing"] == said
    assert measured(12, 11)["distances_missing"].startswith("only 11 real images")
