// The race in a browser: replays what show/run.py recorded.
//
// A run has its noise x_0 and, for each step, the tokens that changed. `stateAt` plays them back;
// `statusOf` says what happened to a token, as show/run.py does. One clock drives all panes: the
// seconds that the networks needed, told slower, since eight steps are over in a blink.

"use strict";

const FEW = 64; // steps of a run that the slow clock waits for
const STEP_SECONDS = 0.6; // in which a step of the fastest run is shown
const REST_SECONDS = 9; // in which the rest is shown when the runs of few steps are done
const FRAME = 33; // milliseconds between two pictures
const element = (id) => document.getElementById(id);
const data = JSON.parse(element("data").textContent);

// ------------------------------------------------------------------------------------------------
// a run: its states, and what happened to each token

// Every token after `step` steps: the step `born` in which it was drawn last, with what probability
// (percent), and whether it had been noise until then (first).
function stateAt(run, step) {
  const state = run.noise.map((token) => (
    { token, percent: -1, born: 0, first: true, noise: true, seen: false }
  ));
  for (let k = 0; k < step; k++) {
    const flat = run.changes[k];
    for (let j = 0; j < flat.length; j += 3) {
      const [place, token, percent] = flat.slice(j, j + 3);
      const cell = state[place];
      cell.token = token;
      cell.percent = percent;
      cell.born = k + 1;
      cell.noise = percent < 0;
      if (!cell.noise) {
        cell.first = !cell.seen;
        cell.seen = true;
      }
    }
  }
  return state;
}

function statusOf(run, step, cell, place) {
  if (cell.noise) return "noise";
  if (step === run.steps && run.wrong.includes(place)) return "wrong";
  if (cell.born !== step || step === 0) return "settled";
  return cell.first ? "new" : "changed";
}

// ------------------------------------------------------------------------------------------------
// text: tokens -> words with blanks, in a pane

// The length of a text without the padding at its end.
function textEnd(tokens) {
  let end = tokens.length;
  while (end && data.tokens.pieces[tokens[end - 1]] === data.tokens.pad) end -= 1;
  return end;
}

function pieceOf(token) {
  const piece = data.tokens.pieces[token];
  return piece === data.tokens.pad ? "\u00b7" : piece;
}

function tipText(cell, step, status) {
  if (status === "noise") return "noise: nothing has been drawn here yet";
  return `drawn in step ${cell.born} of ${step}, when the network gave it ${cell.percent}%`;
}

// Puts a state into a pane: a span for each token. A word that has the focus keeps it.
function showText(box, cells, statuses, tips) {
  const focused = [...box.children].indexOf(document.activeElement);
  const end = textEnd(cells.map((cell) => cell.token));
  const parts = [];
  let before = "\n";
  for (let i = 0; i < end; i++) {
    const word = pieceOf(cells[i].token);
    const close = !data.tokens.words || data.tokens.marks.includes(word)
      || word === "\n" || before === "\n";
    if (!close) parts.push(document.createTextNode(" "));
    const span = document.createElement("span");
    span.className = statuses[i];
    span.textContent = word;
    span.dataset.tip = tips[i];
    span.tabIndex = parts.length ? -1 : 0; // Tab goes to the text, arrows to its words
    span.setAttribute("aria-describedby", "tip");
    parts.push(span);
    before = word;
  }
  box.replaceChildren(...parts);
  if (focused >= 0 && box.children.length) {
    box.children[Math.min(focused, box.children.length - 1)].focus({ preventScroll: true });
  }
}

// ------------------------------------------------------------------------------------------------
// panes

const panes = data.runs.map((run) => {
  const box = document.createElement("article");
  box.className = "pane";
  box.setAttribute("aria-label", `${run.label}, ${run.steps} steps`);
  const title = document.createElement("h2");
  title.textContent = `${run.label}, ${run.steps.toLocaleString("en")} steps`;
  const status = document.createElement("p");
  status.className = "status";
  const text = document.createElement("div");
  text.className = "text";
  const verdict = document.createElement("p");
  verdict.className = "verdict";
  verdict.setAttribute("aria-live", "polite");
  box.append(title, status, text, verdict);
  element("panes").append(box);
  return { run, status, text, verdict, shown: -1 };
});

// The number of steps that are finished after so many seconds.
function stepAt(run, seconds) {
  let low = 0;
  let high = run.steps;
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (run.seconds[middle] <= seconds + 1e-9) low = middle; else high = middle - 1;
  }
  return low;
}

