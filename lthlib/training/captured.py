"""A training step captured once as a CUDA graph and replayed: Python and the launches of its kernels are paid once.

A small network's step is some hundred kernels of microseconds each, and to launch them one by one takes longer than
they do. PyTorch documentation, "CUDA semantics", section CUDA graphs.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

Replay = Callable[[], None]
Capture = Callable[[Callable[[], Tensor]], tuple[Tensor, Replay]]

# Steps that a training makes before it is worth a capture, and in which lazily made state comes to be.
WARM_UP = 10
# Kernels that add in no fixed order differ in rounding; a graph that misses a part of the step differs by far more.
ALIKE = 0.05


def cuda_graph(work: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
    """The tensor that `work` gives, written anew by each call of the replay; RuntimeError where it cannot be captured.

    `work` is run once, on a stream of its own, before it is captured.
    """
    stream, outside = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(outside)
    with torch.cuda.stream(stream):
        work()
    outside.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        result = work()
    return result, graph.replay


class CapturedStep:
    """A step on inputs and labels that changes tensors in place, captured after some calls and replayed from then on.

    `work` may read no value of a tensor in Python; `moved` lists all that it changes. The first replay is compared
    with the step itself: where it moves anything otherwise, or where nothing can be captured, a warning says so and
    the step is made as before. Batches of another shape than the captured one are not replayed.
    """

    def __init__(
        self,
        work: Callable[[Tensor, Tensor], Tensor],
        moved: Callable[[], list[Tensor]],
        capture: Capture = cuda_graph,
    ) -> None:
        self.work, self.moved = work, moved
        self.capture: Capture | None = capture
        self.before_capture = WARM_UP
        self.shape: torch.Size | None = None
        self.replay: Replay | None = None

    def __call__(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The losses (replicates, batch) that `work` gives."""
        if self.replay is not None:
            if inputs.shape != self.inputs.shape:
                return self.work(inputs, labels)
            self.inputs.copy_(inputs)
            self.labels.copy_(labels)
            self.replay()
            return self.losses.clone()
        # The last batch of an epoch may be smaller: two of one shape in a row are of the usual one.
        usual, self.shape = inputs.shape == self.shape, inputs.shape
        self.before_capture -= 1
        if self.before_capture >= 0 or not usual or self.capture is None:
            return self.work(inputs, labels)
        return self._captured(inputs, labels, self.capture)

    def forget(self) -> None:
        """Captures anew at the next step, because the step works on other tensors from here on."""
        self.replay = None

    def _captured(self, inputs: Tensor, labels: Tensor, capture: Capture) -> Tensor:
        """Makes one step, and captures it on the way."""
        before = _copies(self.moved())
        losses = self.work(inputs, labels).clone()
        after = _copies(self.moved())
        self.inputs, self.labels = inputs.clone(), labels.clone()
        try:
            self.losses, self.replay = capture(lambda: self.work(self.inputs, self.labels))
            _put(self.moved(), before)
            self.replay()
            same = _alike([*before, torch.zeros_like(losses)], [*after, losses], [*self.moved(), self.losses])
            reason = "" if same else "its replay gave another result"
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
        _put(self.moved(), after)
        if reason:
            warnings.warn(f"training steps are not replayed from a CUDA graph: {reason}", stacklevel=2)
            self.replay, self.capture = None, None
        return losses


def _copies(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


@torch.no_grad()
def _put(tensors: list[Tensor], values: list[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


@torch.no_grad()
def _alike(before: list[Tensor], after: list[Tensor], replayed: list[Tensor]) -> bool:
    """Whether every tensor was moved from `before` to `replayed` as to `after`, but for rounding."""
    states = ([tensor.double() for tensor in state] for state in (before, after, replayed))
    return all(
        bool((got - wanted).norm() <= ALIKE * (wanted - start).norm() + 1e-6 * wanted.norm())
        for start, wanted, got in zip(*states, strict=True)
    )
