// The exact world of toy.py: the distribution of its 16 texts after each step.

"use strict";

const { texts, truth, runs: worldRuns } = data.world;
const bars = texts.map((text) => {
  const box = make(element("bars"), "div");
  const parts = { now: make(box, "i"), truth: make(box, "b") };
  make(box, "em", "", text);
  return parts;
});

// Half the sum of |p - q|, of texts that are grouped by a key: one of their letters, or the whole.
function variation(p, key) {
  const difference = {};
  texts.forEach((text, i) => {
    difference[key(text)] = (difference[key(text)] || 0) + p[i] - truth[i];
  });
  return Object.values(difference).reduce((sum, value) => sum + Math.abs(value) / 2, 0).toFixed(2);
}

function drawWorld() {
  const states = worldRuns[element("world-steps").value];
  const step = Number(element("world-step").value);
  const highest = 1.1 * Math.max(...truth, ...states.flat());
  bars.forEach((bar, i) => {
    bar.now.style.height = `${84 * states[step][i] / highest}%`;
    bar.truth.style.bottom = `calc(1.4rem + ${84 * truth[i] / highest}%)`;
  });
  element("world-step-told").textContent = `${step} of ${states.length - 1}`;
  const keys = [(text) => text[0], (text) => text[1], (text) => text];
  const [first, second, pair] = keys.map((key) => variation(states[step], key));
  element("world-told").textContent = "Share that is wrong (total variation): first letter "
    + `${first}, second letter ${second}, the pair ${pair}.`;
}

// Shows a run of so many steps, at its end.
function showWorld(steps) {
  element("world-steps").value = steps;
  element("world-step").max = steps;
  element("world-step").value = steps;
  drawWorld();
}

for (const n of Object.keys(worldRuns)) element("world-steps").add(new Option(n));
element("world-steps").onchange = (event) => showWorld(event.target.value);
element("world-step").oninput = drawWorld;
showWorld(1);
