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
    if (buttons.includes(event.target)) buttons.forEach((button) => (button.tabIndex = button === event.target ? 0 : -1));
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
      style: `left: ${at(item.start)}; width: ${at(item.end - item.start)}; opacity: ${item.opacity}; --lane: ${item.lane}`,
    }),
  );
  for (const kind of ["predicted", "truth"]) {
    const of = bars.filter((_, i) => all[i].kind === kind);
    const lanes = 1 + Math.max(...all.filter((item) => item.kind === kind).map((item) => item.lane));
    if (of.length) addRow(kind, node("div", "row", { style: `--lanes: ${lanes}` }, ...of));
  }
  const copied = node("div", "row mrlib-copies", { "aria-hidden": "true" });
  for (const { start, end } of shown.copies) {
    copied.append(node("div", "copy", { style: `left: ${at(start)}; width: ${at(end - start)}` }));
  }
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

function render({ model, el }) {
  const shown = model.get("shown");
  const all = items(shown);
  const line = timeline(shown, all);
  const menu = list(all);
  const video = node("video", "video", { playsinline: "", tabindex: "-1", "aria-label": shown.name });
  video.muted = true;
  const button = node("button", "play", { type: "button", "aria-label": "play" });
  const time = node("output", "time", { "aria-label": "time in the video" });
  const status = node("p", "status", { role: "status" });
  const say = (text) => (status.textContent = text);
  const first = all.findIndex((item) => item.copy !== null);
  let chosen = null; // number of the item that plays
  let started = false;

  const playback = new Playback(video, shown.copies, () => {
    time.textContent = `${clock(playback.time)} / ${clock(shown.duration)}`;
    time.dataset.seconds = playback.time.toFixed(3);
    line.move(playback.time);
    button.classList.toggle("mrlib-on", !video.paused);
    button.setAttribute("aria-label", video.paused ? "play" : "pause");
  });

  const choose = (i) => {
    chosen = i;
    for (const buttons of [line.bars, menu.buttons]) {
      buttons.forEach((one, j) => {
        one.classList.toggle("mrlib-on", j === i);
        j === i ? one.setAttribute("aria-current", "true") : one.removeAttribute("aria-current");
      });
    }
  };
  const playItem = (i) => {
    const item = all[i];
    if (item.copy === null) return say(`${item.title} is left out of this page to keep it small.`);
    started = true;
    choose(i);
    const stop = Math.min(item.end, shown.copies[item.copy].end);
    say(stop < item.end ? `${item.title}: its first ${(stop - item.start).toFixed(0)} seconds.` : "");
    if (item.kind === "predicted") {
      model.set("selected", i);
      model.save_changes();
    }
    playback.play(item.copy, item.start, stop);
  };
  const seek = (seconds) => {
    const copy = shown.copies.findIndex(({ start, end }) => start <= seconds && seconds <= end);
    if (copy < 0) return say(`${clock(seconds)} cannot be shown: this page holds the moments only, not the whole video.`);
    started = true;
    choose(null);
    say("");
    playback.play(copy, seconds, shown.copies[copy].end);
  };
  const toggle = () => {
    if (!video.paused) video.pause();
    else if (!started && first >= 0) playItem(first);
    else if (playback.copy !== null) playback.resume();
  };

  for (const buttons of [line.bars, menu.buttons]) {
    buttons.forEach((one, i) => {
      const light = (on) => [line.bars[i], menu.buttons[i]].forEach((each) => each.classList.toggle("mrlib-light", on));
      const enter = () => (light(true), line.hint(i));
      const leave = () => (light(false), line.hint(null));
      one.addEventListener("click", () => playItem(i));
      for (const event of ["mouseenter", "focus"]) one.addEventListener(event, enter);
      for (const event of ["mouseleave", "blur"]) one.addEventListener(event, leave);
    });
  }
  line.tracks.addEventListener("click", (event) => {
    const { left, width } = line.over.getBoundingClientRect();
    const share = (event.clientX - left) / width;
    if (!event.target.closest("button") && share >= 0 && share <= 1) seek(share * shown.duration);
  });
  for (const each of [button, video]) each.addEventListener("click", toggle);
  video.addEventListener("error", () => {
    if (video.src) say("This browser cannot play the video (H.264); the picture shows where the moments are.");
  });
  el.addEventListener("keydown", (event) => {
    if (event.key !== " " || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault(); // no scrolling
    if (!event.repeat) toggle();
  });
  el.addEventListener("keyup", (event) => event.key === " " && event.preventDefault()); // no click on the button
  const listen = () => {
    const i = model.get("selected");
    if (i !== null && i !== chosen && i >= 0 && i < shown.moments.length) playItem(i);
  };
  model.on("change:selected", listen);

  el.classList.add("mrlib-player");
  el.dataset.lmSuppressShortcuts = "true"; // JupyterLab leaves the keys to the player
  for (const [name, colour] of Object.entries(shown.colours)) el.style.setProperty(`--mrlib-${name}`, colour);
  const query = shown.query ? `“${shown.query}”` : shown.name;
  const stage = node("div", "stage", {}, video, node("div", "controls", {}, button, time));
  const answer = node("div", "answer", {}, ...(shown.moments.length ? [] : [node("p", "nothere", {}, "Not here")]), menu.group);
  const screen = node("div", "screen", {}, ...(shown.copies.length ? [stage] : []), answer);
  el.setAttribute("role", "group");
  el.setAttribute("aria-label", `player: ${query}`);
  el.append(node("p", "query", {}, query), screen, line.tracks, status);
  if (shown.note) el.append(node("p", "note", {}, shown.note));
  if (first >= 0) playback.load(all[first].copy, all[first].start, all[first].end);
  else if (shown.copies.length) playback.load(0, shown.copies[0].start, shown.copies[0].end);
  return () => {
    model.off("change:selected", listen);
    playback.close();
  };
}

export default { render };
