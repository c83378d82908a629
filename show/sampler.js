// flow.py in JavaScript: from noise to text, for one text.
//
// `steps` yields {step, tokens, noise, p}, first the start and then after each step: what stands
// there, which tokens are still noise, and the posterior (L arrays of V) that the step drew from.
// `template` is that of sample.fill: the token that is given in each place, or -1.

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

const REDRAWS = 32; // of a token, by renoise, on average; in fewer steps one in each
const kappa = (t) => t;
const gridTime = (i, n, power) => 1 - (1 - i / n) ** power; // above 1: they shrink towards the end

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
  constructor(network, { seed, temperature = 1, power = 2, template = [] }) {
    Object.assign(this, { network, temperature, power, template });
    this.random = randomNumbers(seed);
    const { vocab_size: V, block_size: L } = network.config;
    this.tokens = Array.from({ length: L }, () => Math.floor(this.random() * V));
    this.noise = this.tokens.map(() => true);
    this.keepGiven();
  }

  given(i) {
    return this.template[i] >= 0;
  }

  keepGiven() {
    this.tokens = this.tokens.map((token, i) => (this.given(i) ? this.template[i] : token));
    this.noise = this.noise.map((noise, i) => noise && !this.given(i));
  }

  // The posterior of each token, after the temperature. As in sample.conditioned_on the network
  // reads given tokens at t = 1, and is sure of them.
  posterior(t, h) {
    const V = this.network.config.vocab_size;
    const any = this.tokens.some((_, i) => this.given(i));
    const times = any ? this.tokens.map((_, i) => (this.given(i) ? 1 : t)) : [t];
    const logits = this.network.logits(this.tokens, times, h);
    return this.tokens.map((_, i) => {
      const own = logits.slice(i * V, (i + 1) * V);
      return this.given(i) ? own.map((_, v) => Number(v === this.template[i]))
        : softmax(own.map((v) => v / this.temperature));
    });
  }

  // A token jumps with probability 1 - S ** (1 - p(x_t)), to another one; the last step draws all.
  jumpToken(token, i, p, S, last) {
    const jumps = last || this.random() < 1 - S ** Math.max(0, 1 - p[token]);
    if (!jumps) return token;
    this.noise[i] = false;
    return drawFrom(last ? p : p.map((value, v) => (v === token ? 0 : value)), this.random);
  }

  jump(p, t, h, last) {
    const S = survival(t, h);
    this.tokens = this.tokens.map((token, i) => this.jumpToken(token, i, p[i], S, last));
  }

  // Draws x_1 and noises it afresh to t + h, of this share of the tokens; the others jump. The last
  // step takes the likeliest words.
  renoise(p, t, h, last, share = 1) {
    const V = this.network.config.vocab_size;
    const S = survival(t, h);
    this.tokens = this.tokens.map((token, i) => {
      if (last) {
        this.noise[i] = false;
        return p[i].indexOf(Math.max(...p[i]));
      }
      if (share < 1 && this.random() >= share) return this.jumpToken(token, i, p[i], S, last);
      const text = drawFrom(p[i], this.random);
      this.noise[i] = this.random() >= kappa(t + h);
      return this.noise[i] ? Math.floor(this.random() * V) : text;
    });
  }

  // n steps from time `from` to 1. A text that starts later than at 0 is `tokens`.
  * steps(n, from = 0, tokens = null) {
    if (tokens) Object.assign(this, { tokens, noise: tokens.map(() => false) });
    const time = (i) => from + (1 - from) * gridTime(i, n, this.power);
    yield { step: 0, tokens: this.tokens, noise: [...this.noise], p: null };
    for (let i = 0; i < n; i++) {
      const h = time(i + 1) - time(i);
      const p = this.posterior(time(i), h);
      this[this.network.renoise ? "renoise" : "jump"](p, time(i), h, i === n - 1, REDRAWS / n);
      this.keepGiven();
      yield { step: i + 1, tokens: this.tokens, noise: [...this.noise], p };
    }
  }
}
