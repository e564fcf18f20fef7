function render({ model, el }) {
    const ear = hearing(model, el);
    const box = make("div", "steel-table");
    const table = make("table");
    const head = make("thead");
    const body = make("tbody");
    const line = (tag, texts) => {
        const row = make("tr");
        row.append(...texts.map((text) => make(tag, "", text)));
        return row;
    };
    const set = (i) => {
        model.set("chosen", i);
        model.save_changes();
    };
    const choose = () =>
        [...body.children].forEach((row, i) => {
            const chosen = i === model.get("chosen");
            row.classList.toggle("steel-chosen", chosen);
            row.setAttribute("aria-selected", chosen);
            if (chosen) {
                // into view, without moving the page
                const top = row.offsetTop - head.offsetHeight;
                const low = row.offsetTop + row.offsetHeight - box.clientHeight;
                box.scrollTop = Math.min(Math.max(box.scrollTop, low), Math.max(top, 0));
            }
        });
    const fill = () => {
        head.replaceChildren(line("th", model.get("columns")));
        body.replaceChildren(
            ...model.get("rows").map((texts, i) => {
                const row = line("td", texts);
                row.addEventListener("click", () => {
                    set(i);
                    box.focus({ preventScroll: true });
                });
                return row;
            }),
        );
        choose();
    };
    listen_to_keys(model, box);
    box.addEventListener("keydown", (e) => {
        const step = { ArrowDown: 1, ArrowUp: -1 }[e.key];
        const n = body.children.length;
        if (!step || !n || e.ctrlKey || e.metaKey || e.altKey) return;
        e.preventDefault();
        e.stopPropagation();
        set(clamp(model.get("chosen") + step, 0, n - 1));
    });
    box.style.maxHeight = `${model.get("height")}px`;
    box.setAttribute("aria-label", model.get("title"));
    ear.on("change:page", fill);
    ear.on("change:chosen", choose);
    table.append(head, body);
    box.append(table);
    el.append(box);
    fill();
    return () => ear.stop();
}
export default { render };
