// The player of show.py: `render` is the entry of the widget, and of the script in a page without a kernel.
//
// model.get("shown") holds the video's name, query and duration, its moments and true windows (start, end, score,
// opacity, lane, copy), the saliency between 0 and 1, colours, a note, and `copies`, parts of the video as base64 of an
// mp4. All times are seconds of the whole video; only `Playback` knows those of a copy.

const SLACK = 0.001; // seconds inside a moment's ends, so that no frame of its neighbours is shown

/** What `render` needs of a widget's model, in a page without a kernel. */
class StaticModel {
  constructor(values) {
    this.values = values;
  }
  get(name) {
    return this.values[name];
  }
  set(name, value) {
    this.values[name] = value;
  }
  save_changes() {}
  on() {}
  off() {}
}

/** 83.25 as "1:23.3". */
function clock(seconds) {
  const tenths = Math.round(seconds * 10);
  const [minutes, rest] = [Math.floor(tenths / 600), tenths % 600];
  return `${minutes}:${(rest / 10).toFixed(1).padStart(4, "0")}`;
}

function node(tag, name, attributes = {}, ...children) {
  const made = document.createElement(tag);
  made.className = `mrlib-${name}`;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** The moments and true windows in one list, with what people read about them. */
function items(shown) {
  const described = (moment, kind, title) => {
    const times = `${clock(moment.start)}–${clock(moment.end)}`;
    const score = moment.score === null ? "" : `score ${Number(moment.score.toPrecision(3))}`;
    const spoken = `${title}, from ${moment.start.toFixed(1)} to ${moment.end.toFixed(1)} seconds`;
    return { ...moment, kind, title, times, score, spoken: score ? `${spoken}, ${score}` : spoken };
  };
  return [
    ...shown.moments.map((moment, i) => described(moment, "predicted", `Moment ${i + 1}`)),
    ...shown.truth.map((moment, i) => described(moment, "truth", shown.truth.length > 1 ? `Truth ${i + 1}` : "Truth")),
  ];
}

/** Plays stretches of the whole video from the copies of its parts. */
class Playback {
  constructor(video, copies, changed) {
    Object.assign(this, { video, copies, changed, copy: null, from: 0, stop: 0, turn: 0, urls: new Map() });
    for (const event of ["play", "pause", "seeked", "timeupdate"]) video.addEventListener(event, () => this.tick());
  }

  get time() {
    return this.copy === null ? this.from : this.copies[this.copy].start + this.video.currentTime;
  }

  url(index) {
    if (!this.urls.has(index)) {
      const bytes = Uint8Array.from(atob(this.copies[index].data), (letter) => letter.charCodeAt(0));
      this.urls.set(index, URL.createObjectURL(new Blob([bytes], { type: "video/mp4" })));
    }
    return this.urls.get(index);
  }

  /** Show the frame at `from`, and remember where to stop; false if another call came in between. */
  async load(index, from, stop) {
    const turn = ++this.turn;
    Object.assign(this, { from, stop });
    this.video.pause();
    if (index !== this.copy) {
      this.copy = index;
      const ready = new Promise((resolve) => this.video.addEventListener("loadedmetadata", resolve, { once: true }));
      this.video.src = this.url(index);
      await ready;
      if (turn !== this.turn) return false;
    }
    this.video.currentTime = Math.max(0, from - this.copies[index].start) + SLACK;
    return true;
  }

  async play(index, from, stop) {
    if (await this.load(index, from, stop)) await this.resume();
  }

  async resume() {
    if (this.time >= this.stop - 0.1) this.video.currentTime = this.from - this.copies[this.copy].start + SLACK;
    await this.video.play().catch(() => {}); // it was paused, or given something else to play, before it began
  }

  tick() {
    cancelAnimationFrame(this.frame);
    if (!this.video.paused && this.time >= this.stop) {
      this.video.pause();
      this.video.currentTime = Math.max(0, this.stop - this.copies[this.copy].start - SLACK);
    }
    this.changed();
    if (!this.video.paused) this.frame = requestAnimationFrame(() => this.tick());
  }

  close() {
    this.turn++;
    cancelAnimationFrame(this.frame);
    this.video.pause();
    this.video.removeAttribute("src");
    for (const url of this.urls.values()) URL.revokeObjectURL(url);
  }
}

/** One button of a group is reached by Tab, the others by arrows, Home and End. */
function roving(group, buttons) {
  buttons.forEach((button, i) => (button.tabIndex = i === 0 ? 0 : -1));
  group.addEventListener("focusin", (event) => {
    if (!buttons.includes(event.target)) return;
    buttons.forEach((button) => (button.tabIndex = button === event.target ? 0 : -1));
  });
  group.addEventListener("keydown", (event) => {
    const i = buttons.indexOf(event.target);
    const steps = { ArrowRight: i + 1, ArrowDown: i + 1, ArrowLeft: i - 1, ArrowUp: i - 1, Home: 0, End: -1 };
    if (i < 0 || !(event.key in steps)) return;
    event.preventDefault();
    buttons.at(steps[event.key] % buttons.length).focus();
  });
}

function saliencyCurve(values) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${values.length} 1`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", "mrlib-saliency");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", "saliency along the video");
  let [line, area] = ["", ""];
  for (let i = 0, first = 0; i <= values.length; i++) {
    const known = i < values.length && values[i] !== null;
    if (known) line += `${i === first ? "M" : "L"}${i + 0.5},${0.98 - 0.93 * values[i]}`;
    else {
      if (i > first) area += `${line.slice(line.lastIndexOf("M"))}L${i - 0.5},1L${first + 0.5},1Z`;
      first = i + 1;
    }
  }
  for (const [name, d] of [["area", area], ["line", line]]) {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("class", `mrlib-${name}`);
    path.setAttribute("d", d);
    svg.append(path);
  }
  return svg;
}

/** Marks at round times, eight at most. */
function axis(duration) {
  const steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800];
  const step = steps.find((seconds) => duration / seconds <= 8) ?? 3600 * Math.ceil(duration / 3600 / 8);
  const row = node("div", "axis", { "aria-hidden": "true" });
  for (let time = 0; time <= duration; time += step) {
    const label = `${Math.floor(time / 60)}:${String(time % 60).padStart(2, "0")}`;
    row.append(node("span", "tick", { style: `left: ${(100 * time) / duration}%` }, label));
  }
  return row;
}

/** The rows of the timeline, with a bar for every item. */
function timeline(shown, all) {
  const at = (time) => `${(100 * time) / shown.duration}%`;
  const place = ({ start, end }) => `left: ${at(start)}; width: ${at(end - start)}`;
  const playhead = node("div", "playhead", { "aria-hidden": "true" });
  const tooltip = node("div", "tooltip", { "aria-hidden": "true", hidden: "" });
  const over = node("div", "over", {}, playhead, tooltip);
  const tracks = node("div", "tracks", { role: "group", "aria-label": "timeline" });
  let rows = 0;
  const addRow = (name, track) => {
    const label = node("span", "name", {}, name);
    rows++;
    for (const cell of [label, track]) cell.style.gridRow = rows;
    tracks.append(label, track);
  };
  if (shown.saliency) addRow("saliency", saliencyCurve(shown.saliency));
  const bars = all.map((item) =>
    node("button", `bar mrlib-${item.kind}`, {
      type: "button",
      "aria-label": item.spoken,
      style: `${place(item)}; opacity: ${item.opacity}; --lane: ${item.lane}`,
    }),
  );
  for (const kind of ["predicted", "truth"]) {
    const of = bars.filter((_, i) => all[i].kind === kind);
    const lanes = 1 + Math.max(...all.filter((item) => item.kind === kind).map((item) => item.lane));
    if (of.length) addRow(kind, node("div", "row", { style: `--lanes: ${lanes}` }, ...of));
  }
  const copied = node("div", "row mrlib-copies", { "aria-hidden": "true" });
  copied.append(...shown.copies.map((copy) => node("div", "copy", { style: place(copy) })));
  const whole = shown.copies.some(({ start, end }) => end - start >= shown.duration);
  if (shown.copies.length && !whole) addRow("playable", copied);
  addRow("", axis(shown.duration));
  over.style.gridRow = `1 / span ${rows}`;
  tracks.append(over);
  roving(tracks, bars);
  const hint = (i) => {
    tooltip.hidden = i === null;
    if (i === null) return;
    tooltip.textContent = [all[i].title, all[i].score, all[i].times].filter(Boolean).join(" · ");
    tooltip.style.left = at((all[i].start + all[i].end) / 2);
  };
  return { tracks, bars, over, hint, move: (time) => (playhead.style.left = at(time)) };
}

/** The moments as a list of buttons. */
function list(all) {
  const buttons = all.map((item) =>
    node(
      "button",
      `moment mrlib-${item.kind}`,
      { type: "button", "aria-label": item.spoken },
      node("span", "title", {}, item.title),
      node("span", "times", {}, item.times),
      node("span", "score", {}, item.score),
    ),
  );
  const group = node("div", "moments", { role: "group", "aria-label": "moments" }, ...buttons);
  roving(group, buttons);
  return { group, buttons };
}

/** The elements of a player, inside `el`. */
function build(shown, all, el) {
  const line = timeline(shown, all);
  const menu = list(all);
  const video = node("video", "video", { playsinline: "", tabindex: "-1", "aria-label": shown.name });
  video.muted = true;
  const button = node("button", "play", { type: "button", "aria-label": "play" });
  const time = node("output", "time", { "aria-label": "time in the video" });
  const status = node("p", "status", { role: "status" });
  const stage = node("div", "stage", {}, video, node("div", "controls", {}, button, time));
  const none = shown.moments.length ? [] : [node("p", "nothere", {}, "Not here")];
  const screen = node("div", "screen", {}, node("div", "answer", {}, ...none, menu.group));
  if (shown.copies.length) screen.prepend(stage);
  const query = shown.query ? `“${shown.query}”` : shown.name;
  el.classList.add("mrlib-player");
  el.dataset.lmSuppressShortcuts = "true"; // JupyterLab leaves the keys to the player
  el.setAttribute("role", "group");
  el.setAttribute("aria-label", `player: ${query}`);
  for (const [name, colour] of Object.entries(shown.colours)) el.style.setProperty(`--mrlib-${name}`, colour);
  el.append(node("p", "query", {}, query), screen, line.tracks, status);
  if (shown.note) el.append(node("p", "note", {}, shown.note));
  return { line, buttons: [line.bars, menu.buttons], video, button, time, status };
}

/** What the elements do. */
class Player {
  constructor(model, el) {
    this.model = model;
    this.shown = model.get("shown");
    this.all = items(this.shown);
    Object.assign(this, build(this.shown, this.all, el));
    this.playback = new Playback(this.video, this.shown.copies, () => this.update());
    this.first = this.all.findIndex((item) => item.copy !== null);
    this.chosen = null; // number of the item that was played last
    this.started = false;
    this.listen(el);
    const begin = this.all[this.first] ?? { copy: 0, ...this.shown.copies[0] };
    if (this.shown.copies.length) this.playback.load(begin.copy, begin.start, begin.end);
  }

  say(text) {
    this.status.textContent = text;
  }

  /** Show the time, and whether the video plays. */
  update() {
    const time = this.playback.time;
    const paused = this.video.paused;
    this.time.textContent = `${clock(time)} / ${clock(this.shown.duration)}`;
    this.time.dataset.seconds = time.toFixed(3);
    this.line.move(time);
    this.button.classList.toggle("mrlib-on", !paused);
    this.button.setAttribute("aria-label", paused ? "play" : "pause");
  }

  /** Mark an item, or none, as the one that plays. */
  choose(i) {
    this.chosen = i;
    this.started = true;
    for (const button of this.buttons.flat()) button.classList.remove("mrlib-on");
    for (const button of this.buttons.flat()) button.removeAttribute("aria-current");
    if (i === null) return;
    for (const button of this.buttons.map((group) => group[i])) {
      button.classList.add("mrlib-on");
      button.setAttribute("aria-current", "true");
    }
  }

  playItem(i) {
    const { title, kind, start, end, copy } = this.all[i];
    if (copy === null) return this.say(`${title} is left out of this page to keep it small.`);
    this.choose(i);
    const stop = Math.min(end, this.shown.copies[copy].end);
    this.say(stop < end ? `${title}: its first ${(stop - start).toFixed(0)} seconds.` : "");
    if (kind === "predicted") {
      this.model.set("selected", i);
      this.model.save_changes();
    }
    this.playback.play(copy, start, stop);
  }

  /** Play from a time on, to the end of what the page holds of it. */
  seek(time) {
    const copy = this.shown.copies.findIndex(({ start, end }) => start <= time && time <= end);
    this.say(copy < 0 ? `${clock(time)} cannot be shown: this page holds the moments, not the whole video.` : "");
    if (copy < 0) return;
    this.choose(null);
    this.playback.play(copy, time, this.shown.copies[copy].end);
  }

  toggle() {
    if (!this.video.paused) this.video.pause();
    else if (!this.started && this.first >= 0) this.playItem(this.first);
    else if (this.playback.copy !== null) this.playback.resume();
  }

  /** Brighten an item's bar and button and show its score, or stop it. */
  hint(i, on) {
    for (const group of this.buttons) group[i].classList.toggle("mrlib-light", on);
    this.line.hint(on ? i : null);
  }

  listen(el) {
    for (const group of this.buttons) {
      group.forEach((button, i) => {
        button.addEventListener("click", () => this.playItem(i));
        for (const event of ["mouseenter", "focus"]) button.addEventListener(event, () => this.hint(i, true));
        for (const event of ["mouseleave", "blur"]) button.addEventListener(event, () => this.hint(i, false));
      });
    }
    this.line.tracks.addEventListener("click", (event) => {
      const { left, width } = this.line.over.getBoundingClientRect();
      const share = (event.clientX - left) / width;
      if (!event.target.closest("button") && share >= 0 && share <= 1) this.seek(share * this.shown.duration);
    });
    for (const each of [this.button, this.video]) each.addEventListener("click", () => this.toggle());
    this.video.addEventListener("error", () => {
      if (this.video.src) this.say("This browser cannot play H.264; the picture shows where the moments are.");
    });
    el.addEventListener("keydown", (event) => {
      if (event.key !== " " || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault(); // no scrolling
      if (!event.repeat) this.toggle();
    });
    el.addEventListener("keyup", (event) => event.key === " " && event.preventDefault()); // no click on the button
    this.selected = () => {
      const i = this.model.get("selected");
      if (i !== null && i !== this.chosen) this.playItem(i);
    };
    this.model.on("change:selected", this.selected);
  }

  close() {
    this.model.off("change:selected", this.selected);
    this.playback.close();
  }
}

function render({ model, el }) {
  const player = new Player(model, el);
  return () => player.close();
}

export default { render };