function drawPane(pane, step) {
  if (pane.shown === step) return;
  pane.shown = step;
  const { run } = pane;
  const cells = stateAt(run, step);
  const statuses = cells.map((cell, i) => statusOf(run, step, cell, i));
  const tips = cells.map((cell, i) => tipText(cell, run.steps, statuses[i]));
  showText(pane.text, cells, statuses, tips);
  const seconds = run.seconds[step].toFixed(2);
  const calls = `step ${step.toLocaleString("en")} of ${run.steps.toLocaleString("en")}`;
  pane.status.textContent = `${calls}, ${seconds} s`;
  const known = [run.verdict, ...run.mistakes].filter(Boolean).join("; ");
  pane.verdict.textContent = step === run.steps ? known : "";
}

// ------------------------------------------------------------------------------------------------
// the clock

const fastest = data.runs.reduce((a, b) => (a.seconds.at(-1) <= b.seconds.at(-1) ? a : b));
const end = Math.max(...data.runs.map((run) => run.seconds.at(-1)));
const slowUntil = Math.max(
  0, ...data.runs.filter((run) => run.steps <= FEW).map((run) => run.seconds.at(-1))
);
const slow = Math.min(1, fastest.seconds.at(-1) / fastest.steps / STEP_SECONDS);
const fast = Math.max(1, (end - slowUntil) / REST_SECONDS);
const clock = { now: 0, playing: false, last: 0 }; // now: seconds, or share of the steps in [0, 1]

const byTime = () => element("clock").value === "time";
const clockEnd = () => (byTime() ? end : 1);

// Seconds of the network (or share of the steps) in a second of the viewer.
function rate() {
  const chosen = Number(element("speed").value);
  if (!byTime()) return chosen / (fastest.steps * STEP_SECONDS);
  return chosen * (clock.now < slowUntil ? slow : fast);
}

function told() {
  if (!byTime()) return `${Math.round(100 * clock.now)}% of the steps of each`;
  if (clock.now >= end) return `all have finished, after ${end.toFixed(2)} s of the network's time`;
  const r = rate();
  const pace = r < 0.95 ? `shown ${Math.round(1 / r)} times slower than it ran`
    : r > 1.05 ? `shown ${r.toFixed(1)} times faster than it ran` : "as fast as it ran";
  return `${clock.now.toFixed(2)} s of the network's time, ${pace}`;
}

// The slider has half of its length for the seconds of the slow clock.
function toSlider(now) {
  if (!byTime()) return 1000 * now;
  if (slowUntil === 0 || slowUntil >= end) return 1000 * now / end;
  return now < slowUntil ? 500 * now / slowUntil
    : 500 + 500 * (now - slowUntil) / (end - slowUntil);
}

function fromSlider(value) {
  if (!byTime()) return value / 1000;
  if (slowUntil === 0 || slowUntil >= end) return end * value / 1000;
  return value < 500 ? slowUntil * value / 500
    : slowUntil + (end - slowUntil) * (value - 500) / 500;
}

function draw() {
  for (const pane of panes) {
    const { run } = pane;
    const step = byTime() ? stepAt(run, clock.now) : Math.floor(clock.now * run.steps + 1e-9);
    drawPane(pane, step);
  }
  element("slider").value = toSlider(clock.now);
  element("slider").setAttribute("aria-valuetext", told());
  element("told").textContent = told();
  element("play").textContent = clock.playing ? "\u275a\u275a pause" : "\u25b6 play";
  element("play").setAttribute("aria-label", clock.playing ? "pause" : "play");
  drawWorld();
}

function frame() {
  if (!clock.playing) return;
  const time = performance.now();
  const passed = Math.min(0.1, (time - clock.last) / 1000);
  clock.last = time;
  moveTo(clock.now + passed * rate(), byTime() && clock.now < slowUntil ? slowUntil : clockEnd());
  if (clock.now >= clockEnd()) clock.playing = false;
  draw();
  setTimeout(frame, FRAME);
}

function moveTo(now, most = clockEnd()) {
  clock.now = Math.max(0, Math.min(most, now));
}

function play() {
  clock.playing = !clock.playing;
  if (clock.playing && clock.now >= clockEnd()) clock.now = 0;
  clock.last = performance.now();
  draw();
  if (clock.playing) setTimeout(frame, FRAME);
}

