"use strict";
// Everything from the trace is put on the page by textContent and setAttribute, never as HTML.
(() => {
const trace = JSON.parse(document.getElementById("data").textContent);
const stageNames = ["model", ...trace.chain.map(stage => stage.name)];
const $ = id => document.getElementById(id);
const [CANDIDATES, REMOVED, ENTROPY, RANK, PROB] = [0, 1, 2, 3, 4];

let choice = trace.choices[0] || {tokens: [], end: null, error: null};
let selected = 0;      // the token that was clicked, or reached by keys
let shown = -1;        // the one in the panel: that, or the one under the pointer
let detour = -1;       // which of the selected token's branches is followed

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") made.className = value;
    else if (name.startsWith("--")) made.style.setProperty(name, value);
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// What would be invisible, or would reorder what is around it: shown as its code. Line ends and tabs get a mark.
const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;
const escaped = char => char === "\n" ? "⏎" : char === "\t" ? "⇥" : "\\u" + char.charCodeAt(0).toString(16).padStart(4, "0");
const textOf = number => trace.texts[number][1];

function pieces(text, keepBreaks) {
  const parts = [];
  let from = 0;
  for (const match of text.matchAll(HIDDEN)) {
    parts.push(text.slice(from, match.index), element("span", {class: "mark"}, escaped(match[0])));
    if (keepBreaks && match[0] === "\n") parts.push("\n");
    from = match.index + match[0].length;
  }
  parts.push(text.slice(from));
  return parts.filter(part => part !== "");
}
const spaces = text => [...text].map(() => element("span", {class: "mark"}, "␣"));
function name(number) {           // a token's text, where its spaces must be seen
  const text = textOf(number);
  return element("span", {class: "name", title: "token id " + trace.texts[number][0]},
    ...(text === "" ? ["(empty)"] : [...spaces(text.match(/^ */)[0]), ...pieces(text.replace(/^ +| +$/g, "")), ...spaces(/^ +$/.test(text) ? "" : text.match(/ *$/)[0])]));
}
const visible = text => text.replace(HIDDEN, escaped);
const plain = number => visible(textOf(number));
// What a token shows: where characters are spread over several, the last shows the whole, those before it a mark.
const shownBy = token => token.s ?? textOf(token.t);
const spanOf = (text, attributes) =>
  element("span", {...attributes, class: attributes.class + (text === "" ? " part" : "")}, ...pieces(text, true));

function hundredths(prob) {       // a probability in per cent, with about three digits
  const value = 100 * prob;
  if (value === 0 || prob === 1) return String(value);
  if (value >= 99.95) return ">99.9";
  if (value < 0.001) return value.toExponential(0).replace(/e-(\d+)/, (_, digits) =>
    "·10⁻" + [...digits].map(digit => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]).join(""));
  return value.toFixed(value >= 9.95 ? 1 : value >= 0.095 ? 2 : 3);
}
const percent = prob => hundredths(prob) + " %";
const count = number => number.toLocaleString("en-US");
const last = token => token.d[token.d.length - 1];

// How strongly a token is tinted, from 0 to 1.
const TINTS = {
  surprise: {low: "expected", high: "surprising", heat: token => Math.min(1, -Math.log(Math.max(token.d[0][PROB], 1e-9)) / 7)},
  open: {low: "sure", high: "open", heat: token => Math.min(1, last(token)[ENTROPY] / 4)},
  removed: {low: "none", high: "all", heat: token => 1 - token.d.slice(1).reduce((left, point) => left * (1 - point[REMOVED]), 1)},
  boost: {low: "as the model", high: "10 times", heat: token =>
    Math.min(1, Math.max(0, Math.log10(last(token)[PROB] / Math.max(token.d[0][PROB], 1e-12))))},
};

function tint() {
  const {low, high, heat} = TINTS[$("tint").value];
  $("low").textContent = low;
  $("high").textContent = high;
  choice.tokens.forEach((token, index) => spans[index].style.setProperty("--heat", (75 * heat(token)).toFixed(0) + "%"));
}

// ---- the text

let spans = [];

function drawText() {
  $("prompt").replaceChildren(...pieces(trace.prompt, true));
  spans = choice.tokens.map((token, index) => spanOf(shownBy(token), {
    class: "token", role: "option", id: "token-" + index, tabindex: "-1", "aria-selected": "false",
    "aria-label": `token ${index + 1}, ${plain(token.t)}, ${percent(last(token)[PROB])}`,
  }));
  $("tokens").replaceChildren(...spans);
  tint();
  drawCurve();
}

function indexOf(target) {
  const span = target.closest ? target.closest(".token") : null;
  return span ? spans.indexOf(span) : -1;
}

function select(index, {focus = false, keepDetour = false} = {}) {
  if (!choice.tokens.length) return;
  index = Math.max(0, Math.min(choice.tokens.length - 1, index));
  if (!keepDetour) leaveDetour();
  spans[selected]?.setAttribute("aria-selected", "false");
  spans[selected]?.setAttribute("tabindex", "-1");
  selected = index;
  spans[index].setAttribute("aria-selected", "true");
  spans[index].setAttribute("tabindex", "0");
  if (focus) spans[index].focus({preventScroll: true});
  if (focus) spans[index].scrollIntoView({block: "nearest"});
  show(index);
}

function vertically(direction) {  // the token above or below
  const here = spans[selected].getClientRects()[0];
  const middle = (here.left + here.right) / 2;
  let best = selected, least = Infinity, line = null;
  for (let index = selected + direction; index >= 0 && index < spans.length; index += direction) {
    const rectangle = spans[index].getClientRects()[0];
    if (!rectangle || Math.abs(rectangle.top - here.top) < 4) continue;
    if (line === null) line = rectangle.top;
    if (Math.abs(rectangle.top - line) >= 4) break;
    const distance = Math.abs((rectangle.left + rectangle.right) / 2 - middle);
    if (distance < least) [best, least] = [index, distance];
  }
  return best;
}

const KEYS = {
  ArrowRight: () => selected + 1, ArrowLeft: () => selected - 1, ArrowDown: () => vertically(1), ArrowUp: () => vertically(-1),
  Home: () => 0, End: () => choice.tokens.length - 1,
};

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || !choice.tokens.length) return;
  if (event.target.closest("select, input")) return;
  const inText = event.target.closest("#tokens") || event.target === document.body;
  if (event.key === "Escape" && detour >= 0) leaveDetour({focus: true});
  else if (/^[1-9]$/.test(event.key)) {
    if (+event.key > choice.tokens[selected].b.length) return;
    follow(+event.key - 1);
  } else if (inText && event.key in KEYS) select(KEYS[event.key](), {focus: true});
  else if (inText && event.target !== document.body && (event.key === "Enter" || event.key === " ")) $("panel").focus();
  else return;
  event.preventDefault();
});

