"""The lottery-ticket workbook's library: `import lthlib as lth` is all that a notebook, an example or a user needs.

A ticket is an architecture, a basis for each weight tensor, the coefficients in it, a mask over them, and the replicate
that it is of. Tickets are found, transformed, trained and evaluated; what came of it is evidence. Every name here has
its home in one room, from which it is imported when it is first asked for; `lthlib/README.md` shows the rooms.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

# MKL reads it once, at its first product; see lthlib.rounding.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lthlib.basis import bases as bases
    from lthlib.data import load as load
    from lthlib.elastic import carry as carry
    from lthlib.elastic import depth_map as depth_map
    from lthlib.evidence import curves as curves
    from lthlib.evidence import grids as grids
    from lthlib.evidence.claims import judge as judge
    from lthlib.evidence.claims import rank_correlation as rank_correlation
    from lthlib.evidence.intervals import mean_interval as mean_interval
    from lthlib.evidence.intervals import paired_difference as paired_difference
    from lthlib.evidence.measure import accuracy as accuracy
    from lthlib.evidence.measure import difference_to as difference_to
    from lthlib.evidence.measure import input_share as input_share
    from lthlib.evidence.measure import layer_rows as layer_rows
    from lthlib.evidence.measure import measure as measure
    from lthlib.evidence.measure import measure_levels as measure_levels
    from lthlib.evidence.measure import where as where
    from lthlib.evidence.results import Results as Results
    from lthlib.evidence.results import read_claims as read_claims
    from lthlib.evidence.results import read_metrics as read_metrics
    from lthlib.finders.controls import control as control
    from lthlib.finders.controls import inverted as inverted
    from lthlib.finders.controls import layerwise_shuffled as layerwise_shuffled
    from lthlib.finders.controls import random_mask as random_mask
    from lthlib.finders.controls import reinitialised as reinitialised
    from lthlib.finders.dynamic import train_dynamic as train_dynamic
    from lthlib.finders.find import find as find
    from lthlib.finders.imp import Pruning as Pruning
    from lthlib.finders.imp import imp as imp
    from lthlib.finders.imp import in_basis as in_basis
    from lthlib.finders.imp import iterative_magnitude_pruning as iterative_magnitude_pruning
    from lthlib.finders.imp import train_dense as train_dense
    from lthlib.finders.supermask import find_supermasks as find_supermasks
    from lthlib.finders.supermask import random_source as random_source
    from lthlib.finders.supermask_search import Supermask as Supermask
    from lthlib.masks.controls import jaccard as jaccard
    from lthlib.masks.controls import random_masks as random_masks
    from lthlib.masks.draws import sample as sample
    from lthlib.masks.topk import keep_top as keep_top
    from lthlib.models.architecture import architecture as architecture
    from lthlib.randomness import generator as generator
    from lthlib.store import Store as Store
    from lthlib.theory.strong.construct import construct as construct
    from lthlib.ticket import Ticket as Ticket
    from lthlib.ticket import bases_for as bases_for
    from lthlib.ticket import initial_tickets as initial_tickets
    from lthlib.ticket import tickets as tickets
    from lthlib.training.recipe import Recipe as Recipe
    from lthlib.training.recipe import parse_step as parse_step
    from lthlib.training.train import evaluate as evaluate
    from lthlib.training.train import train as train

# By group: the room of each name.
NAMES = {
    "nouns": {
        "Ticket": "ticket", "Recipe": "training.recipe", "Pruning": "finders.imp", "Supermask":
        "finders.supermask_search", "Store": "store", "Results": "evidence.results",
    },
    "make": {
        "load": "data", "tickets": "ticket", "initial_tickets": "ticket", "architecture": "models.architecture",
        "random_source": "finders.supermask", "bases": "basis", "bases_for": "ticket", "generator": "randomness",
        "parse_step": "training.recipe",
    },
    "find": {
        "imp": "finders.imp", "find": "finders.find", "train_dynamic": "finders.dynamic",
        "find_supermasks": "finders.supermask", "construct": "theory.strong.construct",
    },
    "transform": {
        "in_basis": "finders.imp", "depth_map": "elastic", "carry": "elastic",
    },
    "controls": {
        "control": "finders.controls", "random_mask": "finders.controls", "reinitialised": "finders.controls",
        "layerwise_shuffled": "finders.controls", "inverted": "finders.controls",
    },
    "train": {
        "train": "training.train", "train_dense": "finders.imp", "iterative_magnitude_pruning": "finders.imp",
        "evaluate": "training.train",
    },
    "masks": {
        "keep_top": "masks.topk", "sample": "masks.draws", "random_masks": "masks.controls",
        "jaccard": "masks.controls",
    },
    "evidence": {
        "accuracy": "evidence.measure", "measure": "evidence.measure", "measure_levels": "evidence.measure",
        "where": "evidence.measure", "difference_to": "evidence.measure", "input_share": "evidence.measure",
        "layer_rows": "evidence.measure", "mean_interval": "evidence.intervals",
        "paired_difference": "evidence.intervals", "judge": "evidence.claims", "rank_correlation": "evidence.claims",
        "read_metrics": "evidence.results", "read_claims": "evidence.results",
    },
}  # fmt: skip
# Rooms that are named as such: `lth.curves.accuracy_curve`, `lth.studies.elastic`, `lth.widgets.TicketExplorer`.
ROOMS = {"curves": "evidence.curves", "grids": "evidence.grids"}
ROOMS |= {room: room for room in ("studies", "widgets", "theory", "finders", "training", "models", "evidence")}
HOMES = {name: room for group in NAMES.values() for name, room in group.items()}
__all__ = sorted([*HOMES, *ROOMS])  # noqa: PLE0605


def __getattr__(name: str) -> object:
    if name in HOMES:
        value = getattr(import_module(f"lthlib.{HOMES[name]}"), name)
    elif name in ROOMS:
        value = import_module(f"lthlib.{ROOMS[name]}")
    else:
        raise AttributeError(f"module 'lthlib' has no attribute {name!r} (valid: {', '.join(__all__)})")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
