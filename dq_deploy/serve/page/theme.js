// Runs before the page is painted, so that a remembered theme never flashes in the other one.
"use strict";
try {
  const remembered = localStorage.getItem("theme");
  if (remembered === "light" || remembered === "dark") document.documentElement.dataset.theme = remembered;
} catch {
  // storage is switched off: the system's theme it is
}
