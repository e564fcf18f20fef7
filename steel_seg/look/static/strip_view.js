function render({ model, el }) {
    const names = model.get("names"),
        ear = hearing(model, el);
    const frame = make("div", "steel-frame"),
        stack = make("div", "steel-stack"),
        tools = make("div", "steel-tools");
    const resize = () => {
        frame.style.width = `${model.get("width")}px`;
        frame.style.aspectRatio = model.get("size").join(" / ");
    };
    ear.on("change:size change:width", resize);
    resize();
    frame.setAttribute("aria-label", model.get("title"));
    const imgs = names.map((name) => {
        const img = make("img");
        img.alt = name;
        img.draggable = false;
        img.style.visibility = "hidden";
        stack.append(img);
        return img;
    });
    const paint = imgs.map(painter);
    names.forEach((_, i) => {
        const show = () => paint[i](model.get(`layer${i}`));
        ear.on(`change:layer${i}`, show);
        show();
    });
    frame.append(stack);
    const set = (values) => {
        for (const [k, v] of Object.entries(values)) model.set(k, v);
        model.save_changes();
    };

    // layers
    const boxes = names.map((name, i) => {
        const label = make("label"),
            box = make("input");
        box.type = "checkbox";
        label.title = `key ${i + 1}`;
        box.addEventListener("change", () => toggle(i, box.checked));
        label.append(box, name);
        return box;
    });
    const toggle = (i, on) => set({ shown: names.filter((n, k) => (k === i ? on : model.get("shown").includes(n))) });
    const layers = () =>
        names.forEach((name, i) => {
            boxes[i].checked = model.get("shown").includes(name);
            imgs[i].style.display = boxes[i].checked ? "" : "none";
        });
    ear.on("change:shown", layers);

    // zoom
    const much = make("span");
    const place = () => {
        const z = model.get("zoom");
        stack.style.transform = `scale(${z}) translate(${-100 * model.get("left")}%, ${-100 * model.get("top")}%)`;
        stack.classList.toggle("steel-near", (z * frame.clientWidth) / model.get("size")[0] >= 3);
        much.textContent = `${z.toFixed(1)}\u00d7`;
        frame.style.cursor = z > 1 ? "grab" : "";
    };
    const look = (z, left, top) => {
        z = clamp(z, 1, 16);
        set({ zoom: z, left: clamp(left, 0, 1 - 1 / z), top: clamp(top, 0, 1 - 1 / z) });
    };
    const nearer = (factor, fx = 0.5, fy = 0.5) => {
        // the point under the pointer stays
        const z = model.get("zoom"),
            next = clamp(z * factor, 1, 16);
        look(next, model.get("left") + fx / z - fx / next, model.get("top") + fy / z - fy / next);
    };
    const at = (e) => {
        const box = frame.getBoundingClientRect();
        return [(e.clientX - box.left) / box.width, (e.clientY - box.top) / box.height];
    };
    frame.addEventListener(
        "wheel",
        (e) => {
            if (document.activeElement === frame || e.ctrlKey) {
                e.preventDefault();
                nearer(e.deltaY < 0 ? 1.25 : 0.8, ...at(e));
            }
        },
        { passive: false },
    );
    frame.addEventListener("dblclick", (e) => nearer(2, ...at(e)));
    let grip = null;
    frame.addEventListener("pointerdown", (e) => {
        frame.focus({ preventScroll: true });
        grip = [...at(e), model.get("left"), model.get("top")];
        frame.setPointerCapture(e.pointerId);
    });
    frame.addEventListener("pointermove", (e) => {
        if (grip && model.get("zoom") > 1) {
            const [x, y] = at(e),
                z = model.get("zoom");
            look(z, grip[2] - (x - grip[0]) / z, grip[3] - (y - grip[1]) / z);
        }
    });
    for (const end of ["pointerup", "pointercancel"])
        frame.addEventListener(end, () => {
            grip = null;
        });
    ear.on("change:zoom change:left change:top", place);

    // light
    const light = () => {
        imgs[0].style.filter = `contrast(${model.get("contrast")}) brightness(${model.get("brightness")})`;
        for (const [key, range] of ranges) range.value = model.get(key);
    };
    const ranges = [
        ["contrast", "Contrast"],
        ["brightness", "Brightness"],
    ].map(([key, name]) => {
        const range = make("input");
        Object.assign(range, { type: "range", min: 0.3, max: 4, step: 0.05, title: `${name}, double click for 1` });
        range.addEventListener("input", () => set({ [key]: +range.value }));
        range.addEventListener("dblclick", () => set({ [key]: 1 }));
        return [key, range, name];
    });
    ear.on("change:contrast change:brightness", light);

    const button = (text, title, f) => {
        const b = make("button", "", text);
        b.title = title;
        b.addEventListener("click", f);
        return b;
    };
    const row = make("label", "", "Layers"),
        zooms = make("label", "", "Zoom");
    zooms.append(
        button("\u2212", "further away, key -", () => nearer(0.8)),
        much,
        button("+", "nearer, key +", () => nearer(1.25)),
        button("whole", "the whole strip, key 0", () => look(1, 0, 0)),
    );
    tools.append(
        row,
        ...boxes.map((b) => b.parentNode),
        zooms,
        ...ranges.map(([_, range, name]) => {
            const l = make("label", "", name);
            l.append(range);
            return l;
        }),
    );
    frame.addEventListener("keydown", (e) => {
        if (e.ctrlKey || e.metaKey || e.altKey) return;
        const i = "123456".indexOf(e.key),
            f = { "+": () => nearer(1.25), "-": () => nearer(0.8), 0: () => look(1, 0, 0) }[e.key];
        if (f) f();
        else if (i >= 0 && i < names.length) toggle(i, !boxes[i].checked);
        else return;
        e.preventDefault();
        e.stopPropagation();
    });
    listen_to_keys(model, frame);
    const caption = make("div", "steel-caption"),
        say = () => {
            caption.textContent = model.get("caption");
        };
    ear.on("change:caption", say);
    say();
    el.append(frame, tools, caption);
    layers();
    place();
    light();
    return () => ear.stop();
}
export default { render };
