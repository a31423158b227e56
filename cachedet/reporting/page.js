"use strict";
// Plain script: theme, sorting of tables, the choice of a curve, boxes over images.
// Everything shown is set as text or attribute, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);

  const theme = byId("theme");
  const keep = (value) => { try { localStorage.setItem("cachedet-theme", value); } catch { /* file:// may refuse */ } };
  const kept = () => { try { return localStorage.getItem("cachedet-theme"); } catch { return null; } };
  const setTheme = (value) => {
    if (value === "light" || value === "dark") document.documentElement.dataset.theme = value;
    else delete document.documentElement.dataset.theme;
  };
  if (["light", "dark"].includes(kept())) { theme.value = kept(); setTheme(theme.value); }
  theme.addEventListener("change", () => { setTheme(theme.value); keep(theme.value); });

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const rising = head.getAttribute("aria-sort") === "descending" || (column === 0 && !head.hasAttribute("aria-sort"));
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", rising ? "ascending" : "descending");
        sortRows(table.tBodies[0], column, rising);
      });
    });
  }
  function sortRows(body, column, rising) {
    const known = (row) => row.cells[column].dataset.rank !== undefined;
    const rows = [...body.rows];
    rows.sort((one, other) => {
      if (column === 0) {
        const order = one.cells[0].textContent.localeCompare(other.cells[0].textContent, undefined, { numeric: true });
        return rising ? order : -order;
      }
      if (known(one) !== known(other)) return known(one) ? -1 : 1;
      const gap = Number(one.cells[column].dataset.rank ?? 0) - Number(other.cells[column].dataset.rank ?? 0);
      return rising ? gap : -gap;
    });
    body.append(...rows);
  }

  const choice = byId("curve-class");
  if (choice) {
    const chart = byId(`chart-${data.chart}`);
    choice.addEventListener("change", () => {
      data.curves[choice.value].paths.forEach((path, line) => {
        chart.querySelector(`path[data-line="${line}"]`).setAttribute("d", path);
      });
    });
  }

  if (!data.sheet || !data.sheet.images.length) return;
  const { images, classes, cuts, kinds } = data.sheet;
  const score = byId("score"), ofClass = byId("class"), run = byId("run"), names = byId("names");
  const group = byId("group"), dialog = byId("enlarged");
  const RIGHT = kinds.indexOf("right"), IGNORED = kinds.indexOf("ignored");
  // A detector that is young or badly calibrated may score everything below 0.1: the slider ends
  // just above the best score shown.
  const best = Math.max(0, ...images.flatMap((image) => image.runs.flatMap((run) => run.map((detection) => detection[4]))));
  const end = Math.min(Math.floor(best * 20 + 1) / 20, 1), step = end > 0.1 ? 0.01 : 0.0005;
  const digits = end > 0.1 ? 2 : 4;
  score.max = end;
  score.step = step;
  const startAt = (cut) => { score.value = Math.floor(cut / step + 1e-9) * step; };
  const runNumber = () => (run ? Number(run.value) : 0);

  function rect(box, kind, title) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const [x, y, width, height] = box;
    for (const [name, value] of Object.entries({ x, y, width: Math.max(width, 0), height: Math.max(height, 0), class: kind })) {
      element.setAttribute(name, value);
    }
    if (title) {
      const text = document.createElementNS("http://www.w3.org/2000/svg", "title");
      text.textContent = title;
      element.append(text);
    }
    return element;
  }
  function label(box, text, size, width) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", "text");
    const left = Math.max(box[0], 0) + size * 0.2, room = width - 0.6 * size * text.length;
    element.setAttribute("x", Math.max(Math.min(left, room), 0));
    element.setAttribute("y", Math.max(box[1], 0) + size);
    element.setAttribute("font-size", size);
    element.textContent = text;
    return element;
  }

  // What of an image is shown now: ground-truth boxes with whether they are found, detections.
  function state(image) {
    const wanted = Number(ofClass.value), cut = Number(score.value);
    const kept = image.runs[runNumber()].filter((detection) => detection[4] >= cut);
    const matched = new Set(kept.filter((detection) => detection[7] >= 0).map((detection) => detection[7]));
    const groundTruth = image.ground_truth
      .map((box, number) => ({ box, missed: !box[5] && !matched.has(number) }))
      .filter(({ box }) => wanted < 0 || box[4] === wanted);
    const detections = kept.filter((detection) => wanted < 0 || detection[5] === wanted);
    const counted = groundTruth.filter(({ box }) => !box[5]);
    return {
      groundTruth, detections,
      boxes: counted.length,
      right: counted.filter(({ missed }) => !missed).length,
      wrong: detections.filter((detection) => detection[6] !== RIGHT && detection[6] !== IGNORED).length,
    };
  }

  function draw(svg, now, named, size) {
    const parts = [], texts = [], { width } = svg.viewBox.baseVal;
    for (const { box, missed } of now.groundTruth) {
      const kind = box[5] ? " crowd" : missed ? " missed" : "";
      parts.push(rect(box, `casing of-ground-truth${kind}`), rect(box, `ground-truth${kind}`, `ground truth: ${classes[box[4]]}${missed ? ", not found" : ""}`));
      if (named && missed) texts.push(label(box, classes[box[4]], size, width));
    }
    for (const detection of [...now.detections].reverse()) {
      const right = detection[6] === RIGHT, text = `${classes[detection[5]]} ${detection[4].toFixed(digits)}`;
      parts.push(rect(detection, "casing"), rect(detection, right ? "right" : "wrong", `detection: ${text}, ${kinds[detection[6]]}`));
      if (named) texts.push(label(detection, right ? text : `${text} ${kinds[detection[6]]}`, size, width));
    }
    svg.replaceChildren(...parts, ...texts);
  }
  const describe = (now) => `${now.right} of ${now.boxes} found, ${now.wrong} wrong`;

  const buttons = [...document.querySelectorAll("button.image")];
  function redraw() {
    byId("score-shown").textContent = Number(score.value).toFixed(digits);
    const total = { boxes: 0, right: 0, wrong: 0 };
    for (const box of document.querySelectorAll(".group[data-group]")) {
      box.hidden = group.value !== "all" && group.value !== box.dataset.group;
    }
    for (const button of buttons) {
      if (button.closest(".group").hidden) continue;
      const svg = button.querySelector("svg");
      const now = state(images[Number(button.dataset.image)]);
      draw(svg, now, names.checked, svg.viewBox.baseVal.width / 24);
      button.closest("figure").querySelector(".counts").textContent = describe(now);
      for (const key of Object.keys(total)) total[key] += now[key];
    }
    byId("sheet-summary").textContent = `In the images shown: ${total.right} of ${total.boxes} boxes found, ${total.wrong} wrong detections.`;
  }

  function enlarge(button) {
    const frame = byId("enlarged-image"), copy = button.querySelector("img").cloneNode();
    const svg = button.querySelector("svg").cloneNode();
    const now = state(images[Number(button.dataset.image)]);
    const { width, height } = svg.viewBox.baseVal;
    frame.style.setProperty("--wide", width / height);
    frame.replaceChildren(copy, svg);
    byId("enlarged-name").textContent = copy.alt;
    byId("enlarged-counts").textContent = describe(now);
    dialog.showModal();
    draw(svg, now, true, 12 * width / Math.max(frame.clientWidth, 1)); // 12 pixels on the screen
  }
  for (const button of buttons) button.addEventListener("click", () => enlarge(button));
  byId("close").addEventListener("click", () => dialog.close());
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  for (const control of [score, ofClass, names, group]) control.addEventListener("input", redraw);
  if (run) run.addEventListener("input", () => { startAt(cuts[runNumber()]); redraw(); });
  startAt(cuts[0]);
  redraw();
})();
