"""Data: fixed splits, files read from every layout, the folder cache, augmentation against a loop, bad input."""

import os
import pickle
from dataclasses import replace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets
from torchvision.datasets.utils import calculate_md5

from lthlib import data
from lthlib.data import augment, augmentation_draws, load
from lthlib.errors import InputError
from lthlib.randomness import generator


def counts(split):
    return split.labels.bincount()


# digits


def test_digits_are_the_bundled_images_split_once():
    digits = load("digits")
    splits = (digits.train, digits.validation, digits.test)
    assert [len(split.labels) for split in splits] == [1200, 297, 300]
    assert digits.input_shape == (1, 8, 8) and digits.classes == 10 and digits.augmentation == "none"
    assert digits.train.images.dtype == torch.uint8 and digits.train.labels.dtype == torch.int64
    bundle = load_digits()
    expected = sorted((*row.astype(int), label) for row, label in zip(bundle.data, bundle.target, strict=True))
    found = [
        (*image, label)
        for split in splits
        for image, label in zip(split.images.flatten(1).tolist(), split.labels.tolist(), strict=True)
    ]
    assert sorted(found) == expected
    for split in splits:
        share = counts(split) / len(split.labels) - torch.as_tensor(np.bincount(bundle.target)) / 1797
        assert share.abs().max() * len(split.labels) <= 2


def test_a_split_never_changes():
    digits = load("digits")
    assert digits.test.labels[:12].tolist() == [6, 0, 2, 8, 9, 4, 7, 1, 3, 5, 6, 0]
    assert int(digits.train.images.long().sum()) == 374_352
    assert digits.mean == pytest.approx((4.874375,))


def test_normalised_has_mean_0_and_deviation_1_on_the_training_images():
    digits = load("digits")
    images = digits.normalised("train")
    assert images.dtype == torch.float32 and images.shape == (1200, 1, 8, 8)
    assert images.mean().item() == pytest.approx(0, abs=1e-5)
    assert images.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    raw = digits.test.images.double()
    assert torch.allclose(digits.normalised("test").double(), (raw - digits.mean[0]) / digits.std[0], atol=1e-6)
    assert digits.train.images.dtype == torch.uint8
    with pytest.raises(InputError, match="unknown split 'valid', did you mean 'validation'"):
        digits.normalised("valid")


def test_smaller_training_sets_are_prefixes_with_every_class():
    digits, small = load("digits"), load("digits", train_size=40, validation_size=20)
    assert torch.equal(small.train.images, digits.train.images[:40])
    assert torch.equal(small.validation.labels, digits.validation.labels[:20])
    assert torch.equal(small.test.labels, digits.test.labels)
    assert (counts(small.train) - 4).abs().max() <= 1 and (counts(small.validation) - 2).abs().max() <= 1
    assert small.mean == pytest.approx((small.train.images.float().mean().item(),))


@pytest.mark.parametrize("size", [0, -1, 1201])
def test_sizes_out_of_range(size):
    with pytest.raises(InputError, match=f"train_size={size} is outside 1 to 1200, .*training images of 'digits'"):
        load("digits", train_size=size)


def test_validation_size_out_of_range():
    with pytest.raises(InputError, match="validation_size=298 is outside 1 to 297"):
        load("digits", validation_size=298)


def test_to_moves_every_tensor():
    moved = load("digits").to("meta")
    tensors = [getattr(split, part) for split in (moved.train, moved.validation, moved.test) for part in vars(split)]
    assert all(tensor.is_meta for tensor in tensors) and len(tensors) == 6


@given(st.lists(st.integers(1, 60), min_size=2, max_size=6), st.data())
@settings(deadline=None, max_examples=40)
def test_every_slice_of_the_fixed_order_is_stratified(sizes, drawn):
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    order = data._stratified_order(labels)
    assert sorted(order.tolist()) == list(range(len(labels)))
    first, last = sorted(drawn.draw(st.tuples(*[st.integers(0, len(labels))] * 2)))
    found = labels[order[first:last]].bincount(minlength=len(sizes))
    expected = torch.tensor(sizes) * (last - first) / len(labels)
    # Each class is off by less than its own rounding and the others' together.
    assert (found - expected).abs().max() <= len(sizes)


