"use strict";
// What the server answered is kept and drawn here: score, classes, masks and ground truth are
// chosen without asking it again. Text from outside is set as text, never as HTML.
(() => {
  const byId = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";
  const FONT = '600 12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';
  const STEP = 0.005; // of the slider
  const hidden = new Set(); // labels that are switched off, for all images
  let facts = null, answer = null, shown = [];
  let files = [], place = { of: "nothing", number: -1 }; // which image is looked at
  let ticket = 0, asking = null, start = 0;

  const colour = (label) => (label < 0 ? [255, 255, 255] : facts.colours[label % facts.colours.length]); // the ninth class begins anew
  const css = (rgb) => `rgb(${rgb.join(" ")})`;
  const ink = (rgb) => (rgb[0] + rgb[1] + rgb[2] > 330 ? "#000" : "#fff");
  const cut = () => Number(byId("score").value);
  const figure = (value) => value.toFixed(Math.round(value * 1000) % 10 ? 3 : 2);
  const precise = (value) => (value >= 0.01 ? value.toFixed(2) : value.toPrecision(2));

  function say(text) { byId("message").textContent = text; byId("message").hidden = !text; }
  function element(name, attributes, kind = SVG) {
    const made = kind ? document.createElementNS(kind, name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }

  // --- asking the server

  async function ask(path, options) {
    let response;
    try {
      response = await fetch(path, options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server does not answer: is `cachedet serve` still running?");
    }
    const body = await response.json().catch(() => ({}));
    if (!response.ok) throw new Error(body.error || `The server answered with status ${response.status}.`);
    return body;
  }

  async function look(name, send) {
    const mine = ++ticket;
    asking?.abort();
    asking = new AbortController();
    say("");
    byId("status").textContent = `Detecting in ${name} …`;
    byId("stage").classList.add("busy");
    markPlace();
    try {
      const found = await send(asking.signal);
      if (mine === ticket) await present(found);
    } catch (error) {
      if (mine !== ticket || error.name === "AbortError") return;
      clear();
      say(`${name}: ${error.message}`);
    } finally {
      if (mine === ticket) {
        byId("stage").classList.remove("busy");
        byId("viewer").scrollIntoView({ block: "nearest" }); // who chose below would not see it
      }
    }
  }

  function lookAtFile(number) {
    const file = files[number];
    place = { of: "files", number };
    return look(file.name, async (signal) => {
      if (file.size > facts.most_nbytes) {
        throw new Error(`its ${Math.ceil(file.size / 2 ** 20)} MB are more than the ${facts.most_nbytes / 2 ** 20} MB that are taken; start with a larger --most-mb`);
      }
      let body;
      try { body = await file.arrayBuffer(); } catch { throw new Error("it cannot be read; folders are browsed with --images"); }
      return ask(`detect?name=${encodeURIComponent(file.name)}`, { method: "POST", body, signal });
    });
  }
  function lookAtListed(number, name) {
    place = { of: "folder", number };
    return look(name, (signal) => ask(`images/${number}/detect`, { method: "POST", signal }));
  }
  function take(given) {
    files = [...given];
    if (files.length) lookAtFile(0);
    else say("That is no file: drop an image from your disk, or choose one.");
  }

  const count = () => (place.of === "files" ? files.length : facts.images);
  async function go(step) {
    const number = place.number + step;
    if (number < 0 || number >= count()) return;
    if (place.of === "files") { lookAtFile(number); return; }
    const page = Math.floor(number / facts.page) * facts.page;
    if (page !== start) await list(page);
    const button = byId("thumbnails").querySelector(`[data-number="${number}"]`);
    if (button) lookAtListed(number, button.dataset.name);
  }
  function markPlace() {
    byId("previous").disabled = place.number <= 0;
    byId("next").disabled = place.number + 1 >= count();
    for (const button of byId("thumbnails").querySelectorAll("button")) {
      const isIt = place.of === "folder" && Number(button.dataset.number) === place.number;
      button.setAttribute("aria-current", String(isIt));
    }
  }

  // --- the folder

  async function list(from) {
    let page;
    try { page = await ask(`images?start=${from}`); } catch (error) { say(error.message); return; }
    start = from;
    byId("thumbnails").replaceChildren(...page.images.map(({ number, name }) => {
      const button = element("button", { type: "button", class: "thumbnail", "data-number": number, "data-name": name, title: name }, null);
      const image = element("img", { alt: "", src: `images/${number}/thumbnail`, loading: "lazy" }, null);
      const text = element("span", {}, null);
      text.textContent = name;
      image.addEventListener("error", () => button.classList.add("broken"));
      button.addEventListener("click", () => lookAtListed(number, name));
      button.append(image, text);
      const item = element("li", {}, null);
      item.append(button);
      return item;
    }));
    byId("range").textContent = `${from + 1} to ${from + page.images.length} of ${page.total}`;
    byId("earlier").disabled = from === 0;
    byId("later").disabled = from + page.images.length >= page.total;
    markPlace();
  }

  // --- one answer

  function clear() {
    answer = null;
    shown = [];
    byId("result").hidden = true;
    byId("empty").hidden = false;
    byId("status").textContent = "";
    for (const id of ["classes", "list", "masks-control"]) byId(id).hidden = true;
    for (const id of ["save-json", "save-png"]) byId(id).disabled = true;
  }

  async function present(found) {
    const labels = new Map(facts.classes.map((one, label) => [one.id, label]));
    found.detections.forEach((one, number) => Object.assign(one, { label: labels.get(one.category_id), number }));
    const image = byId("image");
    image.src = found.pixels;
    await image.decode();
    answer = found;
    image.alt = found.name;
    byId("name").textContent = found.name;
    byId("size").textContent = `${found.width} × ${found.height} pixels · ${found.seconds.toFixed(2)} s`;
    byId("empty").hidden = true;
    byId("result").hidden = false;
    byId("masks-control").hidden = !found.detections.some((one) => one.segmentation);
    for (const id of ["save-json", "save-png"]) byId(id).disabled = false;
    say(found.note ? `Note: ${found.note}` : "");
    listClasses();
    redraw();
  }

  function listClasses() {
    const names = new Map();
    for (const one of answer.detections) names.set(one.label, facts.classes[one.label].name);
    for (const box of answer.truth ?? []) names.set(box.label, box.label < 0 ? "others in the ground truth" : facts.classes[box.label].name);
    const rows = [...names].sort((one, other) => one[0] - other[0]).map(([label, name]) => {
      const row = element("label", { "data-label": label }, null);
      const box = element("input", { type: "checkbox" }, null);
      box.checked = !hidden.has(label);
      box.addEventListener("change", () => { if (box.checked) hidden.delete(label); else hidden.add(label); redraw(); });
      const swatch = element("span", { class: "swatch" }, null), text = element("span", { class: "called" }, null);
      swatch.style.background = css(colour(label));
      text.textContent = name;
      row.append(box, swatch, text, element("span", { class: "count" }, null));
      const item = element("li", {}, null);
      item.append(row);
      return item;
    });
    byId("class-list").replaceChildren(...rows);
    byId("classes").hidden = !rows.length;
  }
  function switchAll(on) {
    for (const row of byId("class-list").querySelectorAll("label")) {
      const label = Number(row.dataset.label);
      if (on) hidden.delete(label); else hidden.add(label);
      row.querySelector("input").checked = on;
    }
    redraw();
  }

  // --- drawing

  // Where tags go, the strongest choosing first, so that none hides another: at its box, else none.
  function placeTags(items, width, height, letter) {
    const pen = document.createElement("canvas").getContext("2d");
    pen.font = FONT;
    const taken = [], tags = [], tall = letter * 1.4;
    for (const { box: [x1, y1, x2, y2], text, label } of items) {
      const wide = (pen.measureText(text).width * letter) / 12 + letter * 0.6;
      const outside = [[x1, y1 - tall], [x2 - wide, y1 - tall], [x1, y2], [x2 - wide, y2]];
      const inside = [[x1, y1], [x2 - wide, y1], [x1, y2 - tall], [x2 - wide, y2 - tall]];
      const beside = [[x2, y1], [x1 - wide, y1], [x2, y2 - tall], [x1 - wide, y2 - tall]];
      const places = y1 < tall ? [inside[0], ...outside, ...inside, ...beside] : [...outside, ...inside, ...beside];
      for (const [left, top] of places) {
        const x = Math.max(0, Math.min(left, width - wide)), y = Math.max(0, Math.min(top, height - tall));
        if (taken.some((one) => x < one.x + one.wide && one.x < x + wide && y < one.y + tall && one.y < y + tall)) continue;
        taken.push({ x, y, wide });
        tags.push({ x, y, wide, tall, text, label });
        break;
      }
    }
    return tags;
  }

  // What is shown now, in pixels of a drawing that is `width` wide.
  function scene(width, letter) {
    const scale = width / answer.width, height = answer.height * scale;
    const onScreen = (box) => box.map((edge) => edge * scale);
    const boxes = shown.map((one) => ({ one, box: onScreen(one.box), label: one.label, text: `${facts.classes[one.label].name} ${precise(one.score)}` }));
    const tags = byId("names").checked ? placeTags(boxes, width, height, letter) : [];
    const area = ({ box }) => (box[2] - box[0]) * (box[3] - box[1]);
    const truth = truthShown().map((one) => ({ one, box: onScreen(one.box) }));
    const ordered = [...boxes, ...truth].sort((first, second) => area(second) - area(first)); // small ones on top: they can be pointed at
    return { width, height, scale, boxes, ordered, tags };
  }
  const truthShown = () => (byId("with-truth").checked && answer.truth ? answer.truth.filter((box) => !hidden.has(box.label)) : []);

  function redraw() {
    byId("score-shown").textContent = figure(cut());
    byId("cut-note").textContent = !facts.cut_is_best ? "" : Math.abs(cut() - facts.cut) < STEP ? "the run’s best cut" : `the run’s best cut is ${figure(facts.cut)}`;
    if (!answer) return;
    shown = answer.detections.filter((one) => one.score >= cut() && !hidden.has(one.label));
    const frame = byId("canvas"), ratio = answer.width / answer.height;
    frame.style.width = `min(100%, ${74 * ratio}vh, ${Math.max(answer.width * 3, 240)}px)`;
    frame.style.aspectRatio = `${answer.width} / ${answer.height}`;
    const width = Math.max(frame.clientWidth, 1), now = scene(width, width < 480 ? 10 : 12);
    drawBoxes(now);
    drawMasks(byId("masks"), now.width * Math.min(window.devicePixelRatio, 2));
    describe();
    listRows();
  }

  const rect = ([x1, y1, x2, y2], attributes) => element("rect", { x: x1, y: y1, width: Math.max(x2 - x1, 0), height: Math.max(y2 - y1, 0), ...attributes });
  function drawBoxes({ width, height, ordered, tags }) {
    const svg = byId("boxes");
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    byId("tip").hidden = true;
    const hits = [], groups = { truth: [], found: [] };
    for (const { one, box, label } of ordered) {
      const isTruth = label === undefined, group = element("g", {}), hit = rect(box, { class: "hit" });
      group.append(
        rect(box, { class: isTruth ? "truth-casing" : "casing" }),
        rect(box, isTruth ? { class: "truth" } : { class: "box", stroke: css(colour(label)), "data-label": label }),
      );
      hit.addEventListener("pointerenter", () => point(group, one, box, isTruth));
      hit.addEventListener("pointerleave", () => { group.classList.remove("pointed"); byId("tip").hidden = true; });
      groups[isTruth ? "truth" : "found"].push(group);
      hits.push(hit);
    }
    const labels = tags.map(({ x, y, wide, tall, text, label }) => {
      const group = element("g", { class: "tag" }), letter = tall / 1.4;
      const words = element("text", { x: x + letter * 0.3, y: y + letter * 1.05, "font-size": letter, fill: ink(colour(label)) });
      words.textContent = text;
      group.append(element("rect", { x, y, width: wide, height: tall, fill: css(colour(label)) }), words);
      return group;
    });
    svg.replaceChildren(...groups.truth, ...groups.found, ...labels, ...hits);
  }
  function figures(one) {
    const [x1, y1, x2, y2] = one.box;
    return `left ${x1.toFixed(0)}, top ${y1.toFixed(0)}, ${(x2 - x1).toFixed(0)} × ${(y2 - y1).toFixed(0)} pixels`;
  }
  function point(group, one, box, isTruth) {
    group.classList.add("pointed");
    const tip = byId("tip"), frame = byId("canvas");
    tip.textContent = `${one.name}${isTruth ? `, ground truth${one.crowd ? " (crowd)" : ""}` : `, score ${one.score.toFixed(4)}`}: ${figures(one)}`;
    tip.hidden = false;
    const below = box[3] + 8, above = box[1] - tip.offsetHeight - 8;
    const top = below + tip.offsetHeight < frame.clientHeight ? below : above >= 0 ? above : 4;
    tip.style.left = `${Math.max(0, Math.min(box[0], frame.clientWidth - tip.offsetWidth))}px`;
    tip.style.top = `${top}px`;
  }

  // COCO's compressed run lengths, as cachedet/data/masks.py writes them: columns from the left.
  function runsOf(text) {
    const runs = [];
    for (let at = 0; at < text.length;) {
      let value = 0, shift = 0, more = true;
      while (more) {
        const digit = text.charCodeAt(at++) - 48;
        value |= (digit & 31) << shift;
        more = (digit & 32) !== 0;
        shift += 5;
        if (!more && digit & 16) value |= -1 << shift;
      }
      runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
    }
    return runs;
  }
  // A mask as an image of the drawing's size: each column of its runs, one pixel wide or more.
  function paintMask(pen, segmentation, scale) {
    const tall = segmentation.size[0];
    let from = 0, isObject = false;
    for (const run of runsOf(segmentation.counts)) {
      for (let at = from; isObject && at < from + run;) {
        const column = Math.floor(at / tall), end = Math.min(from + run, (column + 1) * tall);
        const left = Math.floor(column * scale), top = Math.floor((at - column * tall) * scale);
        const right = Math.max(Math.floor((column + 1) * scale), left + 1), bottom = Math.floor((end - column * tall) * scale);
        pen.fillRect(left, top, right - left, Math.max(bottom - top, 1));
        at = end;
      }
      from += run;
      isObject = !isObject;
    }
  }
  function drawMasks(canvas, width) {
    canvas.width = Math.round(width);
    canvas.height = Math.round((width * answer.height) / answer.width);
    if (!byId("with-masks").checked) return;
    const pen = canvas.getContext("2d");
    for (const one of [...shown].reverse()) {
      if (!one.segmentation) continue;
      pen.fillStyle = css(colour(one.label));
      paintMask(pen, one.segmentation, canvas.width / answer.width);
    }
  }

  function describe() {
    const found = answer.detections, truth = answer.truth;
    let text = `${shown.length} of ${found.length} detections shown, from score ${figure(cut())}`;
    if (!found.length) text = "Nothing was found";
    else if (!shown.length && found[0].score < cut()) text = `Nothing scores ${figure(cut())} or more; the highest is ${Math.floor(found[0].score * 1e4) / 1e4}`;
    if (truth) text += `; ${truth.length} in the ground truth`;
    if (answer.truth_note) text += `; ${answer.truth_note}`;
    byId("status").textContent = text;
    for (const row of byId("class-list").querySelectorAll("label")) {
      const label = Number(row.dataset.label), isIt = (one) => one.label === label;
      const above = found.filter((one) => isIt(one) && one.score >= cut()).length;
      row.querySelector(".count").textContent = truth ? `${above} found · ${truth.filter(isIt).length} annotated` : String(above);
    }
    byId("truth-control").hidden = !truth;
  }
  function listRows() {
    byId("list").hidden = !shown.length;
    byId("rows").replaceChildren(...shown.map((one) => {
      const row = element("tr", {}, null), [x1, y1, x2, y2] = one.box;
      const head = element("th", { scope: "row" }, null), swatch = element("span", { class: "swatch" }, null);
      swatch.style.background = css(colour(one.label));
      head.append(swatch, facts.classes[one.label].name);
      row.append(head, ...[precise(one.score), x1.toFixed(0), y1.toFixed(0), `${(x2 - x1).toFixed(0)} × ${(y2 - y1).toFixed(0)}`].map((text) => {
        const cell = element("td", {}, null);
        cell.textContent = text;
        return cell;
      }));
      return row;
    }));
  }

  // --- downloads

  function save(blob, ending) {
    const link = element("a", { download: answer.name.replace(/^.*\//, "").replace(/\.[^.]*$/, "") + ending, href: URL.createObjectURL(blob) }, null);
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
  function saveJson() {
    const detections = shown.map(({ label, number, ...one }) => one);
    const values = { file: answer.name, width: answer.width, height: answer.height, min_score: cut(), detections };
    save(new Blob([JSON.stringify(values, null, 1)], { type: "application/json" }), "-detections.json");
  }
  function savePng() {
    const image = byId("image"), canvas = element("canvas", { width: image.naturalWidth, height: image.naturalHeight }, null);
    const pen = canvas.getContext("2d"), long = Math.max(canvas.width, canvas.height);
    const line = Math.max(2, Math.round(long / 350)), letter = Math.max(12, Math.round(long / 55));
    pen.drawImage(image, 0, 0);
    const masks = element("canvas", {}, null);
    drawMasks(masks, canvas.width);
    pen.globalAlpha = 0.5;
    pen.drawImage(masks, 0, 0);
    pen.globalAlpha = 1;
    const { ordered, tags } = scene(canvas.width, letter);
    const isTruth = ({ label }) => label === undefined;
    for (const { box: [x1, y1, x2, y2], label } of [...ordered.filter(isTruth), ...ordered.filter((one) => !isTruth(one))]) {
      for (const [width, stroke] of [[line + 2, "rgb(0 0 0 / .7)"], [line, css(colour(label ?? -1))]]) {
        pen.setLineDash(label === undefined && width === line ? [3 * line, 2 * line] : []);
        pen.lineWidth = width;
        pen.strokeStyle = stroke;
        pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
      }
    }
    pen.font = FONT.replace("12px", `${letter}px`);
    for (const { x, y, wide, tall, text, label } of tags) {
      pen.fillStyle = css(colour(label));
      pen.fillRect(x, y, wide, tall);
      pen.fillStyle = ink(colour(label));
      pen.fillText(text, x + letter * 0.3, y + letter * 1.05);
    }
    canvas.toBlob((blob) => save(blob, "-boxes.png"), "image/png");
  }

  // --- hands

  function listen() {
    byId("file").addEventListener("change", ({ target }) => { if (target.files.length) take(target.files); target.value = ""; });
    byId("previous").addEventListener("click", () => go(-1));
    byId("next").addEventListener("click", () => go(1));
    byId("earlier").addEventListener("click", () => list(Math.max(start - facts.page, 0)));
    byId("later").addEventListener("click", () => list(start + facts.page));
    byId("all-classes").addEventListener("click", () => switchAll(true));
    byId("no-classes").addEventListener("click", () => switchAll(false));
    byId("save-json").addEventListener("click", saveJson);
    byId("save-png").addEventListener("click", savePng);
    byId("panel").addEventListener("submit", (event) => event.preventDefault());
    for (const id of ["score", "names", "with-masks", "with-truth"]) byId(id).addEventListener("input", redraw);
    new ResizeObserver(() => { if (answer) redraw(); }).observe(byId("stage"));
    document.addEventListener("keydown", (event) => {
      const isForControl = event.target.closest?.("input, select, textarea, summary, [role=region]");
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step || isForControl || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      go(step);
    });
    let depth = 0; // of elements that the pointer entered while dragging
    const drag = (change) => { depth = Math.max(depth + change, 0); document.body.classList.toggle("dragging", depth > 0); };
    document.addEventListener("dragenter", () => drag(1));
    document.addEventListener("dragleave", () => drag(-1));
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", (event) => { event.preventDefault(); drag(-depth); take(event.dataTransfer.files); });
  }

  async function begin() {
    try { facts = await ask("facts"); } catch (error) { say(error.message); return; }
    listen();
    document.title = `${facts.title} · cachedet serve`;
    byId("title").textContent = facts.title;
    const classes = facts.classes.length === 1 ? "1 class" : `${facts.classes.length} classes`;
    byId("about").textContent = `${classes} · images are resized to ${facts.image_size} pixels`;
    byId("score").value = Math.floor(facts.cut / STEP + 1e-9) * STEP; // what has this score is kept
    redraw();
    if (facts.images) {
      byId("or-folder").hidden = byId("folder").hidden = false;
      byId("folder-title").textContent = facts.folder;
      place = { of: "folder", number: -1 };
      await list(0);
    }
  }
  begin();
})();
