function render({ model, el }) {
    const ear = hearing(model, el),
        grid = make("div", "steel-gallery");
    grid.style.gridTemplateColumns = `repeat(${model.get("columns")}, minmax(0, 1fr))`;
    if (model.get("height")) {
        grid.style.maxHeight = `${model.get("height")}px`;
        grid.style.overflowY = "auto";
        grid.style.position = "relative";
    }
    const cells = [];
    const fill = () => {
        // cells stay where they are; their content changes
        const captions = model.get("captions"),
            marks = model.get("marks"),
            pictures = model.get("pictures");
        while (cells.length > captions.length) cells.pop().cell.remove();
        while (cells.length < captions.length) {
            const cell = make("button"),
                img = make("img"),
                line = make("span"),
                i = cells.length;
            cell.append(img, line);
            cell.tabIndex = -1;
            cell.addEventListener("click", () => {
                model.set("chosen", i);
                model.save_changes();
                grid.focus({ preventScroll: true });
            });
            grid.append(cell);
            cells.push({ cell, img, line, paint: painter(img), data: null });
        }
        captions.forEach((text, i) => {
            const c = cells[i];
            c.line.textContent = c.cell.title = c.img.alt = text;
            c.line.classList.toggle("steel-mark", !!marks[i]);
            if (c.data !== pictures[i]) {
                c.data = pictures[i];
                c.paint(c.data);
            }
        });
        choose();
    };
    const choose = () =>
        cells.forEach(({ cell }, i) => {
            const here = i === model.get("chosen"),
                low = cell.offsetTop + cell.offsetHeight + 3 - grid.clientHeight;
            cell.classList.toggle("steel-chosen", here);
            // scroll the grid alone, not the page around it
            if (here && model.get("height"))
                grid.scrollTop = Math.max(low, Math.min(grid.scrollTop, cell.offsetTop - 3));
        });
    ear.on("change:page", fill);
    ear.on("change:chosen", choose);
    listen_to_keys(model, grid);
    el.append(grid);
    fill();
    return () => ear.stop();
}
export default { render };
