"use strict";
(() => {
  const root = document.documentElement;
  const theme = document.getElementById("theme");
  const remember = (value) => { try { localStorage.setItem("zoobench-theme", value); } catch { /* a page from disk may not */ } };
  const remembered = () => { try { return localStorage.getItem("zoobench-theme"); } catch { return null; } };
  const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const label = () => { theme.textContent = isDark() ? "Light" : "Dark"; theme.setAttribute("aria-label", `Switch to the ${isDark() ? "light" : "dark"} theme`); };
  if (["light", "dark"].includes(remembered())) root.dataset.theme = remembered();
  theme.hidden = false;
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; remember(root.dataset.theme); label(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
  label();

  const compare = (a, b, sign) => {
    if (a === "" || b === "") return a === b ? 0 : a === "" ? 1 : -1; // what was not measured stays last
    const [x, y] = [Number(a), Number(b)];
    return sign * (Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, undefined, { numeric: true }) : x - y);
  };
  const status = document.getElementById("status");
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const text = head.textContent;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const first = head.dataset.first || "ascending";
        const order = head.getAttribute("aria-sort") === first ? (first === "ascending" ? "descending" : "ascending") : first;
        for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", order);
        const value = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent.trim();
        const sign = order === "ascending" ? 1 : -1;
        body.append(...[...body.rows].map((row) => [value(row), row]).sort((a, b) => compare(a[0], b[0], sign)).map(([, row]) => row));
        if (status) status.textContent = `Sorted by ${text.trim()}, ${order}.`;
      });
    });
  }

  const filter = document.getElementById("filter");
  if (filter) {
    const rows = [...document.querySelectorAll(".board tbody tr")].map((row) => [row, row.textContent.toLowerCase()]);
    filter.closest(".tools").hidden = false;
    filter.addEventListener("input", () => {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const [row, text] of rows) {
        row.hidden = !words.every((word) => text.includes(word));
        shown += !row.hidden;
      }
      status.textContent = `${shown} of ${rows.length} models shown.`;
    });
  }
  addEventListener("beforeprint", () => { for (const details of document.querySelectorAll("details")) details.open = true; });
})();
