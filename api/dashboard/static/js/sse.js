// Server-sent events, read from chunks of text. Pure: the bytes come from whoever has them.

/** Returns a function that takes text and gives the events that are whole: [{id, type, data}]. */
export function eventReader() {
  let rest = "";
  return (text) => {
    rest += text;
    const found = [];
    for (;;) {
      const end = rest.search(/\r?\n\r?\n/);
      if (end < 0) return found;
      const block = rest.slice(0, end);
      rest = rest.slice(end).replace(/^\r?\n\r?\n/, "");
      const event = { id: null, type: "message", data: "" };
      const data = [];
      for (const line of block.split(/\r?\n/)) {
        const cut = line.indexOf(":");
        const name = cut < 0 ? line : line.slice(0, cut);
        const value = cut < 0 ? "" : line.slice(cut + 1).replace(/^ /, "");
        if (name === "id") event.id = value;
        else if (name === "event") event.type = value;
        else if (name === "data") data.push(value);
      }
      if (data.length) found.push({ ...event, data: data.join("\n") });
    }
  };
}
