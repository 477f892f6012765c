/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Everything is made with createElement and textContent: nothing that a guest printed is markup. */
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const overview = $("overview"), view = $("run"), query = $("query"), deep = $("deep");
  const chips = [...document.querySelectorAll("#grid a.chip")];
  const groups = [...document.querySelectorAll(".failures li")];
  const title = document.title;
  let data = null;       // what the packed block has, once it has been opened
  let texts = [];        // by run: what the search looks at
  let shown = null;      // the runs that the filters let through, as a Set
  let lastFocus = null;

  const runsOf = (element) => element.dataset.runs.split(" ").map(Number);
  const total = new Set(chips.flatMap(runsOf)).size;

  /* --- the packed block --------------------------------------------------------------------- */
  let opening = null;
  function open() {
    opening = opening || (async () => {
      if (typeof DecompressionStream === "undefined")
        throw new Error("this browser cannot decompress (DecompressionStream); use a newer one");
      const bytes = Uint8Array.from(atob($("packed").textContent), (c) => c.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
      data = JSON.parse(await new Response(stream).text());
      data.place = new Map(data.runs.map((run, at) => [run.id, at]));
      texts = data.runs.map((run) => [
        run.scenario, run.spec, run.release, run.policy, run.accel, run.start, run.load,
        data.words[run.outcome], run.reason, run.evidence, ...run.notes,
        ...run.owners.flatMap(([name, range, , pieces]) => [name, range, ...pieces.flatMap((p) => [p[1], p[2]])]),
        ...run.findings.flatMap((f) => [f[0], f[1], f[2], ...f[3], ...f[4]]),
        ...run.steps.map((s) => `${s[0]} ${s[1]}`),
        ...run.differences.flatMap((d) => [`guest ${d[0]} differs`, d[1], d[2], ...[...d[4], ...d[5]].map((n) => data.strings[n])]),
      ].join("\n").toLowerCase());
      document.documentElement.dataset.open = "yes";
      return data;
    })();
    return opening;
  }

  function logOf(run) {
    const lines = [];
    let number = 0, micros = 0;
    for (let at = 0; at < run.log.length; at += 2) {
      number += run.log[at];
      micros += run.log[at + 1];
      const text = data.strings[number];
      lines.push({ level: Number(text[0]), text: text.slice(1), seconds: micros / 1e6 });
    }
    return lines;
  }

  /* --- filters ------------------------------------------------------------------------------ */
  const wordsAsked = () => query.value.toLowerCase().split(/\s+/).filter(Boolean);

  function found(words) {
    if (!words.length || !data) return null;
    const hits = words.map((word) => {
      const here = new Set();
      texts.forEach((text, at) => { if (text.includes(word)) here.add(at); });
      if (deep.checked) {
        const numbers = new Set();
        data.strings.forEach((text, n) => { if (text.toLowerCase().includes(word)) numbers.add(n); });
        if (numbers.size) data.runs.forEach((run, at) => {
          if (here.has(at)) return;
          let n = 0, hit = false;
          for (let i = 0; i < run.log.length && !hit; i += 2) hit = numbers.has(n += run.log[i]);
          for (let i = 3; i < run.iomem.length && !hit; i += 5) hit = numbers.has(run.iomem[i]);
          if (hit) here.add(at);
        });
      }
      return here;
    });
    return new Set([...hits[0]].filter((at) => hits.every((set) => set.has(at))));
  }

  async function filter() {
    const words = wordsAsked();
    const policy = $("policy") ? $("policy").value : "";
    if (words.length || policy) {
      try { await open(); } catch (error) { $("shown").textContent = error.message; return; }
    }
    const outcomes = new Set([...document.querySelectorAll("[name=outcome]:checked")].map((box) => box.value));
    const kernel = $("kernel").value, hits = found(words);
    shown = new Set();
    for (const chip of chips) {
      const column = chip.closest("td").dataset.column;
      const outcome = chip.className.match(/o-(\w+)/)[1];
      const mine = runsOf(chip).filter((at) => outcomes.has(outcome) && (kernel === "" || kernel === column)
        && (!hits || hits.has(at)) && (!policy || data.runs[at].policy === policy));
      chip.hidden = !mine.length;
      mine.forEach((at) => shown.add(at));
    }
    const columns = new Set();
    for (const row of document.querySelectorAll("#grid tbody tr")) {
      const left = [...row.querySelectorAll("a.chip:not([hidden])")];
      row.hidden = !left.length;
      left.forEach((chip) => columns.add(chip.closest("td").dataset.column));
    }
    for (const cell of document.querySelectorAll("#grid [data-column]"))
      cell.hidden = !columns.has(cell.dataset.column);
    for (const group of groups) group.hidden = !runsOf(group).some((at) => shown.has(at));
    $("nothing").hidden = shown.size > 0;
    $("shown").textContent = `${shown.size} of ${total} runs shown`;
    rove(chips.find((chip) => !chip.hidden && chip.tabIndex === 0) || chips.find((chip) => !chip.hidden));
  }

  let waiting = 0;
  $("filters").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(filter, query.value.length > 2 || !query.value ? 60 : 200);
  });
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("filters").addEventListener("reset", () => setTimeout(filter));
  $("clear").addEventListener("click", () => { $("filters").reset(); query.focus(); });

  /* --- the grid by keyboard ----------------------------------------------------------------- */
  function rove(to) {
    for (const chip of chips) chip.tabIndex = -1;
    if (to) to.tabIndex = 0;
  }
  const visible = () => chips.filter((chip) => !chip.hidden);
  function step(chip, key) {
    const cell = chip.closest("td"), row = cell.parentElement;
    if (key === "ArrowLeft" || key === "ArrowRight") {
      const inRow = visible().filter((one) => one.closest("tr") === row);
      return inRow[inRow.indexOf(chip) + (key === "ArrowRight" ? 1 : -1)];
    }
    if (key === "Home" || key === "End") return key === "Home" ? visible()[0] : visible().at(-1);
    const rows = [...document.querySelectorAll("#grid tbody tr:not([hidden])")];
    const next = (by) => {
      for (let at = rows.indexOf(row) + by; rows[at]; at += by) {
        const there = rows[at].querySelector(`td[data-column="${cell.dataset.column}"] a.chip:not([hidden])`);
        if (there) return there;
      }
      return null;
    };
    return next(key === "ArrowDown" ? 1 : -1);
  }
  $("grid").addEventListener("keydown", (event) => {
    const chip = event.target.closest && event.target.closest("a.chip");
    if (!chip || !/^(Arrow|Home|End)/.test(event.key) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const to = step(chip, event.key);
    if (to) { rove(to); to.focus(); }
  });

  /* --- one run ------------------------------------------------------------------------------ */
  function make(name, attributes, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) {
      if (key === "onclick") element.addEventListener("click", value);
      else if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  }
  const hrefOf = (at) => `#run-${data.runs[at].id}`;
  const section = (name, ...children) => make("section", { "aria-label": name }, make("h2", {}, name), ...children);
  const table = (heads, rows) => make("table", { class: "plain" },
    make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))),
    make("tbody", {}, ...rows.map(({ bad, cells }) => make("tr", { class: bad ? "bad" : null },
      ...cells.map((cell) => make("td", {}, cell))))));

  function copied(text) {
    const code = make("pre", { tabindex: "0" }, text);
    const button = make("button", { type: "button", onclick: async () => {
      try { await navigator.clipboard.writeText(text); button.textContent = "Copied"; }
      catch { getSelection().selectAllChildren(code); button.textContent = "Selected: Ctrl-C"; }
    } }, "Copy");
    return make("div", { class: "command" }, code, button);
  }

  function ownersTable(owners) {
    return table(["range", "name", "expected", "observed", "", "by"], owners.flatMap(
      ([name, range, expected, pieces]) => (pieces.length ? pieces : [["", "nothing", "", 1]]).map(
        ([part, owned, via, wrong]) => ({ bad: wrong, cells: [
          part || range, name, expected, wrong && owned === "nobody" ? "nobody (stranded)" : owned,
          wrong ? "✗" : "✓", via] }))));
  }

  function findingOf([rule, range, text, iomem, dmesg, phase, known]) {
    return make("div", { class: "finding" },
      make("p", {}, make("b", {}, rule), phase ? ` (${phase})` : "", known ? `, known issue ${known}` : ""),
      make("p", { class: "mono" }, range ? `${range} ` : "", text),
      iomem.length ? make("pre", {}, iomem.join("\n")) : null,
      dmesg.length ? make("pre", {}, dmesg.join("\n")) : null);
  }

  function lineBox(label, lines, near, makeLine, all) {
    const box = make("pre", { class: "lines", tabindex: "0", role: "region", "aria-label": label });
    const fill = (whole) => {
      box.replaceChildren();
      let cut = 0;
      const flush = () => { if (cut) box.append(make("div", { class: "cut" }, `… ${cut} lines`)); cut = 0; };
      lines.forEach((line, at) => {
        if (!whole && !near[at]) { cut += 1; return; }
        flush();
        box.append(makeLine(line));
      });
      flush();
      if (!lines.length) box.append(make("div", { class: "cut" }, "not there: the guest was not observed"));
    };
    fill(all);
    const toggle = make("input", { type: "checkbox" });
    toggle.checked = all;
    toggle.addEventListener("change", () => fill(toggle.checked));
    return make("div", {}, make("label", {}, toggle, ` all ${lines.length} lines`), box);
  }

  const MARKS = [["", ""], ["wrong", "! wrong"], ["missing", "- missing"]];
  function iomemBox(run) {
    const lines = [];
    for (let at = 0; at < run.iomem.length; at += 5) {
      const [mark, depth, near, text, note] = run.iomem.slice(at, at + 5);
      lines.push({ mark, near, text: "  ".repeat(depth) + data.strings[text], note: data.strings[note] });
    }
    const any = lines.some((line) => line.near);
    return lineBox("/proc/iomem", lines, lines.map((line) => line.near), (line) => make("div",
      { class: MARKS[line.mark][0] || null }, make("span", { class: "mark" }, MARKS[line.mark][1]),
      make("span", { class: "what" }, line.text), line.note ? make("span", { class: "note" }, line.note) : null), !any);
  }

  function logBox(run) {
    const lines = logOf(run), bad = new Set(run.offending), near = lines.map(() => false);
    for (const at of bad) for (let by = -3; by <= 3; by += 1) if (near[at + by] !== undefined) near[at + by] = true;
    lines.forEach((line, at) => { line.bad = bad.has(at); if (/\b(cxl|dax|hmem|kmem)/i.test(line.text) && line.seconds > 0) near[at] = true; });
    return lineBox("dmesg", lines, near, (line) => make("div",
      { class: line.bad ? "wrong" : line.level <= 4 ? "warn" : null },
      make("span", { class: "mark" }, line.bad ? "! line" : ""),
      make("span", { class: "time" }, `[${line.seconds.toFixed(6).padStart(12)}] `), line.text), false);
  }

  function differences(run) {
    if (!run.differences.length)
      return [make("p", {}, `${run.compared} guests with the same load have the same verdict, owners, findings and steps.`)];
    const lines = (sign, numbers) => numbers.map((n) => `${sign} ${data.strings[n]}`);
    return [
      make("p", { class: "faint" }, `${run.compared} guests compared; + only this guest has it, - only the others have it`),
      ...run.differences.map(([guest, evidence, part, others, here, there]) => make("div", { class: "difference" },
        make("h3", {}, `guest ${guest} differs in ${part} from ${others} ${others === 1 ? "other" : "others"}`),
        make("pre", { tabindex: "0" }, [...lines("+", here), ...lines("-", there)].join("\n")),
        evidence ? make("p", { class: "mono" }, evidence) : null)),
      run.more_differences ? make("p", {}, `and ${run.more_differences} more differences, see the result file`) : null,
    ];
  }

  function timeline(run) {
    const phases = run.timings.filter(([name]) => name !== "total");
    const all = run.timings.find(([name]) => name === "total");
    const during = phases.filter(([name]) => name !== "prepare");
    const length = during.reduce((sum, [, seconds]) => sum + seconds, 0) || 1;
    const row = (name, track, seconds) => make("tr", { class: name === "total" ? "total" : null }, make("th", { scope: "row" }, name), make("td", {}, track),
      make("td", {}, `${seconds.toFixed(3)} s`));
    const rows = [];
    let begin = 0;
    for (const [name, seconds] of phases) {
      const bar = make("div", { class: "bar" });
      let when = "before the guest, not to scale";
      if (name === "prepare") { bar.classList.add("before"); bar.style.left = "0"; bar.style.width = "100%"; }
      else {
        bar.style.left = `${(100 * begin) / length}%`;
        bar.style.width = `${(100 * seconds) / length}%`;
        when = `from ${begin.toFixed(3)} to ${(begin + seconds).toFixed(3)} s`;
        begin += seconds;
      }
      rows.push(row(name, make("div", { class: "track", role: "img", "aria-label": when, title: when }, bar), seconds));
    }
    if (all) rows.push(row("total", "", all[1]));
    if (!phases.length) return make("p", {}, "No times were written down.");
    return make("table", { class: "timeline", "aria-label": "Phases and their seconds" },
      make("thead", {}, make("tr", {}, ...["phase", "when", "length"].map((head) => make("th", { scope: "col" }, head)))),
      make("tbody", {}, ...rows));
  }

  function picture(run) {
    const text = data.strings[run.picture];
    if (!text) return make("p", {}, "No range was judged, so there is nothing to draw.");
    const svg = new DOMParser().parseFromString(text, "image/svg+xml").documentElement;
    return make("div", {},
      make("div", { class: "picture", tabindex: "0", role: "region", "aria-label": "Address space" }, document.importNode(svg, true)),
      make("p", { class: "legend" }, make("span", {}, "above the axis: what should be; below: what was found"),
        make("span", {}, "plain: dax_cxl"), make("span", {}, "stripes: dax_hmem"),
        make("span", {}, "cross-hatch: stranded, no owner"), make("span", {}, "✗ and a heavy dashed edge: not as expected")));
  }

  function order() {
    const all = data.runs.map((_, at) => at);
    return shown ? all.filter((at) => shown.has(at)) : all;
  }
  function neighbour(at, by, failing) {
    const list = order().filter((one) => !failing || data.runs[one].outcome !== "PASS");
    if (by > 0) return list.find((one) => one > at);
    return list.filter((one) => one < at).at(-1);
  }

  function render(at) {
    const run = data.runs[at], S = data.strings;
    const list = order(), place = list.indexOf(at);
    const go = (to) => () => { if (to !== undefined) location.hash = hrefOf(to); };
    const button = (label, key, to) => make("button", { type: "button", title: `key ${key}`, "data-key": key,
      disabled: to === undefined ? "" : null, onclick: go(to) }, label);
    const alike = data.runs.map((one, n) => n).filter((n) => n !== at && data.runs[n].scenario === run.scenario
      && data.runs[n].column === run.column);
    const fact = (name, value) => (value ? [make("dt", {}, name), make("dd", { class: "mono" }, value)] : []);
    view.replaceChildren(
      make("nav", { "aria-label": "Runs" },
        make("button", { type: "button", title: "key Esc", onclick: back }, "← Grid"),
        button("Previous", "k", neighbour(at, -1)), button("Next", "j", neighbour(at, 1)),
        button("Next that did not pass", "f", neighbour(at, 1, true)),
        make("span", { class: "place faint" }, place < 0 ? "" : `${place + 1} of ${list.length} shown`)),
      make("h1", { tabindex: "-1" }, make("span", { class: `chip o-${run.outcome}` }, data.words[run.outcome]), run.scenario),
      make("dl", { class: "facts-of" },
        ...fact("kernel", run.spec + (run.release ? ` (${run.release})` : "")),
        ...fact("policy", run.policy),
        ...fact("guest", [run.accel, run.start, run.qemu && `QEMU ${run.qemu}`].filter(Boolean).join(", ")),
        ...fact("loaded", run.load), ...fact("reason", run.reason), ...fact("hint", run.hint),
        ...run.notes.flatMap((note) => fact("note", note)),
        ...fact("evidence", run.evidence),
        ...(alike.length ? [make("dt", {}, "same cell"), make("dd", {}, ...alike.slice(0, 40).flatMap((n) => [make("a",
          { class: `chip o-${data.runs[n].outcome}`, href: hrefOf(n) }, data.words[data.runs[n].outcome]), " "]),
        alike.length > 40 ? `and ${alike.length - 40} more` : "")] : [])),
      S[run.known] ? section("Known issue", make("p", {}, S[run.known])) : "",
      run.owners.length ? section("Owners", ownersTable(run.owners)) : "",
      section("Address space", picture(run)),
      run.findings.length ? section("Findings", ...run.findings.map(findingOf)) : "",
      run.steps.length ? section("Steps after the boot", ...run.steps.map(([name, outcome, owners, findings]) =>
        make("details", { open: outcome === "broke" ? "" : null }, make("summary", {}, `${{ held: "✓", broke: "✗", not_done: "–" }[outcome] || ""} ${outcome.replace("_", " ")}: ${name}`),
          owners.length ? ownersTable(owners) : null, ...findings.map(findingOf)))) : "",
      run.attempts.length ? section("Guests", table(["verdict", "loaded", "start", "seconds", "outcome"],
        run.attempts.map(([verdict, load, start, seconds, outcome]) => ({ bad: verdict !== "PASS",
          cells: [`${verdict === "PASS" ? "✓" : "✗"} ${verdict}`, load, start, seconds.toFixed(1), outcome] })))) : "",
      run.compared ? section("Repeated guests", ...differences(run).filter(Boolean)) : "",
      section("/proc/iomem", iomemBox(run)),
      section("dmesg", logBox(run)),
      section("Phases", timeline(run)),
      section("Reproduce", copied(run.command),
        S[run.argv] ? make("details", {}, make("summary", {}, "QEMU's command line"), copied(S[run.argv])) : null,
        S[run.cmdline] ? make("details", {}, make("summary", {}, "The kernel's command line"), copied(S[run.cmdline])) : null));
    document.title = `${data.words[run.outcome]} ${run.scenario} – ${title}`;
    view.querySelector("h1").focus({ preventScroll: true });
  }

  /* --- from view to view -------------------------------------------------------------------- */
  let scrolled = 0;
  function back() { location.hash = ""; }
  async function route() {
    const match = location.hash.match(/^#run-(.+)$/);
    if (!match) {
      if (!view.hidden) {
        view.hidden = true; overview.hidden = false; document.title = title;
        scrollTo(0, scrolled);
        if (lastFocus) lastFocus.focus({ preventScroll: true });
      }
      return;
    }
    if (view.hidden) { scrolled = scrollY; lastFocus = document.activeElement; }
    overview.hidden = true; view.hidden = false;
    try {
      await open();
      const at = data.place.get(decodeURIComponent(match[1]));
      if (at === undefined) throw new Error("this report has no such run");
      render(at);
    } catch (error) {
      view.replaceChildren(make("nav", {}, make("button", { type: "button", onclick: back }, "← Grid")),
        make("p", { class: "notice" }, `This run cannot be shown: ${error.message}`));
    }
    scrollTo(0, 0);
  }
  addEventListener("hashchange", route);
  addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.isComposing) return;
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName || "") && event.target.type !== "checkbox";
    if (event.key === "Escape") {
      if (!view.hidden) back();
      else if (typing && query.value) { query.value = ""; filter(); }
    } else if (!typing && event.key === "/" && view.hidden) { event.preventDefault(); query.focus(); }
    else if (!typing && !view.hidden && /^[jkf]$/.test(event.key)) {
      const button = view.querySelector(`[data-key="${event.key}"]`);
      if (button) button.click();
    }
  });

  rove(chips[0]);
  route();
  /* Open the packed block when there is nothing better to do, so that the first search is quick. */
  (window.requestIdleCallback || setTimeout)(() => open().catch(() => undefined));
})();
