# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     notebook_metadata_filter: kernelspec,jupytext,-jupytext.text_representation.jupytext_version,-language_info
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your video: a file in, a moment out
#
# > **You will learn** how a video file becomes the rows of numbers that every other notebook starts from; how a
# > sentence, or a clip, finds its moment in it, with and without training; and how that scales to an hour of video
# > and to a library of them.
# >
# > **Reading** fifteen minutes. **Running** about three minutes on two cores.
#
# The other notebooks begin with features. This one begins with an `.mp4`. By default it draws one, so that it runs
# anywhere and the truth is known; with `-p video my.mp4` it takes yours. Then it needs `-p encoder FOLDER` with CLIP's
# weights to answer a sentence (`-p query "…"`; section 10 says where to get them). Without weights it answers clips
# only. What needs the truth, or the sentence, is left out and says so.

# %% tags=["parameters"]
seed: int = 0  # of the world, the encoder that is trained here, and the retriever
out_dir: str = ""  # videos, encoder, retriever and corpus; empty: a fresh temporary folder
save_figures: bool = False  # write the pictures to figures/
video: str = ""  # a video file; empty: one is drawn
query: str = ""  # a sentence to find; empty: one about an event of the drawn video
clip: str = ""  # a short video to find by example; empty: a cut of the video
encoder: str = ""  # a folder or hub name of CLIP, "pixels", or the folder of a Toy; empty: a Toy is trained here
retriever: str = ""  # a run's folder or a checkpoint; empty: one is trained here, none for a video of your own

# %%
from mrlib.notebooks import check_parameters

check_parameters(globals())

import os
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from IPython.display import display
from matplotlib.patches import Rectangle

import mrlib
from mrlib import papers, plots
from mrlib.sim.legend import legend
from mrlib.sim.simulator import world_of
from mrlib.train import fit
from mrlib.video import Corpus, Pixels, Player, find, moments, render, storyboard, train_toy
from mrlib.video.cut import cut
from mrlib.video.encode import open_encoder
from mrlib.video.index import index
from mrlib.video.probe import probe
from mrlib.video.read import clips, thumbnails
from mrlib.video.rendered import in_a_row, render_query, render_sample

figures = Path(mrlib.__file__).resolve().parent.parent / "figures"
plots.setup()
torch.set_num_threads(1)
folder = Path(out_dir or tempfile.mkdtemp())
folder.mkdir(parents=True, exist_ok=True)
drawn = not video  # nothing is given: a video is drawn, and the truth is known

# %% [markdown]
# ## 1. A video
#
# No video can come with this repository, so one is drawn. The simulator of the other notebooks writes scripts: who
# does what, with which object, where, from when to when. Elsewhere a script becomes feature vectors directly; here it
# becomes pictures. Shapes are actors and objects, motions are actions, backgrounds are places. The same script, so the
# truth is known to the second, but the only thing that goes on from here is an H.264 file like any other.

# %% tags=["nbval-ignore-output"]
worlds = {"train": 384, "val": 60}
worlds = {split: mrlib.open_dataset("sim", split=split, seed=seed, n=n) for split, n in worlds.items()}


def is_clear(sample):
    """One moment of 8 to 20 s, with something before and after it."""
    (start, end), *more = sample.relevant_windows
    return not more and 8 <= end - start <= 20 and start >= 8 and end <= sample.duration - 8


chosen = next((i for i, sample in enumerate(worlds["val"].samples) if is_clear(sample)), 0)
truth = worlds["val"].samples[chosen].relevant_windows if drawn and not query else None
if drawn:
    video, query = str(folder / "drawn.mp4"), query or worlds["val"].samples[chosen].query
    render(worlds["val"], chosen, video)
facts = probe(video)
print(f"{Path(video).name}: {facts.duration_s:.1f} s, {facts.width} x {facts.height}, {facts.fps:.1f} frames/s")
fig = storyboard(video, [], truth=truth, query=query)
fig.axes[0].set_title("", loc="right")  # no answer: nothing has been asked yet
if save_figures and drawn:
    plots.save(fig, figures / "07_video")

