// A generated text, each token shaded by its probability. Text reaches the page by textContent only.

const BLUE = "47, 91, 215";

function element(kind, text, className) {
  const made = document.createElement(kind);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function row(cells, kind, className) {
  const made = element("tr", undefined, className);
  cells.forEach((cell) => made.append(element(kind, cell)));
  return made;
}

const small = (value) => (value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(1) : value.toFixed(3));

function build(data, text) {
  text.replaceChildren();
  if (data.cut) text.append(element("span", "… ", "before"));
  data.before.forEach((token) => {
    text.append(element("span", token, "before"));
    if (token.endsWith("↵")) text.append(element("br"));
  });
  data.tokens.forEach((token, step) => {
    const span = element("span", token, data.rank[step] > 1 ? "token unlikely" : "token");
    const p = data.p[step];
    // Never so blue that the text on it could not be read, in either theme.
    span.style.backgroundColor = `rgba(${BLUE}, ${(0.04 + 0.66 * p).toFixed(3)})`;
    span.dataset.step = step;
    span.tabIndex = -1;
    span.setAttribute("role", "button");
    span.setAttribute("aria-label", `step ${step + 1}, ${token}, probability ${small(p)}, rank ${data.rank[step]}`);
    text.append(span);
    if (token.endsWith("↵")) text.append(element("br"));
  });
}

function describe(data, about, step) {
  about.replaceChildren();
  const position = data.start + step;
  about.append(element("div", `Step ${step + 1}: “${data.tokens[step]}”, id ${data.ids[step]}, position ${position}`, "title"));
  const numbers = element("table");
  numbers.append(row(["", "model", "drawn from"], "th"));
  numbers.append(row(["Probability", small(data.p[step]), small(data.share[step])], "td"));
  const drawnLog = data.share[step] > 0 ? small(Math.log(data.share[step])) : "";
  numbers.append(row(["Log-probability (nats)", small(data.logp[step]), drawnLog], "td"));
  numbers.append(row(["Entropy (nats)", small(data.entropy[step]), small(data.shareEntropy[step])], "td"));
  numbers.append(row(["Rank, tokens to draw from", data.rank[step], data.kept[step]], "td"));
  about.append(numbers);
  const likely = element("table", undefined, "likely");
  likely.append(row(["Likeliest", "model", "drawn from"], "th"));
  const taken = data.rank[step] - 1;
  data.others[step].forEach(([token, p, share], index) => {
    const line = row([token, small(p), share > 0 ? small(share) : "left out"], "td", index === taken ? "taken" : "");
    line.firstChild.className = "name";
    line.firstChild.style.setProperty("--share", `${(100 * p).toFixed(1)}%`);
    likely.append(line);
  });
  about.append(likely);
}

// Only the strip scrolls: scrollIntoView would move the page too.
function reveal(strip, span) {
  const [outer, inner] = [strip.getBoundingClientRect(), span.getBoundingClientRect()];
  if (inner.top < outer.top || inner.bottom > outer.bottom) strip.scrollTop += inner.top - outer.top - outer.height / 2;
}

export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  const text = parentElement.querySelector(".text");
  const about = parentElement.querySelector(".about");
  if (text.dataset.id !== data.id) build(data, text);
  text.dataset.id = data.id;
  const spans = [...text.querySelectorAll(".token")];

  const stepOf = (event) => {
    const span = event.target.closest?.(".token");
    return span ? Number(span.dataset.step) : null;
  };
  const choose = (step) => {
    if (step !== null && step !== data.chosen) setTriggerValue("chosen", step);
  };
  text.onmouseover = (event) => {
    const step = stepOf(event);
    if (step !== null) describe(data, about, step);
  };
  text.onmouseleave = () => describe(data, about, data.chosen);
  text.onclick = (event) => choose(stepOf(event));
  text.onkeydown = (event) => {
    const step = stepOf(event);
    if (step === null) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      choose(step);
      return;
    }
    const moved = { ArrowLeft: step - 1, ArrowRight: step + 1, Home: 0, End: spans.length - 1 }[event.key];
    if (moved === undefined || !spans[moved]) return;
    event.preventDefault();
    // One token is in the tab order, the one that has the focus or had it last.
    spans.forEach((span, index) => (span.tabIndex = index === moved ? 0 : -1));
    spans[moved].focus();
  };
  spans.forEach((span, step) => {
    span.onfocus = () => describe(data, about, step);
    span.classList.toggle("chosen", step === data.chosen);
    span.setAttribute("aria-pressed", String(step === data.chosen));
    if (!text.contains(text.getRootNode().activeElement)) span.tabIndex = step === data.chosen ? 0 : -1;
  });
  describe(data, about, data.chosen);
  const ready = `${data.id}/${data.chosen}`;
  if (text.dataset.ready !== ready) reveal(text, spans[data.chosen]);
  text.dataset.ready = ready;
}
