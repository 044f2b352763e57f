// Displays a result: the overlay above the image, and the segment under the pointer, found by the pixel's id.
const find = (selector) => element.querySelector(selector);
const number = new Intl.NumberFormat("en");

let shown = 0; // number of results so far; images of an earlier result that load late are ignored
let newest = 0; // serial of the last upload; a late result of an earlier upload is ignored
let ids = null; // { width, height, of: Uint32Array, boxes: Map id -> [left, top, right, bottom, sumX, sumY, pixels] }
let segments = new Map();
let marked = 0;
let pinned = 0;
let opacity = 100;

watch("value", show);
show();

element.addEventListener("pointermove", (event) => mark(under(event) || pinned, event));
element.addEventListener("pointerleave", () => mark(pinned));
element.addEventListener("click", (event) => {
  if (!event.target.closest(".stage, tbody")) return;
  const id = under(event);
  pinned = id === pinned ? 0 : id;
  mark(pinned, event);
  if (event.target.closest(".stage")) scrollToRow(pinned);
});
// Keyboard access to the segments through their rows: arrow keys move, Enter and Space pin.
element.addEventListener("focusin", (event) => {
  const line = event.target.closest("tbody tr");
  if (line) mark(Number(line.dataset.id));
});
element.addEventListener("keydown", (event) => {
  const line = event.target.closest("tbody tr");
  if (!line) return;
  const next = { ArrowDown: line.nextElementSibling, ArrowUp: line.previousElementSibling }[event.key];
  if (next) next.focus();
  else if (event.key === "Enter" || event.key === " ") pinned = Number(line.dataset.id) === pinned ? 0 : Number(line.dataset.id);
  else return;
  event.preventDefault();
});
new ResizeObserver(writeNames).observe(find(".stage"));
element.addEventListener("input", (event) => {
  opacity = event.target.value;
  find(".overlay").style.opacity = find(".names").style.opacity = opacity / 100;
});

function show() {
  const value = props.value;
  if (value && value.serial < newest) return;
  newest = (value && value.serial) || newest;
  const failed = Boolean(value && value.error);
  find(".empty").hidden = Boolean(value);
  find(".error").hidden = !failed;
  find(".error").textContent = failed ? value.error : "";
  find(".result").hidden = !value || failed;
  shown += 1;
  ids = null;
  marked = pinned = 0;
  segments = new Map();
  if (!value || failed) return;
  segments = new Map(value.segments.map((segment) => [segment.id, segment]));
  find(".image").src = value.image;
  find(".overlay").src = value.overlay;
  find(".overlay").style.opacity = opacity / 100;
  find(".fade input").value = opacity;
  find(".names").replaceChildren();
  find(".summary").textContent = summary(value);
  find("tbody").replaceChildren(...value.segments.map(row));
  element.dataset.segments = value.segments.length;
  mark(0);
  readIds(value.ids, shown);
}

function summary(value) {
  const things = value.segments.filter((segment) => segment.thing).length;
  const stuff = value.segments.length - things;
  return [
    `${value.name}, ${value.width} × ${value.height}: ${things} ${things === 1 ? "object" : "objects"}, ` +
    `${stuff} ${stuff === 1 ? "region" : "regions"} of stuff; model ${value.model}, network ${value.seconds.toFixed(1)} s`,
    ...value.remarks,
  ].join("\n");
}

function row(segment) {
  const line = document.createElement("tr");
  line.dataset.id = segment.id;
  line.tabIndex = 0;
  const swatch = document.createElement("i");
  swatch.style.background = segment.color;
  line.insertCell().append(swatch);
  for (const text of [segment.name, score(segment), number.format(segment.area), share(segment)]) {
    line.insertCell().textContent = text;
  }
  return line;
}

const score = (segment) => (segment.score === null ? "–" : segment.score.toFixed(2));
const share = (segment) => `${(100 * segment.share).toFixed(segment.share < 0.01 ? 2 : 1)} %`;