# %% [markdown]
# **The code.** All that a drawn video can show, under its word; of an action, two moments.

# %%
fig, axes = plots.figure(10, 5)
axes[0, 0].imshow(legend(world_of(worlds["val"]).names))
axes[0, 0].set_axis_off()

# %% [markdown]
# In the strip before, the line above the frames is the query, if one is given. Of the drawn video the truth is known:
# the bar below the frames is where it happens. A person finds it by looking. The rest of this notebook makes a
# program find it.
#
# ## 2. From the file to numbers
#
# **Why.** Models see features, not files. Whoever makes features for a trained model must make them as its training
# data was made: the same frame of every clip, the same crop, the same scaling. Half a second of shift, or another
# resize, is a different input, and nothing complains.

# %% [markdown]
# **The published recipe.** One clip is two seconds. Clip $n$ is shown by *one* frame, the last one before its middle,
# $2n + 1$ s; a video has $\mathrm{round}(\text{duration} / 2)$ clips. The short side is scaled to 224 pixels and the
# centre cropped. `mrlib.video.read` does this in one pass through PyAV, byte for byte what the `ffmpeg` program gives.
#
# **Picture.** Above, a frame and the square of it that the encoder sees; below, a few of these squares, one per clip.
# That is all that an encoder such as CLIP gets of the video.

# %% tags=["nbval-ignore-output"]
pictures, times = clips(video)
seen = np.stack(list(islice(pictures, 200)))  # all of them would be np.asarray(pictures)
whole, _ = thumbnails(video, rows_per_s=0.5, side=360)  # whole frames, squeezed into squares

fig, axes = plots.figure(9, 3.6, nrows=2, ncols=1, height_ratios=(2.2, 1))
wide = 360 * facts.width / facts.height
middle = len(seen) // 2
axes[0, 0].imshow(whole[middle], extent=(0, wide, 360, 0))
side = min(wide, 360)
axes[0, 0].add_patch(Rectangle(((wide - side) / 2, (360 - side) / 2), side, side, fill=False, ec=plots.PREDICTED, lw=3))
axes[0, 0].set_title(f"clip {middle}, shown by its last frame before {times[middle]:g} s, and its crop")
shown = seen[np.linspace(0, len(seen) - 1, min(12, len(seen))).astype(int)]
axes[1, 0].imshow(np.concatenate(list(shown), axis=1))
axes[1, 0].set_title(f"{len(shown)} of {len(times)} clips, {seen.shape[1]} x {seen.shape[2]} pixels each")
for ax in axes.flat:
    ax.axis("off")

# %% [markdown]
# ## 3. Where features come from
#
# An encoder turns each of these pictures into a vector, and a sentence into a vector of the same space. For real
# videos that is CLIP: `-p encoder FOLDER` with a folder of its weights. CLIP learned from 400 million pictures with
# captions that a picture and *its* caption belong together. None of its weights can come with this repository.

# %% [markdown]
# The lesson fits into a minute: take clips of drawn videos, each with a sentence about it, and train two networks, one
# for pictures and one for words, so that in a batch every clip is most similar to its own sentence,
# $$\mathcal{L} = -\frac{1}{2B} \sum_b \Big( \log \frac{e^{s \langle v_b, q_b \rangle}}
# {\sum_j e^{s \langle v_b, q_j \rangle}} + \log \frac{e^{s \langle v_b, q_b \rangle}}
# {\sum_j e^{s \langle v_j, q_b \rangle}} \Big),$$
# and clips that show the same event share their sentences. That is all of `mrlib.video.Toy`. It sees four small
# pictures per clip, so that it can tell motions apart. Without weights, a video of your own is described by `Pixels`,
# which is explained in section 5.

# %% tags=["nbval-ignore-output"]
losses, start = [], time.process_time()
if drawn and not encoder:
    eyes = train_toy(worlds["train"], seed=seed, watch=lambda step, loss: losses.append(loss))
    eyes.save(folder / "toy")
elif encoder or os.environ.get("MRLIB_CLIP"):
    eyes = open_encoder(encoder or None)
