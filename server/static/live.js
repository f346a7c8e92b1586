// Shows changes as they happen: when the stream that `data-follow` names says anything of `data-kinds`, the page is asked for again,
// and each part with `data-live` is replaced by what it is now. Where the server does not answer, the page says so, and asks on until it does.
// Without this script a page is as it was when it was loaded.
"use strict";

const AGAIN = 3000; // milliseconds between two looks at a server that does not answer
const PATIENCE = 15000; // milliseconds that an answer may take

let due = null;
let cut = null; // when the line was cut
let stumbled = 0; // when a stream last ended before its time
const sources = new Map(); // the open stream of each part that follows one

function soon() {
  if (due === null) due = setTimeout(refresh, 400);
}

async function refresh() {
  due = null;
  let answer, text;
  try {
    answer = await fetch(location.href, { headers: { Accept: "text/html" }, signal: AbortSignal.timeout(PATIENCE) });
    text = await answer.text();
  } catch {
    return lost();
  }
  if (answer.status >= 500 || answer.status === 429) return lost();
  if (answer.redirected && new URL(answer.url).pathname === "/login") return over("Your login has ended.", "Log in again", answer.url);
  if (answer.status === 404) return over("The server has this no more.", "Load the page again", location.href);
  const fresh = new DOMParser().parseFromString(text, "text/html");
  if (!fresh.querySelector("[data-live]")) return over(`The server refuses this page now (${answer.status}).`, "Load it again", location.href);
  for (const old of document.querySelectorAll("[data-live]")) renew(old, fresh.getElementById(old.id));
  found();
}

function renew(old, now) {
  if (!now || now.innerHTML === old.innerHTML) return;
  const focused = old.contains(document.activeElement) ? document.activeElement.id : "";
  old.replaceWith(document.adoptNode(now));
  if (focused) (document.getElementById(focused) || document.getElementById("main")).focus();
}

// What the page says of its line to the server; nothing while all is well.
function tell(text, label, address) {
  document.getElementById("line")?.remove();
  if (!text) return;
  const place = document.createElement("div");
  Object.assign(place, { id: "line", className: "warned", role: "alert", textContent: text });
  if (label) {
    const link = Object.assign(document.createElement("a"), { href: address, textContent: label });
    place.append(" ", link);
  }
  document.getElementById("main").prepend(place);
}

function hangUp() {
  for (const source of sources.values()) source.close();
  sources.clear();
}

function lost() {
  hangUp();
  if (cut === null) {
    cut = new Date();
    tell(`The server has not answered since ${cut.toISOString().slice(11, 19)} UTC: this page is as it was then. It is asked again every ${AGAIN / 1000} seconds.`);
  }
  if (due === null) due = setTimeout(refresh, AGAIN);
}

// A stream that ends need not mean that the server is gone: the page is asked for, and the stream with it.
function stumble() {
  hangUp();
  const pause = Date.now() - stumbled < 10000 ? AGAIN : 400;
  stumbled = Date.now();
  if (due === null) due = setTimeout(refresh, pause);
}

function over(text, label, address) {
  hangUp();
  cut = null;
  tell(text, label, address);
}

function found() {
  if (cut !== null) tell("");
  cut = null;
  follow();
  // a part with `data-poll` is asked for again that often (in milliseconds), until it comes without
  const place = document.querySelector("[data-poll]");
  if (place && due === null) due = setTimeout(refresh, Number(place.dataset.poll));
}

function follow() {
  for (const place of document.querySelectorAll("[data-follow]")) {
    if (sources.has(place)) continue;
    const source = new EventSource(place.dataset.follow);
    sources.set(place, source);
    for (const kind of place.dataset.kinds.split(" ")) source.addEventListener(kind, soon);
    source.addEventListener("end", () => source.close()); // it stays known, so that it is not asked for again
    source.addEventListener("error", stumble);
  }
}

found();
