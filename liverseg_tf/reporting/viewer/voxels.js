"use strict";
// What pages hold of a volume: base64 of gzip of what differs from the voxel to the left, in elements that are emptied.
const Voxels = (() => {
  async function inflate(id) {
    const element = document.getElementById(id), text = atob(element.textContent.trim());
    element.remove();
    const packed = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  // Each slice: the low bytes of its differences, then the high bytes; zigzag-coded, each row from 0.
  async function steps(id, count, rows, columns) {
    const raw = await inflate(id);
    const size = rows * columns, found = new Int16Array(count * size);
    for (let s = 0, i = 0; s < count; s++) {
      const low = 2 * s * size, high = low + size;
      for (let r = 0, k = 0; r < rows; r++) {
        for (let c = 0, value = 0; c < columns; c++, k++, i++) {
          const z = raw[low + k] | (raw[high + k] << 8);
          value += (z >>> 1) ^ -(z & 1);
          found[i] = value;
        }
      }
    }
    return found;
  }

  async function bytes(id, columns) {
    const values = await inflate(id);
    for (let i = 0; i < values.length; i++) if (i % columns) values[i] = (values[i] + values[i - 1]) & 255;
    return values;
  }

  return { can: typeof DecompressionStream !== "undefined", inflate, steps, bytes };
})();