else:
    eyes = Pixels()  # no weights: answers clips, not sentences
reads = eyes.recipe["encoder"] != "pixels"
if losses:
    fig, axes = plots.figure(5, 2.2)
    axes[0, 0].plot(losses, color=plots.QUERY)
    axes[0, 0].set(xlabel="step", ylabel="loss", title=f"Toy, {time.process_time() - start:.0f} s of one core")

# %% [markdown]
# Now the video becomes an *index*: a row per clip, kept in a file together with the name of its encoder, so that the
# video is encoded once, and so that features of another encoder are refused by name instead of giving nonsense.

# %% tags=["nbval-ignore-output"]
target = index(video, eyes, cache=folder)
print(f"{tuple(target.features.shape)} features, a row per {target.clip_s:g} s, from {eyes.recipe['encoder']}")
print("clip 0:", *(f"{x:.2f}" for x in target.features[0, :8].tolist()), "…")

# %% [markdown]
# ## 4. Ask in words
#
# **Zero-shot.** The sentence's vector is compared with every row. The curve of cosines is smoothed over three clips;
# runs above its mean (of the 150 s around) are the moments, and so is the interval around the most similar clip [A2FA
# Eq. 5]. Nothing has been trained to find boundaries, so they are as sharp as the curve. The score of a moment is the
# highest smoothed cosine inside. It ranks the moments of one query; from one encoder or query to another it cannot be
# compared.

# %% tags=["nbval-ignore-output"]
answers = {}


def table(found):
    """Moments for people."""
    return pd.DataFrame(found).drop(columns="video").round(3) if found else "not here"


if reads and query:
    vector = eyes.text(query)[1]
    similar = torch.nn.functional.cosine_similarity(target.features, vector[None]).numpy()
    answers["zero-shot"] = find(target, query, encoder=eyes)
    fig = storyboard(video, answers["zero-shot"], similar, truth, query)
    if save_figures and drawn:
        plots.save(fig, figures / "07_found")
    display(table(answers["zero-shot"]))
else:
    print("left out: a sentence, -p query, needs an encoder that reads it, -p encoder FOLDER, and the other way round")

# %% [markdown]
# **"Not here" is an answer.** A video is asked for things that it does not show, more often than not. An existence
# score, from 0 to 1, says how far the best clip stands out of the others (or, with `Toy`, whose cosines have a known
# scale, how high its cosine is). Below a threshold, `here=`, the answer is an empty list; `here=0` always answers. In
# the next cell, the sentences of other videos are asked of the drawn one.

# %% tags=["nbval-ignore-output"]
here = {event["query"] for event in moments(worlds["val"].samples[chosen])} if drawn else set()
if drawn and reads:
    foreign = [s.query for s in worlds["val"].samples if s.vid != worlds["val"].samples[chosen].vid][:40]
    rejected = np.mean([find(target, sentence, encoder=eyes) == [] for sentence in foreign])
    kept = np.mean([find(target, sentence, encoder=eyes) != [] for sentence in here])
    print(f'"not here" for {100 * rejected:.0f} % of {len(foreign)} sentences about other videos,')
    print(f"an answer for {100 * kept:.0f} % of {len(here)} sentences about this one")
else:
    rejected = kept = np.nan
    print("left out: it takes the drawn video, whose truth is known, and an encoder that reads sentences")

# %% [markdown]
# ## 5. Ask by example
#
# A clip asks too: "where is this from", or "where does something like this happen". No words are needed, and no
# weights: `Pixels` describes half a second by a thumbnail of 8 x 8 pixels. The clip is laid over every part of the
# video, at nine speeds from half to twice its own. One half of the score is how alike the pictures are, less what all
# of the video has in common; the other half is how alike they *change*, which survives another crop or grading.
# Notebook [02](02_matr.ipynb) aligns in a finer way, by dynamic time warping [MATR §3.2].
#
# Below, the clip that you gave, or else a cut out of the video, re-encoded, looks for its place; then, where the video
# is drawn, another take of the same event, in another place and at another speed, encoded by what was trained above.