// One step of the fastest run, on or back.
function stepBy(direction) {
  clock.playing = false;
  if (byTime()) {
    const step = stepAt(fastest, clock.now) + direction;
    const stays = step > fastest.steps || (direction < 0 && clock.now > fastest.seconds.at(-1));
    const near = fastest.seconds[Math.max(0, Math.min(fastest.steps, step))];
    moveTo(stays ? clock.now + direction * (end - slowUntil) / 20 : near);
  } else {
    moveTo(Math.round(clock.now * fastest.steps + direction) / fastest.steps);
  }
  draw();
}

// ------------------------------------------------------------------------------------------------
// the exact world

const bars = data.world.texts.map((text) => {
  const box = document.createElement("div");
  box.innerHTML = `<i></i><b></b><em>${text}</em>`;
  element("bars").append(box);
  return box;
});

for (const n of Object.keys(data.world.runs)) {
  element("world-steps").add(new Option(n, n, n === "8", n === "8"));
}

// Bars move with the slider: by its share of the steps.
function drawWorld() {
  const states = data.world.runs[element("world-steps").value];
  const share = Math.min(1, Number(element("slider").value) / (byTime() ? 500 : 1000));
  const step = Math.floor(share * (states.length - 1) + 1e-9);
  const highest = 1.1 * Math.max(...data.world.truth, ...states.flat());
  let distance = 0;
  bars.forEach((box, i) => {
    const [now, truth] = [states[step][i], data.world.truth[i]];
    distance += Math.abs(now - truth) / 2;
    box.querySelector("i").style.height = `${85 * now / highest}%`;
    box.querySelector("b").style.bottom = `calc(22px + ${85 * truth / highest}%)`;
  });
  element("world-told").textContent = `after step ${step} of ${states.length - 1}: `
    + `total variation from the true texts ${distance.toFixed(3)}`;
}

// ------------------------------------------------------------------------------------------------
// controls

function showTip(event) {
  const tip = element("tip");
  const text = event.target.dataset && event.target.dataset.tip;
  tip.style.display = text ? "block" : "none";
  if (!text) return;
  tip.textContent = text;
  const box = event.target.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(box.left, innerWidth - 320))}px`;
  tip.style.top = `${box.bottom + 6}px`;
}

function setSize(change) {
  const root = document.documentElement;
  const size = parseFloat(getComputedStyle(root).getPropertyValue("--size")) + change;
  root.style.setProperty("--size", `${Math.max(12, Math.min(40, size))}px`);
}

function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
}

const KEYS = {
  " ": play, ArrowRight: () => stepBy(1), ArrowLeft: () => stepBy(-1),
  Home: () => { moveTo(0); draw(); }, End: () => { moveTo(clockEnd()); draw(); },
  "+": () => setSize(2), "-": () => setSize(-2),
};

function start() {
  element("command").textContent = data.command;
  const names = data.runs.map((run) => `${run.label} in ${run.steps.toLocaleString("en")} steps`);
  element("intro").textContent = `${names.join(", ")}: from the same noise, a call of the `
    + "network in each step. All tokens are written at once.";
  element("play").onclick = play;
  element("restart").onclick = KEYS.Home;
  element("back").onclick = () => stepBy(-1);
  element("next").onclick = () => stepBy(1);
  element("slider").oninput = (event) => {
    clock.playing = false;
    moveTo(fromSlider(Number(event.target.value)));
    draw();
  };
  element("clock").onchange = () => { clock.playing = false; moveTo(0); draw(); };
  element("world-steps").onchange = drawWorld;
  element("smaller").onclick = () => setSize(-2);
  element("larger").onclick = () => setSize(2);
  element("theme").onclick = () => setTheme(document.documentElement.dataset.theme !== "dark");
  setTheme(matchMedia("(prefers-color-scheme: dark)").matches);
  for (const name of ["mouseover", "focusin"]) document.addEventListener(name, showTip);
  document.addEventListener("keydown", (event) => {
    const key = event.key;
    const own = event.target.matches("select, input[type=number]")
      || (key === " " && event.target.matches("button")); // a key of the element itself
    if (event.ctrlKey || event.altKey || event.metaKey || own) return; // or of the browser
    const words = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" };
    if (event.target.matches(".text span") && words[key]) {
      event.preventDefault();
      const other = event.target[words[key]];
      if (other) other.focus();
    } else if (KEYS[key]) {
      event.preventDefault();
      KEYS[key]();
    }
  });
  draw();
}

start();
