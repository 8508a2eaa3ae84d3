// The trace viewer of the report: an arm's examples, each token shaded by its log-probability before and after training.
// Reads the JSON of oxa/viewer.py from #traces and fills viewer.html. Text goes into the page as textContent alone, so
// that nothing which a model wrote can become markup.
(() => {
  "use strict";

  const block = document.getElementById("traces");
  if (!block || !document.getElementById("trace")) return;
  const data = JSON.parse(block.textContent);
  const at = (name) => document.getElementById(`trace-${name}`);

  // Lower ends of the shades: of -ln p where less likely is darker, and of |change|; both in 1/100 nat.
  const SURPRISE = [11, 69, 161, 300, 461]; // p 90 %, 50 %, 20 %, 5 %, 1 %
  const SURPRISE_NAMES = ["> 90 %", "> 50 %", "> 20 %", "> 5 %", "> 1 %", "≤ 1 %"];
  const CHANGE = [10, 50, 100, 200];
  const ORIGINS = { teacher: "Teacher's solution", self: "The student's own answer" };
  const ROLES = { ce: "CE example", ul: "UL example", "": "same problem" };

  const state = { shown: [], chosen: null, mode: "change" };
  const parts = new WeakMap(); // what a text box shows: {response, after}

  // Small pieces

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  const level = (value, ends) => ends.filter((end) => value >= end).length;
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const number = (value) => value.toLocaleString("en-US", { maximumFractionDigits: 3 });

  const ppl = (value) => (value === null ? "–" : value < 1000 ? value.toPrecision(4) : number(value));

  function signed(hundredths) {
    const text = (Math.abs(hundredths) / 100).toFixed(2);
    return text === "0.00" ? "0.00" : (hundredths < 0 ? "−" : "+") + text;
  }

  function percent(hundredths) {
    if (hundredths <= 0) return "over 99.5 %";
    const value = 100 * Math.exp(-hundredths / 100);
    if (value >= 99) return `${value.toFixed(1)} %`;
    return value < 0.001 ? "under 0.001 %" : `${Number(value.toPrecision(2))} %`;
  }

  function meanChange(part) {
    const { before } = data.responses[part.response];
    return (sum(before) - sum(part.after)) / before.length;
  }

  function words(example) {
    if (example.words === undefined) {
      const response = data.responses[example.response];
      const answer = response.tokens.map((index) => data.tokens[index]).join("");
      example.words = `${data.problems[response.problem].question}\n${answer}`.toLowerCase();
    }
    return example.words;
  }

  // The filters

  const arm = () => data.arms[Number(at("arm").value)];
  const objective = () => document.querySelector("input[name=trace-set]:checked").value;
  const examplesOfSet = () => arm().examples.filter((example) => example.objective === objective());

  function within(value, name) {
    const [low, high] = ["low", "high"].map((end) => at(`${name}-${end}`).value);
    if (low === "" && high === "") return true;
    return value !== null && (low === "" || value >= Number(low)) && (high === "" || value <= Number(high));
  }

  function hasVerdict(example) {
    const [where, verdict] = at("verdict").value.split(":");
    const meant = { any: [], example: [example], beside: example.beside }[where];
    return where === "any" || meant.some((part) => data.responses[part.response].verdict === verdict);
  }

  function passes(example) {
    const response = data.responses[example.response];
    return (
      within(response.ppl, "ppl") &&
      within(response.num_tokens, "length") &&
      hasVerdict(example) &&
      words(example).includes(at("text").value.toLowerCase())
    );
  }

  function offerFilters() {
    const examples = examplesOfSet();
    const responses = examples.map((example) => data.responses[example.response]);
    const ranges = { ppl: responses.map((r) => r.ppl).filter((ppl) => ppl !== null) };
    ranges.length = responses.map((r) => r.num_tokens);
    for (const [name, values] of Object.entries(ranges)) {
      at(`${name}-low`).placeholder = values.length ? number(Math.min(...values)) : "";
      at(`${name}-high`).placeholder = values.length ? number(Math.max(...values)) : "";
    }
    const select = at("verdict");
    const before = select.value;
    select.replaceChildren(new Option("any", "any"));
    for (const [where, label] of [["example", "Of the example"], ["beside", "Of an answer beside it"]]) {
      const meant = examples.flatMap((example) => (where === "example" ? [example] : example.beside));
      const verdicts = [...new Set(meant.map((part) => data.responses[part.response].verdict))].sort();
      const group = make("optgroup");
      group.label = label;
      group.append(...verdicts.map((verdict) => new Option(verdict, `${where}:${verdict}`)));
      if (verdicts.length) select.append(group);
    }
    select.value = before;
    if (select.selectedIndex < 0) select.value = "any";
  }

  // The list

  function list() {
    const examples = examplesOfSet();
    state.shown = examples.filter(passes);
    const set = objective().toUpperCase();
    let sentence = `${state.shown.length} of ${examples.length} ${set} examples of ${arm().name}, by ppl`;
    if (!examples.length) sentence = `${arm().name} has no ${set} examples: choose another arm or set.`;
    else if (!state.shown.length) sentence = `${sentence}. None passes these filters: widen or clear them.`;
    at("count").textContent = sentence;
    at("body").hidden = !state.shown.length;
    at("list").replaceChildren(...state.shown.map(option));
    if (state.shown.length) choose(Math.max(0, state.shown.indexOf(state.chosen)));
  }

  function option(example, index) {
    const response = data.responses[example.response];
    const item = make("li", "trace-option");
    item.id = `trace-option-${index}`;
    item.setAttribute("role", "option");
    item.append(make("span", "trace-option-question", data.problems[response.problem].question));
    const facts = make("span", "trace-option-facts");
    facts.append(
      make("span", "", `ppl ${ppl(response.ppl)}`),
      make("span", "", `${number(response.num_tokens)} tokens`),
      changed(example),
    );
    item.append(facts);
    return item;
  }

  function changed(part) {
    const mean = meanChange(part);
    return make("span", `trace-change ${shade(-mean, "change")}`, signed(mean));
  }

  function choose(index) {
    state.chosen = state.shown[index];
    const box = at("list");
    for (const item of box.children) item.setAttribute("aria-selected", "false");
    const item = box.children[index];
    item.setAttribute("aria-selected", "true");
    box.setAttribute("aria-activedescendant", item.id);
    const end = item.offsetTop + item.offsetHeight; // the box scrolls, the page must not
    if (item.offsetTop < box.scrollTop) box.scrollTop = item.offsetTop;
    else if (end > box.scrollTop + box.clientHeight) box.scrollTop = end - box.clientHeight;
    read(state.chosen);
  }

  function step(event) {
    const index = state.shown.indexOf(state.chosen);
    const last = state.shown.length - 1;
    const to = { ArrowDown: index + 1, ArrowUp: index - 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(Math.min(Math.max(to, 0), last));
  }

  // The reader

  function read(example) {
    hideTip();
    const problem = data.problems[data.responses[example.response].problem];
    at("question").textContent = problem.question;
    at("gold").textContent = problem.answers.join("  or  ");
    const beside = make("div", "trace-beside");
    beside.append(...example.beside.map((part) => card(part, "")));
    at("columns").replaceChildren(card(example, example.objective), ...(example.beside.length ? [beside] : []));
    recolor();
  }

  function card(part, role) {
    const response = data.responses[part.response];
    const article = make("article", role ? "trace-card trace-main" : "trace-card");
    const title = make("h4", "trace-title", `${ORIGINS[response.origin]} `);
    const verdict = make("span", "trace-verdict", response.verdict);
    verdict.classList.toggle("trace-right", response.verdict === "correct");
    title.append(make("span", "trace-role", ROLES[role]), verdict);
    const facts = make("dl", "trace-facts");
    const mean = (values) => signed(-sum(values) / values.length);
    for (const [name, value] of [
      ["ppl", response.ppl === null ? "not scored" : ppl(response.ppl)],
      ["tokens", number(response.num_tokens)],
      ["mean ln p", `${mean(response.before)} → ${mean(part.after)}`],
    ]) {
      const fact = make("div");
      fact.append(make("dt", "", name), make("dd", "", value));
      facts.append(fact);
    }
    facts.lastElementChild.lastElementChild.append(changed(part));
    article.append(title, facts, text(part, response));
    if (response.cut) {
      const shown = number(response.tokens.length);
      article.append(make("p", "trace-hint", `Cut: the first ${shown} of ${number(response.num_tokens)} tokens.`));
    }
    return article;
  }

  function text(part, response) {
    const box = make("div", "trace-text");
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", `${ORIGINS[response.origin]}, token by token`);
    parts.set(box, part);
    response.tokens.forEach((token, index) => {
      const span = make("span", "trace-token", data.tokens[token]);
      span.tabIndex = index ? -1 : 0;
      box.append(span);
    });
    return box;
  }

  function shade(value, mode) {
    if (mode !== "change") return `trace-nats-${level(value, SURPRISE)}`;
    return `trace-${value > 0 ? "down" : "up"}-${level(Math.abs(value), CHANGE)}`; // a lower -ln p is a promoted token
  }

  function recolor() {
    for (const box of at("columns").querySelectorAll(".trace-text")) {
      const { after, response } = parts.get(box);
      const { before } = data.responses[response];
      [...box.children].forEach((span, i) => {
        const values = { before: before[i], after: after[i], change: after[i] - before[i] };
        span.className = `trace-token ${shade(values[state.mode], state.mode)}`;
      });
    }
    legend();
  }

  function legend() {
    const scale = make("span", "trace-scale");
    const ends = CHANGE.map((end) => end / 100);
    if (state.mode === "change") {
      scale.append(...ends.map((end, i) => make("span", `trace-down-${i + 1}`, `−${end}`)).reverse());
      scale.append(make("span", "trace-up-0", "0"));
      scale.append(...ends.map((end, i) => make("span", `trace-up-${i + 1}`, `+${end}`)));
      at("legend").replaceChildren("suppressed", scale, "promoted, nats");
    } else {
      scale.append(...SURPRISE_NAMES.map((name, i) => make("span", `trace-nats-${i}`, name)));
      at("legend").replaceChildren("probability of the token", scale);
    }
  }

  // What a token's probability was and is

  const tip = at("tip");

  function showTip(span) {
    const { after, response } = parts.get(span.parentElement);
    const index = [...span.parentElement.children].indexOf(span);
    const [was, is] = [data.responses[response].before[index], after[index]];
    const token = span.textContent.replaceAll("\n", "↵").replaceAll(" ", "␣") || "(same character)";
    const facts = make("span", "trace-tip-facts");
    facts.append(make("span", "", "before"), make("b", "", percent(was)));
    facts.append(make("span", "", "after"), make("b", "", percent(is)));
    facts.append(make("span", "", "change"), make("b", "", `${signed(was - is)} nats`));
    tip.replaceChildren(make("code", "", token), facts);
    tip.hidden = false;
    const [place, size] = [span.getBoundingClientRect(), tip.getBoundingClientRect()];
    const left = Math.min(place.left, document.documentElement.clientWidth - size.width - 8);
    const below = place.bottom + 6 + size.height <= window.innerHeight;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${below ? place.bottom + 6 : place.top - size.height - 6}px`;
  }

  function hideTip() {
    tip.hidden = true;
  }

  const isToken = (target) => target instanceof Element && target.matches(".trace-token");

  function walk(event) {
    if (event.key === "Escape") hideTip();
    if (!isToken(event.target)) return;
    const spans = event.target.parentElement.children;
    const to = {
      ArrowRight: event.target.nextElementSibling,
      ArrowLeft: event.target.previousElementSibling,
      Home: spans[0],
      End: spans[spans.length - 1],
    }[event.key];
    if (!to) return;
    event.preventDefault();
    to.focus();
  }

  function focused(event) {
    if (!isToken(event.target)) return;
    for (const span of event.target.parentElement.querySelectorAll("[tabindex='0']")) span.tabIndex = -1;
    event.target.tabIndex = 0;
    event.target.setAttribute("aria-describedby", tip.id);
    showTip(event.target);
  }

  // The start

  function start() {
    if (!data.arms.length) {
      at("controls").hidden = at("body").hidden = true;
      at("count").textContent = "No traces were made.";
      return;
    }
    at("arm").append(...data.arms.map(({ name }, index) => new Option(name, index)));
    const both = data.arms.findIndex(({ examples }) => examples.some((example) => example.objective === "ul"));
    at("arm").selectedIndex = Math.max(0, both);
    at("controls").addEventListener("submit", (event) => event.preventDefault());
    at("controls").addEventListener("input", (event) => {
      if (event.target === at("arm") || event.target.name === "trace-set") offerFilters();
      list();
    });
    at("clear").addEventListener("click", () => {
      for (const box of at("controls").querySelectorAll("input[type=number], input[type=search]")) box.value = "";
      at("verdict").value = "any";
      list();
    });
    at("list").addEventListener("keydown", step);
    at("list").addEventListener("click", (event) => {
      const item = event.target.closest(".trace-option");
      if (item) choose([...at("list").children].indexOf(item));
    });
    at("reader").addEventListener("change", (event) => {
      if (event.target.name !== "trace-mode") return;
      state.mode = event.target.value;
      recolor();
    });
    const columns = at("columns");
    columns.addEventListener("keydown", walk);
    columns.addEventListener("focusin", focused);
    columns.addEventListener("focusout", hideTip);
    columns.addEventListener("pointerover", (event) => isToken(event.target) && showTip(event.target));
    columns.addEventListener("pointerout", hideTip);
    columns.addEventListener("click", (event) => isToken(event.target) && event.target.focus());
    const follow = () => (isToken(document.activeElement) ? showTip(document.activeElement) : hideTip());
    document.addEventListener("scroll", follow, { capture: true, passive: true });
    offerFilters();
    list();
  }

  start();
})();