# %% tags=["nbval-ignore-output"]
if not clip:
    clip = str(folder / "example.mp4")
    begin = 0.4 * facts.duration_s
    cut(video, begin, begin + min(6, 0.2 * facts.duration_s), clip)
    print(f"cut from {begin:.1f} s on, {probe(clip).duration_s:.1f} s long")
answers["by example"] = find(video, clip=clip, encoder=Pixels(), cache=folder)
display(table(answers["by example"]))
if drawn and reads and truth:
    take = str(folder / "take.mp4")
    render_query(worlds["val"], chosen, take, seed=seed)
    answers["by another take"] = find(target, clip=take, encoder=eyes, cache=folder)
    print("truth", truth)
    display(table(answers["by another take"]))

# %% [markdown]
# One cut proves nothing. Forty cuts of 4 to 9 s, encoded anew, cropped to 85 % and retimed, were searched in the video
# that they are from: R1@0.5 / R1@0.7 of four ways on the same thumbnails. "Notebook 02" is its alignment with free
# ends; "find" is what `find` does. Drawn motions repeat themselves, so that a part of one looks like another part; real
# footage is easier here. The rows are `figures/07_by_example.csv`, which `python -m
# tests.benchmarks.bench_query_by_example` writes; the real videos (four, with `MRLIB_DATA`) cannot be here.

# %%
by_example = pd.read_csv(figures / "07_by_example.csv").query("searched == 'in its video'")
pairs = zip(by_example["R1@0.5"], by_example["R1@0.7"], strict=True)
shown = by_example.assign(R1=[f"{a:.2f} / {b:.2f}" for a, b in pairs])
print(shown.pivot(index=["videos", "way"], columns="speed", values="R1").to_string())

# %% [markdown]
# ## 6. A trained retriever
#
# Everything else in this repository is about finding better boundaries than a curve of cosines. All of it works on an
# index: a run's folder of `mrlib.train`, or a checkpoint of an official release, goes in as `retriever=`. It must have
# been trained on features of this encoder; widths, streams and weights are compared, and another is refused by name.
# For the drawn video one is trained here; for your own, give one by `-p retriever FOLDER`, or none.

# %% tags=["nbval-ignore-output"]
model = retriever or None
if drawn and not encoder and not retriever:
    paper = papers.get("univtg", size="small")
    train = eyes.dataset(worlds["train"])
    model = mrlib.build(paper, train, seed=seed)
    fit(model, train, None, paper, seed=seed)
if model is not None and reads and query:
    answers["trained"] = find(target, query, retriever=model, encoder=eyes)
    display(table(answers["trained"]))

# %% [markdown]
# Again, one video proves nothing. Here are sixty drawn ones that neither encoder nor retriever has seen, a sentence
# each.

# %% tags=["nbval-ignore-output"]
scores = pd.DataFrame()
if drawn and not encoder:
    val = eyes.dataset(worlds["val"])
    guesses = {
        "whole video": mrlib.baselines.whole_video(val),
        "cosine, runs": mrlib.baselines.query_similarity(val),
        "cosine, anchor interval": mrlib.baselines.anchor_interval(val),
    }
    if not retriever:
        guesses["UniVTG, trained here"] = mrlib.train.predict_all(model, val)
    briefs = {name: mrlib.metrics.evaluate(lines, val.samples)["brief"] for name, lines in guesses.items()}
    scores = pd.DataFrame(briefs).T[["MR-full-R1@0.5", "MR-full-R1@0.7", "MR-full-mAP"]]
    display(scores.round(1))

# %% [markdown]
# In this world the plain cosines are ahead of the retriever that is trained here: `Toy` learned these very words, so
# that its curve is nearly a step at a moment's borders, and 384 videos are few to learn better ones from. Do not
# conclude that from it for a real video, where CLIP's curve is noisy. Compare both on videos whose truth you know.
#
# ## 7. Watch it
#
# The player shows the best answer of those above: the retriever's, else that of the cosines, else that by example. The
# picture is always there. Where there is a browser, the player below it plays: click a moment, or press Tab and Enter.
# It holds short copies of the moments, never the file, so a notebook with a player stays small, and an exported page
# plays without a kernel and without a network.

