// The viewer: a click enlarges a picture, arrow keys walk its sheet. Without this file a click opens the picture itself.
(() => {
  const viewer = document.getElementById("viewer");
  if (!viewer || !viewer.showModal) return;
  const image = viewer.querySelector("img");
  const caption = viewer.querySelector("figcaption");
  const frames = [...document.querySelectorAll("a.frame")];
  let current = null;

  const show = (frame) => {
    current = frame;
    const { sheet, row } = frame.dataset;
    const line = frames.filter((other) => other.dataset.sheet === sheet && other.dataset.row === row);
    image.src = frame.href;
    image.alt = frame.title;
    caption.textContent = `${frame.title}  ·  ${line.indexOf(frame) + 1} of ${line.length}`;
    if (!viewer.open) viewer.showModal();
  };

  // the next frame of the same row, or the nearest row that has one in the same column
  const step = (across, down) => {
    const { sheet, row, column } = current.dataset;
    const beside = frames.filter((frame) => frame.dataset.sheet === sheet
      && (across ? frame.dataset.row === row : frame.dataset.column === column));
    const next = beside[beside.indexOf(current) + across + down];
    if (next) show(next);
  };

  document.addEventListener("click", (event) => {
    const frame = event.target.closest("a.frame");
    if (!frame || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    show(frame);
  });
  viewer.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button && button.dataset.step !== "close") step(button.dataset.step === "left" ? -1 : 1, 0);
    else if (button || event.target === viewer) viewer.close();
  });
  viewer.addEventListener("close", () => { if (current) current.focus({ preventScroll: true }); });
  viewer.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    step(...move);
  });
})();
