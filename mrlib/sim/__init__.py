"""The simulator: a dataset of videos whose events are known, with features, queries and annotations.

No real features can ship with this repository, so this is the dataset that everything runs on by default. Each knob
controls one effect that the papers describe. A knob left alone changes no video, so comparisons between its values are
paired. The layout of moments and the scores without training follow QVHighlights (the tests of `mrlib.sim` state each
number). A model's score here says what a mechanism does, not what it would score on QVHighlights.

`world` holds the concepts, `script` what happens when, `features` what it looks like, `simulator` the datasets. The
same script can be drawn as a video: `drawing`, with `props` and `motions`; `legend` explains the pictures.
"""

from mrlib.sim.simulator import CLIP_S as CLIP_S
from mrlib.sim.simulator import SPLITS as SPLITS
from mrlib.sim.simulator import STREAMS as STREAMS
from mrlib.sim.simulator import export as export
from mrlib.sim.simulator import open_sim as open_sim
