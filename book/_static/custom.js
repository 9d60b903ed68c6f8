// Three gaps in what the theme does for keyboards and screen readers.
addEventListener("load", () => {
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
