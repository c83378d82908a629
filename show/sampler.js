// flow.py in JavaScript: from noise to text, for one text.
//
// `steps` yields {step, tokens, noise, percent, seconds} after each step: what has been drawn,
// which tokens are still noise, and how probable the network found each token that stands there.

"use strict";

// Random numbers in (0, 1), the same for the same seed ("mulberry32").
function randomNumbers(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let z = Math.imul(state ^ (state >>> 15), 1 | state);
    z = (z + Math.imul(z ^ (z >>> 7), 61 | z)) ^ z;
    return (((z ^ (z >>> 14)) >>> 0) + 0.5) / 4294967296;
  };
}

const kappa = (t) => t;
const gridTime = (i, n) => 1 - (1 - i / n) ** 2; // power 2: the steps shrink towards the end

// The probability that a token with p(x_t) = 0 is still there after the step.
function survival(t, h) {
  return Math.max(1 - kappa(t + h), 1e-8) / (1 - kappa(t));
}

// A token drawn from p, which need not sum to 1.
function drawFrom(p, random) {
  let left = random() * p.reduce((a, b) => a + b, 0);
  return Math.max(0, p.findIndex((value) => (left -= value) < 0)); // 0: all of p is rounded to 0
}

class WebSampler {
  constructor(network, temperature, seed) {
    this.network = network;
    this.temperature = temperature;
    this.random = randomNumbers(seed);
    const { vocab_size: V, block_size: L } = network.config;
    this.tokens = Array.from({ length: L }, () => Math.floor(this.random() * V));
    this.noise = this.tokens.map(() => true);
  }

  // The posterior of each token, after the temperature.
  posterior(t, h) {
    const V = this.network.config.vocab_size;
    const logits = this.network.logits(this.tokens, t, h);
    return this.tokens.map((_, i) => (
      softmax(logits.slice(i * V, (i + 1) * V).map((v) => v / this.temperature))
    ));
  }

  // A token jumps with probability 1 - S ** (1 - p(x_t)), to another one; the last step draws all.
  jump(p, t, h, last) {
    const S = survival(t, h);
    this.tokens = this.tokens.map((token, i) => {
      const jumps = last || this.random() < 1 - S ** Math.max(0, 1 - p[i][token]);
      if (!jumps) return token;
      this.noise[i] = false;
      const others = last ? p[i] : p[i].map((value, v) => (v === token ? 0 : value));
      return drawFrom(others, this.random);
    });
  }

  // Draws all of x_1 and noises it afresh to t + h.
  renoise(p, t, h, last) {
    const V = this.network.config.vocab_size;
    const share = last ? 1 : kappa(t + h);
    this.tokens = this.tokens.map((_, i) => {
      const text = drawFrom(p[i], this.random);
      this.noise[i] = this.random() >= share;
      return this.noise[i] ? Math.floor(this.random() * V) : text;
    });
  }

  * steps(n) {
    for (let i = 0; i < n; i++) {
      const began = performance.now();
      const t = gridTime(i, n);
      const h = gridTime(i + 1, n) - t;
      const p = this.posterior(t, h);
      this[this.network.renoise ? "renoise" : "jump"](p, t, h, i === n - 1);
      const percent = this.tokens.map((token, k) => Math.round(100 * p[k][token]));
      const seconds = (performance.now() - began) / 1000;
      yield { step: i + 1, tokens: [...this.tokens], noise: [...this.noise], percent, seconds };
    }
  }
}
