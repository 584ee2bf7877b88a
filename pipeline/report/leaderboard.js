// Sorting, filters and provenances. Without this file the page shows every row and column, and leaderboard.json has the provenances.
(() => {
  const root = document.documentElement;
  const tools = document.getElementById("tools");
  const groups = [...document.querySelectorAll(".group")];

  // heights of what was not drawn yet are guesses: a link must know how far it goes, also where the browser is slow
  document.addEventListener("click", (event) => {
    if (event.target.closest('a[href^="#"]')) root.dataset.drawn = "all";
  });

  // rows move within their part of the table: ceilings stay above the models, floors below
  const sort = (header) => {
    const headers = [...header.parentNode.children];
    const column = headers.indexOf(header);
    const first = header.dataset.better === "1" ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const order = header.getAttribute("aria-sort") === first ? other : first;
    for (const it of headers) it.setAttribute("aria-sort", it === header ? order : "none");
    const sign = order === "ascending" ? 1 : -1;
    for (const body of header.closest("table").tBodies) {
      const [band, ...rows] = body.rows;
      const keyed = rows.map((row) => ({ row, text: row.cells[column].textContent.trim(), value: row.cells[column].dataset.v }));
      keyed.sort((a, b) => column === 0 ? sign * a.text.localeCompare(b.text, "en", { numeric: true })
        : a.value === "" || b.value === "" ? (a.value === "") - (b.value === "")
        : sign * (a.value - b.value));
      body.append(band, ...keyed.map((it) => it.row));
    }
  };

  const filter = () => {
    const { condition, model, columns, shuffled } = tools.elements;
    const words = model.value.trim().toLowerCase();
    root.dataset.columns = columns.value;
    root.dataset.shuffled = shuffled.checked ? "on" : "off";
    for (const group of groups) {
      let shown = !words;
      for (const row of group.querySelectorAll("tr[data-model]")) {
        row.hidden = !row.dataset.model.toLowerCase().includes(words);
        shown ||= !row.hidden;
      }
      group.hidden = !shown || (condition.value !== "" && group.dataset.condition !== condition.value);
      const none = group.querySelector(".none");
      if (none) none.hidden = columns.value === "all" || group.querySelector(`thead .${columns.value}`) !== null;
    }
  };

  tools.hidden = false;
  tools.addEventListener("input", filter);
  tools.addEventListener("submit", (event) => event.preventDefault());
  filter(); // a reloaded page keeps what was chosen

  const dialog = document.getElementById("provenance");
  let provenances = null;
  const open = (button) => {
    provenances ??= JSON.parse(document.getElementById("provenances").textContent);
    const { words, lines } = provenances;
    const line = lines[button.dataset.provenance];
    const table = button.closest("table");
    const name = button.closest("tr").cells[0].innerText.split("\n").join(", ");
    const condition = button.closest(".group")?.querySelector("h3") ?? table.tHead.rows[0].cells[button.closest("td").cellIndex];
    dialog.querySelector("h3").textContent = `${name} · ${condition.textContent}`;
    const facts = [];
    for (let at = 0; at < line.length; at += 2) {
      const key = document.createElement("dt");
      const value = document.createElement("dd");
      key.textContent = words[line[at]];
      value.textContent = words[line[at + 1]];
      facts.push(key, value);
    }
    dialog.querySelector("dl").replaceChildren(...facts);
    dialog.showModal();
  };

  document.addEventListener("click", (event) => {
    const number = event.target.closest("button.number");
    const header = event.target.closest(".results th[aria-sort]");
    if (number) open(number);
    else if (header) sort(header);
    else if (event.target === dialog) dialog.close();
  });
})();
