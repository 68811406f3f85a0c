"""Real diffusers classes at a tiny size. Networks so small are fastest on one thread, so there is a process a core."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"  # no test waits for the hub

import pytest
import torch
from clusters import make_clusters
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from tiny_stable_diffusion import make_pipeline as make_stable_diffusion

import vdu.guard
import vdu.loop
import vdu.preparation.banks
import vdu.preparation.preparation
from vdu.backbone import Backbone, load_backbone
from vdu.cli import main
from vdu.preparation.preparation import Preparation


def make_pipeline(prediction_type: str = "epsilon", seed: int = 0) -> DDPMPipeline:
    torch.manual_seed(seed)
    network = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=4,
    )
    return DDPMPipeline(network, DDPMScheduler(num_train_timesteps=50, prediction_type=prediction_type))


@pytest.fixture
def backbone() -> Backbone:
    return load_backbone(make_pipeline())


@pytest.fixture
def forget() -> torch.Tensor:
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def retain():
    return torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1


def preparing_with(**few):
    """`Preparation` with ``few`` in place of what a run's settings say."""
    return lambda *a, **k: Preparation(*a, **(k | few))


@pytest.fixture
def few_head_steps(monkeypatch):
    """Heads that know little, where what c is does not matter."""
    monkeypatch.setattr("vdu.preparation.responsibility.STEPS", 5)


@pytest.fixture
def few_samples(monkeypatch, few_head_steps):
    """The least that the guard and the methods can work with, so that every method can be run several times."""
    monkeypatch.setattr("vdu.unlearning.Preparation", preparing_with(own_count=12, own_sampler_steps=2, score_steps=3))
    monkeypatch.setattr("vdu.unlearning.Guard", lambda *a: vdu.guard.Guard(*a, count=8, sampler_steps=2))
    head = vdu.preparation.preparation.fit_head
    monkeypatch.setattr("vdu.result.PREVIEW_IMAGES", 4)
    monkeypatch.setattr("vdu.preparation.preparation.fit_head", lambda *a: head(*a, steps=10, batch_size=16))


@pytest.fixture(scope="module")
def clusters():
    return make_clusters()


@pytest.fixture
def pipeline(tmp_path):
    """A tiny `StableDiffusionPipeline`."""
    return make_stable_diffusion(tmp_path)


@pytest.fixture
def folder(tmp_path):
    """Four forget images of one colour each."""
    images = tmp_path / "bad"
    images.mkdir()
    for i in range(4):
        Image.new("RGB", (24, 24), (60 * i, 255 - 60 * i, 128)).save(images / f"{i}.png")
    return images


@pytest.fixture(autouse=True)
def _small_banks(monkeypatch):
    """A few noised images instead of thousands."""
    fill = vdu.preparation.banks.fill_bank
    monkeypatch.setattr("vdu.preparation.banks.fill_bank", lambda *a, **k: fill(*a, **(k | {"items": 24})))


def write_idx(path, tensor):
    """An IDX file of bytes."""
    header = b"\x00\x00\x08" + bytes([tensor.ndim]) + b"".join(n.to_bytes(4, "big") for n in tensor.shape)
    path.write_bytes(header + tensor.numpy().tobytes())


def make_mnist_data(folder):
    """Twenty images of noise, two of each digit, as MNIST's training files; returns their folder."""
    data = folder / "data"
    data.mkdir()
    g = torch.Generator().manual_seed(0)
    write_idx(data / "train-images-idx3-ubyte", torch.randint(0, 256, (20, 8, 8), generator=g, dtype=torch.uint8))
    write_idx(data / "train-labels-idx1-ubyte", torch.arange(20, dtype=torch.uint8) % 10)
    return data


def run_vdu(monkeypatch, capsys, *arguments):
    """Exit code, standard output and standard error of the command line."""
    monkeypatch.setattr(sys, "argv", ["vdu", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    captured = capsys.readouterr()
    return left.value.code or 0, captured.out, captured.err


@contextmanager
def interrupted_after_state(monkeypatch):
    """What runs inside is interrupted right after its first state is written; fails where it is not."""
    save = vdu.loop.save_state

    def save_and_stop(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(vdu.loop, "save_state", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            yield


@pytest.fixture
def runs_in_this_process(monkeypatch):
    """Runs of a suite are not made in processes of their own, which would not see what a test has put in place."""

    threads = torch.get_num_threads()
    monkeypatch.setattr("vdu.bench.runner._worker_of_process", [])
    monkeypatch.setattr("vdu.bench.runner.processes", lambda _jobs: ThreadPoolExecutor(1))
    yield
    torch.set_num_threads(threads)
