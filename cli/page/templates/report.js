"use strict";
// Label maps are palette PNGs whose indices are train ids, each with an opacity in the chunk tRNS:
// to hide a class, its byte there becomes 0. No pixel is touched.
const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function crc(bytes, from, to) {
  let c = 0xffffffff;
  for (let k = from; k < to; k++) c = TABLE[(c ^ bytes[k]) & 255] ^ (c >>> 8);
  return (c ^ 0xffffffff) >>> 0;
}

function withoutClasses(source, hidden) {
  const text = atob(source.slice(source.indexOf(",") + 1));
  const bytes = Uint8Array.from(text, (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  for (let at = 8; at < bytes.length; ) {
    const size = view.getUint32(at);
    if (text.slice(at + 4, at + 8) === "tRNS") {
      for (const id of hidden) bytes[at + 8 + id] = 0;
      view.setUint32(at + 8 + size, crc(bytes, at + 4, at + 8 + size));
      break;
    }
    at += size + 12;
  }
  return URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
}

function show(image, hidden) {
  image.dataset.source ??= image.src;
  if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
  image.src = hidden.size ? withoutClasses(image.dataset.source, hidden) : image.dataset.source;
}

for (const gallery of document.querySelectorAll(".gallery")) {
  const hidden = new Set();
  const toggles = [...gallery.querySelectorAll("button[data-class]")];
  const update = () => {
    for (const t of toggles) t.setAttribute("aria-pressed", String(!hidden.has(+t.dataset.class)));
    for (const image of gallery.querySelectorAll(".labels img")) show(image, hidden);
  };
  for (const toggle of toggles) {
    toggle.addEventListener("click", () => {
      const id = +toggle.dataset.class;
      if (!hidden.delete(id)) hidden.add(id);
      update();
    });
  }
  gallery.querySelector("[data-all]").addEventListener("click", () => { hidden.clear(); update(); });
  gallery.querySelector("[data-none]").addEventListener("click", () => {
    for (const t of toggles) hidden.add(+t.dataset.class);
    update();
  });
  gallery.querySelector("[data-through]").addEventListener("change", (event) => {
    gallery.classList.toggle("through", event.target.checked);
  });
}

const dialog = document.querySelector("dialog");
let row = [];
let current = 0;

function enlarge(k) {
  current = (k + row.length) % row.length;
  const figure = row[current];
  const picture = figure.querySelector(".picture").cloneNode(true);
  const shot = figure.closest(".shot");
  for (const name of ["--photo", "--ratio"]) {
    picture.style.setProperty(name, shot.style.getPropertyValue(name));
  }
  const place = dialog.querySelector("[data-place]");
  place.replaceChildren(picture);
  place.className = figure.closest(".gallery").className;
  dialog.querySelector("[data-title]").textContent =
    `${figure.querySelector("figcaption").textContent} · ${shot.dataset.id}`;
  if (!dialog.open) dialog.showModal();
}

for (const button of document.querySelectorAll(".zoom")) {
  button.addEventListener("click", () => {
    const figure = button.closest("figure");
    row = [...figure.closest(".pictures").querySelectorAll("figure")];
    enlarge(row.indexOf(figure));
  });
}
dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
dialog.querySelector("[data-before]").addEventListener("click", () => enlarge(current - 1));
dialog.querySelector("[data-after]").addEventListener("click", () => enlarge(current + 1));
dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") enlarge(current - 1);
  if (event.key === "ArrowRight") enlarge(current + 1);
});

const choice = document.querySelector("[data-confusion]");
if (choice) {
  const choose = () => {
    for (const m of document.querySelectorAll(".confusion")) m.hidden = m.id !== choice.value;
  };
  choice.addEventListener("change", choose);
  choose();
}
