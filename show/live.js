// Two networks that write in the page, side by side: from the same noise, in as many steps as the
// slider says, one text after another. Each runs in a Worker of its own (worker.js).
//
// `settings` is what the viewer chose. Each change replaces it by a new object, which ends the text
// that is being written. What a link should keep is in the address, behind #.

"use strict";

const SLOW = 500; // milliseconds of a step, of the first texts; later ones as fast as they come
const REST = 1800; // milliseconds of a finished text, of the first ones
const PLANTED_AT = 0.5; // the time t from which a text with a planted word is written again
const FIELDS = ["steps", "seed", "prompt", "temperature", "grid"];
const defaults = Object.fromEntries(FIELDS.map((id) => [id, element(id).value]));
const L = data.runs[0].noise.length;
const pause = (milliseconds) => new Promise((done) => { setTimeout(done, milliseconds); });
let settings = null;
let paused = false;

// ------------------------------------------------------------------------------------------------
// the networks

function startWorker(name) {
  const code = new Blob([element("worker").textContent], { type: "text/javascript" });
  const worker = new Worker(URL.createObjectURL(code));
  const waiting = []; // an answer for each message, in their order
  worker.onmessage = (event) => waiting.shift()(event.data);
  const ask = (message) => new Promise((done) => {
    waiting.push(done);
    worker.postMessage(message);
  });
  return { ask, ready: ask({ packed: element(`network-${name}`).textContent }) };
}

const panes = data.live.map((name) => (
  Object.assign(new Pane(element("live-panes"), L), { name, right: 0, texts: 0 })
));

const titleOfLive = (pane, steps) => (
  `${pane.name === "dfm" ? "teacher" : "student"}, ${steps} step${steps > 1 ? "s" : ""}`
);

// ------------------------------------------------------------------------------------------------
// what the viewer chose

// The tokens of a prompt; null, and a word about it, if there are none.
function tokensOf(prompt) {
  const { kind, pieces } = data.tokens;
  const split = kind === "word" ? /[\p{L}\p{N}_]+|[^\p{L}\p{N}_\s]/gu : /./gsu;
  const words = prompt.match(split) || [];
  const unknown = words.filter((word) => !pieces.includes(word));
  element("trouble").textContent = unknown.length ? `no token for: ${unknown.join(" ")}` : "";
  return unknown.length ? null : words.slice(0, L).map((word) => pieces.indexOf(word));
}

// A number that was typed, held within the limits of its field.
function numberOf(id) {
  const { value, min, max } = element(id);
  const number = value === "" || Number.isNaN(Number(value)) ? defaults[id] : Number(value);
  return Math.max(Number(min), Math.min(Number(max), number));
}

// Takes the fields as they are; counts anew, and goes on.
function change(kept = settings.kept) {
  const prompt = tokensOf(element("prompt").value) || [];
  const template = Array.from({ length: L }, (_, i) => prompt[i] ?? kept.get(i) ?? -1);
  const steps = numberOf("steps");
  settings = {
    steps, template, kept, seed: Math.round(numberOf("seed")), temperature: numberOf("temperature"),
    power: element("grid").value === "1" ? 1 : 2,
  };
  element("steps-told").textContent = steps;
  for (const pane of panes) Object.assign(pane, { right: 0, texts: 0 });
  setPaused(false);
}

function tellAddress() {
  const state = new URLSearchParams(FIELDS.map((id) => [id, element(id).value]));
  if (settings.kept.size) state.set("kept", [...settings.kept].flat().join("."));
  history.replaceState(null, "", `#${state}`);
}

function readAddress() {
  const state = new URLSearchParams(location.hash.slice(1));
  for (const id of FIELDS) element(id).value = state.get(id) ?? defaults[id];
  const kept = (state.get("kept") ?? "").match(/\d+/g) ?? []; // place, token, place, token, ...
  change(new Map(kept.flatMap((place, i) => (i % 2 ? [] : [[+place, +kept[i + 1]]]))));
}

function setPaused(value) {
  paused = value;
  element("pause").textContent = paused ? "\u25b6 go on" : "\u275a\u275a pause";
  tellAddress(); // with the noise that is shown
}

// ------------------------------------------------------------------------------------------------
// writing

const told = (pane) => (
  (checker ? `right: ${pane.right} of ${pane.texts}` : `texts: ${pane.texts}`)
  + (pointed && panes.includes(pointed.pane) && pane.state.step === settings.steps ? ", held" : "")
);

function show(pane, state, now) {
  follow(state.step || now.planted ? pane.state : null, state);
  state.mark = now.template.map((token, i) => (
    token >= 0 ? "given" : now.planted && now.planted.place === i ? "planted" : ""
  ));
  const last = state.step === now.steps;
  pane.time.style.width = 0; // that of the recorded run
  const mistakes = pane.show(state, last);
  if (last && !now.planted) {
    pane.texts += 1;
    pane.right += Number(checker && mistakes.length === 0);
  }
  pane.title.textContent = titleOfLive(pane, now.steps);
  pane.counter.textContent = told(pane);
  pane.verdict.textContent = last && checker ? verdictOf(mistakes.length) : `step ${state.step}`;
}

const verdictOf = (n) => (
  n ? `${n} mistake${n > 1 ? "s" : ""}, in red. Why: below.` : "This story is right."
);

const haste = () => Math.max(0.1, 1 - panes[0].texts / 10); // the first texts slowly

