"use strict";
(async () => {
  const $ = (id) => document.getElementById(id);
  const page = JSON.parse($("page-data").textContent);
  const VIEWS = ["axial", "coronal", "sagittal"];
  const LOWEST_HU = page.lowest_hu;

  function fail(message) {
    $("failure").textContent = message;
    $("failure").hidden = false;
    $("status").textContent = "";
  }
  if (!Voxels.can) {
    fail("This browser is too old for the pictures (it lacks DecompressionStream); the figures are complete.");
    return;
  }

  const grid = page.grid;
  const [rows, columns, slices] = grid.shape;
  const [rowMm, columnMm, sliceMm] = grid.spacing_mm;
  const coarse = { factor: grid.factor, rows: Math.ceil(rows / grid.factor), columns: Math.ceil(columns / grid.factor) };
  const fine = { factor: 1, rows, columns };
  const arrays = {}, full = new Map();
  const labels = page.layers.filter((layer) => layer.kind === "labels").map((layer) => layer.key);
  const stacks = [], fullStacks = {}, loaded = new Set();
  const isLoaded = (slice) => loaded.has(Math.floor(slice / page.slices_a_line));
  let meshes = null, shares = null;
  try {
    const open = (key, kind) => {
      stacks.push(Voxels.stack("blob-" + key, kind, slices, coarse.rows, coarse.columns, page.slices_a_line));
      arrays[key] = stacks.at(-1).values;
    };
    open("hu", "steps");
    for (const key of [...page.layers.map((layer) => layer.key), "lesions"]) open(key, "bytes");
    if (page.full_slices.length) for (const key of ["hu", ...labels])
      fullStacks[key] = Voxels.stack("blob-full-" + key, key === "hu" ? "steps" : "bytes", page.full_slices.length, rows, columns, 1);
    // what the first picture needs; the rest follows once it is seen
    await loadPart(Math.floor(page.start.slice / page.slices_a_line));
    if (page.full_slices.includes(page.start.slice)) await loadFull(page.full_slices.indexOf(page.start.slice));
  } catch (error) {
    damaged(error);
    return;
  }

  function damaged(error) {
    fail("The pictures in this file are damaged (" + error.message + "); the figures are complete.");
  }
  async function loadPart(part) {
    for (const one of stacks) await one.load(part);
    loaded.add(part);
  }
  async function loadFull(place) {
    const size = rows * columns, found = {};
    for (const key in fullStacks) {
      await fullStacks[key].load(place);
      found[key] = fullStacks[key].values.subarray(place * size, (place + 1) * size);
    }
    full.set(page.full_slices[place], found);
  }

  // All parts that the first picture did not need, those nearest to what is looked at first.
  async function loadRest() {
    const distance = (slice) => Math.abs(slice - at.axial);
    const first = (part) => part * page.slices_a_line, nearest = (some, slice) =>
      some.reduce((best, one) => (distance(slice(one)) < distance(slice(best)) ? one : best));
    const parts = [...Array(stacks[0].parts).keys()].filter((part) => part !== Math.floor(page.start.slice / page.slices_a_line));
    const sharp = page.full_slices.map((_, place) => place).filter((place) => !full.has(page.full_slices[place]));
    let told = performance.now();
    const seen = async () => { // pictures follow now and then, and what was asked for comes in between
      if (performance.now() - told < 250) return;
      refresh();
      await new Promise((done) => setTimeout(done));
      told = performance.now();
    };
    while (parts.length) {
      const next = nearest(parts, (part) => Math.min(Math.max(at.axial, first(part)), first(part) + page.slices_a_line - 1));
      await loadPart(next);
      parts.splice(parts.indexOf(next), 1);
      await seen();
    }
    while (sharp.length) {
      const next = nearest(sharp, (place) => page.full_slices[place]);
      await loadFull(next);
      sharp.splice(sharp.indexOf(next), 1);
      await seen();
    }
    document.body.dataset.complete = "true";
    refresh();
  }

  // --- State ---

  const at = { axial: page.start.slice, coronal: page.start.row, sagittal: page.start.column }; // counted from 0
  const lengths = { axial: slices, coronal: rows, sagittal: columns };
  const MM = { axial: [columns * columnMm, rows * rowMm], coronal: [columns * columnMm, slices * sliceMm],
    sagittal: [rows * rowMm, slices * sliceMm] };
  const LETTERS = { axial: "RLAP", coronal: "RLSI", sagittal: "APSI" };
  const look = {}; // what part of a view is seen: zoom, and the point in its middle in mm
  for (const view of VIEWS) look[view] = { zoom: 1, x: MM[view][0] / 2, y: MM[view][1] / 2 };
  const shown = {};
  let safe = page.safe_colors, cross = true, marks = true, lesion = page.lesions.length ? 0 : -1;
  let tool = "point", ruler = null, pointer = null, active = "axial";
  let windowing = { width: page.windows[0].width, level: page.windows[0].level };
  let gray = null, solid = null, plan = null;
  const colorOf = (label) => (safe ? page.classes[label].safe_color : page.classes[label].color);

  function setWindow(width, level) {
    windowing = { width, level };
    // as the library has it: level - width // 2 to level + width // 2
    const half = Math.floor(width / 2), low = level - half, range = Math.max(2 * half, 1);
    gray = new Uint8ClampedArray(Math.ceil(8192 / grid.step_hu));
    for (let q = 0; q < gray.length; q++) gray[q] = (255 * (q * grid.step_hu + LOWEST_HU - low)) / range;
  }

  // --- Planes ---

  // What a view shows of a volume (slice, row, column): rows run down, head and front are up.
  function plane(array, view, size) {
    const R = size.rows, C = size.columns;
    if (view === "axial") return { width: C, height: R, data: array.subarray(at.axial * R * C, (at.axial + 1) * R * C) };
    const width = view === "coronal" ? C : R, data = new array.constructor(width * slices);
    const fixed = Math.min(Math.floor(at[view] / size.factor), (view === "coronal" ? R : C) - 1);
    for (let y = 0, i = 0; y < slices; y++) {
      const s = (slices - 1 - y) * R * C;
      if (view === "coronal") for (let x = 0; x < C; x++) data[i++] = array[s + fixed * C + x];
      else for (let x = 0; x < R; x++) data[i++] = array[s + x * C + fixed];
    }
    return { width, height: slices, data };
  }

  // A picture, and the size of its pixels in mm; a coarse grid may reach beyond the volume's edge by a part of a pixel.
  function source(key, view) {
    const part = view === "axial" ? full.get(at.axial) : undefined, own = part && part[key];
    const size = own ? fine : coarse;
    const picture = own ? { width: columns, height: rows, data: part[key] } : plane(arrays[key], view, size);
    return { ...picture, dx: size.factor * (view === "sagittal" ? rowMm : columnMm),
      dy: view === "axial" ? size.factor * rowMm : sliceMm };
  }

  const scratch = document.createElement("canvas");
  function paint(context, frame, picture, color) {
    scratch.width = picture.width;
    scratch.height = picture.height;
    const into = scratch.getContext("2d"), image = into.createImageData(picture.width, picture.height);
    color(picture, image.data);
    into.putImageData(image, 0, 0);
    const [x, y] = frame.place(0, 0);
    context.drawImage(scratch, x, y, picture.width * picture.dx * frame.scale, picture.height * picture.dy * frame.scale);
  }

  function asGray({ data }, out) {
    for (let i = 0, o = 0; i < data.length; i++) {
      const value = gray[data[i]];
      out[o++] = value; out[o++] = value; out[o++] = value; out[o++] = 255;
    }
  }

  function asFill(opacity) {
    const colors = page.classes.map((c, i) => colorOf(i)), alpha = Math.round(255 * opacity);
    return ({ data }, out) => {
      for (let i = 0; i < data.length; i++) if (data[i]) {
        const color = colors[data[i]];
        out[4 * i] = color[0]; out[4 * i + 1] = color[1]; out[4 * i + 2] = color[2]; out[4 * i + 3] = alpha;
      }
    };
  }

  function asHeat(table, opacity) {
    return ({ data }, out) => {
      for (let i = 0; i < data.length; i++) {
        const value = data[i], color = table[value >> 2];
        out[4 * i] = color[0]; out[4 * i + 1] = color[1]; out[4 * i + 2] = color[2];
        out[4 * i + 3] = value * opacity; // the weaker, the more transparent
      }
    };
  }

  // Marching squares: the border of a label's pixels, in pixels; of a dotted one every other piece.
  const PIECES = [[], [3, 0], [0, 1], [3, 1], [1, 2], [3, 0, 1, 2], [0, 2], [3, 2], [2, 3], [0, 2], [0, 1, 2, 3], [1, 2], [3, 1], [0, 1], [3, 0], []];
  function outline({ width, height, data }, label, dotted) {
    const path = new Path2D(), isIn = (x, y) => (x >= 0 && y >= 0 && x < width && y < height && data[y * width + x] === label ? 1 : 0);
    let left = width, right = -1, top = height, bottom = -1;
    for (let y = 0, i = 0; y < height; y++) for (let x = 0; x < width; x++, i++) if (data[i] === label) {
      if (x < left) left = x;
      if (x > right) right = x;
      if (y < top) top = y;
      bottom = y;
    }
    for (let y = top - 1; y <= bottom; y++) for (let x = left - 1; x <= right; x++) {
      if (dotted && (x + y) & 2) continue;
      const pieces = PIECES[isIn(x, y) | (isIn(x + 1, y) << 1) | (isIn(x + 1, y + 1) << 2) | (isIn(x, y + 1) << 3)];
      for (let p = 0; p < pieces.length; p += 2) for (let end = 0; end < 2; end++) {
        const side = pieces[p + end];
        const px = x + 0.5 + [0.5, 1, 0.5, 0][side], py = y + 0.5 + [0, 0.5, 1, 0.5][side];
        if (end) path.lineTo(px, py);
        else path.moveTo(px, py);
      }
    }
    return path;
  }

  // --- Drawing ---

  // Where the crosshair is in a view, in mm from its upper left corner.
  function center(view) {
    const x = (at.sagittal + 0.5) * columnMm, y = (at.coronal + 0.5) * rowMm, up = (slices - at.axial - 0.5) * sliceMm;
    return { axial: [x, y], coronal: [x, up], sagittal: [y, up] }[view];
  }

  // How mm in a view become pixels of its canvas.
  function frameOf(view) {
    const canvas = $(view), { zoom, x, y } = look[view], [widthMm, heightMm] = MM[view];
    const scale = Math.min(canvas.width / widthMm, canvas.height / heightMm) * zoom;
    return { scale, place: (a, b) => [canvas.width / 2 + (a - x) * scale, canvas.height / 2 + (b - y) * scale] };
  }

  function write(context, text, x, y, align, base, color = "#fff") {
    context.textAlign = align;
    context.textBaseline = base;
    context.lineJoin = "round";
    context.lineWidth = 4 * (window.devicePixelRatio || 1);
    context.strokeStyle = "#000";
    context.strokeText(text, x, y);
    context.fillStyle = color;
    context.fillText(text, x, y);
  }

  // A line that shows on bright and on dark.
  function stroke(context, points, color, width) {
    for (const [style, wide] of [["#000", width + 2 * (window.devicePixelRatio || 1)], [color, width]]) {
      context.strokeStyle = style;
      context.lineWidth = wide;
      context.beginPath();
      points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
      context.stroke();
    }
  }

  function drawLayers(context, view, frame, ratio) {
    for (const layer of page.layers) {
      const state = shown[layer.key];
      if (!state.on) continue;
      const picture = source(layer.key, view);
      if (layer.kind === "strength") {
        paint(context, frame, picture, asHeat(page.tables[layer.key], state.opacity));
        continue;
      }
      if (state.opacity) paint(context, frame, picture, asFill(state.opacity));
      const matrix = new DOMMatrix([picture.dx * frame.scale, 0, 0, picture.dy * frame.scale, ...frame.place(0, 0)]);
      for (let label = 1; label < page.classes.length; label++) { // where two classes meet, the later one's line is on top
        const path = new Path2D();
        path.addPath(outline(picture, label, layer.key === "truth"), matrix);
        context.strokeStyle = "rgb(" + colorOf(label).join(",") + ")";
        context.lineWidth = (layer.key === "truth" ? 2.2 : 1.6) * ratio;
        context.stroke(path);
      }
    }
  }

  // Each lesion's number, at the upper right of what the view shows of it.
  function drawNumbers(context, view, frame, ratio) {
    const { width, data, dx, dy } = source("lesions", view), boxes = new Map();
    for (let i = 0; i < data.length; i++) if (data[i]) {
      const x = i % width, y = Math.floor(i / width), box = boxes.get(data[i]);
      if (!box) boxes.set(data[i], [x, y]);
      else box[0] = Math.max(box[0], x);
    }
    context.font = "600 " + 14 * ratio + "px system-ui, sans-serif";
    for (const [number, [x, y]] of boxes) {
      const [px, py] = frame.place((x + 1) * dx, y * dy);
      // within the picture, and below the letter in the middle of its upper edge
      const least = Math.abs(px + 8 * ratio - $(view).width / 2) < 26 * ratio ? 42 * ratio : 16 * ratio;
      write(context, String(number), px + 3 * ratio, Math.max(py, least), "left", "bottom", number - 1 === lesion ? "#fff" : "#ffd98a");
    }
  }

  function drawDiameters(context, frame, ratio) {
    const own = page.lesions[lesion];
    if (!own || !own.axes || own.axes.slice !== at.axial) return;
    for (const ends of [own.axes.long, own.axes.short])
      stroke(context, ends.map(([row, column]) => frame.place((column + 0.5) * columnMm, (row + 0.5) * rowMm)), "#fff", 1.3 * ratio);
  }

  // A view's point, in mm from its upper left corner, as mm to the left, back and head from the middle of the volume.
  function bodyPlace(view) {
    const [x, y, z] = [(at.sagittal + 0.5 - columns / 2) * columnMm, (at.coronal + 0.5 - rows / 2) * rowMm, (at.axial + 0.5 - slices / 2) * sliceMm];
    const wide = MM[view][0] / 2, high = MM[view][1] / 2;
    return { axial: (a, b) => [a - wide, b - high, z], coronal: (a, b) => [a - wide, y, high - b], sagittal: (a, b) => [x, a - wide, high - b] }[view];
  }

  // The cut, and what of the organ is resected by it, shaded.
  function drawPlan(context, view, frame, ratio) {
    const depth = plan.depth(), place = bodyPlace(view);
    if (!depth) return;
    paint(context, frame, source("mask", view), ({ width, data, dx, dy }, out) => {
      for (let i = 0; i < data.length; i++)
        if (page.plan.labels.includes(data[i]) && depth(...place(((i % width) + 0.5) * dx, (Math.floor(i / width) + 0.5) * dy)) > 0)
          out.set([255, 122, 217, 85], 4 * i);
    });
    context.strokeStyle = "#ff7ad9";
    context.lineWidth = 2 * ratio;
    context.beginPath();
    for (const [from, to] of plan.lines(place, ...MM[view])) { context.moveTo(...frame.place(...from)); context.lineTo(...frame.place(...to)); }
    context.stroke();
  }

  const BARS_MM = [200, 100, 50, 20, 10, 5, 2, 1];
  function drawScale(context, canvas, frame, ratio) {
    const most = canvas.width / 3, length = BARS_MM.find((mm) => mm * frame.scale <= most) || 1;
    const x = 8 * ratio, y = canvas.height - 9 * ratio;
    stroke(context, [[x, y], [x + length * frame.scale, y]], "#fff", 2.5 * ratio);
    context.font = 13 * ratio + "px system-ui, sans-serif";
    write(context, length + " mm", x, y - 4 * ratio, "left", "bottom");
  }

  function draw(view) {
    const canvas = $(view), ratio = window.devicePixelRatio || 1, [widthMm, heightMm] = MM[view];
    canvas.style.aspectRatio = widthMm + " / " + heightMm;
    const box = canvas.getBoundingClientRect();
    canvas.width = Math.max(1, Math.round(box.width * ratio));
    canvas.height = Math.max(1, Math.round(box.height * ratio));
    const context = canvas.getContext("2d"), W = canvas.width, H = canvas.height, frame = frameOf(view);
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    paint(context, frame, source("hu", view), asGray);
    drawLayers(context, view, frame, ratio);
    if (cross) {
      const [x, y] = frame.place(...center(view)), gap = 9 * ratio;
      context.strokeStyle = "rgba(127, 180, 216, 0.45)";
      context.lineWidth = ratio;
      context.beginPath();
      for (const [from, to] of [[0, x - gap], [x + gap, W]]) { context.moveTo(from, y); context.lineTo(to, y); }
      for (const [from, to] of [[0, y - gap], [y + gap, H]]) { context.moveTo(x, from); context.lineTo(x, to); }
      context.stroke();
    }
    if (plan) drawPlan(context, view, frame, ratio);
    if (marks) {
      drawNumbers(context, view, frame, ratio);
      if (view === "axial") drawDiameters(context, frame, ratio);
    }
    if (ruler && ruler.view === view && ruler.index === at[view]) {
      const ends = [frame.place(...ruler.from), frame.place(...ruler.to)];
      stroke(context, ends, "#7df0a0", 1.6 * ratio);
      context.font = "600 " + 14 * ratio + "px system-ui, sans-serif";
      write(context, rulerMm().toFixed(1) + " mm", ends[1][0] + 6 * ratio, ends[1][1], "left", "middle", "#7df0a0");
    }
    if (view === "axial" && !isLoaded(at.axial)) {
      context.font = 15 * ratio + "px system-ui, sans-serif";
      write(context, "loading", W / 2, H / 2, "center", "middle");
    }
    drawScale(context, canvas, frame, ratio);
    context.font = "600 " + 15 * ratio + "px system-ui, sans-serif";
    const [left, right, top, bottom] = LETTERS[view], inset = 6 * ratio;
    write(context, left, inset, H / 2, "left", "middle");
    write(context, right, W - inset, H / 2, "right", "middle");
    write(context, top, W / 2, inset, "center", "top");
    write(context, bottom, W / 2, H - inset, "center", "bottom");
  }

  const rulerMm = () => Math.hypot(ruler.to[0] - ruler.from[0], ruler.to[1] - ruler.from[1]);

  // What lies under the pointer, which stays where it is while the wheel turns.
  function readout() {
    if (!pointer) { $("readout").textContent = "\u00a0"; return; }
    const v = voxel(pointer.view, ...pointer.mm);
    if (!isLoaded(v.axial)) { $("readout").textContent = "loading slice " + (v.axial + 1); return; }
    const part = full.get(v.axial), size = part ? fine : coarse;
    const index = Math.floor(v.coronal / size.factor) * size.columns + Math.floor(v.sagittal / size.factor);
    const step = part ? part.hu[index] : arrays.hu[v.axial * size.rows * size.columns + index];
    const label = part ? part.mask[index] : arrays.mask[v.axial * size.rows * size.columns + index];
    const number = lesionAt(v);
    $("readout").textContent = step * grid.step_hu + LOWEST_HU + " HU, " + page.classes[label].name
      + (number ? " (lesion " + number + ")" : "") + "; slice " + (v.axial + 1) + ", row " + (v.coronal + 1) + ", column " + (v.sagittal + 1);
  }

  const lesionAt = (v) => arrays.lesions[(v.axial * coarse.rows + Math.floor(v.coronal / coarse.factor)) * coarse.columns
    + Math.floor(v.sagittal / coarse.factor)];

  function voxel(view, x, y) {
    const clip = (value, count) => Math.max(0, Math.min(count - 1, Math.floor(value)));
    const up = clip(slices - 1e-9 - y / sliceMm, slices), column = clip(x / columnMm, columns);
    return { axial: { axial: at.axial, coronal: clip(y / rowMm, rows), sagittal: column },
      coronal: { axial: up, coronal: at.coronal, sagittal: column },
      sagittal: { axial: up, coronal: clip(x / rowMm, rows), sagittal: at.sagittal } }[view];
  }

  let pending = false, painted = () => {};
  function refresh() {
    if (pending) return;
    pending = true;
    requestAnimationFrame(() => {
      pending = false;
      VIEWS.forEach(draw);
      for (const view of VIEWS) {
        $(view + "-slider").value = at[view] + 1;
        $(view + "-label").textContent = at[view] + 1 + " of " + lengths[view];
      }
      const sharp = full.has(at.axial) || grid.factor === 1;
      $("status").textContent = "Slice " + (at.axial + 1) + " of " + slices + " from inferior, "
        + (sharp ? columns + " x " + rows + " (full resolution)" : coarse.columns + " x " + coarse.rows + " (reduced to keep the file small)")
        + "; width " + windowing.width + ", level " + windowing.level + " HU"
        + (loaded.size < stacks[0].parts ? "; " + Math.round((100 * loaded.size) / stacks[0].parts) + " % of slices loaded" : "");
      readout();
      document.body.dataset.ruler = ruler ? rulerMm().toFixed(1) + " mm" : "";
      document.querySelectorAll("tbody.lesion").forEach((row) => row.classList.toggle("current",
        Number(row.dataset.lesion) === lesion && page.lesions[lesion].slices[0] <= at.axial && at.axial <= page.lesions[lesion].slices[1]));
      document.body.dataset.ready = "true";
      painted();
    });
  }

  function move(view, index) {
    const next = Math.max(0, Math.min(lengths[view] - 1, index));
    if (next === at[view]) return;
    at[view] = next;
    refresh();
  }

  // --- Pointer, wheel, keys ---

  // Where a pointer is in a view, in mm.
  function mmAt(view, event) {
    const canvas = $(view), box = canvas.getBoundingClientRect(), frame = frameOf(view), ratio = canvas.width / box.width;
    return [look[view].x + ((event.clientX - box.left) * ratio - canvas.width / 2) / frame.scale,
      look[view].y + ((event.clientY - box.top) * ratio - canvas.height / 2) / frame.scale];
  }

  function zoomAt(view, factor, mm) {
    const own = look[view], next = Math.max(1, Math.min(20, own.zoom * factor)), share = own.zoom / next;
    Object.assign(own, { zoom: next, x: mm[0] + (own.x - mm[0]) * share, y: mm[1] + (own.y - mm[1]) * share });
    if (next === 1) Object.assign(own, { x: MM[view][0] / 2, y: MM[view][1] / 2 });
    refresh();
  }

  function pan(view, x, y) {
    const own = look[view];
    own.x = Math.max(0, Math.min(MM[view][0], own.x - x));
    own.y = Math.max(0, Math.min(MM[view][1], own.y - y));
    refresh();
  }

  function dragWindow(x, y) {
    own(Math.max(2, Math.min(4096, windowing.width + 2 * Math.round(x))), Math.max(-1024, Math.min(3071, windowing.level + Math.round(y))));
  }

  for (const view of VIEWS) {
    const slider = $(view + "-slider"), canvas = $(view);
    slider.max = lengths[view];
    slider.addEventListener("input", () => move(view, Number(slider.value) - 1));
    canvas.addEventListener("focus", () => { active = view; });
    // Down the page is towards the feet, the back, and the patient's left.
    const sign = view === "axial" ? -1 : 1;
    let turned = 0;
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (event.ctrlKey) { zoomAt(view, Math.exp(-event.deltaY / 300), mmAt(view, event)); return; }
      // a wheel's notch is one slice; a touchpad's small steps add up to one
      const notch = event.deltaMode || Math.abs(event.deltaY) >= 50;
      turned = notch ? 50 * Math.sign(event.deltaY) : turned + event.deltaY;
      const steps = Math.trunc(turned / 50);
      turned -= 50 * steps;
      if (steps) move(view, at[view] + sign * steps);
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const steps = { ArrowUp: -1, ArrowDown: 1, PageUp: -10, PageDown: 10 }[event.key];
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      if (steps) move(view, at[view] + sign * steps);
      else if (event.key === "Home") move(view, sign < 0 ? lengths[view] - 1 : 0);
      else if (event.key === "End") move(view, sign < 0 ? 0 : lengths[view] - 1);
      else return;
      event.preventDefault();
    });

    const down = new Map(); // pointers that are pressed, and where they were last
    let action = null, moved = 0;
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("pointerdown", (event) => {
      down.set(event.pointerId, [event.clientX, event.clientY]);
      canvas.setPointerCapture(event.pointerId);
      if (event.button === 1) event.preventDefault();
      action = down.size > 1 ? "pinch" : { 1: "pan", 2: "window" }[event.button] || tool;
      if (down.size === 1) moved = 0;
      if (action === "ruler") ruler = { view, index: at[view], from: mmAt(view, event), to: mmAt(view, event) };
    });
    canvas.addEventListener("pointermove", (event) => {
      pointer = { view, mm: mmAt(view, event) };
      const last = down.get(event.pointerId);
      if (!last) { readout(); return; }
      const x = event.clientX - last[0], y = event.clientY - last[1], [other] = [...down].filter(([id]) => id !== event.pointerId);
      moved += Math.abs(x) + Math.abs(y);
      down.set(event.pointerId, [event.clientX, event.clientY]);
      const scale = (frameOf(view).scale * canvas.getBoundingClientRect().width) / canvas.width;
      if (action === "pinch" && other) {
        const apart = (p) => Math.hypot(p[0] - other[1][0], p[1] - other[1][1]);
        zoomAt(view, apart([event.clientX, event.clientY]) / Math.max(apart(last), 1), pointer.mm);
        pan(view, x / scale / 2, y / scale / 2);
      } else if (action === "pan") pan(view, x / scale, y / scale);
      else if (action === "window") dragWindow(x, y);
      else if (action === "cut" && plan) {
        const place = bodyPlace(view), [from, to] = [place(0, 0), place(x / scale, y / scale)];
        plan.drag(to.map((v, i) => v - from[i]));
      } else if (action === "ruler") { ruler.to = mmAt(view, event); refresh(); }
      else if (action === "point" && moved > 4) { Object.assign(at, voxel(view, ...pointer.mm)); refresh(); }
    });
    const up = (event) => {
      if (!down.delete(event.pointerId)) return;
      if (event.type === "pointerup" && action === "point" && moved <= 4) {
        const v = voxel(view, ...mmAt(view, event)), number = lesionAt(v);
        Object.assign(at, v);
        if (number) select(number - 1, true);
        refresh();
      }
      if (action === "ruler" && rulerMm() < 1) { ruler = null; refresh(); }
    };
    canvas.addEventListener("pointerup", up);
    canvas.addEventListener("pointercancel", up);
    canvas.addEventListener("pointerleave", () => { pointer = null; readout(); });
  }

  // --- Controls ---

  function setTool(name) {
    tool = name;
    document.querySelector('input[name="tool"][value="' + name + '"]').checked = true;
    // a finger scrolls the page unless it has something else to do
    for (const view of VIEWS) $(view).style.touchAction = name === "point" ? "pan-y" : "none";
  }
  document.querySelectorAll('input[name="tool"]').forEach((one) => one.addEventListener("change", () => setTool(one.value)));
  $("zoom-in").addEventListener("click", () => zoomAt(active, 1.5, center(active)));
  $("zoom-out").addEventListener("click", () => zoomAt(active, 1 / 1.5, center(active)));
  function fit() {
    for (const view of VIEWS) Object.assign(look[view], { zoom: 1, x: MM[view][0] / 2, y: MM[view][1] / 2 });
    refresh();
  }
  $("zoom-fit").addEventListener("click", fit);

  const preset = $("preset"), width = $("width"), level = $("level");
  for (const w of page.windows) preset.add(new Option(w.name.replace(/_/g, " ") + " (" + w.width + ", " + w.level + ")", w.name));
  preset.add(new Option("own", "own"));
  function usePreset(name) {
    const chosen = page.windows.find((w) => w.name === name);
    if (!chosen) return;
    own(chosen.width, chosen.level);
    preset.value = name;
  }
  function own(wide, middle) {
    preset.value = "own";
    width.value = wide;
    level.value = middle;
    setWindow(wide, middle);
    refresh();
  }
  preset.addEventListener("change", () => usePreset(preset.value));
  for (const input of [width, level]) input.addEventListener("input", () => {
    if (!width.checkValidity() || !level.checkValidity() || width.value === "" || level.value === "") return;
    preset.value = "own";
    setWindow(Number(width.value), Number(level.value));
    refresh();
  });

  for (const layer of page.layers) {
    shown[layer.key] = { on: layer.on, opacity: layer.opacity };
    const row = document.createElement("div");
    row.className = "overlay";
    row.innerHTML = '<label class="check"><input type="checkbox"> <span></span> <kbd></kbd></label><input type="range" min="0" max="100">';
    const box = row.querySelector("input"), slider = row.lastChild;
    row.querySelector("span").textContent = layer.name;
    row.querySelector("kbd").textContent = layer.letter.toUpperCase();
    box.id = "show-" + layer.key;
    box.checked = layer.on;
    box.addEventListener("change", () => { shown[layer.key].on = box.checked; refresh(); });
    slider.id = "opacity-" + layer.key;
    slider.value = 100 * layer.opacity;
    slider.title = layer.kind === "labels" ? "Fill" : "Opacity";
    slider.setAttribute("aria-label", slider.title + " of " + layer.name);
    slider.addEventListener("input", () => { shown[layer.key].opacity = slider.value / 100; refresh(); });
    $("overlays").insertBefore(row, $("legend"));
  }

  function legend() {
    $("legend").textContent = "";
    page.classes.forEach((one, label) => {
      if (!label || !one.is_drawn) return; // nor is the background
      const mark = document.createElement("span");
      mark.textContent = one.name;
      mark.style.setProperty("--color", "rgb(" + colorOf(label).join(",") + ")");
      $("legend").append(mark);
    });
    for (const layer of page.layers.filter((l) => l.kind === "strength")) {
      const scale = document.createElement("span");
      scale.className = "scale";
      scale.textContent = layer.name + ", low to high";
      const stops = page.tables[layer.key].map((color) => "rgb(" + color.join(",") + ")");
      scale.style.setProperty("--scale", "linear-gradient(to right, " + stops.join(",") + ")");
      $("legend").append(scale);
    }
  }
  $("crosshair").addEventListener("change", () => { cross = $("crosshair").checked; refresh(); });
  $("marks").addEventListener("change", () => { marks = $("marks").checked; refresh(); });
  $("safe-colors").checked = safe;
  $("safe-colors").addEventListener("change", () => { safe = $("safe-colors").checked; legend(); refresh(); if (solid) solid.refresh(); });

  // Corners of surfaces in mm, as the page holds them.
  function cornersOf(about, packed) {
    let offset = 0;
    return about.map((one) => {
      const corners = Float32Array.from(new Int16Array(packed.slice(offset, offset + 6 * one.corners).buffer), (v) => v / 10);
      offset += 6 * one.corners + 12 * one.triangles;
      return { number: one.lesion, corners };
    });
  }

  // --- Lesions: in the table, on the slices, in three dimensions ---

  function select(index, reveal = false) {
    lesion = index;
    if (solid) solid.show(index + 1);
    const row = document.querySelector('tbody.lesion[data-lesion="' + index + '"]');
    if (row && reveal) {
      const list = row.closest(".table");
      list.scrollTop = row.offsetTop - list.clientHeight / 2;
    }
  }
  function goTo(index, reveal = false) {
    if (!page.lesions.length) return;
    select(((index % page.lesions.length) + page.lesions.length) % page.lesions.length, reveal);
    const found = page.lesions[lesion];
    Object.assign(at, { axial: found.slice, coronal: found.row, sagittal: found.column });
    refresh();
  }
  function toPicture() {
    $("axial").focus({ preventScroll: true });
    const box = $("axial").getBoundingClientRect();
    if (box.top < 0 || box.top > window.innerHeight / 2) $("axial-view").scrollIntoView({ block: "start" });
  }
  // a click anywhere in its row; the row's button is there for the keyboard
  document.querySelectorAll("tbody.lesion").forEach((row) => row.addEventListener("click", (event) => {
    if (event.target.closest("details")) return;
    goTo(Number(row.dataset.lesion));
    toPicture();
  }));
  document.querySelectorAll("button[data-place]").forEach((button) => button.addEventListener("click", () => {
    const [row, column, slice] = button.dataset.place.split(",").map(Number);
    Object.assign(at, { axial: slice, coronal: row, sagittal: column });
    select(-1);
    refresh();
    toPicture();
  }));

  const TOOLS = ["point", "window", "pan", "ruler", ...(page.plan ? ["cut"] : [])];
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target.matches("select, input[type=number]")) return;
    const key = event.key.toLowerCase(), layer = page.layers.find((l) => l.letter === key);
    if (layer) $("show-" + layer.key).click();
    else if (key === "x") $("crosshair").click();
    else if (key === "d") $("marks").click();
    else if (key === "n") goTo(lesion + 1, true);
    else if (key === "p") goTo(lesion < 0 ? -1 : lesion - 1, true);
    else if (key === "+" || key === "=") $("zoom-in").click();
    else if (key === "-") $("zoom-out").click();
    else if (key === "0") fit();
    else if (key === "escape") { ruler = null; refresh(); }
    else if (TOOLS[Number(key) - 1]) setTool(TOOLS[Number(key) - 1]);
    else if (key === "w") {
      const now = page.windows.findIndex((w) => w.name === preset.value);
      usePreset(page.windows[(now + 1) % page.windows.length].name);
    } else return;
    event.preventDefault();
  });

  for (const view of VIEWS) new ResizeObserver(refresh).observe($(view + "-view"));
  window.addEventListener("resize", refresh);
  legend();
  usePreset(page.windows[0].name);
  $("axial").focus({ preventScroll: true });
  await new Promise((done) => { painted = done; });
  performance.mark("first-picture");
  try {
    await new Promise((done) => setTimeout(done)); // the picture is on the screen before anything else is begun
    if (page.surfaces.length) meshes = await Voxels.inflate("blob-surfaces");
    if (page.plan) shares = await Voxels.inflate("blob-plan");
    if (meshes) {
      solid = solidView($("solid"), $("solid-labels"), page.surfaces, meshes, colorOf, (number) => { goTo(number - 1, true); });
      if (solid) {
        $("solid-reset").addEventListener("click", () => solid.reset());
        solid.show(lesion + 1);
      } else $("solid-box").textContent = "The 3-D view needs WebGL, which this browser lacks or has turned off.";
    }
    if (shares) {
      const lesions = meshes ? cornersOf(page.surfaces, meshes).filter((one) => one.number) : [];
      plan = planView(page.plan, shares, lesions, solid, refresh);
    }
    await loadRest();
    performance.mark("all-pictures");
  } catch (error) {
    damaged(error);
  }
})();