$("tokens").addEventListener("click", event => {
  const index = indexOf(event.target);
  if (index >= 0) select(index, {focus: true});
});
$("tokens").addEventListener("focusin", event => {
  const index = indexOf(event.target);
  if (index >= 0 && index !== selected) select(index);
});
$("tokens").addEventListener("pointerover", event => {
  const index = indexOf(event.target);
  if (index >= 0 && detour < 0 && event.pointerType !== "touch") show(index);
});
$("tokens").addEventListener("pointerleave", () => { if (detour < 0) show(selected); });

// ---- the curve

function drawCurve() {
  const most = Math.max(1, ...choice.tokens.map(token => token.d[0][ENTROPY]));
  const SVG = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${Math.max(1, choice.tokens.length)} 1`);
  svg.setAttribute("preserveAspectRatio", "none");
  const area = point => choice.tokens.map((token, index) =>
    `M${index + .08} 1V${(1 - Math.min(1, Math.max(0.01, point(token)[ENTROPY] / most))).toFixed(4)}h.84V1z`).join("");
  for (const [kind, path] of [["before", area(token => token.d[0])], ["after", area(last)], ["here", ""]]) {
    const drawn = document.createElementNS(SVG, "path");
    drawn.setAttribute("class", kind);
    drawn.setAttribute("d", path);
    svg.append(drawn);
  }
  $("curve").replaceChildren(svg);
}
function atPointer(event) {
  const box = $("curve").firstChild.getBoundingClientRect();
  return Math.floor((event.clientX - box.left) / box.width * choice.tokens.length);
}
$("curve").addEventListener("pointermove", event => {
  const index = atPointer(event);
  if (detour < 0 && choice.tokens[index]) show(index);
});
$("curve").addEventListener("pointerleave", () => { if (detour < 0) show(selected); });
$("curve").addEventListener("click", event => select(atPointer(event), {focus: true}));

// ---- the panel

function show(index) {
  const token = choice.tokens[index];
  if (!token || index === shown) return;
  shown = index;
  document.querySelector("#curve .here").setAttribute("d", `M${index} 0h1V1h-1z`);
  $("panel").replaceChildren(
    element("div", {class: "top"},
      element("h2", {}, name(token.t)),
      element("small", {}, `token ${count(index + 1)} of ${count(choice.tokens.length)}`),
      element("span", {class: "steps"},
        element("button", {type: "button", "aria-label": "Previous token", onclick: () => select(selected - 1)}, "‹"), " ",
        element("button", {type: "button", "aria-label": "Next token", onclick: () => select(selected + 1)}, "›"))),
    story(token),
    element("h3", {}, "Through the chain ", element("small", {}, "probabilities in %, entropy in nats")),
    element("div", {class: "wide"}, stageTable(token)),
    element("h3", {}, "Candidates ", element("small", {}, "and their probability in % after each stage")),
    element("div", {class: "wide"}, candidateTable(token)),
    ...branchList(token, index));
}

function story(token) {
  const [model, end] = [token.d[0], last(token)];
  const cut = token.d.slice(1).filter(point => point[CANDIDATES] < model[CANDIDATES]).length;
  const before = `The model gave it ${percent(model[PROB])} (rank ${count(model[RANK])} of ${count(model[CANDIDATES])})`;
  if (token.d.length === 1) return element("p", {}, before + ", and it was drawn from that.");
  const left = cut ? ` The chain left ${count(end[CANDIDATES])} ${end[CANDIDATES] === 1 ? "candidate" : "candidates"}` : " The chain left all candidates";
  return element("p", {}, `${before}; after the chain it had ${percent(end[PROB])} (rank ${count(end[RANK])}).${left}.`);
}

function stageTable(token) {
  const rows = token.d.map((point, stage) => element("tr", {},
    element("th", {scope: "row", title: stageNames[stage]}, stageNames[stage]),
    element("td", {}, count(point[CANDIDATES])),
    element("td", {class: point[REMOVED] ? "cut" : ""}, point[REMOVED] ? "− " + hundredths(point[REMOVED]) : stage ? "0" : ""),
    element("td", {}, point[ENTROPY].toFixed(2), element("small", {title: "as uncertain as so many equal candidates"},
      " ≈ " + count(+Math.exp(point[ENTROPY]).toPrecision(2)))),
    element("td", {}, count(point[RANK])),
    element("td", {}, hundredths(point[PROB]))));
  return element("table", {class: "stages"},
    element("thead", {}, element("tr", {}, ...["after", "left", "removed", "entropy", "rank", "prob."].map(title =>
      element("th", {scope: "col"}, title)))),
    element("tbody", {}, ...rows));
}

function candidateTable(token) {
  const most = Math.max(...token.c.flatMap(([, probs]) => probs.map(prob => prob || 0)));
  const rows = token.c.map(([number, probs]) => {
    const cells = probs.map((prob, stage) => prob === null
      ? element("td", {class: "gone"}, probs[stage - 1] === null ? "" : element("span", {class: "cut", title: "removed by " + stageNames[stage]}, "✕"))
      : element("td", {"--share": (100 * prob / most).toFixed(1) + "%"}, hundredths(prob)));
    return element("tr", number === token.t ? {class: "drawn"} : {}, element("th", {scope: "row"}, name(number)), ...cells);
  });
  return element("table", {class: "candidates", "--columns": stageNames.length},
    element("thead", {}, element("tr", {}, element("th", {scope: "col"}, "token"), ...stageNames.map(stage => element("th", {scope: "col", title: stage}, stage)))),
    element("tbody", {}, ...rows));
}

// ---- branches

function branchList(token, index) {
  if (!token.b.length) return [];
  const fate = number => {
    const probs = token.c.find(([other]) => other === number)?.[1];
    if (!probs) return "";
    const cut = probs.indexOf(null);
    return cut < 0 ? percent(probs[probs.length - 1]) : "cut by " + stageNames[cut];
  };
  const items = token.b.map(([number, , shown], branch) => element("li", {}, element("button", {
    type: "button", "data-branch": branch, "aria-pressed": String(index === selected && branch === detour),
    onclick: () => { if (index !== selected) select(index); follow(branch === detour ? -1 : branch); },
  }, element("kbd", {}, String(branch + 1)),
    element("span", {class: "rest"}, element("b", {}, visible(shown[0])), visible(shown.slice(1).join(""))),
    element("small", {}, fate(number)))));
  return [element("h3", {}, "What if? ", element("small", {}, "another token, then the most probable ones")),
    element("ul", {class: "branches"}, ...items)];
}

function follow(branch) {
  leaveDetour();
  if (branch < 0) return;
  detour = branch;
  const token = choice.tokens[selected];
  const [number, rest, shown] = token.b[branch];
  const way = [spanOf(shown[0], {class: "detour first"}),
    ...rest.map(([, prob], step) => spanOf(shown[step + 1], {class: "detour", title: percent(prob) + " by the model"}))];
  spans[selected].before(...way);
  spans[selected].classList.add("swapped");
  spans.slice(selected + 1).forEach(span => span.classList.add("left-behind"));
  $("detour").replaceChildren(element("span", {}, "If ", name(number), " had come instead of ", name(token.t), ` at token ${count(selected + 1)}`),
    element("button", {type: "button", onclick: () => leaveDetour({focus: true})}, "Back to the text"));
  $("detour").hidden = false;
  pressed();
  way[0].scrollIntoView({block: "nearest"});
}

function leaveDetour({focus = false} = {}) {
  if (detour < 0) return;
  detour = -1;
  document.querySelectorAll("#tokens .detour").forEach(span => span.remove());
  spans.forEach(span => span.classList.remove("swapped", "left-behind"));
  $("detour").hidden = true;
  pressed();
  if (focus) spans[selected].focus();
}

function pressed() {
  document.querySelectorAll("[data-branch]").forEach(button =>
    button.setAttribute("aria-pressed", String(+button.dataset.branch === detour)));
}

// ---- the whole

function open(number) {
  choice = trace.choices[number];
  [selected, shown, detour] = [0, -1, -1];
  $("detour").hidden = true;
  [...$("choices").children].forEach((button, index) => button.setAttribute("aria-pressed", String(index === number)));
  drawText();
  about();
  select(0);
}

function about() {
  const {model, dtype, seed, nvg} = trace.about;
  const end = choice.error !== null ? "" : choice.end === null ? "cut off" : `ended by ${choice.end}`;
  $("about").replaceChildren([`${model}, ${dtype}`, `seed ${seed}`, `${count(choice.tokens.length)} tokens`, end, `nvg ${nvg}`]
    .filter(part => part).join(" · "), ...(choice.error === null ? [] : [" · ", element("span", {class: "error"}, choice.error)]));
}

$("chain").replaceChildren(element("li", {}, "model"), ...trace.chain.map(stage =>
  element("li", {title: stage.origin}, stage.name, ...(stage.options ? [element("small", {}, stage.options)] : []))), element("li", {}, "draw"));
$("tint").addEventListener("change", tint);
if (!trace.choices.some(one => one.tokens.some(token => token.b.length))) $("digits").remove();
if (trace.choices.length > 1) {
  $("choices").hidden = false;
  $("choices").append(...trace.choices.map((one, number) =>
    element("button", {type: "button", onclick: () => open(number)}, `choice ${one.choice + 1}`)));
}
const first = trace.choices.findIndex(one => one.tokens.length);
if (first >= 0) open(first);
else {
  $("prompt").replaceChildren(...pieces(trace.prompt, true));
  about();
  $("panel").append(element("p", {}, "No token was drawn."));
}
})();
