"""Training as users would write it: a torchvision-like data set, transforms, a DataLoader, a module, torch's SGD."""

import time
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils import data as torch_data
from torchvision import transforms

from lthlib.data import Dataset
from lthlib.models.architecture import prunable
from lthlib.ticket import Ticket


class Images(torch_data.Dataset[tuple[Tensor, int]]):
    """The training images one by one, by way of PIL, as torchvision's MNIST and CIFAR10 give them."""

    def __init__(self, dataset: Dataset) -> None:
        self.images = dataset.train.images.permute(0, 2, 3, 1).squeeze(-1).numpy()
        self.labels = dataset.train.labels.tolist()
        side = dataset.input_shape[1]
        moved = [transforms.RandomCrop(side, padding=4), transforms.RandomHorizontalFlip()]
        mean, std = ([value / 255 for value in values] for values in (dataset.mean, dataset.std))
        fixed = [transforms.ToTensor(), transforms.Normalize(mean, std)]
        self.transform = transforms.Compose((moved if dataset.augmentation == "crop-flip" else []) + fixed)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def loader(dataset: Dataset, batch: int) -> torch_data.DataLoader[tuple[Tensor, int]]:
    """Shuffled batches, made in this process: on two cores workers would only take them from the training."""
    return torch_data.DataLoader(Images(dataset), batch_size=batch, shuffle=True)


def masked(module: nn.Module, ticket: Ticket) -> nn.Module:
    """The module with the ticket's masks applied by torch.nn.utils.prune."""
    for name in prunable(module):
        prune.custom_from_mask(module.get_submodule(name.rpartition(".")[0]), "weight", ticket.masks[name])
    return module


def step_seconds(
    module: nn.Module,
    dataset: Dataset,
    batch: int,
    step: Callable[[Tensor, Tensor], object] | None = None,
) -> float:
    """Seconds a step over one epoch of training the module; its last loss is read, as a progress bar would."""
    batches = loader(dataset, batch)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    module.train()
    start = time.perf_counter()
    for images, labels in batches:
        if step is not None:
            step(images, labels)
            continue
        optimizer.zero_grad()
        loss = F.cross_entropy(module(images), labels)
        loss.backward()
        optimizer.step()
        loss.item()
    return (time.perf_counter() - start) / len(batches)
