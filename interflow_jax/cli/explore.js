"use strict";
// Names and classes reach the page as text alone: nothing here parses HTML.
const at = (id) => document.getElementById(id);
const data = JSON.parse(at("data").textContent);
const decode = (text, Kind) => new Kind(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
const labels = decode(data.labels, Uint16Array); // [images]
const said = decode(data.said, Uint16Array); // [images, depths]
const sure = decode(data.confidence, Float32Array); // [images, depths]
const depths = data.depths.length, last = depths - 1, images = labels.length, classes = data.classes.length;
const MOST_CELLS = 20; // classes for which the confusion has room; of more, the largest cells

function make(tag, text = "", className = "", children = []) {
  const element = document.createElement(tag);
  element.textContent = text;
  element.className = className;
  element.append(...children);
  return element;
}
const row = (cells, tag = "td") => make("tr", "", "", cells.map((cell, number) => {
  const element = cell instanceof Node ? cell : make(number ? tag : "th", cell);
  if (element.tagName === "TH") element.scope = number ? "col" : "row";
  return element;
}));
const head = (cells) => make("thead", "", "", [row(cells, "th")]);
const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;

// An image leaves where its confidence is above the threshold, as float32, or at the last depth.
function exitOf(image, thresholds) {
  for (let depth = 0; depth < last; depth++)
    if (sure[image * depths + depth] > thresholds[depth]) return depth;
  return last;
}

function measure(thresholds) {
  const left = new Array(depths).fill(0), right = new Array(depths).fill(0);
  const cells = new Map(); // by true class * classes + predicted class
  for (let image = 0; image < images; image++) {
    const depth = exitOf(image, thresholds), answer = said[image * depths + depth];
    left[depth]++;
    right[depth] += answer === labels[image];
    const cell = labels[image] * classes + answer;
    cells.set(cell, (cells.get(cell) || 0) + 1);
  }
  const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
  const operations = sum(left.map((number, depth) => number * data.operations[depth])) / images;
  return { left, right, cells, operations, accuracy: (100 * sum(right)) / images };
}

function showFigures({ left, right, operations, accuracy }) {
  const ahead = accuracy - data.whole_accuracy;
  at("figures").replaceChildren(
    make("b", `${accuracy.toFixed(2)} %`), ` right (${ahead < 0 ? "" : "+"}${ahead.toFixed(2)} points to the whole), `,
    make("b", percent(operations / data.whole, 1)), ` of the operations (${(operations / 1e6).toFixed(2)} M)`);
  at("exits").replaceChildren(head(["", "leave here", "of them right", "operations up to here"]),
    make("tbody", "", "", data.depths.map((name, depth) => row([
      `after ${name}`, percent(left[depth] / images, 1),
      left[depth] ? percent(right[depth] / left[depth], 1) : "–", percent(data.operations[depth] / data.whole)]))));
}

function showConfusion({ cells }) {
  at("confusion").className = classes > MOST_CELLS ? "" : "square";
  const totals = new Array(classes).fill(0);
  for (const [cell, number] of cells) totals[Math.floor(cell / classes)] += number;
  if (classes > MOST_CELLS) {
    const wrong = [...cells].filter(([cell]) => Math.floor(cell / classes) !== cell % classes);
    wrong.sort((a, b) => b[1] - a[1]);
    at("confusion").replaceChildren(head(["true", "said", "images", "of the true class"]),
      make("tbody", "", "", wrong.slice(0, MOST_CELLS).map(([cell, number]) => {
        const label = Math.floor(cell / classes);
        return row([data.classes[label], data.classes[cell % classes], number, percent(number / totals[label])]);
      })));
    return;
  }
  at("confusion").replaceChildren(head(["true \\ said", ...data.classes]),
    make("tbody", "", "", data.classes.map((name, label) => row([name, ...data.classes.map((_, answer) => {
      const number = cells.get(label * classes + answer) || 0, share = number / (totals[label] || 1);
      const cell = make("td", number || "·");
      cell.style.background = `color-mix(in srgb, ${label === answer ? "var(--right)" : "var(--wrong)"} ${60 * share}%, transparent)`;
      return cell;
    })]))));
}

const cards = data.pictures.map((picture) => {
  const { index, image, name, weights } = picture, label = labels[index];
  const answers = data.depths.map((_, depth) => said[index * depths + depth]);
  const first = answers.indexOf(label), img = make("img"), verdict = make("p");
  img.src = image;
  img.alt = "";
  const rows = data.depths.map((depth, number) => {
    const right = answers[number] === label, level = sure[index * depths + number];
    const bar = make("span", percent(level), "bar");
    bar.style.setProperty("--share", percent(level).replace(" ", ""));
    const words = make("td", `${right ? "✓" : "✗"} ${data.classes[answers[number]]}`, `words ${right ? "right" : "wrong"}`);
    const cells = [`after ${depth}`, words, make("td", "", "", [bar])];
    return row(weights ? [...cells, weights[number].toFixed(3)] : cells);
  });
  const columns = ["depth", make("th", "says", "words"), "sure", ...(weights ? ["weight"] : [])];
  const depth = first < 0 ? "right at no depth" : `first right after ${data.depths[first]}`;
  const about = make("div", "", "", [make("h3", data.classes[label]), make("p", name, "name"), make("p", depth), verdict]);
  const card = make("article", "", "card", [img, about, make("table", "", "", [head(columns), make("tbody", "", "", rows)])]);
  at("pictures").append(card);
  return { index, card, rows, verdict, answers, label, never: first < 0 };
});

function showPictures(thresholds) {
  const show = at("show").value;
  let shown = 0;
  for (const { index, card, rows, verdict, answers, label, never } of cards) {
    const exit = exitOf(index, thresholds), right = answers[exit] === label;
    rows.forEach((element, depth) => { element.className = depth === exit ? "exit" : depth > exit ? "deeper" : ""; });
    verdict.textContent = `leaves after ${data.depths[exit]}: ${right ? "right" : `wrong, ${data.classes[answers[exit]]}`}`;
    verdict.className = right ? "right" : "wrong";
    const kept = { all: true, wrong: !right, early: right && exit < last, never }[show];
    card.hidden = !kept;
    shown += kept;
  }
  at("shown").textContent = `${shown} of ${cards.length}`;
}

const same = { name: "one confidence for every depth" };
const plans = [same, ...data.plans];
// explore.html#0.9 sets the slider; #0.9,0.8,0.7, a threshold per depth, as exits.json has them,
// which the slider's step would round.
const given = location.hash.slice(1).split(",").map(Number);
if (location.hash && given.every(Number.isFinite))
  if (given.length === last) plans.push({ name: "as the address says", thresholds: given });
  else if (given.length === 1) at("slider").value = given[0];
at("plan").append(...plans.map(({ name }) => make("option", name)));
if (plans.at(-1).name === "as the address says") at("plan").selectedIndex = plans.length - 1;

function update() {
  const plan = plans[at("plan").selectedIndex], level = Number(at("slider").value);
  at("level").textContent = plan === same ? level.toFixed(2) : plan.thresholds.map((each) => each.toFixed(2)).join(", ");
  const thresholds = Float32Array.from(plan === same ? new Array(last).fill(level) : plan.thresholds);
  const figures = measure(thresholds);
  showFigures(figures);
  showConfusion(figures);
  showPictures(thresholds);
}
document.title = data.title;
at("title").textContent = data.title;
at("notes").append(...data.notes.map((note) => make("p", note, "note")));
at("slider").addEventListener("input", () => { at("plan").selectedIndex = 0; update(); });
at("plan").addEventListener("change", update);
at("show").addEventListener("change", update);
addEventListener("hashchange", () => location.reload());
at("controls").hidden = depths === 1;
update();
