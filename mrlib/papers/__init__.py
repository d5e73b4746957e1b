"""The papers: each is a file of this folder with its `PAPER`, its `PRESETS` and its `RELEASE`, if it has one.

    schema    what a paper consists of           settings  `get`: a paper with some of its settings changed
    slots     the parts that papers choose from  models    `build`: from a paper to its model
    registry  the papers that are known          splits    `open_split`: the data of a paper
    release   `load_official`: checkpoints of official releases
    saved     what is read of their files            networks  which network they hold
    limits    models are built up to a size

A new paper is a file and a line in the list below; a paper elsewhere calls `papers.register(its_module)`.
"""

from importlib import import_module

from mrlib.papers.models import build as build
from mrlib.papers.models import prepare as prepare
from mrlib.papers.registry import PAPERS as PAPERS
from mrlib.papers.registry import PRESETS as PRESETS
from mrlib.papers.registry import RELEASES as RELEASES
from mrlib.papers.registry import register as register
from mrlib.papers.schema import Choice as Choice
from mrlib.papers.schema import Optimiser as Optimiser
from mrlib.papers.schema import Paper as Paper
from mrlib.papers.schema import Schedule as Schedule
from mrlib.papers.schema import Stage as Stage
from mrlib.papers.settings import get as get
from mrlib.papers.settings import usual as usual
from mrlib.papers.slots import ALIGNERS as ALIGNERS
from mrlib.papers.slots import AUGMENTERS as AUGMENTERS
from mrlib.papers.slots import DETECTORS as DETECTORS
from mrlib.papers.slots import PREPARATIONS as PREPARATIONS
from mrlib.papers.slots import SMALL as SMALL
from mrlib.papers.slots import TRAINING_SETS as TRAINING_SETS
from mrlib.papers.splits import open_split as open_split
from mrlib.papers.splits import validation_split as validation_split

for _name in (
    "f2sgd",
    "matr",
    "univtg",
    "snag",
    "moment_detr",
    "qd_detr",
    "td_detr",
    "amr",
):
    register(import_module(f"mrlib.papers.{_name}"))
RELEASES["cg_detr"] = import_module("mrlib.papers.cg_detr").RELEASE  # a release of parts that no paper here uses
