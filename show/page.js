// Panes that show a text as it is written, and the race: the runs that show/run.py recorded.
//
// A state is {tokens, noise} after a step: what stands there, and which tokens are still noise.
// `follow` says what happened to each token since the state before, as show/run.py does.

"use strict";

const STEP_SECONDS = 0.6; // in which a recorded run of few steps shows one
const REST_SECONDS = 9; // in which the rest is shown when the runs of few steps are done
const HOLD = 0.5; // seconds of the viewer in which a word that changed stays marked
const FEW = 32; // steps: FEW_STEPS of show/run.py
const LIKELY = 5; // words of a posterior that are shown
const element = (id) => document.getElementById(id);
const data = JSON.parse(element("data").textContent);
const checker = data.grammar && new Checker(data.grammar);
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;

function make(parent, tag, className = "", text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  parent.append(made);
  return made;
}

// ------------------------------------------------------------------------------------------------
// states

function follow(before, now) {
  now.seen = now.tokens.map((_, i) => Boolean(before) && (before.seen[i] || !before.noise[i]));
  now.status = now.tokens.map((token, i) => {
    if (now.noise[i]) return "noise";
    if (before && !before.noise[i] && before.tokens[i] === token) return "settled";
    return now.seen[i] ? "changed" : "new";
  });
  return now;
}

// What happened to each token of states[step] since states[since].
function statusesSince(states, since, step) {
  const [before, now] = [states[since], states[step]];
  return now.tokens.map((token, i) => {
    if (now.noise[i]) return "noise";
    const stays = (state) => state.tokens[i] === token && !state.noise[i];
    if (states.slice(since, step + 1).every(stays)) return "settled";
    return before.seen[i] || !before.noise[i] ? "changed" : "new";
  });
}

// All states of a recorded run. A change is [place, token, percent], -1 percent for noise.
function statesOf(run) {
  const none = run.noise.map(() => -1);
  const states = [follow(null, { tokens: run.noise, noise: none.map(() => true), percent: none })];
  for (const flat of run.changes) {
    const before = states.at(-1);
    const now = {
      tokens: [...before.tokens], noise: [...before.noise], percent: [...before.percent],
    };
    for (let j = 0; j < flat.length; j += 3) {
      const [place, token, percent] = flat.slice(j, j + 3);
      now.tokens[place] = token;
      now.percent[place] = percent;
      now.noise[place] = percent < 0;
    }
    states.push(follow(before, now));
  }
  return states;
}

// The words of tokens, without the padding at the end. Pieces of byte pairs are bytes: a character
// of several tokens stands at the last of them.
function wordsOf(tokens) {
  let words = tokens.map((token) => data.tokens.pieces[token]);
  if (["bpe", "gpt2"].includes(data.tokens.kind)) {
    const utf8 = new TextDecoder();
    const bytes = (piece) => Uint8Array.from(piece, (byte) => byte.charCodeAt(0));
    words = words.map((piece, i) => utf8.decode(bytes(piece), { stream: i + 1 < words.length }));
  }
  while (words.length && words.at(-1) === data.tokens.pad) words.pop();
  return words;
}

// ------------------------------------------------------------------------------------------------
// panes

class Pane {
  constructor(parent, L) {
    const box = make(parent, "article", "pane");
    const head = make(box, "div", "head");
    this.title = make(head, "h2");
    this.counter = make(head, "span", "counter");
    this.time = make(box, "i", "time"); // a bar: the seconds of the network
    this.verdict = make(box, "p", "verdict small");
    const text = make(box, "div", L > 256 ? "long text" : "text");
    this.why = make(box, "p", "why small");
    this.cells = Array.from({ length: L }, (_, i) => {
      const blank = text.appendChild(document.createTextNode(""));
      const word = make(text, "span");
      word.tabIndex = i ? -1 : 0; // Tab goes to the text, arrows to its words
      word.setAttribute("role", "button");
      word.setAttribute("aria-describedby", "tip");
      Object.assign(word, { pane: this, place: i });
      return { blank, word };
    });
  }

