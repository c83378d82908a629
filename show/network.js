// model.py in JavaScript: logits = network.logits(tokens, times, h) for one text, in float32. As
// there, `times` is one time for all tokens, [t], or one for each (given tokens are at t = 1).
//
// Weights come as int8, a row of a matrix with a scale of its own (page.py). Read
// model.py first: the names are the same. Arrays are Float32Array, a matrix is row after row.

"use strict";

// ------------------------------------------------------------------------------------------------
// weights

// {name: Float32Array} from the page's base64, in the order of page.py.
function readWeights(packed) {
  const bytes = Uint8Array.from(atob(packed.weights), (c) => c.charCodeAt(0));
  const weights = {};
  let at = 0;
  const floats = (count) => {
    const part = new Float32Array(bytes.slice(at, at + 4 * count).buffer);
    at += 4 * count;
    return part;
  };
  for (const { name, shape } of packed.tensors) {
    if (shape.length !== 2 || name.includes("fuser")) {
      weights[name] = floats(shape.reduce((a, b) => a * b, 1));
      continue;
    }
    const [rows, columns] = shape;
    const int8 = new Int8Array(bytes.slice(at, at + rows * columns).buffer);
    at += rows * columns;
    const scale = floats(rows);
    const matrix = new Float32Array(rows * columns);
    for (let i = 0; i < matrix.length; i++) matrix[i] = int8[i] * scale[Math.floor(i / columns)];
    weights[name] = matrix;
  }
  return weights;
}

// ------------------------------------------------------------------------------------------------
// parts

// x (L, n) times W (m, n) transposed, plus bias: (L, m). Sixteen sums at a time, of four rows of x
// and four of W: each number that is read is used four times, and the sums wait for one another
// less: 8 ms instead of 30 for L = n = 128 and m = 512. The rows that are left over are summed one
// by one.
function linear(x, W, bias, L, n, m) {
  const y = new Float32Array(L * m);
  const [wholeL, wholeM] = [L - L % 4, m - m % 4];
  for (let o = 0; o < wholeM; o += 4) {
    for (let i = 0; i < wholeL; i += 4) fourByFour(x, W, y, i, o, n, m);
  }
  for (let i = 0; i < L; i++) {
    for (let o = i < wholeL ? wholeM : 0; o < m; o++) {
      let sum = 0;
      for (let k = 0; k < n; k++) sum += x[i * n + k] * W[o * n + k];
      y[i * m + o] = sum;
    }
    if (bias) for (let o = 0; o < m; o++) y[i * m + o] += bias[o];
  }
  return y;
}

// y[i..i+3][o..o+3], the products of four rows of x with four rows of W.
function fourByFour(x, W, y, i, o, n, m) {
  let a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
  let c0 = 0, c1 = 0, c2 = 0, c3 = 0, d0 = 0, d1 = 0, d2 = 0, d3 = 0;
  const [xa, xb, xc, xd] = [i * n, (i + 1) * n, (i + 2) * n, (i + 3) * n];
  const [w0, w1, w2, w3] = [o * n, (o + 1) * n, (o + 2) * n, (o + 3) * n];
  for (let k = 0; k < n; k++) {
    const a = x[xa + k], b = x[xb + k], c = x[xc + k], d = x[xd + k];
    const p = W[w0 + k], q = W[w1 + k], r = W[w2 + k], s = W[w3 + k];
    a0 += a * p; a1 += a * q; a2 += a * r; a3 += a * s;
    b0 += b * p; b1 += b * q; b2 += b * r; b3 += b * s;
    c0 += c * p; c1 += c * q; c2 += c * r; c3 += c * s;
    d0 += d * p; d1 += d * q; d2 += d * r; d3 += d * s;
  }
  const at = i * m + o;
  y[at] = a0; y[at + 1] = a1; y[at + 2] = a2; y[at + 3] = a3;
  y[at + m] = b0; y[at + m + 1] = b1; y[at + m + 2] = b2; y[at + m + 3] = b3;
  y[at + 2 * m] = c0; y[at + 2 * m + 1] = c1; y[at + 2 * m + 2] = c2; y[at + 2 * m + 3] = c3;
  y[at + 3 * m] = d0; y[at + 3 * m + 1] = d1; y[at + 3 * m + 2] = d2; y[at + 3 * m + 3] = d3;
}

