r"""Saliency scores: one number for each coefficient of a ticket; the highest are worth keeping.

Every function takes a `Ticket`, dense or masked, and returns a new dictionary of tensors, one per prunable tensor and
shaped like it, computed at the masked network. Scores are of coefficients $c$ in the ticket's bases, by the chain rule
through $\theta=B^\top(m\odot c)$; in the canonical basis they are the papers' scores of weights. Nothing is changed in
place: networks are called functionally, so that weights, buffers and dtype of the ticket stay bit for bit.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from lthlib.errors import InputError
from lthlib.models.initial import initial_state
from lthlib.randomness import generator, stream_seed
from lthlib.ticket import State, Ticket, forward_of, structure


def _leaves(ticket: Ticket) -> State:
    return {name: c.detach().requires_grad_() for name, c in ticket.effective_coefficients().items()}


def gradients_of(value: Tensor, leaves: State, *, create_graph: bool = False, retain_graph: bool = False) -> State:
    """The gradient of a scalar by each of the leaves; zeros where it does not depend on one."""
    retain_graph = retain_graph or create_graph
    gradients = torch.autograd.grad(
        value, list(leaves.values()), retain_graph=retain_graph, create_graph=create_graph, materialize_grads=True
    )
    return dict(zip(leaves, gradients, strict=True))


def _add(total: State, part: State) -> None:
    """Adds the second dictionary to the first, which may be empty, in place."""
    for name, tensor in part.items():
        total[name] = total[name].add_(tensor) if name in total else tensor


# ------------------------------------------------------------------------------------------------------ without data


def random_scores(ticket: Ticket, source: torch.Generator) -> State:
    """Uniform noise in [0, 1), float64: the global top-k has the same expected density in all layers."""
    return {
        name: torch.rand(c.shape, generator=source, dtype=torch.float64).to(c.device)
        for name, c in ticket.coefficients.items()
    }


def magnitude_scores(ticket: Ticket) -> State:
    r"""$|c|$. Han et al. 2015 (arXiv 1506.02626); at initialization a baseline of arXiv 2009.08576."""
    return {name: c.detach().abs() for name, c in ticket.effective_coefficients().items()}


def ntk_sap_scores(
    ticket: Ticket,
    seed: int,
    *,
    perturbation: float = 0.01,
    redraws: int = 5,
    examples: int = 128,
    scheme: str = "kaiming_normal",
) -> State:
    r"""$|\partial_m\sum_x\|f(x;m\odot\theta)-f(x;m\odot(\theta+\epsilon z))\|^2|$; only the mask of the ticket counts.

    The squared change of the outputs under noise z ~ N(0, 1) estimates the trace of the neural tangent kernel. Each of
    `redraws` batches has fresh initial weights (by `scheme`), fresh noise and `examples` fresh Gaussian images; its
    BatchNorm statistics come from the unperturbed network and serve both. Wang et al., ICLR 2023 (arXiv 2304.02840).
    """
    masks = {name: mask.to(ticket.coefficients[name].dtype).requires_grad_() for name, mask in ticket.masks.items()}
    device = next(iter(masks.values())).device
    total: State = {}
    for redraw in range(redraws):
        source = generator(seed, "ntk-sap", redraw)
        images = torch.randn(examples, *ticket.architecture.input_shape, generator=source).to(device)
        redrawn = _redrawn(ticket, stream_seed(seed, "ntk-sap weights", redraw), scheme)
        fresh = _with_batch_statistics(redrawn, images)
        forward = forward_of(fresh)
        noisy = {
            name: c + perturbation * torch.randn(c.shape, generator=source).to(c)
            for name, c in fresh.coefficients.items()
        }
        plain, moved = (
            forward({name: c * masks[name] for name, c in values.items()}, images)
            for values in (fresh.coefficients, noisy)
        )
        _add(total, gradients_of((plain - moved).square().sum(), masks))
    return {name: gradient.mul_(ticket.masks[name]).abs_() for name, gradient in total.items()}


def _redrawn(ticket: Ticket, seed: int, scheme: str) -> Ticket:
    device = next(iter(ticket.masks.values())).device
    state = {name: tensor.to(device) for name, tensor in initial_state(ticket.architecture, seed, scheme).items()}
    coefficients = {
        name: ticket.bases[name].analyse(state[name]).to(c.dtype) for name, c in ticket.coefficients.items()
    }
    return replace(ticket, coefficients=coefficients, rest={name: state[name] for name in ticket.rest}, off="zero")


def _with_batch_statistics(ticket: Ticket, images: Tensor) -> Ticket:
    """The ticket with BatchNorm statistics of its masked network on `images`."""
    module, rest = structure(ticket.architecture, "reset"), {n: t.clone() for n, t in ticket.rest.items()}
    with torch.no_grad():
        functional_call(module, {**ticket.weights(), **rest}, (images,))
    return replace(ticket, rest=rest)


# --------------------------------------------------------------------------------------------------------- with data


def loss_gradients(ticket: Ticket, images: Tensor, labels: Tensor, *, norm: str = "eval", batch: int = 256) -> State:
    """dL/dc of the mean cross-entropy at the masked network, for every coefficient, pruned ones included.

    `images` (N, C, H, W) are normalised, `labels` (N,) int64; `batch` examples at a time (with norm "batch" each of
    these is normalised by itself).
    """
    forward, leaves = forward_of(ticket, norm=norm), _leaves(ticket)
    total: State = {}
    for x, y in zip(images.split(batch), labels.split(batch), strict=True):
        loss = F.cross_entropy(forward(leaves, x), y, reduction="sum") / len(labels)
        _add(total, gradients_of(loss, leaves))
    return total


def snip_scores(ticket: Ticket, images: Tensor, labels: Tensor, *, norm: str = "eval") -> State:
    r"""$|m\,c\,\partial L/\partial c|$, the gradient of the loss by the mask. Lee et al. (arXiv 1810.02340).

    Their normalisation by the sum changes no order and is left out.
    """
    gradients, values = loss_gradients(ticket, images, labels, norm=norm), ticket.effective_coefficients()
    return {name: gradient.mul_(values[name]).abs_() for name, gradient in gradients.items()}


def force_scores(ticket: Ticket, images: Tensor, labels: Tensor, *, norm: str = "eval") -> State:
    r"""$|c\,\partial L/\partial c|$ with the gradient at the masked network and the dense $c$, so that pruned
    coefficients can come back. De Jorge et al. (arXiv 2006.09081), FORCE."""
    gradients = loss_gradients(ticket, images, labels, norm=norm)
    return {name: gradient.mul_(ticket.coefficients[name]).abs_() for name, gradient in gradients.items()}


def grasp_scores(
    ticket: Ticket,
    images: Tensor,
    labels: Tensor,
    *,
    norm: str = "eval",
    divide_logits: float = 200.0,
    batch: int = 256,
) -> State:
    r"""$+c\odot Hg$, signed. Wang et al. (arXiv 2002.07376), whose score $-c\odot Hg$ has its largest *removed*.

    Removing coefficient k changes $\|g\|^2$ by $-2\,c_k(Hg)_k$ to first order, so those go first whose removal raises
    the gradient flow. g and H are of the mean cross-entropy with logits / `divide_logits` (200 in their code), over
    all images: g first, then H g `batch` examples at a time.
    """
    forward, leaves = forward_of(ticket, norm=norm), _leaves(ticket)
    total: State = {}

    def gradients(x: Tensor, y: Tensor, create_graph: bool) -> State:
        loss = F.cross_entropy(forward(leaves, x) / divide_logits, y, reduction="sum") / len(labels)
        return gradients_of(loss, leaves, create_graph=create_graph)

    flow: State = {}
    pairs = list(zip(images.split(batch), labels.split(batch), strict=True))
    for x, y in pairs:
        _add(flow, gradients(x, y, create_graph=False))
    for x, y in pairs:
        parts = gradients(x, y, create_graph=True)
        products = torch.autograd.grad(
            list(parts.values()), list(leaves.values()), grad_outputs=list(flow.values()), materialize_grads=True
        )
        _add(total, dict(zip(leaves, products, strict=True)))
    return {name: gradient.mul_(leaves[name].detach()) for name, gradient in total.items()}


def ntk_sketch_scores(
    ticket: Ticket,
    images: Tensor,
    *,
    probes: int | None = None,
    source: torch.Generator | None = None,
    norm: str = "eval",
    batch: int = 25,
) -> State:
    r"""$|c_k|\sqrt{\sum_i J_{ik}^2}$ with J the Jacobian of all logits on all images; the sketch's optimal $p$ (2.2 of
    Bar & Giryes, arXiv 2305.17559) with $J^\top(\theta_0)$ in place of X.

    `probes` None is exact: gradients of each example and output, a few examples at a time, squared and summed, so
    that J (N classes, coefficients) is never whole in memory; time grows with N x classes x coefficients. A number of
    probes estimates the sum without bias: for z ~ N(0, 1), $E(\sum_iz_iJ_{ik})^2=\sum_iJ_{ik}^2$, with one backward
    pass for each probe and `batch` of images, so that scores are known to about 1 / sqrt(2 x probes x batches) of
    themselves. Raises InputError for probes without a `source`.
    """
    if probes is None:
        squares = _exact_squares(ticket, images, norm)
    elif probes < 1 or source is None:
        raise InputError(f"{probes} probes of the Jacobian need to be at least 1 and have a generator `source`")
    else:
        squares = _probed_squares(ticket, images, probes, source, norm, batch)
    values = ticket.effective_coefficients()
    return {name: square.sqrt_().mul_(values[name].abs()) for name, square in squares.items()}


def _probed_squares(
    ticket: Ticket, images: Tensor, probes: int, source: torch.Generator, norm: str, batch: int
) -> State:
    forward, leaves = forward_of(ticket, norm=norm), _leaves(ticket)
    total: State = {}
    for x in images.split(batch):
        logits = forward(leaves, x)
        for probe in range(probes):
            z = torch.randn(logits.shape, generator=source).to(logits)
            gradients = gradients_of((z * logits).sum(), leaves, retain_graph=probe + 1 < probes)
            _add(total, {name: gradient.square_() for name, gradient in gradients.items()})
    return {name: square.div_(probes) for name, square in total.items()}


def _exact_squares(ticket: Ticket, images: Tensor, norm: str) -> State:
    if norm != "eval":
        raise InputError(f"the exact Jacobian needs norm 'eval', found {norm!r} (choose probes for 'batch')")
    module, weights, rest = structure(ticket.architecture), ticket.weights(), dict(ticket.rest)
    total: State = {}
    # One copy of the weights' gradients for each example: 64 MB of them keep within caches' reach and any memory.
    chunk = max(1, 2**24 // sum(weight.numel() for weight in weights.values()))

    def logits_of(weights: State, image: Tensor) -> Tensor:
        return functional_call(module, {**weights, **rest}, (image.unsqueeze(0),)).squeeze(0)

    for x in images.split(chunk):
        copies = {name: w.detach().expand(len(x), *w.shape).requires_grad_() for name, w in weights.items()}
        logits = torch.vmap(logits_of)(copies, x)
        for output in range(logits.shape[1]):
            each = gradients_of(logits[:, output].sum(), copies, retain_graph=output + 1 < logits.shape[1])
            _add(total, {name: ticket.bases[name].analyse(g).square().sum(0) for name, g in each.items()})
    return total
