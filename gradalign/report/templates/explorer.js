"use strict";
// The token explorer. Everything from the run is put on the page as text, never as markup. Its place stands in the URL's fragment.
(() => {
  const root = document.getElementById("explorer");
  if (!root) return;
  const index = JSON.parse(document.getElementById("index").textContent);
  const packets = Array.from(document.querySelectorAll("script.packet"));
  const by = (id) => document.getElementById(id);
  const pick = {
    question: by("question"), rollout: by("rollout"), teacher: by("teacher"), beside: by("beside"), objective: by("objective"),
    quantity: by("quantity"), threshold: by("threshold"),
  };
  const panes = by("panes"), detail = by("detail"), said = by("said"), messages = by("messages");
  const loaded = new Map();
  const state = {question: 0, rollout: null, teacher: "", beside: "", objective: "", quantity: index.quantities[0].name, threshold: 0, at: null};
  let data = null;
  let turn = 0;
  let keeping = 0;

  // Text ------------------------------------------------------------------------------------------------------------------
  const OBEYED = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g;
  const visible = (text) => String(text).replace(OBEYED, "\ufffd");
  function make(tag, text, attributes) {
    const element = document.createElement(tag);
    if (text !== undefined && text !== null) element.textContent = visible(text);
    for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
    return element;
  }
  const known = (value) => value !== null && value !== undefined;
  function number(value, digits) {
    if (!known(value)) return "–";
    const size = Math.abs(value);
    return size !== 0 && (size < 1e-3 || size >= 1e5) ? Number(value).toExponential(1) : String(Number(Number(value).toPrecision(digits || 3)));
  }
  const fixed = (value, digits) => (known(value) ? Number(value).toFixed(digits) : "–");

  // Data ------------------------------------------------------------------------------------------------------------------
  async function load(place) {
    if (!loaded.has(place)) {
      const bytes = Uint8Array.from(atob(packets[place].textContent.trim()), (letter) => letter.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      loaded.set(place, JSON.parse(await new Response(stream).text()));
    }
    return loaded.get(place);
  }
  const quantity = () => index.quantities.find((each) => each.name === state.quantity);
  const rollout = () => data.rollouts[state.rollout];
  const teacherPlace = (teacher) => index.teachers.indexOf(teacher);
  const pairPlace = (teacher) => index.pairs.findIndex(([t, o]) => o === state.objective && (t === teacher || t === index.rewards));
  const column = (rows, name) => (rows ? rows[name] : null);

  function valueAt(place, teacher, name) {
    const path = rollout(), node = path.nodes[place];
    if (name === "success") {
      const tried = data.tried[node];
      const found = tried ? tried.token.indexOf(path.tokens[place]) : -1;
      return found < 0 ? null : tried.success[found];
    }
    const of = index.quantities.find((each) => each.name === name).of;
    const rows = of === "student" ? data.nodes : of === "teacher" ? data.teachers[teacherPlace(teacher)] : data.pairs[pairPlace(teacher)];
    const values = column(rows, name);
    return values && known(values[node]) ? values[node] : null;
  }

  function largest() {
    const name = state.quantity;
    if (name === "alignment" || name === "success") return 1;
    let top = 0;
    for (const teacher of [state.teacher, state.beside]) {
      if (!teacher) continue;
      const of = quantity().of;
      const rows = of === "student" ? data.nodes : of === "teacher" ? data.teachers[teacherPlace(teacher)] : data.pairs[pairPlace(teacher)];
      for (const value of column(rows, name) || []) if (known(value)) top = Math.max(top, Math.abs(value));
    }
    return top || 1;
  }

  // Drawing ---------------------------------------------------------------------------------------------------------------
  function paint(element, value, top) {
    const from = (state.threshold / 100) * top;
    element.classList.toggle("unknown", !known(value));
    element.classList.toggle("down", known(value) && value < 0 && Math.abs(value) >= from);
    if (!known(value) || Math.abs(value) < from || value === 0) {
      element.style.background = "none";
      return;
    }
    const strength = 0.08 + 0.62 * Math.min(1, Math.abs(value) / top);
    element.style.background = `rgba(var(${value < 0 ? "--down" : "--up"}), ${strength.toFixed(3)})`;
  }

  function drawPanes() {
    panes.replaceChildren();
    const top = largest();
    for (const teacher of [state.teacher, state.beside].filter(Boolean)) {
      const pane = make("div", null, {class: "pane"});
      const path = rollout();
      pane.append(make("h3", teacher));
      const list = make("div", null, {
        class: "rollout", role: "listbox", "aria-label": visible(`Tokens of rollout ${path.number} under ${teacher}`), "aria-orientation": "horizontal",
      });
      path.pieces.forEach((piece, place) => {
        const value = valueAt(place, teacher, state.quantity);
        const last = place === path.pieces.length - 1 && path.stop === "stop";
        const shown = piece === "" ? (last ? "■" : "·") : piece.replace(/\n/g, "⏎\n");
        const token = make("span", shown, {class: "token", role: "option", tabindex: place === state.at ? "0" : "-1", "data-place": place});
        token.setAttribute("aria-selected", place === state.at ? "true" : "false");
        token.setAttribute("aria-label", `${visible(piece || "no text")}, ${quantity().label} ${number(value)}`);
        paint(token, value, top);
        list.append(token);
      });
      pane.append(list);
      panes.append(pane);
    }
    drawLegend(top);
  }

  function drawLegend(top) {
    const legend = by("legend");
    legend.replaceChildren(make("span", `${quantity().label}: ${quantity().meaning}.`));
    const scale = make("span", null, {class: "scale"});
    const steps = quantity().signed ? [-1, -0.5, 0, 0.5, 1] : [0, 0.25, 0.5, 1];
    for (const step of steps) {
      const swatch = make("span", number(step * top, 2), {class: "swatch token"});
      paint(swatch, step * top, top);
      scale.append(swatch);
    }
    legend.append(scale);
    if (quantity().signed) legend.append(make("span", "orange and underlined: below 0; blue: above 0."));
    legend.append(make("span", "grey: not known", {class: "token unknown"}));
    by("threshold-value").textContent = state.threshold === 0 ? "all" : number((state.threshold / 100) * top, 2);
  }

  function select(place, focus) {
    state.at = Math.max(0, Math.min(place, rollout().pieces.length - 1));
    for (const token of panes.querySelectorAll(".token")) {
      const here = Number(token.dataset.place) === state.at;
      token.setAttribute("aria-selected", here ? "true" : "false");
      token.tabIndex = here ? 0 : -1;
    }
    reveal();
    if (focus) {
      const token = panes.querySelector(`.token[data-place="${state.at}"]`);
      if (token) token.focus();
    }
    describe(state.at);
    keepPlace();
  }

  function reveal() {
    for (const list of panes.querySelectorAll(".rollout")) {
      const token = list.querySelector(`.token[data-place="${state.at}"]`);
      const below = token && token.offsetTop + token.offsetHeight > list.scrollTop + list.clientHeight;
      if (token && (below || token.offsetTop < list.scrollTop)) list.scrollTop = token.offsetTop - list.clientHeight / 2;
    }
  }

  function describe(place) {
    const path = rollout(), node = path.nodes[place];
    detail.replaceChildren();
    const title = make("h3", null);
    title.append(make("span", path.pieces[place] || (path.stop === "stop" ? "■" : "·"), {class: "shown"}));
    detail.append(title);
    let list = make("dl");
    const say = (name, value) => list.append(make("dt", name), make("dd", value));
    detail.append(list);
    say("position, node", `${place}, ${data.nodes.node[node]}`);
    say("rollouts here", number(data.nodes.visits[node]));
    say("student's entropy", `${number(data.nodes.student_entropy[node])} nats`);
    say("success here", number(data.nodes.value[node]));
    for (const teacher of [state.teacher, state.beside].filter(Boolean)) {
      const rows = data.teachers[teacherPlace(teacher)], pair = data.pairs[pairPlace(teacher)];
      const at = (from, name) => (column(from, name) || [])[node];
      list = make("dl");
      detail.append(make("h4", teacher), list);
      say("alignment", number(at(pair, "alignment")));
      say("⟨g, d⟩ ± se", `${number(at(pair, "dot"))} ± ${number(at(pair, "dot_se"))}`);
      say("advantage", number(at(rows, "advantage")));
      say("KL π‖τ, τ‖π", `${number(at(rows, "reverse_kl"))}, ${number(at(rows, "forward_kl"))}`);
    }
    detail.append(candidates(node, path.tokens[place]));
  }

  function candidates(node, taken) {
    const tried = data.tried[node];
    if (!tried) return make("p", "Not chosen: no token was tried here.", {class: "note"});
    const shown = [state.teacher, state.beside].filter(Boolean);
    const table = make("table");
    table.append(make("caption", "Tokens tried here"));
    const head = make("tr");
    for (const name of ["", "token", "π"]) head.append(make("th", name || "taken", {scope: "col"}));
    shown.forEach((_, i) => head.append(make("th", shown.length > 1 ? `τ${i + 1}` : "τ", {scope: "col"})));
    for (const name of ["success [95%]", "n", "g"]) head.append(make("th", name, {scope: "col"}));
    shown.forEach((_, i) => head.append(make("th", shown.length > 1 ? `d${i + 1}` : "d", {scope: "col"})));
    const top = make("thead");
    top.append(head);
    table.append(top);
    const body = make("tbody");
    tried.token.forEach((token, k) => {
      const row = make("tr");
      const cell = (text) => row.append(make("td", text, {class: "number"}));
      row.append(make("td", token === taken ? "→" : ""));
      row.append(make("td", tried.text[k] === "" ? "■" : JSON.stringify(tried.text[k]).slice(1, -1), {class: "shown"}));
      cell(fixed(tried.pi[k], 3));
      shown.forEach((teacher) => cell(fixed((tried.tau[teacherPlace(teacher)] || [])[k], 3)));
      cell(`${fixed(tried.success[k], 2)} [${fixed(tried.lower[k], 2)}, ${fixed(tried.upper[k], 2)}]`);
      cell(String(tried.n[k]));
      cell(fixed(tried.g[k], 4));
      shown.forEach((teacher) => cell(fixed((tried.d[pairPlace(teacher)] || [])[k], 4)));
      body.append(row);
    });
    table.append(body);
    const scroll = make("div", null, {class: "scroll", tabindex: "0", role: "region", "aria-label": "Tokens tried here"});
    scroll.append(table);
    return scroll;
  }

  function drawMessages() {
    messages.replaceChildren(make("h3", "The student saw"), make("pre", data.prompt));
    for (const teacher of [state.teacher, state.beside].filter(Boolean)) {
      const message = data.messages[teacherPlace(teacher)];
      if (teacher === index.rewards) continue;
      messages.append(make("h3", `${teacher} saw`));
      messages.append(known(message) ? make("pre", message) : make("p", "This teacher could not be built for this question.", {class: "note"}));
    }
    messages.append(make("p", `Answer: ${data.answer}`));
  }

  // Jumps -----------------------------------------------------------------------------------------------------------------
  function jump(order, nothing) {
    if (!order.length) {
      said.textContent = nothing;
      return;
    }
    const here = order.indexOf(state.at);
    const next = order[(here + 1) % order.length];
    said.textContent = `${(here + 1) % order.length + 1} of ${order.length}`;
    select(next, true);
  }
  function nextWorst() {
    const places = rollout().nodes.map((_, place) => [valueAt(place, state.teacher, "dot"), place]).filter(([value]) => known(value) && value < 0);
    places.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    jump(places.map(([, place]) => place), "At no known token of this rollout does a step toward the teacher lower success.");
  }
  function decisive() {
    const places = rollout().nodes.map((node, place) => [data.nodes.informative[node] ? data.nodes.g_norm2[node] : null, place]);
    const told = places.filter(([value]) => known(value) && value > 0);
    told.sort((a, b) => b[0] - a[0] || a[1] - b[1]);
    return told.map(([, place]) => place);
  }
  function nextDecisive() {
    jump(decisive(), "At no token of this rollout is success known to differ between tokens.");
  }

  // State -----------------------------------------------------------------------------------------------------------------
  function keepPlace() {
    const question = index.questions[state.question].id;
    const kept = {
      q: question, r: rollout().number, t: state.teacher, b: state.beside, o: state.objective, by: state.quantity, from: state.threshold, at: state.at,
    };
    clearTimeout(keeping);  // browsers refuse many calls in short time, as a held key would make
    keeping = setTimeout(() => history.replaceState(null, "", `#${new URLSearchParams(kept)}`), 120);
  }

  function option(value, label) {
    const element = make("option", label);
    element.value = value;
    return element;
  }
  function fill(select, entries, value) {
    select.replaceChildren(...entries.map(([key, label]) => option(key, label)));
    select.value = value;
  }

  function objectivesOf(teacher) {
    return index.pairs.filter(([t]) => t === teacher || t === index.rewards).map(([, o]) => o);
  }

  async function show(wanted) {
    const mine = ++turn;
    Object.assign(state, wanted);
    const found = await load(state.question);
    if (mine !== turn) return;
    data = found;
    state.rollout = state.rollout === null ? data.first : Math.min(state.rollout, data.rollouts.length - 1);
    if (!index.teachers.includes(state.teacher)) state.teacher = index.teachers[0];
    if (!index.teachers.includes(state.beside) || state.beside === state.teacher) state.beside = "";
    const objectives = objectivesOf(state.teacher);
    if (!objectives.includes(state.objective)) state.objective = objectives[0];
    fill(pick.question, index.questions.map((q, i) => [i, `${q.id} (${known(q.pass_rate) ? Math.round(100 * q.pass_rate) : "–"}% right)`]), state.question);
    fill(pick.rollout, data.rollouts.map((r, i) => [i, `${r.number}: ${r.outcome}`]), state.rollout);
    fill(pick.teacher, index.teachers.map((t) => [t, t]), state.teacher);
    fill(pick.beside, [["", "no other"], ...index.teachers.filter((t) => t !== state.teacher).map((t) => [t, t])], state.beside);
    fill(pick.objective, objectives.map((o) => [o, o]), state.objective);
    fill(pick.quantity, index.quantities.map((q) => [q.name, q.label]), state.quantity);
    pick.threshold.value = state.threshold;
    if (state.at === null) state.at = decisive()[0] ?? 0;
    state.at = Math.max(0, Math.min(state.at, rollout().pieces.length - 1));
    drawPanes();
    drawMessages();
    describe(state.at);
    root.hidden = false;
    reveal();
  }

  function fromFragment() {
    const said = new URLSearchParams(location.hash.slice(1));
    if (!said.has("q")) return null;
    const question = index.questions.findIndex((each) => each.id === said.get("q"));
    if (question < 0) return null;
    const whole = (name) => Math.max(0, parseInt(said.get(name), 10) || 0);
    const quantity = index.quantities.some((each) => each.name === said.get("by")) ? said.get("by") : state.quantity;
    return {
      question, number: whole("r"), teacher: said.get("t") || "", beside: said.get("b") || "", objective: said.get("o") || "", quantity,
      threshold: Math.min(100, whole("from")), at: whole("at"),
    };
  }
  async function open() {
    const wanted = fromFragment();
    if (!wanted) return show({});
    const rollouts = (await load(wanted.question)).rollouts;
    const place = rollouts.findIndex((each) => each.number === wanted.number);
    delete wanted.number;
    await show({...wanted, rollout: Math.max(0, place)});
    by("tokens").scrollIntoView();
  }

  async function change(wanted) {
    said.textContent = "";
    await show(wanted);
    keepPlace();
  }
  pick.question.addEventListener("change", () => change({question: Number(pick.question.value), rollout: null, at: null}));
  pick.rollout.addEventListener("change", () => change({rollout: Number(pick.rollout.value), at: null}));
  for (const name of ["teacher", "beside", "objective", "quantity"]) pick[name].addEventListener("change", () => change({[name]: pick[name].value}));
  pick.threshold.addEventListener("input", () => change({threshold: Number(pick.threshold.value)}));
  const move = (by) => change({question: (state.question + by + index.questions.length) % index.questions.length, rollout: null, at: null});
  by("before").addEventListener("click", () => move(-1));
  by("after").addEventListener("click", () => move(1));
  by("worst").addEventListener("click", nextWorst);
  by("decisive").addEventListener("click", nextDecisive);
  function togglePrompt() {
    messages.hidden = !messages.hidden;
    by("prompt").setAttribute("aria-expanded", messages.hidden ? "false" : "true");
  }
  by("prompt").addEventListener("click", togglePrompt);

  const place = (event) => {
    const token = event.target.closest(".token[data-place]");
    return token ? Number(token.dataset.place) : null;
  };
  panes.addEventListener("mouseover", (event) => place(event) !== null && describe(place(event)));
  panes.addEventListener("mouseleave", () => describe(state.at));
  panes.addEventListener("click", (event) => place(event) !== null && select(place(event), true));
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || ["SELECT", "INPUT"].includes(event.target.tagName)) return;
    const letters = {w: nextWorst, d: nextDecisive, p: togglePrompt};
    if (letters[event.key]) {
      event.preventDefault();
      letters[event.key]();
      return;
    }
    if (place(event) === null) return;
    const steps = {ArrowRight: state.at + 1, ArrowLeft: state.at - 1, ArrowDown: state.at + 10, ArrowUp: state.at - 10, Home: 0, End: Infinity};
    if (!(event.key in steps)) return;
    event.preventDefault();
    const other = event.target.closest(".pane");
    const pane = Array.from(panes.children).indexOf(other);
    select(Math.min(steps[event.key], rollout().pieces.length - 1), false);
    panes.children[pane].querySelector(`.token[data-place="${state.at}"]`).focus();
  });
  addEventListener("hashchange", () => fromFragment() && open());
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = Array.from(document.querySelectorAll("details:not([open])"));
    for (const each of opened) each.open = true;
  });
  addEventListener("afterprint", () => {
    for (const each of opened) each.open = false;
  });
  open().catch((fault) => {
    by("held").textContent = `The token data could not be read (${fault.message}); open the file in a current browser.`;
  });
})();
