"""Data sets of random bytes: speed does not depend on what images show."""

import torch

from lthlib.data import Dataset, Split

MNIST, CIFAR = (1, 28, 28), (3, 32, 32)


def random_images(shape: tuple[int, int, int], examples: int, others: int = 100) -> Dataset:
    """So many training images of a shape (channels, height, width), and `others` to validate and to test; 10 classes.

    Nothing is augmented.
    """
    source = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        images = torch.randint(256, (count, *shape), generator=source, dtype=torch.uint8)
        return Split(images, torch.randint(10, (count,), generator=source))

    mean, std = (127.5,) * shape[0], (73.9,) * shape[0]
    return Dataset("random", split(examples), split(others), split(others), 10, mean, std, augmentation="none")
