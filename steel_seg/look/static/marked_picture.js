function render({ model, el }) {
    const ear = hearing(model, el),
        box = make("div", "steel-marked"),
        img = make("img"),
        paint = painter(img);
    img.alt = model.get("title");
    box.append(img);
    if (model.get("width")) img.style.width = `${model.get("width")}px`;
    const dots = [];
    const mark = () => {
        const marks = model.get("marks");
        while (dots.length > marks.length) dots.pop().remove();
        while (dots.length < marks.length) {
            const dot = make("i");
            box.append(dot);
            dots.push(dot);
        }
        marks.forEach((m, k) => {
            const s = dots[k].style;
            dots[k].title = m.name;
            s.left = `${100 * m.x}%`;
            s.top = `${100 * m.y}%`;
            const line = `linear-gradient(${m.colour}, ${m.colour})`;
            const cross = `${line} center/3px 100% no-repeat, ${line} center/100% 3px no-repeat`;
            s.background = m.shape === "dot" ? m.colour : m.shape === "cross" ? cross : "none";
            s.border = m.shape === "ring" ? `3px solid ${m.colour}` : "none";
            s.borderRadius = m.shape === "cross" ? "0" : "50%";
        });
    };
    const show = () => paint(model.get("picture"));
    img.addEventListener("click", (e) => {
        const r = img.getBoundingClientRect();
        model.set("clicked", [(e.clientX - r.left) / r.width, (e.clientY - r.top) / r.height]);
        model.save_changes();
    });
    ear.on("change:picture", show);
    ear.on("change:marks", mark);
    el.append(box);
    show();
    mark();
    return () => ear.stop();
}
export default { render };
