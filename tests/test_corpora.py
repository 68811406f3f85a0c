"""Corpora in every format that they may come in; forget folders made of them; no unusable file gets through."""

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import run_vdu
from PIL import Image

from vdu import VduError
from vdu.corpora import load_corpus
from vdu.corpora.corpus import Corpus, CorpusFacts, FilesRead
from vdu.images.image_set import load_image_set

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TWENTY = tuple(f"class {i}" for i in range(20))
DATA = Path(os.environ["VDU_DATA"]) if "VDU_DATA" in os.environ else None


def _png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def _pixels(count, size=32):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def _parquet(path, cells, labels, names=None, column="img"):
    images = pa.array(
        [{"bytes": cell, "path": None} for cell in cells], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    table = pa.table({column: images, "label": pa.array(labels, pa.int64())})
    if names:
        features = {"label": {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def _binary(path, pixels, labels):
    records = (bytes([label]) + p.transpose(2, 0, 1).tobytes() for p, label in zip(pixels, labels, strict=True))
    path.write_bytes(b"".join(records))


def _same(corpus, pixels, labels):
    assert corpus.images.dtype == torch.uint8
    assert torch.equal(corpus.images, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert corpus.labels.tolist() == list(labels)
    assert not corpus.redistributable
    assert corpus.mirror_keeps_class


def test_parquet_with_and_without_class_names(tmp_path):
    pixels, labels = _pixels(12), [i % 10 for i in range(12)]
    _parquet(tmp_path / "train.parquet", map(_png, pixels), labels)
    _parquet(
        tmp_path / "test.parquet", map(_png, pixels[:3]), labels[:3], names=[f"{n}s" for n in CIFAR10], column="image"
    )
    train, test = load_corpus("cifar10", tmp_path), load_corpus("cifar10", tmp_path, "test")
    _same(train, pixels, labels)
    assert train.class_names == CIFAR10
    assert test.class_names[0] == "airplanes"
    assert train.sha256 != test.sha256


def test_parquet_of_the_hub_in_several_files(tmp_path):
    pixels = _pixels(4)
    for i in range(2):
        part = slice(2 * i, 2 * i + 2)
        _parquet(tmp_path / "plain_text" / f"train-0000{i}-of-00002.parquet", map(_png, pixels[part]), [i, i], CIFAR10)
    _same(load_corpus("cifar10", tmp_path), pixels, [0, 0, 1, 1])
    (tmp_path / "plain_text" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(VduError, match="1 of the files"):
        load_corpus("cifar10", tmp_path)


def test_valid_is_the_test_part_and_grey_pictures_become_colour(tmp_path):
    grey = np.random.default_rng(1).integers(0, 256, (64, 64), dtype=np.uint8)
    _parquet(tmp_path / "valid.parquet", [_png(grey)], [7], TWENTY, column="image")
    corpus = load_corpus("tiny-imagenet-20", tmp_path, "test")
    assert torch.equal(corpus.images, torch.from_numpy(grey).expand(1, 3, 64, 64))
    smaller = corpus.resized(32)
    means = grey.reshape(32, 2, 32, 2).astype(np.float32).mean((1, 3)).round().astype(np.uint8)
    assert torch.equal(smaller.images[0, 2], torch.from_numpy(means))
    assert corpus.resized(64) is corpus
    with pytest.raises(VduError, match="a size that divides"):
        corpus.resized(48)
    _parquet(tmp_path / "train.parquet", [_png(grey)], [7])
    with pytest.raises(VduError, match="does not name its classes"):
        load_corpus("tiny-imagenet-20", tmp_path)


def test_binary_version(tmp_path):
    pixels, labels = _pixels(10), list(range(10))
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for i in range(5):
        _binary(folder / f"data_batch_{i + 1}.bin", pixels[2 * i : 2 * i + 2], labels[2 * i : 2 * i + 2])
    _same(load_corpus("cifar10", tmp_path), pixels, labels)
    batch = folder / "data_batch_5.bin"
    batch.write_bytes(batch.read_bytes()[:-1])
    with pytest.raises(VduError, match="cut short"):
        load_corpus("cifar10", folder)
    batch.unlink()
    with pytest.raises(VduError, match=r"lacks data_batch_5\.bin"):
        load_corpus("cifar10", folder)


def test_pickles_are_refused_unread(tmp_path):
    (tmp_path / "data_batch_1").write_bytes(b"whatever")
    with pytest.raises(VduError, match=r"pickles.*binary version.*parquet"):
        load_corpus("cifar10", tmp_path)


def test_class_folders(tmp_path):
    pixels = _pixels(20)
    for i, name in enumerate(CIFAR10):
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        for j in range(2):
            (folder / f"{j}.png").write_bytes(_png(pixels[2 * i + j]))
    _same(load_corpus("cifar10", tmp_path), pixels, [i // 2 for i in range(20)])
    (tmp_path / "train" / "cat" / "1.png").unlink()
    (tmp_path / "train" / "cat" / "0.png").unlink()
    with pytest.raises(VduError, match="cat has no images"):
        load_corpus("cifar10", tmp_path)
    (tmp_path / "train" / "cat").rmdir()
    with pytest.raises(VduError, match="has the classes airplane, automobile, bird, deer"):
        load_corpus("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("cells", "labels", "said"),
    [
        ([b"no picture"], [0], r"row 0 of .*train.parquet is not a readable image"),
        ([_png(_pixels(1)[0])[:-900]], [0], r"row 0 of .* is not a readable image"),
        ([_png(_pixels(1, 28)[0])], [0], r"row 0 of .* is 28x28 and the corpus 32x32"),
        ([None], [0], "lacks the image's bytes"),
        ([_png(_pixels(1)[0])], [None], "whole number as label"),
        ([_png(_pixels(1)[0])], [10], "label 10: labels are 0 to 9"),
        ([], [], "has no rows"),
    ],
)
def test_rows_that_cannot_be_used(cells, labels, said, tmp_path):
    _parquet(tmp_path / "train.parquet", cells, labels)
    with pytest.raises(VduError, match=said):
        load_corpus("cifar10", tmp_path)


def test_files_that_are_something_else(tmp_path, monkeypatch):
    with pytest.raises(VduError, match="has no train part of cifar10"):
        load_corpus("cifar10", tmp_path)
    with pytest.raises(VduError, match="no folder"):
        load_corpus("cifar10", tmp_path / "absent")
    with pytest.raises(VduError, match="did you mean 'cifar10'"):
        load_corpus("cifar-10", tmp_path)
    path = tmp_path / "train.parquet"
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(VduError, match="not a readable parquet"):
        load_corpus("cifar10", tmp_path)
    pq.write_table(pa.table({"picture": [1], "label": [2]}), path)
    with pytest.raises(VduError, match="has the columns picture, label"):
        load_corpus("cifar10", tmp_path)
    _parquet(path, [_png(_pixels(1)[0])], [0], ["cat", "dog"])
    with pytest.raises(VduError, match="2 classes and cifar10 has 10"):
        load_corpus("cifar10", tmp_path)
    _parquet(path, map(_png, _pixels(400)), [0] * 400)
    raw = path.read_bytes()
    path.write_bytes(raw[:2000] + bytes(300_000) + raw[302_000:])
    with pytest.raises(VduError, match=r"train\.parquet"):
        load_corpus("cifar10", tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(VduError, match=r"pip install pyarrow"):
        load_corpus("cifar10", tmp_path)


def test_a_class_named_twice_is_refused():
    facts = CorpusFacts("two", (1, 1, 1), 2, None, redistributable=True, mirror_keeps_class=True)
    with pytest.raises(VduError, match="'a' twice"):
        Corpus.checked(facts, FilesRead(torch.zeros(1, 1, 1, 1), torch.zeros(1), ("a", "a"), ""))


def _prepare(monkeypatch, capsys, folder, *more):
    """Exit code and standard error of `vdu data prepare cifar10`."""
    arguments = ("data", "prepare", "cifar10", "--data", folder, "--out", folder / "forget", *more)
    code, _, err = run_vdu(monkeypatch, capsys, *arguments)
    return code, err


def test_prepare_writes_the_first_images_of_a_class(tmp_path, monkeypatch, capsys):
    pixels, labels = _pixels(6), [3, 0, 3, 3, 0, 3]
    _parquet(tmp_path / "train.parquet", map(_png, pixels), labels)
    cats = ("--class", "cat", "--count", 3)
    code, err = _prepare(monkeypatch, capsys, tmp_path, *cats)
    assert code == 0, err
    forget = tmp_path / "forget"
    assert sorted(p.name for p in forget.iterdir()) == ["00000.png", "00002.png", "00003.png", "provenance.json"]
    images = load_image_set(forget, (3, 32, 32))
    assert images.notices == ()
    assert torch.equal(
        ((images.images + 1) * 127.5).round().byte(), torch.from_numpy(pixels[[0, 2, 3]]).permute(0, 3, 1, 2)
    )
    provenance = json.loads((forget / "provenance.json").read_text())
    assert provenance["numbers"] == [0, 2, 3]
    assert provenance["class"] == "cat"
    assert provenance["data_sha256"] == load_corpus("cifar10", tmp_path).sha256

    code, err = _prepare(monkeypatch, capsys, tmp_path, *cats)
    assert (code, "--overwrite" in err) == (2, True)
    code, err = _prepare(monkeypatch, capsys, tmp_path, *cats, "--size", 16, "--overwrite")
    assert code == 0, err
    assert Image.open(forget / "00000.png").size == (16, 16)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--class", "cats"), "did you mean 'cat'"),
        (("--class", "cat", "--count", 9), "has 1 training images of cat: give --count 1 to 1"),
        (("--class", "cat", "--count", 1, "--size", 20), "a size that divides"),
        (("--class", "cat", "--count", 1, "--out", "..", "--overwrite"), "is, holds or lies in"),
    ],
)
def test_prepare_refuses_and_leaves_nothing(more, said, tmp_path, monkeypatch, capsys):
    _parquet(tmp_path / "train.parquet", [_png(_pixels(1)[0])], [3])
    monkeypatch.chdir(tmp_path)
    code, err = _prepare(monkeypatch, capsys, tmp_path, *more)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert said in err
    assert [p.name for p in tmp_path.iterdir()] == ["train.parquet"]


@pytest.mark.skipif(DATA is None, reason="VDU_DATA names no folder with the corpora")
@pytest.mark.parametrize(("name", "count", "names"), [("cifar10", 10_000, CIFAR10), ("tiny-imagenet-20", 1000, None)])
def test_real_corpora(name, count, names):
    if not (DATA / name).is_dir():
        pytest.skip(f"VDU_DATA has no {name}")
    corpus = load_corpus(name, DATA / name, "test")
    assert len(corpus.images) == count
    assert len(corpus.labels.bincount().unique()) == 1
    assert names is None or corpus.class_names == names
