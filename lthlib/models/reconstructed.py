"""The two architectures of the paper's image experiment, reconstructed: the released code lacks the file that has them.

What survives is `init_univ` in RelationalML/NonZeroBiases: a first layer with a group of neurons for each coordinate, a
diagonal layer, sums over each group, then dense layers; and the paper's two families, polynomial and Fourier. With
Kaiming-normal weights the standard deviations are those of that code (sqrt 2 where a unit has one input). Names for
`models.architecture`: "reconstructed-polynomial" and "reconstructed-fourier".
"""

from torch import Tensor, nn

GROUP = 8  # neurons for each coordinate
HIDDEN = 128


class Univariate(nn.Module):
    """Blocks of their own for so many coordinates: GROUP units each, a diagonal layer, and the sums of the groups."""

    def __init__(self, coordinates: int) -> None:
        super().__init__()
        units = coordinates * GROUP
        self.spread = nn.Conv2d(coordinates, units, 1, groups=coordinates)
        self.diagonal = nn.Conv2d(units, units, 1, groups=units)
        self.sums = nn.Conv2d(units, coordinates, 1, groups=coordinates)

    def forward(self, x: Tensor) -> Tensor:
        x = self.spread(x[:, :, None, None]).relu()
        return self.sums(self.diagonal(x).relu()).relu().flatten(1)


class Polynomial(nn.Module):
    """Univariate blocks on every input, then dense layers."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.blocks = Univariate(inputs)
        self.hidden = nn.Linear(inputs, HIDDEN)
        self.output = nn.Linear(HIDDEN, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.output(self.hidden(self.blocks(images.flatten(1))).relu())


class Fourier(nn.Module):
    """A dense layer for the frequencies, univariate blocks on what it gives, then the output."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.frequencies = nn.Linear(inputs, HIDDEN)
        self.blocks = Univariate(HIDDEN)
        self.output = nn.Linear(HIDDEN, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.output(self.blocks(self.frequencies(images.flatten(1)).relu()))


def polynomial(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The polynomial architecture for images of `input_shape` (channels, height, width)."""
    channels, height, width = input_shape
    return Polynomial(channels * height * width, classes)


def fourier(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The Fourier architecture for images of `input_shape` (channels, height, width)."""
    channels, height, width = input_shape
    return Fourier(channels * height * width, classes)
