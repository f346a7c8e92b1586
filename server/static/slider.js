// Says which day the slider of a domain's past stands at; without this script the page says it once it is shown.
"use strict";

const slider = document.querySelector("[data-day]");

function tell() {
  const first = Date.parse(`${document.querySelector("[data-first]").textContent}T00:00:00Z`);
  const date = new Date(first + Number(slider.value) * 86400000).toISOString().slice(0, 10);
  const day = slider.value === slider.max ? `${date}, today` : date;
  document.querySelector("[data-shown]").textContent = day;
  slider.setAttribute("aria-valuetext", day);
}

slider.addEventListener("input", tell);
tell();
