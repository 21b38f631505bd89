"""Training batches by step, gathered from a data set that lies whole on the device; no loader stands between."""

import torch
from torch import Tensor

from lthlib.data import Dataset, augment, augmentation_draws
from lthlib.randomness import generator
from lthlib.training.network import Network
from lthlib.training.recipe import Recipe


def prepared(net: Network, data: Dataset, split_name: str, dtype: torch.dtype) -> Tensor:
    """All images of a split as `net` reads them: normalised, in its basis and layout; not to be written to."""
    return data.derived((split_name, dtype, net.reads), lambda: net.prepare(data.normalised(split_name).to(dtype)))


class Batches:
    """Training batches by step: each replicate's own order and augmentation, whole data on the device."""

    def __init__(self, net: Network, data: Dataset, recipe: Recipe, dtype: torch.dtype) -> None:
        self.net, self.data, self.recipe, self.dtype = net, data, recipe, dtype
        self.seeds = [ticket.seed for ticket in net.sources]
        self.augmented = data.augmentation != "none"
        # Without augmentation the input transform is done once; with it, bytes are gathered and the rest done a batch.
        self.inputs = data.train.images if self.augmented else prepared(net, data, "train", dtype)
        self.epoch = -1

    def _start(self, epoch: int) -> None:
        count, device = len(self.data.train.labels), self.data.train.labels.device
        orders = [torch.randperm(count, generator=generator(seed, "order", epoch)) for seed in self.seeds]
        self.order = torch.stack(orders).to(device)
        if self.augmented:
            draws = [augmentation_draws(count, generator(seed, "augmentation", epoch)) for seed in self.seeds]
            self.flips = torch.stack([flips for flips, _ in draws]).to(device)
            self.offsets = torch.stack([offsets for _, offsets in draws]).to(device)
        self.epoch = epoch

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs (replicates, batch, ...) and labels (replicates, batch) of one step."""
        size = self.recipe.batch_size
        epoch, position = divmod(step, self.recipe.steps_per_epoch(len(self.data.train.labels)))
        if epoch != self.epoch:
            self._start(epoch)
        chosen = self.order[:, position * size : (position + 1) * size]
        flat = chosen.reshape(-1)
        inputs, labels = self.inputs.index_select(0, flat), self.data.train.labels[chosen]
        if self.augmented:
            place = slice(position * size, position * size + chosen.shape[1])
            flips, offsets = self.flips[:, place].reshape(-1), self.offsets[:, place].reshape(-1, 2)
            images = augment(inputs, self.data.augmentation, flips, offsets)
            inputs = self.net.prepare(self.data.normalise(images).to(self.dtype))
        return inputs.unflatten(0, chosen.shape), labels
