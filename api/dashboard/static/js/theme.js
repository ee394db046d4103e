// Runs before anything is drawn, so that a page never flashes in the wrong colours.
"use strict";
(() => {
  const chosen = localStorage.getItem("pruneloop.theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
