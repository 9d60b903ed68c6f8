// What scrolls sideways says so: it fades out at its right until its end is in view. Of
// maths the drawn part counts: beside it stands a hidden copy for screen readers.
function markCut(box) {
  const drawn = box.querySelector(":scope > mjx-math");
  const hidden = drawn
    ? drawn.getBoundingClientRect().right - box.getBoundingClientRect().right
    : box.scrollWidth - box.clientWidth - box.scrollLeft;
  box.classList.toggle("tc-cut", hidden > 4);
}

addEventListener("load", async () => {
  await window.MathJax?.startup?.promise;
  const boxes = document.querySelectorAll(
    ".bd-article :is(pre, .pst-scrollable-table-container, .tc-clock-table, .output, "
      + "mjx-container[display='true'])",
  );
  const watch = new ResizeObserver((seen) => seen.forEach((s) => markCut(s.target)));
  boxes.forEach((box) => {
    watch.observe(box);
    box.addEventListener("scroll", () => markCut(box), { passive: true });
  });
});

addEventListener("load", () => {
  // Words that a search led to are marked until the reader acts.
  addEventListener("click", () => {
    document.querySelectorAll("span.highlighted").forEach((word) => {
      word.classList.remove("highlighted");
    });
  });

  // Three gaps in what the theme does for keyboards and screen readers.
  // A table that scrolls sideways can only be scrolled by key if it takes the focus.
  document.querySelectorAll(".pst-scrollable-table-container").forEach((box) => {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  });
  // A fold is announced by what it says ("Show solution"), not by a label for all folds.
  document.querySelectorAll("details.hide > summary").forEach((summary) => {
    summary.removeAttribute("aria-label");
  });
  // Sphinx marks a bibliography as a list without marking its entries as items.
  document.querySelectorAll(".citation-list").forEach((list) => {
    list.removeAttribute("role");
  });
});
