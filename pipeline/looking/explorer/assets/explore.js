"use strict";

// A picture that cannot be drawn leaves its frame empty.
for (const image of document.querySelectorAll(".frame img, .medium img")) {
  image.addEventListener("error", () => image.classList.add("none"));
}

async function send(vote) {
  const answer = await fetch("/vote", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(vote),
  });
  return answer.ok ? null : (await answer.json()).error;
}

async function choose(card, choice) {
  const error = await send({ media_id: card.dataset.id, vote: choice });
  const said = card.querySelector("[role=status]");
  if (error === null) card.dataset.vote = choice;
  if (said) said.textContent = error ?? `kept: ${choice}`;
}

const medium = document.querySelector(".medium");
for (const button of document.querySelectorAll("button[data-vote]")) {
  button.addEventListener("click", () => choose(medium, button.dataset.vote));
}
for (const button of document.querySelectorAll("button[data-better]")) {
  button.addEventListener("click", async () => {
    const error = await send({ media_id: medium.dataset.id, better: button.dataset.better });
    button.textContent = error ?? "Best: kept";
  });
}

// Keys: j and k through the grid, enter opens, a and r vote, / goes to the filter.
const cards = [...document.querySelectorAll(".grid .card[data-id]")];
let at = -1;
function go(step) {
  if (!cards.length) return;
  cards[at]?.classList.remove("at");
  at = Math.min(cards.length - 1, Math.max(0, at + step));
  cards[at].classList.add("at");
  cards[at].querySelector("a").focus();
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
  const card = medium ?? cards[at];
  if (event.key === "j") go(1);
  else if (event.key === "k") go(-1);
  else if (event.key === "a" && card) choose(card, "keep");
  else if (event.key === "r" && card) choose(card, "reject");
  else if (event.key === "/") {
    document.querySelector("input[name=words], input[name=v]")?.focus();
    event.preventDefault();
  }
});

// Two drawings: a choice, and the next pair.
const samples = document.querySelector(".samples");
if (samples) {
  const sides = [...samples.querySelectorAll("button")];
  const by = document.querySelector("#by");
  by.value = localStorage.getItem("by") ?? "";
  by.addEventListener("change", () => localStorage.setItem("by", by.value));
  const better = async (chosen) => {
    const [rejected] = sides.filter((side) => side !== chosen);
    const error = await send({ chosen: chosen.dataset.sample, rejected: rejected.dataset.sample, by: by.value });
    if (error === null) location.reload();
    else document.querySelector("[role=status]").textContent = error;
  };
  for (const side of sides) side.addEventListener("click", () => better(side));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input")) return;
    if (event.key === "1" || event.key === "2") better(sides[Number(event.key) - 1]);
    else if (event.key === "s") document.querySelector("#skip").click();
  });
}

// Thresholds: judged anew a moment after the slider rests.
const sliders = document.querySelector("#sliders");
if (sliders) {
  const inputs = [...sliders.querySelectorAll("input[type=range]")];
  const number = (value) => Number(value).toLocaleString("en");
  let asked = 0;
  let waiting = null;

  function media(list, found) {
    list.replaceChildren(
      ...found.map(({ media_id: id, caption }) => {
        const item = document.createElement("li");
        const link = document.createElement("a");
        const frame = document.createElement("span");
        const image = document.createElement("img");
        item.className = "card";
        link.href = `/medium/${encodeURIComponent(id)}`;
        frame.className = "frame";
        image.src = `/preview/${encodeURIComponent(id)}`;
        image.alt = "";
        image.addEventListener("error", () => image.classList.add("none"));
        frame.append(image);
        link.append(frame);
        item.append(link);
        if (caption) item.append(caption);
        return item;
      }),
    );
  }

  async function judge() {
    const mine = ++asked;
    const query = new URLSearchParams();
    for (const input of inputs) {
      const value = Number(Number(input.value).toPrecision(4));
      if (value !== Number(input.dataset.now)) query.set(input.dataset.rule, value);
    }
    const { of, name } = sliders.dataset;
    const answer = await fetch(`/${of}/${encodeURIComponent(name)}/judged?${query}`);
    const found = await answer.json();
    if (mine !== asked || !answer.ok) return;
    for (const name of ["kept", "gained", "lost", "open"]) {
      document.querySelector(`#${name}`).textContent = number(found[name]);
    }
    document.querySelector("#yaml").textContent = found.yaml || "move a threshold";
    for (const [vote, [agreed]] of Object.entries(found.votes)) {
      document.querySelector(`#${vote}`).textContent = number(agreed);
    }
    const next =
      of === "rules"
        ? `tokenmill redecide opens no file; the next run captions and tokenizes ${number(found.gained)} media, ` +
          `takes ${number(found.lost)} out of the tokens, and scores ${number(found.open)} first.`
        : "The next run asks no captioner for it; of each medium the next caption in caption.use stands in, or comes back.";
    document.querySelector("#cost").textContent = found.gained || found.lost ? next : "";
    media(document.querySelector("#gained-media"), found.gained_media);
    media(document.querySelector("#lost-media"), found.lost_media);
  }

  for (const input of inputs) {
    const section = input.closest(".slider");
    const show = () => {
      section.querySelector("output").textContent = Number(Number(input.value).toPrecision(4));
      clearTimeout(waiting);
      waiting = setTimeout(judge, 60);
    };
    input.addEventListener("input", show);
    section.querySelector(".back").addEventListener("click", () => {
      input.value = input.dataset.now;
      show();
    });
  }
  document.querySelector("#copy").addEventListener("click", async (event) => {
    const text = document.querySelector("#yaml");
    try {
      await navigator.clipboard.writeText(text.textContent);
      event.target.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(text);
      event.target.textContent = "Selected: press Ctrl-C";
    }
  });
}
