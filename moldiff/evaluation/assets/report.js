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
    viewer.removeAllModels();
    viewer.addModel(BLOCKS[card.dataset.key], "sdf");
    viewer.setStyle({}, { stick: { radius: 0.13 }, sphere: { scale: 0.25 } });
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
