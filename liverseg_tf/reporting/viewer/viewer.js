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
  if (typeof DecompressionStream === "undefined") {
    fail("This browser is too old for the pictures (it lacks DecompressionStream); the figures below are complete.");
    return;
  }

  // --- Data: base64 of gzip of what differs from the pixel to the left ---

  async function inflate(id) {
    const text = atob($(id).textContent.trim());
    $(id).remove();
    const packed = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  // Each slice: the low bytes of its differences, then the high bytes; zigzag-coded, each row from 0.
  async function loadSteps(id, count, rows, columns) {
    const raw = await inflate(id);
    const size = rows * columns, steps = new Int16Array(count * size);
    for (let s = 0, i = 0; s < count; s++) {
      const low = 2 * s * size, high = low + size;
      for (let r = 0, k = 0; r < rows; r++) {
        for (let c = 0, value = 0; c < columns; c++, k++, i++) {
          const z = raw[low + k] | (raw[high + k] << 8);
          value += (z >>> 1) ^ -(z & 1);
          steps[i] = value;
        }
      }
    }
    return steps;
  }

  async function loadBytes(id, columns) {
    const values = await inflate(id);
    for (let i = 0; i < values.length; i++) if (i % columns) values[i] = (values[i] + values[i - 1]) & 255;
    return values;
  }

  const grid = page.grid;
  const [rows, columns, slices] = grid.shape;
  const [rowMm, columnMm, sliceMm] = grid.spacing_mm;
  const coarse = { factor: grid.factor, rows: Math.ceil(rows / grid.factor), columns: Math.ceil(columns / grid.factor) };
  const fine = { factor: 1, rows, columns };
  const arrays = {}, full = new Map();
  try {
    arrays.hu = await loadSteps("blob-hu", slices, coarse.rows, coarse.columns);
    for (const layer of page.layers) arrays[layer.key] = await loadBytes("blob-" + layer.key, coarse.columns);
    if (page.full_slices.length) {
      const size = rows * columns, found = {};
      found.hu = await loadSteps("blob-full-hu", page.full_slices.length, rows, columns);
      for (const layer of page.layers.filter((l) => l.kind === "labels"))
        found[layer.key] = await loadBytes("blob-full-" + layer.key, columns);
      page.full_slices.forEach((slice, i) => {
        const part = {};
        for (const key in found) part[key] = found[key].subarray(i * size, (i + 1) * size);
        full.set(slice, part);
      });
    }
  } catch (error) {
    fail("The pictures in this file are damaged (" + error.message + "); the figures below are complete.");
    return;
  }

  // --- State ---

  const at = { axial: page.start.slice, coronal: page.start.row, sagittal: page.start.column }; // counted from 0
  const lengths = { axial: slices, coronal: rows, sagittal: columns };
  const shown = {};
  let safe = page.safe_colors, cross = true, lesion = page.lesions.length ? 0 : -1;
  let windowing = { width: page.windows[0].width, level: page.windows[0].level };
  let gray = null;

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

  function source(key, view) {
    const part = view === "axial" ? full.get(at.axial) : undefined;
    if (part && part[key]) return { size: fine, picture: { width: columns, height: rows, data: part[key] } };
    return { size: coarse, picture: plane(arrays[key], view, coarse) };
  }

  const scratch = document.createElement("canvas");
  function paint(context, picture, extent, color) {
    scratch.width = picture.width;
    scratch.height = picture.height;
    const into = scratch.getContext("2d"), image = into.createImageData(picture.width, picture.height);
    color(picture, image.data);
    into.putImageData(image, 0, 0);
    context.drawImage(scratch, 0, 0, extent.width, extent.height);
  }

  function asGray(picture, out) {
    for (let i = 0, o = 0; i < picture.data.length; i++) {
      const value = gray[picture.data[i]];
      out[o++] = value; out[o++] = value; out[o++] = value; out[o++] = 255;
    }
  }

  function asLabels(colors, opacity, dotted) {
    const fill = Math.round(255 * opacity * (dotted ? 0.15 : 0.4)), edge = Math.round(255 * Math.min(1, 0.35 + opacity));
    return ({ width, height, data }, out) => {
      for (let y = 0, i = 0; y < height; y++) for (let x = 0; x < width; x++, i++) {
        const label = data[i];
        if (!label) continue;
        const border = (x > 0 && data[i - 1] !== label) || (x + 1 < width && data[i + 1] !== label)
          || (y > 0 && data[i - width] !== label) || (y + 1 < height && data[i + width] !== label);
        const color = colors[label];
        out[4 * i] = color[0]; out[4 * i + 1] = color[1]; out[4 * i + 2] = color[2];
        out[4 * i + 3] = border && (!dotted || ((x + y) & 3) < 2) ? edge : fill;
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

  // --- Drawing ---

  const MM = { axial: [columns * columnMm, rows * rowMm], coronal: [columns * columnMm, slices * sliceMm],
    sagittal: [rows * rowMm, slices * sliceMm] };
  const LETTERS = { axial: "RLAP", coronal: "RLSI", sagittal: "APSI" };

  // Where the crosshair is in a view, as fractions of its width and height.
  function center(view) {
    const row = (at.coronal + 0.5) / rows, column = (at.sagittal + 0.5) / columns, up = 1 - (at.axial + 0.5) / slices;
    return { axial: [column, row], coronal: [column, up], sagittal: [row, up] }[view];
  }

  function draw(view) {
    const canvas = $(view), ratio = window.devicePixelRatio || 1, [widthMm, heightMm] = MM[view];
    canvas.style.aspectRatio = widthMm + " / " + heightMm;
    const box = canvas.getBoundingClientRect();
    canvas.width = Math.max(1, Math.round(box.width * ratio));
    canvas.height = Math.max(1, Math.round((box.width * ratio * heightMm) / widthMm));
    const context = canvas.getContext("2d"), W = canvas.width, H = canvas.height;
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";

    // a coarse grid may reach beyond the volume's edge by a part of a pixel
    const extent = (size) => {
      const over = (n, small) => (small * size.factor) / n;
      return { width: W * (view === "sagittal" ? over(rows, size.rows) : over(columns, size.columns)),
        height: H * (view === "axial" ? over(rows, size.rows) : 1) };
    };
    const base = source("hu", view);
    paint(context, base.picture, extent(base.size), asGray);
    for (const layer of page.layers) {
      const state = shown[layer.key];
      if (!state.on || state.opacity === 0) continue;
      const found = source(layer.key, view);
      const color = layer.kind === "labels"
        ? asLabels(page.classes.map((c) => (safe ? c.safe_color : c.color)), state.opacity, layer.key === "truth")
        : asHeat(page.tables[layer.key], state.opacity);
      paint(context, found.picture, extent(found.size), color);
    }
    if (cross) {
      const [x, y] = center(view), gap = 9 * ratio;
      context.strokeStyle = "rgba(127, 180, 216, 0.45)";
      context.lineWidth = ratio;
      context.beginPath();
      for (const [from, to] of [[0, x * W - gap], [x * W + gap, W]]) { context.moveTo(from, y * H); context.lineTo(to, y * H); }
      for (const [from, to] of [[0, y * H - gap], [y * H + gap, H]]) { context.moveTo(x * W, from); context.lineTo(x * W, to); }
      context.stroke();
    }
    context.font = 13 * ratio + "px system-ui, sans-serif";
    context.fillStyle = "#c4cad1";
    context.shadowColor = "#000";
    context.shadowBlur = 3 * ratio;
    const [left, right, top, bottom] = LETTERS[view], inset = 5 * ratio;
    for (const [letter, x, y, align, base2] of [[left, inset, H / 2, "left", "middle"], [right, W - inset, H / 2, "right", "middle"],
      [top, W / 2, inset, "center", "top"], [bottom, W / 2, H - inset, "center", "bottom"]]) {
      context.textAlign = align;
      context.textBaseline = base2;
      context.fillText(letter, x, y);
    }
  }

  let pending = false;
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
      $("status").textContent = "Slice " + (at.axial + 1) + " of " + slices + " from the feet, shown at "
        + (sharp ? columns + " x " + rows + " (full resolution)" : coarse.columns + " x " + coarse.rows) + ", "
        + grid.step_hu + " HU steps; width " + windowing.width + ", level " + windowing.level + " HU";
      document.querySelectorAll("tr[data-lesion]").forEach((row) =>
        row.classList.toggle("current", Number(row.dataset.lesion) === lesion && page.lesions[lesion].slice === at.axial));
      document.body.dataset.ready = "true";
    });
  }

  function move(view, index) {
    const next = Math.max(0, Math.min(lengths[view] - 1, index));
    if (next === at[view]) return;
    at[view] = next;
    refresh();
  }

  // --- Controls ---

  for (const view of VIEWS) {
    const slider = $(view + "-slider"), canvas = $(view);
    slider.max = lengths[view];
    slider.addEventListener("input", () => move(view, Number(slider.value) - 1));
    // Down the page is towards the feet, the back, and the patient's left.
    const sign = view === "axial" ? -1 : 1;
    let turned = 0;
    canvas.addEventListener("wheel", (event) => {
      if (event.ctrlKey) return; // zooms the page
      event.preventDefault();
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
    const point = (event) => {
      // the picture fills its box in one direction and is centered in the other
      const box = canvas.getBoundingClientRect(), scale = Math.min(box.width / canvas.width, box.height / canvas.height);
      return [(event.clientX - box.left - box.width / 2) / (scale * canvas.width) + 0.5,
        (event.clientY - box.top - box.height / 2) / (scale * canvas.height) + 0.5]
        .map((v) => Math.max(0, Math.min(0.999999, v)));
    };
    const voxel = (event) => {
      const [x, y] = point(event), up = Math.floor((1 - y) * slices * 0.9999999);
      return { axial: { axial: at.axial, coronal: Math.floor(y * rows), sagittal: Math.floor(x * columns) },
        coronal: { axial: up, coronal: at.coronal, sagittal: Math.floor(x * columns) },
        sagittal: { axial: up, coronal: Math.floor(x * rows), sagittal: at.sagittal } }[view];
    };
    canvas.addEventListener("click", (event) => {
      Object.assign(at, voxel(event));
      refresh();
    });
    canvas.addEventListener("pointermove", (event) => {
      const v = voxel(event), part = full.get(v.axial), size = part ? fine : coarse;
      const index = Math.floor(v.coronal / size.factor) * size.columns + Math.floor(v.sagittal / size.factor);
      const step = part ? part.hu[index] : arrays.hu[v.axial * size.rows * size.columns + index];
      const mask = part ? part.mask[index] : arrays.mask[v.axial * size.rows * size.columns + index];
      $("readout").textContent = step * grid.step_hu + LOWEST_HU + " HU, " + page.classes[mask].name
        + " (slice " + (v.axial + 1) + ", row " + (v.coronal + 1) + ", column " + (v.sagittal + 1) + ")";
    });
    canvas.addEventListener("pointerleave", () => { $("readout").textContent = "\u00a0"; });
  }

  const preset = $("preset"), width = $("width"), level = $("level");
  for (const w of page.windows) preset.add(new Option(w.name.replace(/_/g, " ") + " (" + w.width + ", " + w.level + ")", w.name));
  preset.add(new Option("own", "own"));
  function usePreset(name) {
    const chosen = page.windows.find((w) => w.name === name);
    if (!chosen) return;
    preset.value = name;
    width.value = chosen.width;
    level.value = chosen.level;
    setWindow(chosen.width, chosen.level);
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
    slider.setAttribute("aria-label", "Opacity of " + layer.name);
    slider.addEventListener("input", () => { shown[layer.key].opacity = slider.value / 100; refresh(); });
    $("overlays").append(row);
  }

  function legend() {
    $("legend").textContent = "";
    for (const one of page.classes) {
      const mark = document.createElement("span");
      mark.textContent = one.name;
      mark.style.setProperty("--color", "rgb(" + (safe ? one.safe_color : one.color).join(",") + ")");
      $("legend").append(mark);
    }
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
  $("safe-colors").checked = safe;
  $("safe-colors").addEventListener("change", () => { safe = $("safe-colors").checked; legend(); refresh(); });

  function goTo(index) {
    if (!page.lesions.length) return;
    lesion = ((index % page.lesions.length) + page.lesions.length) % page.lesions.length;
    const found = page.lesions[lesion];
    Object.assign(at, { axial: found.slice, coronal: found.row, sagittal: found.column });
    refresh();
  }
  // a click anywhere in its row; the row's button is there for the keyboard
  document.querySelectorAll("tr[data-lesion]").forEach((row) => row.addEventListener("click", () => {
    goTo(Number(row.dataset.lesion));
    $("axial").focus({ preventScroll: true });
    $("viewer").scrollIntoView({ block: "start" });
  }));
  document.querySelectorAll("button[data-place]").forEach((button) => button.addEventListener("click", () => {
    const [row, column, slice] = button.dataset.place.split(",").map(Number);
    Object.assign(at, { axial: slice, coronal: row, sagittal: column });
    lesion = -1;
    refresh();
    $("axial").focus({ preventScroll: true });
    $("viewer").scrollIntoView({ block: "start" });
  }));

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target.matches("select, input[type=number]")) return;
    const key = event.key.toLowerCase(), layer = page.layers.find((l) => l.letter === key);
    if (layer) $("show-" + layer.key).click();
    else if (key === "x") $("crosshair").click();
    else if (key === "n") goTo(lesion + 1);
    else if (key === "p") goTo(lesion < 0 ? -1 : lesion - 1);
    else if (key === "w") {
      const now = page.windows.findIndex((w) => w.name === preset.value);
      usePreset(page.windows[(now + 1) % page.windows.length].name);
    } else return;
    event.preventDefault();
  });

  new ResizeObserver(refresh).observe($("views"));
  legend();
  usePreset(page.windows[0].name);
  $("axial").focus({ preventScroll: true });
})();