# %% tags=["nbval-ignore-output"]
way = next((way for way in ("trained", "zero-shot", "by example") if answers.get(way)), "")
Player(video, answers.get(way, [])[:2], truth=truth, query="by example" if way == "by example" else query)

# %% [markdown]
# ## 8. An hour
#
# Most models predict *fractions* of a video, and know only lengths like those of their training. On an hour their
# fractions mean nothing, and `retriever.predict` warns. `find` therefore cuts a long index into windows as long as the
# videos of the training, half overlapping, answers each, shifts the answers to their place, and removes duplicates.
# A video that fits into one window gets the very numbers of `retriever.predict`.

# %% tags=["nbval-ignore-output"]
if drawn and reads:
    hour = str(folder / "hour.mp4")
    many = in_a_row(worlds["val"].samples[:57])
    events = render_sample(many, hour, fps=4, width=320, height=180)
    start = time.perf_counter()
    long = index(hour, eyes, cache=folder)
    indexed_s = time.perf_counter() - start
    asked = [event for event in events if len(event["windows"]) == 1 and np.ptp(event["windows"][0]) >= 8][:30]
    start, ious = time.perf_counter(), []
    for event in asked:
        (a, b), found = event["windows"][0], find(long, event["query"], encoder=eyes, top=1, here=0)
        c, d = found[0]["start_s"], found[0]["end_s"]
        ious.append(max(0, min(b, d) - max(a, c)) / (max(b, d) - min(a, c)))
    asked_s = (time.perf_counter() - start) / len(asked)
    hour_r1, overlap = 100 * np.mean(np.array(ious) >= 0.5), 100 * np.mean(np.array(ious) > 0)
    print(f"{probe(hour).duration_s / 60:.0f} minutes, indexed in {indexed_s:.0f} s")
    print(f"{len(asked)} sentences, each about something that happens once, {asked_s:.2f} s each:")
    print(f"the first answer overlaps with it for {overlap:.0f} %, with an IoU of 0.5 or more for {hour_r1:.0f} %")
else:
    hour_r1 = np.nan
    print("left out: the hour is drawn like the video, and asked in sentences")

# %% [markdown]
# ## 9. A library
#
# A `Corpus` is one file with the features of many videos. Adding a video twice changes nothing. A search is coarse,
# then fine: the cosine with every clip of every video picks windows, exactly and without an approximate index, and a
# retriever, or the zero-shot answer, finds the moment in the best ten.

# %% tags=["nbval-ignore-output"]
library = Corpus.open(folder / "library.corpus", eyes)
library.add(target, *([long] if drawn and reads else []))
library.add(target)  # again: nothing changes
print(f"videos: {len(library)}, hours: {library.hours:.2f}")
if reads and query:
    hits = [hit | {"video": Path(hit["video"]).name} for hit in library.search(query)]
    display(pd.DataFrame(hits).round(2) if hits else "not here")

# %% [markdown]
# **Two hundred hours** are simulated as features instead of drawn, since it is the search that is in question. Every
# occurrence of the queried event anywhere in the corpus counts ("strict": only that of the video the query was written
# for). The table is `figures/07_corpus.csv`; `python -m tests.benchmarks.bench_corpus` writes it.

# %% tags=["nbval-ignore-output"]
corpus = pd.read_csv(figures / "07_corpus.csv")
fig, axes = plots.figure(10, 3, ncols=3)
plots.corpus(axes[0], corpus)
recalled = corpus[(corpus["truth"] == "any") & corpus["k"].isin([1, 10, 100])]
recalled = recalled.pivot(index=["query", "answer"], columns="k", values=["overlap", "R@0.5", "R@0.7"])
display(recalled.rename(columns=int, level=1))
costs = corpus[corpus["k"].isna()].set_index(["query", "answer"])[["seconds", "cpu_s", "first_s", "own_mb", "file_mb"]]
display(costs.round(2))

