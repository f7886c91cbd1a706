(() => {
  const place = document.getElementById("view");
  const cards = Array.from(document.querySelectorAll(".card[data-key]"));
  if (!cards.length) { place.remove(); return; }
  let viewer = null;
  try {
    viewer = $3Dmol.createViewer(place, { backgroundColor: "white" });
  } catch (error) {
    viewer = null;
  }
  if (!viewer) {
    place.innerHTML = "<p>The 3D view needs a browser with WebGL.</p>";
    return;
  }
  const show = (card) => {
    cards.forEach((other) => other.classList.toggle("shown", other === card));
    const model = BLOCKS[card.dataset.key];
    viewer.removeAllModels();
    viewer.removeAllShapes();
    viewer.addModel(model.text, model.format);
    // The viewer knows the colours of few elements; those of the pictures are handed over.
    const scheme = model.colours ? { colorscheme: { prop: "elem", map: model.colours } } : {};
    const [stick, ball] = model.edges ? [0.06, 0.3] : [0.13, 0.25];
    viewer.setStyle({}, { stick: { radius: stick, ...scheme }, sphere: { scale: ball, ...scheme } });
    const point = (p) => ({ x: p[0], y: p[1], z: p[2] });
    (model.edges || []).forEach(([a, b]) => {
      viewer.addCylinder({ start: point(a), end: point(b), radius: 0.03, fromCap: 1, toCap: 1, color: "#8c959f" });
    });
    viewer.zoomTo();
    viewer.render();
  };
  const float = (on) => {
    place.classList.toggle("floating", on);
    viewer.resize();
  };
  const pick = (card) => {
    // The view follows the reader down the page once a picture far below it is picked.
    const box = place.getBoundingClientRect();
    if (box.bottom < 80 || box.top > window.innerHeight - 80) float(true);
    show(card);
  };
  const close = document.createElement("button");
  close.id = "close";
  close.textContent = "\u00d7";
  close.setAttribute("aria-label", "put the view back in its place");
  close.addEventListener("click", () => float(false));
  place.append(close);
  cards.forEach((card) => {
    card.addEventListener("click", () => pick(card));
    card.addEventListener("keydown", (event) => { if (event.key === "Enter") pick(card); });
  });
  show(cards[0]);
})();
