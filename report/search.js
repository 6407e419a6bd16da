"use strict";
const box = document.querySelector("input[name=q]");
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const hits = [...document.querySelectorAll("li.hit")];
  const place = hits.indexOf(document.activeElement);
  if (event.key === "/" && document.activeElement !== box) {
    box.focus();
    box.select();
  } else if (event.key === "Escape") {
    box.focus();
    box.select();
  } else if (event.key === "ArrowDown" && hits.length) {
    hits[Math.min(place + 1, hits.length - 1)].focus();
  } else if (event.key === "ArrowUp" && place >= 0) {
    (place === 0 ? box : hits[place - 1]).focus();
  } else if (event.key === "Enter" && place >= 0) {
    const more = hits[place].querySelector("details");
    if (more) more.open = !more.open;
  } else {
    return;
  }
  event.preventDefault();
});
