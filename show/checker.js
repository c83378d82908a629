// data/stories.py's checker in JavaScript: the mistakes of a story. The names are the same.
//
// The grammar is data (page.py): values and classes of words, and for each plot its scenes, whose
// templates are parts: a word, or a slot [form, role, owner].

"use strict";

class Checker {
  constructor(grammar) {
    Object.assign(this, grammar); // values, kinds, classes, pronouns, articles, boys, plots
    this.scenes = this.plots.map((plot) => plot.map(([name, templates]) => (
      { name, templates: new Map(templates.map((parts) => [this.skeleton(parts), parts])) }
    )));
    this.names = new Map(); // skeleton -> names of the scenes that have such a sentence
    for (const { name, templates } of this.scenes.flat()) {
      for (const key of templates.keys()) {
        this.names.set(key, (this.names.get(key) || new Set()).add(name));
      }
    }
  }

  // A sentence, or a template, with classes in place of slots.
  skeleton(parts) {
    const forms = parts.map((part) => (Array.isArray(part) ? part[0] : part));
    return forms.map((form) => this.classes[form] || form).join(" ");
  }

  // words -> the mistakes {kind, position, words, message}: of the plot that has most of the
  // sentences in their order, and then the fewest mistakes.
  check(words) {
    const sentences = this.splitSentences(words);
    const names = sentences.map(({ key }) => this.names.get(key) || new Set());
    const aligned = this.scenes.map((scenes) => [scenes, align(names, scenes)]);
    const most = Math.max(...aligned.map(([, pairs]) => pairs.length));
    return aligned.filter(([, pairs]) => pairs.length === most)
      .map(([scenes, pairs]) => this.read(sentences, scenes, pairs))
      .reduce((best, mistakes) => (mistakes.length < best.length ? mistakes : best));
  }

  splitSentences(words) {
    const sentences = [];
    let start = 0;
    words.forEach((word, i) => {
      if (word !== "." && i < words.length - 1) return;
      const own = words.slice(start, i + 1);
      sentences.push({ start, words: own, key: this.skeleton(own) });
      start = i + 1;
    });
    return sentences;
  }

  // A role has the value of its own that most of the aligned sentences say, the first of equals.
  read(sentences, scenes, pairs) {
    const slots = pairs.flatMap(([i, j]) => {
      const { start, words, key } = sentences[i];
      const parts = scenes[j].templates.get(key);
      return words.map((word, k) => ({ position: start + k, word, part: parts[k] }));
    }).filter(({ part }) => Array.isArray(part));
    const cast = {};
    for (const [role, values] of Object.entries(this.values)) {
      const said = slots.filter(({ word, part }) => part[1] === role && values.includes(word));
      const count = (word) => said.filter((slot) => slot.word === word).length;
      const best = said.reduce((a, b) => (a && count(a.word) >= count(b.word) ? a : b), null);
      if (best) cast[role] = best.word;
    }
    const matched = new Set(pairs.map(([i]) => i));
    return [...this.slotMistakes(slots, cast),
      ...this.sentenceMistakes(sentences, matched, scenes.length)]
      .sort((a, b) => a.position - b.position);
  }

  // The word of a slot, from the cast.
  fill([form, role], cast) {
    const value = cast[role];
    if (this.pronouns[form]) return this.pronouns[form][Number(this.boys.includes(value))];
    if (this.articles[form]) return this.articles[form][Number("aeiou".includes(value[0]))];
    return value;
  }

  slotMistakes(slots, cast) {
    const people = this.kinds.name.map((role) => cast[role]);
    return slots.flatMap(({ position, word, part }) => {
      const [form, role, owner] = part;
      if (!cast[role]) { // no sentence says a value of the role's own
        if (!this.kinds[form]) return [];
        const message = `${word} should be one of ${this.values[role].join(", ")} (${form})`;
        return [{ kind: form, position, words: 1, message }];
      }
      const right = this.fill(part, cast);
      if (word === right) return [];
      const kind = owner && people.includes(word) ? "possession" : this.pronouns[form] ? "pronoun"
        : this.articles[form] ? "article" : form;
      return [{ kind, position, words: 1, message: `${word} should be ${right} (${kind})` }];
    });
  }

  sentenceMistakes(sentences, matched, length) {
    const mistakes = sentences.filter((_, i) => !matched.has(i)).map(({ start, words, key }) => (
      { kind: this.names.has(key) ? "event" : "sentence", position: start, words: words.length,
        message: this.names.has(key)
          ? "this does not belong here" : "no right text has this sentence" }
    ));
    const end = sentences.reduce((sum, { words }) => sum + words.length, 0);
    for (let i = sentences.length; i < length; i++) {
      mistakes.push(
        { kind: "sentence", position: end, words: 0, message: "the text is not complete" }
      );
    }
    return mistakes;
  }
}

// [[i, j], ...]: as many pairs of sentence i and scene j as possible, both in order.
function align(names, scenes) {
  const best = Array.from({ length: names.length + 1 }, () => (
    Array.from({ length: scenes.length + 1 }, () => [])
  ));
  for (let i = names.length - 1; i >= 0; i--) {
    for (let j = scenes.length - 1; j >= 0; j--) {
      // the first of equals: a sentence that cannot be read takes the place of one
      const rests = [best[i + 1][j + 1], best[i + 1][j], best[i][j + 1]];
      best[i][j] = names[i].has(scenes[j].name) ? [[i, j], ...best[i + 1][j + 1]]
        : rests.reduce((a, b) => (a.length >= b.length ? a : b));
    }
  }
  return best[0][0];
}