  // Shows a state and returns its mistakes. Before the last step a mistake is a word that
  // contradicts others; then also a sentence that does not belong, and nothing else is marked.
  // `recorded` has the mistakes of a text that this page cannot check.
  show(state, last, status = state.status, recorded = []) {
    const words = wordsOf(state.tokens);
    this.state = state;
    this.mistakes = checker ? checker.check(words) : recorded;
    this.told = new Map(); // place -> message
    for (const { kind, position, words: n, message } of this.mistakes) {
      if (!last && ["sentence", "event"].includes(kind)) continue;
      for (let i = position; i < position + n; i++) this.told.set(i, message);
    }
    let before = "\n";
    this.cells.forEach(({ blank, word }, i) => {
      const piece = words[i] || "";
      const close = data.tokens.kind !== "word" || data.tokens.marks.includes(piece)
        || piece === "\n" || before === "\n";
      const wrong = this.told.has(i) && status[i] !== "noise";
      blank.data = close ? "" : " ";
      word.textContent = piece === data.tokens.pad ? "\u00b7" : piece;
      word.hidden = !piece;
      const shown = wrong ? "wrong" : last ? "settled" : status[i];
      word.className = [shown, state.mark?.[i] ?? ""].join(" ").trim();
      before = piece;
    });
    const first = this.mistakes.slice(0, 8).map((one) => one.message).join("; ");
    const more = this.mistakes.length > 8 ? "; ..." : "";
    this.why.textContent = last ? first + more : "";
    if (pointed && pointed.pane === this) showTip(pointed);
    return this.mistakes;
  }
}

// ------------------------------------------------------------------------------------------------
// the posterior of a word, as bars

let pointed = null; // the word that has the mouse or the focus

function rowsOf(state, place) {
  const token = state.tokens[place];
  if (!state.p) return state.percent[place] < 0 ? [] : [[token, state.percent[place] / 100]];
  const p = state.p[place];
  const likely = [...p.keys()].sort((a, b) => p[b] - p[a]).slice(0, LIKELY);
  const shown = [...new Set([...likely, token])];
  const rest = 1 - shown.reduce((sum, other) => sum + p[other], 0);
  return [...shown.map((other) => [other, p[other]]), [null, Math.max(0, rest)]];
}

function showTip(word) {
  const tip = element("tip");
  const { pane, place } = word;
  const { state } = pane;
  const rows = state.p || state.percent ? rowsOf(state, place) : [];
  tip.replaceChildren();
  const when = state.p ? "before this step" : "when this was drawn";
  const expected = `What the network expected here, ${when}:`;
  make(tip, "p", "", rows.length ? expected : "No prediction yet.");
  for (const [token, p] of rows) {
    const row = make(tip, "div");
    const piece = token === null ? "all others" : wordsOf([token])[0] ?? data.tokens.pad;
    make(row, "b", "", token === state.tokens[place] ? `\u25b8 ${piece}` : piece);
    make(row, "i").style.width = `${8 * p}em`;
    make(row, "span", "", `${(100 * p).toFixed(p < 0.1 ? 1 : 0)}%`);
  }
  if (pane.told.has(place)) make(tip, "p", "", pane.told.get(place));
  tip.hidden = false;
  const box = word.getBoundingClientRect();
  const below = box.bottom + 6 + tip.offsetHeight < innerHeight;
  tip.style.left = `${Math.max(4, Math.min(box.left, innerWidth - tip.offsetWidth - 4))}px`;
  tip.style.top = `${below ? box.bottom + 6 : box.top - tip.offsetHeight - 6}px`;
}

function pointAt({ target, type }) {
  pointed = target.pane ? target : null;
  element("tip").hidden = !pointed;
  if (pointed) showTip(pointed);
}
for (const name of ["mouseover", "focusin", "focusout"]) {
  document.addEventListener(name, (event) => (
    pointAt(name === "focusout" ? { target: document.body } : event)
  ));
}

document.addEventListener("keydown", (event) => {
  const { pane, place } = event.target;
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (event.key === "Escape") pointAt({ target: document.body });
  if (!pane) return;
  if (step && pane.cells[place + step]) pane.cells[place + step].word.focus();
  if (["Enter", " "].includes(event.key)) event.target.click();
  if (step || event.key === " ") event.preventDefault();
});

// ------------------------------------------------------------------------------------------------
// recorded runs, on one clock: the seconds that the networks needed

