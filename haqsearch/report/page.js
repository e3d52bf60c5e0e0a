"use strict";
(function () {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const config = { responsive: true, displaylogo: false, displayModeBar: "hover", doubleClick: "reset",
    modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]] };
  function draw(root) {
    root.querySelectorAll(".plot").forEach(function (place) {
      const figure = figures[place.id];
      if (!figure || place.dataset.drawn) return;
      place.dataset.drawn = "yes";
      Plotly.newPlot(place, figure.data, figure.layout, config);
    });
  }
  document.querySelectorAll(".tabs button").forEach(function (button) {
    button.addEventListener("click", function () {
      button.parentElement.querySelectorAll("button").forEach(function (other) {
        const on = other === button;
        other.setAttribute("aria-pressed", String(on));
        document.getElementById(other.dataset.shows).hidden = !on;
      });
      const shown = document.getElementById(button.dataset.shows);
      draw(shown);
      shown.querySelectorAll(".plot").forEach(function (place) { Plotly.Plots.resize(place); });
    });
  });
  document.querySelectorAll(".plots:not([hidden]), .single").forEach(draw);
  function everyDrawn(change) {
    document.querySelectorAll(".plot[data-drawn]").forEach(function (place) {
      if (place.offsetParent !== null) change(place);
    });
  }
  window.addEventListener("beforeprint", function () {
    everyDrawn(function (place) { Plotly.relayout(place, { width: place.closest(".plots") ? 330 : 690, autosize: false }); });
  });
  window.addEventListener("afterprint", function () {
    everyDrawn(function (place) { Plotly.relayout(place, { width: null, autosize: true }); });
  });
  document.documentElement.dataset.ready = "yes";
})();
