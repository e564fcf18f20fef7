// What the widgets share. Its text is put before that of each widget.
const make = (tag, name, text) => {
    const e = document.createElement(tag);
    if (name) e.className = name;
    if (text) e.textContent = text;
    return e;
};

const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

// Notebooks get keys before any control does, wherever no text is typed: on a menu of ours "a" would insert a cell, and
// arrows would leave the cell. In an output that holds `el` the keys go to the controls, except those with Ctrl, Alt or
// Meta, Escape, and Shift-Enter. The attribute must be on the element that has the focus.
const own_keys = (el) => {
    const claim = (e) => {
        if (!e.target.closest?.(".jp-OutputArea-output")?.contains(el)) return;
        e.target.toggleAttribute(
            "data-lm-suppress-shortcuts",
            !(e.ctrlKey || e.altKey || e.metaKey || e.key === "Escape" || (e.shiftKey && e.key === "Enter")),
        );
    };
    window.addEventListener("keydown", claim, true);
    return () => window.removeEventListener("keydown", claim, true);
};

// Keeps every listener, so that a view that is removed removes them too.
const hearing = (model, el) => {
    const all = [],
        free = own_keys(el);
    return {
        on(events, f) {
            model.on(events, f);
            all.push([events, f]);
        },
        stop() {
            free();
            for (const [e, f] of all) model.off(e, f);
        },
    };
};

// The next picture is decoded before it replaces the one that is shown: the element stays and is never blank.
const painter = (img) => {
    let turn = 0,
        url = null;
    return async (data) => {
        const mine = ++turn;
        if (!data || !data.byteLength) {
            img.style.visibility = "hidden";
            return;
        }
        const next = URL.createObjectURL(new Blob([data])),
            ready = new Image();
        ready.src = next;
        try {
            await ready.decode();
        } catch {
            URL.revokeObjectURL(next);
            if (mine === turn) img.style.visibility = "hidden";
            return;
        }
        if (mine !== turn) {
            URL.revokeObjectURL(next);
            return;
        }
        img.src = next;
        img.style.visibility = "";
        if (url) URL.revokeObjectURL(url);
        url = next;
    };
};

const listen_to_keys = (model, where) => {
    where.tabIndex = 0;
    where.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab's own keys stay away
    where.addEventListener("keydown", (e) => {
        if (e.ctrlKey || e.metaKey || e.altKey || !model.get("hears").includes(e.key)) return;
        e.preventDefault();
        e.stopPropagation();
        model.send({ key: e.key });
    });
};

// The files of the single widgets follow this one as one module.
export { clamp, hearing, listen_to_keys, make, painter };