class Player {
  constructor(runs, panes) {
    this.runs = runs.map((run) => ({ ...run, states: statesOf(run) }));
    this.panes = panes;
    const few = runs.filter((run) => run.steps <= FEW);
    const longest = (some) => Math.max(0, ...some.map((run) => run.seconds.at(-1)));
    this.end = longest(runs);
    this.slowEnd = longest(few);
    this.fewest = Math.min(...runs.map((run) => run.steps));
    this.position = 0; // from 0 to 1: the first half is for the runs of few steps
    this.playing = false;
  }

  allAlike() {
    return this.slowEnd === 0 || this.slowEnd === this.end;
  }

  seconds() {
    const [u, slowEnd, end] = [this.position, this.slowEnd, this.end];
    if (this.allAlike()) return u * end;
    return u < 0.5 ? 2 * u * slowEnd : slowEnd + (2 * u - 1) * (end - slowEnd);
  }

  // Of the position, in a second of the viewer.
  rate() {
    const few = 1 / (STEP_SECONDS * this.fewest);
    return this.allAlike() ? few : this.position < 0.5 ? few / 2 : 0.5 / REST_SECONDS;
  }

  // Of the networks, in a second of the viewer.
  speed() {
    const half = this.position < 0.5 ? this.slowEnd : this.end - this.slowEnd;
    return this.rate() * (this.allAlike() ? this.end : 2 * half);
  }

  draw() {
    const seconds = this.seconds();
    this.runs.forEach((run, i) => {
      const leader = this.runs.find((other) => other.steps === run.steps); // they move together
      const stepAt = (time) => {
        const after = leader.seconds.findIndex((value) => value > time + 1e-9);
        return after < 0 ? run.steps : after - 1;
      };
      const step = stepAt(seconds);
      const marked = stepAt(Math.max(0, seconds - HOLD * this.speed()));
      const since = Math.max(0, Math.min(step - 1, marked));
      const pane = this.panes[i];
      pane.time.style.width = `${100 * Math.min(seconds, run.seconds.at(-1)) / this.end}%`;
      if (pane.state === run.states[step] && pane.since === since) return;
      pane.since = since;
      const last = step === run.steps;
      const statuses = statusesSince(run.states, since, step);
      pane.show(run.states[step], last, statuses, last ? run.mistakes : []);
      pane.counter.textContent = `step ${step.toLocaleString("en")}`;
      pane.verdict.textContent = step < run.steps ? ""
        : [`${run.seconds.at(-1).toFixed(2)} s`, run.verdict].filter(Boolean).join(", ");
    });
    if (this.onDraw) this.onDraw(seconds);
  }

  // With reduced motion the end alone.
  start() {
    if (!still) return this.play();
    this.position = 1;
    return this.draw();
  }

  async play() {
    this.playing = true;
    if (this.position >= 1) this.position = 0;
    for (let last = performance.now(); this.playing;) {
      this.draw();
      await new Promise(requestAnimationFrame);
      const now = performance.now();
      this.position = Math.min(1, this.position + this.rate() * Math.min(0.1, (now - last) / 1000));
      this.playing = this.playing && this.position < 1;
      last = now;
    }
    if (this.position === 1) this.draw();
  }
}

function startRace() {
  const panes = data.runs.map((run) => {
    const pane = new Pane(element("race-panes"), run.noise.length);
    pane.title.textContent = run.title;
    return pane;
  });
  const player = new Player(data.runs, panes);
  player.onDraw = (seconds) => {
    const speed = player.speed();
    const pace = speed > 1.5 ? `shown ${speed.toFixed(0)} times faster`
      : speed < 0.7 ? `shown ${(1 / speed).toFixed(0)} times slower` : "shown as fast as it ran";
    const over = player.position === 1;
    const told = `${seconds.toFixed(2)} s of the networks, ${over ? "finished" : pace}`;
    element("conclusion").textContent = over ? data.conclusion : "";
    element("slider").value = 1000 * player.position;
    element("slider").setAttribute("aria-valuetext", told);
    element("told").textContent = told;
    element("play").textContent = player.playing ? "\u275a\u275a pause" : "\u25b6 play";
  };
  element("slider").oninput = (event) => {
    player.playing = false;
    player.position = event.target.value / 1000;
    player.draw();
  };
  element("play").onclick = () => {
    if (!player.playing) return player.play();
    player.playing = false;
    return player.draw();
  };
  if (data.live.length) player.draw(); else player.start();
  return player;
}

element("command").textContent = data.command;
const race = startRace();
