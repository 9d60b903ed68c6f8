// Two gaps in what the theme does for keyboards and screen readers.
addEventListener("load", () => {
  // A table that scrolls sideways can only be scrolled by key if it takes the focus.
  document.querySelectorAll(".pst-scrollable-table-container").forEach((box) => {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  });
  // Sphinx marks a bibliography as a list without marking its entries as items.
  document.querySelectorAll(".citation-list").forEach((list) => {
    list.removeAttribute("role");
  });
});
