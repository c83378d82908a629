// The panel in which the student writes in the browser: its weights are in the page.

"use strict";

const SHOWN_FOR = 350; // milliseconds of each step, at least
const network = new Network(data.network);

element("live").innerHTML = `
  <h2>It writes here</h2>
  <p>${data.network.label}, in this browser: change the noise, the steps, the temperature.</p>
  <div class="controls" role="group" aria-label="writing">
    <button id="write">write</button>
    <label>noise <input id="live-seed" type="number" min="0" max="999999" value="1"></label>
    <button id="other">other noise</button>
    <label>steps <input id="live-steps" type="number" min="1" max="64" value="8"></label>
    <label>temperature
      <input id="live-temperature" type="number" min="0.1" max="2" step="0.1" value="1"></label>
  </div>
  <p class="status" id="live-told" aria-live="polite"></p>
  <div class="text" id="live-text"></div>`;
element("live").hidden = false;

// A number that was typed, held within the limits of its field.
function typed(id) {
  const field = element(id);
  const value = Number(field.value);
  const inside = Math.max(Number(field.min), Math.min(Number(field.max), value || 0));
  field.value = id === "live-temperature" ? inside : Math.round(inside);
  return Number(field.value);
}

// What happened to each token between two states: the cells and statuses of page.js.
function showStep(before, now, cells, n) {
  const statuses = now.tokens.map((token, i) => {
    const cell = cells[i];
    cell.token = token;
    if (now.noise[i]) return "noise";
    const same = before && !before.noise[i] && before.tokens[i] === token;
    if (same) return "settled";
    const status = cell.seen ? "changed" : "new";
    Object.assign(cell, { seen: true, born: now.step, percent: now.percent[i] });
    return status;
  });
  const tips = cells.map((cell, i) => tipText(cell, n, statuses[i]));
  showText(element("live-text"), cells, statuses, tips);
}

const pause = (milliseconds) => new Promise((done) => { setTimeout(done, milliseconds); });
let writing = 0; // the number of the text that is being written: a new one ends the old one

async function write(shownFor = SHOWN_FOR) {
  writing += 1;
  const own = writing;
  const n = typed("live-steps");
  const sampler = new WebSampler(network, typed("live-temperature"), typed("live-seed"));
  const cells = sampler.tokens.map((token) => ({ token, percent: -1, born: 0, seen: false }));
  let before = { tokens: [...sampler.tokens], noise: [...sampler.noise] };
  let seconds = 0;
  for (const now of sampler.steps(n)) {
    seconds += now.seconds;
    showStep(before, now, cells, n);
    element("live-told").textContent = `step ${now.step} of ${n}, ${seconds.toFixed(2)} s of the `
      + `network's time; each step is shown for ${shownFor / 1000} s more`;
    before = now;
    await pause(shownFor);
    if (own !== writing) return;
  }
}

element("write").onclick = () => write();
element("other").onclick = () => {
  element("live-seed").value = Math.floor(Math.random() * 1e6);
  write();
};