# %% [markdown]
# Read from it: the coarse step keeps the true window more often the more windows it keeps; its windows alone are too
# long to be moments, and the fine step is what makes moments of them; and a clip says more than a sentence about what
# it looks for. The small UniVTG, trained on 2,000 videos of that world, ranks its moments less well than the plain
# cosines do. `numpy` holds all features in memory as float32; the corpus reads a file of half their size page by page.

# %% [markdown]
# ## 10. Your own
#
# In a terminal, with nothing but the file; `--clip query.mp4` asks by example, `--save cuts` writes the moments as
# videos into a folder, `--json` prints them for other programs:
# ```bash
# python -m mrlib.find my.mp4 --clip query.mp4
# python -m mrlib.find my.mp4 "a man opens the door" --encoder FOLDER
# ```
# This notebook on your own video, and features for a whole folder of videos in the layout of the official releases,
# to train any paper on (`data/README.md` goes through it):
# ```bash
# papermill notebooks/07_your_video.ipynb out.ipynb -p video my.mp4 -p query "a man opens the door" -p encoder FOLDER
# python -m mrlib.video.extract my_videos my_data --encoder FOLDER
# ```
# `FOLDER` holds CLIP's weights as `transformers` saves them: `config.json`, `model.safetensors` and the tokenizer's
# files. The README has the command that fetches them once, where there is a network.

# %% [markdown]
# ## What cannot be expected
#
# - **Toy knows its world.** Its vocabulary is the simulator's, its pictures are drawings. On a real video its features
#   mean nothing. Scores in this notebook are simulated and do not compare with published ones.
# - **CLIP sees frames.** One picture every two seconds shows no motion: "opens" and "closes" look alike, and what
#   takes less than a second may fall between two frames. It neither hears nor reads small text.
# - **Two seconds is the grain.** Boundaries of zero-shot answers lie on the grid of clips; retrievers interpolate, but
#   learned from windows that lie on it too.
# - **Pixels finds the same, not the similar.** A cut of the video, re-encoded, cropped or sped up, yes; the same event
#   filmed again, no.
# - **"Not here" is a threshold** on how much the best clip stands out. It errs in both directions, as measured above.

# %% [markdown]
# ## Findings
#
# The last cell checks what holds for every video, and the claims of sections 5 and 9 on their tables. What this
# notebook measures depends on its seed; `figures/07_seeds.csv` has a row per seed, and the table shows it.

# %%
measured = {"R1@0.5 in an hour": hour_r1, "not here, others (%)": 100 * rejected, "an answer, own (%)": 100 * kept}
measured |= {f"{score}, {name}": x for score in scores for name, x in scores[score].items()}

# %%
over_seeds = pd.read_csv(figures / "07_seeds.csv")
print(over_seeds.drop(columns="seed").agg(["mean", "std"]).T.round(1).to_string())

# %%
assert torch.isfinite(target.features).all()
if target.clip_s == 2:
    assert len(target.features) <= len(times)  # a row per picture of section 2, fewer if the file breaks off
for found in answers.values():
    assert all(0 <= m["start_s"] < m["end_s"] <= facts.duration_s + 0.01 for m in found)
    assert [m["score"] for m in found] == sorted((m["score"] for m in found), reverse=True)

copies = by_example.pivot(index=["videos", "speed"], columns="way", values="R1@0.5")
assert (copies["find"] >= copies[["alignment", "mean vector", "notebook 02"]].max(axis=1)).all()
for kind in ("text", "video"):
    assert (recalled.loc[(kind, "zero-shot"), "R@0.5"] > recalled.loc[(kind, "window"), "R@0.5"]).all()
    assert recalled.loc[(kind, "window"), "overlap"].is_monotonic_increasing
assert (recalled.loc[("video", "zero-shot")] >= recalled.loc[("text", "zero-shot")]).all()
for score in ("MR-full-R1@0.5", "MR-full-mAP"):
    for name in ("cosine, runs", "UniVTG, trained here"):
        assert (over_seeds[f"{score}, {name}"] > over_seeds[f"{score}, whole video"]).all()
assert (over_seeds["an answer, own (%)"] > over_seeds["not here, others (%)"].rsub(100)).all()
print("a file became features, and features became moments inside the video, best first")
