// Shows changes as they happen: when the stream that `data-follow` names says anything of `data-kinds`, the page is asked for again,
// and each part with `data-live` is replaced by what it is now. Without this script a page is as it was when it was loaded.
"use strict";

let due = null;

function soon() {
  if (due === null) due = setTimeout(refresh, 400);
}

async function refresh() {
  due = null;
  const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
  if (!answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const old of document.querySelectorAll("[data-live]")) {
    const now = fresh.getElementById(old.id);
    if (!now || now.innerHTML === old.innerHTML) continue;
    const focused = old.contains(document.activeElement) ? document.activeElement.id : "";
    old.replaceWith(document.adoptNode(now));
    if (focused) (document.getElementById(focused) || document.getElementById("main")).focus();
  }
}

// A part with `data-poll` is asked for again that often (in milliseconds), until it comes without.
function poll() {
  const place = document.querySelector("[data-poll]");
  if (place) setTimeout(() => refresh().finally(poll), Number(place.dataset.poll));
}
poll();

for (const place of document.querySelectorAll("[data-follow]")) {
  const source = new EventSource(place.dataset.follow);
  for (const kind of place.dataset.kinds.split(" ")) source.addEventListener(kind, soon);
  source.addEventListener("end", () => source.close());
}