function readIds(url, mine) {
  const image = new Image();
  image.onload = () => {
    if (mine !== shown) return;
    const { width, height } = image;
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const rgba = context.getImageData(0, 0, width, height).data;
    const of = new Uint32Array(rgba.buffer).map((pixel) => pixel & 0xffffff); // R + 256 G + 65536 B
    const boxes = new Map();
    for (let y = 0, n = 0; y < height; y++) {
      for (let x = 0; x < width; x++, n++) {
        const box = boxes.get(of[n]);
        if (!box) boxes.set(of[n], [x, y, x, y, x, y, 1]);
        else {
          if (x < box[0]) box[0] = x;
          if (x > box[2]) box[2] = x;
          box[3] = y;
          box[4] += x;
          box[5] += y;
          box[6] += 1;
        }
      }
    }
    ids = { width, height, of, boxes };
    Object.assign(find("canvas"), { width, height });
    writeNames();
  };
  image.src = url;
}

// Write the names of segments at a fixed size; a name wider or higher than its segment is omitted.
function writeNames() {
  const names = find(".names");
  names.replaceChildren();
  if (!ids) return;
  names.style.opacity = opacity / 100;
  const frame = names.getBoundingClientRect();
  const scale = frame.width / ids.width;
  for (const segment of segments.values()) {
    const box = ids.boxes.get(segment.id);
    if (!box || (box[3] - box[1] + 1) * scale < 16 || (box[2] - box[0] + 1) * scale < 7 * segment.name.length) continue;
    const label = document.createElement("span");
    label.textContent = segment.name;
    label.style.left = `${(100 * box[4]) / box[6] / ids.width}%`;
    label.style.top = `${(100 * box[5]) / box[6] / ids.height}%`;
    names.append(label);
  }
}

function under(event) {
  const line = event.target.closest("tbody tr");
  if (line) return Number(line.dataset.id);
  if (!ids || !event.target.closest(".stage")) return 0;
  const frame = find("canvas").getBoundingClientRect();
  const x = Math.floor(((event.clientX - frame.left) / frame.width) * ids.width);
  const y = Math.floor(((event.clientY - frame.top) / frame.height) * ids.height);
  return x >= 0 && y >= 0 && x < ids.width && y < ids.height ? ids.of[y * ids.width + x] : 0;
}

// Paint the border of a segment white and its inside translucent, and describe it beside the pointer.
function mark(id, event) {
  showTip(id, event);
  if (id === marked) return;
  marked = id;
  for (const line of element.querySelectorAll("tbody tr")) line.classList.toggle("on", Number(line.dataset.id) === id);
  const canvas = find("canvas");
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  if (!ids || !ids.boxes.has(id)) return;
  const [left, top, right, bottom] = ids.boxes.get(id);
  const [width, height] = [right - left + 1, bottom - top + 1];
  const paint = context.createImageData(width, height);
  const reach = Math.max(1, Math.round(ids.width / 500));
  const inside = (x, y) => x >= 0 && y >= 0 && x < ids.width && y < ids.height && ids.of[y * ids.width + x] === id;
  for (let y = top; y <= bottom; y++) {
    for (let x = left; x <= right; x++) {
      if (!inside(x, y)) continue;
      const edge = !(inside(x - reach, y) && inside(x + reach, y) && inside(x, y - reach) && inside(x, y + reach));
      paint.data.set([255, 255, 255, edge ? 255 : 70], 4 * ((y - top) * width + x - left));
    }
  }
  context.putImageData(paint, left, top);
}

function showTip(id, event) {
  const tip = find(".tip");
  const segment = segments.get(id);
  tip.hidden = !segment || !event || !event.target.closest(".stage");
  if (tip.hidden) return;
  const certain = segment.score === null ? "" : `score ${score(segment)} · `;
  tip.textContent = `${segment.name}\n${certain}${number.format(segment.area)} px · ${share(segment)}`;
  const frame = find(".stage").getBoundingClientRect();
  const [x, y] = [event.clientX - frame.left, event.clientY - frame.top];
  tip.style.left = `${Math.max(0, Math.min(x + 14, frame.width - tip.offsetWidth - 4))}px`;
  tip.style.top = `${y + 18 + tip.offsetHeight > frame.height ? y - tip.offsetHeight - 10 : y + 18}px`;
}

function scrollToRow(id) {
  const line = find(`tr[data-id="${id}"]`);
  if (line) line.closest(".table").scrollTo({ top: line.offsetTop - 60, behavior: "smooth" });
}
