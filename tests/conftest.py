from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("haqsearch", deadline=None)  # timings decide no test
settings.load_profile("haqsearch")

# Read by torch when it is first imported. On busy cores two threads that wait for each other take five times as long as one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

CHECKOUT = Path(__file__).parents[1]


PARTS = {
    "cifar10": "cifar-10-batches-bin",
    "imagenet-compat": "imagenet-compat",
    "kws": "kws01",
    "mobilenetv2": "mobilenetv2_imagenet.safetensors",
}
"""What ``unpack.py`` calls a part -> what it writes."""


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders with CIFAR-10 in its binary layout, the checkpoints and other data: HAQSEARCH_DATA, or ``shared/data`` beside
    the checkout. What lies packed is unpacked once, into a folder that later sessions find again.
    """
    named = [Path(part) for part in os.environ.get("HAQSEARCH_DATA", "").split(os.pathsep) if part]
    roots = [folder for folder in [*named, CHECKOUT.parent / "shared" / "data"] if folder.is_dir()]
    missing = _missing(roots)
    packed = next((root for root in roots if (root / "unpack.py").is_file()), None)
    if missing and packed:
        # A worker of pytest-xdist has a folder of its own one level further down.
        lasting = tmp_path_factory.getbasetemp().parents[1 if "PYTEST_XDIST_WORKER" in os.environ else 0]
        unpacked = lasting / "haqsearch-data"
        with (lasting / "haqsearch-data.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if left := _missing([*roots, unpacked]):
                command = [sys.executable, str(packed / "unpack.py"), str(unpacked), "--only", *left]
                subprocess.run(command, check=True, timeout=120)
        return [*roots, unpacked]
    if "cifar10" in missing:
        pytest.skip("needs CIFAR-10 and the public checkpoints: set HAQSEARCH_DATA to the folder that holds them")
    return roots


def _missing(roots: list[Path]) -> list[str]:
    return [part for part, name in PARTS.items() if not any((root / name).exists() for root in roots)]


@pytest.fixture(scope="session")
def digits():
    """(Prepared digits_cnn trained on the digits, its splits), ready in seconds."""
    from haqsearch.data import split
    from haqsearch.data.digits import load
    from haqsearch.evaluate import prepare_network
    from haqsearch.models.digits_cnn import digits_cnn
    from haqsearch.models.train import train_float

    splits = split(load([]), calibrate=256, search=250, report=250, seed=0)
    model = train_float(digits_cnn, splits, epochs=6, batch=64, learning_rate=4e-3, seed=0)
    return prepare_network(model, splits, "digits_cnn"), splits


@pytest.fixture(scope="session")
def resnet20_cifar10(data_root: list[Path]):
    """(Prepared ResNet-20 with its public weights, CIFAR-10's splits)."""
    from safetensors.torch import load_file

    from haqsearch.data import DataSet, split
    from haqsearch.data.cifar10 import FOLDER, _read
    from haqsearch.evaluate import prepare_network
    from haqsearch.models.resnet_cifar import resnet20

    weights = next(
        (
            root / "resnet20_cifar10.safetensors"
            for root in data_root
            if (root / "resnet20_cifar10.safetensors").is_file()
        ),
        None,
    )
    if weights is None:
        pytest.skip(f"needs resnet20_cifar10.safetensors in one of {', '.join(map(str, data_root))}")
    model = resnet20()
    model.load_state_dict(load_file(weights))
    folder = next(root / FOLDER for root in data_root if (root / FOLDER).is_dir())
    some = DataSet(
        "cifar10", *_read(folder / "data_batch_1.bin"), *_read(folder / "test_batch.bin")
    )  # a fifth is enough
    splits = split(some, calibrate=256, search=1000, report=2000, seed=0)
    return prepare_network(model.eval(), splits, "resnet20"), splits