// Writes a text in each pane, or in the one with a planted word, as far as the settings stay.
async function write(now) {
  const own = now.planted ? [now.planted.pane] : panes;
  const { steps: n, seed, temperature, power, template, planted } = now;
  const start = { n, seed, temperature, power, template, ...planted?.start };
  let next = own.map((pane) => pane.ask({ start }));
  for (let step = 0; ; step++) {
    const states = await Promise.all(next);
    while (paused && step && now === settings) await pause(50);
    if (now !== settings) return;
    states.forEach((state, i) => show(own[i], state, now));
    if (step === n) return;
    next = own.map((pane) => pane.ask({}));
    await pause(planted && step === 0 ? 1200 : haste() * Math.min(SLOW, 4 * SLOW / n));
  }
}

async function writeForever() {
  for (;;) {
    const now = settings;
    await write(now);
    if (now.planted && now === settings) setPaused(true);
    const until = performance.now() + REST * Math.max(0.4, haste());
    const held = () => paused || (pointed && panes.includes(pointed.pane)); // it is read
    while (now === settings && (held() || performance.now() < until)) {
      for (const pane of panes) pane.counter.textContent = told(pane);
      await pause(50);
    }
    if (now !== settings) continue;
    const seed = (now.seed + 1) % 1e6;
    if (document.activeElement !== element("seed")) element("seed").value = seed; // not typed in
    settings = { ...now, seed, planted: null };
  }
}

// ------------------------------------------------------------------------------------------------
// a click on a word

// Another word of the same kind (of its slot, in a story), else any.
function wrongWord(token) {
  const { pieces } = data.tokens;
  const lists = checker ? Object.values(checker.values) : [];
  const words = lists.find((values) => values.includes(pieces[token])) || pieces;
  const others = words.filter((word) => word !== pieces[token] && word !== data.tokens.pad);
  return pieces.indexOf(others[Math.floor(Math.random() * others.length)]);
}

function plant(pane, place) {
  const tokens = [...pane.state.tokens];
  tokens[place] = wrongWord(tokens[place]);
  const template = settings.template.with(place, -1);
  setPaused(false);
  settings = {
    ...settings, template, planted: { pane, place, start: { from: PLANTED_AT, tokens } },
  };
}

function keep(pane, place) {
  const kept = new Map(settings.kept);
  if (!kept.delete(place)) kept.set(place, pane.state.tokens[place]);
  change(kept);
}

element("live-panes").onclick = ({ target }) => {
  if (!target.pane || !settings) return;
  (element("click").value === "break" ? plant : keep)(target.pane, target.place);
};

// ------------------------------------------------------------------------------------------------
// the guided path

const GUIDE = [
  [4, "Both networks get the same noise, and 4 steps to make a story of it. Red words are wrong: "
    + "they contradict the others. Watch the counters grow."],
  [64, "With 64 steps the teacher is nearly always right too. But that is 16 times the work, a "
    + "call of the network for each step. The student is trained to need fewer."],
  [1, "One step draws all words at once, and none knows of the others. Each is likely by itself; "
    + "together they make no story."],
  [4, "Point at a word: the network gives every word of its vocabulary a probability to stand "
    + "there. Where several are likely, words that are drawn at once do not agree."],
  [8, "Click a word of a finished story to plant a wrong one. The network goes on from t = 0.5 and "
    + "mostly takes it back. A model that fills in blanks (a mask model) cannot "
    + "change a word once it is written."],
  [4, "Why it is so, below: a world of 16 texts where every number is exact. Move its slider, then "
    + "choose 8 steps."],
];
let guided = 0;

function guide() {
  element("guide-number").textContent = `${guided + 1} of ${GUIDE.length}`;
  element("guide-text").textContent = GUIDE[guided][1];
  element("guide-next").textContent = guided < GUIDE.length - 1 ? "next" : "again";
}

element("guide-next").onclick = () => {
  guided = (guided + 1) % GUIDE.length;
  element("steps").value = GUIDE[guided][0];
  change();
  guide();
  if (guided === GUIDE.length - 1) element("world").scrollIntoView();
};

// ------------------------------------------------------------------------------------------------
// the start: recorded runs of both, until their networks are ready

async function start() {
  element("guide").hidden = !checker; // it speaks of stories
  element("live").hidden = false;
  element("prompt-label").hidden = !["word", "char"].includes(data.tokens.kind);
  element("prompt").placeholder = checker ? "Mia had a" : "";
  guide();
  const labels = Object.fromEntries(data.runs.map((run) => [run.name, run.label]));
  const method = labels[data.live[1]] ?? data.live[1];
  element("who").textContent = `Teacher: the DFM. Student: a DFM, trained further by ${method}.`;
  readAddress();
  setPaused(still);
  for (const id of FIELDS.slice(1)) element(id).onchange = () => change();
  element("steps").oninput = () => change(); // while it moves
  element("pause").onclick = () => setPaused(!paused);
  element("other").onclick = () => {
    element("seed").value = Math.floor(Math.random() * 1e6);
    change();
  };
  addEventListener("hashchange", readAddress);
  const recorded = panes.map(({ name }) => (
    data.runs.filter((run) => run.name === name).sort((a, b) => a.steps - b.steps)[0]
  ));
  const both = recorded.every(Boolean) && new Player(recorded, panes);
  panes.forEach((pane, i) => {
    if (both) pane.title.textContent = `recorded: ${recorded[i].title}`;
  });
  if (both) both.start();
  await pause(0); // the first picture
  const workers = data.live.map(startWorker);
  panes.forEach((pane, i) => { pane.ask = workers[i].ask; });
  await Promise.all(workers.map(({ ready }) => ready));
  if (both) both.playing = false;
  while (paused) await pause(50);
  writeForever();
}

if (data.live.length) start();