const silu = (x) => x.map((v) => v / (1 + Math.exp(-v)));

function gelu(x) {
  const c = Math.sqrt(2 / Math.PI);
  return x.map((v) => 0.5 * v * (1 + Math.tanh(c * (v + 0.044715 * v * v * v))));
}

// LayerNorm of every row, then (1 + scale) and shift, which have a row for all or one for each.
function modulatedNorm(x, weight, shift, scale, L, d) {
  const y = new Float32Array(L * d);
  for (let i = 0; i < L; i++) {
    let mean = 0;
    let square = 0;
    for (let k = 0; k < d; k++) mean += x[i * d + k] / d;
    for (let k = 0; k < d; k++) square += (x[i * d + k] - mean) ** 2 / d;
    const factor = 1 / Math.sqrt(square + 1e-5);
    const row = i * d % scale.length;
    for (let k = 0; k < d; k++) {
      const normed = (x[i * d + k] - mean) * factor * weight[k];
      y[i * d + k] = normed * (1 + scale[row + k]) + shift[row + k];
    }
  }
  return y;
}

function softmax(values) {
  const largest = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const p = values.map((v) => Math.exp(v - largest));
  const sum = p.reduce((a, b) => a + b, 0);
  return p.map((v) => v / sum);
}

// ------------------------------------------------------------------------------------------------
// the network

class Network {
  constructor(packed) {
    this.config = packed.config;
    this.renoise = packed.renoise; // how it writes: sampler.js
    this.weights = readWeights(packed);
  }

  // A linear layer by its name, for x (L, n).
  linear(name, x, L) {
    const weight = this.weights[`${name}.weight`];
    const n = x.length / L;
    return linear(x, weight, this.weights[`${name}.bias`], L, n, weight.length / n);
  }

  // Numbers in [0, 1] (T) -> for each 128 cosines, 128 sines, a small MLP: (T, cond_dim).
  embedScalar(name, values) {
    const T = values.length;
    const x = new Float32Array(T * 256);
    for (let i = 0; i < T; i++) {
      for (let k = 0; k < 128; k++) {
        const angle = this.config.time_scale * values[i] * Math.exp(-Math.log(10000) * k / 128);
        x[i * 256 + k] = Math.cos(angle);
        x[i * 256 + k + 128] = Math.sin(angle);
      }
    }
    return this.linear(`${name}.mlp.2`, silu(this.linear(`${name}.mlp.0`, x, T)), T);
  }

  condition(times, h) {
    const time = this.embedScalar("condition.time_embedding", times);
    if (!this.config.step_aware) return silu(time);
    const step = this.embedScalar("condition.step_embedding", [h]);
    const n = step.length;
    const both = times.flatMap((_, i) => [...time.slice(i * n, (i + 1) * n), ...step]);
    return silu(this.linear("condition.fuser", Float32Array.from(both), times.length));
  }

  // adaLN: c (T, n) -> shifts, scales, gates, (T, d) each.
  modulation(name, c, T) {
    const own = this.config.step_aware ? silu(this.linear(`${name}.fuser`, c, T)) : c;
    const all = this.linear(`${name}.linear`, own, T);
    const d = this.config.dim;
    const parts = all.length / T / d;
    return Array.from({ length: parts }, (_, part) => (
      Float32Array.from({ length: T * d }, (_, i) => (
        all[(Math.floor(i / d) * parts + part) * d + i % d]
      ))
    ));
  }

  // cos and sin (L, size / 2) of position times frequency.
  angles(L, size) {
    const half = size / 2;
    const angle = Float64Array.from({ length: L * half }, (_, i) => (
      Math.floor(i / half) * 10000 ** (-2 * (i % half) / size)
    ));
    return { cos: angle.map(Math.cos), sin: angle.map(Math.sin) };
  }

