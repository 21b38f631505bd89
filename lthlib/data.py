"""Data sets by name, as whole tensors: fixed splits, normalisation, and batched augmentation on the device."""

import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lthlib.errors import InputError, unknown
from lthlib.randomness import generator
from lthlib.store import Store, key, project_path

VALID_DATASETS = ("digits", "mnist", "fashion-mnist", "kmnist", "cifar10", "cifar100", "svhn", "folder:PATH")
SPLITS = ("train", "validation", "test")
VALIDATION = 5_000
PADDING = 4
_deriving = Lock()
_TORCHVISION = {
    "mnist": ("MNIST", "MNIST/raw", "none"),
    "fashion-mnist": ("FashionMNIST", "FashionMNIST/raw", "none"),
    "kmnist": ("KMNIST", "KMNIST/raw", "none"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py", "crop-flip"),
    "cifar100": ("CIFAR100", "cifar-100-python", "crop-flip"),
    "svhn": ("SVHN", "train_32x32.mat and test_32x32.mat", "crop"),
}
_IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """`auto` is CUDA where there is one, else the CPU; asking for a CUDA device that is absent is an InputError."""
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise unknown("device", str(device), ("auto", "cpu", "cuda", "cuda:0")) from error
    if picked.type not in ("cpu", "cuda"):
        raise unknown("device", str(device), ("auto", "cpu", "cuda", "cuda:0"))
    if picked.type == "cuda" and (picked.index or 0) >= (count := torch.cuda.device_count()):
        there = ", ".join(["auto", "cpu", *(f"cuda:{index}" for index in range(count))])
        raise InputError(f"device {str(device)!r} is not there: {count} CUDA devices (valid: {there})")
    return picked


@dataclass(frozen=True)
class Split:
    """`images` (N, C, H, W) in raw pixel units, usually uint8, and their `labels` (N,), int64."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Dataset:
    """Three splits, the per-channel `mean` and `std` of the training images (raw pixel units), and the augmentation.

    `augmentation` is "none", "crop" or "crop-flip"; `dataclasses.replace(dataset, augmentation=...)` changes it.
    Images stay as stored (CIFAR-10: 184 MB as uint8); `normalised` makes float32, four times that, anew at each call.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: str
    # Last what was derived from these very images: the three splits as networks of one kind read them.
    _derived: OrderedDict[object, Tensor] = field(default_factory=OrderedDict, init=False, repr=False, compare=False)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def label(self) -> str:
        """The name for tables and figures: a folder's base name instead of its place on this machine."""
        if not self.name.startswith("folder:"):
            return self.name
        return Path(self.name.removeprefix("folder:")).expanduser().resolve().name

    @property
    def device(self) -> torch.device:
        """Where the images are, and so where tickets are trained on them."""
        return self.train.images.device

    def to(self, device: torch.device | str) -> "Dataset":
        """The same data on `device`: auto (`pick_device`), or one of torch's; itself if it is there already."""
        device = pick_device(device) if str(device) == "auto" else torch.device(device)
        if (device.type, device.index or 0) == (self.device.type, self.device.index or 0):
            return self
        train, validation, test = (
            Split(split.images.to(device), split.labels.to(device))
            for split in (self.train, self.validation, self.test)
        )
        return replace(self, train=train, validation=validation, test=test)

    def with_images(self, name: str, change: Callable[[Tensor], Tensor]) -> "Dataset":
        """The data set `name`: the images (N, C, H, W) of all splits changed, labels, mean and std kept."""
        train, validation, test = (
            Split(change(split.images).contiguous(), split.labels) for split in (self.train, self.validation, self.test)
        )
        return replace(self, name=name, train=train, validation=validation, test=test)

    def derived(self, key: object, derive: Callable[[], Tensor]) -> Tensor:
        """What `derive` gave when it was last asked for `key`, kept for the last three; not to be written to.

        To turn MNIST into a basis takes as long as an epoch on it, and all levels of a pruning chain read the same.
        """
        # Stacks beside each other ask for the same: the first makes it, the others wait.
        with _deriving:
            if key not in self._derived:
                self._derived[key] = derive()
            self._derived.move_to_end(key)
            while len(self._derived) > len(SPLITS):
                self._derived.popitem(last=False)
            return self._derived[key]

    def normalise(self, images: Tensor) -> Tensor:
        """(images - mean) / std per channel, float32, for images (N, C, H, W) in raw pixel units on any device."""
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(-1, 1, 1)
        return images.to(torch.float32, copy=True).sub_(mean).div_(std)

    def normalised(self, split_name: str) -> Tensor:
        """All images of "train", "validation" or "test", normalised: float32 (N, C, H, W), a new tensor each time."""
        if split_name not in SPLITS:
            raise unknown("split", split_name, SPLITS)
        split: Split = getattr(self, split_name)
        return self.normalise(split.images)


def load(
    name: str,
    data_dir: Path | str = "data",
    *,
    train_size: int | None = None,
    validation_size: int | None = None,
    download: bool = True,
    device: str | torch.device = "auto",
) -> Dataset:
    """The data set called `name` on `device`, read from `data_dir`, downloaded into it if missing and `download`.

    The validation split is a fixed class-stratified part of the training images (5,000; digits 297; a folder
    min(5000, 10 %)), the same for every replicate. `train_size` and `validation_size` take the first so many of a
    fixed order in which every prefix is as class-stratified as its size allows. `mean` and `std` are those of the
    training images kept. Raises InputError: unknown name, files missing or damaged, sizes out of range.
    """
    place = project_path(data_dir)
    if name == "digits":
        train, validation, test, augmentation = *_digits(), "none"
    elif name in _TORCHVISION:
        train, test = _torchvision(name, place, download)
        train, validation = _hold_out(train, VALIDATION)
        augmentation = _TORCHVISION[name][2]
    elif name.startswith("folder:") and name != "folder:":
        train, test = _folder(Path(name.removeprefix("folder:")).expanduser(), place)
        train, validation = _hold_out(train, max(1, min(VALIDATION, len(train.labels) // 10)))
        augmentation = "crop-flip"
    else:
        raise unknown("data set", name, VALID_DATASETS)
    train = _first(train, train_size, "train_size", f"training images of {name!r}")
    validation = _first(validation, validation_size, "validation_size", f"validation images of {name!r}")
    classes = 1 + int(max(train.labels.max(), test.labels.max()))
    moments = _moments(train.images)
    return Dataset(name, train, validation, test, classes, *moments, augmentation).to(pick_device(device))


def _first(split: Split, size: int | None, parameter: str, what: str) -> Split:
    available = len(split.labels)
    if size is None:
        return split
    if not 1 <= size <= available:
        raise InputError(f"{parameter}={size} is outside 1 to {available}, the number of {what}")
    return Split(split.images[:size], split.labels[:size])


def _take(split: Split, which: Tensor) -> Split:
    # index_select copies whole images; bracket indexing would go element by element.
    return Split(split.images.index_select(0, which), split.labels.index_select(0, which))


def _stratified_order(labels: Tensor) -> Tensor:
    """A fixed permutation (N,) in which every prefix, and every slice, holds the classes in their proportions."""
    source = generator(0, "split")
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().squeeze(1)
        # A class of n images gets places (rank + u) / n: evenly spread over the unit interval, at a random phase.
        ranks = torch.randperm(len(members), generator=source) + torch.rand((), generator=source)
        place[members] = ranks.double() / len(members)
    return place.argsort(stable=True)


def _hold_out(train: Split, size: int) -> tuple[Split, Split]:
    if len(train.labels) <= size:
        raise InputError(f"{len(train.labels)} training images leave none beside {size} for validation")
    order = _stratified_order(train.labels)
    return _take(train, order[size:]), _take(train, order[:size])


def _moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 images; a constant channel's deviation counts as 1."""
    counts = torch.zeros(images.shape[1], 256, dtype=torch.float64)
    for part in images.split(2_048):
        for channel, values in enumerate(part.unbind(1)):
            counts[channel] += values.flatten().bincount(minlength=256)
    level = torch.arange(256, dtype=torch.float64)
    total = counts.sum(1)
    mean = counts @ level / total
    std = ((counts * (level - mean[:, None]).square()).sum(1) / total).sqrt()
    return tuple(mean.tolist()), tuple(std.where(std > 0, 1.0).tolist())


def _digits() -> tuple[Split, Split, Split]:
    """scikit-learn's bundled 1,797 digits, 8x8, in 0 to 16: 1,200 / 297 / 300, class-stratified."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise InputError("the digits come with scikit-learn, which is not installed (pip install scikit-learn)")
    # Its file without itself, whose import takes two seconds.
    table = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    images = torch.from_numpy(table[:, :-1]).to(torch.uint8).view(-1, 1, 8, 8)
    labels = torch.from_numpy(table[:, -1]).long()
    train, validation, test = _stratified_order(labels).split([1_200, 297, 300])
    everything = Split(images, labels)
    return _take(everything, train), _take(everything, validation), _take(everything, test)


def _torchvision(name: str, data_dir: Path, download: bool) -> tuple[Split, Split]:
    """Both splits of a torchvision data set: downloaded if missing, never asked of the network if there."""
    from torchvision import datasets

    kind, place, _ = _TORCHVISION[name]
    reader: Callable[..., Any] = getattr(datasets, kind)

    def read(split: str, download: bool) -> Split:
        chosen = {"split": split} if kind == "SVHN" else {"train": split == "train"}
        with warnings.catch_warnings():
            # NumPy 2.4.0 to 2.4.4 object to a dtype in CIFAR's own files (numpy/numpy pull request 31177).
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            return _tensors(reader(data_dir, **chosen, download=download))

    try:
        return read("train", False), read("test", False)
    except Exception as error:
        if "not found" not in str(error):
            raise InputError(
                f"{name!r} in {str(data_dir / place)!r} cannot be read ({_line(error)}): "
                "if it is damaged, delete it and load again to download it"
            ) from error
    wanted = f"{name!r} is not in {str(data_dir)!r} (looked for {place})"
    if not download:
        raise InputError(f"{wanted}: set data_dir to the folder that holds it, or allow the download")
    try:
        with Store(data_dir).locked(f"download-{name}"):
            return read("train", True), read("test", True)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{wanted} and could not be downloaded ({_line(error)}): connect to the internet once, or copy it there "
            f"from a machine that ran torchvision.datasets.{kind}(root, download=True)"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _tensors(source: Any) -> Split:
    """A torchvision data set's arrays as (N, C, H, W) uint8 and int64 labels."""
    images = torch.as_tensor(source.data)
    labels = torch.as_tensor(source.labels if hasattr(source, "labels") else source.targets)
    if images.dim() == 3:
        images = images.unsqueeze(1)
    elif images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    return Split(images.contiguous(), labels.long())


class _File(NamedTuple):
    path: str
    size: int
    modified: int


def _folder(path: Path, data_dir: Path) -> tuple[Split, Split]:
    """Both splits of images in ImageFolder layout, decoded once and kept as uint8 under `data_dir`/cache."""
    from safetensors.torch import load_file, save_file

    listings = {part: _listing(path / part) for part in ("train", "test")}
    if odd := sorted(listings["train"].keys() ^ listings["test"].keys()):
        raise InputError(f"class {odd[0]!r} is in only one of {str(path / 'train')!r} and {str(path / 'test')!r}")
    files = [file for listing in listings.values() for members in listing.values() for file in members]
    boundary = sum(map(len, listings["train"].values()))

    def work(_: list[int]) -> list[dict[str, Tensor]]:
        images = _decode([file.path for file in files])
        labels = {f"{part}_labels": _numbered(listing) for part, listing in listings.items()}
        return [{"train_images": images[:boundary], "test_images": images[boundary:]} | labels]

    [stored] = Store(data_dir / "cache").compute(
        [{"images": key({"version": 1, "root": path.resolve(), "files": files})}],
        work,
        lambda tensors, entry: save_file(tensors, entry / "images.safetensors"),
        lambda entry: load_file(entry / "images.safetensors"),
    )
    train, test = (Split(stored[f"{part}_images"], stored[f"{part}_labels"]) for part in listings)
    return train, test


def _listing(folder: Path) -> dict[str, list[_File]]:
    """The image files of each class folder; classes and files in order of their names."""
    if not folder.is_dir():
        raise InputError(f"no folder {str(folder)!r} (folder:PATH needs PATH/train/<class>/* and PATH/test/<class>/*)")
    found: dict[str, list[_File]] = {}
    for place in sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        found[place.name] = sorted(_images_below(str(place)), key=lambda file: file.path)
        if not found[place.name]:
            raise InputError(f"class folder {str(place)!r} holds no image (valid: {', '.join(_IMAGE_SUFFIXES)})")
    if len(found) < 2:
        raise InputError(f"{str(folder)!r} holds {len(found)} class folders, but classification needs at least 2")
    return found


def _images_below(folder: str) -> Iterator[_File]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _images_below(entry.path)
            elif entry.name.lower().endswith(_IMAGE_SUFFIXES) and not entry.name.startswith("."):
                status = entry.stat()
                yield _File(entry.path, status.st_size, status.st_mtime_ns)


def _numbered(listing: dict[str, list[_File]]) -> Tensor:
    sizes = torch.tensor([len(files) for files in listing.values()])
    return torch.arange(len(listing)).repeat_interleave(sizes)


def _decode(files: list[str]) -> Tensor:
    """All files as one uint8 tensor (N, C, H, W): C = 1 if every image is grey, else 3. Threads decode in parallel."""
    height, width = _pixels(files[0]).shape[:2]
    images = np.empty((len(files), 3, height, width), dtype=np.uint8)

    def decode(number: int, file: str) -> bool:
        pixels = _pixels(file)
        if pixels.shape[:2] != (height, width):
            raise InputError(
                f"image {file!r} is {pixels.shape[1]}x{pixels.shape[0]} pixels but {files[0]!r} is {width}x{height}: "
                "all images of a folder need one size"
            )
        colour = pixels.ndim == 3
        images[number] = pixels.transpose(2, 0, 1) if colour else pixels
        return colour

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        try:
            # In order, so that the first odd file is the one named.
            colours = list(threads.map(decode, range(len(files)), files))
        except InputError:
            threads.shutdown(cancel_futures=True)
            raise
    return torch.from_numpy(images if any(colours) else images[:, :1].copy())


def _pixels(file: str) -> np.ndarray:
    """One image as uint8: (H, W) if it is grey, else (H, W, 3)."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            mode = image.mode
            if not mode.startswith(("I", "F")):
                target = "L" if mode in ("1", "L", "LA") else "RGB"
                return np.array(image if mode == target else image.convert(target))
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"image {file!r} cannot be decoded ({_line(error)}): replace or remove it") from error
    raise InputError(f"image {file!r} has mode {mode!r}, but only images of 8 bits a channel are read")


def augmentation_draws(count: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """The random part of augmenting `count` images (an epoch): flips (count,) bool, offsets (count, 2) in 0 to 8.

    Both on the CPU, and the same for every kind of augmentation, so that kinds differ in nothing else.
    """
    flips = torch.rand(count, generator=source) < 0.5
    return flips, torch.randint(2 * PADDING + 1, (count, 2), generator=source)


def augment(images: Tensor, kind: str, flips: Tensor, offsets: Tensor) -> Tensor:
    """Crops and flips a batch (N, C, H, W) of any dtype, on its device and without a loop over images.

    "crop" pads 4 zeros on every side and takes the H x W window at `offsets` (N, 2) (row, column; 4, 4 is no shift);
    "crop-flip" then mirrors the images where `flips` (N,) (He et al., arXiv 1512.03385, section 4.2); "none" returns
    the batch. On raw pixels the border is black, on normalised ones it is the mean colour; uint8 moves a quarter of
    the memory. Raises InputError for an unknown kind.
    """
    if kind == "none":
        return images
    if kind not in ("crop", "crop-flip"):
        raise unknown("augmentation", kind, ("none", "crop", "crop-flip"))
    count, channels, height, width = images.shape
    offsets = offsets.to(images.device)
    rows = torch.arange(height, device=images.device) + offsets[:, :1]
    columns = torch.arange(width, device=images.device)
    if kind == "crop-flip":
        columns = columns.where(~flips.to(images.device)[:, None], columns.flip(0))
    columns = columns + offsets[:, 1:]
    # One gather a batch from the padded images: the mirror is in the order of the columns.
    pixels = rows[:, :, None] * (width + 2 * PADDING) + columns[:, None, :]
    padded = functional.pad(images, [PADDING] * 4).flatten(2)
    return padded.gather(2, pixels.view(count, 1, -1).expand(count, channels, -1)).view_as(images)
