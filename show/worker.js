// A Worker of its own for each network, so that the page never waits: it is sent the network, then
// a start of a text, then asked for one step after another. Each message has one answer.

"use strict";

let network = null;
let steps = null;

onmessage = ({ data: { packed, start } }) => {
  if (packed) {
    network = new Network(JSON.parse(packed));
    postMessage("ready");
    return;
  }
  if (start) steps = new WebSampler(network, start).steps(start.n, start.from, start.tokens);
  postMessage(steps.next().value);
};