  embed(tokens) {
    const { dim: d, position_scale: scale } = this.config;
    const x = new Float32Array(tokens.length * d);
    const { cos, sin } = this.angles(tokens.length, d);
    const half = d / 2;
    tokens.forEach((token, i) => {
      for (let k = 0; k < d; k++) {
        const wave = k < half ? sin[i * half + k] : cos[i * half + k - half];
        x[i * d + k] = this.weights["embedding.weight"][token * d + k] + scale * wave;
      }
    });
    return x;
  }

  // Queries (part 0) or keys (part 1) of a head, in place: normalised, and then rotary positions,
  // which turn the pairs (x[k], x[k + size / 2]).
  normaliseAndRotate(qkv, L, part, head, { cos, sin }) {
    const { dim: d, n_head: heads } = this.config;
    const size = d / heads;
    for (let i = 0; i < L; i++) {
      const start = i * 3 * d + part * d + head * size;
      let square = 0;
      for (let k = 0; k < size; k++) square += qkv[start + k] ** 2 / size;
      const factor = 1 / Math.sqrt(square + 2 ** -23);
      for (let k = 0; k < size / 2; k++) {
        const a = factor * qkv[start + k];
        const b = factor * qkv[start + k + size / 2];
        const angle = i * size / 2 + k;
        qkv[start + k] = a * cos[angle] - b * sin[angle];
        qkv[start + k + size / 2] = b * cos[angle] + a * sin[angle];
      }
    }
  }

  attention(name, x, L) {
    const { dim: d, n_head: heads } = this.config;
    const size = d / heads;
    const qkv = this.linear(`${name}.qkv`, x, L);
    const y = new Float32Array(L * d);
    const scores = new Float32Array(L);
    const angles = this.angles(L, size);
    for (let head = 0; head < heads; head++) {
      this.normaliseAndRotate(qkv, L, 0, head, angles);
      this.normaliseAndRotate(qkv, L, 1, head, angles);
      for (let i = 0; i < L; i++) {
        const q = i * 3 * d + head * size;
        for (let j = 0; j < L; j++) {
          const key = j * 3 * d + d + head * size;
          let sum = 0;
          for (let k = 0; k < size; k++) sum += qkv[q + k] * qkv[key + k];
          scores[j] = sum / Math.sqrt(size);
        }
        const p = softmax(scores);
        for (let j = 0; j < L; j++) {
          const value = j * 3 * d + 2 * d + head * size;
          for (let k = 0; k < size; k++) y[i * d + head * size + k] += p[j] * qkv[value + k];
        }
      }
    }
    return this.linear(`${name}.out`, y, L);
  }

  block(name, x, c, L, T) {
    const d = this.config.dim;
    const [shift1, scale1, gate1, shift2, scale2, gate2]
      = this.modulation(`${name}.modulation`, c, T);
    const norm = (n, input, shift, scale) => (
      modulatedNorm(input, this.weights[`${name}.norm${n}.weight`], shift, scale, L, d)
    );
    const add = (input, branch, gate) => input.map((v, i) => v + gate[i % gate.length] * branch[i]);
    let branch = this.attention(`${name}.attention`, norm(1, x, shift1, scale1), L);
    const middle = add(x, branch, gate1);
    branch = gelu(this.linear(`${name}.mlp.0`, norm(2, middle, shift2, scale2), L));
    branch = this.linear(`${name}.mlp.2`, branch, L);
    return add(middle, branch, gate2);
  }

  // tokens: L numbers; times: one or L; times and h in [0, 1] -> logits, L times V numbers.
  logits(tokens, times, h) {
    const [L, T] = [tokens.length, times.length];
    const c = this.condition(times, h);
    let x = this.embed(tokens);
    for (let i = 0; i < this.config.n_layer; i++) x = this.block(`blocks.${i}`, x, c, L, T);
    const [shift, scale] = this.modulation("output_layer.modulation", c, T);
    const weight = this.weights["output_layer.norm.weight"];
    x = modulatedNorm(x, weight, shift, scale, L, this.config.dim);
    return this.linear("output_layer.linear", x, L);
  }
}