# torchvision's files


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.tobytes())


@pytest.fixture
def few_for_validation(monkeypatch):
    monkeypatch.setattr(data, "VALIDATION", 30)


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
def test_mnist_family_from_raw_files(tmp_path, few_for_validation, name, folder):
    source = np.random.default_rng(0)
    raw = tmp_path / folder / "raw"
    images = {
        part: source.integers(256, size=(n, 28, 28), dtype=np.uint8) for part, n in (("train", 130), ("t10k", 40))
    }
    for part, array in images.items():
        write_idx(raw / f"{part}-images-idx3-ubyte", array)
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(len(array), dtype=np.uint8) % 10)
    read = load(name, tmp_path, download=False)
    assert read.input_shape == (1, 28, 28) and read.classes == 10 and read.augmentation == "none"
    assert [len(split.labels) for split in (read.train, read.validation, read.test)] == [100, 30, 40]
    assert counts(read.validation).tolist() == [3] * 10
    assert torch.equal(read.test.images, torch.from_numpy(images["t10k"])[:, None])
    assert read.label == name
    (raw / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03\0\0")
    with pytest.raises(InputError, match=f"{name!r} in .*{folder}/raw' cannot be read .*delete it"):
        load(name, tmp_path, download=False)


def test_cifar_and_svhn_arrays(tmp_path, few_for_validation, monkeypatch):
    source = np.random.default_rng(0)
    pixels = source.integers(256, size=(130, 3, 32, 32), dtype=np.uint8)
    labels = (np.arange(130) % 10).tolist()
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()

    def dump(name, content):
        (base / name).write_bytes(pickle.dumps(content))
        return [name, calculate_md5(base / name)]

    monkeypatch.setattr(
        datasets.CIFAR10, "train_list", [dump("data_batch_1", {"data": pixels.reshape(130, -1), "labels": labels})]
    )
    monkeypatch.setattr(
        datasets.CIFAR10,
        "test_list",
        [dump("test_batch", {"data": pixels[:20].reshape(20, -1), "labels": labels[:20]})],
    )
    name, digest = dump("batches.meta", {"label_names": [str(number) for number in range(10)]})
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": digest})
    cifar = load("cifar10", tmp_path, download=False)
    assert cifar.input_shape == (3, 32, 32) and cifar.augmentation == "crop-flip"
    assert torch.equal(cifar.test.images, torch.from_numpy(pixels[:20])) and cifar.test.labels.tolist() == labels[:20]
    assert len(cifar.train.labels) == 100 and len(cifar.validation.labels) == 30
    expected = cifar.train.images.double()
    assert cifar.mean == pytest.approx(expected.mean((0, 2, 3)).tolist())
    assert cifar.std == pytest.approx(expected.std((0, 2, 3), correction=0).tolist())

    class Svhn:
        data, labels = pixels, np.arange(130) % 10

    assert torch.equal(data._tensors(Svhn).images, torch.from_numpy(pixels))


@pytest.mark.parametrize("name", [name for name in data.VALID_DATASETS if name not in ("digits", "folder:PATH")])
def test_a_missing_data_set_says_where_it_looked(tmp_path, name):
    with pytest.raises(InputError, match=f"'{name}' is not in '{tmp_path}' .*set data_dir .* or allow the download"):
        load(name, tmp_path, download=False)
    assert not list(tmp_path.iterdir())


def test_a_failed_download_says_how_to_get_the_data(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", offline)
    with pytest.raises(InputError, match=r"could not be downloaded .*copy it there .*torchvision\.datasets\.MNIST"):
        load("mnist", tmp_path)


def test_unknown_data_sets():
    with pytest.raises(
        InputError, match=r"unknown data set 'minst', did you mean 'mnist'\? \(valid: digits, .*folder:PATH"
    ):
        load("minst")
    with pytest.raises(InputError, match="unknown data set 'folder:'"):
        load("folder:")


# folders of images


def write_folder(root, count=20, size=(6, 5), colour=True):
    """Images whose pixels tell split, class and number: 2 classes, `count` training and 3 test images a class."""
    for split, (part, number) in enumerate((("train", count), ("test", 3))):
        for label, name in enumerate(("cat", "dog")):
            place = root / part / name
            place.mkdir(parents=True)
            for index in range(number):
                pixels = np.full((size[1], size[0], 3), (100 * split, 50 * label, index), dtype=np.uint8)
                Image.fromarray(pixels if colour else pixels[..., 2]).save(place / f"{index:03}.png")
    return root


def test_folder_reads_every_image_once_and_caches(tmp_path, monkeypatch):
    root = write_folder(tmp_path / "pets")
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    pets = load(f"folder:{root}", tmp_path / "data")
    assert pets.input_shape == (3, 5, 6) and pets.classes == 2 and pets.augmentation == "crop-flip"
    assert pets.label == "pets" and pets.name == f"folder:{root}"
    assert [len(split.labels) for split in (pets.train, pets.validation, pets.test)] == [36, 4, 6]
    assert counts(pets.validation).tolist() == [2, 2]
    for split, red in ((pets.train, 0), (pets.validation, 0), (pets.test, 100)):
        assert (split.images[:, 0] == red).all()
        assert (split.images[:, 1] == 50 * split.labels[:, None, None]).all()
    numbers = torch.cat([pets.train.images, pets.validation.images])[:, 2, 0, 0]
    assert sorted(numbers.tolist()) == sorted([*range(20)] * 2)
    assert pets.std[0] == 1 and pets.mean[0] == 0

    def never(_):
        raise AssertionError("decoded although cached")

    monkeypatch.setattr(data, "_decode", never)
    again = load(f"folder:{root}/", tmp_path / "data")
    assert torch.equal(again.train.images, pets.train.images) and again.label == "pets"


def test_a_changed_image_is_decoded_anew(tmp_path):
    root = write_folder(tmp_path / "pets")
    load(f"folder:{root}", tmp_path / "data")
    Image.fromarray(np.full((5, 6, 3), 250, dtype=np.uint8)).save(root / "test" / "dog" / "000.png")
    os.utime(root / "test" / "dog" / "000.png", ns=(0, 0))
    assert load(f"folder:{root}", tmp_path / "data").test.images.max() == 250


def test_a_damaged_cache_is_decoded_anew(tmp_path):
    root = write_folder(tmp_path / "pets")
    before = load(f"folder:{root}", tmp_path / "data")
    [cached] = (tmp_path / "data" / "cache").glob("*/images.safetensors")
    content = bytearray(cached.read_bytes())
    content[-1] ^= 1
    del before
    cached.write_bytes(content)
    with pytest.warns(UserWarning, match="is damaged .*computed anew"):
        load(f"folder:{root}", tmp_path / "data")
    assert load(f"folder:{root}", tmp_path / "data").classes == 2


def test_grey_folders_have_one_channel_and_mixed_ones_three(tmp_path):
    grey = load(f"folder:{write_folder(tmp_path / 'grey', colour=False)}", tmp_path / "data")
    assert grey.input_shape == (1, 5, 6)
    write_folder(tmp_path / "mixed")
    Image.fromarray(np.full((5, 6), 77, dtype=np.uint8)).save(tmp_path / "mixed" / "test" / "cat" / "000.png")
    mixed = load(f"folder:{tmp_path / 'mixed'}", tmp_path / "data")
    assert (mixed.test.images[0] == 77).all()


def test_folders_that_do_not_fit(tmp_path):
    def failing(match):
        with pytest.raises(InputError, match=match):
            load(f"folder:{root}", tmp_path / "data")
        assert not list((tmp_path / "data").glob("cache/*/*"))

    root = tmp_path / "nowhere"
    failing("no folder '.*nowhere/train' .*PATH/train/<class>")
    root = write_folder(tmp_path / "pets")
    odd = root / "train" / "dog" / "004.png"
    Image.fromarray(np.zeros((5, 7, 3), dtype=np.uint8)).save(odd)
    Image.fromarray(np.zeros((9, 9, 3), dtype=np.uint8)).save(root / "train" / "dog" / "011.png")
    failing("dog/004.png' is 7x5 pixels but '.*cat/000.png' is 6x5")
    Image.fromarray(np.zeros((5, 6), dtype=np.uint16)).save(odd)
    failing("dog/004.png' has mode 'I;16'")
    odd.write_bytes((root / "train" / "dog" / "003.png").read_bytes()[:40])
    failing("dog/004.png' cannot be decoded .*replace or remove it")
    odd.write_bytes(b"")
    failing("dog/004.png' cannot be decoded")
    (root / "test" / "emu").mkdir()
    failing("class folder '.*emu' holds no image")
    Image.fromarray(np.zeros((5, 6, 3), dtype=np.uint8)).save(root / "test" / "emu" / "0.png")
    failing("class 'emu' is in only one of")
    root = tmp_path / "single"
    for part in ("train", "test"):
        (root / part / "cat").mkdir(parents=True)
        Image.fromarray(np.zeros((5, 6, 3), dtype=np.uint8)).save(root / part / "cat" / "0.png")
    failing("holds 1 class folders")


def test_a_cache_folder_that_is_a_file(tmp_path):
    root = write_folder(tmp_path / "pets")
    (tmp_path / "data").write_text("a file")
    with pytest.raises(InputError, match=r"cannot write .*choose a writable folder"):
        load(f"folder:{root}", tmp_path / "data")


# augmentation


def looped(image, kind, flip, offset):
    """One image, as arXiv 1512.03385, section 4.2 says it."""
    row, column = offset.tolist()
    padded = torch.nn.functional.pad(image, [4] * 4)
    window = padded[:, row : row + image.shape[1], column : column + image.shape[2]]
    return window.flip(2) if kind == "crop-flip" and flip else window


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from(["crop", "crop-flip"]),
    st.sampled_from([torch.uint8, torch.float32]),
    st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_augmentation_equals_a_loop_over_images(shape, kind, dtype, seed):
    source = generator(seed, "test")
    images = torch.randint(256, shape, generator=source).to(dtype)
    flips, offsets = augmentation_draws(len(images), source)
    expected = torch.stack([looped(*draw) for draw in zip(images, [kind] * len(images), flips, offsets, strict=True)])
    found = augment(images, kind, flips, offsets)
    assert torch.equal(found, expected) and found.dtype == dtype


def test_no_shift_and_no_flip_changes_nothing():
    images = torch.rand(5, 3, 8, 8)
    still = torch.full((5, 2), 4)
    assert torch.equal(augment(images, "crop-flip", torch.zeros(5, dtype=torch.bool), still), images)
    assert torch.equal(augment(images, "crop-flip", torch.ones(5, dtype=torch.bool), still), images.flip(3))
    assert augment(images, "none", torch.ones(5, dtype=torch.bool), still) is images
    with pytest.raises(InputError, match="unknown augmentation 'flip', did you mean 'crop-flip'"):
        augment(images, "flip", torch.ones(5, dtype=torch.bool), still)


def test_draws_are_uniform_and_repeat():
    flips, offsets = augmentation_draws(90_000, generator(0, "augmentation", 3))
    again = augmentation_draws(90_000, generator(0, "augmentation", 3))
    assert torch.equal(flips, again[0]) and torch.equal(offsets, again[1])
    assert flips.dtype == torch.bool and offsets.shape == (90_000, 2)
    # Five standard deviations of a binomial count
    assert abs(flips.sum().item() - 45_000) < 5 * 150
    for axis in offsets.unbind(1):
        assert (axis.bincount(minlength=9) - 10_000).abs().max() < 5 * 95 and axis.max() == 8


def test_a_data_set_can_take_another_augmentation():
    assert replace(load("digits"), augmentation="crop").augmentation == "crop"
